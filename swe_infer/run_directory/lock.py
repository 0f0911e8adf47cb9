"""Locks a folder against other processes."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import ExitStack
from pathlib import Path

from swe_infer.errors import StoreError
from swe_infer.files import open_regular
from swe_infer.locks import Locks, OwnerFile, has_no_locks, is_owned, no_locks, refuse_owned

_TRIES, _PAUSE_S = 5, 0.02
""":func:`is_locked` of another process holds the lock for microseconds."""


def locked(path: Path, locks: Locks, what: str) -> ExitStack:
    """Locks a folder until the returned object is closed.

    The kernel releases the exclusive lock when the process ends. With ``single_writer`` there is a lock file, and an
    exclusive lock only if the file system supports it.
    """
    with ExitStack() as stack:
        descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        file = stack.enter_context(open(descriptor, "a+"))
        try:
            _lock(descriptor)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            raise StoreError(f"{what}: in use by {owner}; wait for it or choose another") from None
        except OSError as error:
            if not has_no_locks(error):
                raise
            if locks == "os":
                raise no_locks(what, error) from None
        if locks == "os":
            refuse_owned(path, what)
        else:
            stack.enter_context(OwnerFile(path, what))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        return stack.pop_all()


def _lock(descriptor: int) -> None:
    for attempt in range(_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE_S)


def is_locked(path: Path) -> bool:
    """Whether a process has locked a folder with :func:`locked`. Writes nothing."""
    try:
        descriptor = open_regular(path)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass  # the file system has no locks; there may be a lock file
    finally:
        os.close(descriptor)
    return is_owned(path)
