"""W&B's SDK runs in processes of its own. This is how they are started, and how the two sides talk.

Such a guest is a module of this package with a function ``serve(requests, say)``, started as ``python -m
swe_infer.tracking.guest MODULE FOLDER``. Both directions carry JSON objects, one a line. The last answer is ``done``,
or ``error`` (with the exception's class as ``kind``) where ``serve`` raised. What a library prints goes to standard
error, never between the answers.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swe_infer.redaction import SECRET_NAME, without_credentials
from swe_infer.text import first_line

if TYPE_CHECKING:
    from wandb.apis.public import Api

Message = dict[str, Any]
Requests = Iterator[Message]
Say = Callable[..., None]

_TIMEOUT_S = 30
_RETRIES, _LONGEST_WAIT_S = 2, 2.0  # where the server does not answer; the SDK's own 20 last for many minutes


def start(module: str, folder: Path, log: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a guest.

    Args:
        folder: its working directory; takes W&B's cache, its settings, and copies of what it moves.
        log: what it writes to standard error, as :class:`subprocess.Popen` takes it.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "swe_infer.tracking.guest", module, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=guest_environment(folder),
        start_new_session=True,  # Ctrl-C in the terminal is this process's to handle
    )


def send(pipe: IO[bytes], message: Mapping[str, Any]) -> None:
    """Send a guest one request."""
    pipe.write(json.dumps(message, default=_plain, skipkeys=True).encode() + b"\n")
    pipe.flush()


def ask(module: str, folder: Path, request: Mapping[str, Any]) -> list[Message]:
    """All answers of a guest to its only request; the last one is ``done`` or ``error``."""
    with start(module, folder, subprocess.PIPE) as process:
        try:
            output, log = process.communicate(json.dumps(request).encode())
        except BaseException:
            process.kill()
            raise
    answers: list[Message] = [json.loads(line) for line in output.splitlines()]
    if not answers or answers[-1].keys().isdisjoint(("done", "error")):
        lines = log.decode(errors="replace").strip().splitlines() or [f"status {process.returncode}"]
        answers.append({"error": f"W&B's SDK failed: {lines[-1][:300]}"})
    return answers


def guest_environment(folder: Path) -> dict[str, str]:
    """This process's environment, with no key but W&B's, and W&B's own folders in ``folder``."""
    environment = {
        name: value for name, value in os.environ.items() if name.startswith("WANDB_") or not SECRET_NAME.search(name)
    }
    environment.pop("WANDB_SERVICE", None)  # another process's wandb-core
    if not os.path.isabs(os.path.expanduser("~")):  # the SDK needs a home directory, if only to look into it
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
    """Be the guest that the command line names. Returns the process's exit status."""
    module, folder = sys.argv[1:]
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.chdir(folder)

    def say(**message: Any) -> None:
        try:
            answers.write(json.dumps(message) + "\n")
            answers.flush()
        except OSError:
            return  # nobody listens any more

    try:
        importlib.import_module(f"swe_infer.tracking.{module}").serve(map(json.loads, requests), say)
    except Exception as error:  # noqa: BLE001 - whatever the SDK raises, the other side hears one line about it
        say(error=one_line(error), kind=type(error).__name__)
        return 1
    say(done=True)
    return 0


def one_line(error: BaseException) -> str:
    """What an error says, without passwords in addresses."""
    return without_credentials(first_line(error))[:300]


def connect() -> Api:
    """W&B's public API, for a guest; a server that does not answer is given up within a minute."""
    import wandb

    settings = wandb.Settings(
        silent=True,
        x_graphql_retry_max=_RETRIES,
        x_graphql_retry_wait_max_seconds=_LONGEST_WAIT_S,
        x_graphql_timeout_seconds=float(_TIMEOUT_S),
        x_file_transfer_retry_max=_RETRIES,
    )
    wandb.setup(settings=settings)
    return wandb.Api(api_key=os.environ["WANDB_API_KEY"], timeout=_TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
