"""The hypernetwork against the public implementation's vectors and a second implementation."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from ghn2_vectors import VECTORS
from naive_ghn import channel_row, predict, spatial_row
from torch import Tensor, nn

from ghnq_quant import GHN, PredictionError
from ghnq_quant.capture import ArchGraph, Node, capture
from ghnq_quant.ghn import decoders, message_passing, tiling
from ghnq_quant.ghn.per_graph import once_per_graph
from ghnq_quant.research.networks import ConvNets250K


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


class OddShapes(nn.Module):
    """Kernels, channel counts and joins that no shape table or decoder was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 10, 2)
        self.b = nn.Conv2d(10, 10, 5, padding=2, groups=10, bias=False)
        self.c = nn.Conv2d(10, 70, (1, 7), dilation=2, bias=False)
        self.d = nn.Conv2d(70, 21, (7, 1), groups=7, dilation=(2, 2))
        self.norm = nn.BatchNorm2d(21)
        self.pool = nn.MaxPool2d(2)
        self.e = nn.Conv2d(21, 130, 11, padding=5)
        self.group_norm = nn.GroupNorm(2, 130)
        self.middle = nn.Linear(130, 33, bias=False)
        self.layer_norm = nn.LayerNorm(33)
        self.head = nn.Linear(33, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = self.d(torch.relu(self.c(x + self.b(x))))
        x = self.pool(self.norm(x))
        x = self.group_norm(self.e(torch.cat((x[:, :11], x[:, 11:]), 1))).mean((2, 3), keepdim=True)
        return self.head(self.layer_norm(self.middle(x.flatten(1))))


def without_head() -> nn.Module:
    """Its last layer is a convolution, so no layer is a classification layer."""
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(4, 10, 1))


def four_classes() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 4))


def resnet(**kwargs: Any) -> nn.Module:
    blocks = torchvision.models.resnet.BasicBlock
    return torchvision.models.ResNet(blocks, [1, 1, 1, 1], num_classes=10, **kwargs)


class Recurrent(nn.Module):
    """A convolution and a linear layer that are called twice, the latter at last as classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(torch.relu(self.conv(x)))
        return self.head(torch.relu(self.head(x.mean((2, 3)))))


GRAPHS = {
    "layers called twice": lambda: capture(Recurrent()).arch_graph,
    "odd shapes": lambda: capture(OddShapes()).arch_graph,
    "no classifier": lambda: capture(without_head()).arch_graph,
    "other classes": lambda: capture(four_classes()).arch_graph,
    "resnet": lambda: capture(resnet()).arch_graph,
    "squeeze and excitation": lambda: (
        capture(torchvision.models.mobilenet_v3_small(num_classes=10)).arch_graph
    ),
}


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


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, p in expected.items():
        assert actual[name].shape == p.shape, name
        error = (actual[name] - p).abs().max() / p.square().mean().sqrt()
        assert error <= rtol, (name, error.item())


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
}


@pytest.mark.parametrize("size", SIZES)
def test_forward_and_gradients_of_a_batch(size: str) -> None:
    """Several networks at once: values, and each weight's gradient, as one by one by autograd."""
    torch.manual_seed(0)
    ghn = GHN(**SIZES[size]).double()
    if ghn.precision is not None:
        nn.init.normal_(ghn.precision.weight)
    graphs = [make() for make in GRAPHS.values() if make is not GRAPHS["squeeze and excitation"]]
    bits = [(4, 8), (2, 2), (32, 32), (8, 3), (5, 6)] if ghn.precision is not None else None
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


def graphs_of_all_kinds() -> list[ArchGraph]:
    """With depthwise layers, a tiled classifier (of more inputs than are decoded), and odd shapes."""
    sampled = [ConvNets250K("train")[i].graph for i in (0, 3)]
    return [make() for make in GRAPHS.values()] + sampled


def random_loss(networks: list[dict[str, Tensor]]) -> Tensor:
    """Of a scale at which it does not drown what differs in one parameter."""
    generator = torch.Generator().manual_seed(1)
    return sum(
        (p * torch.randn(p.shape, generator=generator, dtype=p.dtype)).sum() / p.numel() ** 0.5
        for parameters in networks
        for _, p in sorted(parameters.items())
    )


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
    for module in (message_passing, decoders):
        monkeypatch.setattr(module, "takes_fast_path", lambda x: False)
    for module in (message_passing, decoders):
        monkeypatch.delattr(
            module, {message_passing: "numpy_sweep", decoders: "cpu_decode"}[module]
        )
    plain, plain_gradients = predict_and_differentiate()
    for a, b in zip(plain, fast, strict=True):
        assert_close(a, b, rtol)
    assert_close(plain_gradients, fast_gradients, 10 * rtol)


def test_compiled_message_passing_and_decoding() -> None:
    """Traced whole, without a graph break; the sweep with its schedule as tensors."""
    torch.manual_seed(0)
    ghn = GHN(max_shape=(16, 8, 3, 3), hid=8)
    graphs = [capture(m()).arch_graph for m in (four_classes, Recurrent, without_head)]
    (plan,) = message_passing.schedule(graphs, virtual_edges=10)
    x = torch.randn(len(plan.order), 8)

    def compiled(x: Tensor, order: Tensor, gather: Tensor, back: Tensor) -> Tensor:
        plan_ = message_passing.Schedule(order, plan.level_sizes, gather, back)
        return message_passing.pass_messages(ghn.gnn.sweep, x, plan_)

    run = torch.compile(compiled, backend="eager", fullgraph=True)
    expected = ghn.gnn(x, graphs, 10)
    torch.testing.assert_close(run(x, plan.order, plan.gather, plan.gather_back), expected)

    shapes = [(4, 3, 1, 1), (16, 8, 1, 1), (16, 8, 1, 1), (5, 1, 3, 3)]
    scale = torch.rand(4)
    decode = torch.compile(ghn.decoder, backend="eager", fullgraph=True)
    expected_weights = ghn.decoder(x[:4], shapes, scale)
    for actual, w in zip(decode(x[:4], shapes, scale), expected_weights, strict=True):
        torch.testing.assert_close(actual, w)


def test_a_compiled_hypernetwork() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8)
    graph = capture(four_classes()).arch_graph
    (expected,) = ghn([graph])
    (actual,) = torch.compile(ghn, backend="eager")([graph])
    assert_close(actual, expected, 1e-5)


def test_the_plain_form_keeps_to_its_device() -> None:
    """Tensors of another device, which hold no values, meet none of the CPU on their way."""
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8).to("meta")
    graph = capture(four_classes()).arch_graph
    h = ghn.gnn(torch.empty(len(graph), 8, device="meta"), [graph], 10)
    (w,) = ghn.decoder(h[:2], [(4, 3, 1, 3)] * 2, torch.ones(2, device="meta"))
    assert h.shape == (len(graph), 8)
    assert (w.device.type, w.shape) == ("meta", (2, 4, 3, 1, 3))


def test_what_is_made_of_a_graph_is_made_once_for_each_setting_and_goes_with_it() -> None:
    made = []

    @once_per_graph
    def make(graph: ArchGraph, setting: int) -> int:
        made.append(weakref.ref(graph))
        return len(graph) + setting

    graph = capture(four_classes()).arch_graph
    other = capture(without_head()).arch_graph
    assert [make(graph, 0), make(graph, 0), make(graph, 1), make(other, 0)] == [
        *[len(graph)] * 2,
        len(graph) + 1,
        len(other),
    ]
    assert len(made) == 3
    del graph
    gc.collect()
    assert [reference() for reference in made] == [None, None, other]


def test_gradients_by_finite_differences() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(3, 3, 3, 3), num_classes=4, hid=4, virtual_edges=3).double()
    graph = capture(
        nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 4))
    ).arch_graph
    names, weights = zip(*ghn.named_parameters(), strict=True)

    def values(*w: Tensor) -> tuple[Tensor, ...]:
        state = dict(zip(names, w, strict=True))
        (parameters,) = torch.func.functional_call(ghn, state, ([graph],))
        return tuple(parameters.values())

    inputs = [
        w.detach().clone().requires_grad_("shape_enc" not in n)
        for n, w in zip(names, weights, strict=True)
    ]
    assert torch.autograd.gradcheck(values, inputs, fast_mode=True)


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


def test_precision_embedding_starts_at_zero_and_then_matters() -> None:
    torch.manual_seed(0)
    ghn = GHN(max_shape=(8, 8, 3, 3), hid=8, precision_embedding=True).eval()
    graph = capture(four_classes()).arch_graph
    with torch.no_grad():
        (as_float,) = ghn([graph])
        (as_int4,) = ghn([graph], [(4, 8)])
        assert all(torch.equal(as_float[k], as_int4[k]) for k in as_float)
        nn.init.normal_(ghn.precision.weight)
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


def test_a_new_hypernetwork() -> None:
    torch.manual_seed(0)
    ghn = GHN()
    shapes = ghn.shape_enc
    for embedding in (ghn.embed, shapes.embed_spatial, shapes.embed_channel):
        std = embedding.weight.std().item()
        assert std == pytest.approx(32**-0.5, rel=0.15)
    row = dict(zip((*shapes.channels, None), shapes.embed_channel.weight, strict=True))
    for count in (64, 128, 512, 1024, 4096):
        next_count, double = count + 16 * (1 + count // 4096), 2 * count
        near = (row[count] - row[next_count]).norm()
        far = (row[count] - row[double]).norm()
        assert 0 < near < 0.7 * far, count
    assert 0 < (row[1] - row[None]).norm() < 0.6 * 32**-0.5  # of a node without a shape
    decoder = ghn.decoder
    for layer, fan_in in (
        (decoder.conv[2], 256),
        (decoder.class_layer_predictor[1], 64),
        (ghn.decoder_1d.fc[2], 64),
    ):
        assert not layer.bias.any()
        # PyTorch's is uniform up to fan_in^-1/2
        assert layer.weight.std().item() == pytest.approx(0.2 * (3 * fan_in) ** -0.5, rel=0.05)
    assert decoder.conv[0].bias.any()


@pytest.mark.parametrize("hid", [4, 6, 12, 20])
def test_new_hypernetworks_of_other_widths(hid: int) -> None:
    weight = GHN(max_shape=(8, 8, 3, 3), hid=hid).shape_enc.embed_channel.weight
    assert weight.shape[1] == hid // 4
    assert weight.isfinite().all()


@pytest.mark.parametrize("num_classes", [10, 1000, 5, 2, 9000])
def test_rows_of_shapes(num_classes: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=num_classes, hid=4).shape_enc
    for count in [*range(1, 200), *range(4000, 4200), 8191, 8192, 8193, 10**6, num_classes]:
        out, into, _, _ = encoder.indices(Node("conv", (count, count)))
        assert out == into == channel_row(count, num_classes), count
    for size in range(1, 20):
        _, _, kh, kw = encoder.indices(Node("conv", (1, 1, size, 1)))
        assert (kh, kw) == (spatial_row(size, 11), 0), size


@pytest.mark.parametrize(
    ("count", "counts_as"),
    [
        (2, 1),
        (4, 8),
        (7, 8),
        (9, 8),
        (11, 10),
        (12, 10),
        (20, 16),
        (60, 56),
        (72, 64),
        (73, 80),
        (4088, 4080),
        (4089, 4096),
        (4112, 4096),
        (8193, 8192),
        (100_000, 8192),
    ],
)
def test_channel_ties_go_to_the_smaller(count: int, counts_as: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    assert encoder.indices(Node("bias", (count,))) == encoder.indices(Node("bias", (counts_as,)))
    assert encoder.channels[encoder.indices(Node("bias", (counts_as,)))[0]] == counts_as


@pytest.mark.parametrize(
    ("size", "counts_as"),
    [(2, 3), (4, 3), (6, 5), (12, 11), (13, 14), (15, 14), (17, 16), (40, 16)],
)
def test_spatial_ties_go_to_the_smaller(size: int, counts_as: int) -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    row = encoder.indices(Node("conv", (1, 1, size, 1)))[2]
    assert encoder.spatial[row] == counts_as


def test_a_node_without_shape_takes_the_last_rows() -> None:
    encoder = GHN(max_shape=(8, 8, 11, 11), num_classes=10, hid=4).shape_enc
    channel, spatial = encoder.embed_channel, encoder.embed_spatial
    assert encoder.indices(Node("sum")) == (
        *(channel.num_embeddings - 1,) * 2,
        *(spatial.num_embeddings - 1,) * 2,
    )


@pytest.mark.parametrize(
    ("shape", "beta", "fan_in"),
    [
        ((8, 4, 3, 3), 2, 36),
        ((8, 1, 3, 3), 1, 9),
        ((8, 4, 1, 7), 1, 28),
        ((8, 4, 7, 1), 2, 28),
        ((10, 64), 2, 64),
        ((10, 1), 2, 1),
    ],
)
def test_fan_in_scale(shape: tuple[int, ...], beta: int, fan_in: int) -> None:
    assert tiling.fan_in_scale(shape) == pytest.approx(math.sqrt(beta / fan_in), rel=1e-15)


@pytest.mark.parametrize(
    ("have", "want"),
    [((2, 3, 1, 1), (5, 7, 1, 1)), ((4, 4), (3, 2)), ((4, 4), (3, 9)), ((3,), (7,)), ((3,), (2,))],
)
def test_tiling_repeats_and_crops(have: tuple[int, ...], want: tuple[int, ...]) -> None:
    w = torch.arange(math.prod(have)).view(have)
    tiled = tiling.tile(w, want)
    assert tiled.shape == want
    for index in torch.cartesian_prod(*(torch.arange(s) for s in want)).view(-1, len(want)):
        assert tiled[tuple(index)] == w[tuple(i % s for i, s in zip(index, have, strict=True))]


def test_norm_weights_and_biases_are_bounded() -> None:
    p = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 1000.0])
    torch.testing.assert_close(tiling.norm_weight(p), 2 / (1 + (-p / 2).exp()))
    torch.testing.assert_close(tiling.bias(p), (p / 5).tanh())


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
