"""State that several processes share: a SQLite database, written by short immediate transactions.

Each statement commits or leaves nothing, so a process that is killed at any moment leaves a readable file. A database
may keep an ``owners`` table of the processes that hold rows in it:

* ``owners(id, host, pid, born, beat)``: ``born`` is the kernel's start time of the process, ``beat`` its last sign of
  life in seconds since the epoch.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import StoreError
from swe_infer.files import allocate, open_regular, special_kind
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import Locks, born, connect

_BEAT_S = 15.0
_DEAD_AFTER_S = 180.0

_OWNERS = """
CREATE TABLE IF NOT EXISTS owners (
    id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, born TEXT NOT NULL, beat REAL NOT NULL);
"""
_LARGEST = 10**18
_JOURNAL_BYTES = 1 << 16
"""15 pages: more than the rows of some hundred requests take."""


class Busy(StoreError):
    """Another process had the database locked for too long."""


class Interrupted(Busy):
    """Ctrl-C ended the wait for another process that has the database locked."""


@dataclass(frozen=True, slots=True)
class RemoteOwner:
    """A process on another machine, for which a server keeps rows."""

    id: str
    host: str


class SharedDatabase:
    """The database in ``path``, created if missing. The first transaction creates the tables and checks the rows.

    Args:
        path: None keeps the database in memory.
        name: what error messages call it.
        schema: statements separated by ``;`` that create the tables. Integers are from 0 to 10^18.
        timeout_s: how long a statement waits for other processes.
        owner: whose rows they are; None: this process.

    Raises:
        StoreError: the file cannot be opened, or its file system has no locks.
    """

    def __init__(
        self,
        path: Path | None,
        name: str,
        schema: str,
        *,
        locks: Locks = "os",
        timeout_s: float = 60.0,
        owner: RemoteOwner | None = None,
    ) -> None:
        if owner is None:
            self.owner = uuid.uuid4().hex
            self._process = (socket.gethostname(), os.getpid(), born(os.getpid()))
        else:
            self.owner = owner.id
            self._process = (f"{owner.host} (remote)", 0, "")  # never this host, so that only its signs of life count
        self._path = path
        self._name = name
        self._schema = _OWNERS + schema
        self._is_checked = False
        self._beat = 0.0
        try:
            if path is None:
                self._db = sqlite3.connect(":memory:", isolation_level=None)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                _refuse_special(path)
                self._db = connect(path, locks, timeout_s=timeout_s, name=name)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{name}: cannot be used: {error}{remedy(error)}") from error

    def execute(self, statement: str, arguments: tuple[Any, ...] = ()) -> list[Any]:
        """Returns the rows.

        Raises:
            Busy: other processes had the database locked for ``timeout_s``.
            StoreError: the file cannot be read or written.
        """
        try:
            return self._db.execute(statement, arguments).fetchall()
        except sqlite3.Error as error:
            is_busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
            kind = StoreError if not is_busy else Interrupted if INTERRUPTS.stopping else Busy
            raise kind(f"{self._name}: cannot be used: {error}{remedy(error)}") from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One immediate transaction, rolled back if the body raises."""
        if not self._is_checked:
            # A power cut may lose the last moments; a killed process loses nothing. No write-ahead log: its shared
            # memory does not work on network file systems. The rollback journal keeps its space.
            self.execute("PRAGMA synchronous=OFF")
            self.execute("PRAGMA journal_mode=PERSIST")
        self.execute("BEGIN IMMEDIATE")
        try:
            if not self._is_checked:
                self._create_and_check()
            yield
            self.execute("COMMIT")
            if not self._is_checked and self._path is not None:
                _reserve_journal(self._path)  # SQLite removes the journal of an empty database
            self._is_checked = True
        except BaseException:
            self._beat = 0.0  # if it is written, it is rolled back
            if self._db.in_transaction:  # SQLite has rolled back already if the disk is full
                self.execute("ROLLBACK")
            raise

    def beat(self) -> None:
        """Registers the owner in ``owners``, or shows other hosts that it is alive. Within a transaction."""
        if not 0 <= time.time() - self._beat <= _BEAT_S:  # negative: the clock was set back
            self._beat = time.time()
            row = (self.owner, *self._process, self._beat)
            self.execute("INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, ?)", row)

    def dead_owners(self) -> list[str]:
        """Ids of processes that have ended; on other hosts, of those without a recent sign of life."""
        rows = self.execute("SELECT id, host, pid, born, beat FROM owners WHERE id != ?", (self.owner,))
        return [str(owner) for owner, *process in rows if _is_dead(*process)]

    def renew_owners(self) -> None:
        """Treats all processes as alive now, after a time in which they could not show it. Within a transaction."""
        self.execute("UPDATE owners SET beat = ?", (time.time(),))

    def remove_owner(self, owner: str) -> None:
        self.execute("DELETE FROM owners WHERE id = ?", (owner,))

    def close(self) -> None:
        self._db.close()

    def _create_and_check(self) -> None:
        """SQLite stores values of any type in any column, and another user may have written the file."""
        for statement in self._schema.split(";"):
            self.execute(statement)
        with closing(sqlite3.connect(":memory:")) as model:
            model.executescript(self._schema)
            columns = model.execute(
                "SELECT t.name, c.name, c.type FROM sqlite_master t, pragma_table_info(t.name) c WHERE t.sql NOTNULL"
            ).fetchall()
        for table, column, kind in columns:
            invalid = f"typeof({column}) != lower('{kind}')"
            if kind == "INTEGER":
                invalid += f" OR {column} NOT BETWEEN 0 AND {_LARGEST}"
            if self.execute(f"SELECT 1 FROM {table} WHERE {invalid} LIMIT 1"):
                raise StoreError(f"{self._name}: its table {table} has invalid values; remove the file")


def remedy(error: OSError | sqlite3.Error) -> str:
    """What to do about a damaged database, for the end of a message; empty for another error."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return "; remove the file" if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else ""


def _refuse_special(path: Path) -> None:
    """The file may be in a directory that another user wrote. It is not opened: closing it would drop the locks of
    other connections in this process.

    Raises:
        OSError: ``path`` is a link or a special file.
    """
    with suppress(FileNotFoundError):
        if (kind := special_kind(os.lstat(path).st_mode)) is not None:
            raise OSError(f"it is {kind}; a regular file is expected")


def _reserve_journal(path: Path) -> None:
    """Allocates the space of the rollback journal, so that a full disk prevents no change to existing rows. SQLite
    ignores zeros in it."""
    with suppress(OSError):  # without space, or support for it, the next transaction tries
        descriptor = open_regular(path.with_name(f"{path.name}-journal"), os.O_RDWR)
        try:
            allocate(descriptor, _JOURNAL_BYTES)
        finally:
            os.close(descriptor)


def _is_dead(host: str, pid: int, birth: str, beat: float) -> bool:
    if host != socket.gethostname():
        return time.time() - beat > _DEAD_AFTER_S
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return birth != "" and born(pid) not in ("", birth)
