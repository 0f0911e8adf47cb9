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
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.text import clean, shown
from swe_infer.tracking.base import RunInfo, SweepSummary
from swe_infer.tracking.state import is_incomplete, read_state, signing_key
from swe_infer.tracking.writer import LoggedRun, RunWriter, SweepWriter

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
        self._sweep: SweepWriter | None = None
        self._writer: RunWriter | None = None
        self._run: LoggedRun | None = None

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

    def share(self, writer: SweepWriter) -> None:
        """Log in the process of a sweep. :meth:`finish` does not wait for W&B then."""
        self._sweep = writer

    def is_incomplete(self, run: RunInfo) -> bool:
        return is_incomplete(run.directory)

    @classmethod
    def of_sweep(cls, writer: SweepWriter) -> WandbTracker | None:
        """The tracker of the first run that ``writer`` has logged; None if it has logged none."""
        if writer.options is None:
            return None
        tracker = cls(**{**writer.options, "tags": tuple(writer.options["tags"])})
        tracker.share(writer)
        return tracker

    def start(self, run: RunInfo) -> None:
        """Start to log the run in the background."""
        if self._run is None:
            self.address = None
            self._start(run, self.options)

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Send the totals. The worker reads the record from the run directory."""
        if self._run is not None:
            self._run.update_totals(totals)

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Send the summary. Outside a sweep, wait for the worker, at most ``finish_timeout_s``."""
        paths = [str(file.absolute()) for file in files]
        self._finish({"summary": dict(summary), "files": paths, "exit_status": exit_status})

    def log_history(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Log earlier totals, one point each, before :meth:`finish`."""
        if self._run is not None:
            self._run.history = [dict(point) for point in points]

    def log_sweep(self, run: RunInfo, sweep: SweepSummary, exit_status: int) -> None:
        """Log the summary of a sweep as a W&B run, with the options of this tracker except the name and job type.
        Waits as :meth:`finish`."""
        self._start(run, {**self.options, "name": None, "job_type": None, "notes": None})
        self._finish({"sweep": asdict(sweep), "exit_status": exit_status})

    def _start(self, run: RunInfo, options: Mapping[str, Any]) -> None:
        message = start_message(run, options)
        self._run = LoggedRun(message, run.directory, self.log_interval_s, self._set_address)
        if self._sweep is not None:
            self._sweep.add(self._run, options)
        else:
            self._writer = RunWriter()
            self._writer.add(self._run)

    def _finish(self, final: dict[str, Any]) -> None:
        run, self._run = self._run, None
        if run is None:
            return
        run.end(final)
        if self._sweep is not None:
            self._sweep.await_address(run)
        elif self._writer is not None:
            self._writer.finish(self.finish_timeout_s)

    def _set_address(self, address: str) -> None:
        self.address = address


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
