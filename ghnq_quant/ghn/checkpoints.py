"""Checkpoints: the ones shipped with the package, and the public GHN-2 format."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ghnq_quant.errors import CheckpointError

#: Used when no hypernetwork is given.
DEFAULT_CHECKPOINT = "ghnq-cifar10"

WEIGHTS_FILE = "model.safetensors"
_BUNDLED = Path(__file__).parents[1] / "checkpoints"
#: Settings that identify a checkpoint of the public format as a GHN-2; the others are sizes.
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
    """Folder of the shipped checkpoint ``name``; None if there is none."""
    folder = _BUNDLED / name
    is_plain = name and "/" not in name and "\\" not in name and not name.startswith(".")
    return folder if is_plain and folder.is_dir() else None


def may_be_repository(name_or_path: str | Path) -> bool:
    """Whether a name is looked up on the Hugging Face Hub: OWNER/NAME, if no folder OWNER is here.

    Example:
        >>> may_be_repository("somebody/ghn"), may_be_repository("./ghn"), may_be_repository("ghn")
        (True, False, False)
    """
    owner, _, name = str(name_or_path).partition("/")
    is_name = bool(owner) and bool(name) and not set(name) & {"/", "\\"}
    is_path = isinstance(name_or_path, Path) or owner[:1] in {".", "~"} or Path(owner).is_dir()
    return is_name and not is_path


def shapes_in(file: Path) -> dict[str, list[int]]:
    """The shapes of a safetensors file's tensors, by name, read from its header alone."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118


class _EmbeddingsAsTheyAre(TorchFunctionMode):
    """Leaves out the normal distribution, which imports the compiler if it is given a meta tensor."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Create modules that have shapes but no values."""
    with torch.device("meta"), _EmbeddingsAsTheyAre():
        yield


def check_shapes(
    create: Callable[..., nn.Module],
    settings: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
) -> None:
    """Compare parameter shapes with what the settings require, before any memory is allocated.

    Args:
        create: makes the hypernetwork from the settings.
        settings: the checkpoint's settings.
        shapes: the shapes of its parameters, by name.

    Raises:
        RuntimeError: a parameter is missing, has another shape, or is unexpected.
        ValueError: an invalid setting.
    """
    with on_meta_device():
        state = {name: torch.empty(*shape) for name, shape in shapes.items()}
        create(**settings).load_state_dict(state)


def check_counts(*, max_shape: object, **counts: object) -> None:
    """Raise a ValueError for anything but positive integers; ``max_shape`` has four."""
    if not isinstance(max_shape, (list, tuple)) or len(max_shape) != 4:
        raise ValueError(f"max_shape is four whole numbers, not {max_shape!r}")
    for name, value in [*counts.items(), *(("max_shape", size) for size in max_shape)]:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} takes whole numbers from 1, not {value!r}")


def check_flags(**flags: object) -> None:
    """Raise a ValueError for what is neither true nor false."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is true or false, not {value!r}")


def check_folder(folder: Path) -> None:
    """Check that both files of a saved hypernetwork exist: neither has a default or a pickle instead.

    Raises:
        CheckpointError: one is missing.
    """
    for name in ("config.json", WEIGHTS_FILE):
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
            f"{path}: holds pickled objects other than tensors and plain values, or is not a "
            "checkpoint at all; it is not loaded, because it could run code. Save it again with "
            "only the config and the state_dict"
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


def as_shaped(state: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with 1×1 convolutions as linear layers, or the reverse, wherever ``like`` has it so."""
    return {
        name: w.view(like[name].shape)
        if name in like and w.shape[:2] == like[name].shape[:2] and w.numel() == like[name].numel()
        else w
        for name, w in state.items()
    }
