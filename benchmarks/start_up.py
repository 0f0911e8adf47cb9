"""CPU seconds of commands that should respond at once: help, completion, errors, and a finished run.

    python -m benchmarks.start_up [--rounds 5]

Prints the median and the minimum of each. The minimum is closest to an idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FINISHED = ("dataset.limit=2", "output_dir=run")
COMMANDS: Sequence[tuple[str, Sequence[str]]] = (
    ("version", ("--version",)),
    ("help", ("--help",)),
    ("help of a group", ("--help", "provider")),
    ("completion of an option", ("-sc", "query=bash")),
    ("completion of a value", ("-sc", "query=bash", "provider.mode=")),
    ("unknown option", ("model=nope",)),
    ("unknown key", ("model.nope=1",)),
    ("wrong type", ("decoding.temperature=warm",)),
    ("wrong type, API", ("model=gpt-4o", "runner.retry.tries=many")),
    ("missing key", ("dataset=jsonl",)),
    ("unknown key, sweep", ("-m", "decoding.nope=1,2")),
    ("nothing is left to do", (*FINISHED, "tracker=none")),
    ("the same, tracked", (*FINISHED, "tracker=wandb", "tracker.mode=offline")),
)


def processor_s(arguments: Sequence[str], scratch: Path) -> float:
    """CPU seconds of ``python -m swe_infer`` with ``arguments``, in user and kernel mode."""
    line = "swe-infer mod"
    if arguments[0] == "-sc" and len(arguments) > 2:
        line = f"swe-infer {arguments[2]}"
        arguments = arguments[:2]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "swe_infer", *arguments],
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": line},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        processor_s((*FINISHED, "tracker=none"), place)  # the run that is finished later
        print(f"{'':24}  median s  smallest s")
        for name, arguments in COMMANDS:
            found = [processor_s(arguments, place) for _ in range(options.rounds)]
            print(f"{name:24}  {statistics.median(found):8.2f}  {min(found):10.2f}", flush=True)


if __name__ == "__main__":
    main()
