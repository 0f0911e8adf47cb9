"""Starts processes that only their parent ends."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess


def start_child(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """Run ``target`` in a new process, in which SIGINT and SIGTERM are blocked.

    Terminals, Slurm and ``timeout`` send these to every process of a command. Its children must continue, so that it
    can finish requests in flight.
    """
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    resource_tracker.ensure_running()  # its start unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return process


@atexit.register
def _kill_children() -> None:
    """Runs before the handler of multiprocessing, which sends SIGTERM to daemons and waits for them."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
