"""Files of a mirrored folder: which are mirrored, how they are read and written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from swe_infer.files import create_beside, open_regular
from swe_infer.remote.manifest import FOLDER, TAIL, FileEntry, Part, tail_of
from swe_infer.remote.store import AT_ONCE, Store
from swe_infer.run_directory import layout

_APPENDED = (".jsonl", ".wandb", ".log")
"""Endings of files that grow. Any of them may be rewritten, too."""
_LINES = ".jsonl"
_DATABASE = ".sqlite"
_NOT_MIRRORED = ("-wal", "-shm", "-journal", ".owner", ".lock", ".new")
_PIECE = 64 << 20
"""Maximum bytes of an object."""
_SMALL = 16 << 10
"""Bytes of a file that the manifest contains."""

_LAST = ("batches.jsonl", "batch_prompts.jsonl", layout.RECORDS)
"""Files that are read after the others, in this order: a journal of batches may lag behind the records, but not be
ahead of them, and prompts are written before the batch that sends them."""


def mirrored_files(folder: Path) -> list[str]:
    """The regular files below a folder, by relative paths, in the order in which they are read. Without hidden files,
    locks, and a database's journals."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and not name.endswith(_NOT_MIRRORED) and not path.is_symlink():
                found.append(path.relative_to(folder).as_posix())
    return sorted(found, key=lambda name: (_rank(name), name))


def _rank(name: str) -> int:
    base = name.rpartition("/")[2]
    return _LAST.index(base) + 1 if base in _LAST else 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was like when it was read: a changed file differs in one of these."""

    inode: int
    size: int
    modified_ns: int

    def is_of(self, entry: FileEntry) -> bool:
        """Whether it is the file of a manifest's entry."""
        return (self.size, self.modified_ns) == (entry.size, entry.modified_ns)

    @classmethod
    def of(cls, path: Path) -> Seen:
        """Raises OSError. The write-ahead log of a database belongs to it."""
        status = path.lstat()
        seen = cls(status.st_ino, status.st_size, status.st_mtime_ns)
        if path.name.endswith(_DATABASE):
            with contextlib.suppress(OSError):  # it has none
                log = path.with_name(f"{path.name}-wal").lstat()
                seen = cls(seen.inode, seen.size + log.st_size, max(seen.modified_ns, log.st_mtime_ns))
        return seen


def is_current(path: Path, entry: FileEntry) -> bool:
    """Whether a local file is that of a manifest's entry."""
    try:
        return Seen.of(path).is_of(entry)
    except OSError:
        return False


def read_entry(path: Path, before: FileEntry | None, put: Callable[[bytes], str], *, small: bool = True) -> FileEntry:
    """Reads a file, puts what is new into the store, and returns its entry. The file may grow meanwhile.

    Args:
        before: its entry, if it has one.
        put: stores a piece of content and returns the object's name.
        small: whether the manifest has space for a small file.

    Raises:
        OSError: the file cannot be read.
        sqlite3.Error: the database is in use, or damaged.
        RemoteStoreError: of ``put``.
    """
    modified_ns = Seen.of(path).modified_ns
    if path.name.endswith(_DATABASE):
        content = _database(path)
        return _whole(content, modified_ns, put, small=small)
    with open(open_regular(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        os.fsync(file.fileno())  # so that a power failure loses nothing that the store has
        if path.name.endswith(_LINES):
            size = _end_of_lines(file.fileno(), size)
        if size <= _SMALL:
            return _whole(os.pread(file.fileno(), size, 0), modified_ns, put, small=small)
        parts = _kept_parts(file.fileno(), size, before) if path.name.endswith(_APPENDED) else []
        start = sum(part.size for part in parts)
        tail = b""
        while start < size or not parts:
            piece = os.pread(file.fileno(), min(_PIECE, size - start), start)
            if not piece:
                break  # the file was truncated meanwhile: the next round reads it again
            parts.append(Part(put(piece), start, len(piece)))
            start += len(piece)
        tail = os.pread(file.fileno(), min(TAIL, start), start - min(TAIL, start))
        return FileEntry(start, modified_ns, tail_of(tail), tuple(parts))


def _whole(content: bytes, modified_ns: int, put: Callable[[bytes], str], *, small: bool) -> FileEntry:
    if small and len(content) <= _SMALL:
        return FileEntry(len(content), modified_ns, tail_of(content), (), content)
    pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)] or [b""]
    parts = tuple(Part(put(piece), index * _PIECE, len(piece)) for index, piece in enumerate(pieces))
    return FileEntry(len(content), modified_ns, tail_of(content), parts)


def _database(path: Path) -> bytes:
    with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1.0)) as db:
        return db.serialize()


def _end_of_lines(descriptor: int, size: int) -> int:
    """The end of the last whole line: a killed process leaves a part of one."""
    end = size
    while end:
        start = max(0, end - _SMALL)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _kept_parts(descriptor: int, size: int, before: FileEntry | None) -> list[Part]:
    """The parts of an entry that the file still begins with, except the last ones that are not larger than what
    follows them: these become one part with it, so that a file of any length has few parts."""
    if before is None or not before.parts or before.size > size:
        return []
    length = min(TAIL, before.size)
    if tail_of(os.pread(descriptor, length, before.size - length)) != before.tail:
        return []
    parts, rest = list(before.parts), size - before.size
    while rest and parts and parts[-1].size <= rest <= _PIECE - parts[-1].size:
        rest += parts.pop().size
    return parts


def fetch_files(store: Store, wanted: Mapping[str, FileEntry], folder: Path) -> None:
    """Writes files of a manifest into a local folder. A file that grows is continued, if it has the same beginning.

    Args:
        wanted: the entries by relative path.

    Raises:
        FileNotFoundError: an object was replaced by a newer one.
        RemoteStoreError: the store refuses or cannot be reached.
        OSError: a file cannot be written.
    """

    def fetch(item: tuple[str, FileEntry]) -> None:
        name, entry = item
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (name.endswith(_APPENDED) and _continued(store, path, entry)):
            descriptor, new = create_beside(path)
            try:
                with open(descriptor, "wb") as file:
                    file.writelines(contents(store, entry))
                    file.flush()
                    os.fsync(file.fileno())
                if name.endswith(_DATABASE):
                    for journal in ("-wal", "-shm", "-journal"):
                        path.with_name(f"{path.name}{journal}").unlink(missing_ok=True)
                os.replace(new, path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise
        os.utime(path, ns=(entry.modified_ns, entry.modified_ns))

    with ThreadPoolExecutor(AT_ONCE, "remote-download") as pool:
        for _ in pool.map(fetch, wanted.items()):
            pass


def _continued(store: Store, path: Path, entry: FileEntry) -> bool:
    """Appends what a local copy of a growing file lacks. Returns False if the copy has another beginning."""
    try:
        descriptor = open_regular(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    with open(descriptor, "r+b", buffering=0) as file:
        size = os.fstat(descriptor).st_size
        known = os.pread(descriptor, min(size, TAIL), max(0, size - TAIL))
        if not known or size >= entry.size:
            return False
        pieces = contents(store, entry, size - len(known))
        first = b""
        while len(first) < len(known):
            first += next(pieces, b"") or bytes(len(known))
        if not first.startswith(known):
            return False
        file.seek(size)
        file.write(first[len(known) :])
        file.writelines(pieces)
        return True


def contents(store: Store, entry: FileEntry, start: int = 0) -> Iterator[bytes]:
    """The content of a file from an offset.

    Raises:
        FileNotFoundError: an object was replaced by a newer one.
        RemoteStoreError: the store refuses or cannot be reached, or an object has another size.
    """
    if entry.content is not None:
        yield entry.content[start:]
        return
    for part in entry.parts:
        if part.start + part.size > start:
            skip = max(0, start - part.start)
            piece = store.read(f"{FOLDER}/{part.name}", skip, part.size if skip else None)
            if len(piece) != part.size - skip:
                raise store.invalid(part.name)
            yield piece


def unsent_lines(path: Path, stored: Iterable[bytes]) -> bytes:
    """The whole lines of a local file that are not in the store's file."""
    try:
        with open(open_regular(path), "rb") as file:
            own = file.read()
    except FileNotFoundError:
        return b""
    known = set(b"".join(stored).splitlines(keepends=True))
    return b"".join(line for line in own.splitlines(keepends=True) if line.endswith(b"\n") and line not in known)
