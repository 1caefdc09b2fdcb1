"""A file of results that grows as they come, from which a killed run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import replacing
from ghnq_quant.research.runs.identity import check_same_run


class Result(Protocol):
    """What a journal keeps."""

    @property
    def key(self) -> Hashable:
        """Which of the run's results it is."""

    def to_json(self) -> dict[str, Any]:
        """As plain lists, numbers and texts."""

    @classmethod
    def from_json(cls: type[_R], content: Mapping[str, Any]) -> _R:
        """The inverse of :meth:`to_json`."""


_R = TypeVar("_R", bound=Result)


class Journal(Generic[_R]):
    """A file with the run's settings in its first line, then a line for each result; of several
    with the same key the last counts.

    Every line is on the disk before the next result is begun, so a killed run loses none; half a
    line at the end is dropped when the run goes on.

    Args:
        path: of the file.
        header: what must be the same for the run to go on, see
            :func:`ghnq_quant.research.runs.identity.check_same_run`.
        kind: of the results.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any], kind: type[_R]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        self.kind = kind

    def resume(self) -> dict[Hashable, _R]:
        """Begin the file or go on with it; what is finished, by its key.

        Raises:
            GhnqError: the file is of a run with another header, or no such file.
        """
        found, lines = _parts(_whole_lines(self.path), self.path, self.kind)
        finished = _results(lines, self.path, self.kind)
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
    """What a :class:`Journal` holds, by key; nothing where there is no such file.

    Raises:
        GhnqError: the file is damaged.
    """
    _, lines = _parts(_whole_lines(Path(path)), Path(path), kind)
    return _results(lines, Path(path), kind)


def _parts(
    lines: list[bytes], path: Path, kind: type[Result]
) -> tuple[dict[str, Any] | None, list[bytes]]:
    """The header, None where earlier versions wrote none, and the lines of the results."""
    if not lines:
        return None, []
    with _damage_named(path):
        first = json.loads(lines[0])
        try:
            kind.from_json(first)
        except (TypeError, KeyError):
            return dict(first), lines[1:]
    return None, lines


def _whole_lines(path: Path) -> list[bytes]:
    if not path.is_file():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _results(lines: list[bytes], path: Path, kind: type[_R]) -> dict[Hashable, _R]:
    with _damage_named(path):
        results = [kind.from_json(json.loads(line)) for line in lines]
    return {r.key: r for r in results}


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise GhnqError(
            f"{path} is damaged ({type(error).__name__}: {error}): delete it to start anew"
        ) from error


def _line(content: object) -> bytes:
    # ASCII with a single newline at its end: a line is whole if and only if it has that
    return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"
