"""Capturing a network: what stays untouched, what an example checks, and what is refused."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from three_convolutions import Net
from torch import Tensor, fx, nn

from ghnq_quant import CaptureError, predict_parameters, quantize
from ghnq_quant.capture import capture


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if x.mean() > 0 else -x


def in_mixed_mode(model: nn.Module) -> nn.Module:
    for position, module in enumerate(model.modules()):
        module.training = position % 3 == 0
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
        lambda: nn.Sequential(Untraceable()),
    ],
    ids=["traced", "rewritten", "untraceable"],
)
def test_the_model_is_untouched(make: Callable[[], nn.Module]) -> None:
    model = in_mixed_mode(make())
    modules = dict(model.named_modules())
    modes = [m.training for m in modules.values()]
    tensors = [*model.parameters(), *model.buffers()]
    versions = [t._version for t in tensors]
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    try:
        capture(model, torch.zeros(2, 3, 64, 64)).quant_plan  # noqa: B018
    except CaptureError:
        assert isinstance(model[0], Untraceable)
    assert dict(model.named_modules()) == modules
    assert [m.training for m in modules.values()] == modes
    assert [*map(id, (*model.parameters(), *model.buffers()))] == [*map(id, tensors)]
    assert [t._version for t in tensors] == versions
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


class Remembers(nn.Module):
    """Stores what it computes: an attribute, a dict's entry, and a tensor made in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.cache: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(self.calls))
        if "weight" not in self.cache:
            self.cache["weight"] = self.conv.weight.mean() * 2
        self.last = self.conv(x) + torch.tensor(0.5) * self.cache["weight"]
        return self.last


@torch.no_grad()
def test_what_a_forward_keeps_is_undone() -> None:
    model = Remembers().eval()
    attributes = set(vars(model))
    captured = capture(model, torch.zeros(1, 3, 8, 8))
    assert (model.cache, model.last, model.calls, set(vars(model))) == ({}, None, [0], attributes)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert model.last is expected
    assert captured.root.conv.weight is model.conv.weight
    assert torch.equal(fx.Interpreter(captured.root, graph=captured.graph).run(x), expected)
    quantized = quantize(model, bits=32, backend="reference")  # the model now holds results
    assert torch.equal(quantized(x), expected)
    assert quantized.state_dict().keys() == model.state_dict().keys()


def test_a_model_without_memory_is_captured() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg16(num_classes=10)
    captured = capture(model)
    assert captured.arch_graph.counts()["conv"] == 16
    assert captured.shapes((5, 3, 64, 64))["features_0"] == (5, 64, 64, 64)


def test_no_kernel_runs_on_the_example() -> None:
    """One image of 2^20 × 2^20 pixels: any kernel would need terabytes."""
    example = torch.zeros(1).expand(1, 3, 2**20, 2**20)
    start = time.perf_counter()
    captured = capture(torchvision.models.resnet18(), example)
    assert time.perf_counter() - start < 20
    assert captured.shapes(example.shape)["conv1"] == (1, 64, 2**19, 2**19)


def test_shapes_without_an_example() -> None:
    model = torchvision.models.resnet18().half()
    shapes = capture(model).shapes()
    assert shapes["x"] == (1, 3, 224, 224)
    assert shapes["flatten"] == (1, 512)


@pytest.mark.parametrize(
    ("shape", "operation"),
    [((1, 4, 32, 32), "conv1"), ((3, 32, 32), "bn1"), ((2, 3, 0, 0), "conv1")],
)
def test_an_example_that_does_not_fit(shape: tuple[int, ...], operation: str) -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(CaptureError, match=rf"operation {operation} \({operation}\)") as caught:
        capture(model, torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert all(m.training for m in model.modules())


def test_arguments_beside_the_image_take_their_defaults() -> None:
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(
            self, x: Tensor, features: bool = False, *args: Any, mask: Any = None, **kwargs: Any
        ) -> Tensor:
            if features or args or kwargs or mask is not None:
                raise AssertionError
            return self.conv(x)

    captured = capture(Options())
    assert [n.name for n in captured.graph.nodes] == ["x", "conv", "output"]
    assert quantize(Options(), backend="reference")(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 2, 2)


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class OwnNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


BAD: dict[str, tuple[Any, str]] = {
    "not a module": (lambda x: x, "expected an nn.Module, got function"),
    "no conv": (nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), r"Sequential has no nn\.Conv2d"),
    "1-d": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3)), "module '1' is a Conv1d"),
    "3-d": (nn.Sequential(nn.Conv3d(3, 4, 3)), "module '0' is a Conv3d"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), "module '0' is a ConvTranspose2d"),
    "lazy": (nn.Sequential(nn.LazyConv2d(4, 3)), r"module '0' \(LazyConv2d\) has no shapes yet"),
    "branch": (
        nn.Sequential(nn.Identity(), Untraceable()),
        r"cannot trace module '1' \(Untraceable\)",
    ),
    "branch of the model": (Untraceable(), r"cannot trace the model \(Untraceable\)"),
    "own forward": (
        nn.Sequential(OwnForward(3, 4, 3)),
        r"'0' \(OwnForward\) replaces Conv2d\.forward",
    ),
    "own _conv_forward": (
        nn.Sequential(OwnConvForward(3, 4, 3)),
        r"'0' \(OwnConvForward\) replaces",
    ),
    "own norm": (
        nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4)),
        r"'1' \(OwnNorm\) replaces LayerNorm\.forward",
    ),
    "a weight of no layer": (
        Net(lambda n, x: F.conv2d(n.a(x), n.w.weight), w=nn.Embedding(4, 4)),
        r"calls conv2d with a parameter that belongs to no conv",
    ),
    "attention": (
        Net(lambda n, x: n.m(n.a(x).flatten(2)), m=nn.MultiheadAttention(4, 2)),
        r"module 'm' is a MultiheadAttention",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [capture, predict_parameters, quantize])
def test_bad_models(name: str, function: Callable[[Any], Any]) -> None:
    model, message = BAD[name]
    with pytest.raises(CaptureError, match=message):
        function(model)
