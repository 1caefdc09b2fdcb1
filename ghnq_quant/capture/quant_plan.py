"""Which convolutions fold which batch norms and where activations are quantized, for all backends."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from torch import fx, nn

from ghnq_quant.capture.operations import OPERATIONS, WEIGHTED, Kind, find_operation
from ghnq_quant.capture.signs import never_negative
from ghnq_quant.errors import CaptureError


@dataclass(frozen=True)
class Unit:
    """A conv or linear layer, its batch norm, and the activation function that is its only consumer.

    Attributes:
        name: name of the conv or linear module.
        node: node of its call in the graph.
        batch_norm: name of the folded batch-norm module, None if there is none.
        batch_norm_node: node of the batch norm's call.
        output: node whose value is the unit's output.
        input: key of the quantizer on whose levels the unit's input lies; None if there is none, as
            after a concatenation.
    """

    name: str
    node: str
    batch_norm: str | None
    batch_norm_node: str | None
    output: str
    input: str | None = None


@dataclass(frozen=True)
class QuantPoint:
    """An activation tensor that is quantized: the value of ``node``.

    Attributes:
        name: unique, for people and for the patterns of a scheme.
        node: node in the graph.
        key: name of its quantizer in the model's ``activation_quantizers``.
        never_negative: whether the operations it comes from never give a negative value.
        concatenation: whether it is a concatenation, which only some schemes quantize.
        joined: whether one concatenation alone reads it, so that it needs no quantizer of its own where
            that is quantized.
    """

    name: str
    node: str
    key: str
    never_negative: bool = False
    concatenation: bool = False
    joined: bool = False


@dataclass(frozen=True)
class QuantPlan:
    """What every backend executes.

    Attributes:
        units: in order of execution.
        points: the quantized activations: the input, the units' outputs, and the results of
            additions, multiplications, average poolings and batch norms that are not folded into a
            convolution; never the logits, which only the caller reads. Also concatenations, whose
            quantizer depends on the scheme.
    """

    units: tuple[Unit, ...]
    points: tuple[QuantPoint, ...]


@dataclass(frozen=True)
class Places:
    """The plan as positions in a list of operations.

    Attributes:
        units: for each conv or linear layer its position, that of the batch norm it folds, and that
            of the operation whose result is the unit's output.
        quantized: position of each quantized result, in order, and the operation that it is named
            after.
        concatenations: positions of those that are not the logits.
    """

    units: tuple[tuple[int, int | None, int], ...]
    quantized: dict[int, int]
    concatenations: tuple[int, ...] = ()


def find_places(
    kinds: Sequence[Kind], inputs: Sequence[Sequence[int]], can_fold: Sequence[bool]
) -> Places:
    """The rules for units and quantized activations, for a network in any representation.

    Args:
        kinds: what each operation does, in order of execution.
        inputs: positions of the operations whose results each operation reads.
        can_fold: whether each is a batch norm that a preceding convolution can fold.

    Example:
        >>> kinds = [Kind.INPUT, Kind.CONV, Kind.BATCH_NORM, Kind.ACTIVATION, Kind.OUTPUT]
        >>> find_places(kinds, [[], [0], [1], [2], [3]], [False, False, True, False, False])
        Places(units=((1, 2, 3),), quantized={0: 0}, concatenations=())
    """
    users: list[list[int]] = [[] for _ in kinds]
    for position, sources in enumerate(inputs):
        for source in dict.fromkeys(sources):
            users[source].append(position)

    def with_activation(position: int) -> int:
        """The activation function that is a result's only consumer, else the result's own position."""
        alone = users[position][0] if len(users[position]) == 1 else position
        return alone if kinds[alone] is Kind.ACTIVATION else position

    units = []
    quantized: dict[int, int] = {}
    for position, kind in enumerate(kinds):
        if kind in WEIGHTED:
            norm = users[position][0] if len(users[position]) == 1 else None
            if norm is not None and not (kind is Kind.CONV and can_fold[norm]):
                norm = None
            output = with_activation(position if norm is None else norm)
            units.append((position, norm, output))
            quantized[output] = position
        elif kind.quantized:
            quantized.setdefault(position, position)
    folded = {norm for _, norm, _ in units}
    for position, kind in enumerate(kinds):
        if kind is Kind.BATCH_NORM and position not in folded:
            quantized[with_activation(position)] = position
    logits = _logits(kinds, inputs)
    kept = {p: quantized[p] for p in sorted(quantized) if p not in logits}
    joins = (p for p, kind in enumerate(kinds) if kind is Kind.CONCAT and p not in logits)
    return Places(tuple(units), kept, tuple(joins))


def _logits(kinds: Sequence[Kind], inputs: Sequence[Sequence[int]]) -> set[int]:
    """The operations whose value is the network's output, possibly reshaped or after a softmax, and
    that nothing else reads."""
    found: set[int] = set()
    pending = [
        i for kind, own in zip(kinds, inputs, strict=True) if kind is Kind.OUTPUT for i in own
    ]
    while pending:
        position = pending.pop()
        found.add(position)
        if kinds[position] in (Kind.RESHAPE, Kind.SOFTMAX):
            pending += [i for i in inputs[position] if kinds[i] is not Kind.NOT_A_TENSOR]
    for position in reversed(range(len(kinds))):  # readers before what they read
        if position not in found and kinds[position] not in (Kind.OUTPUT, Kind.NOT_A_TENSOR):
            found.difference_update(inputs[position])
    return found


def build_quant_plan(
    graph: fx.Graph, kinds: dict[fx.Node, Kind], modules: dict[str, nn.Module]
) -> QuantPlan:
    """Derive the plan from a traced graph.

    Raises:
        CaptureError: a conv, linear or batch-norm module is called more than once, so one set of
            parameters would need several quantizers.
    """
    _check_called_once(kinds)
    nodes = list(graph.nodes)
    position = {node: i for i, node in enumerate(nodes)}
    places = find_places(
        [kinds[node] for node in nodes],
        [[position[n] for n in node.all_input_nodes] for node in nodes],
        [_is_batch_norm_2d(node, modules) for node in nodes],
    )
    layers = [nodes[layer] for layer, _, _ in places.units]
    signs = never_negative(graph, kinds, modules)
    joins = [nodes[place] for place in places.concatenations]
    taken = {str(n.target) for n in layers}
    sources = [nodes[named_after] for named_after in places.quantized.values()]
    names = _distinct([_scoped_name(n, kinds[n]) for n in sources], taken)
    # after the others, whose names are those in saved states
    names += _distinct([_scoped_name(n, kinds[n]) for n in joins], taken.union(names))
    where = [*(nodes[place] for place in places.quantized), *joins]
    found = {
        node: QuantPoint(
            *(name, node.name, key, node in signs, node in joins),
            joined=[user in joins for user in node.users] == [True],
        )
        for name, node, key in zip(names, where, _keys(names), strict=True)
    }
    points = tuple(found[node] for node in nodes if node in found)
    keys = {node: point.key for node, point in found.items()}
    units = tuple(
        Unit(
            name=str(nodes[layer].target),
            node=nodes[layer].name,
            batch_norm=None if norm is None else str(nodes[norm].target),
            batch_norm_node=None if norm is None else nodes[norm].name,
            output=nodes[output].name,
            input=keys.get(_source(nodes[layer], kinds, modules, keys)),
        )
        for layer, norm, output in places.units
    )
    return QuantPlan(units, points)


def _source(
    layer: fx.Node,
    kinds: dict[fx.Node, Kind],
    modules: dict[str, nn.Module],
    quantized: Container[fx.Node],
) -> fx.Node:
    """The quantized node on whose levels a layer's input lies, if there is one."""
    node = layer.all_input_nodes[0]
    while node not in quantized and (
        kinds[node] in (Kind.RESHAPE, Kind.MAX_POOL)
        or find_operation(node, modules) is OPERATIONS["relu"]
    ):
        node = node.all_input_nodes[0]
    return node


def _is_batch_norm_2d(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], nn.BatchNorm2d)


def _check_called_once(kinds: dict[fx.Node, Kind]) -> None:
    seen: set[str] = set()
    for node, kind in kinds.items():
        if kind in (Kind.CONV, Kind.LINEAR, Kind.BATCH_NORM):
            name = str(node.target)
            if name in seen:
                raise CaptureError(
                    f"module {name!r} is called more than once: a quantized layer has one "
                    "quantizer for its output; give each call a module of its own"
                )
            seen.add(name)


def _scoped_name(node: fx.Node, kind: Kind) -> str:
    if node.op == "call_module":
        return str(node.target)
    if kind is Kind.INPUT:
        return node.name
    scope = next(reversed(node.meta.get("nn_module_stack", {})), "")
    return f"{scope}.{kind.value}" if scope else kind.value


def _distinct(names: list[str], taken: set[str]) -> list[str]:
    """The names, numbered where they repeat; a number never makes one of ``taken``."""
    counts: dict[str, int] = {}
    used = taken | set(names)
    distinct = []
    for name in names:
        numbered, count = name, counts.get(name, 0)
        while count and numbered in used:
            numbered, count = f"{name}_{count}", count + 1
        counts[name] = max(count, 1)
        used.add(numbered)
        distinct.append(numbered)
    return distinct


def _keys(names: list[str]) -> list[str]:
    """Valid module names for a container: without dots, unique, and not an attribute's name."""
    container = nn.ModuleDict()
    keys: list[str] = []
    for name in names:
        key = name.replace(".", "_")
        while key in keys or hasattr(container, key):
            key += "_"
        keys.append(key)
    return keys
