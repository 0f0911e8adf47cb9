"""The totals of a run over time, computed from its records."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Record
from swe_infer.run_directory.totals import Totals

_LONGEST_PAUSE_S = 60.0
"""A longer time without a record, beyond the latency of the next one, is between two commands."""


def totals_over_time(
    directories: Sequence[Path], coverage: Coverage | None, summary: Mapping[str, Any], points: int
) -> Iterator[dict[str, Any]]:
    """Yields summaries with ever more records, as a tracker would have logged them.

    Each also has ``_time``, the time of its last record in seconds since the epoch, and ``_latencies_s``, those of
    the answers since the summary before. ``wall_s`` leaves out the time between two commands.

    Args:
        directories: of the run, or of its shards.
        coverage: the instances and turns that count; None: all.
        summary: the final one.
        points: about how many to yield.

    Raises:
        ConfigError: the records cannot be read.
    """
    totals = Totals() if coverage is None else Totals(coverage.ids, coverage.turns)
    counts = {"instances": summary["instances"], "samples": summary["samples"]}
    every = 1 + summary["instances"] * summary["samples"] // points
    # Each file is nearly in the order of its times, so that not all records need to be in memory.
    records = (RunDirectory(directory).records(auxiliary=True) for directory in directories)
    wall_s, before = 0.0, None
    latencies: list[float] = []
    for number, record in enumerate(heapq.merge(*records, key=_time_of), 1):
        totals.add_record(record)
        time, latency = _time_of(record), float(record.get("latency_s") or 0)
        if time:
            wall_s += latency if before is None else min(max(0.0, time - before), latency + _LONGEST_PAUSE_S)
            before = time
        if record["status"] == "completed":
            latencies.append(latency)
        if number % every == 0 and before is not None:
            point = totals.summary(**counts, wall_s=min(wall_s, float(summary.get("wall_s") or wall_s)))
            yield {**point, "_time": before, "_latencies_s": latencies}
            latencies = []


def _time_of(record: Record) -> float:
    return float(record.get("time") or 0)
