"""A run without a model: writes records to a store and logs them to a tracker, like :mod:`swe_infer.runners.run`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.base import RunInfo, Tracker
from swe_infer.types import Completion, Failure, PatchResult, PatchStatus, Skip, Usage

__all__ = ["CONFIG", "SUMMARY_KEYS", "info", "play", "totals_of"]

CONFIG: dict[str, Any] = {
    "model": {"name": "some-model", "path": "models/some-model"},
    "dataset": {"name": "swe-bench", "path": "data/swe-bench.jsonl", "limit": 12},
    "decoding": {"temperature": 0.0, "n": 1},
    "budget": {"max_usd": None},
}
SUMMARY_KEYS = {"completed", "failed", "skipped", "remaining", "cost_usd", "tokens/input", "tokens/output"}
_STATUSES: tuple[PatchStatus, ...] = ("applies", "repaired", "does_not_apply", "none")


def info(directory: Path, run_id: str = "run-0001", **changes: Any) -> RunInfo:
    given: dict[str, Any] = {"name": "some-model on swe-bench", "config": CONFIG, "resumed": False}
    return RunInfo(run_id=run_id, directory=directory, **{**given, **changes})


def totals_of(store: RunStore, instances: int, started: float) -> Summary:
    wall_s = time.monotonic() - started
    return store.totals.summary(instances=instances, samples=1, wall_s=wall_s, stats={"concurrency": 4.0})


def play(
    directory: Path,
    tracker: Tracker,
    run: RunInfo,
    numbers: Iterable[int],
    *,
    instances: int = 12,
    failing: tuple[int, ...] = (),
    skipped: tuple[int, ...] = (),
    pause_s: float = 0.0,
    exit_status: int = 0,
    files: tuple[str, ...] = ("predictions.jsonl", "records.jsonl"),
) -> Summary:
    """Record an answer for each of ``numbers``; returns the summary.

    Each costs 1 cent, 100 * ``number`` prompt tokens, and ``number`` seconds. The patch status cycles through
    applies, repaired, does_not_apply, none.
    """
    started = time.monotonic()
    with RunStore(directory, "some-model") as store:
        tracker.start(run)
        for number in numbers:
            key = (f"instance-{number:04}", 0)
            outcome: Completion | Failure | Skip
            patch = None
            if number in failing:
                outcome = Failure("RateLimited", "429 after all tries", attempts=5)
            elif number in skipped:
                outcome = Skip("ContextOverflow", "too long")
            else:
                usage = Usage(input_tokens=100 * number, cached_input_tokens=10, output_tokens=number)
                outcome = Completion("an answer", "stop", usage, Decimal("0.01"), float(number))
                status = _STATUSES[number % 4]
                patch = PatchResult("" if status == "none" else "x" * 1000 * number, status)
            record = record_of(key, outcome, patch)
            store.append(record)
            tracker.record(record, totals_of(store, instances, started))
            time.sleep(pause_s)
        summary = totals_of(store, instances, started)
        store.write_summary(summary)
        tracker.finish(summary, [directory / n for n in files], exit_status)
    return summary
