"""Starts processes that end with their parent, and in which interrupts are blocked."""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler


def start_child(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run ``target`` in a new process.

    Terminals, Slurm and ``timeout`` send SIGINT, SIGTERM and SIGHUP to every process of a command. Its children must
    continue, so that it can finish requests in flight.
    """
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(_Pickled(target, arguments),), daemon=True
    )
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()  # its start unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


class _Pickled:
    """A call that arrives in the child as bytes. To unpickle it there imports its modules, and mostly torch."""

    def __init__(self, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
        self._call = (target, arguments)

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        return bytes, (bytes(ForkingPickler.dumps(self._call)),)


def _run(call: bytes) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.disable()  # imports create many objects, of which few become garbage
    target, arguments = pickle.loads(call)
    gc.freeze()  # neither later collections nor the interpreter's shutdown search them
    gc.enable()
    target(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # without waiting for a model that is being loaded


@atexit.register
def _kill_children() -> None:
    """Runs before the handler of multiprocessing, which sends SIGTERM to daemons and waits for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
