"""The guest that logs a run to W&B, started by the tracker, see :mod:`swe_infer.tracking.guest`.

The requests are one ``start``, then ``totals`` now and then, one ``finish``. An end without ``finish`` means that the
run was killed: what is known is kept and W&B shows a crashed run. The answers are ``address`` and ``warning``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.run_directory import layout
from swe_infer.tracking.guest import Requests, Say, one_line
from swe_infer.tracking.metrics import (
    COLUMNS,
    DEFINITIONS,
    Alerts,
    Predictions,
    finished_of,
    latency_figures,
    metrics_of,
    number,
    summary_of,
)
from swe_infer.tracking.state import folder_of, last_step, write_state

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

# The end of a run waits for its table, and the SDK takes 0.13 ms a row: a table may cost half a percent of the run's
# time, and has at least as many rows as SWE-bench Verified. The artifact holds every prediction in any case.
_TABLE_SECONDS_PER_ROW, _TABLE_SHARE = 130e-6, 0.005
_TABLE_LEAST, _TABLE_MOST = 500, 10_000  # rows; the second is W&B's own bound
_CRASHED = 255
# The SDK would import these, half a second's work, only to learn that no value of ours is an array or a data frame.
_UNWANTED = ("numpy", "pandas")


def serve(requests: Requests, say: Say) -> None:
    """Track one run."""
    for name in _UNWANTED:
        sys.modules[name] = None  # type: ignore[assignment] # documented: an import of it fails at once
    session = _Session(next(requests)["start"], say)
    final = None
    for message in requests:
        if "totals" in message:
            session.log(message["totals"])
        elif "finish" in message:
            final = message["finish"]
            break
    session.finish(final)


class _Session:
    """One W&B run, from init to finish."""

    def __init__(self, start: Mapping[str, Any], say: Say) -> None:
        self._options: Mapping[str, Any] = start["options"]
        self._say = say
        self._directory = Path(start["directory"])
        self._state_key: str | None = start["state_key"]
        self._predictions = Predictions(self._directory)
        self._staging = Staging(folder_of(self._directory) / "data" / "staged")
        config: Mapping[str, Any] = start["config"]
        budget = config.get("budget") or {}
        self._alerts = Alerts(
            self._options["alert_failure_rate"], self._options["alert_budget"], number(budget.get("max_usd"))
        )
        self._state: dict[str, Any] = {
            "run_id": start["run_id"],
            "name": start["name"],
            "options": dict(self._options),
        }
        self._run = self._init(start, config)
        # Where the run really is, for what goes on with it later: an agent's is in the project of its sweep.
        self._state["run_id"] = self._run.id
        self._state["options"] |= {"project": self._run.project, "entity": self._run.entity or None}
        self._step = max(last_step(self._directory), self._run.step - 1)
        self._logged_finished = -1
        self._save_state()
        for name, axis, keep in DEFINITIONS:
            self._run.define_metric(name, step_metric=axis, summary=keep)
        self._inputs = self._beside("the input artifacts", lambda: self._use_inputs(config))

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """One part that fails does not take the others with it."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises, the other parts are still wanted
            self._say(warning=f"{what} could not be logged: {type(error).__name__}: {one_line(error)}")

    def _init(self, start: Mapping[str, Any], config: Mapping[str, Any]) -> wandb.Run:
        import wandb

        online = bool(start["online"])
        try:
            run = wandb.init(settings=_settings(start, online), config=dict(config) or None)
        except Exception as error:
            if not online:
                raise
            online = False
            wandb.teardown(_CRASHED)  # or the service would hold the run's id in use
            run = wandb.init(settings=_settings(start, online), config=dict(config) or None)
            self._say(
                warning=f"no online run could be started ({one_line(error)}); it is logged offline, "
                f"`wandb sync {run.settings.sync_dir}` uploads it",
            )
        self._online = online
        self._address = (run.url if online else None) or str(run.settings.sync_dir)
        self._say(address=self._address)
        return run

    def _beside(self, what: str, task: Callable[[], None]) -> threading.Thread:
        """Do ``task`` in a thread: the SDK asks the server about artifacts, and metrics must not wait for that."""

        def guarded() -> None:
            with self._guarded(what):
                task()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        return thread

    def log(self, totals: Mapping[str, Any]) -> None:
        """Log one point and raise the alerts that are due."""
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

    def finish(self, final: Mapping[str, Any] | None) -> None:
        """Log what belongs to the whole run, and close it. None: the run was killed."""
        import wandb

        self._predictions.read_new()
        if final is None:
            self._save_state()
            self._run.finish(exit_code=_CRASHED)
            return
        summary: Mapping[str, Any] = final["summary"]
        with self._guarded("the summary"):
            self._run.log(metrics_of(summary), step=self._next_step(summary))
            latencies_s = self._predictions.latencies()
            figures = latency_figures(latencies_s)
            if latencies_s:
                figures["latency_s_max"] = latencies_s[-1]
            self._run.summary.update(summary_of(summary) | figures)
        wall_s = float(summary.get("wall_s") or 0.0)
        table = self._beside("the table of predictions", lambda: self._log_predictions(wall_s))
        files = self._beside("the predictions artifact", lambda: self._log_files(final["files"]))
        deadline = time.monotonic() + self._options["finish_timeout_s"] / 3
        for thread in (table, files, self._inputs):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._save_state()
        try:
            self._run.finish(exit_code=int(final["exit_status"]))
        except TimeoutError:
            command = f"wandb sync {self._run.settings.sync_dir}"
            self._say(warning=f"the server did not take all of the run in time; `{command}` uploads the rest")
        else:
            wandb.teardown(0)  # only when the service has ended are the files on disk for certain
            self._tidy_up()

    def _tidy_up(self) -> None:
        """Leave what a sync or a reader needs: no links, no cache, no copies of files that are uploaded."""
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
        most = min(_TABLE_MOST, max(_TABLE_LEAST, int(wall_s * _TABLE_SHARE / _TABLE_SECONDS_PER_ROW)))
        table = wandb.Table(columns=list(COLUMNS), dtype=list(COLUMNS.values()), optional=True)
        # Of those types by construction; adding row by row would check each cell again.
        table.data = self._predictions.rows(most)
        point["predictions"] = table
        if len(self._predictions) > most:
            text = f"the table shows {most} of {len(self._predictions)} predictions, the artifact holds all"
            self._run.summary["predictions_note"] = text
        self._run.log(point, step=self._step)

    def _log_files(self, files: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"predictions-{_artifact_name(self._run.id)}", type="predictions")
        for file in files:
            # A copy, kept in the run directory: an offline run may be synced after a resume has changed the file.
            staged = self._staging.follow(Path(file))
            if staged is not None:
                artifact.manifest.add_entry(_entry(staged))
        if artifact.manifest.entries:
            self._run.log_artifact(artifact)

    def _use_inputs(self, config: Mapping[str, Any]) -> None:
        """Dataset and model as input artifacts: their description, never their content."""
        import wandb

        _ = wandb.Table, wandb.Histogram  # imported when first named: now, not when the run waits for its end
        for kind in ("dataset", "model"):
            description = config.get(kind)
            if not isinstance(description, Mapping) or not description:
                continue
            named = description.get("name") or description.get("path")
            label = (
                str(named or str(description.get("_target_", kind)).rpartition(".")[2]).rstrip("/").rpartition("/")[2]
            )
            artifact = wandb.Artifact(f"{kind}-{_artifact_name(label)}", type=kind, metadata=dict(description))
            with artifact.new_file(f"{kind}.json", mode="w", encoding="utf-8") as file:
                json.dump(description, file, indent=2, sort_keys=True)
            _declare_input(self._run, artifact)

    def _next_step(self, totals: Mapping[str, Any]) -> int:
        """The number of finished samples. It never goes back: failures that a resumed run tries again were counted
        before, and W&B drops points whose step is behind the last one."""
        finished = finished_of(totals)
        if finished != self._logged_finished:
            self._logged_finished = finished
            self._step = max(finished, self._step + 1)
        return self._step

    def _save_state(self) -> None:
        state = {**self._state, "step": self._step, "address": self._address, "online": self._online}
        write_state(self._directory, state, self._state_key)


def _entry(staged: StagedFile) -> ArtifactManifestEntry:
    """What ``artifact.add_file()`` would enter. It would copy and digest the whole file again, which took 1.4 % of a
    run of 500 answers a second."""
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
        "run_job_type": options["job_type"],
        "run_tags": tuple(dict.fromkeys(options["tags"])) or None,
        "root_dir": start["directory"],
        "use_dot_wandb": False,
        "symlink": False,
        "console": "off",
        "silent": True,
        # Nothing about the machine's user, the command line, the code or its repository leaves the run.
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
        "x_transaction_log_flush_interval": 1.0,  # what a kill may cost
        "x_stats_pid": start["parent"],
        "stop_fn": lambda: _interrupt(start["parent"]),
    }
    if os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"):
        values["run_id"] = os.environ["WANDB_RUN_ID"]  # the agent made this run; entity and project are the sweep's
    else:
        values |= {"project": options["project"], "entity": options["entity"]}
    return wandb.Settings(**{key: value for key, value in values.items() if value is not None})


def _declare_input(run: wandb.Run, artifact: wandb.Artifact) -> None:
    """What ``run.use_artifact(artifact)`` does, for offline runs too.

    The one private member of W&B's that is used here: ``use_artifact()`` refuses offline runs, and no other public
    call declares an input for a later sync. Online it would also wait until the server has read the artifact back.
    """
    run._log_artifact(artifact, aliases=[], is_user_created=True, use_after_commit=True)


def _interrupt(parent: int) -> None:
    """The page's stop button does what Ctrl-C does."""
    if os.getppid() == parent:
        os.kill(parent, signal.SIGINT)


def _artifact_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100].strip("-") or "unnamed"


@dataclass(slots=True)
class StagedFile:
    """A copy of a growing file as far as it was followed, made while the run goes on: its end need not wait for it.

    An artifact needs a copy that later changes leave alone, and its MD5. The files are only ever appended to, so both
    can be had piece by piece.

    Args:
        md5: of the copy.
        inode: of the source, for a file that took its name would be another one.
    """

    source: Path
    copy: Path
    inode: int
    size: int = 0
    md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    @property
    def digest(self) -> str:
        """As W&B's manifests write it: the MD5 in base64."""
        return base64.b64encode(self.md5.digest()).decode("ascii")

    def follow(self) -> None:
        """Take over what the source has grown by."""
        with self.source.open("rb") as source, self.copy.open("ab") as copy:
            source.seek(self.size)
            while piece := source.read(1 << 20):
                copy.write(piece)
                self.md5.update(piece)
                self.size += len(piece)


class Staging:
    """The copies of one run's files, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[Path, StagedFile] = {}

    def follow(self, source: Path) -> StagedFile | None:
        """Bring the copy of ``source`` up to date, or begin one; None where there is no such file."""
        try:
            status = os.stat(source)
            staged = self._staged.get(source)
            if staged is None or staged.inode != status.st_ino or status.st_size < staged.size:
                staged = self._staged[source] = self._begun(source, status.st_ino)
            staged.follow()
        except FileNotFoundError:
            return None
        return staged

    def _begun(self, source: Path, inode: int) -> StagedFile:
        if (before := self._staged.get(source)) is not None:
            before.copy.unlink(missing_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, copy = tempfile.mkstemp(dir=self._folder, suffix=f"-{source.name}")
        os.close(descriptor)
        return StagedFile(source, Path(copy), inode)
