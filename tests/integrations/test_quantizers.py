"""Quantizers of every kind inside the toolkits, compared with the toolkits' own."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import Quantizer
from ghnq_quant.quantization import QuantModel, fake_quantize, qparams_of
from ghnq_quant.quantization.scheme import parse_quantizers

BITS = [2, 3, 4, 8]


def weight() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(8, 25_000) * torch.logspace(-2, 2, 8)[:, None]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Int8WeightPerTensorFloat", "symmetric"),
        ("Int8WeightPerChannelFloat", "symmetric-channel"),
        ("ShiftedUint8WeightPerChannelFloat", "channel"),
    ],
)
def test_weights_equal_brevitas_own(name: str, kind: str, bits: int) -> None:
    qnn = pytest.importorskip("brevitas.nn")
    import brevitas.quant
    from ghnq_brevitas import weight_quantizer

    stock, quantizer = getattr(brevitas.quant, name), Quantizer.parse(f"{bits}-{kind}")
    assert issubclass(weight_quantizer(quantizer), stock)
    tensors = []
    for chosen in (type("Stock", (stock,), {"bit_width": bits}), weight_quantizer(quantizer)):
        layer = qnn.QuantLinear(25_000, 8, bias=False, weight_quant=chosen)
        layer.weight = nn.Parameter(weight())
        tensors.append(layer.quant_weight())
    theirs, ours = tensors
    assert ours.is_valid
    assert (ours.signed, ours.bit_width) == (theirs.signed, theirs.bit_width)
    shape = (8, 1) if quantizer.per_channel else ()
    torch.testing.assert_close(ours.scale, theirs.scale.view(shape), rtol=1e-6, atol=0)
    apart = (ours.value - theirs.value).abs() > ours.scale * 1e-3
    assert apart.sum() <= weight().numel() * 1e-5


@pytest.mark.parametrize("bits", BITS)
def test_fixed_point_of_brevitas_rounds_the_range_where_ours_rounds_the_scale(bits: int) -> None:
    """So its scale equals ours or half of it; half clips the largest weights by a level."""
    qnn = pytest.importorskip("brevitas.nn")
    from brevitas.quant import Int8WeightPerTensorFixedPoint
    from ghnq_brevitas import weight_quantizer

    quantizer = Quantizer(bits, symmetric=True, power_of_two=True)
    assert issubclass(weight_quantizer(quantizer), Int8WeightPerTensorFixedPoint)
    stock = type("Stock", (Int8WeightPerTensorFixedPoint,), {"bit_width": bits})
    layer = qnn.QuantLinear(25_000, 8, bias=False, weight_quant=stock)
    layer.weight = nn.Parameter(weight())
    assert qparams_of(weight(), quantizer).scale / layer.quant_weight().scale in (1, 2)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", ["channel", "symmetric-channel", "symmetric"])
def test_weights_equal_torch_ao_own(kind: str, bits: int) -> None:
    from ghnq_torch_ao import weight_quantizer
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, PerChannelMinMaxObserver

    quantizer = Quantizer.parse(f"{bits}-{kind}")
    lowest, highest = quantizer.levels
    granularity = "channel" if quantizer.per_channel else "tensor"
    symmetry = "symmetric" if quantizer.symmetric else "affine"
    theirs = FakeQuantize(
        PerChannelMinMaxObserver if quantizer.per_channel else MinMaxObserver,
        quant_min=lowest,
        quant_max=highest,
        dtype=torch.qint8 if quantizer.signed else torch.quint8,
        qscheme=getattr(torch, f"per_{granularity}_{symmetry}"),
        **({"ch_axis": 0} if quantizer.per_channel else {}),
    )
    ours, x = weight_quantizer(quantizer)(), weight()
    assert isinstance(ours, FakeQuantize)
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(ours.scale, theirs.scale, rtol=1e-6, atol=0)
    assert torch.equal(ours.zero_point, theirs.zero_point)
    assert torch.equal(ours.calculate_qparams()[0], ours.scale)
    apart = (y - expected).abs() > ours.scale.view(-1, 1) * 1e-3
    assert apart.sum() <= x.numel() * 1e-5


def test_a_disabled_observer_keeps_the_scales_of_the_channels() -> None:
    from torch.ao.quantization import disable_observer

    qmodel = trained("4-symmetric-channel/8", "torch_ao")
    qmodel.apply(disable_observer)
    x = images()
    assert qmodel.get_submodule("stem.0").weight_fake_quant.scale.shape == (8,)
    folded = ghnq_quant.convert(qmodel, integer=False)
    torch.testing.assert_close(folded(x), qmodel(x), rtol=0, atol=1e-6)


def trained(kind: str, backend: str) -> QuantModel:
    qmodel = ghnq_quant.quantize(
        small_network(), parse_quantizers(kind), backend=backend, example_input=images()
    )
    for _ in range(2):
        qmodel(images())
    return qmodel.eval()


def test_a_fused_layer_of_brevitas_shows_its_channels() -> None:
    pytest.importorskip("brevitas")
    qmodel = trained("4-symmetric-channel/4-symmetric", "brevitas")
    layer = qmodel.get_submodule("stem.0")
    quantized, folded = layer.quant_weight(), layer.folded_weight()
    assert quantized.is_valid
    assert quantized.int().abs().max() <= 7
    quantizer = qmodel.scheme.weights
    assert torch.equal(quantized.value, fake_quantize(folded, quantizer))
    assert torch.equal(layer.weight_quant.scale().flatten(), qparams_of(folded, quantizer).scale)


def test_brevitas_own_symmetric_quantizers_are_converted() -> None:
    qnn = pytest.importorskip("brevitas.nn")
    from brevitas.quant import Int8WeightPerChannelFloat

    qmodel, x = trained("8", "brevitas"), images()
    donor = qnn.QuantConv2d(8, 8, 1, weight_quant=Int8WeightPerChannelFloat)
    layer = qmodel.get_submodule("plain")
    layer.weight_quant = donor.weight_quant
    layer.weight_quant.tracked_module_list[0] = layer
    layer.weight_quant.init_tensor_quant()
    folded = ghnq_quant.convert(qmodel, integer=False)
    assert folded.get_submodule("plain").weight_quant.quantizer == Quantizer(8, True, "channel")
    torch.testing.assert_close(folded(x), qmodel(x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchao_converts_channels_to_integers() -> None:
    pytest.importorskip("torchao.quantization.pt2e")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    qmodel, x = trained("4-symmetric-channel/8-symmetric", "pt2e"), images()
    expected = qmodel(x)
    converted = convert_pt2e(copy.deepcopy(qmodel))
    assert (converted(x) - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    frozen = [b for n, b in converted.named_buffers() if n.startswith("_frozen_param")]
    weights = [w for w in frozen if w.dtype == torch.int8]
    assert len(weights) == len(qmodel.plan.units)
    assert all(int(w.abs().max()) <= 7 for w in weights)
