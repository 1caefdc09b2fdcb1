"""The networks that are evaluated: those of ConvNets-250K's splits, or named models."""

from __future__ import annotations

from torch import nn

from ghnq_quant.errors import GhnqError
from ghnq_quant.research.data import Images
from ghnq_quant.research.table1.settings import EvaluationSettings
from ghnq_quant.stem.small_images import adapt_stem
from ghnq_quant.zoos import create_zoo_model


def network_places(settings: EvaluationSettings) -> list[tuple[str, int]]:
    """(split, index) of all networks in their order; (model, 0) of named ones.

    Raises:
        DataError: there is no such split.
        GhnqError: a split has fewer networks than are asked for.
    """
    from ghnq_quant.research.networks import ConvNets250K

    if settings.models:
        return [(name, 0) for name in settings.models]
    places = []
    for split in settings.splits:
        size = len(ConvNets250K(split))
        count = size if settings.num_nets is None else settings.num_nets
        if count > size:
            raise GhnqError(f"split {split} has {size} networks, not {count}")
        places += [(split, index) for index in range(count)]
    return places


def open_network(settings: EvaluationSettings, group: str, index: int, images: Images) -> nn.Module:
    """The network of a place; those of the splits come without initialization.

    Args:
        images: whose classes a named model tells apart, and whose size it is adapted to if wanted.

    Raises:
        GhnqError: there is no model of that name, or it cannot be adapted.
    """
    from ghnq_quant.research.networks import ConvNets250K

    if settings.models:
        model = create_zoo_model(group, len(images.classes))
        side = min(images.images.shape[2:])
        return adapt_stem(model, side) if settings.adapt_stem else model
    return ConvNets250K(group)[index].build(initialize=False)
