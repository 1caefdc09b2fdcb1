"""The ``nn.Module`` that executes a program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ghnq_quant.capture.operations import OPERATIONS, Kind
from ghnq_quant.research.networks.program import Instruction, Program


class ConvNet(nn.Module):
    """A network of ConvNets-250K: (N, 3, H, W) → (N, number of classes).

    Its layers are ordinary modules named after their position, such as ``stem.conv`` or
    ``cells.3.node0.op1.norm``; each is called once.

    Args:
        program: its instructions.
        initialize: if False, weights and biases of convolutions and linear layers are uninitialized
            memory, to be overwritten; batch norms are always initialized.
    """

    def __init__(self, program: Program, initialize: bool = True) -> None:
        super().__init__()
        self._steps = [
            (instruction.kind, instruction.name, instruction.inputs, dropped)
            for instruction, dropped in zip(program.instructions, program.last_reads(), strict=True)
        ]
        for instruction in program.instructions:
            if instruction.name:
                _place(self, instruction.name, make_layer(instruction, initialize))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of a batch of images."""
        values: dict[int, Tensor] = {}
        for position, (kind, name, inputs, dropped) in enumerate(self._steps):
            terms = [values[i] for i in inputs]
            if name:
                x = self.get_submodule(name)(terms[0])
            elif kind is not Kind.INPUT:
                x = join(kind, terms)
            values[position] = x
            for i in dropped:
                del values[i]
        return x


def join(kind: Kind, terms: Sequence[Tensor]) -> Tensor:
    """The sum of two tensors, or the concatenation of several along the channels."""
    return terms[0] + terms[1] if kind is Kind.ADD else torch.cat(list(terms), dim=1)


def make_layer(instruction: Instruction, initialize: bool = True) -> nn.Module:
    """The layer that an instruction calls.

    Args:
        initialize: see :class:`ConvNet`.
    """
    kind, kernel = instruction.kind, instruction.kernel
    if kind is Kind.CONV:
        return _conv(instruction, initialize)
    if kind is Kind.LINEAR:
        return _linear(instruction, initialize)
    if kind is Kind.BATCH_NORM:
        return nn.BatchNorm2d(instruction.channels)
    if kind is Kind.MAX_POOL:
        even = kernel % 2 == 0
        return nn.MaxPool2d(kernel, instruction.stride, instruction.padding, ceil_mode=even)
    if kind is Kind.AVG_POOL:
        return nn.AvgPool2d(kernel, instruction.stride, instruction.padding)
    if kind is Kind.GLOBAL_AVG_POOL:
        return nn.AdaptiveAvgPool2d(kernel)
    if kind is Kind.RESHAPE:
        return nn.Flatten()
    return OPERATIONS[instruction.function].modules[0]()


def _place(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(leaf, module)


class _BlankConv2d(nn.Conv2d):
    def reset_parameters(self) -> None:
        """Leave the memory uninitialized."""


class _BlankLinear(nn.Linear):
    def reset_parameters(self) -> None:
        """Leave the memory uninitialized."""


def _conv(instruction: Instruction, initialize: bool) -> nn.Module:
    conv = (nn.Conv2d if initialize else _BlankConv2d)(
        instruction.in_channels,
        instruction.channels,
        instruction.kernel,
        instruction.stride,
        padding=instruction.padding,
        dilation=instruction.dilation,
        groups=instruction.groups,
        bias=instruction.bias,
    )
    # From here on an ordinary layer, also for checks of the exact type. (torch.nn.utils.skip_init
    # goes through the meta device, which takes longer than the initialization.)
    conv.__class__ = nn.Conv2d
    return conv


def _linear(instruction: Instruction, initialize: bool) -> nn.Module:
    linear = (nn.Linear if initialize else _BlankLinear)(
        instruction.in_channels, instruction.channels
    )
    linear.__class__ = nn.Linear
    return linear
