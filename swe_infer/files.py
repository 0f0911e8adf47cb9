"""Files that must hold what was written to them: whole appends, atomic replacement, what has reached the disk."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from swe_infer.errors import StoreError

__all__ = [
    "OpenFiles", "Syncer", "Unwritten", "probe", "replacing", "sync_directory", "write_atomically", "write_whole",
]  # fmt: skip

log = logging.getLogger(__name__)

_SYNC_INTERVAL_S = 0.5
_PROBE_BYTES = 1 << 14
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS})
"""What file systems say that have no fdatasync; any other error means that data may not have reached the disk."""


@dataclass(frozen=True, slots=True)
class Unwritten:
    """Why data was not written, and whether a torn part of it could not be cut off again."""

    number: int
    reason: str
    torn: bool


def write_whole(descriptor: int, data: bytes) -> Unwritten | None:
    """Append ``data`` whole and return None, or leave the file as it was and say why."""
    start = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, data[written:])
    except OSError as error:
        torn = False
        if written:
            try:
                os.ftruncate(descriptor, start)
                os.lseek(descriptor, start, os.SEEK_SET)
            except OSError:
                torn = True
        return Unwritten(error.errno or 0, error.strerror or type(error).__name__, torn)
    return None


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a reader, a kill or a loss of power sees the old one or the new one whole.

    Raises:
        StoreError: it cannot be written; the old one is still there.
    """
    new = path.with_name(path.name + ".new")
    try:
        try:
            with new.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            new.unlink(missing_ok=True)  # a full disk needs the room
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to be written in the place of ``path``, which it replaces at the end. Where the writing is interrupted,
    ``path`` stays as it was. What is no regular file, such as ``/dev/stdout``, is written directly.

    Raises:
        OSError: names ``path``.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    new = target.with_name(target.name + ".new")
    try:
        yield new
        os.replace(new, target)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def probe(directory: Path) -> None:
    """Make sure that there is room for an answer before any is paid for."""
    probe = directory / ".probe"
    try:
        with probe.open("wb", buffering=0) as file:
            written = write_whole(file.fileno(), bytes(_PROBE_BYTES))
        if written is not None:
            raise OSError(written.number, written.reason)
    finally:
        probe.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make names that were created or replaced outlive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


class OpenFiles:
    """Files that are appended to by turns, any number of them, of which a few are open at once.

    Args:
        buffering: as :func:`open` takes it.
        most: how many are open at once; a process may have 1,024 of all kinds.
    """

    def __init__(self, buffering: int = -1, most: int = 64) -> None:
        self._buffering = buffering
        self._most = most
        self._files: dict[Path, IO[bytes]] = {}

    def get(self, path: Path, mode: Literal["ab", "wb"] = "ab") -> IO[bytes]:
        """The file; opened in ``mode`` where it is not open."""
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= self._most:
                self._files.pop(next(iter(self._files))).close()
            file = path.open(mode, buffering=self._buffering)
        self._files[path] = file
        return file

    def close(self) -> None:
        """Close all.

        Raises:
            OSError: what was buffered cannot be written; every file is closed all the same.
        """
        with contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
            self._files.clear()


class Syncer:
    """Waits for the disk in a thread of its own, so that the loop which keeps paid answers never does.

    Lines stay at hand until they are known to have reached the disk: after a failed fdatasync the kernel may have
    dropped them, and a later one says nothing about them.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._files: dict[Path, str] = {}
        self._files_lock = threading.Lock()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="store-sync", daemon=True)
        self._thread.start()

    def notify(self, line: bytes) -> None:
        self._lines.append(line)
        self._dirty.set()

    @property
    def error(self) -> OSError | None:
        """The first failure; nothing that was written since is known to be on the disk."""
        return self._error

    def flush(self) -> OSError | None:
        """Bring everything to the disk now; the first failure, if there was one."""
        with self._lock:
            count = len(self._lines)
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                if error.errno not in _CANNOT_SYNC:
                    self._error = self._error or error
            if self._error is None:
                del self._lines[:count]
            return self._error

    def replace_soon(self, path: Path, text: str) -> None:
        """As :func:`write_atomically`, in the other thread; a warning where that fails."""
        self._files[path] = text
        self._dirty.set()

    def replace(self, path: Path, text: str) -> None:
        """:func:`write_atomically`, in the place of what was to be written there soon."""
        with self._files_lock:
            self._files.pop(path, None)
            write_atomically(path, text)

    def take(self) -> list[bytes]:
        """The lines that are not known to be on the disk, once."""
        lines, self._lines = self._lines, []
        return lines

    def close(self) -> None:
        self._closed.set()
        self._dirty.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            self._dirty.wait()
            self._dirty.clear()
            self.flush()
            self._replace_files()
            if self._closed.wait(_SYNC_INTERVAL_S):
                self.flush()
                self._replace_files()
                return

    def _replace_files(self) -> None:
        with self._files_lock:
            while self._files:
                path, text = self._files.popitem()
                try:
                    write_atomically(path, text)
                except StoreError as error:
                    log.warning("%s", error)
