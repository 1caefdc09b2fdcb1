"""What message passing and the decoders share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class MLP(nn.Module):
    """Linear–ReLU–Linear, with a last ReLU if ``last_relu``."""

    def __init__(self, sizes: tuple[int, int, int], last_relu: bool = True) -> None:
        super().__init__()
        first, second = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.fc = nn.Sequential(first, nn.ReLU(), second, nn.ReLU() if last_relu else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def weight_and_bias(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer or convolution that has both."""
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    assert layer.bias is not None
    return layer.weight, layer.bias


def takes_fast_path(x: Tensor) -> bool:
    """Whether the CPU forms compute with ``x`` instead of the plain ones.

    The plain ones are for other devices and for ``torch.compile``, which cannot trace the CPU forms.
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def not_compiled(function: Callable[..., T]) -> Callable[..., T]:
    """Keep ``torch.compile`` out of ``function``, as ``torch.compiler.disable`` does, but without
    importing the compiler, which would add a second to ``import ghnq_quant``."""

    @wraps(function)
    def called(*arguments: Any) -> T:
        if torch.compiler.is_compiling():
            result: T = torch.compiler.disable(function)(*arguments)
            return result
        return function(*arguments)

    return called
