"""A network as a list of instructions, from which its graph and its module are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from ghnq_quant.capture.operations import WEIGHTED, Kind

#: Side of the images that the networks are made for, in pixels.
SIDE = 32


class Instruction(NamedTuple):
    """One operation of a network; its position in the program names its result.

    Attributes:
        kind: what it does; ``RESHAPE`` is flattening.
        inputs: positions of the instructions whose results it reads.
        in_channels, channels: channels of its first input and its result (features for a flat tensor).
        size: side of its result for a 32×32 image; 0 for a flat tensor.
        name: name of its module; empty for the input, additions and concatenations.
        kernel: side of the window; for ``GLOBAL_AVG_POOL``, of the result.
        function: for an activation, the function's name in
            :data:`ghnq_quant.capture.operations.OPERATIONS`.
    """

    kind: Kind
    inputs: tuple[int, ...]
    in_channels: int
    channels: int
    size: int
    name: str = ""
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    bias: bool = False
    function: str = ""

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the convolution's or linear layer's weight."""
        if self.kind is Kind.LINEAR:
            return self.channels, self.in_channels
        return self.channels, self.in_channels // self.groups, self.kernel, self.kernel

    @property
    def padding(self) -> int:
        """Padding of the window on each side; an even max pooling has none and rounds its size up."""
        if self.kind is Kind.MAX_POOL and self.kernel % 2 == 0:
            return 0
        return self.dilation * (self.kernel // 2)

    @property
    def num_parameters(self) -> int:
        """Number of elements of the layer's weight and bias."""
        if self.kind in WEIGHTED:
            fan_in = self.in_channels // self.groups * self.kernel * self.kernel
            return self.channels * (fan_in + self.bias)
        return 2 * self.channels if self.kind is Kind.BATCH_NORM else 0


@dataclass(frozen=True)
class Program:
    """Instructions in order of execution: the first is the input, the last gives the logits."""

    instructions: tuple[Instruction, ...]

    @property
    def kinds(self) -> list[Kind]:
        """What each instruction does, followed by the output."""
        return [*(instruction.kind for instruction in self.instructions), Kind.OUTPUT]

    @property
    def inputs(self) -> list[tuple[int, ...]]:
        """What each instruction reads, followed by what the output reads."""
        return [
            *(instruction.inputs for instruction in self.instructions),
            (len(self.instructions) - 1,),
        ]

    @cached_property
    def num_parameters(self) -> int:
        """Number of elements of all weights and biases."""
        return sum(instruction.num_parameters for instruction in self.instructions)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions and linear layers for one 3×32×32 image."""
        total = 0
        for instruction in self.instructions:
            if instruction.kind in WEIGHTED:
                positions = max(1, instruction.size) ** 2
                total += positions * prod(instruction.weight_shape)
        return total

    @cached_property
    def depth(self) -> int:
        """The number of convolutions and linear layers on the longest path."""
        depths: list[int] = []
        for instruction in self.instructions:
            before = max((depths[i] for i in instruction.inputs), default=0)
            depths.append(before + (instruction.kind in WEIGHTED))
        return depths[-1]

    def last_reads(self) -> list[list[int]]:
        """For each instruction, the results that nothing reads later, so their memory can be freed."""
        last = {i: k for k, instruction in enumerate(self.instructions) for i in instruction.inputs}
        reads: list[list[int]] = [[] for _ in self.instructions]
        for result, reader in last.items():
            reads[reader].append(result)
        return reads


class ProgramBuilder:
    """Appends instructions and computes their shapes; each method returns its result's position.

    All windows are padded so that a stride of 2 turns a side n into ceil(n / 2), so parallel branches
    agree whatever the image size.
    """

    def __init__(self, norm: bool, conv_bias: bool, activation: str) -> None:
        self._norm = norm
        self._bias = conv_bias or not norm
        self._activation = activation
        self.instructions = [Instruction(Kind.INPUT, (), 3, 3, SIDE)]

    def channels(self, x: int) -> int:
        """Channels of result ``x``."""
        return self.instructions[x].channels

    def size(self, x: int) -> int:
        """Side of result ``x`` for a 32×32 image."""
        return self.instructions[x].size

    def conv(
        self,
        x: int,
        name: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> int:
        """A convolution alone."""
        source = self.instructions[x]
        size = -(-source.size // stride)
        shape = (source.channels, channels, size)
        return self._append(
            Instruction(
                Kind.CONV, (x,), *shape, name, kernel, stride, groups, dilation, bias=self._bias
            )
        )

    def norm(self, x: int, name: str) -> int:
        """A batch norm, or nothing in a network without them."""
        return self._same_shape(Kind.BATCH_NORM, x, name) if self._norm else x

    def act(self, x: int, name: str) -> int:
        """The network's activation function."""
        return self._same_shape(Kind.ACTIVATION, x, name, self._activation)

    def layer(
        self,
        x: int,
        name: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        act: bool = True,
    ) -> int:
        """Convolution, norm and, with ``act``, activation."""
        x = self.conv(x, f"{name}.conv", channels, kernel, stride, groups, dilation)
        x = self.norm(x, f"{name}.norm")
        return self.act(x, f"{name}.act") if act else x

    def pool(self, kind: Kind, x: int, name: str, kernel: int, stride: int) -> int:
        """A max or average pooling."""
        source = self.instructions[x]
        shape = (source.channels, source.channels, -(-source.size // stride))
        return self._append(Instruction(kind, (x,), *shape, name, kernel, stride))

    def add(self, *terms: int) -> int:
        """The sum of one or more results, two at a time."""
        total, *rest = terms
        for term in rest:
            channels = self.channels(total)
            shape = (channels, channels, self.size(total))
            total = self._append(Instruction(Kind.ADD, (total, term), *shape))
        return total

    def concat(self, *parts: int) -> int:
        """The concatenation of one or more results along the channels."""
        if len(parts) == 1:
            return parts[0]
        channels = sum(map(self.channels, parts))
        shape = (self.channels(parts[0]), channels, self.size(parts[0]))
        return self._append(Instruction(Kind.CONCAT, parts, *shape))

    def global_pool(self, x: int, name: str, grid: int) -> int:
        """Adaptive average pooling to ``grid`` × ``grid``."""
        channels = self.channels(x)
        instruction = Instruction(Kind.GLOBAL_AVG_POOL, (x,), channels, channels, grid, name, grid)
        return self._append(instruction)

    def flatten(self, x: int, name: str) -> int:
        """Flatten all axes except the batch's."""
        source = self.instructions[x]
        features = source.channels * source.size * source.size
        return self._append(Instruction(Kind.RESHAPE, (x,), source.channels, features, 0, name))

    def linear(self, x: int, name: str, features: int) -> int:
        """A linear layer with a bias."""
        instruction = Instruction(Kind.LINEAR, (x,), self.channels(x), features, 0, name, bias=True)
        return self._append(instruction)

    def _same_shape(self, kind: Kind, x: int, name: str, function: str = "") -> int:
        channels, size = self.channels(x), self.size(x)
        return self._append(
            Instruction(kind, (x,), channels, channels, size, name, function=function)
        )

    def _append(self, instruction: Instruction) -> int:
        self.instructions.append(instruction)
        return len(self.instructions) - 1
