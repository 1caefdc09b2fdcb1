"""The random draws of a step: networks, a precision, and images."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ghnq_quant import DataError
from ghnq_quant.research.data import ImageSet, balanced_batch
from ghnq_quant.research.finetuning.order import TrainingNetworks, network_indices, precision_index
from ghnq_quant.research.finetuning.settings import ALL_ARCHITECTURES
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork


def test_every_network_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    epochs = [
        [i for step in range(5) for i in network_indices(20, 5 * epoch + step, 4, seed=1)]
        for epoch in range(2)
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]


def test_precisions_are_drawn_evenly() -> None:
    drawn = [precision_index(3, step, seed=0) for step in range(3000)]
    assert all(abs(drawn.count(k) - 1000) < 100 for k in range(3))


def test_fixed_architectures_are_dealt_out_small_ones_first() -> None:
    draws = []
    for rank in range(2):
        networks = TrainingNetworks(10, 20, seed=0, rank=rank, processes=2)
        steps = [networks.draw(step, 4, 10, 2_000_000, any_size=True) for step in range(50)]
        draws.append({item.index for items in steps for item in items})
        assert all(item.description.any_size for items in steps for item in items)
    assert not draws[0] & draws[1]
    split = ConvNets250K("train")
    first: list[SampledNetwork] = []
    for item in split:
        if item.description.any_size and item.program.macs <= 2_000_000:
            first.append(item)
        if len(first) == 20:
            break
    smallest = sorted(first, key=lambda item: item.program.macs)[:10]
    assert draws[0] | draws[1] == {item.index for item in smallest}


def test_all_architectures_come_once_an_epoch_unless_they_are_too_large() -> None:
    networks = TrainingNetworks(10, ALL_ARCHITECTURES, seed=0)
    wanted = network_indices(250_000, 2, 4, 0)
    drawn = networks.draw(2, 4, 0, None, any_size=False)
    assert [item.index for item in drawn] == wanted
    small = networks.draw(2, 4, 0, 1_000_000, any_size=False)
    assert all(item.program.macs <= 1_000_000 for item in small)
    kept = [item.index for item in drawn if item.program.macs <= 1_000_000]
    assert [item.index for item in small if item.index in wanted] == kept


def test_a_balanced_batch_is_the_same_for_its_number_and_has_as_many_of_each_class(
    digits: ImageSet,
) -> None:
    images = replace(digits.train)
    x, y = balanced_batch(images, 3, 43, seed=1)
    again, _ = balanced_batch(images, 3, 43, seed=1)
    other, _ = balanced_batch(images, 4, 43, seed=1)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    assert sorted(y.bincount().tolist()) == [4] * 7 + [5] * 3
    plain, labels = balanced_batch(images, 3, 43, seed=1, augment=None)
    known = images.normalize(images.images)
    for image, label in zip(plain[:5], labels[:5], strict=True):
        at = (known - image).abs().sum((1, 2, 3)).argmin()
        assert torch.equal(known[at], image)
        assert images.labels[at] == label
    without = images.select((images.labels != 4).nonzero().flatten())
    with pytest.raises(DataError, match="'4'"):
        balanced_batch(without, 0, 20, seed=0)
