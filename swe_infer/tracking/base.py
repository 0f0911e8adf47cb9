"""The interface of experiment trackers, which never raise and never block the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RunInfo:
    """The run that a tracker logs.

    Args:
        run_id: unique, and the same when the run is resumed.
        config: the resolved configuration, without secrets.
        directory: the run directory.
        resumed: whether the directory already contained records.
        group: the name of the sweep or, for a shard, of the whole run; None for a single run.
        job_type: ``run``, ``shard``, ``merged`` for merged shards, or ``sweep`` for the summary of a sweep.
        tags: the swept overrides.
    """

    run_id: str
    name: str
    config: Mapping[str, Any]
    directory: Path
    resumed: bool
    group: str | None = None
    job_type: str = "run"
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """The summary of a sweep.

    Args:
        columns: names of the table's columns, and their types: ``int``, ``float`` or ``str``.
        rows: a row for each point; cells may be None.
        charts: names of charts, and their HTML pages.
        figures: of the whole sweep.
    """

    columns: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    charts: Mapping[str, str]
    figures: Mapping[str, Any]


class Tracker(Protocol):
    """Logs a run. No method raises, and each returns within microseconds, except :meth:`finish`."""

    def is_incomplete(self, run: RunInfo) -> bool:
        """Whether an earlier command was ended before it had logged all of the run."""
        ...

    def start(self, run: RunInfo) -> None: ...

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Log one record, and the run's totals that include it."""
        ...

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Log the end of the run: its summary, files to upload and exit status."""
        ...

    @property
    def address(self) -> str | None:
        """The address of the run's page, once it is known."""
        ...


class NoTracker:
    """``tracker=none``."""

    address: str | None = None

    def is_incomplete(self, run: RunInfo) -> bool:
        """Nothing is logged."""
        return False

    def start(self, run: RunInfo) -> None:
        """Does nothing."""

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Does nothing."""
