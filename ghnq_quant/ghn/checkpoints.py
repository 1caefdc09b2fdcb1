"""Checkpoints: those that the package ships, and the public GHN-2 format."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnq_quant.errors import CheckpointError

_BUNDLED = Path(__file__).parents[1] / "checkpoints"
#: What makes a checkpoint of the public format a GHN-2; its other settings are sizes.
_GHN2 = {
    "hypernet": "gatedgnn",
    "decoder": "conv",
    "weight_norm": True,
    "ve": True,
    "layernorm": True,
}


@dataclass(frozen=True)
class PpudaCheckpoint:
    """The sizes (max_shape, num_classes, hid) and parameters of a GHN-2."""

    sizes: dict[str, Any]
    state_dict: dict[str, Tensor]


def bundled_checkpoint(name: str) -> Path | None:
    """Folder of the checkpoint ``name`` that the package ships, None if it ships no such one."""
    folder = _BUNDLED / name
    is_plain = name and "/" not in name and "\\" not in name and not name.startswith(".")
    return folder if is_plain and folder.is_dir() else None


def read_ppuda(path: str | Path) -> PpudaCheckpoint:
    """Read the public format: a ``torch.save``d dict with ``config`` and ``state_dict``.

    Raises:
        CheckpointError: see :meth:`ghnq_quant.ghn.GHN.from_ppuda`.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds pickled objects other than tensors and plain values; it is not loaded, "
            "since they could run code. Save it anew with the config and the state_dict alone"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: damaged or not a PyTorch checkpoint ({type(error).__name__}: {error}); "
            "download or copy it again"
        ) from error
    if not isinstance(content, dict) or not {"config", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path}: has no `config` and `state_dict`, so it is not a GHN")
    config = content["config"]
    for key, value in _GHN2.items():
        if config.get(key) != value:
            raise CheckpointError(
                f"{path}: not a GHN-2: its config has {key}={config.get(key)!r}, expected {value!r}"
            )
    sizes = {
        "max_shape": [int(s) for s in config["max_shape"]],
        "num_classes": int(config["num_classes"]),
        "hid": int(config.get("hid", 32)),
    }
    return PpudaCheckpoint(sizes, content["state_dict"])
