"""The networks that are evaluated: those of ConvNets-250K's splits, or named models."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ghnq_quant.capture.adapters import create_zoo_model
from ghnq_quant.errors import CheckpointError, GhnqError
from ghnq_quant.evaluation.settings import EvaluationSettings
from ghnq_quant.small_images import adapt_stem
from ghnq_quant.training import Images


def network_places(settings: EvaluationSettings) -> list[tuple[str, int]]:
    """(split, index) of all networks in their order; (model, 0) of named ones.

    Raises:
        DataError: there is no such split.
        GhnqError: a split has fewer networks than are asked for.
    """
    from ghnq_quant.design_space import ConvNets250K

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
    from ghnq_quant.design_space import ConvNets250K

    if settings.models:
        model = create_zoo_model(group, len(images.classes))
        side = min(images.images.shape[2:])
        return adapt_stem(model, side) if settings.adapt_stem else model
    return ConvNets250K(group)[index].build(initialize=False)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a ``state_dict`` from ``*.safetensors`` or from a file of ``torch.save``, tensors alone.

    Raises:
        CheckpointError: there is no such file, or it holds something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if all(isinstance(value, Tensor) for value in state.values()):
            return dict(state)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    except Exception as error:  # what torch.load raises depends on the damage
        raise CheckpointError(f"{path} is no state_dict: {type(error).__name__}") from error
    raise CheckpointError(f"{path} is no state_dict: it holds more than tensors")
