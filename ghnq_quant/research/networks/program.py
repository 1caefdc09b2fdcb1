"""A network as a list of primitive operations, from which its graph and its module are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


class Operation(NamedTuple):
    """One operation; its position in the program names its result (each is assigned once).

    Attributes:
        kind: ``input``, ``conv``, ``linear``, ``batch_norm``, ``relu``, ``relu6``, ``leaky_relu``,
            ``max_pool``, ``avg_pool``, ``adaptive_avg_pool``, ``flatten``, ``add`` or ``concat``.
        inputs: positions of the operations whose results it reads.
        in_channels, channels: of its first input and of its result (features of a flat tensor).
        size: side of its result for a 32×32 image; 0 of a flat tensor.
        name: of its module; empty of ``input``, ``add`` and ``concat``.
        kernel: side of the window; of ``adaptive_avg_pool``, of the result.
    """

    kind: str
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

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the convolution's or linear layer's weight."""
        if self.kind == "linear":
            return self.channels, self.in_channels
        return self.channels, self.in_channels // self.groups, self.kernel, self.kernel

    @property
    def padding(self) -> int:
        """Of the window on each side; an even max pooling has none and rounds its size up."""
        if self.kind == "max_pool" and self.kernel % 2 == 0:
            return 0
        return self.dilation * (self.kernel // 2)

    @property
    def num_parameters(self) -> int:
        """Elements of the operation's weight and bias."""
        if self.kind == "batch_norm":
            return 2 * self.channels
        if self.kind not in ("conv", "linear"):
            return 0
        fan_in = self.in_channels // self.groups * self.kernel * self.kernel
        return self.channels * (fan_in + self.bias)


@dataclass(frozen=True)
class Program:
    """Operations in the order of execution: the first is the input, the last gives the logits."""

    operations: tuple[Operation, ...]

    @cached_property
    def num_parameters(self) -> int:
        """Elements of all weights and biases."""
        return sum(operation.num_parameters for operation in self.operations)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of all convolutions and linear layers for one 3×32×32 image."""
        total = 0
        for op in self.operations:
            if op.kind == "conv":
                window = op.in_channels // op.groups * op.kernel * op.kernel
                total += op.size * op.size * op.channels * window
            elif op.kind == "linear":
                total += op.in_channels * op.channels
        return total

    @cached_property
    def depth(self) -> int:
        """The number of convolutions and linear layers on the longest path."""
        depths: list[int] = []
        for op in self.operations:
            before = max((depths[i] for i in op.inputs), default=0)
            depths.append(before + (op.kind in ("conv", "linear")))
        return depths[-1]

    def last_reads(self) -> list[list[int]]:
        """For each operation the results that nothing reads later: their memory is free again."""
        last = {i: k for k, op in enumerate(self.operations) for i in op.inputs}
        reads: list[list[int]] = [[] for _ in self.operations]
        for result, reader in last.items():
            reads[reader].append(result)
        return reads


class ProgramBuilder:
    """Appends operations and works out their shapes; a method returns its result's position.

    All windows are padded so that a stride of 2 turns a side n into ceil(n / 2): whatever the
    image's size, parallel branches agree.
    """

    def __init__(self, norm: bool, conv_bias: bool, activation: str) -> None:
        self._norm = norm
        self._bias = conv_bias or not norm
        self._activation = activation
        self.operations = [Operation("input", (), 3, 3, 32)]

    def channels(self, x: int) -> int:
        """Channels of result ``x``."""
        return self.operations[x].channels

    def size(self, x: int) -> int:
        """Side of result ``x`` for a 32×32 image."""
        return self.operations[x].size

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
        source = self.operations[x]
        size = -(-source.size // stride)
        shape = (source.channels, channels, size)
        return self._append(
            Operation("conv", (x,), *shape, name, kernel, stride, groups, dilation, bias=self._bias)
        )

    def norm(self, x: int, name: str) -> int:
        """A batch norm, or nothing in a network without."""
        return self._same_shape("batch_norm", x, name) if self._norm else x

    def act(self, x: int, name: str) -> int:
        """The network's activation function."""
        return self._same_shape(self._activation, x, name)

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

    def pool(self, kind: str, x: int, name: str, kernel: int, stride: int) -> int:
        """``max_pool`` or ``avg_pool``."""
        source = self.operations[x]
        shape = (source.channels, source.channels, -(-source.size // stride))
        return self._append(Operation(kind, (x,), *shape, name, kernel, stride))

    def add(self, *terms: int) -> int:
        """The sum of one or more results, two at a time."""
        total, *rest = terms
        for term in rest:
            channels = self.channels(total)
            shape = (channels, channels, self.size(total))
            total = self._append(Operation("add", (total, term), *shape))
        return total

    def concat(self, *parts: int) -> int:
        """The concatenation of one or more results along the channels."""
        if len(parts) == 1:
            return parts[0]
        channels = sum(map(self.channels, parts))
        shape = (self.channels(parts[0]), channels, self.size(parts[0]))
        return self._append(Operation("concat", parts, *shape))

    def global_pool(self, x: int, name: str, grid: int) -> int:
        """Adaptive average pooling to ``grid`` × ``grid``."""
        channels = self.channels(x)
        op = Operation("adaptive_avg_pool", (x,), channels, channels, grid, name, grid)
        return self._append(op)

    def flatten(self, x: int, name: str) -> int:
        """All axes but the batch's into one."""
        source = self.operations[x]
        features = source.channels * source.size * source.size
        return self._append(Operation("flatten", (x,), source.channels, features, 0, name))

    def linear(self, x: int, name: str, features: int) -> int:
        """A linear layer with a bias."""
        op = Operation("linear", (x,), self.channels(x), features, 0, name, bias=True)
        return self._append(op)

    def _same_shape(self, kind: str, x: int, name: str) -> int:
        channels = self.channels(x)
        return self._append(Operation(kind, (x,), channels, channels, self.size(x), name))

    def _append(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations) - 1
