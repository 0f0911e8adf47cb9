"""Locks between processes: file locks of the operating system, or lock files on file systems without them.

Some network and FUSE file systems do not support file locks. With ``locks=single_writer`` a lock file is created with
O_EXCL instead. It excludes other processes, but cannot let several processes write in turns.

Format of a lock file, ``NAME.owner`` beside the locked file: a JSON object with ``host``, ``pid``, ``born`` (boot id,
pid namespace and start time of the process), ``since`` (seconds since the epoch) and ``token``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS

Locks = Literal["os", "single_writer"]

_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL})
"""Errors of flock and fcntl on file systems without locks."""

_MAX_BYTES = 1 << 16  # of a lock file
_MAX_PAUSE_S = 0.05
_STOPPING_WAIT_S = 1.0
"""Seconds that a connection waits in total after Ctrl-C."""


def locks_of(config: Mapping[str, Any]) -> Locks:
    """The ``locks`` of a run's configuration; ``os`` by default."""
    return "single_writer" if config.get("locks") == "single_writer" else "os"


def has_no_locks(error: OSError) -> bool:
    """Whether locking failed because the file system does not support it."""
    return error.errno in _NO_LOCKS


def no_locks(what: str, error: OSError) -> StoreError:
    """The error for a file system without locks; ``what`` names the key or the file."""
    return StoreError(
        f"{what}: its file system has no file locks ({error.strerror}); choose a folder on another one, set "
        "locks=single_writer, which allows one process at a time, or keep what processes share on a swe-infer-budget "
        "server (budget.ledger, runner.limits.shared)"
    )


class OwnerFile:
    """A lock file that this process owns until :meth:`close`.

    Args:
        path: the file to lock; the lock file is ``path`` with ``.owner`` appended.
        what: the key or file in messages.

    Raises:
        StoreError: another process owns the lock, or may own it.
        OSError: the lock file cannot be written.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = _owner_path(path)
        self._content = json.dumps(this_process()).encode()
        refuse_owned(path, what)
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise StoreError(f"{what}: another process has just started to use it") from None
        try:
            os.write(descriptor, self._content)
        except OSError:
            self._path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the lock file, if it is still this owner's."""
        with contextlib.suppress(OSError):
            if _content(self._path) == self._content:
                self._path.unlink()


def _content(path: Path) -> bytes:
    """Reads a lock file, which may be untrusted. Does not follow links or block on a FIFO."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        return file.read(_MAX_BYTES)


def refuse_owned(path: Path, what: str) -> None:
    """Check that no live process owns a lock file for ``path``. Removes the lock file of a dead one.

    Raises:
        StoreError: a process owns the lock, or may own it, as on another machine.
        OSError: the lock file cannot be read or removed.
    """
    lock = _owner_path(path)
    try:
        content = _content(lock)
    except FileNotFoundError:
        return
    owner = process_in(content)
    if owner is None:
        raise StoreError(f"{what}: {lock} names no process; remove it if no process uses {path}")
    if not is_gone(owner):
        process = f"process {owner['pid']} on {owner['host']}"
        if _is_local(owner):
            raise StoreError(f"{what}: in use by {process}; wait for it or choose another")
        raise StoreError(f"{what}: in use by {process}; if that process has ended, remove {lock}")
    # Rename before removal: another process may have created a new lock file meanwhile.
    aside = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}")
    try:
        os.rename(lock, aside)
    except FileNotFoundError:
        return
    if _content(aside) == content:
        aside.unlink()
    else:
        os.rename(aside, lock)


def is_owned(path: Path) -> bool:
    """Whether a process owns, or may own, a lock file for ``path``. Writes nothing."""
    try:
        owner = process_in(_content(_owner_path(path)))
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return owner is None or not is_gone(owner)


def connect(path: Path, locks: Locks, *, timeout_s: float, name: str = "") -> sqlite3.Connection:
    """Connect to a SQLite database in autocommit mode.

    With ``single_writer`` the connection owns a lock file until it is closed, and uses no file locks.

    Args:
        timeout_s: seconds that a statement waits for other processes; shorter after Ctrl-C.
        name: names the key or file in messages; ``path`` if empty.

    Raises:
        StoreError: the file system has no locks, or another process owns the database.
        OSError, sqlite3.Error: the database cannot be opened.
    """
    name = name or str(path)
    if locks == "os":
        _probe(path, name)
        refuse_owned(path, name)
        patient = sqlite3.connect(path, timeout=0.0, isolation_level=None, factory=_PatientConnection)
        patient.timeout_s = timeout_s
        return patient
    owner = OwnerFile(path, name)
    try:
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?vfs=unix-none", uri=True, isolation_level=None, factory=_OwnedConnection
        )
        db.owner = owner
        # In exclusive mode, a write-ahead log needs no shared memory.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
    except BaseException:
        owner.close()
        raise
    return db


class _PatientConnection(sqlite3.Connection):
    """Waits for other processes in Python, because SQLite's own wait does not handle signals."""

    timeout_s = 0.0
    stopping_wait_s = 0.0
    """Seconds spent waiting since Ctrl-C."""

    def execute(self, *statement: Any) -> sqlite3.Cursor:
        deadline, pause_s = time.monotonic() + self.timeout_s, 0.001
        while True:
            try:
                return super().execute(*statement)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                if INTERRUPTS.stopping:
                    self.stopping_wait_s += pause_s
                    if self.stopping_wait_s > _STOPPING_WAIT_S:
                        raise
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)


class _OwnedConnection(sqlite3.Connection):
    owner: OwnerFile | None = None

    def close(self) -> None:
        super().close()
        if self.owner is not None:
            self.owner.close()


def _probe(path: Path, name: str) -> None:
    """Raises StoreError if the file system does not support POSIX locks. SQLite would report a busy database, and
    wait. Uses a separate file, as closing any descriptor of a file drops the process's locks on it."""
    with tempfile.TemporaryFile(dir=path.parent, prefix=".locks-") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if has_no_locks(error):
                raise no_locks(name, error) from None
            raise


def _owner_path(path: Path) -> Path:
    return path.with_name(path.name + ".owner")


def this_process() -> dict[str, Any]:
    """Describes this process, as a lock file does."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "born": _birth(os.getpid()),
        "since": round(time.time(), 3),
        "token": uuid.uuid4().hex,
    }


def process_in(content: bytes) -> dict[str, Any] | None:
    """The process that :func:`this_process` described; None if the content is invalid, such as that
    of another program's lock file."""
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return None
    kinds = {"host": str, "pid": int, "born": str}
    if not isinstance(owner, dict) or any(type(owner.get(name)) is not kind for name, kind in kinds.items()):
        return None
    return owner if owner["pid"] < 1 << 31 else None


def _is_local(owner: dict[str, Any]) -> bool:
    """Whether the owner's pid is valid in this process: same machine, boot and pid namespace."""
    return bool(
        owner["host"] == socket.gethostname() and owner["born"].rpartition(" ")[0] == _birth(1).rpartition(" ")[0]
    )


def is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner has certainly ended."""
    if not _is_local(owner) or owner["pid"] <= 0:
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    now = _birth(owner["pid"])
    return not now.endswith(" ") and (bool(owner["born"] != now) or _is_zombie(owner["pid"]))


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended but was not reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (OSError, IndexError):
        return False


def _birth(pid: int) -> str:
    """Boot id, pid namespace and start time of a process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {born(pid)}"
    except OSError:
        return f"unknown {born(pid)}"


def born(pid: int) -> str:
    """The start time of a process in clock ticks, which distinguishes reused pids; "" if unknown."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
