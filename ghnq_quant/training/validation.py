"""Accuracy on held-out networks and held-out training images, to choose the best checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ghnq_quant.design_space import SampledNetwork
from ghnq_quant.ghn import GHN
from ghnq_quant.training.batches import evaluation_batches
from ghnq_quant.training.functional import FunctionalNetwork
from ghnq_quant.training.images import Images


def hold_out(images: Images, fraction: float = 0.1, seed: int = 0) -> tuple[Images, Images]:
    """Split training images into those to train on and those to validate on, at random.

    Example:
        >>> from ghnq_quant.training import load_images
        >>> train, val = hold_out(load_images("digits").train)
        >>> len(train), len(val)
        (1294, 143)
    """
    order = torch.from_numpy(np.random.default_rng((seed, 2)).permutation(len(images)))
    count = max(1, int(len(images) * fraction))
    return images.select(order[count:]), images.select(order[:count])


def validate(
    ghn: GHN,
    networks: Sequence[SampledNetwork],
    images: Images,
    precisions: Sequence[tuple[int, int]],
    limit: int,
) -> float:
    """Mean top-1 accuracy, in [0, 1], over networks and precisions, with the statistics of batches of 64.

    Args:
        ghn: predicts each network's parameters for each precision.
        networks: of the design space.
        images: validation images.
        precisions: (weight, activation) bits.
        limit: how many images are used.
    """
    correct, seen = 0, 0
    for item in networks:
        for bits in precisions:
            with torch.no_grad():
                (parameters,) = ghn([item.graph], [bits])
                network = FunctionalNetwork(item.program, bits)
                for x, y in evaluation_batches(images, 64, limit=limit):
                    logits = network(parameters, x)
                    correct += int((logits.argmax(1) == y).sum())
                    seen += len(y)
    return correct / seen
