"""100,000 instances, 1,000 at a time: does anything grow that should not, and does the event loop ever stand still?

    python -m benchmarks.torture load                                     # 100,000 instances: 12 minutes
    python -m benchmarks.torture load --instances 5000 --faster 9
    nice python -m benchmarks.torture load --tracked                      # with W&B, offline

An hour of a provider's time holds 100,000 answers of 36 s, 1,000 at a time. The server, a process of its own, answers
``--faster`` times as fast, each answer after 0.5 to 1.5 of its mean time; what is left of the hour is real.

The command runs in this process, as ``python -m swe_infer`` runs it, beside a heartbeat in its event loop, see
:mod:`benchmarks.torture.stalls`. Written to standard output: the growth of memory, file handles, tasks and threads
between a tenth and nine tenths of the run; how late beats came in all, and without the time in which the machine gave
the loop no processor; the longest callbacks, collections of garbage, and where the loop was when it was late. Exit
status 0 if all keep to their bounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.torture.stalls import Heartbeat
from tests.support.instances import write_instances

__all__ = ["main"]

_HOUR_S = 3600.0
_MOST_STALL_S = 0.2
_MOST_GROWTH_MB = 60.0
"""Of 100,000 ids, states and offsets, about 300 bytes each, and what an allocator keeps; answers would be 200 MB."""


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    mean_s = _HOUR_S * options.at_once / options.of_an_hour / options.faster
    with tempfile.TemporaryDirectory(prefix="load-", dir=options.scratch) as scratch:
        place = Path(scratch)
        data = write_instances(place / "instances.jsonl", options.instances)
        with _server(mean_s) as url:
            heart, status, wall_s = _run(
                [
                    "model=gpt-4o", f"provider.base_url={url}", "dataset=jsonl", f"dataset.path={data}",
                    f"provider.max_concurrency={options.at_once}", "decoding.max_new_tokens=128",
                    f"output_dir={place / 'run'}", "budget.max_usd=1000000",
                    *(["tracker.mode=offline"] if options.tracked else ["tracker=none"]),
                ]
            )  # fmt: skip
        summary = json.loads((place / "run" / "summary.json").read_text())
    return _report(heart, status, wall_s, summary, options)


def _run(arguments: Sequence[str]) -> tuple[Heartbeat, int, float]:
    """The command in this process; its event loop gets the heartbeat when it is made."""
    from swe_infer.cli.run import main as command

    os.environ["OPENAI_API_KEY"] = "sk-loopback"
    heart = Heartbeat()

    run = asyncio.Runner.run

    def accompanied(runner: asyncio.Runner, main: Coroutine[Any, Any, Any], **options: Any) -> Any:
        loop = runner.get_loop()
        loop.call_soon(lambda: setattr(loop, "heartbeat", loop.create_task(heart.beat())))
        return run(runner, main, **options)

    asyncio.Runner.run = accompanied  # type: ignore[method-assign, assignment]
    sys.argv = ["swe-infer", *arguments]
    begun = time.monotonic()
    try:
        command()
    except SystemExit as end:
        status = int(end.code or 0)
    return heart, status, time.monotonic() - begun


def _report(
    heart: Heartbeat, status: int, wall_s: float, summary: dict[str, Any], options: argparse.Namespace
) -> int:
    end = heart.samples[-1].seconds
    # Tasks and handles are let go as requests run out, so the figures before the last tenth are compared.
    middle = [sample for sample in heart.samples if end / 10 < sample.seconds < 0.9 * end] or heart.samples
    first, last = middle[0], middle[-1]
    late, own = sorted(heart.late_s), heart.own_s()
    figures = {
        "instances": summary["instances"],
        "completed": summary["completed"],
        "wall_s": round(wall_s, 1),
        "provider_s": round(end * options.faster),
        "answers_per_s": round(summary["completed"] / wall_s, 1),
        "processor_s": round(time.process_time(), 1),
        "resident_mb": [round(first.resident_mb, 1), round(last.resident_mb, 1)],
        "file_handles": [first.handles, max(sample.handles for sample in middle)],
        "tasks": [first.tasks, max(sample.tasks for sample in middle)],
        "threads": [first.threads, max(sample.threads for sample in middle)],
        "late_ms": _spread(late),
        "late_by_own_fault_ms": _spread(own),
        "stalls_over_200_ms": [sum(s > _MOST_STALL_S for s in late), sum(s > _MOST_STALL_S for s in own)],
        "collections_ms": _spread(sorted(heart.collections_s)),
        "load": [round(load, 1) for load in os.getloadavg()],
    }
    print(json.dumps(figures))
    print("worst beats:", json.dumps(heart.worst()))
    for _, told in sorted(heart.long_beats, reverse=True)[:5]:
        print("long beat", told)
    print("longest callbacks, processor ms:", dict(heart.callbacks.most_common(8)))
    for place, count in heart.where.most_common(options.places):
        print(f"  late at {count:5} x {place}")
    bounds = {
        "every instance is completed": status == 0 and summary["completed"] == options.instances,
        "memory is flat": last.resident_mb - first.resident_mb < _MOST_GROWTH_MB,
        "file handles are flat": figures["file_handles"][1] <= options.at_once + 100,
        "tasks are flat": figures["tasks"][1] <= 3 * options.at_once + 100,
        "no stall over 200 ms": own[-1] <= _MOST_STALL_S,
    }
    for bound, held in bounds.items():
        print(f"{'ok   ' if held else 'WRONG'} {bound}")
    return int(not all(bounds.values()))


def _spread(ordered: Sequence[float]) -> dict[str, float]:
    """Median, 99th and 99.9th percentile and the most, in milliseconds."""
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "most": 1.0}
    return {name: round(1e3 * ordered[int(share * (len(ordered) - 1))], 1) for name, share in shares.items()}


@contextmanager
def _server(mean_s: float) -> Iterator[str]:
    latency = f"{0.5 * mean_s}-{1.5 * mean_s}"
    command = [sys.executable, "-m", "tests.support.api_server", "--latency", latency, "--no-bodies"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.terminate()
        process.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=1_000)
    parser.add_argument(
        "--of-an-hour", type=int, default=100_000, help="so many answers the provider gives in an hour"
    )
    parser.add_argument("--faster", type=float, default=5.0, help="than the provider's hour")
    parser.add_argument("--tracked", action="store_true", help="log to W&B, offline")
    parser.add_argument("--places", type=int, default=12, help="lines on where the loop was when it was late")
    parser.add_argument("--scratch", type=Path)
    return parser
