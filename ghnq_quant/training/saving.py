"""State dicts and JSON on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing

STATE_SUFFIXES = (".safetensors", ".pt")


def save_json(content: object, path: str | Path) -> None:
    """Write ``content`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        GhnqError: there is no such file, or it holds no JSON; names it.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GhnqError(f"{path} cannot be read as JSON: {error}") from error


def check_state_path(path: str | Path) -> None:
    """Raise a :class:`GhnqError` if :func:`save_state` could not write to ``path``."""
    if Path(path).suffix not in STATE_SUFFIXES:
        raise GhnqError(f"{path} must end in {' or '.join(STATE_SUFFIXES)}")
    if Path(path).is_dir():
        raise GhnqError(f"{path} is a folder: give the name of a file")


def save_state(
    module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Save a module's ``state_dict``.

    Args:
        module: any module.
        path: ``*.safetensors``, or ``*.pt`` for :func:`torch.save`.
        metadata: text stored in the header of a safetensors file; a ``.pt`` file has no place
            for it.

    Raises:
        GhnqError: ``path`` has another ending or is a folder.
    """
    check_state_path(path)
    # Clones, because safetensors takes no tensors that share memory.
    state = {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}
    with replacing(path) as temporary:
        if Path(path).suffix == ".pt":
            torch.save(state, temporary)
        else:
            save_file(state, temporary, dict(metadata or {}))
