"""Files that must hold what was written to them: whole appends, atomic replacement, what has reached the disk.

Nothing here follows a symbolic link in the place of a file, waits for a FIFO, or writes through a name that somebody
else may have made: run directories come from strangers too.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from swe_infer.errors import StoreError

log = logging.getLogger(__name__)

_SYNC_INTERVAL_S = 0.5
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS})
"""What file systems say that have no fdatasync; any other error means that data may not have reached the disk."""


_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)
_FRESH = ".{name}.{token}.new"


def special_kind(mode: int) -> str | None:
    """What a file of this ``st_mode`` is, if not a regular one."""
    return next((kind for test, kind in _KINDS if test(mode)), None)


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """A descriptor of a regular file; the last part of ``path`` is not followed where it is a link.

    Args:
        flags: as :func:`os.open` takes them. A file that is opened for writing must have no second name (hard link),
            as writing would change what another directory holds.

    Raises:
        OSError: it cannot be opened, or is no regular file; ``strerror`` says what it is.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        kind = None
        with contextlib.suppress(OSError):
            kind = special_kind(os.lstat(path).st_mode)
        if kind is not None:
            raise _not_regular(path, kind) from None
        raise error
    try:
        status = os.fstat(descriptor)
        kind = special_kind(status.st_mode)
        if kind is None and status.st_nlink > 1 and flags & (os.O_WRONLY | os.O_RDWR):
            kind = "a file with several names (hard links)"
        if kind is not None:
            raise _not_regular(path, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _not_regular(path: Path, kind: str) -> OSError:
    return OSError(errno.ELOOP, f"it is {kind}; a regular file is expected", str(path))


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file.

    Args:
        most: bytes that are read at most.

    Raises:
        OSError: it cannot be read, is no regular file (see :func:`open_regular`), or is longer.
    """
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is longer than {most >> 20} MiB", str(path))
    return content


def fresh_beside(path: Path) -> tuple[int, Path]:
    """A new file beside ``path`` under a name that nobody can know, open for writing; it is to replace ``path``.

    Raises:
        OSError: it cannot be made.
    """
    new = path.with_name(_FRESH.format(name=path.name, token=secrets.token_hex(6)))
    return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), new


def remove_leftovers(directory: Path) -> None:
    """Remove the files of :func:`fresh_beside` that killed processes left; for whoever holds the directory alone."""
    for path in directory.glob(_FRESH.format(name="*", token="????????????")):
        path.unlink(missing_ok=True)


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
    try:
        descriptor, new = fresh_beside(path)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
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
    new: Path | None = None
    try:
        descriptor, new = fresh_beside(target)
        os.close(descriptor)
        yield new
        os.replace(new, target)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = str(path)
        if new is not None:
            with contextlib.suppress(OSError):
                new.unlink()
        raise


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

    def get(self, path: Path) -> IO[bytes]:
        """The file, which is a regular one, opened for appending where it is not open."""
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= self._most:
                self._files.pop(next(iter(self._files))).close()
            descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            file = os.fdopen(descriptor, "ab", buffering=self._buffering)
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
