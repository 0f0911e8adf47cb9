"""What W&B costs a run: ``python -m benchmarks.tracking [--rate 500] [--seconds 20] [--rounds 5]``,
or a sweep: ``python -m benchmarks.tracking --sweep 200 [--rounds 1]``.

A run of real records in a real store, paced like a provider that answers ``--rate`` requests a second (a sleep until
each answer is due), with W&B offline and without a tracker in turn; which is first changes from round to round.
Printed are medians: the wall time from start to the end of ``finish``; how much of it ``finish`` takes; the processor
time of the run's own process; and that of W&B's processes, which the run feels only where no core is idle.

With ``--sweep N`` the whole command runs N points of 4 instances against the loopback API server: without a tracker,
with W&B offline, with a stand-in for W&B's server, and with an address at which nothing listens. Printed are medians
of its wall and processor time, W&B's processes included.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from decimal import Decimal
from pathlib import Path

from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.records import Record
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.base import NoTracker, RunInfo, Tracker
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.types import Completion, PatchResult, Usage
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.wandb_server import API_KEY as WANDB_KEY
from tests.support.wandb_server import wandb_server

SIDES = ("none", "offline", "server", "down")
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
    parser.add_argument("--sweep", type=int, metavar="POINTS", help="measure a sweep of so many points instead")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    given = parser.parse_args()
    if given.sweep:
        measure_sweeps(given.sweep, given.rounds, given.sides)
        return
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


def measure_sweeps(points: int, rounds: int, sides: Sequence[str]) -> None:
    """Measure sweeps with each way of tracking in turn, and print the medians."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 == 0 else reversed(sides):
            found[side].append(one_sweep(side, points))
    print(f"a sweep of {points} points of 4 instances, medians of {rounds}")
    walls = {side: statistics.median(wall for wall, _ in times) for side, times in found.items()}
    for side, times in found.items():
        processor = statistics.median(seconds for _, seconds in times)
        ratio = f", {walls[side] / walls['none']:.2f} x none" if "none" in walls else ""
        print(f"{side:>8}: wall {walls[side]:.1f} s{ratio}, processor {processor:.1f} s")


def one_sweep(side: str, points: int) -> tuple[float, float]:
    """Run a sweep; returns its wall and processor time in seconds."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = write_instances(folder / "instances.jsonl", 4)
        api = stack.enter_context(ApiServer())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"PYTHONPATH": str(Path(__file__).parents[1]), "OPENAI_API_KEY": "sk-benchmark"}
        environment |= {"XDG_STATE_HOME": str(folder / "state")}
        if side in ("server", "down"):
            server = stack.enter_context(wandb_server())
            environment |= {"WANDB_API_KEY": WANDB_KEY, "WANDB_BASE_URL": server.url}
        if side == "down":
            environment["WANDB_BASE_URL"] = f"http://127.0.0.1:{_unused_port()}"
        command = [sys.executable, "-m", "swe_infer", "-m", "model=gpt-4o", f"provider.base_url={api.openai_url}"]
        command += ["dataset=jsonl", f"dataset.path={data}", f"tracker={'none' if side == 'none' else 'wandb'}"]
        command += ["decoding.temperature=" + ",".join(f"{number / points:.4f}" for number in range(points))]
        children, started = _children(), time.perf_counter()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        wall = time.perf_counter() - started
        time.sleep(_FAREWELL_S)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        return wall, _children() - children


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
        return port


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
