"""The interface of experiment trackers, which never raise and never block the run."""

from __future__ import annotations

from collections.abc import Mapping
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
        group: the name of the whole run, for a shard; otherwise None.
    """

    run_id: str
    name: str
    config: Mapping[str, Any]
    directory: Path
    resumed: bool
    group: str | None = None


class Tracker(Protocol):
    """Logs a run. No method raises, and each returns within microseconds, except :meth:`finish`."""

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

    def start(self, run: RunInfo) -> None:
        """Does nothing."""

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Does nothing."""

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Does nothing."""
