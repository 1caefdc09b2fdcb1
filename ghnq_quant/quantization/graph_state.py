"""A traced graph as plain data, so that models are saved without code.

Loaded data becomes a graph again, from which torch.fx generates source code. So everything that would
enter the source verbatim is checked first: no text from a file is ever executed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from types import EllipsisType, NoneType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch.fx.node import map_arg

from ghnq_quant.errors import GhnqError

#: Types of constants whose ``repr`` is safe to write into source.
_CONSTANTS = (
    *(NoneType, EllipsisType, bool, int, float, complex, str, range),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
#: What appears between quotes in the source: a part of a module's name.
_QUOTED = re.compile(r'[^"\\\x00-\x1f]+')


@dataclass(frozen=True)
class Result:
    """The result of the node with this name, as an argument of another node."""

    node: str


#: Name, operation, target, arguments and keyword arguments.
NodeState = tuple[str, str, Any, Any, Any]


def graph_state(graph: fx.Graph) -> list[NodeState]:
    """The nodes of a graph, in order, without their ``meta`` and type annotations."""
    return [
        (n.name, n.op, _saved(n.target), _with_names(n.args), _with_names(n.kwargs))
        for n in graph.nodes
    ]


def graph_from_state(state: list[NodeState]) -> fx.Graph:
    """Rebuild the graph.

    Raises:
        GhnqError: an invalid name, or an argument of a type that no traced graph holds.

    Example:
        >>> graph = fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU())).graph
        >>> [node.name for node in graph_from_state(graph_state(graph)).nodes]
        ['input_1', '_0', 'output']
    """
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs in state:
        _check(name.isidentifier() and all(map(str.isidentifier, kwargs)), name)
        target = _loaded(op, target)
        args, kwargs = _argument(args, nodes), _argument(kwargs, nodes)
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
    graph.lint()
    return graph


def _with_names(arguments: Any) -> Any:
    return map_arg(arguments, lambda node: Result(node.name))  # type: ignore[arg-type,return-value]


def _saved(target: Any) -> Any:
    """A picklable form: pickle finds functions by their module, except those that
    ``torch.nn.functional`` creates inside another function."""
    name = getattr(target, "__name__", None)
    return name if name and getattr(F, name, None) is target else target


def _loaded(op: str, target: Any) -> Any:
    if op == "call_function":
        return getattr(F, target) if isinstance(target, str) else target
    names = target.split(".") if op in ("get_attr", "call_module") else []
    plain = target.lstrip("*") if op == "placeholder" else target
    _check(all(map(_QUOTED.fullmatch, names)) if names else plain.isidentifier(), target)
    return target


def _argument(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, Result):
        return nodes[value.node]
    if isinstance(value, dict):
        return {_constant(key): _argument(v, nodes) for key, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_argument(v, nodes) for v in (value.start, value.stop, value.step)))
    if isinstance(value, (tuple, list)):
        items = [_argument(v, nodes) for v in value]
        named = hasattr(value, "_fields")
        return type(value)(*items) if named else items if isinstance(value, list) else tuple(items)
    return _constant(value)


def _constant(value: Any) -> Any:
    _check(type(value) in _CONSTANTS or isinstance(value, Enum), type(value).__name__)
    return value


def _check(fine: bool, what: str) -> None:
    if not fine:
        raise GhnqError(f"a saved graph holds {what!r}, which no traced network has: not loaded")
