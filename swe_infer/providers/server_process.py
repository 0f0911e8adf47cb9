"""A server that lives as long as the run that started it.

Between the run and the server stands a keeper: this file, run as a script. It holds a pipe from the run; when that
closes, because the run is done or because it was killed, whatever the signal, the keeper ends the server and all that
the server has started. So nothing is left behind on a machine, or on a GPU.
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
        environment: of the server; this process's keeps nothing of it.

    Raises:
        OSError: the log cannot be written.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        from swe_infer.files import open_regular  # not at the top: this file runs as a script too

        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(open_regular(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as output:
            self._begin = output.tell()
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", __file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is the run's business, which lets the server answer what it has
            )

    @property
    def ended(self) -> str | None:
        """How the server ended by itself, in words; None while it runs."""
        code = self._keeper.poll()
        if code is None:
            return None
        return f"was killed by signal {code - 128}" if code > 128 else f"ended with exit status {code}"

    def last_lines(self, most: int) -> list[str]:
        """The last lines that this server wrote, blank ones left out."""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(self._begin, size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return [line.rstrip() for line in lines if line.strip()][-most:]

    def stop(self) -> None:
        """End the server and all that it started, and wait for that."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        self._keeper.wait()


def _keep(command: list[str]) -> int:
    """Run ``command`` until it ends or standard input does; returns its exit status, 128 and more for a signal."""
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
    _signal_group(server.pid, signal.SIGKILL)  # what it started and did not end itself
    return 128 - code if code < 0 else code


def _signal_group(leader: int, number: int) -> None:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    exit_status = _keep(sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_status)  # the watching thread may still wait for its end of the pipe
