"""Durable files: whole appends, atomic replacement, syncing to disk.

Run directories may be untrusted, so no function follows a symbolic link to a file, blocks on a FIFO, or writes
through a predictable name.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import hashlib
import logging
import os
import pwd
import secrets
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from swe_infer.errors import StoreError

log = logging.getLogger(__name__)

_SYNC_INTERVAL_S = 0.5
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EROFS})
"""Errors of file systems without fdatasync. Any other error means that data may not be on disk."""


_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISDIR, "a directory"),
)
_PART_BYTES = 1 << 20
_TEMPORARY = ".{token}.new"
LONGEST_NAME = 255
"""Bytes of a file name, on almost every file system."""


def special_kind(mode: int) -> str | None:
    """The kind of a file with this ``st_mode``; None for a regular file."""
    return next((kind for test, kind in _KINDS if test(mode)), None)


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """Open a regular file; ``path`` may not be a symbolic link.

    Args:
        flags: flags of :func:`os.open`. A file opened for writing may not have a second name (hard link), which could
            be in another directory.

    Returns:
        The file descriptor.

    Raises:
        OSError: it cannot be opened, or is not a regular file; ``strerror`` names its kind.
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


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read, is not a regular file (see :func:`open_regular`), or is longer than ``max_bytes``.
    """
    parts, left = [], max_bytes + 1
    with open(open_regular(path), "rb") as file:
        while left and (part := file.read(min(left, _PART_BYTES))):  # which allocates as much as it is asked for
            parts.append(part)
            left -= len(part)
    content = b"".join(parts)
    if not left:
        raise OSError(errno.EFBIG, f"it is longer than {max_bytes >> 20} MiB", str(path))
    return content


def hidden_beside(path: Path, ending: str) -> Path:
    """The path of a hidden file or folder beside ``path``: its name is that of ``path`` and ``ending``. If that is
    longer than file systems permit, a hash replaces the end of the former."""
    name, room = os.fsencode(path.name), LONGEST_NAME - len(f".{ending}")
    if len(name) > room:
        digest = hashlib.blake2b(name, digest_size=8).hexdigest()
        name = name[: room - len(digest)].decode("utf-8", "ignore").encode() + digest.encode()
    return path.with_name(f".{os.fsdecode(name)}{ending}")


def create_beside(path: Path) -> tuple[int, Path]:
    """Create a file beside ``path`` with an unpredictable name, to replace ``path`` later.

    Returns:
        The file descriptor, open for writing, and the new path.

    Raises:
        OSError: it cannot be created.
    """
    new = hidden_beside(path, _TEMPORARY.format(token=secrets.token_hex(6)))
    try:
        return os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), new
    except KeyboardInterrupt:  # also right after the creation, when the caller does not know the path yet
        new.unlink(missing_ok=True)
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove files of :func:`create_beside` that killed processes left. The caller must have locked the directory."""
    for path in directory.glob(f".*{_TEMPORARY.format(token='????????????')}"):
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class WriteFailure:
    """Why data was not written.

    Args:
        torn: a part of the data was written and could not be removed.
    """

    errno: int
    reason: str
    torn: bool


def write_whole(descriptor: int, data: bytes) -> WriteFailure | None:
    """Append all of ``data`` and return None; on failure, leave the file unchanged and return the reason."""
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
        return WriteFailure(error.errno or 0, error.strerror or type(error).__name__, torn)
    return None


def write_atomically(path: Path, text: str, *, modified_ns: int | None = None) -> None:
    """Replace a file atomically and durably: after a kill or power failure, it has the old or the new content.

    Args:
        modified_ns: its modification time, if not now.

    Raises:
        StoreError: it cannot be written; the old file is unchanged.
    """
    try:
        descriptor, new = create_beside(path)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                if modified_ns is not None:
                    os.utime(file.fileno(), ns=(modified_ns, modified_ns))
                os.fsync(file.fileno())
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)  # frees space on a full disk
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary file that replaces ``path`` at the end. After an exception ``path`` is unchanged. If
    ``path`` is not a regular file, such as ``/dev/stdout``, it is yielded itself.

    Raises:
        OSError: names ``path``.
    """
    new: Path | None = None
    try:
        if path.exists() and not path.is_file():
            yield path
            return
        target = path.resolve()
        descriptor, new = create_beside(target)
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


def sync_data(descriptor: int) -> None:
    """Make what was written to a file survive a power failure."""
    if sys.platform == "linux":
        os.fdatasync(descriptor)
    else:
        os.fsync(descriptor)


def allocate(descriptor: int, size: int) -> None:
    """Allocate disk blocks for the first ``size`` bytes of a file.

    Raises:
        OSError: there is no space, or the system or the file system cannot do it.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    os.posix_fallocate(descriptor, 0, size)


def sync_directory(directory: Path) -> None:
    """Make created and renamed files survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def own_folder(folder: Path) -> Path:
    """Creates a folder that nobody but this user and root can write in or replace, such as one for programs.

    Returns:
        Its path without symbolic links.

    Raises:
        OSError: it cannot be created, or others can.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    real = folder.resolve()
    for parent in real.parents:
        if not _is_safe(parent.lstat()):
            raise PermissionError(f"{parent} belongs to another user, or others may write in it and replace {folder}")
    found = real.lstat()
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022
    if folder.is_symlink() or not is_own:
        raise PermissionError(f"{folder} must be a folder of this user in which nobody else may write")
    return real


def _is_safe(parent: os.stat_result) -> bool:
    """Whether nobody but this user and root may rename what this user has in a folder. A sticky one, such as /tmp,
    prevents it. A group without other members is this user."""
    if parent.st_uid not in (0, os.geteuid(), _unmapped_user()):
        return False
    if parent.st_mode & stat.S_ISVTX or not parent.st_mode & 0o022:
        return True
    return not parent.st_mode & 0o002 and _is_private(parent.st_gid)


def _unmapped_user() -> int:
    """The owner that Linux shows for files of users outside this user namespace, such as root's in a rootless
    container. Nobody within it can act as them."""
    try:
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return 0


def _is_private(gid: int) -> bool:
    """Whether a group is that of this user alone, as distributions create it for each user."""
    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return gid == user.pw_gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


class OpenFiles:
    """Appends to any number of files, with a bounded number open at a time.

    Args:
        buffering: see :func:`open`.
        max_open: a process may often open only 1,024 files.
    """

    def __init__(self, buffering: int = -1, max_open: int = 64) -> None:
        self._buffering = buffering
        self._max_open = max_open
        self._files: dict[Path, IO[bytes]] = {}

    def get(self, path: Path) -> IO[bytes]:
        """The file, open for appending."""
        file = self._files.pop(path, None)
        if file is None:
            if len(self._files) >= self._max_open:
                self._files.pop(next(iter(self._files))).close()
            descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            file = os.fdopen(descriptor, "ab", buffering=self._buffering)
        self._files[path] = file
        return file

    def close(self) -> None:
        """Close all files.

        Raises:
            OSError: buffered data cannot be written; every file is closed nevertheless.
        """
        with contextlib.ExitStack() as stack:
            for file in self._files.values():
                stack.callback(file.close)
            self._files.clear()


class Syncer:
    """Syncs a file to disk in its own thread, so that the caller never waits for the disk.

    It keeps lines in memory until they are on disk: after a failed fdatasync the kernel may have dropped them, and a
    later fdatasync does not report that.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._error: OSError | None = None
        self._lock = threading.Lock()
        self._files: dict[Path, tuple[str, int]] = {}
        self._files_lock = threading.Lock()
        self._dirty = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="store-sync", daemon=True)
        self._thread.start()

    def track(self, line: bytes) -> None:
        """Requests a sync of a line that was written to the file."""
        self._lines.append(line)
        self._dirty.set()

    @property
    def error(self) -> OSError | None:
        """The first failure. Data written after it may not be on disk."""
        return self._error

    def flush(self) -> OSError | None:
        """Sync now; returns the first failure, if any."""
        with self._lock:
            count = len(self._lines)
            try:
                sync_data(self._descriptor)
            except OSError as error:
                if error.errno not in _CANNOT_SYNC:
                    self._error = self._error or error
            if self._error is None:
                del self._lines[:count]
            return self._error

    def replace_later(self, path: Path, text: str) -> None:
        """:func:`write_atomically` in the thread; a failure is logged.

        The file gets the modification time that the synced file has now. What is appended meanwhile is newer.
        """
        self._files[path] = (text, os.fstat(self._descriptor).st_mtime_ns)
        self._dirty.set()

    def replace(self, path: Path, text: str) -> None:
        """:func:`write_atomically` at once; cancels a pending :meth:`replace_later`."""
        with self._files_lock:
            self._files.pop(path, None)
            write_atomically(path, text)

    def take_unsynced(self) -> list[bytes]:
        """Remove and return the lines that may not be on disk."""
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
                path, (text, modified_ns) = self._files.popitem()
                try:
                    write_atomically(path, text, modified_ns=modified_ns)
                except StoreError as error:
                    log.warning("%s", error)
