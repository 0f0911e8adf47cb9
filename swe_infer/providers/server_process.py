"""A server process that ends with the run that started it.

A supervisor (this file, run as a script) starts the server and reads a pipe from the run. When the pipe closes,
because the run has ended or was killed by any signal, the supervisor stops the server and its child processes. So
nothing keeps running on the machine or its GPUs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_GRACE_S = 15.0
_TAIL_BYTES = 1 << 14


class ServerProcess:
    """``command``, started at once, with its output appended to ``log``.

    Args:
        environment: of the server only.

    Raises:
        OSError: the log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        from swe_infer.files import open_regular  # not at the top: this file runs as a script too

        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as output:
            self._begin = output.tell()
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-X", "utf8", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # only the run handles Ctrl-C: the server finishes its requests
            )

    @property
    def ended(self) -> str | None:
        """How the server ended, in words; None while it runs."""
        code = self._supervisor.poll()
        if code is None:
            return None
        return f"was killed by signal {code - 128}" if code > 128 else f"ended with exit status {code}"

    def last_lines(self, most: int) -> list[str]:
        """The last lines of the server's output, without blank ones."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-most:]

    def stop(self) -> None:
        """Stops the server and its child processes, and waits for them."""
        assert self._supervisor.stdin is not None
        self._supervisor.stdin.close()
        self._supervisor.wait()


def _run_server(command: list[str]) -> int:
    """Runs ``command`` until it ends or standard input is closed. Returns its exit status, above 128 for a signal."""
    try:
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return 127
    ending = threading.Event()

    def end(*_: object) -> None:
        if not ending.is_set():
            ending.set()
            _signal_group(server.pid, signal.SIGTERM)
            threading.Timer(_GRACE_S, _signal_group, (server.pid, signal.SIGKILL)).start()

    def watch() -> None:
        sys.stdin.buffer.read()
        end()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, daemon=True).start()
    code = server.wait()
    _signal_group(server.pid, signal.SIGKILL)  # child processes that still run
    return 128 - code if code < 0 else code


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    exit_status = _run_server(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_status)  # the thread may still wait for the pipe
