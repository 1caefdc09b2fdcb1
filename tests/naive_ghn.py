"""GHN-2 written a second time, as its description reads: node by node, at full size, by autograd.

``predict`` is slow and plain on purpose; it shares no code with ``ghnq_quant.ghn``.
"""

from __future__ import annotations

import math
from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.capture import ArchGraph

PRIMITIVES = [
    *("max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat"),
    *("input", "bias", "bn", "ln", "pos_enc", "glob_avg"),
]
PRECISIONS = [2, 3, 4, 5, 6, 7, 8, 32]

Weights = dict[str, Tensor]


def predict(
    weights: Weights,
    graph: ArchGraph,
    *,
    virtual_edges: int,
    max_shape: tuple[int, int, int, int],
    num_classes: int,
    bits: tuple[int, int] = (32, 32),
    centred: bool,
) -> dict[str, Tensor]:
    """All parameters of one network by name."""
    h = []
    for node in graph.nodes:
        x = weights["embed.weight"][PRIMITIVES.index(node.primitive)]
        x = x + shape_embedding(weights, node.shape, num_classes, max_shape[2])
        if "precision.weight" in weights:
            x = x + weights["precision.weight"][PRECISIONS.index(bits[0])]
            x = x + weights["precision.weight"][len(PRECISIONS) + PRECISIONS.index(bits[1])]
        h.append(x)
    h = sweep(weights, h, distances(graph, virtual_edges))
    parameters: dict[str, Tensor] = {}
    for position, (node, x) in enumerate(zip(graph.nodes, h, strict=True)):
        if not node.parameters or node.parameters[0] in parameters:  # a layer's first call counts
            continue
        x = F.layer_norm(x, x.shape, weights["ln.weight"], weights["ln.bias"])
        if "precision_decoder.weight" in weights:
            table = weights["precision_decoder.weight"]
            row = table[PRECISIONS.index(bits[0])]
            row = row + table[len(PRECISIONS) + PRECISIONS.index(bits[1])]
            offset, matrix = row[: len(x)], row[len(x) :].view(len(x), len(x))
            x = x + offset + sum(value * line for value, line in zip(x, matrix, strict=True))
        shape = node.shape
        assert shape is not None
        if position in (graph.classifier_weight, graph.classifier_bias):
            if shape[0] == num_classes:
                parameters[node.parameters[0]] = class_layer(weights, x, shape, max_shape, centred)
        elif len(shape) > 1:
            w = kernel(full_weight(weights, x, max_shape), shape[2:], centred)
            parameters[node.parameters[0]] = normalized_weight(tiled(w, shape))
        else:
            rows = vector(weights, x)
            if node.primitive == "bias":
                parameters[node.parameters[0]] = torch.tanh(tiled(rows[1], shape) / 5)
            else:
                scale = 2 * torch.sigmoid(tiled(rows[0], shape) / 2)
                parameters |= zip(
                    node.parameters,
                    (scale, torch.tanh(tiled(rows[1], shape) / 5)),
                    strict=False,
                )
    return parameters


def channel_row(count: int, num_classes: int) -> int:
    values = {1, 3, num_classes, *range(8, 57, 8), *range(64, 4081, 16), *range(4096, 8193, 32)}
    return nearest_row(8 if count in (4, 5, 6, 7) else count, sorted(values))


def spatial_row(size: int, largest: int) -> int:
    values = {1, 3, 5, 7, 9, 11, 14, 16, *range(1, largest, 2)}
    return nearest_row(3 if size == 2 else size, sorted(values))


def nearest_row(value: int, values: list[int]) -> int:
    return min(range(len(values)), key=lambda row: (abs(values[row] - value), values[row]))


def shape_embedding(
    weights: Weights, shape: tuple[int, ...] | None, num_classes: int, largest: int
) -> Tensor:
    channel = weights["shape_enc.embed_channel.weight"]
    spatial = weights["shape_enc.embed_spatial.weight"]
    if shape is None:
        return torch.cat((channel[-1], channel[-1], spatial[-1], spatial[-1]))
    c_out, c_in, kh, kw = (*shape, 1, 1, 1)[:4]
    return torch.cat(
        (
            channel[channel_row(c_out, num_classes)],
            channel[channel_row(c_in, num_classes)],
            spatial[spatial_row(kh, largest)],
            spatial[spatial_row(kw, largest)],
        )
    )


def distances(graph: ArchGraph, limit: int) -> dict[tuple[int, int], int]:
    """Distances of all pairs (source, target) up to ``limit`` steps apart, by breadth-first search."""
    following: dict[int, list[int]] = {v: [] for v in range(len(graph.nodes))}
    for source, target in graph.edges.tolist():
        following[source].append(target)
    found = {}
    for start in following:
        steps, pending = {start: 0}, deque([start])
        while pending:
            node = pending.popleft()
            for target in following[node]:
                if target not in steps:
                    steps[target] = steps[node] + 1
                    pending.append(target)
        found |= {(start, v): s for v, s in steps.items() if 1 <= s <= limit}
    return found


def mlp(weights: Weights, name: str, x: Tensor) -> Tensor:
    x = F.relu(F.linear(x, weights[f"{name}.fc.0.weight"], weights[f"{name}.fc.0.bias"]))
    return F.relu(F.linear(x, weights[f"{name}.fc.2.weight"], weights[f"{name}.fc.2.bias"]))


def sweep(weights: Weights, h: list[Tensor], steps: dict[tuple[int, int], int]) -> list[Tensor]:
    h = list(h)
    forward = range(len(h))
    for order, reverse in ((forward, False), (reversed(forward), True)):
        for v in order:
            m = torch.zeros_like(h[v])
            for (source, target), length in steps.items():
                u, at = (target, source) if reverse else (source, target)
                if at == v:
                    m = m + mlp(weights, "gnn.mlp_ve", h[u]) / length
                    if length == 1:
                        m = m + mlp(weights, "gnn.mlp", h[u])
            (h[v],) = torch.gru_cell(
                m[None],
                h[v][None],
                weights["gnn.gru.weight_ih"],
                weights["gnn.gru.weight_hh"],
                weights["gnn.gru.bias_ih"],
                weights["gnn.gru.bias_hh"],
            )
    return h


def full_weight(weights: Weights, x: Tensor, max_shape: tuple[int, int, int, int]) -> Tensor:
    """The decoder's whole output, of shape ``max_shape``."""
    c_out, c_in, kh, kw = max_shape
    y = F.relu(F.linear(x, weights["decoder.fc.0.weight"], weights["decoder.fc.0.bias"]))
    y = y.view(1, -1, kh, kw)
    y = F.relu(F.conv2d(y, weights["decoder.conv.0.weight"], weights["decoder.conv.0.bias"]))
    y = F.conv2d(y, weights["decoder.conv.2.weight"], weights["decoder.conv.2.bias"])
    return y.view(c_out, c_in, kh, kw)


def kernel(w: Tensor, size: tuple[int, ...], centred: bool) -> Tensor:
    """The (..., kh, kw) part of a weight; without a size (linear layers), a 1×1 part without axes."""
    starts = [have // 2 - want // 2 for have, want in zip(w.shape[2:], size or (1, 1), strict=True)]
    top, left = starts if centred else (0, 0)
    if not size:
        return w[:, :, top, left]
    return w[:, :, top : top + size[0], left : left + size[1]]


def vector(weights: Weights, x: Tensor) -> Tensor:
    x = F.relu(F.linear(x, weights["decoder_1d.fc.0.weight"], weights["decoder_1d.fc.0.bias"]))
    x = F.linear(x, weights["decoder_1d.fc.2.weight"], weights["decoder_1d.fc.2.bias"])
    return x.view(2, -1)


def class_layer(
    weights: Weights,
    x: Tensor,
    shape: tuple[int, ...],
    max_shape: tuple[int, int, int, int],
    centred: bool,
) -> Tensor:
    if len(shape) == 1:
        row = F.relu(vector(weights, x)[1])
        b = F.linear(row, weights["bias_class.1.weight"], weights["bias_class.1.bias"])
        return torch.tanh(b / 5)
    w = kernel(full_weight(weights, x, max_shape), (), centred)
    head = weights["decoder.class_layer_predictor.1.weight"][:, :, 0, 0]
    w = head @ F.relu(w) + weights["decoder.class_layer_predictor.1.bias"][:, None]
    return normalized_weight(tiled(w, shape))


def tiled(w: Tensor, shape: tuple[int, ...]) -> Tensor:
    w = w[tuple(slice(size) for size in shape)]
    repeats = [-(-want // have) for want, have in zip(shape[:2], w.shape[:2], strict=True)]
    w = w.repeat(*repeats, *(1,) * (len(shape) - 2)) if len(shape) > 1 else w.repeat(*repeats)
    return w[tuple(slice(size) for size in shape)]


def normalized_weight(p: Tensor) -> Tensor:
    fan_in = p[0].numel()
    beta = 1 if p.dim() == 4 and (p.shape[1] == 1 or p.shape[2] < p.shape[3]) else 2
    return p * math.sqrt(beta / fan_in)
