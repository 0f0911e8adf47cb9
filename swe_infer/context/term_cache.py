"""The cache of term counts, by the id of a file's content in git. Commits of a repository share most of their files.

File format: a SQLite database ``term_counts.sqlite`` in the user's cache directory, which any number of processes may
share. A row has an id and the compressed counts, or nothing for a file that is not text. The oldest rows are removed
above a size limit. The cache can be deleted at any time.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import TypeVar

from swe_infer.context.terms import VERSION, TermCounts
from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import connect
from swe_infer.resources import cache_home

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 30
"""Maximum size of the file. The counts of the 2,294 instances of SWE-bench need about half of it."""
_MOST_TERMS_IN_MEMORY = 20_000_000
"""12 bytes each."""
_BATCH = 500
"""Ids in one query; SQLite allows 999 or more."""
_WAIT_S = 10.0

_TABLE = f"counts_{VERSION}"
_SCHEMA = f"CREATE TABLE IF NOT EXISTS {_TABLE} (number INTEGER PRIMARY KEY, id BLOB UNIQUE NOT NULL, counts BLOB)"

T = TypeVar("T")


class TermCache:
    """Term counts in memory and on disk. Thread-safe.

    An unusable file costs its content: the counts are computed again.

    Args:
        directory: of the file; None: the user's cache directory, or no file without a home directory.
        most_bytes: of the file.
    """

    def __init__(self, directory: Path | None = None, most_bytes: int = _MOST_BYTES) -> None:
        home = cache_home() if directory is None else directory
        self.path = None if home is None else home / "term_counts.sqlite"
        self._most_bytes = most_bytes
        self._lock = Lock()
        self._recent: OrderedDict[str, TermCounts | None] = OrderedDict()  # least recently used first
        self._terms = 0
        self._has_warned = False

    def get(self, ids: Iterable[str]) -> dict[str, TermCounts | None]:
        """The cached counts of those ``ids`` that have some; None: the file is not text."""
        missing = []
        found: dict[str, TermCounts | None] = {}
        with self._lock:
            for one in ids:
                if one in self._recent:
                    self._recent.move_to_end(one)
                    found[one] = self._recent[one]
                else:
                    missing.append(one)
        if missing:
            read = self._with_file(lambda db: _read(db, missing)) or {}
            self._remember(read)
            found |= read
        return found

    def put(self, counts: Mapping[str, TermCounts | None]) -> None:
        """Stores counts by id."""
        self._remember(counts)
        rows = [(bytes.fromhex(one), None if item is None else item.to_bytes()) for one, item in counts.items()]
        if rows:
            self._with_file(lambda db: _write(db, rows, self._most_bytes))

    def _remember(self, counts: Mapping[str, TermCounts | None]) -> None:
        with self._lock:
            for one, item in counts.items():
                if one not in self._recent:
                    self._recent[one] = item
                    self._terms += 0 if item is None else len(item.hashes)
            while self._terms > _MOST_TERMS_IN_MEMORY:
                _, old = self._recent.popitem(last=False)
                self._terms -= 0 if old is None else len(old.hashes)

    def _with_file(self, action: Callable[[sqlite3.Connection], T]) -> T | None:
        """Runs ``action`` with the database, and returns its result; None if the file is unusable.

        A damaged one is removed, and the action is tried once more.
        """
        if self.path is None:
            return None
        for is_last in (False, True):
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with closing(connect(self.path, "os", timeout_s=_WAIT_S)) as db:
                    db.execute("PRAGMA synchronous=NORMAL")
                    db.execute(_SCHEMA)
                    return action(db)
            except (OSError, sqlite3.Error, StoreError) as error:
                damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
                if damaged and not is_last and self._remove(self.path):
                    continue
                self._warn(error)
                return None
        return None

    def _remove(self, path: Path) -> bool:
        try:
            for ending in ("", "-journal", "-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
        except OSError:
            return False
        log.warning("%s was damaged and is created again", path)
        return True

    def _warn(self, error: Exception) -> None:
        level = logging.DEBUG if self._has_warned or INTERRUPTS.stopping else logging.WARNING
        log.log(level, "%s: the cache of term counts cannot be used (%s); files are counted again", self.path, error)
        self._has_warned = True


def _read(db: sqlite3.Connection, ids: list[str]) -> dict[str, TermCounts | None]:
    found: dict[str, TermCounts | None] = {}
    for at in range(0, len(ids), _BATCH):
        batch = [bytes.fromhex(one) for one in ids[at : at + _BATCH]]
        marks = ",".join("?" * len(batch))
        for one, data in db.execute(f"SELECT id, counts FROM {_TABLE} WHERE id IN ({marks})", batch):
            try:
                found[one.hex()] = None if data is None else TermCounts.from_bytes(data)
            except (ValueError, TypeError):
                continue  # a damaged row is counted again and replaced
    return found


def _write(db: sqlite3.Connection, rows: list[tuple[bytes, bytes | None]], most_bytes: int) -> None:
    db.execute("BEGIN IMMEDIATE")
    try:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        (free,) = db.execute("PRAGMA freelist_count").fetchone()
        if size * (pages - free) > most_bytes:
            db.execute(f"DELETE FROM {_TABLE} WHERE number <= (SELECT (min(number) + max(number)) / 2 FROM {_TABLE})")
        db.executemany(f"INSERT OR REPLACE INTO {_TABLE} (id, counts) VALUES (?, ?)", rows)
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
