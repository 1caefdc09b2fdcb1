"""Writes a quantization plan into a traced graph."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from ghnq_quant.capture import Capture
from ghnq_quant.capture.operations import argument

#: Name of the container of all activation quantizers in a quantized model.
QUANTIZERS = "activation_quantizers"


def quantizer_key(point_name: str) -> str:
    """Name of a point's quantizer in the container; a module's name may not hold a dot."""
    return point_name.replace(".", "_")


def rewrite(captured: Capture, model: nn.Module, *, fold: bool = True) -> fx.Graph:
    """A copy of the graph in which convolutions fold their batch norms and points are quantized.

    With ``fold`` false, batch norms stay operations of their own.

    ``model`` holds the layers and the quantizers that the graph will call; a functional dropout
    gets a module in it, so that it follows train and eval as the traced code did.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(captured.graph, mapping)
    graph.output(output)
    copies = {old.name: new for old, new in mapping.items()}
    _simplify(graph)
    if fold:
        _fold_batch_norms(graph, captured, copies)
    _restore_dropout(graph, copies, model)
    quantizers = getattr(model, QUANTIZERS)
    for point in captured.quant_plan.points:
        key = quantizer_key(point.name)
        if key in quantizers:
            _quantize(graph, copies[point.node], f"{QUANTIZERS}.{key}")
    graph.lint()
    return graph


def _simplify(graph: fx.Graph) -> None:
    """Drop type annotations, which may be names in another module, and make each ``view`` a
    ``reshape``: on CPU the layers pass channels-last tensors on."""
    for node in graph.nodes:
        node.type = None
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"


def _fold_batch_norms(graph: fx.Graph, captured: Capture, copies: dict[str, fx.Node]) -> None:
    for unit in captured.quant_plan.units:
        if unit.batch_norm is None or unit.batch_norm_node is None:
            continue
        conv, norm = copies[unit.node], copies[unit.batch_norm_node]
        with graph.inserting_before(conv):
            module = graph.create_node("get_attr", unit.batch_norm)
        conv.args = (*conv.args, module)
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
        copies[unit.batch_norm_node] = conv


def _quantize(graph: fx.Graph, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        quantized = graph.call_module(target, (node,))
    for user in users:
        user.replace_input_with(node, quantized)


def _restore_dropout(graph: fx.Graph, copies: dict[str, fx.Node], model: nn.Module) -> None:
    for name, node in list(copies.items()):
        if node.op == "call_function" and node.target is F.dropout:
            key = name
            while hasattr(model, key):
                key += "_"
            dropout = nn.Dropout(argument(node, 1, "p", 0.5))
            model.add_module(key, dropout.train(model.training))
            with graph.inserting_after(node):
                module = graph.call_module(key, (node.args[0],))
            node.replace_all_uses_with(module)
            graph.erase_node(node)
            copies[name] = module
