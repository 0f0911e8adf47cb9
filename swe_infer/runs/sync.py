"""Uploads runs to W&B from their run directories: history, table and artifacts, rebuilt from the records.

The offline files of W&B's SDK are not used: they name other files by absolute paths, so they are incomplete after a
move. A run keeps its W&B run id. ``wandb/synced.json`` in the run directory notes what the server has, so an
unchanged run is not uploaded again, and an interrupted upload is repeated.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.locks import locks_of
from swe_infer.run_directory import layout
from swe_infer.run_directory.lock import locked
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.tracking.guest import send, start
from swe_infer.tracking.state import checked_folder, is_synced, read_state
from swe_infer.tracking.wandb import WandbTracker, start_message

MAX_UPLOADS = 4
"""Processes that upload at once, by default."""
_FINISH_TIMEOUT_S, _INIT_TIMEOUT_S = 300.0, 30.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A run to upload.

    Args:
        message: the request for :mod:`swe_infer.tracking.uploader`.
    """

    directory: Path
    message: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where runs are uploaded to, in place of what their configurations name."""

    entity: str | None = None
    project: str | None = None


class ServerNotReachable(SweInferError):
    """The W&B server does not answer, or does not accept the API key. Nothing further is uploaded."""


def upload_of(directory: Path, to: Destination, *, trusted: bool) -> Upload | None:
    """The upload of a run; None if W&B has all of it already, or it was not tracked with W&B.

    A directory that somebody else tracked, or a copy, may only add a W&B run, not extend an existing one.

    Args:
        trusted: it may also extend a run.

    Raises:
        ConfigError: it cannot be uploaded.
        OSError: a file cannot be read.
    """
    state = read_state(directory)
    if state is None or is_synced(directory):
        return None
    tracked = WandbTracker.of_run(directory, trusted=True)
    if tracked is None:
        raise ConfigError(
            f"{directory}: its wandb/state.json is not of a W&B run; remove it, and repeat the run's command"
        )
    tracker, info = tracked
    mode = state.values["options"]["mode"]
    options = {
        **tracker.options,
        "mode": mode,
        "init_timeout_s": _INIT_TIMEOUT_S,
        "finish_timeout_s": _FINISH_TIMEOUT_S,
    }
    chosen = {"entity": to.entity, "project": to.project}
    options |= {key: value for key, value in chosen.items() if value is not None}
    message = start_message(replace(info, directory=directory), options)
    return Upload(directory, {**message, "online": True, "sync": True, "may_extend": state.own or trusted})


def sync(uploads: Sequence[Upload], report: Callable[[Upload, str | None], None], *, processes: int) -> int:
    """Uploads runs.

    Args:
        report: called with each upload, and why it failed or None. Never by two threads at once.
        processes: that upload at once.

    Returns:
        The number of failed uploads.

    Raises:
        ServerNotReachable: the rest was not uploaded.
    """
    pending: queue.SimpleQueue[tuple[int, Upload]] = queue.SimpleQueue()
    for item in enumerate(uploads):
        pending.put(item)
    lost: list[ServerNotReachable] = []
    failures: list[Upload] = []
    reporting = threading.Lock()
    stopping = threading.Event()

    def work(guest: _Guest) -> None:
        while not stopping.is_set():
            try:
                number, upload = pending.get_nowait()
            except queue.Empty:
                return
            failure: str | None
            try:
                with _held(upload.directory):
                    failure = guest.upload(number, upload)
                    if failure is not None and not stopping.is_set():
                        guest.check()  # of a server that is gone, one line is enough
            except ServerNotReachable as error:
                lost.append(error)
                stop()
                return
            except SweInferError as error:
                failure = str(error)
            with reporting:
                if stopping.is_set() and failure is not None:
                    return  # its process was ended
                if failure is not None:
                    failures.append(upload)
                report(upload, failure)

    with _guests(min(processes, len(uploads))) as guests:

        def stop() -> None:
            stopping.set()
            for guest in guests:
                guest.process.kill()  # its wandb-core then exits; the uploads are repeated from the run directories

        guests[0].check()
        threads = [threading.Thread(target=work, args=(guest,), daemon=True) for guest in guests]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except KeyboardInterrupt:
            stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            raise
    if lost:
        raise lost[0]
    return len(failures)


class _Guest:
    """A process that uploads runs, see :mod:`swe_infer.tracking.uploader`."""

    def __init__(self, folder: Path, log: IO[bytes]) -> None:
        self._log = log
        self.process: subprocess.Popen[bytes] = start("uploader", folder, log)

    def check(self) -> None:
        """Raises ServerNotReachable if the server does not answer, or does not accept the API key."""
        reply = self._ask({"check": True})
        if "reachable" not in reply:
            raise ServerNotReachable(str(reply.get("error")))

    def upload(self, number: int, upload: Upload) -> str | None:
        """Uploads a run; returns why it failed, or None."""
        reply = self._ask({**upload.message, "number": number})
        failure = reply.get("failure", reply.get("error"))
        return None if failure is None else f"{upload.directory}: {failure}"

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request and waits for the reply; one with ``error`` if the process has ended."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(OSError, ValueError):  # it has ended, perhaps within a line
            send(self.process.stdin, request)
            for line in self.process.stdout:
                reply: dict[str, Any] = json.loads(line)
                return reply
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().splitlines()[-1:]
        return {"error": f"W&B's SDK failed: {''.join(last)[:300] or 'its process ended'}"}


@contextmanager
def _guests(count: int) -> Iterator[list[_Guest]]:
    """Starts processes, and ends them with the block."""
    with (
        tempfile.TemporaryDirectory(prefix="swe-infer-sync-", ignore_cleanup_errors=True) as place,
        ExitStack() as stack,
    ):
        found = []
        for number in range(count):
            folder = Path(place) / str(number)
            folder.mkdir()
            log = stack.enter_context((folder / "log").open("w+b"))
            found.append(_Guest(folder, log))
            stack.callback(_end, found[-1].process)
        yield found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):  # it has ended, and cannot read the rest
                pipe.close()
    process.wait()


@contextmanager
def _held(directory: Path) -> Iterator[None]:
    """Locks a run directory, so that no other process resumes the run meanwhile.

    Raises:
        StoreError: another process uses it, or it contains links.
        ConfigError: it cannot be read or written.
    """
    try:
        checked_folder(directory)
        config = RunDirectory(directory).config()
        lock = locked(directory / layout.LOCK, locks_of(config), str(directory))
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else directory
        raise ConfigError(f"{where}: cannot be written ({error.strerror})") from None
    with lock:
        yield
