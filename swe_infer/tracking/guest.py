"""Runs W&B's SDK in a child process, called the guest, and exchanges messages with it.

A guest is a module of this package with a function ``serve(requests, reply)``. It is started as ``python -m
swe_infer.tracking.guest MODULE FOLDER``. Requests and replies are JSON objects, one per line. The last reply is
``done``, or ``error`` with the exception's class as ``kind`` if ``serve`` raised. Output of libraries goes to
standard error.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swe_infer.interrupts import COLLECT_AFTER
from swe_infer.redaction import SECRET_NAME, without_credentials
from swe_infer.text import first_line

if TYPE_CHECKING:
    from wandb.apis.public import Api

Message = dict[str, Any]
Requests = Iterator[Message]
Reply = Callable[..., None]
"""Sends its keyword arguments as one message."""

_UNUSED = ("numpy", "pandas")
"""The SDK imports these to check for arrays and data frames, which no guest uses."""
_TIMEOUT_S = 30
_RETRIES, _MAX_RETRY_WAIT_S = 2, 2.0  # the SDK's default of 20 retries takes many minutes


def start(module: str, folder: Path, log: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a guest.

    Args:
        folder: its working directory, with W&B's cache, settings and copies of uploads.
        log: its standard error, as in :class:`subprocess.Popen`.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "swe_infer.tracking.guest", module, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=guest_environment(folder),
        start_new_session=True,  # only this process handles Ctrl-C of the terminal
    )


def send(pipe: IO[bytes], message: Mapping[str, Any]) -> None:
    """Send one request to a guest."""
    pipe.write(json.dumps(message, default=_plain, skipkeys=True).encode() + b"\n")
    pipe.flush()


def call(module: str, folder: Path, request: Mapping[str, Any]) -> list[Message]:
    """Run a guest for one request; returns its replies, the last of which is ``done`` or ``error``."""
    with start(module, folder, subprocess.PIPE) as process:
        try:
            output, log = process.communicate(json.dumps(request).encode())
        except BaseException:
            process.kill()
            raise
    replies: list[Message] = [json.loads(line) for line in output.splitlines()]
    if not replies or replies[-1].keys().isdisjoint(("done", "error")):
        lines = log.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        replies.append({"error": f"W&B's SDK failed: {lines[-1][:300]}"})
    return replies


def guest_environment(folder: Path) -> dict[str, str]:
    """This process's environment, without secrets other than W&B's, and with W&B's folders in ``folder``."""
    environment = {
        name: value for name, value in os.environ.items() if name.startswith("WANDB_") or not SECRET_NAME.search(name)
    }
    environment.pop("WANDB_SERVICE", None)  # the wandb-core of another process
    if not os.path.isabs(os.path.expanduser("~")):  # the SDK requires a home directory
        environment["HOME"] = str(folder)
    package_root = str(Path(__file__).resolve().parents[2])
    paths = [package_root, *filter(None, [environment.get("PYTHONPATH")])]
    return environment | {
        "PYTHONPATH": os.pathsep.join(paths),
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_ARTIFACT_DIR": str(folder / "data"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_CONFIG_DIR": str(folder / "config"),
        "WANDB_ERROR_REPORTING": "false",
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (set, frozenset, tuple)):
        return list(value)
    return str(value)


def main() -> int:
    """Run the guest named on the command line; returns the exit status."""
    module, folder = sys.argv[1:]
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.chdir(folder)
    gc.set_threshold(*COLLECT_AFTER)
    _shorten_imports()

    lock = threading.Lock()

    def reply(**message: Any) -> None:
        try:
            with lock:
                replies.write(json.dumps(message) + "\n")
                replies.flush()
        except OSError:
            return  # the parent has ended

    try:
        importlib.import_module(f"swe_infer.tracking.{module}").serve(map(json.loads, requests), reply)
    except Exception as error:  # noqa: BLE001 - the SDK may raise anything; the parent logs one line
        reply(error=one_line(error), kind=type(error).__name__)
        return 1
    reply(done=True)
    gc.freeze()  # as in run_command
    return 0


def _shorten_imports() -> None:
    """The SDK's imports take most of a short run's processor time in this process."""
    for name in _UNUSED:
        sys.modules[name] = None  # type: ignore[assignment] # documented: an import of it fails at once
    # Before Python 3.13, pydantic parses the source of the SDK's models for the descriptions of their fields. It
    # finds the source by the frame, which some implementations of Python lack.
    inspect.currentframe = lambda: None


def shorten_starts() -> None:
    """Turn off what the SDK does at the start of each run and no guest needs: it sends figures about itself to W&B,
    and it looks for inputs of a job of W&B Launch. Both import much."""
    import wandb

    with suppress(ImportError, AttributeError):  # another release than the pinned one starts slower
        from wandb.analytics.opentelemetry import opentelemetry_proxy

        opentelemetry_proxy.disable()
        wandb.Run._detect_and_apply_job_inputs = _do_nothing  # type: ignore[assignment, method-assign]


def _do_nothing(_: object) -> None:
    pass


def one_line(error: BaseException) -> str:
    """The first line of an error, without credentials in URLs."""
    return without_credentials(first_line(error))[:300]


def connect() -> Api:
    """W&B's public API, for a guest. Fails within a minute if the server does not answer."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        x_graphql_retry_max=_RETRIES,
        x_graphql_retry_wait_max_seconds=_MAX_RETRY_WAIT_S,
        x_graphql_timeout_seconds=float(_TIMEOUT_S),
        x_file_transfer_retry_max=_RETRIES,
    )
    wandb.setup(settings=settings)
    return wandb.Api(api_key=os.environ["WANDB_API_KEY"], timeout=_TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
