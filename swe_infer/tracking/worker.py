"""The guest that logs a run to W&B, started by the tracker, see :mod:`swe_infer.tracking.guest`.

The requests are ``start``, then any number of ``totals``, then ``finish``. If the input ends without ``finish``, the
run was killed, and W&B shows a crashed run. The replies are ``address`` and ``warning``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.run_directory import layout
from swe_infer.run_directory.records import without_answers
from swe_infer.tracking.guest import Reply, Requests, one_line
from swe_infer.tracking.metrics import (
    COLUMNS,
    DEFINITIONS,
    VANISHING,
    Alerts,
    Predictions,
    finished_of,
    latency_figures,
    metrics_of,
    number,
    summary_of,
)
from swe_infer.tracking.state import folder_of, last_step, write_state, write_synced

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

# The run waits for the table at its end, and the SDK takes 0.13 ms per row. So the table may take half a percent of
# the run's time, but has at least the rows of SWE-bench Verified. The artifact contains all predictions.
_TABLE_SECONDS_PER_ROW, _TABLE_SHARE = 130e-6, 0.005
_MIN_TABLE_ROWS, _MAX_TABLE_ROWS = 500, 10_000  # the second is W&B's own limit
_CRASHED = 255
# The SDK imports these (half a second) to check for arrays and data frames, which are never logged here.
BLOCKED_IMPORTS = ("numpy", "pandas")


def serve(requests: Requests, reply: Reply) -> None:
    """Track one run."""
    for name in BLOCKED_IMPORTS:
        sys.modules[name] = None  # type: ignore[assignment] # documented: an import of it fails at once
    session = Session(next(requests)["start"], reply)
    final = None
    for message in requests:
        if "totals" in message:
            session.log(message["totals"])
        elif "history" in message:
            session.log_history(message["history"])
        elif "finish" in message:
            final = message["finish"]
            break
    session.finish(final)


class Session:
    """Creates a W&B run with ``wandb.init()``, logs to it, and finishes it.

    With ``sync`` in ``start``, the run is uploaded from its directory: it is never logged offline, and
    :meth:`finish` waits until the server has stored the artifacts.
    """

    def __init__(self, start: Mapping[str, Any], reply: Reply) -> None:
        self._options: Mapping[str, Any] = start["options"]
        self._syncs: bool = start.get("sync", False)
        self._reply = reply
        self._directory = Path(start["directory"])
        self._state_key: str | None = start["state_key"]
        self._predictions = Predictions(self._directory)
        staged = folder_of(self._directory) / "data" / "staged"
        self._staging = Staging(staged, answers=self._options["log_answers"])
        config: Mapping[str, Any] = start["config"]
        budget = config.get("budget") or {}
        self._alerts = Alerts(
            self._options["alert_failure_rate"], self._options["alert_budget"], number(budget.get("max_usd"))
        )
        self._state: dict[str, Any] = {
            "run_id": start["run_id"],
            "name": start["name"],
            "options": dict(self._options),
            **{key: start[key] for key in ("group", "job_type", "tags")},
        }
        self._run = self._init(start, config)
        # A later step needs the run's actual place: that of an agent is in the project of its sweep.
        self._state["run_id"] = self._run.id
        self._state["options"] |= {"project": self._run.project, "entity": self._run.entity or None}
        self._step = max(-1 if self._syncs else last_step(self._directory), self._run.step - 1)
        self._logged_finished = -1
        self._save_state()
        for name, axis, keep in DEFINITIONS:
            self._run.define_metric(name, step_metric=axis, summary=keep)
        self._inputs = self._in_thread("the input artifacts", lambda: self._use_inputs(config))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Turns an exception into a warning, so that the other parts are still logged."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the SDK may raise anything
            self._reply(warning=f"{what} could not be logged: {type(error).__name__}: {one_line(error)}")

    def _init(self, start: Mapping[str, Any], config: Mapping[str, Any]) -> wandb.Run:
        import wandb

        online = bool(start["online"])
        try:
            run = wandb.init(settings=_settings(start, online), config=dict(config) or None)
        except Exception as error:
            if not online or self._syncs:
                raise
            online = False
            wandb.teardown(_CRASHED)  # otherwise the service keeps the run's id in use
            run = wandb.init(settings=_settings(start, online), config=dict(config) or None)
            self._reply(
                warning=f"no online run could be started ({one_line(error)}); it is logged offline, "
                f"`{self._sync_command()}` uploads it",
            )
        self._online = online
        self.address = (run.url if online else None) or str(run.settings.sync_dir)
        self._reply(address=self.address)
        return run

    def _in_thread(self, what: str, task: Callable[[], None]) -> threading.Thread:
        """Run ``task`` in a thread, so that metrics do not wait for the SDK's requests about artifacts."""

        def guarded() -> None:
            with self._guarded(what):
                task()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def log(self, totals: Mapping[str, Any]) -> None:
        """Log one point and send due alerts."""
        with self._guarded("a point of the metrics"):
            point: dict[str, Any] = metrics_of(totals, self._predictions.read_new())
            if "_time" in totals:
                point["_timestamp"] = totals["_time"]
            self._run.log(point, step=self._next_step(totals))
            for title, text in self._alerts.due(totals):
                self._run.alert(title, text, level="WARN")
        with self._guarded("the predictions artifact"):
            for file in (self._directory / layout.RECORDS, *layout.predictions(self._directory)):
                self._staging.follow(file)

    def log_history(self, points: Sequence[Mapping[str, Any]]) -> None:
        """Log a point for each of ``points`` that an earlier session has not logged."""
        with self._guarded("the history"):
            for totals in points:
                if finished_of(totals) > self._step:
                    point: dict[str, Any] = metrics_of(totals, totals.get("_latencies_s", ()))
                    if "_time" in totals:
                        point["_timestamp"] = totals["_time"]
                    self._run.log(point, step=self._next_step(totals))

    def finish(self, final: Mapping[str, Any] | None) -> None:
        """Log the summary, table and artifact, and close the W&B run. None: the run was killed."""
        self._predictions.read_new()
        if final is None:
            self._save_state()
            self._run.finish(exit_code=_CRASHED)
            return
        if "sweep" in final:
            with self._guarded("the summary of the sweep"):
                self._log_sweep(final["sweep"])
            self._close(final["exit_status"])
            return
        summary: Mapping[str, Any] = final["summary"]
        with self._guarded("the summary"):
            self._run.log(metrics_of(summary), step=self._next_step(summary))
            latencies_s = self._predictions.latencies()
            figures = latency_figures(latencies_s)
            if latencies_s:
                figures["latency_s_max"] = latencies_s[-1]
            figures |= summary_of(summary)
            self._run.summary.update(figures)
            before: Any = self._run.summary  # its methods are documented, but not annotated
            for key in (VANISHING - figures.keys()).intersection(before.keys()):
                del before[key]
        wall_s = float(summary.get("wall_s") or 0.0)
        table = self._in_thread("the table of predictions", lambda: self._log_predictions(wall_s))
        files = self._in_thread("the predictions artifact", lambda: self._log_files(final["files"]))
        deadline = time.monotonic() + self._options["finish_timeout_s"] / 3
        for thread in (table, files, self._inputs):
            thread.join(max(0.0, deadline - time.monotonic()))
        if self._syncs and any(thread.is_alive() for thread in (table, files, self._inputs)):
            self._reply(warning="the artifacts were not stored in time")
        self._close(final["exit_status"])

    def _log_sweep(self, sweep: Mapping[str, Any]) -> None:
        """Log the table and the charts of a sweep, as one point."""
        import wandb

        kinds: dict[str, type] = {"int": int, "float": float, "str": str}
        columns: Mapping[str, str] = sweep["columns"]
        table = wandb.Table(columns=list(columns), dtype=[kinds[kind] for kind in columns.values()], optional=True)
        table.data = sweep["rows"]
        charts = {name: wandb.Html(page, inject=False) for name, page in sweep["charts"].items()}
        self._step += 1
        self._run.log({"points": table, **charts}, step=self._step)
        self._run.summary.update(sweep["figures"])

    def _close(self, exit_status: int) -> None:
        """Close the W&B run."""
        import wandb

        self._save_state()
        try:
            self._run.finish(exit_code=exit_status)
        except TimeoutError:
            self._reply(warning=f"the upload did not finish in time; `{self._sync_command()}` uploads the rest")
        else:
            if not self._syncs:
                wandb.teardown(0)  # the files are on disk once the service has ended
            self._tidy_up()
            if self._online and not self._syncs:
                write_synced(self._directory, self.address)

    def _sync_command(self) -> str:
        return f"swe-infer-runs sync {shlex.quote(str(self._directory))}"

    def _tidy_up(self) -> None:
        """Remove links, the cache, and copies of uploaded files; a sync does not need them."""
        folder = folder_of(self._directory)
        for path in Path(self._run.settings.sync_dir).rglob("*"):
            if path.is_symlink():
                path.unlink()
        shutil.rmtree(folder / "cache", ignore_errors=True)
        if self._online:
            shutil.rmtree(folder / "data", ignore_errors=True)

    def _log_predictions(self, wall_s: float) -> None:
        import wandb

        if not len(self._predictions):
            return
        point: dict[str, Any] = {}
        for name, (counts, edges) in self._predictions.histograms().items():
            bins: Any = (counts, edges)  # annotated as arrays, documented as sequences
            point[name] = wandb.Histogram(np_histogram=bins)
        limit = min(_MAX_TABLE_ROWS, max(_MIN_TABLE_ROWS, int(wall_s * _TABLE_SHARE / _TABLE_SECONDS_PER_ROW)))
        table = wandb.Table(columns=list(COLUMNS), dtype=list(COLUMNS.values()), optional=True)
        # Faster than add_data(), which checks the type of each cell.
        table.data = self._predictions.rows(limit)
        point["predictions"] = table
        if len(self._predictions) > limit:
            text = f"the table shows {limit} of {len(self._predictions)} predictions, the artifact contains all"
            self._run.summary["predictions_note"] = text
        self._run.log(point, step=self._step)

    def _log_files(self, files: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"predictions-{_artifact_name(self._run.id)}", type="predictions")
        for file in files:
            # A copy in the run directory, because an offline run may be synced after a resume changes the file.
            staged = self._staging.follow(Path(file))
            if staged is not None:
                artifact.manifest.add_entry(_entry(staged))
        if artifact.manifest.entries:
            logged = self._run.log_artifact(artifact)
            if self._syncs:
                logged.wait()

    def _use_inputs(self, config: Mapping[str, Any]) -> None:
        """Log dataset and model as input artifacts: their configuration, not their content. The SDK does not support
        inputs of offline runs; they get them when they are synced."""
        import wandb

        _ = wandb.Table, wandb.Histogram  # imports the SDK's lazy modules now, not at the end of the run
        if not self._online:
            return
        for kind in ("dataset", "model"):
            description = config.get(kind)
            if not isinstance(description, Mapping) or not description:
                continue
            name = description.get("name") or description.get("path")
            label = (
                str(name or str(description.get("_target_", kind)).rpartition(".")[2]).rstrip("/").rpartition("/")[2]
            )
            artifact = wandb.Artifact(f"{kind}-{_artifact_name(label)}", type=kind, metadata=dict(description))
            with artifact.new_file(f"{kind}.json", mode="w", encoding="utf-8") as file:
                json.dump(description, file, indent=2, sort_keys=True)
            self._run.use_artifact(artifact)

    def _next_step(self, totals: Mapping[str, Any]) -> int:
        """The number of finished samples, but never below the last step, as W&B drops such points. A resumed run
        retries failures that were counted before."""
        finished = finished_of(totals)
        if finished != self._logged_finished:
            self._logged_finished = finished
            self._step = max(finished, self._step + 1)
        return self._step

    def _save_state(self) -> None:
        state = {**self._state, "step": self._step, "address": self.address, "online": self._online}
        write_state(self._directory, state, self._state_key)


def _entry(staged: StagedFile) -> ArtifactManifestEntry:
    """The manifest entry that ``artifact.add_file()`` would add, which copies and hashes the whole file again."""
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    values: dict[str, Any] = {
        "path": staged.source.name,
        "digest": staged.digest,
        "size": staged.size,
        "local_path": str(staged.copy),
        "skip_cache": True,
    }
    return ArtifactManifestEntry(**values)


def _settings(start: Mapping[str, Any], online: bool) -> wandb.Settings:
    import wandb

    options = start["options"]
    values: dict[str, Any] = {
        "mode": "online" if online else "offline",
        "run_id": start["run_id"],
        "resume": "allow",
        "run_name": options["name"] or start["name"],
        "run_notes": options["notes"],
        "run_group": options["group"] or start["group"],
        "run_job_type": options["job_type"] or start["job_type"],
        "run_tags": tuple(dict.fromkeys(options["tags"] or start["tags"])) or None,
        "root_dir": start["directory"],
        "use_dot_wandb": False,
        "symlink": False,
        "console": "off",
        "silent": True,
        # The SDK sends nothing about the user, the machine or the code. The configuration contains the provenance.
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "x_disable_meta": True,
        "x_save_requirements": False,
        "label_disable": True,
        "host": "",
        "username": "",
        "init_timeout": options["init_timeout_s"],
        "finish_timeout": options["finish_timeout_s"] / 3,  # a third is for artifacts, a third for the process
        "finish_timeout_raises": True,
        "x_transaction_log_flush_interval": 1.0,  # bounds what a kill loses
        "x_stats_pid": start["parent"],
        "stop_fn": lambda: _interrupt(start["parent"]),
    }
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        values["run_id"] = os.environ["WANDB_RUN_ID"]  # created by the agent, in the entity and project of the sweep
    else:
        values |= {"project": options["project"], "entity": options["entity"]}
    values |= start.get("settings") or {}
    return wandb.Settings(**{key: value for key, value in values.items() if value is not None})


def _interrupt(parent: int) -> None:
    """Handle the stop button of the run's page like Ctrl-C."""
    if os.getppid() == parent:
        os.kill(parent, signal.SIGINT)


def _artifact_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("-") or "unnamed"


@dataclass(slots=True)
class StagedFile:
    """An incremental copy of a growing file, so that the end of the run need not wait for copying.

    An artifact needs an unchanging copy and its MD5. The files are append-only, so both can be extended.

    Args:
        inode: of the source; another inode means that the file was replaced.
        answers: copy the source unchanged; False: copy its complete lines, as records without answers.
        position: up to which the source is copied.
        size: of the copy in bytes.
        md5: of the copy.
    """

    source: Path
    copy: Path
    inode: int
    answers: bool = True
    position: int = 0
    size: int = 0
    md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    @property
    def digest(self) -> str:
        """The MD5 in base64, as in W&B's manifests."""
        return base64.b64encode(self.md5.digest()).decode("ascii")

    def follow(self) -> None:
        """Copy what was appended to the source."""
        with self.source.open("rb") as source, self.copy.open("ab") as copy:
            source.seek(self.position)
            while chunk := source.read(1 << 20) if self.answers else source.readline():
                if not self.answers and not chunk.endswith(b"\n"):
                    break
                copied = chunk if self.answers else without_answers(chunk)
                copy.write(copied)
                self.md5.update(copied)
                self.position += len(chunk)
                self.size += len(copied)


class Staging:
    """The copies of one run's files, in ``folder``.

    Args:
        answers: copy records with their answers.
    """

    def __init__(self, folder: Path, *, answers: bool = True) -> None:
        self._folder = folder
        self._answers = answers
        self._staged: dict[Path, StagedFile] = {}

    def follow(self, source: Path) -> StagedFile | None:
        """Create or extend the copy of ``source``; None if the file does not exist."""
        try:
            status = os.stat(source)
            staged = self._staged.get(source)
            if staged is None or staged.inode != status.st_ino or status.st_size < staged.position:
                staged = self._staged[source] = self._new_copy(source, status.st_ino)
            staged.follow()
        except FileNotFoundError:
            return None
        return staged

    def _new_copy(self, source: Path, inode: int) -> StagedFile:
        if (before := self._staged.get(source)) is not None:
            before.copy.unlink(missing_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, copy = tempfile.mkstemp(dir=self._folder, suffix=f"-{source.name}")
        os.close(descriptor)
        return StagedFile(source, Path(copy), inode, self._answers or source.name != layout.RECORDS)
