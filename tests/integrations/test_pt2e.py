"""torchao's export flow: the plan in a prepared model that works like any module."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from backends import assert_forward_equal, is_quantizer_state, lasting_state, quantized_units
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import BackendError, GhnqWarning, Quantizer, QuantScheme
from ghnq_quant.quantization import QuantModel
from ghnq_quant.research.networks import ConvNets250K

pt2e = pytest.importorskip("torchao.quantization.pt2e")

from ghnq_pt2e import Pt2eModel  # noqa: E402
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def make(model: nn.Module, bits: int | Quantizer = 4, steps: int = 0, **scheme: Any) -> QuantModel:
    """The model quantized, after ``steps`` batches."""
    qmodel = ghnq_quant.quantize(
        model, scheme=QuantScheme(bits, bits, **scheme), backend="pt2e", example_input=images()
    )
    for _ in range(steps):
        qmodel(images())
    return qmodel


@pytest.fixture(scope="module")
def trained() -> QuantModel:
    """A model trained for a few steps; tests use copies."""
    return make(small_network(steps=2), steps=3)


def test_is_a_prepared_graph_with_the_plans_quantizers(trained: QuantModel) -> None:
    reference = ghnq_quant.quantize(small_network(), 4, backend="reference")
    assert isinstance(trained, Pt2eModel)
    assert isinstance(trained, torch.fx.GraphModule)
    names = [n for n, _ in trained.get_submodule("activation_quantizers").named_children()]
    expected = reference.get_submodule("activation_quantizers").named_children()
    assert names == [n for n, _ in expected]
    called = [node.target for node in trained.graph.nodes if node.op == "call_module"]
    weights = [f"{unit.name}.weight_fake_quant" for unit in trained.plan.units]
    assert sorted(called) == sorted([f"activation_quantizers.{name}" for name in names] + weights)
    for name in called:
        quantizer = trained.get_submodule(name)
        assert isinstance(quantizer, pt2e.FakeQuantize)
        assert (quantizer.quant_min, quantizer.quant_max) == (0, 15)
        assert quantizer.qscheme == torch.per_tensor_affine


def test_names_survive_and_float_state_loads(trained: QuantModel) -> None:
    model, qmodel = small_network(steps=1), copy.deepcopy(trained)
    assert [n for n, _ in qmodel.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, module in model.named_modules():
        if name:
            assert isinstance(qmodel.get_submodule(name), type(module))
    result = qmodel.load_state_dict(model.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert all(is_quantizer_state(key) for key in result.missing_keys)
    for name, value in model.state_dict().items():
        assert torch.equal(qmodel.state_dict()[name], value)


def test_copies_and_state_round_trip(trained: QuantModel) -> None:
    qmodel, x = copy.deepcopy(trained).eval(), images()
    expected = qmodel(x)
    twin = copy.deepcopy(qmodel)
    assert torch.equal(twin(x), expected)
    twin.train()(images() * 3)
    assert torch.equal(qmodel(x), expected)
    assert not torch.equal(twin.eval()(x), expected)
    twin.load_state_dict(qmodel.state_dict(), strict=True)
    assert torch.equal(twin(x), expected)
    with pytest.raises(BackendError, match="save its state_dict"):
        pickle.dumps(qmodel)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_eval_equals_the_reference(bits: int) -> None:
    """Folded running statistics sum the same numbers in another order, so in float64."""
    model = small_network(steps=3).double().eval()
    ours = make(model, bits, act_range="batch")
    theirs = ghnq_quant.quantize(model, scheme=ours.scheme, backend="reference")
    x = images().double()
    y, seen = quantized_units(ours, x)
    expected, expected_seen = quantized_units(theirs, x)
    torch.testing.assert_close(y, expected)
    assert seen.keys() == expected_seen.keys()
    for name, (_, value) in seen.items():
        torch.testing.assert_close(value, expected_seen[name][1])


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_equals_the_reference_without_batch_norm(bits: int) -> None:
    network = ConvNets250K("bn_free")[3].build()
    x = torch.randn(4, 3, 32, 32)
    ours = ghnq_quant.quantize(network, bits, backend="pt2e", example_input=x)
    theirs = ghnq_quant.quantize(network, bits, backend="reference")
    for mode in (True, True, False):
        x = torch.randn(4, 3, 32, 32)
        assert_forward_equal(ours.train(mode), theirs.train(mode), x, bits)


def test_takes_other_image_sizes() -> None:
    """If the model computes nothing from the size."""
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(32, 5)).double()
    ours = make(model, 4, act_range="batch")
    theirs = ghnq_quant.quantize(model, scheme=ours.scheme, backend="reference")
    for size in (8, 13, 32):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))


class UnusualNorms(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, bias=False),
            nn.BatchNorm2d(8, eps=1e-3, momentum=0.4),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.BatchNorm2d(8, momentum=None),
        )


def test_float_bits_equal_the_float_model_in_both_modes() -> None:
    """Also with other momentum and ε, which torchao itself sets to the usual values."""
    torch.manual_seed(0)
    model = UnusualNorms()
    with pytest.warns(GhnqWarning, match=r"eps=0.001.*convert_pt2e folds with 1e-5"):
        qmodel = make(model, 32)
    for mode in (True, True, False, True, False):
        x = images() * 0.01
        torch.testing.assert_close(
            qmodel.train(mode)(x), model.train(mode)(x), rtol=1e-4, atol=1e-4
        )
    for (name, ours), theirs in zip(qmodel.named_buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_calibrate_averages_over_the_batches() -> None:
    torch.manual_seed(0)
    model = UnusualNorms()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GhnqWarning)
        qmodel = make(model, 32)
    batches = [images() * (i + 1) for i in range(3)]
    ghnq_quant.calibrate(qmodel, batches)
    assert qmodel.get_submodule("1").momentum == 0.4
    z = [model[0](x) for x in batches]
    mean = torch.stack([v.mean((0, 2, 3)) for v in z]).mean(0)
    torch.testing.assert_close(
        qmodel.get_submodule("1").running_mean, mean.detach(), rtol=1e-5, atol=1e-6
    )
    assert qmodel.get_submodule("1").num_batches_tracked == 3


def test_train_eval_dropout_and_a_frozen_norm(trained: QuantModel) -> None:
    qmodel, x = copy.deepcopy(trained).eval(), images()
    before = lasting_state(qmodel)
    assert torch.equal(qmodel(x), qmodel(x))
    assert all(torch.equal(before[k], v) for k, v in lasting_state(qmodel).items())
    assert qmodel(images(1)).shape == (1, 10)
    norms = [m for m in qmodel.train().modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()
    assert not torch.equal(qmodel(x), qmodel(x))  # the dropout is back
    assert torch.equal(lasting_state(qmodel)["norm.running_mean"], before["norm.running_mean"])


class AlwaysDrops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.conv(x), 0.5, training=True)


def test_dropout_that_a_model_never_turns_off_stays_on() -> None:
    qmodel = make(AlwaysDrops(), 32).eval()
    assert 0.3 < float((qmodel(images()) == 0).float().mean()) < 0.7


def test_a_step_of_training(trained: QuantModel) -> None:
    qmodel = copy.deepcopy(trained).train()
    (qmodel(images()) * torch.randn(6, 10)).sum().backward()
    for name, p in qmodel.named_parameters():
        if p.requires_grad:
            assert p.grad is not None
            assert p.grad.isfinite().all(), name
            assert p.grad.abs().sum() > 0 or name == "depthwise.bias"


def test_switches(trained: QuantModel) -> None:
    model, qmodel = small_network(steps=2).eval(), copy.deepcopy(trained).eval()
    qmodel.load_state_dict(model.state_dict(), strict=False)
    x = images()
    qmodel.apply(pt2e.disable_fake_quant)
    torch.testing.assert_close(qmodel(x), model(x), rtol=1e-4, atol=1e-5)
    qmodel.apply(pt2e.enable_fake_quant)
    assert not torch.allclose(qmodel(x), model(x), rtol=1e-4, atol=1e-5)
    qmodel.train().apply(pt2e.disable_observer)
    scale = qmodel.get_submodule("activation_quantizers.x").scale.clone()
    qmodel(x * 100)
    assert torch.equal(qmodel.get_submodule("activation_quantizers.x").scale, scale)


def test_torchao_converts_to_integers() -> None:
    """All bit widths in one model, because a conversion takes many seconds."""
    bits = {"stem.0": 8, "head": 2}
    qmodel, x = make(small_network(steps=2), 4, steps=2, overrides=bits).eval(), images()
    expected = qmodel(x)
    converted = convert_pt2e(copy.deepcopy(qmodel))
    assert (converted(x) - expected).abs().max() <= 1e-3 * (expected.max() - expected.min())
    weights = [b for n, b in converted.named_buffers() if n.startswith("_frozen_param")]
    assert all(w.dtype == torch.uint8 for w in weights)
    widths = sorted(bits.get(unit.name, 4) for unit in qmodel.plan.units)
    highest = sorted(int(w.max()) for w in weights)
    assert all(h < 2**b for h, b in zip(highest, widths, strict=True))


def test_overrides_and_float_layers() -> None:
    qmodel = make(small_network(), overrides={"plain": 32, "head": (3, 32), "add": 6})
    quantizers = qmodel.get_submodule("activation_quantizers")
    assert not hasattr(quantizers, "plain")
    assert not hasattr(qmodel.get_submodule("plain"), "weight_fake_quant")
    assert qmodel.get_submodule("head").weight_fake_quant.quantizer.bits == 3
    assert (quantizers.add.quantizer.bits, quantizers.mul.quantizer.bits) == (6, 4)
    assert qmodel(images()).shape == (6, 10)


def test_eval_before_any_statistics_uses_the_batch_and_warns_once() -> None:
    qmodel = make(small_network()).eval()
    x = images()
    with pytest.warns(GhnqWarning, match="without running statistics"):
        y = qmodel(x)
    assert torch.equal(qmodel(x), y)
    assert qmodel.get_submodule("norm").num_batches_tracked == 0
    of_batch = make(small_network(), act_range="batch", bn="batch").eval()
    assert torch.equal(of_batch(x), y)


def test_what_cannot_be_exported_is_refused() -> None:
    import torchvision

    with pytest.raises(BackendError, match="example_input"):
        ghnq_quant.quantize(small_network(), 4, backend="pt2e")
    with pytest.raises(
        BackendError, match=r"weight of 'stem\.0' has a learned range.*of 'stem\.1'"
    ):
        make(small_network(), Quantizer(4, range="learned"))
    with pytest.raises(BackendError, match="knows no channel_limit"):
        make(small_network(), channel_limit=2.0)
    drops = nn.Sequential(
        nn.Conv2d(3, 8, 3), torchvision.ops.StochasticDepth(0.5, "row"), nn.ReLU()
    )
    with pytest.raises(BackendError, match="'1' draws random numbers"):
        make(drops)
