"""Processes of an evaluation: the harness, and commands of the user."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from swe_infer.files import open_regular, read_regular, write_atomically
from swe_infer.redaction import without_secrets

_GRACE_S = 8.0
_MAX_LOG_BYTES = 1 << 26


def run_process(
    command: Sequence[str], *, output: Path, log: Path, folder: Path | None = None, timeout_s: float | None = None
) -> int | None:
    """Runs a command in a process group of its own. Forwards Ctrl-C to it and waits a few seconds for its end.

    Args:
        output: file for its standard output; may be ``log``.
        log: file that its standard error is appended to.
        folder: its working directory; None: that of this process.

    Returns:
        Its exit status; None if it was killed after ``timeout_s``.

    Raises:
        OSError: it cannot be started.
    """
    with ExitStack() as opened:
        errors = opened.enter_context(open(_appended(log), "ab"))
        out = errors if output == log else opened.enter_context(open(_appended(output), "ab"))
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, start_new_session=True
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        except KeyboardInterrupt:
            _signal_group(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            raise
        finally:
            if process.poll() is None:
                _signal_group(process, signal.SIGKILL)
                process.wait()


def redact(path: Path) -> None:
    """Removes secrets of the environment from a file that a command wrote."""
    with suppress(OSError):
        text = read_regular(path, _MAX_LOG_BYTES).decode("utf-8", "replace")
        if (clean := without_secrets(text)) != text:
            write_atomically(path, clean)


def _appended(path: Path) -> int:
    return open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
