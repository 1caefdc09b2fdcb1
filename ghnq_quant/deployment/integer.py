"""A folded model whose layers compute on integers."""

from __future__ import annotations

import operator

from torch import fx, nn

from ghnq_quant.capture.operations import OPERATIONS, Kind, classify, find_operation
from ghnq_quant.deployment.integer_layers import (
    IntegerLayer,
    IntegerQuantize,
    Levels,
    fits_integers,
)
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLinear
from ghnq_quant.deployment.moves import absorb_clamps

#: Operations that turn integers into integers of the same scale.
_KEEP_SCALE = [
    OPERATIONS[name]
    for name in (
        *("relu", "max_pool", "flatten", "reshape", "squeeze", "unsqueeze", "permute"),
        *("transpose", "contiguous"),
    )
]


def to_integers(folded: fx.GraphModule) -> fx.GraphModule:
    """Replace a folded model's layers with layers on integers.

    A convolution or linear layer computes on integers if its input is quantized. The quantizer after
    it, and a clamp between them (ReLU, ReLU6), become part of it. Max pooling, ReLU and reshaping
    read and return integers. Everything else computes with the values that the integers stand for.

    Args:
        folded: the result of :func:`ghnq_quant.deployment.fold.fold`, on CPU; it is changed.
    """
    absorb_clamps(folded)
    return _Rewrite(folded).run()


class _Rewrite:
    """Walks the graph once; ``levels`` holds the nodes so far that return integers."""

    def __init__(self, folded: fx.GraphModule) -> None:
        self.model = folded
        self.graph = folded.graph
        self.modules = dict(folded.named_modules())
        self.kinds = classify(self.graph, self.modules)
        self.levels: dict[fx.Node, Levels] = {}
        self.values: dict[fx.Node, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        for node in list(self.graph.nodes):
            if node in self.levels or self._takes_integers(node):
                continue
            for source in node.all_input_nodes:
                if source in self.levels:
                    node.replace_input_with(source, self._values_of(source))
            quantizer = self._module(node)
            if isinstance(quantizer, FixedQuantizer):
                self.levels[node] = Levels.of(quantizer)
                self.model.set_submodule(str(node.target), IntegerQuantize(self.levels[node]))
        self.graph.lint()
        self.model.delete_all_unused_submodules()
        self.model.recompile()
        return self.model

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _takes_integers(self, node: fx.Node) -> bool:
        """Whether the node reads integers, unchanged or as the layer that replaces it."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self.levels:
            return False
        if self.kinds[node] is Kind.NOT_A_TENSOR:
            return True  # its size
        if find_operation(node, self.modules) in _KEEP_SCALE:
            self.levels[node] = self.levels[source]
            return True
        layer = self._module(node)
        if isinstance(layer, (FoldedConv2d, FoldedLinear)):
            return self._on_integers(node, layer, self.levels[source])
        return False

    def _on_integers(
        self, node: fx.Node, layer: FoldedConv2d | FoldedLinear, source: Levels
    ) -> bool:
        user = next(iter(node.users)) if len(node.users) == 1 else node
        quantizer = self._module(user)
        result = Levels.of(quantizer) if isinstance(quantizer, FixedQuantizer) else None
        if not fits_integers(layer, source, result):
            return False
        self.model.set_submodule(str(node.target), IntegerLayer(layer, source, result))
        if result is not None:
            user.replace_all_uses_with(node)
            self.graph.erase_node(user)
            self.levels[node] = result
        return True

    def _values_of(self, node: fx.Node) -> fx.Node:
        """The node with the values of one that returns integers."""
        if node not in self.values:
            with self.graph.inserting_after(node):
                self.values[node] = self.graph.call_function(
                    operator.mul, (node, self.levels[node].scale)
                )
        return self.values[node]
