"""Where records go that ``records.jsonl`` does not take: space reserved beside it, then the user's state directory.

A record that was kept here is on a disk before the next one is looked at, so a kill cannot lose it. The next process
that opens the run directory takes it in.

Reserve, ``.reserve`` in the run directory: blocks of the disk that are taken before any answer is paid for, so that
a full disk has room for what is in flight. Whole lines as in ``records.jsonl`` from its start, zeros behind them.

State directory, ``$XDG_STATE_HOME/swe_infer`` (``~/.local/state/swe_infer``), for a file system that fails: JSON
lines as in ``records.jsonl``, after one line ``{"run_directory": …}``, in ``unsaved-DIGEST-RANDOM.jsonl``, readable
by its owner alone. DIGEST stands for the run directory's path.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from pathlib import Path

from swe_infer.files import open_regular, read_regular, write_whole
from swe_infer.resources import state_home
from swe_infer.run_directory.layout import RESERVE

_PREFIX = "unsaved-"
_MOST_RESERVED, _LEAST_RESERVED = 8 << 20, 1 << 14
"""Bytes. The reserve takes a quarter of the free space at most, and halves where a quota leaves less; without room
for the least, no answer is paid for."""
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Fallback:
    """Takes lines for one run directory, which this process holds.

    Raises:
        OSError: there is no room for one answer.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reserve: _Reserve | None = _Reserve(directory / RESERVE)
        self._state: int | None = None
        self.files: list[Path] = []
        """The files that hold lines."""

    def add(self, line: bytes) -> Path | None:
        """Bring one whole line to a disk; the file, or None where no place takes it."""
        if self._reserve is not None and self._reserve.add(line):
            return self._noted(self._reserve.path)
        if self._state is not None:
            if _brought_to_disk(self._state, line):
                return self.files[-1]
            os.close(self._state)
            self._state = None
        path = self._in_state_directory(line)
        return None if path is None else self._noted(path)

    def remove(self) -> None:
        """Everything is where it belongs: take the files away, and reserve the space again."""
        self.close()
        for path in self.files:
            path.unlink(missing_ok=True)
        self.files.clear()
        try:
            self._reserve = _Reserve(self._directory / RESERVE)
        except OSError:
            self._reserve = None

    def close(self) -> None:
        """Give back the space that was not needed. What was kept stays for the next process."""
        if self._reserve is not None:
            self._reserve.close()
            self._reserve = None
        if self._state is not None:
            os.close(self._state)
            self._state = None

    def _noted(self, path: Path) -> Path:
        if path in self.files:
            self.files.remove(path)
        self.files.append(path)
        return path

    def _in_state_directory(self, line: bytes) -> Path | None:
        """Begin a file with one line; None where that fails."""
        place = state_home()
        if place is None:
            return None
        directory = self._directory.resolve()
        head = json.dumps({"run_directory": str(directory)}).encode("ascii") + b"\n"
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._state, name = tempfile.mkstemp(".jsonl", f"{_PREFIX}{_digest(directory)}-", place)  # mode 0600
        except OSError:
            return None
        if _brought_to_disk(self._state, head + line):
            return Path(name)
        os.close(self._state)
        self._state = None
        Path(name).unlink(missing_ok=True)
        return None


class _Reserve:
    """The reserve of one process: lines are written over blocks that the disk has given already."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)  # a killed process's; what it held was taken in
        self._descriptor = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        self._end = 0
        try:
            self._size = _allocated(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            path.unlink(missing_ok=True)
            raise

    def add(self, line: bytes) -> bool:
        if self._end + len(line) > self._size:
            return False
        try:
            written = 0
            while written < len(line):
                written += os.pwrite(self._descriptor, line[written:], self._end + written)
            os.fsync(self._descriptor)
        except OSError:
            return False  # what was written of it is written over, or read as a cut record
        self._end += len(line)
        return True

    def close(self) -> None:
        """Give back what holds no line."""
        try:
            if self._end:
                os.ftruncate(self._descriptor, self._end)
            else:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # the next process does it
        finally:
            os.close(self._descriptor)


def kept_lines(directory: Path) -> dict[Path, list[bytes]]:
    """What earlier processes of this user kept for ``directory``: the lines of each file; the last may be torn.

    Raises:
        OSError: the reserve is there and cannot be read, or is no regular file.
    """
    found: dict[Path, list[bytes]] = {}
    reserve = directory / RESERVE
    try:
        content = read_regular(reserve, _MOST_RESERVED)
        found[reserve] = [line for line in content.rstrip(b"\0").split(b"\n") if line]
    except FileNotFoundError:
        pass
    place, directory = state_home(), directory.resolve()
    for path in [] if place is None else sorted(place.glob(f"{_PREFIX}{_digest(directory)}-*.jsonl")):
        lines = _own_lines(path)
        if lines and _named(lines[0]) == str(directory):
            found[path] = lines[1:]
    return found


def _own_lines(path: Path) -> list[bytes] | None:
    """The lines of a regular file that belongs to this user; None for any other file."""
    try:
        with open(open_regular(path), "rb") as file:
            owned = os.fstat(file.fileno()).st_uid == os.geteuid()  # a state directory may be shared
            return file.read().split(b"\n") if owned else None
    except OSError:
        return None


def _named(line: bytes) -> str | None:
    """The run directory that the first line of a file names."""
    try:
        named = json.loads(line)["run_directory"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return named if isinstance(named, str) else None


def _digest(directory: Path) -> str:
    return hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()


def _allocated(descriptor: int) -> int:
    """Take blocks of the disk for an empty file; returns how many bytes.

    Raises:
        OSError: there is no room for the least.
    """
    disk = os.fstatvfs(descriptor)
    size = max(_LEAST_RESERVED, min(_MOST_RESERVED, disk.f_bavail * disk.f_frsize // 4))
    while True:
        try:
            os.posix_fallocate(descriptor, 0, size)
            return size
        except OSError as error:
            if error.errno not in _FULL:
                break  # a file system that reserves nothing: find out whether it takes an answer at all
            if size == _LEAST_RESERVED:
                raise
            os.ftruncate(descriptor, 0)
            size = max(_LEAST_RESERVED, size // 2)
    if (unwritten := write_whole(descriptor, bytes(_LEAST_RESERVED))) is not None:
        raise OSError(unwritten.number, unwritten.reason)
    return _LEAST_RESERVED


def _brought_to_disk(descriptor: int, data: bytes) -> bool:
    """Append ``data`` and wait for the disk; False, and nothing kept, where that fails."""
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
