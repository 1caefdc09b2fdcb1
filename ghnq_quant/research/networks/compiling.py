"""From a description to the program of the network."""

from __future__ import annotations

from collections.abc import Callable

from ghnq_quant.capture import Kind
from ghnq_quant.research.networks.architecture import (
    Architecture,
    CellBody,
    Edge,
    Head,
    MobileBlock,
    MobileBody,
    PlainBody,
    ResidualBlock,
    ResidualBody,
    Stem,
)
from ghnq_quant.research.networks.program import Program, ProgramBuilder

NUM_CLASSES = 10
_GROUPS = 4


def compile_program(architecture: Architecture, num_classes: int = NUM_CLASSES) -> Program:
    """The program of ``architecture``; the logits depend on each of its instructions."""
    builder = ProgramBuilder(architecture.norm, architecture.conv_bias, architecture.activation)
    body = architecture.body
    x = _stem(builder, architecture.stem)
    if isinstance(body, CellBody):
        x = _CellCompiler(builder, body).run(x)
    elif isinstance(body, PlainBody):
        x = _plain_body(builder, body, x)
    elif isinstance(body, ResidualBody):
        for i, block in enumerate(body.blocks):
            x = _residual_block(builder, block, f"blocks.{i}", x)
    else:
        x = _mobile_body(builder, body, x)
    _head(builder, architecture.head, num_classes, x)
    return Program(tuple(builder.instructions))


def _stem(builder: ProgramBuilder, stem: Stem) -> int:
    x = builder.layer(0, "stem", stem.channels, stem.kernel, stem.stride)
    return builder.pool(Kind.MAX_POOL, x, "stem.pool", 3, 2) if stem.pool else x


def _head(builder: ProgramBuilder, head: Head, num_classes: int, x: int) -> None:
    if head.grid:
        x = builder.global_pool(x, "head.pool", head.grid)
    x = builder.flatten(x, "head.flatten")
    if head.hidden:
        x = builder.linear(x, "head.hidden", head.hidden)
        x = builder.act(x, "head.act")
    builder.linear(x, "head.classifier", num_classes)


def _plain_body(builder: ProgramBuilder, body: PlainBody, x: int) -> int:
    for i, block in enumerate(body.blocks):
        name = f"blocks.{i}"
        x = builder.layer(x, name, block.channels, block.kernel, 1, block.groups, block.dilation)
        if block.pool:
            x = builder.pool(Kind.MAX_POOL, x, f"{name}.pool", 2, 2)
    return x


def _residual_block(builder: ProgramBuilder, block: ResidualBlock, name: str, x: int) -> int:
    """Basic block or bottleneck; its shortcut has a 1×1 layer if the shapes differ."""
    wide = (block.kernel, block.stride, block.groups, block.dilation)
    if block.inner:
        y = builder.layer(x, f"{name}.reduce", block.inner)
        y = builder.layer(y, f"{name}.conv", block.inner, *wide)
        y = builder.layer(y, f"{name}.expand", block.channels, act=False)
    else:
        y = builder.layer(x, f"{name}.conv1", block.channels, *wide)
        y = builder.layer(y, f"{name}.conv2", block.channels, block.kernel, act=False)
    if block.stride > 1 or builder.channels(x) != block.channels:
        x = builder.layer(x, f"{name}.shortcut", block.channels, 1, block.stride, act=False)
    return builder.act(builder.add(y, x), f"{name}.act")


def _mobile_body(builder: ProgramBuilder, body: MobileBody, x: int) -> int:
    for i, block in enumerate(body.blocks):
        compile_block = _inverted_residual if block.expansion else _separable_block
        x = compile_block(builder, block, f"blocks.{i}", x)
    return builder.layer(x, "last", body.last_channels) if body.last_channels else x


def _separable_block(builder: ProgramBuilder, block: MobileBlock, name: str, x: int) -> int:
    inner = builder.channels(x)
    x = builder.layer(x, f"{name}.depthwise", inner, block.kernel, block.stride, groups=inner)
    return builder.layer(x, f"{name}.pointwise", block.channels)


def _inverted_residual(builder: ProgramBuilder, block: MobileBlock, name: str, x: int) -> int:
    inner = builder.channels(x) * block.expansion
    y = builder.layer(x, f"{name}.expand", inner) if block.expansion > 1 else x
    y = builder.layer(y, f"{name}.depthwise", inner, block.kernel, block.stride, groups=inner)
    y = builder.layer(y, f"{name}.project", block.channels, act=False)
    if block.stride == 1 and builder.channels(x) == block.channels:
        y = builder.add(y, x)
    return y


class _CellCompiler:
    """Compiles cells; operations keep the number of channels of their projected input."""

    def __init__(self, builder: ProgramBuilder, body: CellBody) -> None:
        self.builder = builder
        self.body = body

    def run(self, x: int) -> int:
        results = [x, x]
        for i in range(len(self.body.cells)):
            results.append(self._cell(i, results[-1], results[-2]))
        return results[-1]

    def _cell(self, index: int, previous: int, before: int) -> int:
        cell, name = self.body.cells[index], f"cells.{index}"
        wiring = self.body.reduction if cell.stride > 1 else self.body.normal
        used = {edge.source for node in wiring.nodes for edge in node}
        states = []
        for k, state in enumerate((previous, before)[: wiring.inputs]):
            if k in used:  # a projection that no node reads would be dead code
                state = self._project(
                    state, f"{name}.input{k}", cell.channels, self.builder.size(previous)
                )
            states.append(state)
        for n, node in enumerate(wiring.nodes):
            terms = []
            for e, edge in enumerate(node):
                stride = cell.stride if edge.source < wiring.inputs else 1
                op_name = f"{name}.node{n}.op{e}"
                terms.append(self._operation(edge, op_name, states[edge.source], stride))
            states.append(self.builder.add(*terms))
        return self._join(states[wiring.inputs :], previous)

    def _join(self, nodes: list[int], previous: int) -> int:
        builder = self.builder
        x = builder.concat(*nodes) if self.body.output == "concat" else builder.add(*nodes)
        same_shape = (builder.channels(x), builder.size(x)) == (
            builder.channels(previous),
            builder.size(previous),
        )
        return builder.add(x, previous) if self.body.residual and same_shape else x

    def _project(self, x: int, name: str, channels: int, size: int) -> int:
        """Project to the cell's width and, for the cell before a reduction, to the reduced size."""
        stride = self.builder.size(x) // size
        if stride == 1 and self.builder.channels(x) == channels:
            return x
        return self._layer(x, name, channels, 1, stride)

    def _layer(
        self, x: int, name: str, channels: int, kernel: int, stride: int, groups: int = 1
    ) -> int:
        return self._ordered(
            x, name, lambda y, n: self.builder.conv(y, n, channels, kernel, stride, groups)
        )

    def _ordered(self, x: int, name: str, conv: Callable[[int, str], int]) -> int:
        """A convolution with its norm and activation, in the network's order."""
        if self.body.preactivation:
            x = self.builder.act(x, f"{name}.act")
        x = self.builder.norm(conv(x, f"{name}.conv"), f"{name}.norm")
        return x if self.body.preactivation else self.builder.act(x, f"{name}.act")

    def _operation(self, edge: Edge, name: str, x: int, stride: int) -> int:
        builder, kernel, channels = self.builder, edge.kernel, self.builder.channels(x)
        if edge.operation == "skip":
            return x if stride == 1 else self._layer(x, name, channels, 1, stride)
        if edge.operation in ("max_pool", "avg_pool"):
            return builder.pool(Kind(edge.operation), x, f"{name}.pool", kernel, stride)
        if edge.operation == "res_conv":
            y = self._layer(x, f"{name}.conv1", channels, kernel, stride)
            y = self._layer(y, f"{name}.conv2", channels, kernel, 1)
            skip = x if stride == 1 else self._layer(x, f"{name}.shortcut", channels, 1, stride)
            return builder.add(y, skip)
        if edge.operation in ("sep_conv", "dil_sep_conv"):
            dilation = 2 if edge.operation == "dil_sep_conv" else 1
            return self._ordered(
                x, name, lambda y, n: self._separable(y, n, kernel, stride, dilation)
            )
        groups = _GROUPS if edge.operation == "group_conv" else 1
        dilation = 2 if edge.operation == "dil_conv" else 1
        return self._ordered(
            x, name, lambda y, n: builder.conv(y, n, channels, kernel, stride, groups, dilation)
        )

    def _separable(self, x: int, name: str, kernel: int, stride: int, dilation: int) -> int:
        """Depthwise and pointwise without a norm in between, as in DARTS."""
        channels = self.builder.channels(x)
        prefix = name.removesuffix(".conv")
        x = self.builder.conv(
            x, f"{prefix}.depthwise", channels, kernel, stride, channels, dilation
        )
        return self.builder.conv(x, f"{prefix}.pointwise", channels)
