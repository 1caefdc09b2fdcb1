"""Random networks: a copy that quantizes nothing equals the network itself, in both modes and with
every backend.

More of them: ``EXAMPLES=2000 pytest tests/quantization/test_random_models.py -n0``
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection

import pytest
import torch
import torch.nn.functional as F
from backends import BACKENDS
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ghnq_quant import quantize

EXAMPLES = int(os.environ.get("EXAMPLES", "30"))


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype)
        return x


class Function(nn.Module):
    """A call in ``forward`` that follows the module's mode."""

    def __init__(self, function: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.training)


class Residual(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.add_1 = nn.Sequential(*parts)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.add_1(x)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.gain = torch.tensor(0.5).double(), nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, :2] * self.scale, x[:, 2:]), 1) * self.gain


class OneShared(nn.Module):
    """The same activation function after each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x))))


class Tied(nn.Module):
    """Two convolutions that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu6(self.a(x)))


class Matrix(nn.Module):
    """A parameter outside any layer."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4) + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.matrix)


def hooked() -> nn.Module:
    act = nn.Hardswish()
    act.register_forward_hook(lambda module, args, y: 2 * y)
    act.register_full_backward_pre_hook(lambda module, grads: tuple(3 * g for g in grads))
    return act


# Random numbers follow the memory layout, which the copy of a convolution may change.
PARTS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    "dilated": lambda: nn.Conv2d(4, 4, 1, padding=0, dilation=2),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "averaging batch norm": lambda: nn.BatchNorm2d(4, momentum=None),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "relu": nn.ReLU,
    "silu": lambda: Function(lambda x, _: F.silu(x)),
    "dropout": lambda: Function(lambda x, training: F.dropout(x.contiguous(), 0.3, training)),
    "dropout2d": lambda: Function(lambda x, training: F.dropout2d(x.contiguous(), 0.3, training)),
    "always dropout": lambda: Function(lambda x, _: F.dropout(x.contiguous(), 0.3)),
    "rrelu": lambda: Function(lambda x, training: F.rrelu(x.contiguous(), training=training)),
    "drop path": DropPath,
    "scale": Scale,
    "shared": OneShared,
    "tied": Tied,
    "matrix": Matrix,
    "hooked": hooked,
    "pool": lambda: nn.AvgPool2d(3, 1, 1),
}
#: Parts that a graph exported in training cannot represent in eval.
NOT_EXPORTED = {"dropout2d", "rrelu", "drop path", "hooked"}
names = st.sampled_from(["block", "block_0", "add", "add_1", "x", "keys", "weight", "a b", "7"])


@st.composite
def models(draw: st.DrawFn, without: Collection[str] = ()) -> nn.Module:
    leaves = st.sampled_from(sorted(PARTS.keys() - without)).map(lambda name: PARTS[name]())
    parts = st.one_of(leaves, st.lists(leaves, min_size=1, max_size=3).map(lambda p: Residual(*p)))
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    for number, (name, part) in enumerate(draw(st.lists(st.tuples(names, parts), max_size=6))):
        container = nn.ModuleDict()
        free = not hasattr(model, name) and not hasattr(container, name)
        model.add_module(name if free else f"{name}_{number}", part)
    for number, part in enumerate(model.children()):
        frozen = number > 0 and draw(st.booleans())
        for parameter in part.parameters():
            parameter.requires_grad_(not frozen)
    return model.double()


@settings(max_examples=EXAMPLES, deadline=None)
@given(models(), st.sampled_from(BACKENDS), st.integers(0, 2**16))
def test_a_float_copy_does_what_the_network_does(model: nn.Module, backend: str, seed: int) -> None:
    assert_same(model, backend, seed)


@settings(max_examples=EXAMPLES // 10, deadline=None)
@given(models(NOT_EXPORTED), st.integers(0, 2**16))
def test_an_exported_float_copy_does_too(model: nn.Module, seed: int) -> None:
    pytest.importorskip("torchao.quantization.pt2e")
    assert_same(model, "pt2e", seed)


def assert_same(model: nn.Module, backend: str, seed: int) -> None:
    """A copy by ``backend`` has the outputs, gradients and buffer updates of ``model``."""
    before = copy.deepcopy(model.state_dict())
    example = torch.zeros(2, 3, 6, 6, dtype=torch.double)
    copied = quantize(model, bits=32, backend=backend, example_input=example)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = torch.randn(5, 3, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(seed))
    for training in (True, False, True):
        outputs = []
        for network in (model, copied):
            torch.manual_seed(seed)
            network.train(training).zero_grad()
            outputs.append(network(x))
            outputs[-1].square().mean().backward()
        torch.testing.assert_close(outputs[1], outputs[0])
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(copied.get_parameter(name).grad, parameter.grad)
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(copied.get_buffer(name), buffer)
