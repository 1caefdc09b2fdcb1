"""Which convolutions fold which batch norms, where activations are quantized: one plan for all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from ghnq_quant.capture.operations import Kind
from ghnq_quant.errors import CaptureError

#: Operations whose result is quantized although they belong to no unit.
_QUANTIZED = {
    Kind.ADD,
    Kind.MULTIPLY,
    Kind.AVG_POOL,
    Kind.GLOBAL_AVG_POOL,
    Kind.SPATIAL_MEAN,
}


@dataclass(frozen=True)
class Unit:
    """A conv or linear layer, its batch norm, and the activation function that alone consumes it.

    Attributes:
        name: of the conv or linear module.
        node: of its call in the graph.
        batch_norm: name of the folded batch-norm module, None where there is none.
        batch_norm_node: of the batch norm's call.
        output: node whose value is the unit's output.
    """

    name: str
    node: str
    batch_norm: str | None
    batch_norm_node: str | None
    output: str


@dataclass(frozen=True)
class QuantPoint:
    """An activation tensor that is quantized: the value of ``node``, under a name for people."""

    name: str
    node: str


@dataclass(frozen=True)
class QuantPlan:
    """What every backend executes.

    Attributes:
        units: in the order of execution.
        points: the quantized activations: the input, the units' outputs, and the results of
            additions, multiplications, average poolings and batch norms that no convolution folds;
            never the logits.
    """

    units: tuple[Unit, ...]
    points: tuple[QuantPoint, ...]


def build_quant_plan(
    graph: fx.Graph, kinds: dict[fx.Node, Kind], modules: dict[str, nn.Module]
) -> QuantPlan:
    """Derive the plan of design rules «Where» and «Batch norm» from a traced graph.

    Raises:
        CaptureError: a conv, linear or batch-norm module is called more than once, so that one set
            of parameters would need several quantizers.
    """
    _check_called_once(kinds)
    units = [
        _unit(node, kinds, modules)
        for node, kind in kinds.items()
        if kind in (Kind.CONV, Kind.LINEAR)
    ]
    logits = _logits(graph, kinds)
    points: dict[str, QuantPoint] = {}
    outputs = {unit.output: unit.name for unit in units}
    folded = {unit.batch_norm_node for unit in units}
    for node, kind in kinds.items():
        if kind is Kind.INPUT:
            points[node.name] = QuantPoint(node.name, node.name)
        elif node.name in outputs:
            points[node.name] = QuantPoint(outputs[node.name], node.name)
        elif kind in _QUANTIZED:
            points[node.name] = QuantPoint(_scoped_name(node, kind), node.name)
        elif kind is Kind.BATCH_NORM and node.name not in folded:
            end = _sole_activation(node, kinds) or node
            points[end.name] = QuantPoint(str(node.target), end.name)
    order = [n.name for n in kinds if n.name in points and n.name not in logits]
    return QuantPlan(tuple(units), _distinct([points[name] for name in order]))


def _unit(node: fx.Node, kinds: dict[fx.Node, Kind], modules: dict[str, nn.Module]) -> Unit:
    end, norm = node, _sole_user(node)
    if (
        norm is not None
        and kinds[node] is Kind.CONV
        and kinds[norm] is Kind.BATCH_NORM
        and isinstance(modules[str(norm.target)], nn.BatchNorm2d)
    ):
        end = norm
    else:
        norm = None
    end = _sole_activation(end, kinds) or end
    return Unit(
        name=str(node.target),
        node=node.name,
        batch_norm=str(norm.target) if norm is not None else None,
        batch_norm_node=norm.name if norm is not None else None,
        output=end.name,
    )


def _sole_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _sole_activation(node: fx.Node, kinds: dict[fx.Node, Kind]) -> fx.Node | None:
    user = _sole_user(node)
    return user if user is not None and kinds[user] is Kind.ACTIVATION else None


def _logits(graph: fx.Graph, kinds: dict[fx.Node, Kind]) -> set[str]:
    """Names of the nodes whose value is the network's output, be it reshaped."""
    names: set[str] = set()
    pending = [n for node in graph.nodes if node.op == "output" for n in node.all_input_nodes]
    while pending:
        node = pending.pop()
        names.add(node.name)
        if kinds[node] is Kind.RESHAPE:
            pending.extend(n for n in node.all_input_nodes if kinds[n] is not Kind.NOT_A_TENSOR)
    return names


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
    scope = next(reversed(node.meta.get("nn_module_stack", {})), "")
    return f"{scope}.{kind.value}" if scope else kind.value


def _distinct(points: list[QuantPoint]) -> tuple[QuantPoint, ...]:
    seen: dict[str, int] = {}
    named = []
    for point in points:
        count = seen[point.name] = seen.get(point.name, 0) + 1
        named.append(point if count == 1 else QuantPoint(f"{point.name}_{count - 1}", point.node))
    return tuple(named)
