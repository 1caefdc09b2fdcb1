"""A folded model on torch's integer kernels."""

from __future__ import annotations

import math
from typing import Any

from torch import fx, nn

from ghnq_quant.capture.operations import OPERATIONS, Kind, Operation, classify, find_operation
from ghnq_quant.deployment.integer_layers import (
    IntegerAdd,
    IntegerLayer,
    IntegerMultiply,
    IntegerQuantize,
    fits_integers,
)
from ghnq_quant.deployment.layers import FixedQuantizer, FoldedConv2d, FoldedLinear
from ghnq_quant.deployment.moves import clamp_bounds

#: Operations with kernels for a quantized tensor, whose scale and zero point their result keeps.
_STAY_QUANTIZED = [
    OPERATIONS[name]
    for name in (
        *("relu", "max_pool", "flatten", "reshape", "squeeze", "unsqueeze", "permute"),
        *("transpose", "contiguous"),
    )
]
_POINTWISE: dict[Operation | None, type[IntegerAdd | IntegerMultiply]] = {
    OPERATIONS["add"]: IntegerAdd,
    OPERATIONS["mul"]: IntegerMultiply,
}


def to_integers(folded: fx.GraphModule) -> fx.GraphModule:
    """Put torch's integer kernels in place of a folded model's layers, as far as there are some.

    A convolution or linear layer becomes an integer kernel where its input is quantized, its result
    is, and between them is nothing but a clamp (ReLU, ReLU6, Hardtanh). Additions and
    multiplications of two quantized tensors, max pooling, ReLU and reshaping work on integers too.
    All else dequantizes, computes in float and quantizes its result where the plan says so.

    Args:
        folded: of :func:`ghnq_quant.deployment.fold.fold`, on CPU; it is taken over.
    """
    return _Rewrite(folded).run()


class _Rewrite:
    """Goes through the graph once; ``scales`` holds the nodes that are quantized tensors by now."""

    def __init__(self, folded: fx.GraphModule) -> None:
        self.model = folded
        self.graph = folded.graph
        self.modules = dict(folded.named_modules())
        self.kinds = classify(self.graph, self.modules)
        self.scales: dict[Any, float] = {}
        self.floats: dict[fx.Node, fx.Node] = {}

    def run(self) -> fx.GraphModule:
        fused: set[fx.Node] = set()
        for node in list(self.graph.nodes):
            if node in fused or self._stays_quantized(node):
                continue
            if (found := self._kernel(node)) is not None:
                kernel, covered = found
                self._replace(covered, [*node.all_input_nodes], kernel)
                fused.update(covered)
                continue
            for source in node.all_input_nodes:
                if source in self.scales:
                    node.replace_input_with(source, self._dequantized(source))
            quantizer = self._module(node)
            if isinstance(quantizer, FixedQuantizer):
                self._replace([node], [*node.all_input_nodes], IntegerQuantize(quantizer.qparams))
        self.graph.lint()
        self.model.delete_all_unused_submodules()
        self.model.recompile()
        return self.model

    def _module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def _operation(self, node: fx.Node) -> Operation | None:
        return find_operation(node, self.modules)

    def _stays_quantized(self, node: fx.Node) -> bool:
        """Whether the node works on a quantized tensor as it is."""
        source = node.args[0] if node.args else None
        if source not in self.scales:
            return False
        if self.kinds[node] is Kind.NOT_A_TENSOR:
            return True  # its size
        if self._operation(node) in _STAY_QUANTIZED:
            self.scales[node] = self.scales[source]
            return True
        return False

    def _kernel(self, node: fx.Node) -> tuple[nn.Module, list[fx.Node]] | None:
        """The integer kernel that starts at this node, and the nodes it stands for, the last of
        which is a quantizer."""
        sources = node.all_input_nodes
        if not sources or any(s not in self.scales for s in sources) or len(node.users) != 1:
            return None
        covered = [node, next(iter(node.users))]
        layer = self._module(node)
        bounds: tuple[float, float] = (-math.inf, math.inf)
        if isinstance(layer, (FoldedConv2d, FoldedLinear)):
            if not fits_integers(layer, self.scales[sources[0]]):
                return None
            clamp = clamp_bounds(covered[-1], self.modules)
            if clamp is not None and len(covered[-1].users) == 1:
                bounds = clamp
                covered.append(next(iter(covered[-1].users)))
        quantizer = self._module(covered[-1])
        if not isinstance(quantizer, FixedQuantizer):
            return None
        if isinstance(layer, (FoldedConv2d, FoldedLinear)):
            return IntegerLayer(layer, quantizer, *bounds), covered
        pointwise = _POINTWISE.get(self._operation(node))
        if pointwise is None or node.kwargs or list(node.args) != sources:
            return None
        return pointwise(quantizer.qparams), covered

    def _replace(self, covered: list[fx.Node], sources: list[fx.Node], kernel: Any) -> None:
        """Put ``kernel`` in place of the nodes, under the name of the first one that is a module."""
        name = next(str(n.target) for n in covered if n.op == "call_module")
        self.model.set_submodule(name, kernel)
        first, last = covered[0], covered[-1]
        with self.graph.inserting_before(first):
            new = self.graph.call_module(name, tuple(sources))
        last.replace_all_uses_with(new)
        for node in reversed(covered):
            self.graph.erase_node(node)
        self.scales[new] = kernel.scale

    def _dequantized(self, node: fx.Node) -> fx.Node:
        if node not in self.floats:
            with self.graph.inserting_after(node):
                self.floats[node] = self.graph.call_method("dequantize", (node,))
        return self.floats[node]
