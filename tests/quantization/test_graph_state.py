"""A saved graph loads unchanged, and none of its text is executed."""

from __future__ import annotations

import operator
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ghnq_quant import GhnqError
from ghnq_quant.quantization.graph_state import graph_from_state, graph_state


class Network(nn.Module):
    """Every kind of node and argument."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"conv 1-x": nn.Conv2d(3, 4, 1)})
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, x: Tensor, scale: float = 1.5) -> tuple[Tensor, dict[str, Tensor]]:
        y = F.max_pool2d(self.layers["conv 1-x"](x), 2) * self.gain * scale
        y = torch.cat([y, F.relu(y, inplace=False)], 1)[:, ::2].to(torch.float64)
        return y.flatten(start_dim=1), {"shape": y.view(y.shape[0], -1)}


@pytest.fixture
def graph() -> fx.Graph:
    return fx.symbolic_trace(Network()).graph


def test_comes_back_through_a_pickle(graph: fx.Graph) -> None:
    network, x = Network(), torch.randn(2, 3, 4, 4)
    loaded = graph_from_state(pickle.loads(pickle.dumps(graph_state(graph), protocol=2)))
    assert [node.name for node in loaded.nodes] == [node.name for node in graph.nodes]
    y, others = fx.GraphModule(network, loaded)(x)
    expected, expected_others = network(x)
    assert torch.equal(y, expected)
    assert torch.equal(others["shape"], expected_others["shape"])


class Text:
    """An object whose text in the source would be code."""

    def __repr__(self) -> str:
        return CODE


CODE = "ran.append(1)"
ran: list[int] = []


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("placeholder", {"name": CODE}),
        ("placeholder", {"target": f"x={CODE}"}),
        ("placeholder", {"target": f"*x={CODE}"}),
        ("call_method", {"target": f"size() or {CODE} or x.size"}),
        ("call_module", {"target": f'layers.x") or {CODE} or getattr(self, "y'}),
        ("get_attr", {"target": f'x") or {CODE} or getattr(self, "y'}),
        ("call_function", {"kwargs": {f"a={CODE}, b": 1}}),
        ("call_function", {"args": (1, [Text()])}),
        ("call_function", {"args": ({"a": Text()}, 1)}),
        ("call_function", {"args": ({Text(): 1}, 1)}),
        ("call_function", {"args": (slice(Text()), 1)}),
        ("output", {"args": ((Text(),),)}),
    ],
)
def test_text_that_would_be_code_is_refused(
    graph: fx.Graph, op: str, change: dict[str, Any]
) -> None:
    fields = ("name", "op", "target", "args", "kwargs")
    state = graph_state(graph)
    position = next(i for i, node in enumerate(state) if node[1] == op)
    node = dict(zip(fields, state[position], strict=True)) | change
    state[position] = tuple(node.values())  # type: ignore[assignment]
    with pytest.raises(GhnqError, match="not loaded"):
        fx.GraphModule({}, graph_from_state(state))
    assert not ran


def test_a_function_is_saved_by_reference(graph: fx.Graph) -> None:
    targets = [target for _, op, target, _, _ in graph_state(graph) if op == "call_function"]
    assert operator.mul in targets
    assert "max_pool2d" in targets  # torch.nn.functional's, which pickle does not find there
