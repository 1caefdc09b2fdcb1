"""One run at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ghnq_quant.errors import GhnqError
from ghnq_quant.files import remove_unfinished

#: Stays where a run did not end well; the system takes the lock from a process that is killed.
LOCK_FILE = ".lock"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Make ``folder`` and keep other runs out; unfinished files of killed runs are removed.

    Raises:
        GhnqError: another run is writing to the folder.
        OSError: it cannot be made or written to.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with locked(folder), locked(folder):  # doctest: +ELLIPSIS
        ...     pass
        Traceback (most recent call last):
        ghnq_quant.errors.GhnqError: ...
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise GhnqError(
            f"another run is writing to {folder}: wait for it, stop it, or choose another folder"
        ) from error
    try:
        remove_unfinished(folder)
        yield
        # while it is still locked: a run that opened the file before sees that its name is gone, and
        # is refused. Windows does not remove open files.
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
    finally:
        lock.release()
