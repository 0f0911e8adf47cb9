"""Stores records that cannot be written to ``records.jsonl``: in reserved space, then in the user's state directory.

Each record is on disk before the next one, so a kill cannot lose it. The next process that opens the run directory
appends it to ``records.jsonl``.

Reserve, ``.reserve`` in the run directory: disk blocks that are allocated before any answer is paid for, so that
answers in flight can be stored on a full disk. Lines as in ``records.jsonl``, followed by zeros.

State directory, ``$XDG_STATE_HOME/swe_infer`` (``~/.local/state/swe_infer``), for a failing file system: files
``unsaved-DIGEST-RANDOM.jsonl``, readable only by their owner. The first line is ``{"run_directory": …}``, the others
are as in ``records.jsonl``. DIGEST is a hash of the run directory's path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path

from swe_infer.files import allocate, open_regular, read_regular, write_whole
from swe_infer.resources import state_home
from swe_infer.run_directory.layout import RESERVE

_PREFIX = "unsaved-"
_MAX_RESERVED, _MIN_RESERVED = 8 << 20, 1 << 14
"""Bytes. The reserve is at most a quarter of the free space, and is halved if a quota leaves less. Without space for
the minimum, no request is sent."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Fallback:
    """Stores lines for one run directory, which this process has locked.

    Raises:
        OSError: the disk has no space for the minimum reserve.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reserve: _Reserve | None = _Reserve(directory / RESERVE)
        self._state: int | None = None
        self.files: list[Path] = []
        """The files that contain lines, the last written one at the end."""

    def append(self, line: bytes) -> Path | None:
        """Write one line to disk; returns the file, or None if no file can be written."""
        if self._reserve is not None and self._reserve.append(line):
            return self._add_file(self._reserve.path)
        if self._state is not None:
            if _append_durably(self._state, line):
                return self.files[-1]
            os.close(self._state)
            self._state = None
        path = self._create_in_state_directory(line)
        return None if path is None else self._add_file(path)

    def remove(self) -> None:
        """Remove the files, and allocate the reserve again."""
        self.close()
        for path in self.files:
            path.unlink(missing_ok=True)
        self.files.clear()
        try:
            self._reserve = _Reserve(self._directory / RESERVE)
        except OSError:
            self._reserve = None

    def close(self) -> None:
        """Free the unused space. Stored lines stay for the next process."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        if self._state is not None:
            os.close(self._state)
            self._state = None

    def _add_file(self, path: Path) -> Path:
        if path in self.files:
            self.files.remove(path)
        self.files.append(path)
        return path

    def _create_in_state_directory(self, line: bytes) -> Path | None:
        """Create a file with one line; None if that fails."""
        home = state_home()
        if home is None:
            return None
        directory = self._directory.resolve()
        head = json.dumps({"run_directory": str(directory)}).encode("ascii") + b"\n"
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state, name = tempfile.mkstemp(".jsonl", f"{_PREFIX}{_digest(directory)}-", home)  # mode 0600
        except OSError:
            return None
        if _append_durably(self._state, head + line):
            return Path(name)
        os.close(self._state)
        self._state = None
        Path(name).unlink(missing_ok=True)
        return None


class _Reserve:
    """The reserve of one process. Lines overwrite blocks that are allocated already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)  # left by a killed process; its lines are in records.jsonl now
        self._descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._end = 0
        try:
            self._size = _allocate(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise

    def append(self, line: bytes) -> bool:
        if self._end + len(line) > self._size:
            return False
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._end + written)
            os.fsync(self._descriptor)
        except OSError:
            return False  # the next line overwrites the partial one, or it is read as a truncated record
        self._end += len(line)
        return True

    def close(self) -> None:
        """Free the space without lines."""
        try:
            if self._end:
                os.ftruncate(self._descriptor, self._end)
            else:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # the next process removes the file
        finally:
            os.close(self._descriptor)


def fallback_lines(directory: Path) -> dict[Path, list[bytes]]:
    """The lines that earlier processes of this user stored for ``directory``, by file; the last line may be
    truncated.

    Raises:
        OSError: the reserve exists but cannot be read, or is not a regular file.
    """
    found: dict[Path, list[bytes]] = {}
    reserve = directory / RESERVE
    try:
        content = read_regular(reserve, _MAX_RESERVED)
        found[reserve] = [line for line in content.rstrip(b"\0").split(b"\n") if line]
    except FileNotFoundError:
        pass
    home, directory = state_home(), directory.resolve()
    for path in [] if home is None else sorted(home.glob(f"{_PREFIX}{_digest(directory)}-*.jsonl")):
        lines = _own_lines(path)
        if lines and _run_directory(lines[0]) == str(directory):
            found[path] = lines[1:]
    return found


def _own_lines(path: Path) -> list[bytes] | None:
    """The lines of a regular file owned by this user; None for any other file."""
    try:
        with open(open_regular(path), "rb") as file:
            owned = os.fstat(file.fileno()).st_uid == os.geteuid()  # the state directory may be shared
            return file.read().split(b"\n") if owned else None
    except OSError:
        return None


def _run_directory(line: bytes) -> str | None:
    """The run directory in the first line of a file."""
    try:
        path = json.loads(line)["run_directory"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return path if isinstance(path, str) else None


def _digest(directory: Path) -> str:
    return hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()


def _allocate(descriptor: int) -> int:
    """Allocate disk blocks for an empty file; returns the number of bytes.

    Raises:
        OSError: there is no space for the minimum.
    """
    disk = os.fstatvfs(descriptor)
    size = max(_MIN_RESERVED, min(_MAX_RESERVED, disk.f_bavail * disk.f_frsize // 4))
    while True:
        try:
            allocate(descriptor, size)
            return size
        except OSError as error:
            if error.errno not in _FULL:
                break  # fallocate is not supported: test whether the file is writable
            if size == _MIN_RESERVED:
                raise
            os.ftruncate(descriptor, 0)
            size = max(_MIN_RESERVED, size // 2)
    if (failure := write_whole(descriptor, bytes(_MIN_RESERVED))) is not None:
        raise OSError(failure.errno, failure.reason)
    return _MIN_RESERVED


def _append_durably(descriptor: int, data: bytes) -> bool:
    """Append ``data`` and fsync; on failure, returns False and leaves the file unchanged."""
    start = os.fstat(descriptor).st_size
    if write_whole(descriptor, data) is not None:
        return False
    try:
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        return False
    return True
