"""GHN-3's rules for the graph of a network, as far as they differ from GHN-2's.

Both hypernetworks read the same kind of graph. GHN-3 was trained on graphs in which

- a mean over H and W, also of (N, H, W, C), is global pooling, whether it keeps the dimensions or
  not;
- the pooling of squeeze-and-excitation is left out, and the product with its gate is a ``cse`` node;
- a 1×1 convolution that is pooled to give the logits, as in SqueezeNet, comes after the pooling and is
  the classification layer;
- a classification layer has a bias; without one it is a linear layer like any other. It is the deepest
  layer of the network, whatever other outputs there are;
- heads that run only in training, such as GoogLeNet's, belong to the network;
- attention is its linear layers, plus an ``msa`` node if its softmax is an operation of its own;
- a position embedding that is added to the tokens is a ``pos_enc`` node without predecessors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import numpy as np
from torch import fx, nn

from ghnq_quant.capture.arch_graph import ArchGraph, Node
from ghnq_quant.capture.attention import attention_nodes
from ghnq_quant.capture.build_arch_graph import build_arch_graph
from ghnq_quant.capture.operations import Kind, classify, is_mean_over
from ghnq_quant.capture.tracer import trace_training

#: The rules a graph follows; a hypernetwork reads only graphs like those it was trained on.
GraphRules = Literal["ghn2", "ghn3"]

_POOLINGS = (Kind.GLOBAL_AVG_POOL, Kind.SPATIAL_MEAN)
#: Operations allowed between the pooling of squeeze-and-excitation and its product.
_GATE = (
    *(Kind.CONV, Kind.LINEAR, Kind.BATCH_NORM, Kind.OTHER_NORM),
    *(Kind.ACTIVATION, Kind.RESHAPE, Kind.OTHER),
)


def build_ghn3_graph(
    root: nn.Module,
    graph: fx.Graph,
    kinds: dict[fx.Node, Kind],
    modules: dict[str, nn.Module],
    whole: tuple[str, ...] = (),
    attention: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> ArchGraph:
    """Build the graph of a traced network by GHN-3's rules.

    Args:
        whole: names of the modules that were kept whole.
        attention: the attention modules among them, with the parts of each.

    Raises:
        CaptureError: it has layers that run only in training, but cannot be traced in training.
    """
    if _has_idle_layers(graph, modules):
        graph = trace_training(root, whole)
        kinds = classify(graph, modules)
    new_kinds = {node: _kind(node, kinds) for node in kinds}
    chains = {node: _chain(node, kinds, root, modules, attention) for node in kinds}
    return _with_classifier(_pooled_first(build_arch_graph(graph, new_kinds, modules, chains)))


def _chain(
    node: fx.Node,
    kinds: dict[fx.Node, Kind],
    root: nn.Module,
    modules: dict[str, nn.Module],
    attention: Mapping[str, tuple[str, ...]],
) -> tuple[Node, ...]:
    """The nodes for attention or a position embedding; empty for anything else."""
    name = str(node.target)
    if node.op == "call_module" and name in attention:
        return attention_nodes(name, modules[name], attention[name])
    if node.op == "get_attr" and all(kinds[user] is Kind.ADD for user in node.users):
        shape = _position_map(dict(root.named_parameters()).get(name))
        return (Node("pos_enc", shape, (name,)),) if shape else ()
    return ()


def _position_map(embedding: nn.Parameter | None) -> tuple[int, ...]:
    """(1, C, S, S) for a (1, S · S, C) embedding, or one with an extra row for the class token; else
    empty."""
    if embedding is None or embedding.dim() != 3 or len(embedding) != 1:
        return ()
    tokens, width = embedding.shape[1:]
    side = math.isqrt(tokens)
    return (1, width, side, side) if side > 1 < width and tokens - side**2 <= 1 else ()


def _has_idle_layers(graph: fx.Graph, modules: dict[str, nn.Module]) -> bool:
    """Whether some conv or linear layer is not called, directly or in a module kept whole."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    running = {id(layer) for name in called for layer in modules[name].modules()}
    return any(
        isinstance(layer, (nn.Conv2d, nn.Linear)) and id(layer) not in running
        for layer in modules.values()
    )


def _kind(node: fx.Node, kinds: dict[fx.Node, Kind]) -> Kind:
    if kinds[node] not in _POOLINGS and not is_mean_over(node, (1, 2)):
        return kinds[node]
    return Kind.RESHAPE if _squeezes(node, kinds) else Kind.GLOBAL_AVG_POOL


def _squeezes(pooling: fx.Node, kinds: dict[fx.Node, Kind]) -> bool:
    """Whether a gate computed only from the pooled values is multiplied with something else."""
    gate = {pooling}
    products = []
    pending = [pooling]
    while pending:
        for user in pending.pop().users:
            if kinds[user] is Kind.MULTIPLY:
                products.append(user)
            elif kinds[user] in _GATE and user not in gate:
                gate.add(user)
                pending.append(user)
    return any(not gate.issuperset(product.all_input_nodes) for product in products)


def _pooled_first(graph: ArchGraph) -> ArchGraph:
    """Move the pooling at the end of a network before the 1×1 convolution that it pools."""
    weight, bias, pooling = (len(graph) - 3, len(graph) - 2, len(graph) - 1)
    names = [node.primitive for node in graph.nodes[-3:]]
    if names != ["conv", "bias", "glob_avg"] or not _is_layer(graph, weight, bias):
        return graph
    if [e for e in graph.edges.tolist() if bias in e] != [[weight, bias], [bias, pooling]]:
        return graph
    nodes = (*graph.nodes[:-3], graph.nodes[pooling], graph.nodes[weight], graph.nodes[bias])
    # the edges stay: what led to the weight now leads to the pooling
    return ArchGraph(nodes, graph.edges)


def _with_classifier(graph: ArchGraph) -> ArchGraph:
    levels = graph.levels
    last = int(np.flatnonzero(levels == levels.max())[-1])
    before = [source for source, target in graph.edges.tolist() if target == last]
    found = len(before) == 1 and _is_layer(graph, before[0], last)
    weight, bias = (before[0], last) if found else (None, None)
    return replace(graph, classifier_weight=weight, classifier_bias=bias)


def _is_layer(graph: ArchGraph, weight: int, bias: int) -> bool:
    """Whether two nodes are weight and bias of the same linear layer or 1×1 convolution."""
    first, second = graph.nodes[weight], graph.nodes[bias]
    shape = first.shape or ()
    names = [name.rpartition(".")[0] for node in (first, second) for name in node.parameters]
    is_pair = (first.primitive, second.primitive) == ("conv", "bias")
    return is_pair and names[:1] * 2 == names and all(size == 1 for size in shape[2:])
