"""Concurrent runs of one local model on a shared engine, or of one model behind an API on a shared connection.

Everything happens in the calling thread, so Ctrl-C, logs and trackers work as in a single run. Each run gets the same
answers as without sharing. Its ``wall_s`` ends with its own last answer, and includes work for the other runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.run_directory.figures import sum_usd
from swe_infer.runners.base import ConcurrentRun, ConnectionSharing, EngineSharing, RequestStream
from swe_infer.runners.progress import Progress
from swe_infer.runners.run import ProgressLine, Run


def run_concurrently(runs: Sequence[Run]) -> list[int | Exception]:
    """Execute ``runs``, whose runners can share an engine or a connection and have equal ``engine_key``. A run that
    fails stops no other.

    Returns:
        For each run its exit status, or the exception that it raised before or after generation.
    """
    stop = threading.Event()
    with INTERRUPTS.finishing(stop, *(run.stop for run in runs), says=lambda: _in_progress(runs)):
        ends = [_guarded(run.start) for run in runs]
        started = [run for run, end in zip(runs, ends, strict=True) if end is None]
        statuses = iter(_generate(started, stop) if started else ())
        return [
            _guarded(run.finalize, next(statuses)) if end is None else end
            for run, end in zip(runs, ends, strict=True)
        ]


def _in_progress(runs: Sequence[Run]) -> str:
    number = sum(run.runner.in_flight for run in runs)
    if not number:
        return "no further answer is started"
    return f"finishing {number} {'requests in flight' if runs[0].runner.costs_money else 'answers'}"


def _guarded(work: Callable[..., int | None], *arguments: int) -> Any:
    try:
        return work(*arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - returned to the caller, which reports it
        return error


def _generate(runs: Sequence[Run], stop: threading.Event) -> list[int]:
    """Answer the requests of the runs and flush their records; returns their exit statuses so far."""
    progress = _SharedProgress(runs)
    try:
        connection = runs[0].runner.connection
        if connection is not None:
            errors = _generate_on_connection(connection, runs, stop)
        else:
            errors = _generate_on_engine(runs, stop)
        for run in runs:
            run.freeze_figures()
        return [run.close_records(errors.get(number)) for number, run in enumerate(runs)]
    finally:
        progress.close()


def _generate_on_connection(
    connection: ConnectionSharing, runs: Sequence[Run], stop: threading.Event
) -> dict[int, BaseException]:
    """Answer the requests of the runs; returns what ended runs early, by the number of the run."""
    if stop.is_set():
        return {}
    concurrent = [
        ConcurrentRun(
            run.runner,
            run.rounds() if run.most_rounds > 1 else [run.requests()],
            run.record_outcome,
            run.stop,
            run.freeze_figures,
        )
        for run in runs
    ]
    try:
        ends = connection.generate_concurrently(concurrent, stop)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - ends all runs, which report it
        ends = [error] * len(runs)
    return {number: end for number, end in enumerate(ends) if end is not None}


def _generate_on_engine(runs: Sequence[Run], stop: threading.Event) -> dict[int, BaseException]:
    """As :func:`_generate_on_connection`. The runs have their rounds at the same time."""
    errors: dict[int, BaseException] = {}
    active = list(enumerate(runs))
    for _ in range(max(run.most_rounds for run in runs)):
        streams = _round(active, errors)
        try:
            if streams and not stop.is_set():
                runners = {number: _sharing(runs[number]) for number in streams}
                for number, stream in streams.items():
                    runners[number].join(stream, len(runs))
                next(iter(runners.values())).serve(list(streams.values()), stop)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - ends all runs that are not done
            for stream in streams.values():
                stream.fail(error)
        errors |= {number: stream.error for number, stream in streams.items() if stream.error is not None}
        active = [(number, runs[number]) for number in streams if number not in errors]
    for _, run in active:
        next(run.rounds(), None)  # the last round is recorded
    return errors


def _round(active: Sequence[tuple[int, Run]], errors: dict[int, BaseException]) -> dict[int, RequestStream]:
    """The streams of the next round by the number of their run. A run without a further round is frozen; an error is
    added to ``errors``."""
    streams = {}
    for number, run in active:
        try:
            requests = next(run.rounds(), None)
        except Exception as error:  # noqa: BLE001 - ends this run alone
            errors[number], requests = error, None
        if requests is None:
            run.freeze_figures()
            continue
        # A run with further turns ends with its last round.
        on_done = run.freeze_figures if run.most_rounds == 1 else lambda: None
        streams[number] = RequestStream(requests, run.record_outcome, run.stop, on_done)
    return streams


def _sharing(run: Run) -> EngineSharing:
    sharing = run.runner.sharing
    if sharing is None:
        raise ValueError(f"{run.runner.label}: its runner cannot share an engine")
    return sharing


class _SharedProgress:
    """One progress line for all runs."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self._summaries: list[Mapping[str, Any]] = [run.summary() for run in runs]
        total = sum(s["instances"] * s["samples"] for s in self._summaries)
        remaining = sum(s["remaining"] + s["failed"] for s in self._summaries)
        views = [run.sweep for run in runs if run.sweep is not None]
        sweep = views[0].joined(views[1:]) if views else None
        self._progress = Progress(total, total - remaining, sys.stderr, totals=self._totals(), sweep=sweep)
        for index, run in enumerate(runs):
            run.show_progress(self._line_of(index))

    def _line_of(self, index: int) -> ProgressLine:
        def update(record: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
            self._summaries[index] = summary
            totals = self._totals()
            usage, stats = totals["usage"], dict(summary["stats"])
            if "concurrency" in stats:
                in_flight = sum(run.runner.in_flight for run in self._runs)
                self._progress.update(record, totals, {**stats, "concurrency": float(in_flight)})
            else:
                rate = usage["cached_input_tokens"] / max(1, usage["input_tokens"])
                self._progress.update(record, totals, {**stats, "cache_hit_rate": rate})

        return update

    def _totals(self) -> dict[str, Any]:
        """The sums of the counts on the line."""
        totals: dict[str, Any] = {
            key: sum(s[key] for s in self._summaries) for key in ("completed", "failed", "skipped")
        }
        patches: dict[str, int] = {}
        for summary in self._summaries:
            for status, count in summary["patches"].items():
                patches[status] = patches.get(status, 0) + count
        names = ("input_tokens", "cached_input_tokens", "output_tokens")
        usage = {name: sum(s["usage"][name] for s in self._summaries) for name in names}
        cost: Decimal | None = Decimal(0)
        for summary in self._summaries:
            cost = sum_usd(cost, summary["cost_usd"])
        return totals | {"patches": patches, "usage": usage, "cost_usd": cost}

    def close(self) -> None:
        self._progress.close()
