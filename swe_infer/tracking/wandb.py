"""Weights & Biases as a tracker. The SDK lives in a process of its own, :mod:`swe_infer.tracking.worker`.

A process, not a thread, because the SDK is a guest that could otherwise hurt the run: its import and its tables would
hold the interpreter's lock, it replaces ``sys.exit`` and ``sys.excepthook``, its ``atexit`` hook waits for a server
that may never answer, and it reads the environment, API keys of other vendors included. Here the run pays for copying
a small dictionary per record; a guest that crashes or hangs is told off in one line and left behind.

The worker reads the predictions from the run directory itself, so only totals travel, at most one message for each
``log_interval_s``. There is one slot for them, not a queue: nothing can pile up.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from swe_infer.errors import ConfigError, StoreError
from swe_infer.files import open_regular
from swe_infer.options import Option
from swe_infer.text import shown
from swe_infer.tracking.base import RunInfo
from swe_infer.tracking.guest import send, start
from swe_infer.tracking.state import checked_folder, folder_of, read_state, signing_key

_log = logging.getLogger(__name__)

_PROJECT_NAME = re.compile(r"[^/\\#?%:]{1,128}")
_TAG_LENGTH = 64  # the server's limit


@dataclass(kw_only=True, eq=False, repr=False)
class WandbTracker:
    """``tracker=wandb``.

    ``mode=auto`` is online where ``WANDB_API_KEY`` is set (and ``WANDB_MODE`` does not say otherwise), offline
    elsewhere; nothing prompts and no ``.netrc`` is read. An online run whose server cannot be reached is logged
    offline, for ``wandb sync``.

    Raises:
        ConfigError: a value is out of range, or ``mode`` is ``online`` without ``WANDB_API_KEY``.
    """

    project: Annotated[str, Option("W&B project.", "reporting")] = "swe-infer"
    entity: Annotated[str | None, Option("User or team; null: the key's default.", "reporting")] = None
    mode: Annotated[
        Literal["auto", "online", "offline"],
        Option("auto: online if WANDB_API_KEY is set, else offline.", "reporting"),
    ] = "auto"
    group: Annotated[str | None, Option("W&B group.", "reporting")] = None
    job_type: Annotated[str | None, Option("W&B job type.", "reporting")] = None
    tags: Annotated[tuple[str, ...], Option("W&B tags.", "reporting")] = ()
    notes: Annotated[str | None, Option("W&B notes.", "reporting")] = None
    name: Annotated[str | None, Option("W&B name; null: the run's own.", "reporting")] = None
    log_interval_s: Annotated[
        float, Option("Minimum seconds between two points of the live metrics.", "reporting")
    ] = 1.0
    init_timeout_s: Annotated[
        float, Option("Seconds to wait for the server; afterwards the run is logged offline.", "reporting")
    ] = 20.0
    finish_timeout_s: Annotated[
        float, Option("Maximum seconds to wait for uploads at the end; the rest stays on disk.", "reporting")
    ] = 60.0
    alert_failure_rate: Annotated[
        float | None,
        Option("Alert when more than this share of at least 20 samples has failed; null: never.", "reporting"),
    ] = 0.2
    alert_budget: Annotated[
        float | None, Option("Alert when this share of budget.max_usd is spent; null: never.", "reporting")
    ] = 0.9

    def __post_init__(self) -> None:
        if not _PROJECT_NAME.fullmatch(self.project):
            raise ConfigError(
                f"tracker.project={self.project!r}: must be 1 to 128 characters, none of them / \\ # ? % :"
            )
        for key, least in (("log_interval_s", 0.2), ("init_timeout_s", 1.0), ("finish_timeout_s", 1.0)):
            seconds = getattr(self, key)
            if not least <= seconds < float("inf"):
                raise ConfigError(f"tracker.{key}={seconds}: must be a finite number of seconds, at least {least:g}")
        for key in ("alert_failure_rate", "alert_budget"):
            share = getattr(self, key)
            if share is not None and not 0.0 < share <= 1.0:
                raise ConfigError(f"tracker.{key}={share}: must be above 0 and at most 1, or null for no alert")
        for tag in self.tags:
            if not 1 <= len(tag) <= _TAG_LENGTH:
                raise ConfigError(f"tracker.tags holds {tag[:80]!r}: W&B takes 1 to {_TAG_LENGTH} characters")
        if self.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise ConfigError("tracker.mode=online needs WANDB_API_KEY in the environment; offline does not")
        self._options: dict[str, Any] = {**asdict(self), "tags": list(self.tags)}
        self.address: str | None = None
        self._worker: _Worker | None = None

    @classmethod
    def of_run(cls, directory: Path, *, trusted: bool = False) -> tuple[WandbTracker, RunInfo] | None:
        """The tracker and run information with which ``directory`` was tracked, so that a later step (evaluation)
        goes on in the same W&B run; None where it was not tracked by W&B.

        Args:
            trusted: also where somebody else wrote it. Else None and one line for that.
        """
        found = read_state(directory)
        if found is None:
            return None
        state = found.values
        if not (found.own or trusted):
            _log.warning(
                "%s: nothing is sent to the W&B run that it names (%s), as this user did not track it here; --wandb "
                "sends it",
                directory,
                shown(state.get("address")),
            )
            return None
        try:
            options = {**state["options"], "tags": tuple(state["options"]["tags"])}
            if not state["online"]:
                options["mode"] = "offline"  # a later sync then uploads everything in order
            elif not os.environ.get("WANDB_API_KEY"):
                options["mode"] = "auto"
            run = RunInfo(run_id=state["run_id"], name=state["name"], config={}, directory=directory, resumed=True)
            return cls(**options), run
        except (ValueError, KeyError, TypeError, ConfigError):
            return None

    def start(self, run: RunInfo) -> None:
        """Start the worker in the background and return at once."""
        if self._worker is not None:
            return
        self.address = None
        self._worker = _Worker(run, self._options, self._set_address)
        self._worker.start()

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Note the totals. The record itself is read from the run directory by the worker."""
        if self._worker is not None:
            self._worker.note(totals)

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Hand over the summary and wait for the worker, at most ``finish_timeout_s``."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.finish(summary, files, exit_status)

    def _set_address(self, address: str) -> None:
        self.address = address


class _Worker:
    """The process, the thread that writes to it, and the thread that reads what it says.

    Args:
        on_address: called by the reading thread with the address of the run at W&B.
    """

    def __init__(self, run: RunInfo, options: Mapping[str, Any], on_address: Callable[[str], None]) -> None:
        self._on_address = on_address
        self._options = options
        self._interval_s: float = options["log_interval_s"]
        self._start_message = _start_message(run, options)
        self._run_directory = run.directory.absolute()
        self._directory = folder_of(self._run_directory)
        self._latest: dict[str, Any] | None = None
        self._final: dict[str, Any] | None = None
        self._wake = threading.Event()
        self._finishing = threading.Event()
        self._over = threading.Event()
        self._gone = False
        self._warned = False
        self._done = False
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = threading.Thread(target=self._write, name="wandb-writer", daemon=True)

    def start(self) -> None:
        try:
            self._writer.start()
        except RuntimeError as error:  # no more threads
            self._warn(f"cannot start: {error}")
            self._gone = True
            self._over.set()

    def note(self, totals: Mapping[str, Any]) -> None:
        if self._gone:
            return
        try:
            copy = {key: dict(value) if isinstance(value, Mapping) else value for key, value in totals.items()}
        except RuntimeError:  # changed while it was read; the next record brings newer totals
            return
        copy["_time"] = time.time()
        self._latest = copy
        self._wake.set()

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        self._final = {
            "summary": dict(summary),
            "files": [str(f.absolute()) for f in files],
            "exit_status": exit_status,
        }
        self._finishing.set()
        self._wake.set()
        timeout_s: float = self._options["finish_timeout_s"]
        try:
            over = self._over.wait(timeout_s)
        except KeyboardInterrupt:
            self._kill()
            raise
        if not over:
            self._warn(f"did not finish in {timeout_s:g} s; what it has lies in {self._directory}")
            self._kill()

    def _write(self) -> None:
        """The writer thread: from the start of the process to its end."""
        try:
            process = self._process = self._spawn()
        except (OSError, ValueError, StoreError) as error:
            self._warn(f"the worker cannot be started: {error}")
            self._gone = True
            self._over.set()
            return
        reader = threading.Thread(target=self._read, args=(process,), name="wandb-reader", daemon=True)
        reader.start()
        try:
            assert process.stdin is not None
            with process.stdin as pipe:
                send(pipe, {"start": self._start_message})
                self._pass_on(pipe)
        except BrokenPipeError:
            pass  # the worker is gone, and what it said says why
        except (OSError, TypeError, ValueError) as error:
            self._warn(f"{type(error).__name__}: {error}")
        self._gone = True
        process.wait()
        reader.join()
        if not self._done:
            log_file = self._directory / "worker.log"
            self._warn(f"the worker ended with status {process.returncode} (see {log_file})")
        self._over.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        log = open_regular(checked_folder(self._run_directory) / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return start("worker", self._directory, log)
        finally:
            os.close(log)

    def _pass_on(self, pipe: IO[bytes]) -> None:
        while self._final is None:
            self._wake.wait()
            self._wake.clear()
            self._send_latest(pipe)
            self._finishing.wait(self._interval_s)
        self._send_latest(pipe)
        send(pipe, {"finish": self._final})

    def _send_latest(self, pipe: IO[bytes]) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            send(pipe, {"totals": latest})

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """The reader thread: address, warnings and the good end."""
        assert process.stdout is not None
        with process.stdout as pipe:
            for line in pipe:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if "address" in message:
                    self._on_address(message["address"])
                if "warning" in message:
                    self._warn(message["warning"])
                if "error" in message:
                    self._warn(f"{message['kind']}: {message['error']}")
                if "done" in message:
                    self._done = True
                    self._over.set()  # the files are written; nobody needs to wait for an interpreter to shut down

    def _warn(self, text: str) -> None:
        """One line for the first trouble; the rest would only repeat it."""
        if not self._warned:
            self._warned = True
            _log.warning("W&B: %s. The run goes on.", " ".join(text.split())[:500].rstrip("."))

    def _kill(self) -> None:
        self._gone = True
        self._warned = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # its wandb-core notices and ends by itself
            self._writer.join(2.0)


def _start_message(run: RunInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "options": dict(options),
        "run_id": run.run_id,
        "name": run.name,
        "config": dict(run.config),
        "directory": str(run.directory.absolute()),
        "resumed": run.resumed,
        "group": run.group,
        "parent": os.getpid(),
        "online": _is_online(options["mode"]),
        "state_key": signing_key(),
    }


def _is_online(mode: str) -> bool:
    if mode == "auto":
        offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
        return bool(os.environ.get("WANDB_API_KEY")) and not offline
    return mode == "online"
