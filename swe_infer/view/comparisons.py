"""Comparisons of runs that may be in progress, as the page requests them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swe_infer.compare.analysis import RESAMPLES, Comparison, compare
from swe_infer.compare.loading import LoadedRun, distinct_names, load_run
from swe_infer.compare.page_data import InstanceDetails, page_data
from swe_infer.compare.prompts import PromptSource
from swe_infer.compare.report import page_json
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.files import open_regular
from swe_infer.progress import hidden
from swe_infer.run_directory import layout
from swe_infer.run_directory.records import LONGEST_LINE, records_of
from swe_infer.text import clean
from swe_infer.view.folder import Marks, WatchedFolder, run_marks

MOST_RUNS = 100
"""Runs in one comparison."""
_MOST_LOADED = 100
"""Runs that are kept in memory."""
_MOST_KEPT = 4
"""Comparisons that are kept in memory."""
_LIVE_RESAMPLES = 1000
"""Resamples while a run goes on. The figures of finished runs are those of ``swe-infer-compare``."""
_SHORTEST_INTERVAL_S = 2.0
_LARGEST_SHARE = 0.1
"""Of the time, for computing the figures of runs in progress again."""


class UnknownRun(SweInferError):
    """No run of the folder has a requested id, its directory cannot be read, or the request names too many runs."""


class Prompts:
    """The prompts of some runs, opened when the first one is requested. Only those that the runs have sent are shown:
    a configuration may be untrusted, and name a private file as its dataset."""

    def __init__(self, runs: Sequence[LoadedRun]) -> None:
        self.configs = [run.nested_config for run in runs]
        self.guard = threading.Lock()
        """Held while prompts are read."""
        self._runs = runs
        self._source: PromptSource | None = None

    def source(self) -> PromptSource:
        if self._source is None:
            directories = [run.directory for run in self._runs]
            digests = functools.lru_cache(maxsize=1)(functools.partial(sent_digests, directories))
            self._source = PromptSource(self._runs, digests)
        return self._source

    def close(self) -> None:
        with self.guard:
            if self._source is not None:
                self._source.__exit__(None, None, None)
                self._source = None


@dataclass(slots=True)
class CachedComparison:
    """A comparison of some runs, which is kept until they change.

    Args:
        marks: of the runs when it was computed.
        live: whether a run was in progress.
        body: the data of its page as JSON.
        tag: identifies the body.
        computed_at: by the monotonic clock, in seconds.
        took_s: the time that it took to compute.
    """

    marks: Marks
    live: bool
    comparison: Comparison
    body: str
    tag: str
    computed_at: float
    took_s: float
    prompts: Prompts
    _details: InstanceDetails | None = field(default=None, repr=False)

    def instance(self, instance_id: str) -> dict[str, Any] | None:
        """The details of an instance, see :class:`swe_infer.compare.page_data.InstanceDetails`.

        Raises:
            SweInferError, OSError: its records or its prompt cannot be read.
        """
        with self.prompts.guard, hidden():
            if self._details is None:
                self._details = InstanceDetails(self.comparison, prompts=self.prompts.source())
            return self._details.of(instance_id)


class Comparisons:
    """Computes comparisons, and keeps the last ones.

    Args:
        folder: the runs.
    """

    def __init__(self, folder: WatchedFolder) -> None:
        self._folder = folder
        self._loaded: OrderedDict[Path, tuple[Marks, LoadedRun]] = OrderedDict()
        self._kept: OrderedDict[tuple[str, ...], CachedComparison] = OrderedDict()
        self._guard = threading.Lock()
        """Only one comparison is computed at a time."""

    def of(self, ids: Sequence[str]) -> CachedComparison:
        """The comparison of the runs with these ids, computed again if they have changed.

        Raises:
            UnknownRun: a run is unknown or cannot be read, or there are too many.
            SweInferError: none of the runs can be loaded.
        """
        directories = self.directories(ids)
        key = tuple(ids)
        with self._guard, hidden():
            kept = self._kept.get(key)
            marks = tuple(run_marks(directory) for directory in directories)
            live = any(map(self._folder.is_running, directories))
            if kept is None or ((marks, live) != (kept.marks, kept.live) and time.monotonic() >= _due(kept)):
                kept = self._compute(directories, marks, live, None if kept is None else kept.prompts)
            self._kept[key] = kept
            self._kept.move_to_end(key)
            dropped = self._kept.popitem(last=False)[1] if len(self._kept) > _MOST_KEPT else None
        if dropped is not None:
            dropped.prompts.close()
        return kept

    def latest(self, ids: Sequence[str]) -> CachedComparison:
        """The last comparison of the runs with these ids, without a wait for a new one if there is one.

        Raises:
            UnknownRun, SweInferError: see :meth:`of`.
        """
        self.directories(ids)
        return self._kept.get(tuple(ids)) or self.of(ids)

    def directories(self, ids: Sequence[str]) -> list[Path]:
        """The directories of the runs with these ids.

        Raises:
            UnknownRun: see :meth:`of`.
        """
        if not 0 < len(ids) <= MOST_RUNS:
            raise UnknownRun(f"name 1 to {MOST_RUNS} runs: run=ID&run=ID")
        found = []
        for one, directory in zip(ids, self._folder.directories(ids), strict=True):
            if directory is None or not directory.is_dir():  # without files it would be read as an empty run
                raise UnknownRun(f"run={clean(one[:40])}: no run of this folder has this id, or it cannot be read")
            found.append(directory)
        return found

    def _compute(
        self, directories: Sequence[Path], marks: Marks, live: bool, prompts: Prompts | None
    ) -> CachedComparison:
        started = time.monotonic()
        runs, notes = [], []
        for directory in directories:
            try:
                runs.append(self._load(directory))
            except (SweInferError, OSError) as error:
                notes.append(f"Left out: {clean(str(error))}")
            if not directory.is_dir():  # while it was read
                raise UnknownRun(f"{clean(directory.name)}: was removed or moved")
        if not runs:
            raise ConfigError(" ".join(notes))
        names = distinct_names([run.directory for run in runs])
        runs = [replace(run, name=clean(name)) for run, name in zip(runs, names, strict=True)]
        comparison = compare(runs, notes=notes, resamples=_LIVE_RESAMPLES if live else RESAMPLES)
        body = page_json(page_data(comparison))
        if prompts is None or prompts.configs != [run.nested_config for run in runs]:
            if prompts is not None:
                prompts.close()
            prompts = Prompts(runs)
        now = time.monotonic()
        tag = hashlib.sha256(body.encode()).hexdigest()[:32]
        return CachedComparison(marks, live, comparison, body, tag, now, now - started, prompts)

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


def _due(kept: CachedComparison) -> float:
    return kept.computed_at + max(_SHORTEST_INTERVAL_S, kept.took_s / _LARGEST_SHARE)


def sent_digests(directories: Sequence[Path], instance_id: str) -> Collection[str]:
    """The digests of the prompts that runs have sent for an instance, from their records.

    Raises:
        OSError: the records of a run cannot be read.
    """
    found = set()
    needle = json.dumps(instance_id)[1:-1].encode()  # as records are written; only such lines are parsed
    for directory in directories:
        with os.fdopen(open_regular(directory / layout.RECORDS), "rb") as file:
            while line := file.readline(LONGEST_LINE):
                if needle in line:
                    records = (record for record in records_of(line) if record["instance_id"] == instance_id)
                    found |= {str(record.get("prompt_sha256")) for record in records}
    return found
