"""Differences of a network between training and eval, found by comparing its two graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from ghnq_quant.capture.recorder import Recorder

#: A node of the eval graph and the argument, by position or name, that is False in eval and True in
#: training.
ModeArgument = tuple[str, int | str]
_CONSTANT = "_tensor_constant"


@dataclass
class ModeDifference:
    """How a network's training differs from its eval.

    Attributes:
        arguments: the arguments that follow the mode.
        owners: names of the modules whose code differs in other ways.
        more_outputs: whether training returns more values after the one that eval returns.
    """

    arguments: list[ModeArgument] = field(default_factory=list)
    owners: set[str] = field(default_factory=set)
    more_outputs: bool = False


def compare_modes(evaluated: Recorder, trained: Recorder) -> ModeDifference:
    """Compare the graphs of the same network recorded in eval and in training."""
    in_eval, in_training = list(evaluated.graph.nodes), list(trained.graph.nodes)
    difference = _compare(evaluated, in_eval, trained, in_training)
    first = _first_of_several(in_eval[-1], in_training[-1])
    if difference.owners and first is not None:
        needed = _needed(in_training, first)
        shorter = _compare(evaluated, _needed(in_eval, in_eval[-1].args[0]), trained, needed)
        if not shorter.owners:
            shorter.more_outputs = True
            return shorter
    return difference


def _compare(
    evaluated: Recorder, in_eval: list[fx.Node], trained: Recorder, in_training: list[fx.Node]
) -> ModeDifference:
    operations = _by_owner(evaluated, in_eval), _by_owner(trained, in_training)
    names = operations[0].keys() | operations[1].keys()
    difference = ModeDifference(
        owners={n for n in names if operations[0].get(n) != operations[1].get(n)}
    )
    if difference.owners:
        return difference
    place = {n: ("node", i) for nodes in (in_eval, in_training) for i, n in enumerate(nodes)}
    for before, after in zip(in_eval, in_training, strict=True):
        if not _same_tensor(evaluated, before, trained, after):
            difference.owners.add(evaluated.owners[before])
        for key, value in _arguments(before):
            other = dict(_arguments(after)).get(key)
            if value is False and other is True:
                difference.arguments.append((before.name, key))
            elif _placed(value, place) != _placed(other, place):
                difference.owners.add(evaluated.owners[before])
    return difference


def _by_owner(recorder: Recorder, nodes: Iterable[fx.Node]) -> dict[str, list[Any]]:
    """The operations of each module's own code, with the number and names of their arguments."""
    operations: dict[str, list[Any]] = {}
    for node in nodes:
        target = _CONSTANT if _CONSTANT in str(node.target) else node.target
        arguments = len(node.args), sorted(node.kwargs)
        operations.setdefault(recorder.owners[node], []).append((node.op, target, arguments))
    return operations


def _arguments(node: fx.Node) -> list[tuple[int | str, Any]]:
    return [*enumerate(node.args), *node.kwargs.items()]


def _placed(value: Any, place: dict[fx.Node, tuple[str, int]]) -> Any:
    return map_arg(value, lambda node: place.get(node))


def _same_tensor(evaluated: Recorder, before: fx.Node, trained: Recorder, after: fx.Node) -> bool:
    if before.op != "get_attr" or _CONSTANT not in str(before.target):
        return True
    a: Tensor = getattr(evaluated.root, str(before.target))
    b: Tensor = getattr(trained.root, str(after.target))
    if a.is_meta or b.is_meta:
        return a.shape == b.shape
    return a.shape == b.shape and bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())


def _first_of_several(in_eval: fx.Node, in_training: fx.Node) -> fx.Node | None:
    """The first value that training returns, if it returns several and eval one."""
    one, several = in_eval.args[0], in_training.args[0]
    if isinstance(several, fx.Node) and isinstance(several.target, type):  # a named tuple
        several = several.args
    if not isinstance(one, fx.Node) or not isinstance(several, (tuple, list)) or not several:
        return None
    return several[0] if isinstance(several[0], fx.Node) else None


def _needed(nodes: list[fx.Node], result: Any) -> list[fx.Node]:
    """The nodes that ``result`` is computed from, and ``result`` itself."""
    needed = {result}
    for node in reversed(nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return [node for node in nodes if node in needed]
