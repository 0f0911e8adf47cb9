"""The runs of a folder, read without their records. They may be damaged, in progress, or untrusted."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from swe_infer.errors import SweInferError
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import Summary, covered_samples, figure
from swe_infer.run_directory.lock import is_locked
from swe_infer.run_directory.provenance import Provenance, read_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS, sweep_runs
from swe_infer.text import clean, flatten, short_keys, shown

State = Literal["running", "complete", "interrupted", "failed", "damaged"]

_MAX_DEPTH = 6
"""Levels of folders that are searched."""
_LONGEST_ERROR = 300


@dataclass(frozen=True)
class ListedRun:
    """A run directory.

    Args:
        name: its path relative to the listed folder.
        config: the flattened configuration; empty without one.
        sweeps: the names of the sweeps that contain the run.
        arguments: what its commands set, such as ``decoding.temperature=0.2``, with other words of the commands.
        modified: when its figures last changed, in seconds since the epoch.
        error: why it cannot be read, in one line; None if it can.
    """

    directory: Path
    name: str
    state: State
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Summary = field(default_factory=Summary)
    sweeps: tuple[str, ...] = ()
    arguments: frozenset[str] = frozenset()
    modified: float = 0.0
    error: str | None = None

    @property
    def done(self) -> int:
        """Samples that need no further request: completed ones, and those skipped for a stated reason."""
        return (self.summary.get("completed") or 0) + (self.summary.get("skipped") or 0)

    @property
    def total(self) -> int:
        """Samples that the last command requested."""
        return covered_samples(self.summary)

    @cached_property
    def columns(self) -> dict[str, Any]:
        """The columns of the list."""
        return {
            "name": self.name,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "resolved": figure(self.summary, "resolved_rate"),
            "applies": figure(self.summary, "apply_rate"),
            "cost": figure(self.summary, "cost_usd"),
            "age": max(0.0, time.time() - self.modified),
            "model": self._label("model"),
            "dataset": self._label("dataset"),
            "prompt": self._prompt(),
            "sweep": ",".join(self.sweeps) or None,
        }

    def value(self, key: str) -> Any:
        """The value of a column, a configuration key, or a figure of the summary, in this order. None without one."""
        if key in self.columns:
            return self.columns[key]
        return self.config[key] if key in self.config else figure(self.summary, key)

    def _label(self, group: str) -> str | None:
        """The name of a model or dataset, or the last part of its path."""
        name = self.config.get(f"{group}.name") or self.config.get(f"{group}.path")
        if name is None and (target := self.config.get(f"{group}._target_")):
            name = str(target).rpartition(".")[2].removesuffix("Dataset").lower()
        text = None if name is None else str(name).rstrip("/").rpartition("/")[2] or str(name)
        adapter = self.config.get("model.peft_path") if group == "model" else None
        return f"{text}+{str(adapter).rstrip('/').rpartition('/')[2]}" if adapter else text

    def _prompt(self) -> str | None:
        """The style of the prompt and, if it is not the rows' own, what chooses its files."""
        style = self.config.get("prompt.template") or self.config.get("prompt.style")
        context = str(self.config.get("context._target_") or "").rpartition(".")[2].removesuffix("Context").lower()
        if style is None or context in ("", "given"):
            return None if style is None else str(style)
        return f"{str(style).rpartition('/')[2]}+{context}"


@dataclass(frozen=True, slots=True)
class Folder:
    """What a folder contains.

    Args:
        runs: run directories, sorted by path.
        sweeps: directories of sweeps.
        unreadable: a line for each folder that cannot be read.
    """

    runs: Sequence[Path]
    sweeps: Sequence[Path]
    unreadable: Sequence[str]


def search(folder: Path) -> Folder:
    """Finds the runs and sweeps in a folder, which may be a run itself. Links to folders are followed only if they
    point to a run."""
    runs: list[Path] = []
    sweeps: list[Path] = []
    unreadable: list[str] = []
    pending = [(folder, 0)]
    while pending:
        place, depth = pending.pop()
        try:
            with os.scandir(place) as entries:
                found = {entry.name: entry for entry in entries}
        except OSError as error:
            unreadable.append(f"{clean(str(place))}: cannot be read ({error.strerror})")
            continue
        if found.keys() & set(layout.MARKERS):
            runs.append(place)
            continue
        if SWEEP_JOBS in found:
            sweeps.append(place)
        if depth < _MAX_DEPTH:
            pending += [(place / name, depth + 1) for name, entry in found.items() if _is_searched(entry)]
    return Folder(sorted(runs), sorted(sweeps), unreadable)


def _is_searched(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.name.startswith(".") or not entry.is_dir():
            return False
        return not entry.is_symlink() or layout.is_run(Path(entry.path))
    except OSError:
        return False


def read_runs(folder: Path, found: Folder) -> list[ListedRun]:
    """Reads the runs that :func:`search` found in ``folder``."""
    sweeps = memberships(found.sweeps)
    return [read_run(run, _relative(run, folder), sweeps.get(os.path.realpath(run), ())) for run in found.runs]


def _relative(run: Path, folder: Path) -> str:
    return str(run) if run == folder else str(run.relative_to(folder))


def memberships(sweeps: Iterable[Path]) -> dict[str, list[str]]:
    """The names of the sweeps that list each run, by the run's real path."""
    found: dict[str, list[str]] = {}
    for sweep in sweeps:
        try:
            for run in sweep_runs(sweep):
                found.setdefault(os.path.realpath(run), []).append(sweep.resolve().name)
        except SweInferError:
            continue
    return found


def read_run(directory: Path, name: str, listed_in: Sequence[str] = ()) -> ListedRun:
    """Reads a run directory. Its records are read only if it was killed. Raises nothing.

    Args:
        listed_in: the sweeps whose lists of jobs contain the run.
    """
    run = RunDirectory(directory)
    errors: list[str] = []
    config: Mapping[str, Any] = {}
    summary: Summary = {}
    modified = 0.0
    running = False
    try:
        modified = _modified(directory)
        running = is_locked(directory / layout.LOCK)
        errors += _special_markers(directory)
        config = dict(flatten(run.config()))
    except (SweInferError, OSError) as error:
        errors.append(str(error))
    try:
        summary = run.summary() if running else run.latest_summary()
    except (SweInferError, OSError) as error:
        errors.append(str(error))
    if summary.get("completed") and not os.path.lexists(directory / layout.RECORDS):
        errors.append(f"{layout.RECORDS}: is missing")
    provenance = read_provenance(directory)
    groups = [sweep.group for sweep in provenance.sweeps]
    sweeps = tuple(clean(group) for group in dict.fromkeys([*groups, *listed_in]) if group)
    line = errors[0].removeprefix(f"{directory}/").removeprefix(f"{directory}: ") if errors else ""
    return ListedRun(
        directory,
        name,
        _state(summary, running=running, damaged=bool(errors)),
        config,
        summary,
        sweeps,
        _arguments(provenance),
        modified,
        shown(line)[:_LONGEST_ERROR] if errors else None,
    )


def _arguments(provenance: Provenance) -> frozenset[str]:
    words = " ".join(str(command.get("command")) for command in provenance.commands).replace("'", " ").split()
    return frozenset([*words, *(tag for sweep in provenance.sweeps for tag in sweep.tags)])


_IN_COLUMNS = ("model.name", "model.path", "model.peft_path", "dataset.name", "dataset.path", "prompt.style")
"""Keys that a column shows."""


def distinguishing_keys(runs: Sequence[ListedRun], differing: Sequence[str]) -> list[str]:
    """The differing keys that no column shows and that do not follow from others."""
    explained = explained_keys(runs, differing)
    return [key for key in differing if key not in _IN_COLUMNS and key not in explained]


def values_of(run: ListedRun, keys: Sequence[str]) -> str:
    """The values of some keys in one line, such as ``temperature=0.2 top_p=1.0``."""
    return " ".join(
        f"{name}={shown(run.config[key])}"
        for key, name in short_keys(keys).items()
        if run.config.get(key) is not None
    )


def explained_keys(runs: Sequence[ListedRun], keys: Iterable[str]) -> set[str]:
    """The keys that no command set and whose values follow from the model, or from the model and its provider: those
    of the options that the models choose."""
    given = {word.partition("=")[0].lstrip("+") for run in runs for word in run.arguments}
    if "experiment" in given or "from" in given:
        given |= {"decoding", "context", "prompt", "dataset", "selection", "feedback", "evaluation"}

    def follows(key: str) -> bool:
        group = key.partition(".")[0]
        if key in given or (group in given and group not in ("model", "provider")):
            return False
        of_provider = () if key == "provider.name" else ("provider.name",)
        found: dict[tuple[str, ...], str] = {}
        for run in runs:
            if run.config:
                origin = tuple(repr(run.value(name)) for name in ("model", *of_provider))
                value = repr(run.config.get(key))
                if found.setdefault(origin, value) != value:
                    return False
        return len(found) > 1

    return {key for key in keys if follows(key)}


def _special_markers(directory: Path) -> Iterator[str]:
    """A line for the first file of the run that is a link or a special file."""
    for name in layout.MARKERS:
        try:
            mode = os.lstat(directory / name).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            yield f"{name}: is not a regular file"
            return


def _modified(directory: Path) -> float:
    """When the run last wrote a record or its figures."""
    times = []
    for name in (layout.RECORDS, layout.SUMMARY):
        try:
            times.append(os.lstat(directory / name).st_mtime)
        except FileNotFoundError:
            continue
    return max(times, default=0.0)


def _state(summary: Summary, *, running: bool, damaged: bool) -> State:
    """The state of a run. A run that a fault stopped has failed; one that was interrupted or ran out of budget can go
    on."""
    if running:
        return "running"
    if damaged:
        return "damaged"
    remaining = summary.get("remaining", 1)
    if (remaining and summary.get("stopped_by")) or (not remaining and summary.get("failed")):
        return "failed"
    return "interrupted" if remaining else "complete"
