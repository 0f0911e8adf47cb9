"""Comparisons of runs that may be in progress, as the page requests them."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from swe_infer.compare.analysis import RESAMPLES, Comparison, compare
from swe_infer.compare.loading import LoadedRun, distinct_names, load_run
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.progress import hidden
from swe_infer.text import clean
from swe_infer.view.folder import Marks, WatchedFolder, run_marks

MOST_RUNS = 100
"""Runs in one comparison."""
_MOST_LOADED = 100
"""Runs that are kept in memory."""
_MOST_MADE = 4
"""Comparisons that are kept in memory."""
_LIVE_RESAMPLES = 1000
"""While a run goes on. The figures of finished runs are those of ``swe-infer-compare``."""
_SHORTEST_INTERVAL_S = 2.0
_MOST_TIME = 0.1
"""The share of time in which the figures of runs in progress are computed again."""


class UnknownRun(SweInferError):
    """No run of the folder has an id, or it cannot be read."""


@dataclass(slots=True)
class Made:
    """A comparison of some runs.

    Args:
        marks: of the runs when it was made.
        live: whether a run was in progress.
        tag: identifies the figures.
    """

    marks: Marks
    live: bool
    comparison: Comparison
    tag: str
    made: float
    took_s: float


class Comparisons:
    """Makes comparisons, and keeps the last ones.

    Args:
        folder: the runs.
    """

    def __init__(self, folder: WatchedFolder) -> None:
        self._folder = folder
        self._loaded: OrderedDict[Path, tuple[Marks, LoadedRun]] = OrderedDict()
        self._made: OrderedDict[tuple[str, ...], Made] = OrderedDict()
        self._guard = threading.Lock()
        """Only one comparison is computed at a time."""

    def of(self, ids: Sequence[str]) -> Made:
        """The comparison of the runs with these ids; made again if they have changed.

        Raises:
            UnknownRun: see there.
            SweInferError: no comparison can be made.
        """
        directories = self._directories(ids)
        with self._guard, hidden():
            key = tuple(ids)
            made = self._made.get(key)
            marks = tuple(run_marks(directory) for directory in directories)
            live = any(map(self._folder.is_running, directories))
            if made is None or ((marks, live) != (made.marks, made.live) and time.monotonic() >= _due(made)):
                made = self._make(directories, marks, live)
            self._made[key] = made
            self._made.move_to_end(key)
            while len(self._made) > _MOST_MADE:
                self._made.popitem(last=False)
            return made

    def _directories(self, ids: Sequence[str]) -> list[Path]:
        if not 0 < len(ids) <= MOST_RUNS:
            raise UnknownRun(f"name 1 to {MOST_RUNS} runs: run=ID&run=ID")
        found = []
        for one, directory in zip(ids, self._folder.directories(ids), strict=True):
            if directory is None:
                raise UnknownRun(f"run={clean(one[:40])}: no run of this folder has this id, or it cannot be read")
            found.append(directory)
        return found

    def _make(self, directories: Sequence[Path], marks: Marks, live: bool) -> Made:
        started = time.monotonic()
        runs, notes = [], []
        for directory in dict.fromkeys(directories):
            try:
                runs.append(self._load(directory))
            except (SweInferError, OSError) as error:
                notes.append(f"Left out: {clean(str(error))}")
        if not runs:
            raise ConfigError(" ".join(notes))
        names = distinct_names([run.directory for run in runs])
        runs = [replace(run, name=clean(name)) for run, name in zip(runs, names, strict=True)]
        comparison = compare(runs, notes=notes, resamples=_LIVE_RESAMPLES if live else RESAMPLES)
        now = time.monotonic()
        tag = hashlib.sha256(repr((marks, live)).encode()).hexdigest()[:20]
        return Made(marks, live, comparison, tag, now, now - started)

    def _load(self, directory: Path) -> LoadedRun:
        marks = run_marks(directory)
        known = self._loaded.get(directory)
        if known is None or known[0] != marks:
            known = (marks, load_run(directory))
        self._loaded[directory] = known
        self._loaded.move_to_end(directory)
        while len(self._loaded) > _MOST_LOADED:
            self._loaded.popitem(last=False)
        return known[1]


def _due(made: Made) -> float:
    return made.made + max(_SHORTEST_INTERVAL_S, made.took_s / _MOST_TIME)
