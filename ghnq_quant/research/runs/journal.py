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
        header: what must be the same for the run to go on; None for no such line.
        kind: of the results.
    """

    def __init__(self, path: str | Path, header: Mapping[str, Any] | None, kind: type[_R]) -> None:
        self.path = Path(path)
        self.header: dict[str, Any] | None = json.loads(json.dumps(header))
        self.kind = kind

    def resume(self) -> dict[Hashable, _R]:
        """Begin the file or go on with it; what is finished, by its key.

        Raises:
            GhnqError: the file is of a run with another header, or no such file.
        """
        lines = _whole_lines(self.path)
        start = [] if self.header is None else [_line(self.header)]
        if len(lines) <= len(start):  # no result yet that other settings would spoil
            with replacing(self.path) as temporary:
                temporary.write_bytes(b"".join(start))
            return {}
        finished = _results(lines[len(start) :], self.path, self.kind)
        if self.header is not None:
            self._check(lines[0], self.header)
        with self.path.open("r+b") as file:
            file.truncate(sum(map(len, lines)))
        return finished

    def _check(self, line: bytes, header: Mapping[str, Any]) -> None:
        with _damage_named(self.path):
            found, now = _flat(json.loads(line)), _flat(header)
        keys = [k for k in {**now, **found} if found.get(k) != now.get(k)]
        if keys:
            raise GhnqError(
                f"{self.path} is of a run with other settings: "
                + ", ".join(f"{k}={found.get(k)!r} (now {now.get(k)!r})" for k in keys)
                + ". Give the same to go on with it, or another folder for a new one"
            )

    def append(self, result: _R) -> None:
        """Add one result, after :meth:`resume`."""
        with self.path.open("ab") as file:
            file.write(_line(result.to_json()))
            file.flush()
            os.fsync(file.fileno())


def read_journal(
    path: str | Path, kind: type[_R], *, has_header: bool = True
) -> dict[Hashable, _R]:
    """What a :class:`Journal` holds, by key; nothing where there is no such file.

    Raises:
        GhnqError: the file is damaged.
    """
    lines = _whole_lines(Path(path))
    return _results(lines[1:] if has_header else lines, Path(path), kind)


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


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result.update(_flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def _line(content: object) -> bytes:
    # ASCII with a single newline at its end: a line is whole if and only if it has that
    return json.dumps(content, allow_nan=False).encode("ascii") + b"\n"
