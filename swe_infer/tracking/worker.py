"""The guest that logs runs to W&B, started by :mod:`swe_infer.tracking.writer`, see :mod:`swe_infer.tracking.guest`.

Each message has the number of its run as ``run``. The requests of a run are ``start``, then any number of ``totals``,
then ``finish``. If the input ends without ``finish``, the run was killed, and W&B shows a crashed run. The replies
about a run are ``address``, ``warning`` with its ``topic``, and at last ``done`` or ``error``.

Each run has a thread, so that the end of one does not delay another. The first run that starts finds out whether the
server answers. If it does not, the following runs are logged offline.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from swe_infer.run_directory import layout
from swe_infer.run_directory.records import without_answers
from swe_infer.text import quoted
from swe_infer.tracking import guest
from swe_infer.tracking.guest import Message, Reply, Requests, one_line
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
from swe_infer.tracking.state import folder_of, last_step, mark_complete, write_state, write_synced

if TYPE_CHECKING:
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

# The run waits for the table at its end, which takes 0.07 ms per row. So the table may take a quarter percent of
# the run's time, but has at least the rows of SWE-bench Verified. The artifact contains all predictions.
_TABLE_SECONDS_PER_ROW, _TABLE_SHARE = 70e-6, 0.0025
_MIN_TABLE_ROWS, _MAX_TABLE_ROWS = 500, 10_000  # the second is W&B's own limit
_CRASHED = 255
_MAX_OPEN_RUNS = 32
"""Runs that are open at W&B at once. Further ones wait for the end of another."""


def serve(requests: Requests, reply: Reply) -> None:
    """Track the runs of the requests."""
    service, runs = _Service(), dict[int, queue.SimpleQueue[Message | None]]()
    threads = []
    for message in requests:
        run: int = message.pop("run")
        if run not in runs:
            runs[run] = queue.SimpleQueue()
            reply_about = partial(reply, run=run)
            threads.append(threading.Thread(target=_track, args=(service, _messages(runs[run]), reply_about)))
            threads[-1].start()
        runs[run].put(message)
    for messages in runs.values():
        messages.put(None)
    for thread in threads:
        thread.join()
    service.close()


def _messages(received: queue.SimpleQueue[Message | None]) -> Iterator[Message]:
    """The messages of one run, up to ``finish`` or the end of the input."""
    while (message := received.get()) is not None:
        yield message
        if "finish" in message:
            return


def _track(service: _Service, messages: Iterator[Message], reply: Reply) -> None:
    """Track one run, and reply with its end."""
    try:
        start = next(messages)["start"]
        try:
            with service.open_runs:
                _track_here(service, start, messages, reply)
        except _NotStarted:
            _track_elsewhere({**start, "online": False}, messages, reply)
    except Exception as error:  # noqa: BLE001 - the SDK may raise anything; the parent logs one line
        reply(error=one_line(error), kind=type(error).__name__)
    else:
        reply(done=True)


def _track_here(service: _Service, start: Mapping[str, Any], messages: Iterator[Message], reply: Reply) -> None:
    session = Session(start, reply, service)
    final = None
    for message in messages:
        if "totals" in message:
            session.log(message["totals"])
        elif "history" in message:
            session.log_history(message["history"])
        elif "finish" in message:
            final = message["finish"]
    session.finish(final)


def _track_elsewhere(start: Mapping[str, Any], messages: Iterator[Message], reply: Reply) -> None:
    """Track one run in a guest of its own: this ``wandb-core`` keeps the id of a run that it could not start in use,
    and it must not end, because other runs are open."""
    folder = folder_of(Path(start["directory"]))
    with guest.start("worker", folder, sys.stderr.fileno()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        reader = threading.Thread(target=_forward_replies, args=(process.stdout, reply))
        reader.start()
        with process.stdin as pipe:
            guest.send(pipe, {"run": 0, "start": start})
            for message in messages:
                guest.send(pipe, {"run": 0, **message})
        reader.join()


def _forward_replies(replies: IO[bytes], reply: Reply) -> None:
    for message in map(json.loads, replies):
        if message.pop("run", None) is not None and "done" not in message:
            reply(**message)


class _NotStarted(Exception):
    """The server did not answer, so that an online run was not started."""


class _Service:
    """What the runs of this process share: ``wandb-core``, and whether the server answers."""

    def __init__(self) -> None:
        self.open_runs = threading.BoundedSemaphore(_MAX_OPEN_RUNS)
        self._first = threading.Lock()
        self._is_started = False
        self._is_down = False
        self._staging = threading.Lock()
        self._started_at: dict[str, int] = {}

    def init(self, start: Mapping[str, Any], config: Mapping[str, Any], reply: Reply) -> tuple[wandb.Run, bool]:
        """Create a W&B run. Returns it, and whether it is online.

        Raises:
            _NotStarted: it must be logged offline, in another process.
        """
        import wandb

        if self._is_started:
            return self._init(start, config, reply)
        with self._first:
            guest.shorten_starts()
            try:
                run = self._init(start, config, reply)
            except _NotStarted:
                wandb.teardown(_CRASHED)  # otherwise wandb-core keeps the run's id in use
                run = self._init(start, config, reply)
            self._is_started = True
            return run

    def _init(self, start: Mapping[str, Any], config: Mapping[str, Any], reply: Reply) -> tuple[wandb.Run, bool]:
        import wandb

        online = bool(start["online"]) and not self._is_down
        self._await_new_name(start["directory"])
        try:
            return wandb.init(settings=_settings(start, online), config=dict(config) or None), online
        except Exception as error:
            if not online or start.get("sync"):
                raise
            self._is_down = True
            reply(
                warning=f"no online run could be started ({one_line(error)}); from now on this command is logged "
                f"offline, `{_sync_command(Path(start['directory']))}` uploads a run",
                topic="server",
            )
            raise _NotStarted from None

    def _await_new_name(self, directory: str) -> None:
        """Wait for the next second if needed: the SDK names the files of a run after the second of its start."""
        while self._started_at.get(directory) == int(time.time()):
            time.sleep(0.05)
        self._started_at[directory] = int(time.time())

    @contextmanager
    def staging_in(self, folder: Path) -> Iterator[None]:
        """The SDK copies the files of artifacts to a folder that the environment names. Within the block it is in
        ``folder``."""
        with self._staging:
            os.environ["WANDB_DATA_DIR"] = os.environ["WANDB_ARTIFACT_DIR"] = str(folder / "data")
            yield

    def close(self) -> None:
        """End ``wandb-core`` and remove its cache."""
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.teardown(0)
        shutil.rmtree(os.environ["WANDB_CACHE_DIR"], ignore_errors=True)


class Session:
    """Creates a W&B run with ``wandb.init()``, logs to it, and finishes it.

    With ``sync`` in ``start``, the run is uploaded from its directory: it is never logged offline, and
    :meth:`finish` waits until the server has stored the artifacts.
    """

    def __init__(self, start: Mapping[str, Any], reply: Reply, service: _Service | None = None) -> None:
        self._service = service or _Service()
        self._options: Mapping[str, Any] = start["options"]
        self._syncs: bool = start.get("sync", False)
        self._reply = reply
        self._directory = Path(start["directory"])
        self._state_key: str | None = start["state_key"]
        self._predictions = Predictions(self._directory)
        self._folder = folder_of(self._directory)
        self._staging = Staging(self._folder / "data" / "staged", answers=self._options["log_answers"])
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
        self._run, self._online = self._service.init(start, config, reply)
        self.address = (self._run.url if self._online else None) or str(self._run.settings.sync_dir)
        reply(address=self.address)
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
            text = f"{what} could not be logged: {type(error).__name__}: {one_line(error)}"
            self._reply(warning=text, topic=what)

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
        with self._service.staging_in(self._folder):
            self._run.log({"points": table, **charts}, step=self._step)
        self._run.summary.update(sweep["figures"])

    def _close(self, exit_status: int) -> None:
        """Close the W&B run. Its files are on disk afterwards."""
        self._save_state()
        try:
            self._run.finish(exit_code=exit_status)
        except TimeoutError:
            text = f"the upload did not finish in time; `{_sync_command(self._directory)}` uploads the rest"
            self._reply(warning=text, topic="upload")
        else:
            self._tidy_up()
            if self._online and not self._syncs:
                write_synced(self._directory, self.address)
            mark_complete(self._directory)

    def _tidy_up(self) -> None:
        """Remove links and copies of uploaded files; a sync does not need them."""
        for path in Path(self._run.settings.sync_dir).rglob("*"):
            if path.is_symlink():
                path.unlink()
        if self._online:
            shutil.rmtree(self._folder / "data", ignore_errors=True)

    def _log_predictions(self, wall_s: float) -> None:
        import wandb

        if not len(self._predictions):
            return
        point: dict[str, Any] = {}
        for name, (counts, edges) in self._predictions.histograms().items():
            bins: Any = (counts, edges)  # annotated as arrays, documented as sequences
            point[name] = wandb.Histogram(np_histogram=bins)
        limit = min(_MAX_TABLE_ROWS, max(_MIN_TABLE_ROWS, int(wall_s * _TABLE_SHARE / _TABLE_SECONDS_PER_ROW)))
        point["predictions"] = _predictions_table(self._predictions.rows(limit))
        if len(self._predictions) > limit:
            text = f"the table shows {limit} of {len(self._predictions)} predictions, the artifact contains all"
            self._run.summary["predictions_note"] = text
        with self._service.staging_in(self._folder):
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
            with (
                self._service.staging_in(self._folder),
                artifact.new_file(f"{kind}.json", mode="w", encoding="utf-8") as file,
            ):
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


def _predictions_table(rows: list[list[Any]]) -> wandb.Table:
    """The table of ``rows``, whose cells are JSON values of the types in :data:`COLUMNS`."""
    import wandb

    class PlainTable(wandb.Table):
        """Passes its cells on as they are. The SDK examines each of them, which takes most of a table's time."""

        def to_json(self, run_or_artifact: Any) -> dict[str, Any]:
            if not isinstance(run_or_artifact, wandb.Artifact):
                return super().to_json(run_or_artifact)
            self.data = []
            content = super().to_json(run_or_artifact)
            self.data = rows
            return content | {"data": rows, "nrows": len(rows)}

    table = PlainTable(columns=list(COLUMNS), dtype=list(COLUMNS.values()), optional=True)
    table.data = rows  # add_data() checks the type of each cell
    return table


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
        "reinit": "create_new",  # other runs of this process stay open
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


def _sync_command(directory: Path) -> str:
    return f"swe-infer-runs sync {quoted(str(directory))}"


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
