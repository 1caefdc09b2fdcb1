"""The hypernetwork gives the same result on CPUs, on other devices and in ``torch.compile``."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from ghn_graphs import GRAPHS, assert_close, four_classes, random_loss
from torch import Tensor

from ghnq_quant import GHN
from ghnq_quant.capture import ArchGraph, capture
from ghnq_quant.research.networks import ConvNets250K


def graphs_of_all_kinds() -> list[ArchGraph]:
    """With depthwise layers, a tiled classifier (of more inputs than are decoded), and odd shapes."""
    sampled = [ConvNets250K("train")[i].graph for i in (0, 3)]
    return [make() for make in GRAPHS.values()] + sampled


@pytest.mark.parametrize("kernel_cut", ["centre", "corner"])
@pytest.mark.parametrize(
    ("dtype", "training", "rtol"),
    [(torch.float64, False, 1e-10), (torch.float32, False, 1e-4), (torch.float32, True, 1e-4)],
)
def test_the_plain_form_equals_the_fast_one(
    dtype: torch.dtype,
    training: bool,
    rtol: float,
    kernel_cut: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(16, 8, 11, 11), hid=8, kernel_cut=kernel_cut).to(dtype).train(training)
    graphs = graphs_of_all_kinds()

    def predict_and_differentiate() -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        ghn.zero_grad()
        predicted = ghn(graphs)
        random_loss(predicted).backward()
        return predicted, {name: p.grad for name, p in ghn.named_parameters()}

    fast, fast_gradients = predict_and_differentiate()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # needs the plain form
    plain, plain_gradients = predict_and_differentiate()
    for a, b in zip(plain, fast, strict=True):
        assert_close(a, b, rtol)
    assert_close(plain_gradients, fast_gradients, 10 * rtol)
    # the forms sum in different orders; equal bits would mean that only one form ran
    assert not all(torch.equal(g, fast_gradients[name]) for name, g in plain_gradients.items())


def test_the_plain_forms_compile_without_a_graph_break() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(16, 8, 3, 3), hid=8)
    h, gather, level_sizes = torch.randn(4, 8), torch.rand(4, 8), (1, 2, 1)
    sweep = torch.compile(ghn.gnn.sweep, backend="eager", fullgraph=True)
    expected = ghn.gnn.sweep(h, gather, level_sizes)
    torch.testing.assert_close(sweep(h, gather, level_sizes), expected)

    shapes = [(4, 3, 1, 1), (16, 8, 1, 1), (16, 8, 1, 1), (5, 1, 3, 3)]
    scale = torch.rand(4)
    decode = torch.compile(ghn.decoder, backend="eager", fullgraph=True)
    expected_weights = ghn.decoder(h, shapes, scale)
    for actual, w in zip(decode(h, shapes, scale), expected_weights, strict=True):
        torch.testing.assert_close(actual, w)


def test_a_compiled_hypernetwork() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    graph = capture(four_classes()).arch_graph
    (expected,) = ghn([graph])
    (actual,) = torch.compile(ghn, backend="eager")([graph])
    assert_close(actual, expected, 1e-5)


def test_the_plain_form_keeps_to_its_device() -> None:
    """Meta tensors, which have no values, never meet a CPU tensor."""
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8).to("meta")
    graph = capture(four_classes()).arch_graph
    h = ghn.gnn(torch.empty(len(graph), 8, device="meta"), [graph], 10)
    (w,) = ghn.decoder(h[:2], [(4, 3, 1, 3)] * 2, torch.ones(2, device="meta"))
    assert h.shape == (len(graph), 8)
    assert (w.device.type, w.shape) == ("meta", (2, 4, 3, 1, 3))


def test_what_is_kept_of_a_graph_is_of_one_setting_and_goes_with_the_graph() -> None:
    """What is computed once per graph depends on sizes of the hypernetwork that reads it."""
    graph = capture(four_classes()).arch_graph
    for width, num_classes in ((4, 4), (8, 7), (4, 4)):
        torch.manual_seed(0)
        ghn = GHN(max_shape=(width, 4, 3, 3), num_classes=num_classes, hid=8).eval()
        (actual,), (expected,) = ghn([graph]), ghn([capture(four_classes()).arch_graph])
        assert ("3.weight" in actual) == (num_classes == 4)
        assert actual.keys() == expected.keys()
        assert all(torch.equal(p, expected[name]) for name, p in actual.items())
    reference = weakref.ref(graph)
    del graph
    gc.collect()
    assert reference() is None
