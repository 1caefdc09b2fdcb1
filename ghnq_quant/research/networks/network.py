"""The ``nn.Module`` that executes a program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ghnq_quant.research.networks.program import Operation, Program


class ConvNet(nn.Module):
    """A network of ConvNets-250K: (N, 3, H, W) → (N, number of classes).

    Its layers are ordinary modules named after their place, such as ``stem.conv`` or
    ``cells.3.node0.op1.norm``; each is called once.

    Args:
        program: the operations.
        initialize: with False, weights and biases of convolutions and linear layers are
            uninitialized memory, for those who overwrite them; batch norms are always as new.
    """

    def __init__(self, program: Program, initialize: bool = True) -> None:
        super().__init__()
        self._steps = [
            (op.kind, op.name, op.inputs, dropped)
            for op, dropped in zip(program.operations, program.last_reads(), strict=True)
        ]
        for op in program.operations:
            if op.name:
                _place(self, op.name, _MODULES[op.kind](op, initialize))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of a batch of images."""
        values: dict[int, Tensor] = {}
        for position, (kind, name, inputs, dropped) in enumerate(self._steps):
            terms = [values[i] for i in inputs]
            if kind == "add":
                x = terms[0] + terms[1]
            elif kind == "concat":
                x = torch.cat(terms, dim=1)
            elif kind != "input":
                x = self.get_submodule(name)(terms[0])
            values[position] = x
            for i in dropped:
                del values[i]
        return x


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, module)


class _BlankConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


class _BlankLinear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leave the memory as it is."""


def _conv(op: Operation, initialize: bool) -> nn.Module:
    conv = (nn.Conv2d if initialize else _BlankConv2d)(
        op.in_channels,
        op.channels,
        op.kernel,
        op.stride,
        padding=op.padding,
        dilation=op.dilation,
        groups=op.groups,
        bias=op.bias,
    )
    # From here on an ordinary layer, also for those who look at the exact type. (skip_init of
    # torch.nn.utils goes by way of the meta device, which takes longer than the initialization.)
    conv.__class__ = nn.Conv2d
    return conv


def _linear(op: Operation, initialize: bool) -> nn.Module:
    linear = (nn.Linear if initialize else _BlankLinear)(op.in_channels, op.channels)
    linear.__class__ = nn.Linear
    return linear


def _max_pool(op: Operation, initialize: bool) -> nn.Module:
    return nn.MaxPool2d(op.kernel, op.stride, op.padding, ceil_mode=op.kernel % 2 == 0)


_MODULES: dict[str, Callable[[Operation, bool], nn.Module]] = {
    "conv": _conv,
    "linear": _linear,
    "batch_norm": lambda op, _: nn.BatchNorm2d(op.channels),
    "relu": lambda op, _: nn.ReLU(),
    "relu6": lambda op, _: nn.ReLU6(),
    "leaky_relu": lambda op, _: nn.LeakyReLU(),
    "max_pool": _max_pool,
    "avg_pool": lambda op, _: nn.AvgPool2d(op.kernel, op.stride, op.padding),
    "adaptive_avg_pool": lambda op, _: nn.AdaptiveAvgPool2d(op.kernel),
    "flatten": lambda op, _: nn.Flatten(),
}
