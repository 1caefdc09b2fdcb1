"""Files that are whole or not there, written under a temporary name, then renamed: JSON and state dicts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ghnq_quant.errors import CheckpointError, GhnqError

STATE_SUFFIXES = (".safetensors", ".pt")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``, which takes its place when the block ends well.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(target) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> target.read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A ``state_dict`` of :func:`save_state`, or any in these formats, and its metadata.

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds something else.
    """
    try:
        if Path(path).suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return state, file.metadata() or {}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch.load raises depends on the damage
        raise CheckpointError(f"{path} cannot be read as a state_dict: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} holds no state_dict of names and tensors")
    return state, {}


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Load a state that was read from ``path``.

    Raises:
        CheckpointError: it is of another model.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is of another model, backend or precision: {error}"
        ) from error
