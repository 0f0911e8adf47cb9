"""Several runs of one local model at once: one engine answers them all, each keeps what is its own.

Everything happens in the calling thread, so that Ctrl-C, logs and trackers work as in a single run. A run's answers
are those that it would get by itself; its ``wall_s`` is the time until its own last answer, in which the others were
answered as well.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.runners.base import EngineSharing, RequestStream
from swe_infer.runners.progress import Progress
from swe_infer.runners.run import ProgressLine, Run


def run_concurrently(runs: Sequence[Run]) -> list[int | Exception]:
    """Do what is left of ``runs``, whose runners can share an engine and have one ``engine_key``. A run that fails
    stops no other.

    Returns:
        For each run its exit status, or what it raised before or after its answering.
    """
    stop = threading.Event()
    with INTERRUPTS.finishing(stop, *(run.stop for run in runs), says=lambda: _in_progress(runs)):
        ends = [_guarded(run.begin) for run in runs]
        begun = [run for run, end in zip(runs, ends, strict=True) if end is None]
        statuses = iter(_answered(begun, stop) if begun else ())
        return [
            _guarded(run.end, next(statuses)) if end is None else end for run, end in zip(runs, ends, strict=True)
        ]


def _in_progress(runs: Sequence[Run]) -> str:
    number = sum(run.runner.in_flight for run in runs)
    return f"finishing {number} answers" if number else "no further answer is begun"


def _guarded(work: Callable[..., int | None], *arguments: int) -> Any:
    try:
        return work(*arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - it is told of where the run's end is noted
        return error


def _answered(runs: Sequence[Run], stop: threading.Event) -> list[int]:
    """Answer what the runs ask, and make sure that it is kept; returns their exit statuses so far."""
    streams = [RequestStream(run.requests(), run.keep, run.stop, run.freeze) for run in runs]
    line = _Line(runs)
    try:
        try:
            if not stop.is_set():
                runners = [_sharing(run) for run in runs]
                for runner, stream in zip(runners, streams, strict=True):
                    runner.join(stream, len(runs))
                runners[0].serve(streams, stop)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - it ends all runs that are not done
            for stream in streams:
                stream.fail(error)
        for run in runs:
            run.freeze()
        return [run.settle(stream.error) for run, stream in zip(runs, streams, strict=True)]
    finally:
        line.close()


def _sharing(run: Run) -> EngineSharing:
    sharing = run.runner.sharing
    if sharing is None:
        raise ValueError(f"{run.runner.label}: its runner answers one run at a time")
    return sharing


class _Line:
    """One live line for all runs."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._summaries: list[Mapping[str, Any]] = [run.summary() for run in runs]
        total = sum(s["instances"] * s["samples"] for s in self._summaries)
        left = sum(s["remaining"] + s["failed"] for s in self._summaries)
        self._progress = Progress(total, already_done=total - left, stream=sys.stderr)
        for index, run in enumerate(runs):
            run.show_progress(self._line_of(index))

    def _line_of(self, index: int) -> ProgressLine:
        def update(record: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
            self._summaries[index] = summary
            totals = self._totals()
            usage = totals["usage"]
            rate = usage["cached_input_tokens"] / max(1, usage["input_tokens"])
            self._progress.update(record, totals, {**summary["stats"], "cache_hit_rate": rate})

        return update

    def _totals(self) -> dict[str, Any]:
        """The counts that the line shows, summed."""
        totals: dict[str, Any] = {
            key: sum(s[key] for s in self._summaries) for key in ("completed", "failed", "skipped")
        }
        patches: dict[str, int] = {}
        for summary in self._summaries:
            for status, count in summary["patches"].items():
                patches[status] = patches.get(status, 0) + count
        names = ("input_tokens", "cached_input_tokens", "output_tokens")
        usage = {name: sum(s["usage"][name] for s in self._summaries) for name in names}
        return totals | {"patches": patches, "usage": usage, "cost_usd": Decimal(0)}

    def close(self) -> None:
        self._progress.close()
