"""Locks a folder against other processes."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path

from swe_infer.errors import StoreError
from swe_infer.files import open_regular
from swe_infer.locks import Locks, OwnerFile, has_no_locks, no_locks, refuse_owned


def locked(path: Path, locks: Locks, what: str) -> ExitStack:
    """Locks a folder until the returned object is closed.

    The kernel releases the exclusive lock when the process ends. With ``single_writer`` there is a lock file, and an
    exclusive lock only if the file system supports it.
    """
    with ExitStack() as stack:
        descriptor = open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        file = stack.enter_context(open(descriptor, "a+"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
