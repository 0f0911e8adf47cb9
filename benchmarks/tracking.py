"""What W&B costs a run: ``python -m benchmarks.tracking [--rate 500] [--seconds 20] [--rounds 5]``.

A run of real records in a real store, paced like a provider that answers ``--rate`` requests a second (a sleep until
each answer is due), with W&B offline and without a tracker in turn; which is first changes from round to round.
Printed are medians: the wall time from start to the end of ``finish``; how much of it ``finish`` takes; the processor
time of the run's own process; and that of W&B's processes, which the run feels only where no core is idle.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from dataclasses import astuple, dataclass
from decimal import Decimal
from pathlib import Path

from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.records import Record
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.base import NoTracker, RunInfo, Tracker
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.types import Completion, PatchResult, Usage

_FAREWELL_S = 2.0  # until W&B's processes have ended, after a run; not part of it


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds of one run."""

    wall: float
    finish: float
    own_processor: float
    children_processor: float


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0, help="answers a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a run lasts")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    os.environ["WANDB_MODE"] = "offline"
    answers = int(given.rate * given.seconds)
    runs: dict[str, list[Figures]] = {"none": [], "wandb": []}
    for number in range(given.rounds):
        for name in ("none", "wandb") if number % 2 else ("wandb", "none"):
            tracker: Tracker = WandbTracker() if name == "wandb" else NoTracker()
            runs[name].append(one_run(tracker, answers, given.rate))
    print(f"{answers} answers at {given.rate:g} a second, {given.rounds} rounds in turn, medians")
    none, wandb = (Figures(*map(statistics.median, zip(*map(astuple, runs[name]), strict=True))) for name in runs)
    for label in ("wall", "finish", "own_processor", "children_processor"):
        before, after = getattr(none, label), getattr(wandb, label)
        share = 100 * (after - before) / none.wall
        print(
            f"{label.replace('_', ' '):>18}: none {before:.3f} s, wandb {after:.3f} s, {share:+.2f} % of a run's time"
        )
    added = sorted(b.wall - a.wall for a, b in zip(runs["none"], runs["wandb"], strict=True))
    print("wall time added, round by round, sorted: " + ", ".join(f"{seconds:+.3f} s" for seconds in added))


def one_run(tracker: Tracker, answers: int, rate: float) -> Figures:
    """Do one run."""
    with tempfile.TemporaryDirectory() as folder, RunStore(Path(folder), "benchmark") as store:
        children = _children()
        before, processor_before = time.perf_counter(), time.process_time()
        tracker.start(RunInfo("benchmark", "benchmark", {"model": {"name": "m"}}, Path(folder), False))
        totals: Summary = {}
        for number in range(answers):
            pause = before + number / rate - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            record = _record(number)
            store.append(record)
            totals = _totals(store, answers, before)
            tracker.record(record, totals)
        ending = time.perf_counter()
        tracker.finish(totals, [store.directory / "records.jsonl", store.directory / "predictions.jsonl"], 0)
        after, processor = time.perf_counter(), time.process_time() - processor_before
        time.sleep(_FAREWELL_S)
        return Figures(after - before, after - ending, processor, _children() - children)


def _children() -> float:
    """Processor seconds of the processes that this one has started, and theirs, as far as they have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _record(number: int) -> Record:
    usage = Usage(input_tokens=8000, cached_input_tokens=100, output_tokens=400)
    patch = PatchResult("+ a line of a patch that is about as long as one is\n" * 20, "applies")
    text = f"Here is the patch.\n```diff\n{patch.patch}```\n"
    return record_of((f"instance-{number}", 0), Completion(text, "stop", usage, Decimal("0.01"), 1.0), patch)


def _totals(store: RunStore, answers: int, started: float) -> Summary:
    return store.totals.summary(instances=answers, samples=1, wall_s=time.perf_counter() - started)


if __name__ == "__main__":
    main()
