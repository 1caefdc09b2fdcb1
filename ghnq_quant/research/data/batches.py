"""Batches of an image set as a pure function of (seed, step), so that nothing needs resuming."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ghnq_quant.errors import DataError
from ghnq_quant.research.data.images import Images
from ghnq_quant.research.runs.seeds import Stream, generator


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training batch.

    Attributes:
        pad: black pixels added on each side before a random crop of the original size.
        flip: mirror half of the images left to right (wrong for digits and letters).
    """

    pad: int = 4
    flip: bool = True


#: For digits: a mirrored one is not a digit, and 2 is half of a pixel of the enlarged ones.
_DIGITS = Augmentation(pad=2, flip=False)


def usual_augmentation(data: str) -> Augmentation:
    """The augmentation for training on the images ``data`` of :func:`load_images`."""
    return _DIGITS if data == "digits" else Augmentation()


def training_batch(
    images: Images,
    step: int,
    batch_size: int,
    seed: int,
    *,
    augment: Augmentation | None = Augmentation(),
) -> tuple[Tensor, Tensor]:
    """The batch of one training step: the same for the same arguments, whatever came before.

    Images from number ``step * batch_size`` on are taken from an endless sequence of epochs, each the
    whole set in a new order. Nothing is kept between steps, so a resumed run continues exactly where
    it stopped.

    Args:
        images: the training part.
        step: from 0.
        batch_size: images in the batch, B; every batch is full.
        seed: for the order and the augmentation, from 0.
        augment: the random changes, or None for none.

    Returns:
        float32 B × 3 × H × W, normalized, and int64 labels B, on the images' device.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> train = load_images("digits").train
        >>> x, y = training_batch(train, step=7, batch_size=32, seed=0)
        >>> x.shape, y.shape
        (torch.Size([32, 3, 32, 32]), torch.Size([32]))
    """
    index = _step_indices(len(images), step, batch_size, seed)
    return _batch(images, index, augment, generator(seed, Stream.AUGMENTATION, step))


def first_epoch(
    images: Images, data: str, seed: int, batch_size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """The first batches of a training on ``images``, the training part of ``data``: what
    :func:`ghnq_quant.init_quantized` fits a classifier to."""
    augment = usual_augmentation(data)
    for step in range(-(-len(images) // batch_size)):
        yield training_batch(images, step, batch_size, seed, augment=augment)


def balanced_batch(
    images: Images,
    number: int,
    batch_size: int,
    seed: int,
    *,
    augment: Augmentation | None = Augmentation(pad=0),
) -> tuple[Tensor, Tensor]:
    """A batch with equally many images of each class, drawn with replacement.

    If the batch size is not a multiple of the number of classes, the classes with one more image are
    drawn too. If a network predicts the same class for the whole batch, the gradient then does not
    say which.

    Args:
        images: the training part.
        number: number of the batch, from 0; the same batch for the same number, whatever came before.
        batch_size: images in the batch, B.
        seed, augment: as for :func:`training_batch`.

    Returns:
        float32 B × 3 × H × W, normalized, and int64 labels B, on the images' device.

    Raises:
        DataError: a class has no images.

    Example:
        >>> from ghnq_quant.research.data import load_images
        >>> _, labels = balanced_batch(load_images("digits").train, number=7, batch_size=30, seed=0)
        >>> labels.bincount().tolist()
        [3, 3, 3, 3, 3, 3, 3, 3, 3, 3]
    """
    rng = generator(seed, Stream.BALANCED_BATCH, number)
    members = images.members
    count, more = divmod(batch_size, len(members))
    counts = np.full(len(members), count)
    counts[rng.permutation(len(members))[:more]] += 1
    chosen = [of[rng.integers(len(of), size=n)] for of, n in zip(members, counts, strict=True)]
    return _batch(images, torch.from_numpy(np.concatenate(chosen)), augment, rng)


def evaluation_batches(
    images: Images, batch_size: int = 64, *, limit: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images once, in batches, unchanged; the last batch may be smaller.

    They come in a fixed mixed order: folders are sorted by class, and a batch of a single class would
    spoil batch statistics (and a ``limit`` would leave out the last classes).

    Args:
        images: usually the test part.
        batch_size: images in a batch, B.
        limit: largest number of images; None for all.

    Yields:
        float32 B × 3 × H × W, normalized, and int64 labels B, on the images' device.
    """
    order = _order(len(images), 0, 0)[:limit].to(images.labels.device)
    for index in order.split(batch_size):
        yield images.normalize(images.images[index]), images.labels[index]


@lru_cache(maxsize=8)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in one epoch; cached because every step of an epoch needs it."""
    return torch.from_numpy(generator(seed, Stream.IMAGE_ORDER, epoch).permutation(count))


def _step_indices(count: int, step: int, batch_size: int, seed: int) -> Tensor:
    first, end = step * batch_size, (step + 1) * batch_size
    parts = [
        _order(count, seed, epoch)[max(first - epoch * count, 0) : end - epoch * count]
        for epoch in range(first // count, (end - 1) // count + 1)
    ]
    return torch.cat(parts)


def _batch(
    images: Images, index: Tensor, augment: Augmentation | None, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    index = index.to(images.labels.device)
    batch = images.images[index]
    if augment is not None:
        batch = _augmented(batch, augment, rng)
    return images.normalize(batch), images.labels[index]


def _augmented(batch: Tensor, augment: Augmentation, rng: np.random.Generator) -> Tensor:
    """Pad, crop and flip B × 3 × H × W with one gather; a flip alone needs none."""
    count, _, height, width = batch.shape
    if augment.pad == 0:
        mirrored = torch.from_numpy(rng.random((count, 1, 1, 1)) < (0.5 if augment.flip else 0.0))
        return torch.where(mirrored.to(batch.device), batch.flip(3), batch)
    top, left = torch.from_numpy(rng.integers(0, 2 * augment.pad + 1, (2, count, 1)))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    if augment.flip:
        mirrored = torch.from_numpy(rng.random((count, 1)) < 0.5)
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(batch, [augment.pad] * 4)
    item = torch.arange(count)[:, None, None]
    item, rows, columns = (
        t.to(batch.device) for t in (item, rows[:, :, None], columns[:, None, :])
    )
    cropped = padded.permute(0, 2, 3, 1)[item, rows, columns]
    return cropped.permute(0, 3, 1, 2).contiguous()


def shrink(batch: Tensor, size: int) -> Tensor:
    """(B, C, H, W) to (B, C, ``size``, ``size``) by averaging areas.

    Raises:
        DataError: ``size`` is larger than the images.
    """
    height, width = batch.shape[2:]
    if (height, width) == (size, size):
        return batch
    if not 1 <= size <= min(height, width):
        raise DataError(f"cannot shrink images of {height}×{width} pixels to {size}×{size}")
    return F.interpolate(batch, size=(size, size), mode="area")
