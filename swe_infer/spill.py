"""Where records go when their run directory cannot be written: a file of this user's in some other place.

A spilled record is on disk before the next one is looked at, so a kill cannot lose it. The next process that opens
the run directory finds the file by its name, takes the records in and removes it.

File format: JSON lines as in ``records.jsonl``, after one line ``{"run_directory": …}``, in
``swe-infer-unsaved-DIGEST-RANDOM.jsonl``, readable by its owner alone. DIGEST stands for the run directory's path.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from swe_infer.files import write_whole

__all__ = ["Spill", "spilled_lines"]

_PREFIX = "swe-infer-unsaved-"


class Spill:
    """Takes lines for one run directory wherever it can. Files are made when the first line comes.

    Args:
        places: directories to try, best first; None: see :func:`_places`.
    """

    def __init__(self, directory: Path, places: Sequence[Path] | None = None) -> None:
        self._directory = directory.resolve()
        self._places = list(_places(self._directory) if places is None else places)
        self._descriptor: int | None = None
        self.files: list[Path] = []

    def add(self, line: bytes) -> Path | None:
        """Bring one whole line to a disk; the file, or None where no place takes it."""
        if self._descriptor is not None and _brought_to_disk(self._descriptor, line):
            return self.files[-1]
        self._close()
        for place in self._places:  # a fresh file each time: what failed may have been a limit on a file's size
            if self._begin(place) and self._descriptor is not None and _brought_to_disk(self._descriptor, line):
                return self.files[-1]
            self._close()
        return None

    def remove(self) -> None:
        """Everything is where it belongs: take the files away."""
        self._close()
        for file in self.files:
            file.unlink(missing_ok=True)
        self.files.clear()

    def _begin(self, place: Path) -> bool:
        prefix = f"{_PREFIX}{_digest(self._directory)}-"
        try:
            self._descriptor, name = tempfile.mkstemp(".jsonl", prefix, place)  # mode 0600
        except OSError:
            return False
        head = json.dumps({"run_directory": str(self._directory)}).encode("ascii") + b"\n"
        if not _brought_to_disk(self._descriptor, head):
            self._close()
            Path(name).unlink(missing_ok=True)
            return False
        self.files.append(Path(name))
        return True

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self.files and self.files[-1].exists() and _holds_no_record(self.files[-1]):
            self.files.pop().unlink(missing_ok=True)


def spilled_lines(directory: Path, places: Sequence[Path] | None = None) -> dict[Path, list[bytes]]:
    """What earlier processes of this user spilled for ``directory``: the lines of each file; the last may be torn."""
    directory = directory.resolve()
    found: dict[Path, list[bytes]] = {}
    for place in _places(directory) if places is None else places:
        try:
            files = sorted(place.glob(f"{_PREFIX}{_digest(directory)}-*.jsonl"))
        except OSError:
            continue
        for file in files:
            lines = _own_lines(file)
            if lines is not None and json.loads(lines[0]) == {"run_directory": str(directory)}:
                found[file] = lines[1:]
    return found


def _own_lines(file: Path) -> list[bytes] | None:
    """The lines of a regular file that belongs to this user; None where it is none, or cannot be read."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    with open(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return None  # anybody may put a file of that name into a shared directory
        lines = opened.read().split(b"\n")
    try:
        json.loads(lines[0])
    except (IndexError, ValueError, RecursionError):
        return None
    return lines


def _places(directory: Path) -> Iterator[Path]:
    """Places that outlive a restart come first. ``directory`` itself is none: it is what failed."""
    candidates = [os.path.expanduser("~"), "/var/tmp", tempfile.gettempdir(), str(directory.parent), "/dev/shm"]
    for place in map(Path, dict.fromkeys(candidates)):
        if place.is_absolute() and place.is_dir() and place.resolve() != directory:
            yield place


def _digest(directory: Path) -> str:
    return hashlib.blake2b(os.fsencode(directory), digest_size=8).hexdigest()


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


def _holds_no_record(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            opened.readline()
            return not opened.read(1)
    except OSError:
        return False
