"""Accuracy on held-out networks and held-out training images, to choose a run's best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from ghnq_quant.ghn import GHN
from ghnq_quant.research.data.images import Images
from ghnq_quant.research.finetuning.functional import FunctionalNetwork
from ghnq_quant.research.networks import ConvNets250K, SampledNetwork


def validation_networks(count: int, num_classes: int) -> list[SampledNetwork]:
    """The first ``count`` networks of the split ``val`` that take images of any size."""
    items = iter(ConvNets250K("val", num_classes=num_classes))
    return list(islice((item for item in items if item.description.any_size), count))


def validate(
    ghn: GHN,
    networks: Sequence[SampledNetwork],
    images: Images,
    precisions: Sequence[tuple[int, int]],
    limit: int,
    channel_limit: float | None = None,
) -> float:
    """Mean top-1 accuracy in [0, 1] over networks and precisions, with statistics of batches of 64.

    Args:
        ghn: predicts each network's parameters for each precision.
        networks: networks of the design space.
        images: validation images; the first ``limit`` are used, in order.
        precisions: (weight, activation) bits.
        limit: number of images to use.
        channel_limit: of quantized networks, see :class:`ghnq_quant.QuantScheme`.
    """
    images = images.select(torch.arange(min(limit, len(images))))
    batches = list(
        zip(images.normalize(images.images).split(64), images.labels.split(64), strict=True)
    )
    correct = 0
    for item in networks:
        for bits in precisions:
            with torch.no_grad():
                (parameters,) = ghn([item.graph], [bits])
                parameters = {k: p.to(images.labels.device) for k, p in parameters.items()}
                network = FunctionalNetwork(item.program, bits, channel_limit)
                for x, y in batches:
                    correct += int((network(parameters, x).argmax(1) == y).sum())
    return correct / (len(networks) * len(precisions) * len(images))
