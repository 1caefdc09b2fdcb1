"""Small networks for 32×32 images, in styles that people deploy, for comparisons on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.stem.small_images import adapt_stem
from ghnq_quant.zoos import create_model


class CifarNetwork(nn.Module):
    """A body of blocks, global average pooling and a linear layer.

    Args:
        body: from images to feature maps.
        channels: channels of the feature maps.
        num_classes: outputs.

    Shape:
        B × 3 × H × W to B × ``num_classes``.
    """

    def __init__(self, body: Sequence[nn.Module], channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.body(x), 1).flatten(1))


class BasicBlock(nn.Module):
    """Two convolutions and a shortcut (He et al. 2015), with a projection if the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut if the shape stays (Sandler et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * inputs
        self.expand = conv_bn(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = conv_bn(wide, wide, 3, stride, groups=wide)
        self.project = conv_bn(wide, outputs, 1)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x)) if isinstance(self.expand, nn.Sequential) else x
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.has_shortcut else y


class ShuffleUnit(nn.Module):
    """A branch for half of the channels, or for all if the shape changes; then the halves are shuffled
    (Ma et al. 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        same = stride == 1 and inputs == outputs
        self.halves = same
        own = half if same else inputs
        self.branch = nn.Sequential(
            conv_bn(own, half, 1),
            nn.ReLU(),
            conv_bn(half, half, 3, stride, groups=half),
            conv_bn(half, half, 1),
            nn.ReLU(),
        )
        if not same:
            self.shortcut = nn.Sequential(
                conv_bn(inputs, inputs, 3, stride, groups=inputs),
                conv_bn(inputs, half, 1),
                nn.ReLU(),
            )
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            kept, changed = x.chunk(2, dim=1)
        else:
            kept, changed = self.shortcut(x), x
        return self.shuffle(torch.cat([kept, self.branch(changed)], dim=1))


class RepVGGBlock(nn.Module):
    """The sum of a 3×3 convolution, a 1×1 convolution and, if the shape stays, the input itself, each
    with a batch norm (Ding et al. 2021); in its training form."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.large = conv_bn(inputs, outputs, 3, stride)
        self.small = conv_bn(inputs, outputs, 1, stride)
        same = stride == 1 and inputs == outputs
        self.identity = nn.BatchNorm2d(inputs) if same else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.large(x) + self.small(x)
        return F.relu(y if self.identity is None else y + self.identity(x))


def resnet8(num_classes: int = 10) -> nn.Module:
    """ResNet for CIFAR (He et al. 2015, section 4.2) with one block per stage: 78,042 parameters."""
    body = [
        conv_bn(3, 16, 3),
        nn.ReLU(),
        BasicBlock(16, 16, 1),
        BasicBlock(16, 32, 2),
        BasicBlock(32, 64, 2),
    ]
    return CifarNetwork(body, 64, num_classes)


def vgg7(num_classes: int = 10) -> nn.Module:
    """Six 3×3 convolutions in three stages, each followed by max pooling: 163,138 parameters."""
    body: list[nn.Module] = []
    inputs = 3
    for outputs in (24, 48, 96):
        for _ in range(2):
            body += [conv_bn(inputs, outputs, 3), nn.ReLU()]
            inputs = outputs
        body.append(nn.MaxPool2d(2))
    return CifarNetwork(body, inputs, num_classes)


def mobilenet_v2_small(num_classes: int = 10) -> nn.Module:
    """MobileNetV2 for 32×32 images with half the blocks and channels."""
    stages = ((8, 1, 1, 1), (12, 2, 2, 6), (16, 2, 2, 6), (32, 2, 2, 6), (48, 1, 1, 6))
    body = [conv_bn(3, 16, 3), nn.ReLU6()]
    inputs = 16
    for outputs, repeats, stride, expansion in stages:
        for number in range(repeats):
            body.append(InvertedResidual(inputs, outputs, stride if number == 0 else 1, expansion))
            inputs = outputs
    body += [conv_bn(inputs, 192, 1), nn.ReLU6()]
    return CifarNetwork(body, 192, num_classes)


def shufflenet_small(num_classes: int = 10) -> nn.Module:
    """ShuffleNetV2 for 32×32 images with seven units."""
    body = [conv_bn(3, 24, 3), nn.ReLU()]
    inputs = 24
    for outputs, repeats in ((48, 3), (96, 3), (192, 1)):
        for number in range(repeats):
            body.append(ShuffleUnit(inputs, outputs, 2 if number == 0 else 1))
            inputs = outputs
    return CifarNetwork(body, inputs, num_classes)


def repvgg_small(num_classes: int = 10) -> nn.Module:
    """RepVGG for 32×32 images with six blocks."""
    body: list[nn.Module] = []
    inputs = 3
    for outputs, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        body.append(RepVGGBlock(inputs, outputs, stride))
        inputs = outputs
    return CifarNetwork(body, inputs, num_classes)


def resnet18_small_stem(num_classes: int = 10) -> nn.Module:
    """Torchvision's ``resnet18`` with a stem for 32×32 images."""
    return adapt_stem(create_model("torchvision:resnet18", num_classes))


CIFAR_NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": resnet8,
    "vgg7": vgg7,
    "mobilenet_v2_small": mobilenet_v2_small,
    "shufflenet_small": shufflenet_small,
    "repvgg_small": repvgg_small,
    "resnet18_small_stem": resnet18_small_stem,
}


def conv_bn(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size at stride 1, followed by a batch norm."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )
