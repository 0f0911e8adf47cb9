"""Connects this process to a Ray cluster. Ray is imported when it is used."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.resources import is_installed

_TIMEOUT_S = 10.0


def connect_to_ray(key: str, address: str | None) -> None:
    """Connects to a cluster. Does nothing in a process that is connected, such as a job of Ray's Hydra launcher.

    Args:
        key: the key of the configuration that needs the cluster, and its value, for messages.
        address: HOST:PORT, or ``auto``: ``RAY_ADDRESS`` or a cluster on this machine; None: otherwise a new one.

    Raises:
        ConfigError: Ray is not installed, or no cluster responds.
    """
    if not is_installed("ray"):
        raise ConfigError(f"{key}: needs an extra that is not installed; pip install 'swe_infer[ray]'")
    import ray

    if ray.is_initialized():
        return
    found = os.environ.get("RAY_ADDRESS") or (_last_on_this_machine() if address == "auto" else None)
    stated = found if address in (None, "auto") else address
    with _signal_handlers_kept():
        try:
            _check_reachable(stated)
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = f"at {found} " if stated == found is not None else ""
            raise ConfigError(f"{key}: no Ray cluster {where}({ray_error_line(error)})") from error
    # Ray reports lost actors on standard output, which has the run's result. No option prevents it.
    ray._private.worker._worker_logs_enabled = False


def ray_error_line(error: BaseException) -> str:
    """The most informative line of an error, which Ray wraps in tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    informative = [line for line in lines if "Error: " in line]
    return (informative or lines or [type(error).__name__])[-1 if informative else 0][:300]


def _last_on_this_machine() -> str | None:
    """The address that ``ray start`` left here, maybe of a cluster that has ended."""
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    try:
        return (Path(temporary) / "ray" / "ray_current_cluster").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None


def _check_reachable(address: str | None) -> None:
    """Raises OSError if nothing listens at ``HOST:PORT``. Ray itself would retry for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S).close()


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restores this process's signal handlers, which ``ray.init`` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
