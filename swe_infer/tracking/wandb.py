"""The Weights & Biases tracker. The SDK runs in a separate process, :mod:`swe_infer.tracking.worker`.

In this process the SDK could harm the run: its import and its tables hold the GIL, it replaces ``sys.exit`` and
``sys.excepthook``, its ``atexit`` hook may wait forever for a server, and it reads the environment, API keys of other
vendors included. With a worker, the run only copies a small dictionary per record. If the worker crashes or hangs,
one line is logged and the run goes on.

The worker reads the predictions from the run directory. The run sends it only the latest totals, at most once per
``log_interval_s``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from swe_infer.errors import ConfigError, StoreError
from swe_infer.files import open_regular
from swe_infer.options import Option
from swe_infer.text import clean, shown
from swe_infer.tracking.base import RunInfo, SweepSummary
from swe_infer.tracking.guest import send, start
from swe_infer.tracking.state import checked_folder, folder_of, read_state, signing_key

_log = logging.getLogger(__name__)

_PROJECT_NAME = re.compile(r"[^/\\#?%:]{1,128}")
_TAG_LENGTH = 64  # the server's limit
_NAME_LENGTH = 128  # of names and groups


@dataclass(kw_only=True, eq=False, repr=False)
class WandbTracker:
    """``tracker=wandb``.

    ``mode=auto`` is online if ``WANDB_API_KEY`` is set and ``WANDB_MODE`` allows it, otherwise offline. Nothing
    prompts for input, and ``.netrc`` is not read. If the server of an online run cannot be reached, the run is logged
    offline, for ``swe-infer-runs sync``.

    Raises:
        ConfigError: a value is out of range, or ``mode`` is ``online`` without ``WANDB_API_KEY``.
    """

    project: Annotated[str, Option("W&B project.", "reporting")] = "swe-infer"
    entity: Annotated[str | None, Option("User or team; null: the API key's default.", "reporting")] = None
    mode: Annotated[
        Literal["auto", "online", "offline"],
        Option("auto: online if WANDB_API_KEY is set, otherwise offline.", "reporting"),
    ] = "auto"
    group: Annotated[str | None, Option("W&B group; null: the sweep that started the run.", "reporting")] = None
    job_type: Annotated[str | None, Option("W&B job type; null: run, or shard for a part of one.", "reporting")] = (
        None
    )
    tags: Annotated[tuple[str, ...], Option("W&B tags; empty: the swept overrides.", "reporting")] = ()
    notes: Annotated[str | None, Option("W&B notes.", "reporting")] = None
    name: Annotated[
        str | None,
        Option("W&B run name; null: what differs in the sweep, or the name of the run directory.", "reporting"),
    ] = None
    log_answers: Annotated[
        bool, Option("Upload full answers too; patches and figures always are, prompts never.", "reporting")
    ] = False
    log_interval_s: Annotated[float, Option("Seconds between two points of the metrics, at least.", "reporting")] = (
        1.0
    )
    init_timeout_s: Annotated[
        float, Option("Seconds to wait for the server before the run is logged offline.", "reporting")
    ] = 20.0
    finish_timeout_s: Annotated[
        float, Option("Seconds to wait for uploads at the end; the rest stays on disk.", "reporting")
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
        for key, minimum in (("log_interval_s", 0.2), ("init_timeout_s", 1.0), ("finish_timeout_s", 1.0)):
            seconds = getattr(self, key)
            if not minimum <= seconds < float("inf"):
                raise ConfigError(
                    f"tracker.{key}={seconds}: must be a finite number of seconds, at least {minimum:g}"
                )
        for key in ("alert_failure_rate", "alert_budget"):
            share = getattr(self, key)
            if share is not None and not 0.0 < share <= 1.0:
                raise ConfigError(f"tracker.{key}={share}: must be above 0 and at most 1, or null for no alert")
        for tag in self.tags:
            if not 1 <= len(tag) <= _TAG_LENGTH:
                raise ConfigError(f"tracker.tags: {tag[:80]!r} must have 1 to {_TAG_LENGTH} characters")
        if self.mode == "online" and not os.environ.get("WANDB_API_KEY"):
            raise ConfigError("tracker.mode=online needs WANDB_API_KEY in the environment; offline does not")
        self.options: dict[str, Any] = {**asdict(self), "tags": list(self.tags)}
        self.address: str | None = None
        self._worker: _Worker | None = None

    @classmethod
    def of_run(cls, directory: Path, *, trusted: bool = False) -> tuple[WandbTracker, RunInfo] | None:
        """The tracker and run information to continue the W&B run of ``directory``, as evaluation does; None if it
        was not tracked by W&B.

        Args:
            trusted: accept a state file that another user wrote. Otherwise None is returned for it, with a warning.
        """
        stored = read_state(directory)
        if stored is None:
            return None
        state = stored.values
        if not (stored.own or trusted):
            _log.warning(
                "%s: nothing is sent to its W&B run (%s), because this user did not track it here; pass --wandb to "
                "send it",
                directory,
                shown(state.get("address")),
            )
            return None
        try:
            options = {**state["options"], "tags": tuple(state["options"]["tags"])}
            if not state["online"]:
                options["mode"] = "offline"  # a later sync uploads everything in order
            elif not os.environ.get("WANDB_API_KEY"):
                options["mode"] = "auto"
            run = RunInfo(
                run_id=state["run_id"],
                name=state["name"],
                config={},
                directory=directory,
                resumed=True,
                group=state.get("group"),
                job_type=state.get("job_type") or "run",
                tags=tuple(state.get("tags") or ()),
            )
            return cls(**options), run
        except (ValueError, KeyError, TypeError, ConfigError):
            return None

    def start(self, run: RunInfo) -> None:
        """Start the worker in the background."""
        if self._worker is not None:
            return
        self.address = None
        self._worker = _Worker(run, self.options, self._set_address)
        self._worker.start()

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Send the totals. The worker reads the record from the run directory."""
        if self._worker is not None:
            self._worker.update_totals(totals)

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Send the summary and wait for the worker, at most ``finish_timeout_s``."""
        worker, self._worker = self._worker, None
        if worker is not None:
            paths = [str(file.absolute()) for file in files]
            worker.finish({"summary": dict(summary), "files": paths, "exit_status": exit_status})

    def log_history(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Log earlier totals, one point each, before :meth:`finish`."""
        if self._worker is not None:
            self._worker.history = [dict(point) for point in points]

    def log_sweep(self, run: RunInfo, sweep: SweepSummary, exit_status: int) -> None:
        """Log the summary of a sweep as a W&B run, with the options of this tracker except the name and job type.
        Waits for the worker, at most ``finish_timeout_s``."""
        worker = _Worker(run, {**self.options, "name": None, "job_type": None, "notes": None}, self._set_address)
        worker.start()
        worker.finish({"sweep": asdict(sweep), "exit_status": exit_status})

    def _set_address(self, address: str) -> None:
        self.address = address


class _Worker:
    """The worker process, a writer thread for requests, and a reader thread for replies.

    Args:
        on_address: called in the reader thread with the address of the W&B run.
    """

    def __init__(self, run: RunInfo, options: Mapping[str, Any], on_address: Callable[[str], None]) -> None:
        self._on_address = on_address
        self._options = options
        self._interval_s: float = options["log_interval_s"]
        self._start_message = start_message(run, options)
        self._run_directory = run.directory.absolute()
        self._directory = folder_of(self._run_directory)
        self.history: list[dict[str, Any]] = []
        self._latest: dict[str, Any] | None = None
        self._final: dict[str, Any] | None = None
        self._wake = threading.Event()
        self._finishing = threading.Event()
        self._ended = threading.Event()
        self._disabled = False
        self._warned = False
        self._done = False
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = threading.Thread(target=self._write, name="wandb-writer", daemon=True)

    def start(self) -> None:
        try:
            self._writer.start()
        except RuntimeError as error:  # no more threads
            self._warn(f"cannot start: {error}")
            self._disabled = True
            self._ended.set()

    def update_totals(self, totals: Mapping[str, Any]) -> None:
        if self._disabled:
            return
        try:
            copy = {key: dict(value) if isinstance(value, Mapping) else value for key, value in totals.items()}
        except RuntimeError:  # modified by another thread; the next record brings newer totals
            return
        copy["_time"] = time.time()
        self._latest = copy
        self._wake.set()

    def finish(self, final: dict[str, Any]) -> None:
        self._final = final
        self._finishing.set()
        self._wake.set()
        timeout_s: float = self._options["finish_timeout_s"]
        try:
            ended = self._ended.wait(timeout_s)
        except KeyboardInterrupt:
            self._kill()
            raise
        if not ended:
            self._warn(f"did not finish in {timeout_s:g} s; its data is in {self._directory}")
            self._kill()

    def _write(self) -> None:
        """The writer thread: starts the process, writes to it, and waits for its end."""
        try:
            process = self._process = self._spawn()
        except (OSError, ValueError, StoreError) as error:
            self._warn(f"the worker cannot be started: {error}")
            self._disabled = True
            self._ended.set()
            return
        reader = threading.Thread(target=self._read, args=(process,), name="wandb-reader", daemon=True)
        reader.start()
        try:
            assert process.stdin is not None
            with process.stdin as pipe:
                send(pipe, {"start": self._start_message})
                self._send_totals(pipe)
        except BrokenPipeError:
            pass  # the worker has ended; its replies say why
        except (OSError, TypeError, ValueError) as error:
            self._warn(f"{type(error).__name__}: {error}")
        self._disabled = True
        process.wait()
        reader.join()
        if not self._done:
            log_file = self._directory / "worker.log"
            self._warn(f"the worker ended with status {process.returncode} (see {log_file})")
        self._ended.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        log = open_regular(checked_folder(self._run_directory) / "worker.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            return start("worker", self._directory, log)
        finally:
            os.close(log)

    def _send_totals(self, pipe: IO[bytes]) -> None:
        while self._final is None:
            self._wake.wait()
            self._wake.clear()
            self._send_latest(pipe)
            self._finishing.wait(self._interval_s)
        self._send_latest(pipe)
        if self.history:
            send(pipe, {"history": self.history})
        send(pipe, {"finish": self._final})

    def _send_latest(self, pipe: IO[bytes]) -> None:
        latest, self._latest = self._latest, None
        if latest is not None:
            send(pipe, {"totals": latest})

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        """The reader thread: handles the replies."""
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
                    self._ended.set()  # the files are written; do not wait for the interpreter's shutdown

    def _warn(self, text: str) -> None:
        """Log the first problem; later ones usually have the same cause."""
        if not self._warned:
            self._warned = True
            _log.warning("W&B: %s. The run goes on.", " ".join(text.split())[:500].rstrip("."))

    def _kill(self) -> None:
        self._disabled = True
        self._warned = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # its wandb-core then exits
            self._writer.join(2.0)


def start_message(run: RunInfo, options: Mapping[str, Any]) -> dict[str, Any]:
    """The request that starts a run in the worker."""
    return {
        "options": dict(options),
        "run_id": run.run_id,
        "name": _shortened(run.name, _NAME_LENGTH),
        "config": dict(run.config),
        "directory": str(run.directory.absolute()),
        "resumed": run.resumed,
        "group": _shortened(run.group, _NAME_LENGTH) if run.group else None,
        "job_type": run.job_type,
        "tags": [_shortened(tag, _TAG_LENGTH) for tag in run.tags],
        "parent": os.getpid(),
        "online": _is_online(options["mode"]),
        "state_key": signing_key(),
    }


def _shortened(text: str, limit: int) -> str:
    """``text`` on one line of at most ``limit`` characters. A digest keeps shortened texts distinct."""
    line = " ".join(clean(text).split()) or "-"
    if len(line) <= limit:
        return line
    digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=3).hexdigest()
    return f"{line[: limit - len(digest) - 1]}…{digest}"


def _is_online(mode: str) -> bool:
    if mode == "auto":
        offline = os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")
        return bool(os.environ.get("WANDB_API_KEY")) and not offline
    return mode == "online"
