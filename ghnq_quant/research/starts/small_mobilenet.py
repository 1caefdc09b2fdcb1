"""The quickstart's network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ghnq_quant.research.starts.cifar_networks import conv_bn


class SmallMobileNet(nn.Module):
    """A MobileNet-like CNN as a user would write it: 48,266 parameters with ten classes.

    Args:
        num_classes: outputs.

    Shape:
        B × 3 × H × W to B × ``num_classes``; H and W from 16 up.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = _conv_bn_act(3, 16, kernel_size=3, stride=2)
        self.blocks = nn.Sequential(
            InvertedResidual(16, 24, stride=1),
            InvertedResidual(24, 24, stride=1),
            InvertedResidual(24, 40, stride=2),
            InvertedResidual(40, 40, stride=1),
            InvertedResidual(40, 64, stride=2),
        )
        self.head = _conv_bn_act(64, 128, kernel_size=1)
        self.classifier = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """Expand three times, filter each channel, project; with a shortcut if the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 3 * inputs
        self.shortcut = stride == 1 and inputs == outputs
        self.layers = nn.Sequential(
            _conv_bn_act(inputs, wide, kernel_size=1),
            _conv_bn_act(wide, wide, kernel_size=3, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.shortcut else self.layers(x)


def _conv_bn_act(
    inputs: int, outputs: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return conv_bn(inputs, outputs, kernel_size, stride, groups).append(nn.ReLU6())
