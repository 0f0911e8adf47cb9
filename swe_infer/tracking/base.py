"""What a tracker is: somebody who is told about a run. Trackers never raise and never block the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What a tracker learns at the start.

    Args:
        run_id: derived from the configuration, so a resumed run goes on under the same id and no two runs share one.
        config: the resolved configuration, without secrets.
        directory: the run directory.
        resumed: whether the directory held records already.
        group: the name of what this run is a part of (the run whose shard it is); None: it stands alone.
    """

    run_id: str
    name: str
    config: Mapping[str, Any]
    directory: Path
    resumed: bool
    group: str | None = None


class Tracker(Protocol):
    """Told of a run's life. No method raises; none takes longer than microseconds on the caller's thread."""

    def start(self, run: RunInfo) -> None: ...

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """One record as it was written, and the run's totals after it."""
        ...

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """The run is over: its summary, the files worth keeping, its exit status."""
        ...

    @property
    def address(self) -> str | None:
        """Where the run can be looked at, once it is known."""
        ...


class NoTracker:
    """``tracker=none``."""

    address: str | None = None

    def start(self, run: RunInfo) -> None:
        """Nobody listens."""

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        """Nobody listens."""

    def finish(self, summary: Mapping[str, Any], files: list[Path], exit_status: int) -> None:
        """Nobody listens."""
