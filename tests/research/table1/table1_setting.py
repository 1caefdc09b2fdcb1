"""A network with everything that the protocol treats specially, and images of noise."""

from __future__ import annotations

import torch
from torch import nn

from ghnq_quant.research.data import Images


class Net(nn.Module):
    """Folded batch norms, one that is not folded, a depthwise layer, and a sum."""

    def __init__(self, width: int = 8, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.before = nn.BatchNorm2d(width)
        self.conv = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.max_pool2d(x + self.norm2(self.depthwise(x)), 2)
        x = self.conv(torch.relu(self.before(x)))
        return self.head(x.mean((2, 3)))


def random_images(count: int, seed: int, side: int = 8) -> Images:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    y = torch.randint(0, 10, (count,), generator=generator)
    classes = tuple(f"class {i}" for i in range(10))
    return Images(x, y, classes, torch.full((3,), 0.5), torch.full((3,), 0.25))
