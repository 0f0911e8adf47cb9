"""Time from the start of a process to the first token: a run of one instance that generates one token.

    python -m benchmarks.engine_start MODEL_DIR [--rounds 3]

Prints medians of wall and CPU seconds of the whole command. The prompt is the first bundled one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def one_start(model: Path, scratch: Path) -> tuple[float, float]:
    """Wall and processor seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "swe_infer", "model=llama", f"model.path={model}", "dataset=jsonl"),
            *(f"dataset.path={ROOT / 'swe_infer' / 'sample' / 'instances.jsonl'}", "dataset.limit=1"),
            *("tracker=none", "decoding.max_new_tokens=1", f"output_dir={scratch / str(started)}"),
        ],
        cwd=scratch,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        seen = [one_start(args.model.resolve(), Path(scratch)) for _ in range(args.rounds)]
    wall, processor = (statistics.median(column) for column in zip(*seen, strict=True))
    print(f"to the first token: {wall:.1f} s, {processor:.1f} s of processor time (medians of {args.rounds})")


if __name__ == "__main__":
    main()
