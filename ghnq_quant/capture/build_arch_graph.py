"""From a traced graph to the nodes and edges that the hypernetwork reads."""

from __future__ import annotations

import numpy as np
from torch import fx, nn

from ghnq_quant.capture.arch_graph import ArchGraph, Node
from ghnq_quant.capture.operations import Kind, keeps_dimensions, pooling_window

_Modules = dict[str, nn.Module]


def build_arch_graph(graph: fx.Graph, kinds: dict[fx.Node, Kind], modules: _Modules) -> ArchGraph:
    """Keep the operations that GHN-2 has a primitive for and contract all others.

    A contracted operation's inputs become the inputs of its consumers. An addition, concatenation
    or product is kept where it still joins more than one node once everything else is contracted.
    """
    return _Builder(kinds, modules).build(graph)


class _Builder:
    def __init__(self, kinds: dict[fx.Node, Kind], modules: _Modules) -> None:
        self.kinds = kinds
        self.modules = modules
        self.nodes: list[Node] = []
        self.edges: list[tuple[int, int]] = []
        self.classifier: tuple[int | None, int | None] = (None, None)
        #: graph nodes that stand for the value of each operation
        self.sources: dict[fx.Node, list[int]] = {}

    def build(self, graph: fx.Graph) -> ArchGraph:
        used = _ancestors_of_output(graph)
        for operation in graph.nodes:
            if operation.op == "output":
                self._find_classifier(operation)
            elif operation in used:
                self.sources[operation] = self._visit(operation)
        edges = np.array(self.edges, dtype=np.int64).reshape(-1, 2)
        return ArchGraph(tuple(self.nodes), edges, *self.classifier)

    def _visit(self, operation: fx.Node) -> list[int]:
        kind = self.kinds[operation]
        sources = self._inputs(operation)
        if kind is Kind.INPUT:
            return self._add(Node("input"), []) if not self.nodes else [0]
        if kind is Kind.NOT_A_TENSOR:
            return []
        if kind in (Kind.CONV, Kind.LINEAR):
            return self._add_weight(str(operation.target), sources)
        if kind in (Kind.BATCH_NORM, Kind.OTHER_NORM):
            return self._add_norm(str(operation.target), kind, sources)
        if kind in (Kind.MAX_POOL, Kind.AVG_POOL):
            shape = (1, 1, *pooling_window(operation, self.modules))
            return self._add(Node(kind.value, shape), sources)
        if kind is Kind.GLOBAL_AVG_POOL or (
            kind is Kind.SPATIAL_MEAN and keeps_dimensions(operation)
        ):
            return self._add(Node("glob_avg"), sources)
        joins = {Kind.ADD: "sum", Kind.CONCAT: "concat", Kind.MULTIPLY: "cse"}
        if kind in joins and len(sources) > 1:
            return self._add(Node(joins[kind]), sources)
        return sources

    def _inputs(self, operation: fx.Node) -> list[int]:
        merged = (s for n in operation.all_input_nodes for s in self.sources.get(n, ()))
        return list(dict.fromkeys(merged))

    def _add(self, node: Node, sources: list[int]) -> list[int]:
        position = len(self.nodes)
        self.nodes.append(node)
        self.edges.extend((source, position) for source in sources)
        return [position]

    def _add_weight(self, name: str, sources: list[int]) -> list[int]:
        module = self.modules[name]
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        primitive = "conv"
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            primitive = "dil_conv" if min(module.dilation) > 1 else "sep_conv"
        shape = tuple(module.weight.shape)
        sources = self._add(Node(primitive, shape, (f"{name}.weight",)), sources)
        if module.bias is not None:
            bias = Node("bias", tuple(module.bias.shape), (f"{name}.bias",))
            sources = self._add(bias, sources)
        return sources

    def _add_norm(self, name: str, kind: Kind, sources: list[int]) -> list[int]:
        module = self.modules[name]
        names = tuple(
            f"{name}.{p}" for p in ("weight", "bias") if getattr(module, p, None) is not None
        )
        if f"{name}.weight" not in names or module.weight.dim() != 1:  # type: ignore[operator]
            return sources
        primitive = "bn" if kind is Kind.BATCH_NORM else "ln"
        assert isinstance(module.weight, nn.Parameter)
        return self._add(Node(primitive, tuple(module.weight.shape), names), sources)

    def _find_classifier(self, output: fx.Node) -> None:
        """The linear layer whose nodes are the graph's last and only end."""
        ends = self._inputs(output)
        if len(ends) != 1 or ends[0] != len(self.nodes) - 1:
            return
        last, before = self.nodes[-1], self.nodes[-2]
        if last.primitive == "bias" and len(before.shape or ()) == 2:
            self.classifier = (len(self.nodes) - 2, len(self.nodes) - 1)
        elif last.primitive == "conv" and len(last.shape or ()) == 2:
            self.classifier = (len(self.nodes) - 1, None)


def _ancestors_of_output(graph: fx.Graph) -> set[fx.Node]:
    used: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or node in used:
            used.update(node.all_input_nodes)
    return used
