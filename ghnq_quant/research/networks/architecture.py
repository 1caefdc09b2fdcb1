"""The description of a network: a few numbers that determine everything else."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ghnq_quant.errors import DataError


@dataclass(frozen=True)
class Stem:
    """The first convolution, followed by a 3×3 max pooling of stride 2 if ``pool`` is set."""

    channels: int
    kernel: int
    stride: int
    pool: bool


@dataclass(frozen=True)
class Edge:
    """An operation inside a cell, from a state to a node.

    Attributes:
        source: 0 is the previous cell's result; if the wiring has two inputs, 1 is that of the cell
            before it; then come the nodes in order.
        operation: ``skip``, ``max_pool``, ``avg_pool``, ``conv``, ``group_conv`` (4 groups),
            ``dil_conv`` (dilation 2), ``sep_conv`` (depthwise, then pointwise), ``dil_sep_conv`` or
            ``res_conv`` (two convolutions with a skip around them).
        kernel: side of the window, 1 for ``skip``.
    """

    source: int
    operation: str
    kernel: int


@dataclass(frozen=True)
class Wiring:
    """The inside of a cell: each node adds up one or two edges."""

    inputs: int
    nodes: tuple[tuple[Edge, ...], ...]


@dataclass(frozen=True)
class Cell:
    """One cell: ``stride`` 2 makes it a reduction cell; every node has ``channels`` channels."""

    channels: int
    stride: int


@dataclass(frozen=True)
class CellBody:
    """Cells wired as in DARTS and DeepNets-1M: all normal cells equal, all reduction cells equal.

    Attributes:
        normal, reduction: the two wirings.
        cells: in order of execution.
        output: whether a cell's result is the ``concat`` or the ``sum`` of its nodes.
        residual: add the previous cell's result to a cell's own if the shapes agree.
        preactivation: activation, convolution, norm instead of convolution, norm, activation.
    """

    normal: Wiring
    reduction: Wiring
    cells: tuple[Cell, ...]
    output: str
    residual: bool
    preactivation: bool


@dataclass(frozen=True)
class PlainBlock:
    """A convolution as in VGG, followed by a 2×2 max pooling if ``pool`` is set."""

    channels: int
    kernel: int
    groups: int
    dilation: int
    pool: bool


@dataclass(frozen=True)
class PlainBody:
    """A chain of convolutions, like VGG."""

    blocks: tuple[PlainBlock, ...]


@dataclass(frozen=True)
class ResidualBlock:
    """Convolutions with a shortcut around them, as in ResNet.

    ``inner`` 0 means the basic block (two convolutions of ``channels``); otherwise it is the
    bottleneck's width.
    """

    channels: int
    stride: int
    kernel: int
    inner: int
    groups: int
    dilation: int


@dataclass(frozen=True)
class ResidualBody:
    """A chain of residual blocks, like ResNet and ResNeXt."""

    blocks: tuple[ResidualBlock, ...]


@dataclass(frozen=True)
class MobileBlock:
    """A depthwise convolution between pointwise ones.

    ``expansion`` 0 means MobileNetV1's block (depthwise, pointwise, both activated); otherwise it is
    MobileNetV2's inverted residual, whose depthwise convolution has ``expansion`` times the input's
    channels.
    """

    channels: int
    stride: int
    kernel: int
    expansion: int


@dataclass(frozen=True)
class MobileBody:
    """A chain of mobile blocks and a pointwise convolution to ``last_channels`` (0: none)."""

    blocks: tuple[MobileBlock, ...]
    last_channels: int


Body = CellBody | PlainBody | ResidualBody | MobileBody
_BODIES: dict[str, type[Any]] = {
    "cells": CellBody,
    "plain": PlainBody,
    "residual": ResidualBody,
    "mobile": MobileBody,
}


@dataclass(frozen=True)
class Head:
    """Pooling to ``grid`` × ``grid`` (0: none), flattening and the linear layers.

    ``hidden`` is the width of a first linear layer, 0 if there is only the classifier.
    """

    grid: int
    hidden: int


@dataclass(frozen=True)
class Architecture:
    """A network of ConvNets-250K: equal descriptions make equal networks.

    Attributes:
        stem, body, head: its three parts.
        norm: whether each convolution is followed by a BatchNorm2d.
        conv_bias: whether convolutions have a bias; always so without norms.
        activation: ``relu``, ``relu6`` or ``leaky_relu``.

    Example:
        >>> body = PlainBody((PlainBlock(32, 3, groups=1, dilation=1, pool=True),))
        >>> vgg = Architecture(Stem(16, 3, 2, pool=False), body, Head(grid=1, hidden=0))
        >>> Architecture.from_json(vgg.to_json()) == vgg
        True
    """

    stem: Stem
    body: Body
    head: Head
    norm: bool = True
    conv_bias: bool = False
    activation: str = "relu"

    @property
    def family(self) -> str:
        """``cells``, ``plain``, ``residual`` or ``mobile``."""
        return next(name for name, body in _BODIES.items() if isinstance(self.body, body))

    @property
    def num_cells(self) -> int:
        """The number of cells, or of blocks in the other families; the stem is not counted."""
        return len(self.body.cells if isinstance(self.body, CellBody) else self.body.blocks)

    @property
    def any_size(self) -> bool:
        """Whether the network takes images of any size; otherwise only 32×32."""
        return self.head.grid > 0

    def to_json(self) -> str:
        """The description as one line of JSON."""
        return json.dumps({"family": self.family, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The inverse of :meth:`to_json`.

        Raises:
            DataError: ``text`` is not such a description.
        """
        try:
            values = json.loads(text)
            hints = {**get_type_hints(cls), "body": _BODIES[values.pop("family")]}
            return cls(**{name: _decode(hints[name], value) for name, value in values.items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"not the JSON of an architecture ({type(error).__name__}: {error}): {text[:80]!r}"
            ) from error


def _decode(kind: Any, value: Any) -> Any:
    """``value``, made of JSON's lists and dicts, as the annotated type ``kind``."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        missing = {field.name for field in fields(kind)} ^ set(value)
        if missing:
            raise ValueError(f"{kind.__name__} does not match in {sorted(missing)}")
        return kind(**{name: _decode(hints[name], item) for name, item in value.items()})
    if get_origin(kind) is tuple:
        return tuple(_decode(get_args(kind)[0], item) for item in value)
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r}")
    return value
