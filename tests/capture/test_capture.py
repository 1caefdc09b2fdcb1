"""From a module to its graph: what is traced, contracted, refused and left untouched."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import naive_ghn
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from ghnq_quant import CaptureError, predict_parameters, quantize
from ghnq_quant.capture import ArchGraph, Node, capture

Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions of four channels, and whatever ``forward`` does with them."""

    def __init__(self, forward: Forward, **layers: nn.Module) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.c = nn.Conv2d(4, 4, 1, bias=False)
        self.act = nn.ReLU(inplace=True)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def named_edges(graph: ArchGraph) -> set[str]:
    """«from > to» for each edge; a node is called by its module, or by its primitive."""
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


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "repvgg_a0",
        "mobileone_s0",
        "convnext_atto",
        "densenet121",
        "dla34",
        "hrnet_w18_small",
    ],
)
def test_stem_and_classifier_are_those_that_timm_names(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    captured = capture(model)
    for found, key in ((captured.stem, "first_conv"), (captured.classifier, "classifier")):
        named = model.pretrained_cfg[key]
        assert set(found) == {named} if isinstance(named, str) else set(named)


def test_several_stems_and_classifiers() -> None:
    captured = capture(Net(lambda n, x: (n.a(x) + n.b(n.act(n.d(x)))).relu(), d=nn.Conv2d(3, 4, 3)))
    assert (captured.stem, captured.classifier) == (("a", "d"), ("a", "b"))


# --- ArchGraph -----------------------------------------------------------------------------------


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


# --- what capture leaves alone -------------------------------------------------------------------


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if x.mean() > 0 else -x


def in_mixed_mode(model: nn.Module) -> nn.Module:
    for position, module in enumerate(model.modules()):
        module.training = position % 3 == 0
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
        lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
        lambda: nn.Sequential(Untraceable()),
    ],
    ids=["traced", "rewritten", "untraceable"],
)
def test_the_model_is_untouched(make: Callable[[], nn.Module]) -> None:
    model = in_mixed_mode(make())
    modules = dict(model.named_modules())
    modes = [m.training for m in modules.values()]
    tensors = [*model.parameters(), *model.buffers()]
    versions = [t._version for t in tensors]
    before = copy.deepcopy(model.state_dict())
    rng = torch.get_rng_state()
    try:
        capture(model, torch.zeros(2, 3, 64, 64)).quant_plan  # noqa: B018
    except CaptureError:
        assert isinstance(model[0], Untraceable)
    assert dict(model.named_modules()) == modules
    assert [m.training for m in modules.values()] == modes
    assert [*map(id, (*model.parameters(), *model.buffers()))] == [*map(id, tensors)]
    assert [t._version for t in tensors] == versions
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


class Remembers(nn.Module):
    """Keeps what it computes: an attribute, a dict's entry, and a tensor made in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.cache: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(self.calls))
        if "weight" not in self.cache:
            self.cache["weight"] = self.conv.weight.mean() * 2
        self.last = self.conv(x) + torch.tensor(0.5) * self.cache["weight"]
        return self.last


@torch.no_grad()
def test_what_a_forward_keeps_is_undone() -> None:
    model = Remembers().eval()
    attributes = set(vars(model))
    captured = capture(model, torch.zeros(1, 3, 8, 8))
    assert (model.cache, model.last, model.calls, set(vars(model))) == ({}, None, [0], attributes)
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    assert model.last is expected
    assert captured.root.conv.weight is model.conv.weight
    assert torch.equal(fx.Interpreter(captured.root, graph=captured.graph).run(x), expected)
    quantized = quantize(model, bits=32, backend="reference")  # the model holds results by now
    assert torch.equal(quantized(x), expected)
    assert quantized.state_dict().keys() == model.state_dict().keys()


def test_a_model_without_memory_is_captured() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg16(num_classes=10)
    captured = capture(model)
    assert captured.arch_graph.counts()["conv"] == 16
    assert captured.shapes((5, 3, 64, 64))["features_0"] == (5, 64, 64, 64)


def test_no_kernel_runs_on_the_example() -> None:
    """One image of 2^20 × 2^20 pixels: any kernel would need terabytes."""
    example = torch.zeros(1).expand(1, 3, 2**20, 2**20)
    start = time.perf_counter()
    captured = capture(torchvision.models.resnet18(), example)
    assert time.perf_counter() - start < 20
    assert captured.shapes(example.shape)["conv1"] == (1, 64, 2**19, 2**19)


def test_shapes_without_an_example() -> None:
    model = torchvision.models.resnet18().half()
    shapes = capture(model).shapes()
    assert shapes["x"] == (1, 3, 224, 224)
    assert shapes["flatten"] == (1, 512)


@pytest.mark.parametrize(
    ("shape", "operation"),
    [((1, 4, 32, 32), "conv1"), ((3, 32, 32), "bn1"), ((2, 3, 0, 0), "conv1")],
)
def test_an_example_that_does_not_fit(shape: tuple[int, ...], operation: str) -> None:
    model = torchvision.models.resnet18()
    with pytest.raises(CaptureError, match=rf"operation {operation} \({operation}\)") as caught:
        capture(model, torch.zeros(shape))
    assert str(shape) in str(caught.value)
    assert all(m.training for m in model.modules())


# --- arguments, rewritten layers, model zoos -----------------------------------------------------


def test_arguments_beside_the_image_take_their_defaults() -> None:
    class Options(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(
            self, x: Tensor, features: bool = False, *args: Any, mask: Any = None, **kwargs: Any
        ) -> Tensor:
            if features or args or kwargs or mask is not None:
                raise AssertionError
            return self.conv(x)

    captured = capture(Options())
    assert [n.name for n in captured.graph.nodes] == ["x", "conv", "output"]
    assert quantize(Options(), backend="reference")(torch.zeros(1, 3, 4, 4)).shape == (1, 4, 2, 2)


ZOO = [
    "torchvision:googlenet",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5",
    "torchvision:resnext50_32x4d",
    "torchvision:efficientnet_v2_s",
    "torchvision:convnext_tiny",
    "resnet18",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "regnetx_002",
    "densenet121",
    "mobileone_s0",
    "ghostnet_050",
    "repvgg_a0",
    "tf_efficientnet_b0",
    "tf_mobilenetv3_small_minimal_100",
    "hgnetv2_b0",
    "efficientnet_b0_gn",
    "resnetv2_50d_gn",
    "convnext_atto",
    "vgg11_bn",
    "skresnet18",
    "nasnetalarge",
]


def zoo_model(name: str) -> nn.Module:
    zoo, _, architecture = name.rpartition(":")
    create = torchvision.models.get_model if zoo else timm.create_model
    model: nn.Module = create(architecture, num_classes=10)
    return model


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_are_captured(name: str) -> None:
    """Every parameter of a conv, linear or norm layer has its node, and the graph runs."""
    with torch.device("meta"):
        model = zoo_model(name)
    captured = capture(model, torch.empty(2, 3, 96, 96, device="meta"))
    predicted = set(captured.arch_graph.parameters)
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    missing = [
        f"{layer}.{p}"
        for layer, m in model.named_modules()
        if isinstance(m, layers)
        for p, _ in m.named_parameters(recurse=False)
        if f"{layer}.{p}" not in predicted and not layer.startswith("aux")
    ]
    assert not missing
    assert predicted <= {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2_035",
        "tf_mobilenetv3_small_minimal_100",
        "efficientnet_b0_gn",
        "test_vgg",
        "convnext_atto",
        "torchvision:convnext_tiny",
    ],
)
def test_a_rewritten_network_computes_the_same(name: str) -> None:
    """The captured graph, and a copy of it with other parameters, are the user's network."""
    torch.manual_seed(0)
    model = (timm_vgg() if name == "test_vgg" else zoo_model(name)).eval()
    captured = capture(model)
    x = torch.randn(2, 3, 47, 52)
    with torch.no_grad():
        expected = model(x)
        actual = fx.Interpreter(captured.root, graph=captured.graph).run(x)
        assert torch.equal(actual, expected)
        other = copy.deepcopy(captured.root)
        for p in model.parameters():
            p.mul_(0.9)
        other.load_state_dict(model.state_dict())
        actual = fx.Interpreter(other, graph=captured.graph).run(x)
        assert torch.equal(actual, model(x))


def timm_vgg() -> nn.Module:
    """timm's VGG, with its head that pools small images up, at a size that is quick."""
    return timm.models.vgg.VGG(
        cfg=[4, "M", 8, "M"], num_classes=10, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d
    )


def test_a_layer_type_shared_by_two_places_stays_shared() -> None:
    norm = timm.layers.BatchNormAct2d(4)
    model = Net(lambda n, x: n.second(n.b(n.first(n.a(x)))), first=norm, second=norm)
    captured = capture(model)
    assert captured.root.first is captured.root.second
    assert captured.root.first.weight is norm.weight
    assert [n.primitive for n in captured.arch_graph.nodes] == ["input", *("conv", "bn") * 2]


def test_a_model_that_is_itself_rewritten() -> None:
    conv = timm.layers.Conv2dSame(3, 4, 3, stride=2)
    captured = capture(nn.Sequential(conv))
    assert captured.arch_graph.counts() == {"input": 1, "conv": 1, "bias": 1}
    assert capture(timm.models.vgg.ConvMlp(8, 4, 3)).arch_graph.counts()["conv"] == 2


# --- bad input -----------------------------------------------------------------------------------


class OwnForward(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


class OwnNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


BAD: dict[str, tuple[Any, str]] = {
    "not a module": (lambda x: x, "expected an nn.Module, got function"),
    "no conv": (nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), r"Sequential has no nn\.Conv2d"),
    "1-d": (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv1d(4, 4, 3)), "module '1' is a Conv1d"),
    "3-d": (nn.Sequential(nn.Conv3d(3, 4, 3)), "module '0' is a Conv3d"),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(3, 4, 3)), "module '0' is a ConvTranspose2d"),
    "lazy": (nn.Sequential(nn.LazyConv2d(4, 3)), r"module '0' \(LazyConv2d\) has no shapes yet"),
    "branch": (
        nn.Sequential(nn.Identity(), Untraceable()),
        r"cannot trace module '1' \(Untraceable\)",
    ),
    "branch of the model": (Untraceable(), r"cannot trace the model \(Untraceable\)"),
    "own forward": (
        nn.Sequential(OwnForward(3, 4, 3)),
        r"'0' \(OwnForward\) replaces Conv2d\.forward",
    ),
    "own _conv_forward": (
        nn.Sequential(OwnConvForward(3, 4, 3)),
        r"'0' \(OwnConvForward\) replaces",
    ),
    "own norm": (
        nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4)),
        r"'1' \(OwnNorm\) replaces LayerNorm\.forward",
    ),
    "a weight of no layer": (
        Net(lambda n, x: F.conv2d(n.a(x), n.w.weight), w=nn.Embedding(4, 4)),
        r"calls conv2d with a parameter that belongs to no conv",
    ),
    "attention": (
        Net(lambda n, x: n.m(n.a(x).flatten(2)), m=nn.MultiheadAttention(4, 2)),
        r"module 'm' is a MultiheadAttention",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("function", [capture, predict_parameters, quantize])
def test_bad_models(name: str, function: Callable[[Any], Any]) -> None:
    model, message = BAD[name]
    with pytest.raises(CaptureError, match=message):
        function(model)
