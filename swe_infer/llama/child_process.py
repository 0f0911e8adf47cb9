"""Starts processes that end with their parent, and in which interrupts are blocked."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess


def start_child(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run ``target`` in a new process.

    Terminals, Slurm and ``timeout`` send SIGINT, SIGTERM and SIGHUP to every process of a command. Its children must
    continue, so that it can finish requests in flight.
    """
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(target, *arguments), daemon=True)
    blocked = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        resource_tracker.ensure_running()  # its start unblocks SIGINT and SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


def _run(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
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
