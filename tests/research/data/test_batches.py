"""Batches of images: their content, and what they depend on."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ghnq_quant import DataError
from ghnq_quant.research.data import (
    Augmentation,
    Images,
    evaluation_batches,
    training_batch,
)
from ghnq_quant.research.data.batches import shrink


def numbered(count: int, size: int = 8) -> Images:
    """Images whose label is their index and whose pixels all differ from zero."""
    pixels = torch.arange(count * 3 * size * size).remainder(255).add(1).to(torch.uint8)
    zero, one = torch.zeros(3), torch.full((3,), 1 / 255)
    shape = (count, 3, size, size)
    names = tuple(map(str, range(count)))
    return Images(pixels.view(shape), torch.arange(count), names, zero, one)


def test_every_epoch_holds_every_image_once_in_an_order_of_its_own():
    images = numbered(10)
    labels = torch.cat([training_batch(images, step, 4, seed=3)[1] for step in range(5)])
    first, second = labels.view(2, 10)
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()
    other = torch.cat([training_batch(images, step, 4, seed=4)[1] for step in range(5)])
    assert other.tolist() != labels.tolist()


def test_batch_may_span_several_epochs():
    labels = training_batch(numbered(3), step=1, batch_size=8, seed=0)[1]
    assert labels[1:4].sort().values.tolist() == labels[4:7].sort().values.tolist() == [0, 1, 2]


def test_batch_does_not_depend_on_earlier_batches():
    images = numbered(10)
    run = [training_batch(images, step, 4, seed=0) for step in range(6)]
    torch.rand(3)
    for step in (5, 2):
        x, y = training_batch(images, step, 4, seed=0)
        assert torch.equal(x, run[step][0])
        assert torch.equal(y, run[step][1])


def test_augmented_image_is_a_crop_of_the_padded_or_mirrored_original():
    images = numbered(40)
    x, y = training_batch(images, 0, 40, seed=0, augment=Augmentation(pad=2, flip=True))
    seen = set()
    for item, label in zip(x, y, strict=True):
        original = F.pad(images.images[label].float(), [2] * 4)
        crops = {
            (flip, top, left): crop.flip(2) if flip else crop
            for flip in (False, True)
            for top in range(5)
            for left in range(5)
            for crop in [original[:, top : top + 8, left : left + 8]]
        }
        matching = [where for where, crop in crops.items() if torch.equal(crop, item)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert {flip for flip, _, _ in seen} == {False, True}
    assert {top for _, top, _ in seen} == {left for _, _, left in seen} == set(range(5))


def test_no_augmentation_gives_the_images_themselves():
    images = numbered(5)
    x, y = training_batch(images, 0, 5, seed=0, augment=None)
    assert torch.equal(x, images.images[y].float())


def test_shrinking_averages_areas():
    batch = numbered(5).images.float()
    torch.testing.assert_close(shrink(batch, 4), batch.view(5, 3, 4, 2, 4, 2).mean((3, 5)))
    assert shrink(batch, 8) is batch
    with pytest.raises(DataError, match="8×8 pixels to 9×9"):
        shrink(batch, 9)


def test_evaluation_sees_every_image_once_and_mixes_the_classes():
    images = numbered(100)
    labels = [y for _, y in evaluation_batches(images, 32)]
    assert [len(y) for y in labels] == [32, 32, 32, 4]
    assert torch.cat(labels).sort().values.tolist() == list(range(100))
    assert labels[0].max() > 64
    limited = torch.cat([y for _, y in evaluation_batches(images, 32, limit=40)])
    assert torch.equal(limited, torch.cat(labels)[:40])


def test_sample_of_each_class_has_no_image_twice_and_all_of_a_small_class():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2] * 5)
    pixels = torch.arange(14, dtype=torch.uint8).view(14, 1, 1, 1).expand(14, 3, 4, 4)
    images = Images(pixels, labels, ("a", "b", "c"), torch.zeros(3), torch.ones(3))
    few = images.sample_each_class(4, seed=1)
    assert few.labels.bincount().tolist() == [4, 2, 4]
    numbers = few.images[:, 0, 0, 0]
    assert len(numbers.unique()) == 10
    assert torch.equal(labels[numbers.long()], few.labels)
    assert torch.equal(numbers, images.sample_each_class(4, seed=1).images[:, 0, 0, 0])
    with pytest.raises(DataError, match="cannot take 0 images"):
        images.sample_each_class(0)


def test_sample_is_a_fixed_subset():
    images = numbered(100)
    sample = images.sample(20, seed=1)
    assert len(set(sample.labels.tolist())) == 20
    assert torch.equal(sample.images, images.images[sample.labels])
    assert torch.equal(sample.labels, images.sample(20, seed=1).labels)
    assert len(images.sample(1000)) == 100
    with pytest.raises(DataError, match="at least 1"):
        images.sample(0)
