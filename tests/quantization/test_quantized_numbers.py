"""The emitted model's numbers: every backend equals the reference and a naive simulation."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from backends import (
    BACKENDS,
    activation_ranges,
    assert_forward_equal,
    backends,
    is_quantizer_state,
    lasting_state,
    levels_apart,
    quantized_units,
)
from naive_simulation import NaiveSimulation
from small_networks import images, small_network
from torch import Tensor, nn

import ghnq_quant
from ghnq_quant import QuantScheme
from ghnq_quant.research.networks import SPLITS, ConvNets250K

NETWORKS = ["resnet18", "mobilenet_v2"]


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    torch.manual_seed(1)
    model: nn.Module = getattr(torchvision.models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # so that two models in train mode agree
    return model


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return torchvision_model(request.param)


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("name", [*NETWORKS, "bn_free", "mobile"])
def test_equals_the_reference(name: str, bits: int, backend: str) -> None:
    network = ConvNets250K(name)[3].build() if name in SPLITS else torchvision_model(name)
    ours = ghnq_quant.quantize(network, bits, backend=backend)
    theirs = ghnq_quant.quantize(network, bits, backend="reference")
    torch.manual_seed(2)
    for mode in (True, True, False):
        x = torch.randn(16, 3, 32, 32)
        assert_forward_equal(ours.train(mode), theirs.train(mode), x, bits)
    state = [(k, v) for k, v in ours.state_dict().items() if not is_quantizer_state(k)]
    expected = [(k, v) for k, v in theirs.state_dict().items() if not is_quantizer_state(k)]
    assert [key for key, _ in state] == [key for key, _ in expected]
    for (_, a), (_, b) in zip(state, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("bits", "backend"),
    [
        (8, "reference"),
        (4, "reference"),
        (3, "reference"),
        (2, "reference"),
        (4, "brevitas"),
        (4, "torch_ao"),
    ],
)
def test_equals_the_naive_simulation_unit_by_unit(
    network: nn.Module, bits: int, backend: str
) -> None:
    """Every unit gets the naive simulation's input, so that differences do not add up; in float64,
    so that another order of summation moves no weight to the next level."""
    qmodel = ghnq_quant.quantize(copy.deepcopy(network).double(), bits, backend=backend)
    naive = NaiveSimulation(copy.deepcopy(network).double(), QuantScheme(bits, bits))
    torch.manual_seed(2)
    differing = total = 0
    for mode in (True, True, False):
        x = torch.randn(8, 3, 32, 32, dtype=torch.float64)
        naive.model.train(mode)
        qmodel.train(mode)
        with torch.no_grad():
            naive(x)
            for name, (value, expected) in teacher_forced(qmodel, naive, x).items():
                count, distance = levels_apart(value, expected, bits)
                assert distance <= 1, name
                differing, total = differing + count, total + value.numel()
    assert differing <= 1e-5 * total


def teacher_forced(
    qmodel: nn.Module, naive: NaiveSimulation, x: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Each quantized activation of ``qmodel`` and of the naive simulation; ``qmodel`` continues with
    the latter."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook(name: str) -> Any:
        def replace(module: nn.Module, args: Any, y: Tensor) -> Tensor:
            seen[name] = y, naive.seen[name]
            return naive.seen[name].clone()  # it may be added to in place

        return replace

    quantizers = qmodel.activation_quantizers
    hooks = [m.register_forward_hook(hook(n)) for n, m in quantizers.named_children()]
    qmodel(x)
    for handle in hooks:
        handle.remove()
    return seen


@pytest.mark.parametrize(("bits", "limit"), [(8, None), (32, 1.2)])
@backends
def test_gradients_equal_the_naive_simulation(backend: str, bits: int, limit: float | None) -> None:
    network = small_network(dropout=0.0).double()
    torch.manual_seed(4)
    x = images(16).double()
    scheme = QuantScheme(bits, 8, act_range="batch", channel_limit=limit)
    naive = NaiveSimulation(copy.deepcopy(network), scheme)
    qmodel = ghnq_quant.quantize(network, scheme=scheme, backend=backend)
    weights = torch.randn(16, 10, dtype=torch.float64)
    for run in (naive, qmodel):
        (run(x) * weights).sum().backward()
    for (name, ours), theirs in zip(
        qmodel.named_parameters(), naive.model.parameters(), strict=True
    ):
        if theirs.grad is not None and name != "depthwise.bias":
            limit = 1e-9 * theirs.grad.abs().max()
            assert (ours.grad - theirs.grad).abs().max() <= limit, name


@backends
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "densenet121", "squeezenet1_1"])
def test_other_families_run(name: str, backend: str) -> None:
    """Views, batch norms that no convolution folds, concatenation, no batch norm at all."""
    qmodel = ghnq_quant.quantize(torchvision_model(name), 4, backend=backend)
    y = qmodel(torch.randn(2, 3, 64, 64))
    y.sum().backward()
    assert y.shape == (2, 10)
    assert all(p.grad is not None for p in qmodel.parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert qmodel.eval()(torch.randn(2, 3, 64, 64)).isfinite().all()


@backends
def test_ema_ranges(backend: str) -> None:
    """Momentum 0.1, the first batch's range to start with, frozen in eval."""
    qmodel = ghnq_quant.quantize(small_network(), 8, backend=backend)
    low = high = None
    for scale in (1.0, 5.0, 0.2):
        x = images() * scale
        qmodel(x)
        low = x.min() if low is None else 0.9 * low + 0.1 * x.min()
        high = x.max() if high is None else 0.9 * high + 0.1 * x.max()
        found = activation_ranges(qmodel)["x"]
        torch.testing.assert_close(found.low, low)
        torch.testing.assert_close(found.high, high)
    before = lasting_state(qmodel)
    qmodel.eval()(images() * 100)
    assert all(torch.equal(before[k], v) for k, v in lasting_state(qmodel).items())
    _, seen = quantized_units(qmodel, images() * 100)
    scale = (high - low) / 255
    assert (seen["x"][1].max() - high).abs() <= scale  # values outside the range are clamped
    assert (seen["x"][1].min() - low).abs() <= scale


@backends
def test_batch_ranges(backend: str) -> None:
    scheme = QuantScheme(4, 4, act_range="batch", bn="batch")
    qmodel = ghnq_quant.quantize(small_network(), scheme=scheme, backend=backend).eval()
    if backend != "torch_ao":  # its observers store the range of the current batch
        assert not [k for k in qmodel.state_dict() if k.startswith("activation_quantizers")]
    x = images()
    _, seen = quantized_units(qmodel, x * 100)
    torch.testing.assert_close(
        seen["x"][1], ghnq_quant.quantization.fake_quantize(x * 100, 4), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(qmodel(x), qmodel(x), rtol=0, atol=0)


@backends
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_quantized_weights_have_at_most_2_to_the_b_values(backend: str, bits: int) -> None:
    model = small_network(steps=2)
    qmodel, used = ghnq_quant.quantize(model, bits, backend=backend), {}
    for name in ("stem.0", "depthwise", "plain", "head"):
        used[name] = record_weight(qmodel.get_submodule(name))
    for mode in (True, False):
        qmodel.train(mode)(images())
        for weights in used.values():
            assert weights[-1].unique().numel() <= 2**bits


def record_weight(layer: nn.Module) -> list[Tensor]:
    """The weights that the layer's convolutions or products really use, in order."""
    used: list[Tensor] = []

    class Recorder(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            if func in (nn.functional.conv2d, nn.functional.linear):
                used.append(getattr(args[1], "value", args[1]).detach())
            return func(*args, **(kwargs or {}))

    forward = layer.forward

    def recorded(*args: Any, **kwargs: Any) -> Any:
        with Recorder():
            return forward(*args, **kwargs)

    layer.forward = recorded  # type: ignore[method-assign]
    return used
