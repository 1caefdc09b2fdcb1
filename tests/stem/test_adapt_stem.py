"""The zoos' networks, adapted to small images."""

from __future__ import annotations

import copy

import ghnq_timm  # noqa: F401
import ghnq_torchvision  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ghnq_quant import CaptureError, GhnqError, adapt_stem, predict_parameters
from ghnq_quant.capture import Kind, capture
from ghnq_quant.stem.heads import enlarged_input_folded
from ghnq_quant.zoos import create_zoo_model


def sides(model: nn.Module, size: int) -> list[int]:
    """The distinct sides of feature maps after convolutions with a kernel, in order."""
    captured = capture(model)
    shapes = captured.shapes((1, 3, size, size))
    found: list[int] = []
    for node, kind in captured.kinds.items():
        if kind is Kind.CONV and shapes[node.name][2] not in (1, *found):
            found.append(shapes[node.name][2])
    return found


def strides_of(model: nn.Module) -> dict[str, object]:
    return {n: m.stride for n, m in model.named_modules() if hasattr(m, "kernel_size")}


# Families


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("torchvision:resnet18", ["conv1", "maxpool"]),
        ("timm:resnet18d", ["conv1.0", "maxpool"]),
        ("torchvision:densenet121", ["features.conv0", "features.pool0"]),
        ("torchvision:mobilenet_v2", ["features.0.0", "features.2.conv.1.0"]),
        ("torchvision:mobilenet_v3_small", ["features.0.0", "features.1.block.0.0"]),
        ("timm:mobilenetv1_100", ["conv_stem", "blocks.1.0.conv_dw"]),
        ("timm:tf_efficientnet_lite0", ["conv_stem", "blocks.1.0.conv_dw"]),
        (
            "torchvision:regnet_x_400mf",
            ["stem.0", *(f"trunk_output.block1.block1-0.{n}.0" for n in ("proj", "f.b"))],
        ),
        ("timm:regnetx_002", ["stem.conv", "s1.b1.conv2.conv", "s1.b1.downsample.conv"]),
        ("torchvision:vgg11_bn", ["features.3"]),
        ("torchvision:mnasnet0_5", ["layers.0", "layers.8.0.layers.3"]),
        ("timm:mnasnet_small", ["conv_stem", "blocks.1.0.conv_dw"]),
    ],
)
def test_the_first_downsamplings_are_undone(name, changed):
    model = create_zoo_model(name, 10)
    before = strides_of(model)
    adapted = adapt_stem(model)
    after = strides_of(adapted)
    assert [n for n in before if after.get(n) != before[n]] == changed
    assert all(after.get(n, 1) in (1, (1, 1)) for n in changed)
    assert sides(adapted, 32) == [32, 16, 8, 4]
    assert strides_of(model) == before
    with torch.no_grad():
        assert adapted.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:mobilenetv2_050"])
def test_parameters_keep_their_values_and_a_stem_its_centre(name):
    model = create_zoo_model(name, 10)
    state = copy.deepcopy(model.state_dict())
    adapted = adapt_stem(model)
    assert type(adapted) is type(model)
    for key, value in adapted.state_dict().items():
        before = state[key]
        if value.shape != before.shape:
            assert key == "conv1.weight"
            before = before[..., 2:5, 2:5]
        assert torch.equal(value, before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    predicted = predict_parameters(adapted)
    assert {k: v.shape for k, v in predicted.items()} == {
        k: v.shape for k, v in adapted.named_parameters()
    }


def test_an_image_size_in_between_and_one_that_needs_nothing():
    model = create_zoo_model("torchvision:resnet18", 10)
    assert sides(adapt_stem(model, 64), 64) == [64, 32, 16, 8, 4]
    same = adapt_stem(model, 224)
    assert strides_of(same) == strides_of(model)
    assert all(map(torch.equal, same.parameters(), model.parameters()))


def test_adapting_twice_is_adapting_once():
    once = adapt_stem(create_zoo_model("timm:resnet18", 10))
    twice = adapt_stem(once)
    assert strides_of(twice) == strides_of(once)
    assert all(map(torch.equal, twice.parameters(), once.parameters()))


def test_patches_shrink_to_pixels():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Conv2d(8, 8, 2, stride=2), nn.Flatten()
    )
    adapted = adapt_stem(model, 16, min_size=4)
    assert (adapted[0].kernel_size, adapted[0].stride) == ((2, 2), (2, 2))
    assert torch.equal(adapted[0].weight, model[0].weight[..., 1:3, 1:3])
    assert (adapted[2].kernel_size, adapted[2].stride) == ((2, 2), (2, 2))
    assert adapt_stem(model, 8, min_size=4)[0].kernel_size == (1, 1)


# Heads


@pytest.mark.parametrize("name", ["torchvision:vgg11_bn", "timm:vgg11_bn", "torchvision:alexnet"])
def test_a_head_that_reads_small_feature_maps_computes_what_it_did(name):
    """Compared with the original head, where feature maps are enlarged first."""
    torch.manual_seed(0)
    model = create_zoo_model(name, 10).eval()
    adapted = adapt_stem(model).eval()
    count = sum(p.numel() for p in adapted.parameters())
    assert count < 0.7 * sum(p.numel() for p in model.parameters())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = adapted.features(images)
        if name.startswith("timm"):
            expected = model.forward_head(features)
        else:
            expected = model.classifier(model.avgpool(features).flatten(1))
        torch.testing.assert_close(adapted(images), expected, atol=1e-5, rtol=1e-4)


@given(small=st.integers(1, 7), size=st.integers(1, 7))
def test_an_enlarged_input_folds_into_the_weight(small, size):
    weight = torch.randn(4, 3, size, size, dtype=torch.float64)
    x = torch.randn(2, 3, small, small, dtype=torch.float64)
    expected = F.conv2d(F.adaptive_avg_pool2d(x, size), weight)
    torch.testing.assert_close(F.conv2d(x, enlarged_input_folded(weight, small)), expected)


# What is refused


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 3, padding=1, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(self.conv(x), 8)).mean((2, 3))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(5)])
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.pool(conv(x))
        return x.mean((2, 3))


class Slices(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x[:, :, ::16, ::16])


class Uneven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 4, stride=4)
        self.two = nn.Sequential(
            nn.Conv2d(3, 8, 2, stride=2), nn.Conv2d(8, 8, 2, stride=2), nn.Conv2d(8, 8, 1)
        )
        self.last = nn.Conv2d(8, 8, 3, padding=1, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.one(x) + self.two(x))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Functional(), "max_pool2d in the forward of the model lowers the resolution"),
        (Shared(), "module 'pool' lowers the resolution and is called 5 times"),
        (Slices(), "getitem in the forward of the model lowers the resolution"),
        (Uneven(), "branches that lower the resolution by different strides"),
    ],
)
def test_steps_that_are_not_understood(model, message):
    with pytest.raises(CaptureError, match=message):
        adapt_stem(model)


def test_networks_that_cannot_be_made_to_fit():
    valid = nn.Sequential(nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 7))
    with pytest.raises(CaptureError, match=r"'1', gives feature maps of 2×2 for images of 14×14"):
        adapt_stem(valid, 14)
    with pytest.raises(CaptureError, match=r"does not run on an input of shape \(1, 3, 8, 8\)"):
        adapt_stem(valid, 8)
    for size, smallest in ((0, 0), (3, 4), (-32, 4)):
        with pytest.raises(GhnqError, match="feature maps have a side of at least 1"):
            adapt_stem(valid, size, min_size=smallest)
