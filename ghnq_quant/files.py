"""Files that are either whole or absent: JSON and state dicts, written to a temporary name and renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ghnq_quant.errors import CheckpointError, GhnqError

STATE_SUFFIXES = (".safetensors", ".pt")
#: Prefix of the names of unfinished files.
_UNFINISHED = ".tmp-"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, renamed to ``path`` if the block ends without error.

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
    temporary = path.with_name(f"{_UNFINISHED}{os.getpid()}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside ``folder``; if the block ends without error, its files are
    moved to ``folder``, each as a whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_UNFINISHED}{os.getpid()}"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove unfinished files of killed processes from ``folder`` and the folders directly in it."""
    folder = Path(folder)
    for path in [*folder.glob(f"{_UNFINISHED}*"), *folder.glob(f"*/{_UNFINISHED}*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_output(path: str | Path, suffixes: Collection[str] = ()) -> None:
    """Raise if a file could not be written, before the work whose result it will hold.

    Args:
        path: the file.
        suffixes: the allowed ones; any if empty.

    Raises:
        GhnqError: another suffix, or ``path`` is a folder.
        OSError: the file's folder cannot be made or written to.

    Example:
        >>> check_output("model.onnx", [".onnx"])
    """
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise GhnqError(f"{path} must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise GhnqError(f"{path} is a folder: give the name of a file")
    check_output_folder(path.parent)


def check_output_folder(folder: str | Path) -> None:
    """Raise an :class:`OSError` if ``folder`` could not be made or written to; does not make it."""
    folder = Path(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))


def save_json(content: object, path: str | Path) -> None:
    """Write ``content`` as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        GhnqError: there is no such file, or it is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise GhnqError(f"{path} cannot be read as JSON: {error}") from error


def check_state_path(path: str | Path) -> None:
    """Raise if :func:`save_state` could not write to ``path``, as :func:`check_output` does."""
    check_output(path, STATE_SUFFIXES)


def save_state(
    module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Save a module's ``state_dict``.

    Args:
        module: any module.
        path: ``*.safetensors``, or ``*.pt`` for :func:`torch.save`.
        metadata: text for the header of a safetensors file; a ``.pt`` file cannot hold it.

    Raises:
        GhnqError: ``path`` has another suffix or is a folder.
        OSError: it cannot be written.
    """
    check_state_path(path)
    # Clones, because safetensors rejects tensors that share memory.
    state = {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}
    with replacing(path) as temporary:
        if Path(path).suffix == ".pt":
            torch.save(state, temporary)
        else:
            save_file(state, temporary, dict(metadata or {}))


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a ``state_dict`` and its metadata, as :func:`save_state` or others write them.

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
        CheckpointError: it belongs to another model.
    """
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} is of another model, backend or precision: {error}"
        ) from error
