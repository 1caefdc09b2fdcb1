"""Heads that enlarge small feature maps to a fixed size, adapted to the size they actually get."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant.capture import Capture, Kind, capture
from ghnq_quant.capture.adapters import adapters_in_use
from ghnq_quant.capture.operations import OPERATIONS, find_operation
from ghnq_quant.stem.resolution import image_shape

#: What may stand between a pooling and the linear layer that reads its elements in order.
_KEEP_ORDER = [OPERATIONS[name] for name in ("flatten", "reshape", "view", "dropout", "identity")]


@runtime_checkable
class HeadAdapter(Protocol):
    """What :func:`ghnq_quant.adapt_stem` needs from an adapter that knows heads of fixed size."""

    def fit_head(self, module: nn.Module, side: int) -> None:
        """Make a head that enlarges feature maps of ``side`` by ``side`` read them directly.

        ``module`` is any of the network's modules that read such maps. If it is such a head, it is
        changed in place to compute the same as before; otherwise it is left alone.
        """


def enlarged_input_folded(weight: Tensor, side: int) -> Tensor:
    """The weight that computes from small feature maps what ``weight`` computes from enlarged ones.

    Enlarging by adaptive average pooling is linear, so the weight can absorb it.

    Args:
        weight: (C_out, C_in, S, S), of a layer that reads S×S feature maps as a whole.
        side: side of the feature maps before they are enlarged to S×S.

    Returns:
        (C_out, C_in, side, side)

    Example:
        >>> enlarged_input_folded(torch.ones(4, 8, 7, 7), 1)[0, 0]
        tensor([[49.]])
    """
    size = weight.shape[-1]
    enlarge = F.adaptive_avg_pool1d(torch.eye(side, dtype=weight.dtype, device=weight.device), size)
    return torch.einsum("ochw,ih,jw->ocij", weight, enlarge, enlarge)


def fit_heads(model: nn.Module, image_size: int) -> None:
    """Make layers that read feature maps enlarged to a fixed size read them directly."""
    captured = capture(model)
    shapes = captured.shapes(image_shape(captured, image_size))
    for node, kind in captured.kinds.items():
        if kind is Kind.GLOBAL_AVG_POOL and node.op == "call_module":
            _fit_linear(model, captured, node, shapes[node.all_input_nodes[0].name])
    adapters = [a for a in adapters_in_use() if isinstance(a, HeadAdapter)]
    for name, side in _entry_sides(captured, shapes).items():
        for adapter in adapters:
            adapter.fit_head(model.get_submodule(name), side)


def _fit_linear(model: nn.Module, captured: Capture, pool: fx.Node, shape: tuple[int, ...]) -> None:
    channels, side = shape[1], shape[2]
    sides: Any = captured.modules[str(pool.target)].output_size
    size = sides if isinstance(sides, int) else sides[0]
    if size is None or sides not in (size, (size, size)) or size <= side or shape[3] != side:
        return
    name = _linear_behind(captured, pool)
    if name is None or captured.modules[name].in_features != channels * size**2:
        return
    linear = model.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    weight = linear.weight.detach().unflatten(1, (channels, size, size))
    folded = enlarged_input_folded(weight, side).flatten(1)
    linear.weight = nn.Parameter(folded, linear.weight.requires_grad)
    linear.in_features = folded.shape[1]
    model.set_submodule(str(pool.target), nn.AdaptiveAvgPool2d(side))


def _linear_behind(captured: Capture, pool: fx.Node) -> str | None:
    """The linear layer that alone reads a pooling's flattened output."""
    node = pool
    while len(node.users) == 1:
        node = next(iter(node.users))
        if captured.kinds[node] is Kind.LINEAR:
            return str(node.target)
        if find_operation(node, captured.modules) not in _KEEP_ORDER:
            return None
    return None


def _entry_sides(captured: Capture, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Side of the feature maps that each module with operations of its own reads."""
    sides: dict[str, int] = {}
    for node in captured.graph.nodes:
        source = next((shapes[n.name] for n in node.all_input_nodes if n.name in shapes), ())
        if len(source) == 4:
            for name in node.meta.get("nn_module_stack", {}):
                sides.setdefault(name.partition("@")[0], source[2])  # "@1" marks a second call
    sides.pop("", None)
    return sides
