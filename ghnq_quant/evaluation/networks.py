"""The networks that are evaluated: those of ConvNets-250K's splits, or one named model."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ghnq_quant.capture.adapters import create_zoo_model
from ghnq_quant.errors import CheckpointError, GhnqError
from ghnq_quant.evaluation.settings import EvaluationSettings


def network_places(settings: EvaluationSettings) -> list[tuple[str, int]]:
    """(split, index) of all networks in their order; (model, 0) of a named one.

    Raises:
        DataError: there is no such split.
        GhnqError: a split has fewer networks than are asked for.
    """
    from ghnq_quant.design_space import ConvNets250K

    if settings.model is not None:
        return [(settings.model, 0)]
    places = []
    for split in settings.splits:
        size = len(ConvNets250K(split))
        count = size if settings.num_nets is None else settings.num_nets
        if count > size:
            raise GhnqError(f"split {split} has {size} networks, not {count}")
        places += [(split, index) for index in range(count)]
    return places


def open_network(settings: EvaluationSettings, group: str, index: int, classes: int) -> nn.Module:
    """The network of a place; those of the splits come without initialization.

    Raises:
        GhnqError: there is no model of that name.
    """
    from ghnq_quant.design_space import ConvNets250K

    if settings.model is not None:
        return create_zoo_model(settings.model, classes)
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
