"""Checkpoints: those that the package ships, and the public GHN-2 format."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ghnq_quant.errors import CheckpointError

#: What is used where no hypernetwork is given.
DEFAULT_CHECKPOINT = "ghnq-cifar10"

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


def check_folder(folder: Path) -> None:
    """Both files of a saved hypernetwork are there: of neither is a default taken, or a pickle.

    Raises:
        CheckpointError: one is missing.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder}: has no {name}; give a folder that `save_pretrained` wrote"
            )


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
            f"{path}: holds pickled objects other than tensors and plain values, or is no "
            "checkpoint at all; it is not loaded, since it could run code. Save it anew with the "
            "config and the state_dict alone"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path}: damaged or not a PyTorch checkpoint ({type(error).__name__}: {error}); "
            "download or copy it again"
        ) from error
    if not isinstance(content, dict) or not {"config", "state_dict"} <= content.keys():
        raise CheckpointError(f"{path}: has no `config` and `state_dict`, so it is not a GHN")
    config, state_dict = content["config"], content["state_dict"]
    if not isinstance(config, dict) or not isinstance(state_dict, dict):
        raise CheckpointError(f"{path}: its `config` or `state_dict` is not a dict")
    for key, value in _GHN2.items():
        if config.get(key) != value:
            raise CheckpointError(
                f"{path}: not a GHN-2: its config has {key}={config.get(key)!r}, expected {value!r}"
            )
    sizes = {
        "max_shape": list(_integers(path, "max_shape", config.get("max_shape"), 4)),
        "num_classes": _integers(path, "num_classes", [config.get("num_classes")], 1)[0],
        "hid": _integers(path, "hid", [config.get("hid", 32)], 1)[0],
    }
    return PpudaCheckpoint(sizes, state_dict)


def _integers(path: str | Path, key: str, values: Any, count: int) -> tuple[int, ...]:
    try:
        integers = tuple(int(value) for value in values)
    except (TypeError, ValueError):
        integers = ()
    if len(integers) != count or min(integers) < 1:
        raise CheckpointError(f"{path}: its config has no usable {key}, but {values!r}")
    return integers
