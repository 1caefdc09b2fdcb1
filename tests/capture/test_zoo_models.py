"""Models of timm and torchvision: captured whole, with rewritten layers that compute the same."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from three_convolutions import Net
from torch import fx, nn

from ghnq_quant.capture import capture

#: In addition to those that tests/research/coverage takes through all stages.
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
    "mobileone_s0",
    "repvgg_a0",
    "tf_efficientnet_b0",
    "tf_mobilenetv3_small_minimal_100",
    "efficientnet_b0_gn",
    "resnetv2_50d_gn",
    "convnext_atto",
    "vgg11_bn",
]


def zoo_model(name: str) -> nn.Module:
    zoo, _, architecture = name.rpartition(":")
    create = torchvision.models.get_model if zoo else timm.create_model
    model: nn.Module = create(architecture, num_classes=10)
    return model


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
@pytest.mark.parametrize("name", ZOO)
def test_zoo_models_are_captured(name: str) -> None:
    """Every parameter of a conv, linear or norm layer has a node, and the graph runs."""
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
    """The captured graph, and a copy with other parameters, equal the user's network."""
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
    """A small, fast timm VGG; its head enlarges the feature maps of small images."""
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
