"""A file of results that grows as they come, from which a killed run continues."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing
from ghnq_quant.research.runs.identity import check_same_run


class Result(Protocol):
    """What a journal holds."""

    @property
    def key(self) -> Hashable:
        """Identifies the result within the run."""

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and strings."""

    @classmethod
    def from_json(cls: type[_R], content: Mapping[str, Any]) -> _R:
        """The inverse of :meth:`to_json`."""


_R = TypeVar("_R", bound=Result)


class Journal(Generic[_R]):
    """A file with the run's settings in its first line, then one line per result; the last of several
    with the same key counts.

    Every line is on disk before the next result is started, so a killed run loses none; an incomplete
    last line is dropped when the run continues.

    Args:
        path: the file.
        header: what must be the same for the run to continue, see
            :func:`ghnq_quant.research.runs.identity.check_same_run`.
        kind: class of the results.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], kind: type[_R]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        self.kind = kind

    def resume(self) -> dict[Hashable, _R]:
        """Start the file or continue it; returns the finished results by key.

        Raises:
            GhnqError: the file belongs to a run with another header, or is not a journal.
        """
        found, lines, finished = _read(self.path, self.kind)
        if lines:
            check_same_run(found or {}, self.header, self.path)
        else:  # no result yet that other settings would spoil
            found = self.header
        content = b"".join(([] if found is None else [_line(found)]) + lines)
        if not self.path.is_file() or self.path.read_bytes() != content:
            with replacing(self.path) as temporary:
                temporary.write_bytes(content)
        return finished

    def append(self, result: _R) -> None:
        """Add one result, after :meth:`resume`."""
        with self.path.open("ab") as file:
            file.write(_line(result.to_json()))
            file.flush()
            os.fsync(file.fileno())


def read_journal(path: str | Path, kind: type[_R]) -> dict[Hashable, _R]:
    """The contents of a :class:`Journal`, by key; empty if there is no such file.

    Raises:
        GhnqError: the file is damaged.
    """
    return _read(Path(path), kind)[2]


def _read(
    path: Path, kind: type[_R]
) -> tuple[dict[str, Any] | None, list[bytes], dict[Hashable, _R]]:
    """The header (None in files of earlier versions), the results of whole lines, and these lines."""
    content = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    lines = [line for line in content if line.endswith(b"\n")]
    header = None
    try:
        if lines:
            first = json.loads(lines[0])
            try:
                kind.from_json(first)
            except (TypeError, KeyError):
                header, lines = dict(first), lines[1:]
        results = [kind.from_json(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GhnqError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it to start anew"
        ) from error
    return header, lines, {r.key: r for r in results}


def _line(content: object) -> bytes:
    # ASCII with a single newline at the end: a line is complete if and only if it has that
    return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"
