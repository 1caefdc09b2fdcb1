"""The graph that the hypernetwork reads: contraction, nodes, classifier, and distances."""

from __future__ import annotations

import naive_ghn
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from three_convolutions import Forward, Net
from torch import Tensor, nn

from ghnq_quant.capture import ArchGraph, Node, capture


def named_edges(graph: ArchGraph) -> set[str]:
    """«from > to» for each edge; nodes are named by module, or by primitive."""
    names = [
        (n.parameters[0].rpartition(".")[0] if n.parameters else n.primitive) for n in graph.nodes
    ]
    return {f"{names[u]} > {names[v]}" for u, v in graph.edges.tolist()}


CHAIN = "input > a, a > b"


RESIDUAL = "input > a, a > b, a > {0}, b > {0}, {0} > c"


def shuffled(n: Net, x: Tensor) -> Tensor:
    x = n.a(x)
    kept, changed = x.chunk(2, dim=1)
    x = torch.cat((kept, n.narrow(changed)), dim=1)
    batch, channels, height, width = x.size()
    x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
    return n.b(x.view(batch, -1, height, width))


def inplace_sum(n: Net, x: Tensor) -> Tensor:
    x = n.a(x)
    y = n.b(x)
    y += x
    return n.c(y)


CONTRACTION: dict[str, tuple[Forward, str]] = {
    "chain": (lambda n, x: n.b(n.a(x)), CHAIN),
    "F.relu": (lambda n, x: n.b(F.relu(n.a(x))), CHAIN),
    "torch.relu_": (lambda n, x: n.b(torch.relu_(n.a(x))), CHAIN),
    "method clamp": (lambda n, x: n.b(n.a(x).clamp(0, 6)), CHAIN),
    "shared activation": (lambda n, x: n.act(n.b(n.act(n.a(x)))), CHAIN),
    "x + x": (lambda n, x: n.b((y := n.a(x)) + y), CHAIN),
    "plus a constant": (lambda n, x: n.b(1 + n.a(x) * 2), CHAIN),
    "plus a parameter": (lambda n, x: n.b(n.a(x) + n.c.weight.mean()), CHAIN),
    "cat of one branch": (lambda n, x: n.c(torch.cat((n.a(x),), 1)), "input > a, a > c"),
    "cat of halves": (lambda n, x: n.b(torch.cat(n.a(x).split(2, 1)[::-1], 1)), CHAIN),
    "mean drops": (lambda n, x: n.b(n.a(x).mean((2, 3))[:, :, None, None]), CHAIN),
    "mean of channels": (
        lambda n, x: n.b(n.a(x).mean(1, keepdim=True).expand(-1, 4, -1, -1)),
        CHAIN,
    ),
    "mean of all": (lambda n, x: n.b(n.a(x) / n.a.weight.mean()), CHAIN),
    "dropout": (lambda n, x: n.b(F.dropout(n.a(x), 0.5, n.training)), CHAIN),
    "reshape": (
        lambda n, x: n.b((y := n.a(x)).flatten(1).view(y.size(0), 4, y.shape[2], y.shape[3] // 1)),
        CHAIN,
    ),
    "zeros of a size": (
        lambda n, x: n.b((y := n.a(x)) + torch.zeros(y.shape, device=y.device, dtype=y.dtype)),
        CHAIN,
    ),
    "unused branch": (lambda n, x: (n.c(y := n.a(x)), n.b(y))[1], CHAIN),
    "+": (lambda n, x: n.c((y := n.a(x)) + n.b(y)), RESIDUAL.format("sum")),
    "-": (lambda n, x: n.c((y := n.a(x)) - n.b(y)), RESIDUAL.format("sum")),
    "+=": (inplace_sum, RESIDUAL.format("sum")),
    "torch.add": (
        lambda n, x: n.c(torch.add(y := n.a(x), n.b(y), alpha=2)),
        RESIDUAL.format("sum"),
    ),
    "add_": (lambda n, x: n.c(n.b(y := n.a(x)).add_(y)), RESIDUAL.format("sum")),
    "torch.cat": (
        lambda n, x: n.c(torch.cat([y := n.a(x), n.b(y)], 1)[:, ::2]),
        RESIDUAL.format("concat"),
    ),
    "gate": (lambda n, x: n.c((y := n.a(x)) * n.b(y).sigmoid()), RESIDUAL.format("cse")),
    "three": (
        lambda n, x: torch.cat((y := n.a(x), z := n.b(y), n.c(z)), 1),
        "input > a, a > b, b > c, a > concat, b > concat, c > concat",
    ),
    "two sums": (
        lambda n, x: (y := n.a(x)) + n.b(y) + n.c(y),
        "input > a, a > b, a > c, a > sum, b > sum, c > sum, sum > sum",
    ),
    "shuffle": (shuffled, "input > a, a > narrow, a > concat, narrow > concat, concat > b"),
}


@pytest.mark.parametrize("name", CONTRACTION)
def test_contraction(name: str) -> None:
    forward, edges = CONTRACTION[name]
    graph = capture(Net(forward, narrow=nn.Conv2d(2, 2, 1, bias=False))).arch_graph
    assert named_edges(graph) == set(edges.split(", "))


POOLING: dict[str, tuple[Forward, str, tuple[int, ...] | None]] = {
    "module": (lambda n, x: n.max(x), "max_pool", (1, 1, 2, 3)),
    "average module": (lambda n, x: n.avg(x), "avg_pool", (1, 1, 2, 2)),
    "F.max_pool2d": (lambda n, x: F.max_pool2d(x, kernel_size=3), "max_pool", (1, 1, 3, 3)),
    "F.avg_pool2d": (lambda n, x: F.avg_pool2d(x, (1, 4)), "avg_pool", (1, 1, 1, 4)),
    "of the image's size": (lambda n, x: F.avg_pool2d(x, x.size()[2:]), "avg_pool", (1, 1, 3, 3)),
    "adaptive module": (lambda n, x: n.adaptive(x), "glob_avg", None),
    "F.adaptive_avg_pool2d": (lambda n, x: F.adaptive_avg_pool2d(x, 1), "glob_avg", None),
    "mean that keeps": (lambda n, x: x.mean([2, 3], True), "glob_avg", None),
    "mean from behind": (lambda n, x: x.mean(dim=(-1, -2), keepdim=True), "glob_avg", None),
    "torch.mean": (lambda n, x: torch.mean(x, (2, 3), keepdim=True), "glob_avg", None),
}


@pytest.mark.parametrize("name", POOLING)
def test_pooling(name: str) -> None:
    forward, primitive, shape = POOLING[name]
    graph = capture(
        Net(
            lambda n, x: n.b(forward(n, n.a(x))),
            max=nn.MaxPool2d((2, 3)),
            avg=nn.AvgPool2d(2),
            adaptive=nn.AdaptiveAvgPool2d((2, 2)),
        )
    ).arch_graph
    assert graph.nodes[2] == Node(primitive, shape)
    assert named_edges(graph) == {"input > a", f"a > {primitive}", f"{primitive} > b"}


PRIMITIVES: dict[str, tuple[nn.Module, list[Node]]] = {
    "conv": (nn.Conv2d(4, 6, (1, 3), bias=False), [Node("conv", (6, 4, 1, 3), ("m.weight",))]),
    "dilated": (
        nn.Conv2d(4, 4, 3, dilation=2, bias=False),
        [Node("conv", (4, 4, 3, 3), ("m.weight",))],
    ),
    "grouped": (
        nn.Conv2d(4, 4, 3, groups=2, bias=False),
        [Node("sep_conv", (4, 2, 3, 3), ("m.weight",))],
    ),
    "dilated in one direction": (
        nn.Conv2d(4, 4, 3, groups=4, dilation=(1, 2), bias=False),
        [Node("sep_conv", (4, 1, 3, 3), ("m.weight",))],
    ),
    "grouped and dilated": (
        nn.Conv2d(4, 4, 3, groups=4, dilation=2),
        [Node("dil_conv", (4, 1, 3, 3), ("m.weight",)), Node("bias", (4,), ("m.bias",))],
    ),
    "linear": (
        nn.Linear(4, 5),
        [Node("conv", (5, 4), ("m.weight",)), Node("bias", (5,), ("m.bias",))],
    ),
    "batch norm": (nn.BatchNorm2d(4), [Node("bn", (4,), ("m.weight", "m.bias"))]),
    "layer norm": (nn.LayerNorm(4), [Node("ln", (4,), ("m.weight", "m.bias"))]),
    "layer norm without bias": (nn.LayerNorm(4, bias=False), [Node("ln", (4,), ("m.weight",))]),
    "group norm": (nn.GroupNorm(2, 4), [Node("ln", (4,), ("m.weight", "m.bias"))]),
    "instance norm": (
        nn.InstanceNorm2d(4, affine=True),
        [Node("ln", (4,), ("m.weight", "m.bias"))],
    ),
    "norm without parameters": (nn.InstanceNorm2d(4), []),
    "norm of a whole image": (nn.LayerNorm([4, 8, 8]), []),
    "activation with a parameter": (nn.PReLU(4), []),
}


@pytest.mark.parametrize("name", PRIMITIVES)
def test_primitives(name: str) -> None:
    module, nodes = PRIMITIVES[name]
    graph = capture(Net(lambda n, x: n.m(n.a(x)), m=module)).arch_graph
    assert list(graph.nodes[2:]) == nodes
    assert graph.edges.tolist() == [[v, v + 1] for v in range(len(graph) - 1)]


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        ([nn.Flatten(), nn.Linear(4, 10)], ("2.weight", "2.bias")),
        ([nn.Flatten(), nn.Linear(4, 10, bias=False)], ("2.weight", None)),
        ([nn.Flatten(), nn.Linear(4, 10), nn.Softmax(1)], ("2.weight", "2.bias")),
        ([nn.Conv2d(4, 10, 1)], (None, None)),
        ([nn.Flatten(), nn.Linear(4, 10), nn.BatchNorm1d(10)], (None, None)),
    ],
)
def test_classification_layer(tail: list[nn.Module], found: tuple[str | None, ...]) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), *tail)).arch_graph
    positions = (graph.classifier_weight, graph.classifier_bias)
    assert tuple(None if p is None else graph.nodes[p].parameters[0] for p in positions) == found


def test_several_stems_and_classifiers() -> None:
    captured = capture(Net(lambda n, x: (n.a(x) + n.b(n.act(n.d(x)))).relu(), d=nn.Conv2d(3, 4, 3)))
    assert (captured.stem, captured.classifier) == (("a", "d"), ("a", "b"))


@st.composite
def graphs(draw: st.DrawFn) -> ArchGraph:
    n = draw(st.integers(1, 12))
    pairs = [(u, v) for v in range(n) for u in range(v)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return ArchGraph((Node("sum"),) * n, np.array(edges, np.int64).reshape(-1, 2))


@settings(max_examples=50)
@given(graphs(), st.integers(1, 12))
def test_shortest_paths_equal_breadth_first_search(graph: ArchGraph, limit: int) -> None:
    paths = graph.shortest_paths(limit)
    pairs = list(zip(paths.target.tolist(), paths.source.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    found = {(u, v): s for (v, u), s in zip(pairs, paths.length.tolist(), strict=True)}
    assert found == naive_ghn.distances(graph, limit)


@settings(max_examples=50)
@given(graphs())
def test_levels_are_longest_paths(graph: ArchGraph) -> None:
    def longest(v: int) -> int:
        return max((1 + longest(u) for u, w in graph.edges.tolist() if w == v), default=0)

    assert graph.levels.tolist() == [longest(v) for v in range(len(graph))]
