"""Folded models and integer models against the trained simulation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from backends import BACKENDS
from small_networks import SmallNetwork, images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import ConversionError, QuantScheme
from ghnq_quant.deployment.integer_layers import IntegerLayer
from ghnq_quant.deployment.layers import FoldedConv2d
from ghnq_quant.quantization import QuantModel
from ghnq_quant.quantization.scheme import as_pair


def trained(
    bits: int | tuple[int, int] = 8, backend: str = "reference", limit: float | None = None
) -> QuantModel:
    scheme = QuantScheme(*as_pair(bits), channel_limit=limit)
    qmodel = ghnq_quant.quantize(small_network(), scheme=scheme, backend=backend)
    for _ in range(3):
        qmodel(images())
    return qmodel.eval()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("bits", "limit"),
    [*((bits, None) for bits in (2, 3, 4, 8, (4, 8), (8, 4), (32, 8))), (4, 1.2)],
)
def test_a_folded_model_gives_the_simulation_s_very_values(
    bits: int | tuple[int, int], limit: float | None, backend: str
) -> None:
    qmodel, x = trained(bits, backend, limit), images()
    before = copy.deepcopy(qmodel.state_dict())
    folded = ghnq_quant.convert(qmodel, integer=False)
    assert all(torch.equal(before[name], t) for name, t in qmodel.state_dict().items())
    torch.testing.assert_close(folded(x), qmodel(x), rtol=0, atol=1e-6)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    assert not any(p.requires_grad for p in folded.parameters())


def test_a_folded_weight_lies_on_its_levels() -> None:
    qmodel = trained(3)
    layer = ghnq_quant.convert(qmodel).get_submodule("stem.0")
    assert isinstance(layer, FoldedConv2d)
    norm = qmodel.get_submodule("stem.1")
    factor = (norm.weight * (norm.running_var + norm.eps).rsqrt()).detach()
    folded = qmodel.get_parameter("stem.0.weight").detach() * factor.view(-1, 1, 1, 1)
    low, high = folded.min().clamp(max=0), folded.max().clamp(min=0)
    scale = (high - low) / 7
    zero_point = (-low / scale).round()
    levels = ((folded / scale).round() + zero_point).clamp(0, 7)
    assert torch.equal(layer.weight_levels(), levels.to(torch.uint8))
    torch.testing.assert_close(layer.weight.detach(), (levels - zero_point) * scale)
    torch.testing.assert_close(layer.bias, norm.bias - norm.running_mean * factor)


def test_a_folded_model_s_state_is_plain_tensors() -> None:
    folded = ghnq_quant.convert(trained(4))
    twin = ghnq_quant.convert(trained(4))
    for p in twin.parameters():
        p.zero_()
    twin.load_state_dict(folded.state_dict())
    x = images()
    assert torch.equal(twin(x), folded(x))


# Integers


def test_eight_bits_run_on_integers_by_default() -> None:
    qmodel, x = trained(8), images(64)
    deployed = ghnq_quant.convert(qmodel)
    for name in ("stem.0", "depthwise", "plain"):
        layer = deployed.get_submodule(name)
        assert isinstance(layer, IntegerLayer), name
        assert layer.weight.dtype == torch.int8
    y = qmodel(x)
    step = (y.max() - y.min()) / 255
    assert (deployed(x) - y).abs().max() <= step
    assert not any(isinstance(m, IntegerLayer) for m in ghnq_quant.convert(trained(4)).modules())


@pytest.mark.parametrize("bits", [2, 4, (4, 8), (8, 4)])
def test_fewer_bits_run_on_integers_on_request(bits: int | tuple[int, int]) -> None:
    """Within a step of the outputs' range on every image, and mostly equal."""
    qmodel, x = trained(bits), images(64)
    y = qmodel(x)
    difference = (ghnq_quant.convert(qmodel, integer=True)(x) - y).abs()
    act_bits = bits if isinstance(bits, int) else bits[1]
    assert difference.max() <= (y.max() - y.min()) / (2**act_bits - 1)
    assert difference.median() < 1e-6


class Everything(nn.Module):
    """Layers that read integers, and others that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding="same", groups=2), nn.LeakyReLU(0.1))
        self.c = nn.Sequential(nn.Conv2d(16, 8, 1), nn.Hardtanh(-0.5, 0.5))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())
        self.d = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.ReLU6(), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = torch.relu(a + self.b(a))
        c = self.c(torch.cat([a, b], 1))
        c = c * self.gate(c)
        return self.head(self.pool(torch.max_pool2d(self.d(c), 1)))


def test_what_reads_no_integers_is_computed_in_float() -> None:
    torch.manual_seed(0)
    qmodel = ghnq_quant.quantize(Everything(), 8, backend="reference")
    x = images(64)
    ghnq_quant.calibrate(qmodel, [x])
    deployed, y = ghnq_quant.convert(qmodel), qmodel.eval()(x)
    kinds = {n: type(m).__name__ for n, m in deployed.named_modules() if n in LAYERS}
    assert kinds == LAYERS
    assert type(deployed.get_submodule("activation_quantizers.add")).__name__ == "IntegerQuantize"
    step = (y.max() - y.min()) / 255
    assert (deployed(x) - y).abs().max() <= 2 * step


LAYERS = {
    "a.0": "IntegerLayer",
    "b.0": "IntegerLayer",  # returns values, since LeakyReLU is not a clamp
    "c.0": "FoldedConv2d",  # its input is a concatenation of two scales
    "gate.1": "IntegerLayer",
    "d": "FoldedConv2d",  # not padded with zeros
    "head.1": "IntegerLayer",
    "head.3": "IntegerLayer",  # returns logits, which are not quantized
}


def test_integer_models_are_copied_and_saved() -> None:
    deployed, x = ghnq_quant.convert(trained(8)), images()
    y = deployed(x)
    assert torch.equal(copy.deepcopy(deployed)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(deployed))(x), y)


def test_a_bias_beyond_32_bits_leaves_its_layer_in_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    nn.init.constant_(model[0].bias, 1e6)
    qmodel, x = ghnq_quant.quantize(model, 8, backend="reference"), images() * 1e-3
    ghnq_quant.calibrate(qmodel, [x])
    deployed = ghnq_quant.convert(qmodel.eval())
    assert isinstance(deployed.get_submodule("0"), FoldedConv2d)
    assert isinstance(deployed.get_submodule("2"), IntegerLayer)
    torch.testing.assert_close(deployed(x), qmodel(x), rtol=1e-4, atol=0)


# What cannot be converted


def test_a_model_that_was_not_trained_is_refused() -> None:
    qmodel = ghnq_quant.quantize(small_network(), 8, backend="reference")
    with pytest.raises(ConversionError, match=r"activation_quantizers\.x.*calibrate"):
        ghnq_quant.convert(qmodel)
    for module in qmodel.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    qmodel(images())  # ranges, but no statistics
    with pytest.raises(ConversionError, match=r"batch norm 'stem\.1'"):
        ghnq_quant.convert(qmodel)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ranges_of_each_batch_are_refused(backend: str) -> None:
    scheme = QuantScheme(8, 8, act_range="batch")
    qmodel = ghnq_quant.quantize(small_network(), scheme=scheme, backend=backend)
    qmodel(images())
    with pytest.raises(ConversionError, match="act_range='ema'"):
        ghnq_quant.convert(qmodel)


def test_a_float_model_is_refused() -> None:
    with pytest.raises(ConversionError, match="SmallNetwork"):
        ghnq_quant.convert(SmallNetwork())  # type: ignore[arg-type]


def test_a_model_of_a_toolkit_that_converts_by_itself_is_refused() -> None:
    pytest.importorskip("torchao")
    x = images(2)
    qmodel = ghnq_quant.quantize(small_network(), 8, backend="pt2e", example_input=x)
    with pytest.raises(ConversionError, match="toolkit's own conversion"):
        ghnq_quant.convert(qmodel)


def test_torch_ao_switches_decide_what_is_converted() -> None:
    from torch.ao.quantization import disable_observer

    qmodel = trained(8, "torch_ao").apply(disable_observer)
    x = images()
    torch.testing.assert_close(
        ghnq_quant.convert(qmodel, integer=False)(x), qmodel(x), rtol=1e-4, atol=1e-4
    )
