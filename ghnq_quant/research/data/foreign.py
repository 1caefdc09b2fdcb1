"""A task that the hypernetwork has not seen, made from the images that it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.research.data import Images, ImageSet
from ghnq_quant.research.data.images import channel_moments

#: Weights of red, green and blue in a grey value (ITU-R BT.601).
_GREY = (0.299, 0.587, 0.114)
_IMAGES_AT_ONCE = 4096


def foreign(images: ImageSet) -> ImageSet:
    """The images in grey, inverted and blurred, with pairs of neighboring classes merged.

    Blurred by the binomial 3×3 kernel. If the number of classes is odd, the last one stays alone.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> foreign(load_images("digits")).train.classes
        ('0 or 1', '2 or 3', '4 or 5', '6 or 7', '8 or 9')
    """
    train = _strange(images.train.images)
    mean, std = channel_moments(train)
    parts = [
        Images(x, part.labels // 2, _pairs(part.classes), mean, std)
        for x, part in ((train, images.train), (_strange(images.test.images), images.test))
    ]
    return ImageSet(
        f"{images.name} in grey, inverted and blurred, {len(parts[0].classes)} classes", *parts
    )


def _strange(images: Tensor) -> Tensor:
    """uint8, N × 3 × H × W."""
    weights = torch.tensor(_GREY).view(1, 3, 1, 1)
    binomial = torch.tensor([[1.0, 2.0, 1.0]])
    kernel = (binomial.T @ binomial / 16)[None, None]
    result = torch.empty_like(images)
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        part = slice(start, start + _IMAGES_AT_ONCE)
        grey = 255 - (images[part].float() * weights).sum(1, keepdim=True)
        blurred = F.conv2d(F.pad(grey, [1] * 4, mode="replicate"), kernel)
        result[part] = blurred.round().to(torch.uint8)
    return result


def _pairs(classes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(" or ".join(classes[i : i + 2]) for i in range(0, len(classes), 2))
