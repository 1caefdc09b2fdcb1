"""Writes a quantization plan into a traced graph."""

from __future__ import annotations

import torch.nn.functional as F
from torch import fx, nn

from ghnq_quant.capture import Capture
from ghnq_quant.capture.checks import HOOKS
from ghnq_quant.capture.operations import argument
from ghnq_quant.errors import CaptureError

#: Name of the container of all activation quantizers in a quantized model.
QUANTIZERS = "activation_quantizers"


def adopt(module: nn.Module, other: nn.Module) -> None:
    """Give ``module`` the mode, and the same children, parameters, buffers and hooks, of ``other``."""
    adopt_hooks(module, other)
    module._modules.update(other._modules)
    module._parameters.update(other._parameters)
    module._buffers.update(other._buffers)
    module._non_persistent_buffers_set.update(other._non_persistent_buffers_set)
    module.training = other.training


def adopt_hooks(module: nn.Module, other: nn.Module) -> None:
    """Give ``module`` the call hooks of ``other`` too."""
    for hooks in HOOKS:
        getattr(module, hooks).update(getattr(other, hooks))
    module._is_full_backward_hook = other._is_full_backward_hook


def with_quantizers(root: nn.Module, quantizers: dict[str, nn.Module]) -> nn.Module:
    """A plain module with everything in ``root``, in order, followed by the quantizers.

    Raises:
        CaptureError: the network already has a part of that name.
    """
    if hasattr(root, QUANTIZERS):
        raise CaptureError(f"{QUANTIZERS!r} of the network: quantized models need that name")
    modules = nn.Module()
    adopt(modules, root)
    modules.add_module(QUANTIZERS, nn.ModuleDict(quantizers))
    return modules


def rewrite(captured: Capture, modules: nn.Module, *, fold: bool = True) -> fx.Graph:
    """Copy the graph, quantize its points, and remove batch norms that are folded into
    convolutions.

    Args:
        modules: from :func:`with_quantizers`; the graph calls the quantizers it holds. A functional
            dropout becomes a module in it, and so does a mode passed to another function, so that
            they follow train and eval as the traced code did.
        fold: whether convolutions fold batch norms.
    """
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(captured.graph, mapping)
    graph.output(output)
    copies = {old.name: new for old, new in mapping.items()}
    _simplify(graph)
    if fold:
        _leave_batch_norms_out(graph, captured, copies)
    _follow_mode(graph, captured, copies, modules)
    quantizers = getattr(modules, QUANTIZERS)
    for point in captured.quant_plan.points:
        if point.key in quantizers:
            _quantize(graph, copies[point.node], f"{QUANTIZERS}.{point.key}")
    graph.lint()
    return graph


def _simplify(graph: fx.Graph) -> None:
    """Drop type annotations, which may be names of another module, and the tracer's notes, and turn
    each ``view`` into a ``reshape``, because on CPU the layers pass on channels-last tensors."""
    for node in graph.nodes:
        node.type, node.meta = None, {}
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"


def _leave_batch_norms_out(graph: fx.Graph, captured: Capture, copies: dict[str, fx.Node]) -> None:
    for unit in captured.quant_plan.units:
        if unit.batch_norm is None or unit.batch_norm_node is None:
            continue
        conv, norm = copies[unit.node], copies[unit.batch_norm_node]
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)
        copies[unit.batch_norm_node] = conv


def _quantize(graph: fx.Graph, node: fx.Node, target: str) -> None:
    users = list(node.users)
    with graph.inserting_after(node):
        quantized = graph.call_module(target, (node,))
    for user in users:
        user.replace_input_with(node, quantized)


def _follow_mode(
    graph: fx.Graph, captured: Capture, copies: dict[str, fx.Node], modules: nn.Module
) -> None:
    """Make arguments that are True only in training follow the mode."""
    for name, key in captured.mode_arguments:
        node = copies[name]
        if node.target is F.dropout:
            dropout = nn.Dropout(argument(node, 1, "p", 0.5))
            target = _add_module(modules, name, dropout)
            with graph.inserting_after(node):
                module = graph.call_module(target, (node.args[0],))
            node.replace_all_uses_with(module)
            graph.erase_node(node)
            copies[name] = module
            continue
        with graph.inserting_before(node):
            mode = graph.call_module(_add_module(modules, "training_mode", TrainingMode()))
        if isinstance(key, str):
            node.update_kwarg(key, mode)
        else:
            node.update_arg(key, mode)


def _add_module(modules: nn.Module, name: str, module: nn.Module) -> str:
    """Add under ``name`` or, if that attribute exists, under a similar one."""
    while hasattr(modules, name):
        name += "_"
    modules.add_module(name, module.train(modules.training))
    return name


class TrainingMode(nn.Module):
    """Returns its own mode, for functions that take the mode as an argument."""

    def forward(self) -> bool:
        return self.training
