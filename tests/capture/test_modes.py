"""What a network does only in training, and what no graph can hold, is kept or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant import CaptureError, quantize
from ghnq_quant.capture import capture


class Net(nn.Module):
    """A convolution, then ``middle``, then a linear layer."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)
        self.middle = middle
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(self, torch.relu(self.conv(x)))
        return self.fc(x.mean((2, 3)))


class DropPath(nn.Module):
    """Stochastic depth, as users write it themselves."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(len(x), 1, 1, 1) if isinstance(x, Tensor) else torch.rand(1)
        return x * (keep < 0.5) / 0.5


class Noise(nn.Module):
    """Random in eval, too, through a tensor that does not depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(1)


class FunctionalNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class AsksByIdentity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.training is True else x


def dropout_by_identity(n: Net, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, n.training is True)


def set_the_mode_of_a_part(n: Net, x: Tensor) -> Tensor:
    n.path.eval()
    return n.path(x)


class TrainsLater(nn.Module):
    """Says by its own ``train`` what it does in training."""

    doubles = False

    def train(self, mode: bool = True) -> TrainsLater:
        self.doubles = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if self.doubles else x


def size_without_gradient(n: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        batch, channels = x.shape[0], x.size(1)
    return x.reshape(batch, channels, -1, 1)


KEPT: dict[str, Net] = {
    "dropout": Net(lambda n, x: F.dropout(x, 0.5, n.training)),
    "dropout2d": Net(lambda n, x: F.dropout2d(x, 0.5, training=n.training)),
    "alpha_dropout": Net(lambda n, x: F.alpha_dropout(x, 0.5, n.training)),
    "dropout by identity": Net(dropout_by_identity),
    "always dropout": Net(lambda n, x: F.dropout(x, 0.5, training=True)),
    "never dropout": Net(lambda n, x: F.dropout(x, 0.5, training=False)),
    "dropout by another's mode": Net(lambda n, x: F.dropout(x, 0.5, n.conv.training)),
    "rrelu": Net(lambda n, x: F.rrelu(-x, training=n.training)),
    "drop path": Net(lambda n, x: n.path(x), path=DropPath()),
    "a mode that is set": Net(set_the_mode_of_a_part, path=DropPath()),
    "noise": Net(lambda n, x: n.noise(x), noise=Noise()),
    "a method of its own": Net(lambda n, x: n.later(x), later=TrainsLater()),
    "identity": Net(lambda n, x: n.doubled(x), doubled=AsksByIdentity()),
    "size": Net(size_without_gradient),
    "batch norm": Net(lambda n, x: n.norm(x), norm=FunctionalNorm()),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("training", [True, False])
def test_is_kept_in_both_modes(name: str, training: bool) -> None:
    model = KEPT[name].train(training)
    copied = quantize(model, bits=32, backend="reference").train(training)
    x = torch.randn(16, 3, 6, 6)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(copied(x), expected)
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(copied.get_buffer(key), buffer)


class Doubled(torch.autograd.Function):
    """The identity with twice the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * grad


class DoubledGradient(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Doubled.apply(x)


def test_a_gradient_of_its_own_is_kept() -> None:
    model = Net(lambda n, x: n.doubled(x), doubled=DoubledGradient())
    copied = quantize(model, bits=32, backend="reference")
    x = torch.randn(4, 3, 6, 6)
    for network in (model, copied):
        network(x).square().sum().backward()
    torch.testing.assert_close(copied.conv.weight.grad, model.conv.weight.grad)


def noisy_in_training(n: Net, x: Tensor) -> Tensor:
    return x + torch.randn_like(x) if n.training else x


def without_gradient(n: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        return n.second(x)


def in_half_precision(n: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu"):
        return n.second(x)


REFUSED = {
    "autocast": (Net(in_half_precision, second=nn.Conv2d(8, 8, 1)), "under autocast"),
    "noise": (Net(noisy_in_training), r"the model \(Net\) behaves differently in training"),
    "frozen random numbers": (Net(lambda n, x: x * torch.rand(1)), "draws random numbers"),
    "a random factor": (Net(lambda n, x: x * random.random()), "draws random numbers"),
    "gradient": (Net(lambda n, x: Doubled.apply(x)), r"gradient of its own \(Doubled\)"),
    "no_grad": (
        Net(without_gradient, second=nn.Conv2d(8, 8, 1)),
        r"without gradient \(torch\.no_grad\).*requires_grad_\(False\)",
    ),
    "in a part": (
        nn.Sequential(Net(noisy_in_training), nn.ReLU()),
        r"module '0' \(Net\) behaves differently",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused(name: str) -> None:
    model, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message):
        capture(model)


def test_a_part_with_parameters_can_be_left_float() -> None:
    part = Net(without_gradient, second=nn.Conv2d(8, 8, 1))
    captured = capture(nn.Sequential(nn.Conv2d(3, 3, 1), part), skip="unsupported")
    assert captured.skipped == ("1",)


class Auxiliary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head, self.aux = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.conv(x).mean((2, 3))
        y = self.head(x)
        return (y, self.aux(x)) if self.training else y


def test_auxiliary_outputs_are_left_out() -> None:
    captured = capture(Auxiliary())
    assert captured.more_outputs
    assert [unit.name for unit in captured.quant_plan.units] == ["conv", "head"]
    assert not capture(nn.Sequential(nn.Conv2d(3, 4, 1))).more_outputs
