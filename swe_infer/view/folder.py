"""The runs of a folder as they change. Only directories that changed are read again.

Nothing is written, and no lock is held: whether a run is in progress is tested by a lock attempt that lasts
microseconds, and only if the lock file changed or the run was in progress before.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.compare.analysis import Rate
from swe_infer.compare.keys import deciding_keys
from swe_infer.compare.loading import load_run
from swe_infer.compare.table import points_interval
from swe_infer.errors import SweInferError
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import read_coverage
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.lock import is_locked
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS
from swe_infer.runs.listing import ListedRun, distinguishing_keys, memberships, read_run, search, values_of
from swe_infer.text import clean, dollars, first_line, percent, shown
from swe_infer.view.rates import Rates, rates_of_records, rates_of_run, rates_of_summary
from swe_infer.view.tail import LiveFigures, RecordsReplaced

log = logging.getLogger(__name__)

Marks = tuple[object, ...]
"""Inode, size and modification time of a run's files: equal marks mean that nothing changed."""

_SHORTEST_INTERVAL_S = 1.0
_LARGEST_SHARE = 0.05
"""Of one processor's time, for repeated scans."""
_EXACT_S = 0.5
"""Seconds of each scan for rates that need all records of a finished run."""
_FIRST_SCAN_S = 2.0
"""The longest wait of a first request."""
_MOST_REMOVED = 10_000
"""Removed runs whose ids are kept for later calls of :meth:`WatchedFolder.changes`."""
_MOST_NOTES = 10
_LONGEST_DIFFERENCE = _LONGEST_ERROR = 300
"""In characters."""
_OUTSIDE = "a symbolic link to a place outside this folder; start swe-infer-view with that folder"


@dataclass(slots=True)
class _Run:
    """A run directory as it was when it was last read."""

    marks: Marks
    lock: Marks
    listed: ListedRun
    rates: Rates = field(default_factory=Rates)
    live: LiveFigures | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    version: int = 0


class WatchedFolder:
    """The runs of a folder. A thread reads them again while requests come in, and rests otherwise.

    Args:
        folder: a folder of runs and sweeps, or a run directory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._place = Path(os.path.abspath(folder))
        self._root = os.path.realpath(folder)
        self._runs: dict[str, _Run] = {}
        self._ids: dict[Path, str] = {}
        self._removed: dict[str, int] = {}
        self._forgotten = 0
        """The version up to which removed runs are no longer known."""
        self._version = 0
        self._epoch = secrets.token_hex(4)
        self._notes: list[str] = []
        self._keys: Sequence[str] = ()
        """Configuration keys that distinguish the runs."""
        self._configs: dict[str, Marks] = {}
        """The marks of the configurations that were compared."""
        self._sweeps: tuple[Marks, dict[str, list[str]]] = ((), {})
        self._guard = threading.Lock()
        self._wanted = threading.Event()
        self._scanned = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._loop, name="view-folder", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the directory that it is reading."""
        self._closed.set()
        self._wanted.set()

    def directories(self, ids: Sequence[str]) -> list[Path | None]:
        """The run directories with these ids; None for an unknown id, and for a run that cannot be read.

        Also requests the next scan.
        """
        self._wanted.set()
        self._scanned.wait(_FIRST_SCAN_S)
        with self._guard:
            found = [self._runs.get(one) for one in ids]
        readable = [None if run is None or run.listed.state == "damaged" else run.listed.directory for run in found]
        # Checked again, as a folder may have been replaced by a link since the last scan.
        return [None if directory is None or self._is_outside(directory) else directory for directory in readable]

    def is_running(self, directory: Path) -> bool:
        """Whether a run was in progress when it was last read."""
        with self._guard:
            run = self._runs.get(self._id(directory))
        return run is not None and run.listed.state == "running"

    def changes(self, since: str = "") -> dict[str, Any]:
        """What changed since an earlier call, as JSON values; also requests the next scan.

        Args:
            since: the ``cursor`` that it returned. If it is unknown or of another process, everything is returned.

        Returns:
            ``runs``: rows that changed; ``removed``: ids; ``whole``: whether ``runs`` is the whole list;
            ``complete``: whether every directory was read once; ``cursor``: for the next call; ``notes``: folders
            that cannot be read.
        """
        self._wanted.set()
        self._scanned.wait(_FIRST_SCAN_S)
        epoch, _, number = since.partition("-")
        with self._guard:
            known = epoch == self._epoch and number.isascii() and number.isdecimal() and len(number) < 16
            after = int(number) if known else -1
            whole = not self._forgotten <= after <= self._version
            return {
                "folder": shown(str(self.folder)),
                "cursor": f"{self._epoch}-{self._version}",
                "complete": self._scanned.is_set(),
                "whole": whole,
                "runs": [run.row for run in self._runs.values() if run.row and (whole or run.version > after)],
                "removed": [] if whole else [one for one, version in self._removed.items() if version > after],
                "notes": list(self._notes),
            }

    def scan(self) -> None:
        """Reads the directories that changed since the last call."""
        found = search(self._place)
        listed_in = self._memberships(found.sweeps)
        repeated = _repeated(found.runs)
        present = set()
        for directory in found.runs:
            if self._closed.is_set():
                return
            if directory in repeated:
                continue
            run_id = self._ids.get(directory) or self._ids.setdefault(directory, self._id(directory))
            present.add(run_id)
            sweeps = listed_in.get(os.path.realpath(directory), ()) if listed_in else ()
            self._read(run_id, directory, tuple(sweeps))
        with self._guard:
            self._notes = [shown(note) for note in found.unreadable[:_MOST_NOTES]]
            if (more := len(found.unreadable) - _MOST_NOTES) > 0:
                self._notes.append(f"{more:,} more folders cannot be read")
            for run_id in self._runs.keys() - present:
                self._version += 1
                del self._runs[run_id]
                self._removed[run_id] = self._version
            while len(self._removed) > _MOST_REMOVED:
                self._forgotten = self._removed.pop(next(iter(self._removed)))
        self._update_differences()
        self._scanned.set()
        self._compute_rates()

    def _loop(self) -> None:
        while not self._closed.is_set():
            self._wanted.wait()
            self._wanted.clear()
            started = time.thread_time()
            try:
                self.scan()
            except Exception as error:  # the server must outlive any directory
                log.warning("%s: cannot be read: %s", clean(str(self.folder)), _in_one_line(error))
                log.debug("traceback", exc_info=True)
                self._scanned.set()
            self._closed.wait(max(_SHORTEST_INTERVAL_S, (time.thread_time() - started) / _LARGEST_SHARE))

    def _id(self, directory: Path) -> str:
        """The id of a run in addresses: a digest of its path in the folder, which stays the same."""
        relative = os.path.relpath(directory, self._place)
        return hashlib.sha256(os.fsencode(relative)).hexdigest()[:16]

    def _memberships(self, sweeps: Sequence[Path]) -> dict[str, list[str]]:
        marks = tuple((sweep, _marks(sweep, SWEEP_JOBS)) for sweep in sweeps)
        if marks != self._sweeps[0]:
            self._sweeps = (marks, memberships(sweeps))
        return self._sweeps[1]

    def _read(self, run_id: str, directory: Path, listed_in: tuple[str, ...]) -> None:
        before = self._runs.get(run_id)
        marks = (*run_marks(directory), listed_in)
        lock = _marks(directory, layout.LOCK)
        running = before is not None and before.listed.state == "running"
        if before is not None and not running and (marks, lock) == (before.marks, before.lock):
            return
        try:
            if before is not None and running and is_locked(directory / layout.LOCK):
                run = self._in_progress(before, marks)
            else:
                run = self._whole(directory, listed_in, marks, lock)
        except Exception as error:  # one hostile directory must not hide the others
            log.debug("%s: cannot be read", directory, exc_info=True)
            name = os.path.relpath(directory, self._place)
            run = _Run(marks, lock, ListedRun(directory, name, "damaged", error=_in_one_line(error)))
        run.row = self._row(run_id, run)
        self._publish(run_id, run)

    def _publish(self, run_id: str, run: _Run) -> None:
        with self._guard:
            before = self._runs.get(run_id)
            run.version = self._version if before is None else before.version
            if before is None or before.row != run.row:
                self._version += 1
                run.version = self._version
            self._runs[run_id] = run
            self._removed.pop(run_id, None)

    def _whole(self, directory: Path, listed_in: Sequence[str], marks: Marks, lock: Marks) -> _Run:
        name = os.path.relpath(directory, self._place)
        name = directory.name if name == "." else name
        if self._is_outside(directory):
            return _Run(marks, lock, ListedRun(directory, name, "damaged", error=_OUTSIDE))
        listed = read_run(directory, name, listed_in)
        if listed.state != "running":
            return _Run(marks, lock, listed, rates_of_summary(listed.summary))
        live = LiveFigures(directory, read_coverage(directory), _samples(listed.config))
        return self._in_progress(_Run(marks, lock, listed, live=live), marks)

    def _in_progress(self, run: _Run, marks: Marks) -> _Run:
        """The run with its new records.

        Raises:
            OSError, SweInferError: its files cannot be read.
        """
        directory, listed, live = run.listed.directory, run.listed, run.live
        if live is None or run.marks[:_WITHOUT_RECORDS] != marks[:_WITHOUT_RECORDS]:
            fresh = read_run(directory, listed.name, listed.sweeps)
            live = LiveFigures(directory, read_coverage(directory), _samples(fresh.config))
            listed = replace(fresh, state="running")
        elif marks == run.marks and live.is_complete:
            return run
        try:
            is_complete = live.update()
        except RecordsReplaced:
            return replace(run, marks=(), live=None)
        written = RunDirectory(directory).summary()
        summary: Summary = live.summary(written) if is_complete else written
        rates = rates_of_records(live.totals, summary) if is_complete else rates_of_summary(summary)
        modified = max(listed.modified, _modified(directory))
        return _Run(marks, run.lock, replace(listed, summary=summary, modified=modified), rates, live)

    def _is_outside(self, directory: Path) -> bool:
        """Whether links lead from a run to a place outside the folder."""
        return os.path.commonpath([os.path.realpath(directory), self._root]) != self._root

    def _update_differences(self) -> None:
        """Finds the keys that decide answers and distinguish the runs, if a configuration has changed."""
        runs = [run.listed for run in self._runs.values()]
        configs = {run_id: run.marks[:1] for run_id, run in self._runs.items()}
        if configs == self._configs:
            return
        self._configs = configs
        differing = [key for key in deciding_keys(runs) if not key.endswith("_target_")]
        keys = distinguishing_keys(runs, differing)
        if keys != self._keys:
            self._keys = keys
            for run_id, run in list(self._runs.items()):
                self._publish(run_id, replace(run, row=self._row(run_id, run)))

    def _compute_rates(self) -> None:
        """Computes rates that need the records of finished runs, for a bounded time."""
        started = time.thread_time()
        for run_id, run in list(self._runs.items()):
            if self._closed.is_set() or time.thread_time() - started > _EXACT_S:
                self._wanted.set()  # the rest follows with the next scan
                return
            if run.rates.is_exact or run.listed.state in ("running", "damaged"):
                continue
            try:
                rates = rates_of_run(load_run(run.listed.directory))
            except (SweInferError, OSError):
                rates = replace(run.rates, errors={})  # the row already states what the summary says
            exact = replace(run, rates=rates)
            exact.row = self._row(run_id, exact)
            self._publish(run_id, exact)

    def _row(self, run_id: str, run: _Run) -> dict[str, Any]:
        listed, rates = run.listed, run.rates
        summary, columns = listed.summary, listed.columns
        finished = "completed" in summary
        return {
            "id": run_id,
            "name": shown(listed.name),
            "state": listed.state,
            "error": listed.error,
            "differs": values_of(listed, self._keys)[:_LONGEST_DIFFERENCE],
            "sweeps": [shown(sweep) for sweep in listed.sweeps],
            **{key: None if columns[key] is None else shown(columns[key]) for key in ("model", "dataset", "prompt")},
            "done": listed.done if finished else None,
            "total": listed.total if finished else None,
            **{key: summary.get(key) for key in ("completed", "failed", "skipped", "remaining")},
            "infrastructure_failures": summary.get("infrastructure_failures"),
            "stopped_by": summary.get("stopped_by") and shown(summary.get("stopped_by")),
            "errors": dict(rates.errors or {}),
            "applies": _rate(rates.applies),
            "resolved": _rate(rates.resolved),
            "finished": _rate(rates.finished),
            "cost_usd": _number(columns["cost"]),
            "cost": dollars(summary.get("cost_usd")) if "cost_usd" in summary else None,
            "possibly_billed": dollars(billed) if (billed := summary.get("possibly_billed_usd")) else None,
            "output_tokens": (summary.get("usage") or {}).get("output_tokens"),
            "output_tokens_per_s": _number(summary.get("output_tokens_per_s")),
            "modified": listed.modified or None,
        }


def _repeated(runs: Sequence[Path]) -> set[Path]:
    """The links to other ones of ``runs``, which have rows of their own."""
    links = {run for run in runs if os.path.islink(run)}
    places = {os.path.realpath(run) for run in runs if run not in links} if links else set()
    return {link for link in links if os.path.realpath(link) in places}


def run_marks(directory: Path) -> Marks:
    """The marks of the files that a run's figures come from. Files that are replaced change the directory's mark."""
    return tuple(
        _marks(directory, name) for name in (layout.CONFIG, layout.COVERAGE, "", layout.SUMMARY, layout.RECORDS)
    )


_WITHOUT_RECORDS = 2
"""The first marks: those of files that a run in progress writes once."""


def _marks(directory: Path | str, name: str) -> Marks:
    try:
        status = os.lstat(os.path.join(directory, name))
    except OSError:
        return ()
    return (stat.S_IFMT(status.st_mode), status.st_ino, status.st_size, status.st_mtime_ns)


def _modified(directory: Path) -> float:
    times = [mark[3] for name in (layout.RECORDS, layout.SUMMARY) if (mark := _marks(directory, name))]
    return max((time_ns / 1e9 for time_ns in times if isinstance(time_ns, int)), default=0.0)


def _in_one_line(error: Exception) -> str:
    return shown(f"{type(error).__name__}: {first_line(error)}")[:_LONGEST_ERROR]


def _samples(config: Mapping[str, Any]) -> int | None:
    samples = config.get("decoding.n")
    return samples if type(samples) is int and samples > 0 else None


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    if rate is None or rate.value is None:
        return None
    interval = rate.interval
    return {
        "value": rate.value,
        "wilson_95": None if interval is None else [interval.low, interval.high],
        "text": percent(rate.value) if interval is None else f"{percent(rate.value)} {points_interval(interval)}",
    }


def _number(value: Decimal | float | None) -> float | None:
    return None if value is None else float(value)
