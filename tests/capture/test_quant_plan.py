"""Which convolutions fold which batch norms and where activations are quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ghnq_quant import CaptureError
from ghnq_quant.capture import QuantPlan, capture


class Net(nn.Module):
    """Named layers, and a function as ``forward``."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Linear(4, 10)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def plan_of(forward: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> QuantPlan:
    return capture(Net(forward, **layers)).quant_plan


def units(plan: QuantPlan) -> list[str]:
    """«conv+norm -> node of the unit's output»."""
    return [
        f"{u.name}{f'+{u.batch_norm}' if u.batch_norm else ''} -> {u.output}" for u in plan.units
    ]


def points(plan: QuantPlan) -> list[str]:
    """«name», or «name @ node» if the node has another name."""
    return [p.name if p.name == p.node else f"{p.name} @ {p.node}" for p in plan.points]


CASES: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str], list[str]]] = {
    "conv alone": (lambda n, x: n.b(n.a(x)), ["a -> a", "b -> b"], ["x", "a"]),
    "with batch norm and activation": (
        lambda n, x: n.b(n.relu(n.norm(n.a(x)))),
        ["a+norm -> relu", "b -> b"],
        ["x", "a @ relu"],
    ),
    "with a functional activation": (
        lambda n, x: n.b(F.relu6(n.norm(n.a(x)))),
        ["a+norm -> relu6", "b -> b"],
        ["x", "a @ relu6"],
    ),
    "activation without batch norm": (
        lambda n, x: n.b(n.a(x).relu()),
        ["a -> relu", "b -> b"],
        ["x", "a @ relu"],
    ),
    "two activations": (
        lambda n, x: n.b(torch.sigmoid(n.relu(n.a(x)))),
        ["a -> relu", "b -> b"],
        ["x", "a @ relu"],
    ),
    "conv used twice": (
        lambda n, x: n.b(n.norm(y := n.a(x)) + y),
        ["a -> a", "b -> b"],
        ["x", "a", "norm", "add"],
    ),
    "batch norm used twice": (
        lambda n, x: n.b(n.relu(y := n.norm(n.a(x))) + y),
        ["a+norm -> norm", "b -> b"],
        ["x", "a @ norm", "add"],
    ),
    "batch norm before the conv": (
        lambda n, x: n.b(n.relu(n.norm(n.a(x).flip(3)))),
        ["a -> a", "b -> b"],
        ["x", "a", "norm @ relu"],
    ),
    "batch norm after an activation": (
        lambda n, x: n.b(n.norm(n.relu(n.a(x)))),
        ["a -> relu", "b -> b"],
        ["x", "a @ relu", "norm"],
    ),
    "max pooling": (lambda n, x: n.b(F.max_pool2d(n.a(x), 2)), ["a -> a", "b -> b"], ["x", "a"]),
    "concatenation": (
        lambda n, x: n.b(torch.cat((n.a(x)[:, :2], n.a2(x)[:, :2]), 1)),
        ["a -> a", "a2 -> a2", "b -> b"],
        ["x", "a", "a2", "cat"],
    ),
    "reshaping": (
        lambda n, x: n.b(n.a(x).flatten(1).view(x.size(0), 4, 8, 8).permute(0, 1, 3, 2)),
        ["a -> a", "b -> b"],
        ["x", "a"],
    ),
    "addition": (
        lambda n, x: n.b(n.a(x) + n.a2(x)),
        ["a -> a", "a2 -> a2", "b -> b"],
        ["x", "a", "a2", "add"],
    ),
    "addition and activation": (
        lambda n, x: n.b(F.relu(n.a(x) + n.a2(x))),
        ["a -> a", "a2 -> a2", "b -> b"],
        ["x", "a", "a2", "add"],
    ),
    "plus a constant": (lambda n, x: n.b(n.a(x) + 1), ["a -> a", "b -> b"], ["x", "a"]),
    "multiplication": (
        lambda n, x: n.b(n.a(x).mul(n.a2(x))),
        ["a -> a", "a2 -> a2", "b -> b"],
        ["x", "a", "a2", "mul"],
    ),
    "average pooling": (
        lambda n, x: n.b(F.avg_pool2d(n.pool(n.a(x)), 2)),
        ["a -> a", "b -> b"],
        ["x", "a", "pool", "avg_pool @ avg_pool2d"],
    ),
    "head": (
        lambda n, x: n.head(n.relu(n.a(x)).mean((2, 3))),
        ["a -> relu", "head -> head"],
        ["x", "a @ relu", "mean"],
    ),
    "head on reshaped pooling": (
        lambda n, x: n.head(torch.flatten(F.adaptive_avg_pool2d(n.a(x), 1), 1)),
        ["a -> a", "head -> head"],
        ["x", "a", "adaptive_avg_pool @ adaptive_avg_pool2d"],
    ),
    "logits of a conv": (
        lambda n, x: F.adaptive_avg_pool2d(n.b(n.a(x)), 1).flatten(1),
        ["a -> a", "b -> b"],
        ["x", "a", "b"],
    ),
    "logits of a conv, dropped out": (
        lambda n, x: F.dropout(n.b(n.a(x)), 0.5, n.training).squeeze(),
        ["a -> a", "b -> b"],
        ["x", "a"],
    ),
    "logits that are a sum": (
        lambda n, x: n.a(x) + n.a2(x),
        ["a -> a", "a2 -> a2"],
        ["x", "a", "a2"],
    ),
    "two outputs": (
        lambda n, x: {"one": (y := n.a(x)), "two": [n.b(y)]},
        ["a -> a", "b -> b"],
        ["x"],
    ),
    "group norm": (
        lambda n, x: n.b(n.relu(n.group(n.a(x)))),
        ["a -> a", "b -> b"],
        ["x", "a"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_plan(name: str) -> None:
    forward, expected_units, expected_points = CASES[name]
    plan = plan_of(
        forward,
        a2=nn.Conv2d(3, 4, 3, padding=1),
        pool=nn.AvgPool2d(2),
        group=nn.GroupNorm(2, 4),
    )
    assert units(plan) == expected_units
    assert points(plan) == expected_points


@pytest.mark.parametrize(
    ("between", "key"),
    [
        (lambda n, x: F.max_pool2d(n.drop(x).flatten(2), 2)[:, :2], "a"),
        (lambda n, x: torch.relu(x + n.a2(x)).permute(0, 1, 3, 2), "add"),
        (lambda n, x: torch.cat((x, x), 1), "cat"),
        (lambda n, x: torch.sigmoid(torch.relu(x)), None),
        (lambda n, x: x / 2, None),
    ],
)
def test_the_quantizer_that_a_layer_reads(
    between: Callable[[Any, Tensor], Tensor], key: str | None
) -> None:
    """Through everything that leaves a value on its level."""
    more = {"a2": nn.Conv2d(4, 4, 3, padding=1), "drop": nn.Dropout()}
    plan = plan_of(lambda n, x: n.b(between(n, F.silu(n.a(x)))), **more)
    assert {u.name: u.input for u in plan.units if u.name in "ab"} == {"a": "x", "b": key}


def test_points_that_only_a_concatenation_reads() -> None:
    """Not those that something else reads too, nor those in the logits."""
    plan = plan_of(
        lambda n, x: torch.cat((n.b(torch.cat((n.a(x), y := n.a2(x)), 1)[:, :4] + y), y), 1),
        a2=nn.Conv2d(3, 4, 3, padding=1),
    )
    assert {p.name: (p.concatenation, p.joined) for p in plan.points} == {
        "x": (False, False),
        "a": (False, True),
        "a2": (False, False),
        "cat": (True, False),
        "b": (False, False),
        "add": (False, False),
    }


def test_linear_does_not_fold_a_batch_norm() -> None:
    plan = plan_of(
        lambda n, x: n.head(n.norm1d(n.middle(n.a(x).mean((2, 3)))).relu()),
        middle=nn.Linear(4, 4),
        norm1d=nn.BatchNorm1d(4),
    )
    assert units(plan) == ["a -> a", "middle -> middle", "head -> head"]
    assert points(plan) == ["x", "a", "mean", "middle", "norm1d @ relu"]


def test_names_of_several_sums_are_distinct() -> None:
    plan = plan_of(lambda n, x: n.b((y := n.a(x)) + n.a2(x) + y), a2=nn.Conv2d(3, 4, 3, padding=1))
    assert points(plan) == ["x", "a", "a2", "add", "add_1"]


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))


def test_squeeze_and_excitation() -> None:
    plan = plan_of(lambda n, x: n.b(n.gate(n.relu(n.norm(n.a(x))))), gate=Gate())
    assert units(plan) == [
        "a+norm -> relu",
        "gate.fc1 -> relu_1",
        "gate.fc2 -> sigmoid",
        "b -> b",
    ]
    assert [p.name for p in plan.points] == [
        "x",
        "a",
        "gate.pool",
        "gate.fc1",
        "gate.fc2",
        "gate.mul",
    ]


def test_resnet18() -> None:
    plan = capture(torchvision.models.resnet18(num_classes=10)).quant_plan
    assert len(plan.units) == 21
    folded = {u.name: u.batch_norm for u in plan.units}
    assert folded.pop("fc") is None
    for conv, norm in folded.items():
        expected = conv.replace("conv", "bn").replace("downsample.0", "downsample.1")
        assert norm == expected
    assert [p.name for p in plan.points][:9] == [
        "x",
        "conv1",
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer1.0.add",
        "layer1.1.conv1",
        "layer1.1.conv2",
        "layer1.1.add",
        "layer2.0.conv1",
    ]
    assert (
        len(plan.points) == 1 + 20 + 8 + 1
    )  # input, convs, sums, the last pooling; not the logits
    assert plan.points[-1].name == "avgpool"


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.mobilenet_v2(num_classes=10),
        lambda: timm.create_model("mobilenetv2_035", num_classes=10),
    ],
    ids=["torchvision", "timm"],
)
def test_mobilenet_v2(make: Callable[[], nn.Module]) -> None:
    plan = capture(make()).quant_plan
    assert len(plan.units) == 53
    assert [u.batch_norm is None for u in plan.units] == [False] * 52 + [True]
    sums = [p.name for p in plan.points if p.name.endswith("add")]
    assert len(sums) == 10
    assert len(plan.points) == 1 + 52 + 10 + 1


def test_densenet121() -> None:
    plan = capture(torchvision.models.densenet121(num_classes=10)).quant_plan
    assert len(plan.units) == 121
    by_name = {u.name: u for u in plan.units}
    assert by_name["features.conv0"].batch_norm == "features.norm0"
    first = by_name["features.denseblock1.denselayer1.conv1"]
    assert first.batch_norm == "features.denseblock1.denselayer1.norm2"
    assert by_name["features.denseblock1.denselayer1.conv2"].batch_norm is None
    names = [p.name for p in plan.points if not p.concatenation]
    assert names[:5] == [
        "x",
        "features.conv0",
        "features.denseblock1.denselayer1.norm1",
        "features.denseblock1.denselayer1.conv1",
        "features.denseblock1.denselayer1.conv2",
    ]
    # input; convs; norms that are not folded: dense layers, transitions, last; 3 + 1 poolings
    assert len(names) == 1 + 120 + (58 + 3 + 1) + 4
    assert not [n for n in names if "cat" in n]


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda n, x: n.b(n.b(n.a(x))), "b"),
        (lambda n, x: n.norm(n.b(n.norm(n.a(x)))), "norm"),
        (lambda n, x: n.head(n.head2(n.head(n.a(x).mean((2, 3))))), "head"),
    ],
)
def test_a_layer_called_twice_cannot_be_quantized(
    forward: Callable[[Any, Tensor], Tensor], name: str
) -> None:
    model = Net(forward, head2=nn.Linear(10, 4))
    with pytest.raises(CaptureError, match=f"module '{name}' is called more than once"):
        capture(model).quant_plan  # noqa: B018
    assert f"{name}.weight" in capture(model).arch_graph.parameters


def test_one_layer_under_two_names_cannot_be_quantized() -> None:
    model = Net(lambda n, x: n.again(n.b(n.a(x))))
    model.again = model.b
    with pytest.raises(CaptureError, match="'b' is called more than once"):
        capture(model).quant_plan  # noqa: B018
