"""The hypernetwork equals the public implementation's vectors and a second implementation."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from ghn2_vectors import VECTORS
from ghn_graphs import GRAPHS, assert_close, four_classes, random_loss, resnet, without_head
from gradient_check import check_gradients
from naive_ghn import predict
from torch import Tensor, nn

from ghnq_quant import GHN, PredictionError
from ghnq_quant.capture import ArchGraph, Node, capture


@pytest.mark.parametrize("name", sorted(VECTORS["models"]))
def test_public_vectors(name: str, formula_checkpoint: Path) -> None:
    expected = VECTORS["models"][name]
    architecture, _, virtual_edges = name.partition("@ve")
    with torch.device("meta"):
        model = getattr(torchvision.models, architecture)(num_classes=10)
    graph = capture(model).arch_graph
    assert len(graph) == expected["nodes"]
    assert graph.counts() == expected["primitives"]
    lengths = graph.shortest_paths(int(virtual_edges)).length.tolist()
    assert {str(k): n for k, n in Counter(lengths).items()} == expected["edges_by_distance"]

    ghn = GHN.from_ppuda(formula_checkpoint, virtual_edges=int(virtual_edges))
    with torch.no_grad():
        (predicted,) = ghn([graph])
    assert predicted.keys() == expected["parameters"].keys()
    for key, (shape, total, squares, *elements) in expected["parameters"].items():
        p = predicted[key].flatten()
        n = p.numel()
        assert list(predicted[key].shape) == shape, key
        bound = 1e-5 * math.sqrt(squares / n)
        for position, value in zip((0, n // 3, n // 2, n - 1), elements, strict=True):
            assert abs(p[position].item() - value) <= bound, (key, position)
        assert abs(p.sum(dtype=torch.float64).item() - total) / n <= bound, key
        norm = torch.linalg.vector_norm(p, dtype=torch.float64).item()
        assert norm**2 == pytest.approx(squares, rel=1e-5), key


def naive(
    ghn: GHN, weights: dict[str, Tensor], graph: ArchGraph, **kwargs: Any
) -> dict[str, Tensor]:
    return predict(
        weights,
        graph,
        virtual_edges=ghn.virtual_edges,
        max_shape=ghn.max_shape,
        num_classes=ghn.num_classes,
        centred=ghn.decoder.kernel_cut == "centre",
        **kwargs,
    )


@pytest.mark.parametrize("kernel_cut", ["centre", "corner"])
@pytest.mark.parametrize("name", GRAPHS)
def test_equals_second_implementation_at_the_public_size(
    name: str, kernel_cut: str, formula_checkpoint: Path
) -> None:
    ghn = GHN.from_ppuda(formula_checkpoint, virtual_edges=10).derived(kernel_cut=kernel_cut)
    graph = GRAPHS[name]()
    with torch.no_grad():
        (actual,) = ghn([graph])
        expected = naive(ghn, ghn.state_dict(), graph)
    assert set(actual) <= set(graph.parameters)
    assert_close(actual, expected, 1e-5)


SIZES = {
    "tiny": {"max_shape": (16, 8, 11, 11), "num_classes": 10, "hid": 8, "virtual_edges": 3},
    "corner": {"max_shape": (8, 16, 12, 11), "hid": 8, "kernel_cut": "corner"},
    "even grid": {"max_shape": (8, 16, 12, 11), "hid": 8, "kernel_cut": "centre"},
    "one hop": {"max_shape": (8, 16, 11, 11), "num_classes": 10, "hid": 16, "virtual_edges": 1},
    "four classes": {"max_shape": (9, 9, 13, 13), "num_classes": 4, "hid": 8, "virtual_edges": 50},
    "precision": {"max_shape": (8, 8, 11, 11), "hid": 8, "precision_embedding": True},
    "decoded by precision": {"max_shape": (8, 8, 11, 11), "hid": 8, "precision_decoder": True},
}


@pytest.mark.parametrize("size", SIZES)
def test_forward_and_gradients_of_a_batch(size: str) -> None:
    """Several networks at once: values and every weight's gradient equal autograd one by one."""
    torch.manual_seed(0)
    ghn = GHN(**SIZES[size]).double()
    for table in (ghn.precision, ghn.precision_decoder):
        if table is not None:
            nn.init.normal_(table.weight)
    graphs = [make() for make in GRAPHS.values() if make is not GRAPHS["squeeze and excitation"]]
    bits = [(4, 8), (2, 2), (32, 32), (8, 3), (5, 6)] if ghn.reads_precision else None
    weights = {k: w.detach().clone().requires_grad_() for k, w in ghn.state_dict().items()}
    actual = ghn(graphs, bits)
    expected = [
        naive(ghn, weights, graph, bits=bits[i] if bits else (32, 32))
        for i, graph in enumerate(graphs)
    ]
    for a, b in zip(actual, expected, strict=True):
        assert_close(a, b, 1e-10)

    random_loss(actual).backward()
    random_loss(expected).backward()
    for name, p in ghn.named_parameters():
        assert p.grad is not None, name
        grad = weights[name].grad
        assert grad is not None, name
        torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-9 * float(grad.abs().max()))


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(3, 3, 3, 3), num_classes=4, hid=4, virtual_edges=3).double()
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4))
    ).arch_graph
    check_gradients(ghn, graph)


def test_batch_equals_one_by_one(tiny_ghn: GHN) -> None:
    graphs = [capture(m).arch_graph for m in (resnet(), four_classes(), resnet(), without_head())]
    with torch.no_grad():
        together = tiny_ghn(graphs)
        for graph, batched in zip(graphs, together, strict=True):
            (alone,) = tiny_ghn([graph])
            assert_close(batched, alone, 1e-5)


def test_float64_and_half_precision_hypernetworks() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    graph = capture(four_classes()).arch_graph
    with torch.no_grad():
        (expected,) = ghn([graph])
        for dtype, rtol in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
            (actual,) = ghn.to(dtype)([graph])
            assert {p.dtype for p in actual.values()} == {dtype}
            assert_close({k: p.float() for k, p in actual.items()}, expected, rtol)


def test_no_graphs(tiny_ghn: GHN) -> None:
    assert tiny_ghn([]) == []


def test_graph_of_the_input_alone(tiny_ghn: GHN) -> None:
    graph = ArchGraph((Node("input"),), np.empty((0, 2), np.int64))
    assert tiny_ghn([graph]) == [{}]


@pytest.mark.parametrize("part", ["precision_embedding", "precision_decoder"])
def test_what_tells_the_precision_starts_at_zero_and_then_matters(part: str) -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8).derived(**{part: True}).eval()
    graph = capture(four_classes()).arch_graph
    with torch.no_grad():
        (as_float,) = ghn([graph])
        (as_int4,) = ghn([graph], [(4, 8)])
        assert all(torch.equal(as_float[k], as_int4[k]) for k in as_float)
        table = ghn.precision or ghn.precision_decoder
        assert table is not None
        nn.init.normal_(table.weight)
        (weight4,), (weight8,), (act4,) = (ghn([graph], [b]) for b in ((4, 8), (8, 8), (4, 4)))
    assert not torch.equal(weight4["0.weight"], weight8["0.weight"])
    assert not torch.equal(weight4["0.weight"], act4["0.weight"])


def test_new_batch_norms_are_ones_and_zeros_and_all_else_stays_predicted() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LayerNorm(4), nn.Linear(4, 4)
    )
    graph = capture(model).arch_graph
    ghn = GHN(max_shape=(8, 8, 3, 3), num_classes=4, hid=8)
    (predicted,) = ghn([graph])
    (parameters,) = ghn.derived(new_batch_norms=True)([graph])
    assert parameters.keys() == predicted.keys()
    expected = {**predicted, "1.weight": torch.ones(4), "1.bias": torch.zeros(4)}
    assert not torch.equal(predicted["1.weight"], expected["1.weight"])
    for name, p in parameters.items():
        torch.testing.assert_close(p, expected[name])


def test_a_1x1_kernel_is_the_middle_of_a_3x3_one_or_its_corner() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 5, 5), hid=8)
    shapes = [(4, 3, 1, 1), (4, 3, 3, 3)]
    x, scale = torch.randn(1, 8).expand(2, -1), torch.ones(2)
    for kernel_cut, place in (("centre", 1), ("corner", 0)):
        decoder = ghn.derived(kernel_cut=kernel_cut).decoder
        small, large = decoder(x, shapes, scale)
        torch.testing.assert_close(small[..., 0, 0], large[..., place, place])


def test_an_unknown_cut_of_kernels() -> None:
    with pytest.raises(ValueError, match="kernel_cut is 'centre' or 'corner', not 'middle'"):
        GHN(max_shape=(8, 8, 3, 3), hid=8, kernel_cut="middle")


def test_kernel_larger_than_the_decoder(tiny_ghn: GHN) -> None:
    graph = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, (1, 9)))).arch_graph
    with pytest.raises(PredictionError, match=r"'1\.weight' has a 1×9 kernel.* is 7×7"):
        tiny_ghn([graph])


@pytest.mark.parametrize(
    ("weight", "named"),
    [
        ("decoder.conv.2.bias", "0.weight"),
        ("decoder_1d.fc.2.bias", "1.weight"),
        ("decoder.class_layer_predictor.1.bias", "3.weight"),
        ("bias_class.1.bias", "3.bias"),
    ],
)
def test_a_value_that_is_not_finite_names_its_parameter(weight: str, named: str) -> None:
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    ghn.get_parameter(weight).data.fill_(float("nan"))
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10)
    )
    with pytest.raises(PredictionError, match=f"not finite for '{named}'"):
        ghn([capture(model).arch_graph])
