"""Rows per second of ``swe-infer-prompts`` from local clones, with its processor time and peak memory.

The rows are repeated under other ids until there are ``--rows`` of them. Nothing is fetched.

    python -m benchmarks.prompts ROWS.jsonl CLONES
    python -m benchmarks.prompts ROWS.jsonl CLONES --rows 500 prompt=search_replace model=gpt-4o
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def repeated(rows: Path, count: int, out: Path) -> None:
    """Writes ``count`` rows, the same ones again and again, each with its own ``instance_id``."""
    with rows.open("rb") as file:
        lines = [line for line in file if line.strip()]
    with out.open("w") as target:
        for number in range(count):
            row = json.loads(lines[number % len(lines)])
            target.write(json.dumps({**row, "instance_id": f"{row['instance_id']}-{number}"}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines with repo, base_commit, patch and problem_statement")
    parser.add_argument("clones", type=Path, help="a folder of clones, as for context.repositories")
    parser.add_argument("--rows", dest="count", type=int, default=2294, help="rows to render (default: 2294)")
    parser.add_argument("overrides", nargs="*", help="overrides of swe-infer-prompts")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        repeated(options.rows, options.count, rows)
        command = [sys.executable, "-m", "swe_infer.prompts", "dataset=jsonl", f"dataset.path={rows}"]
        command += ["context=oracle", "prompt=style3", "context.offline=true"]
        command += [f"context.repositories={options.clones.absolute()}", *options.overrides]
        started = time.monotonic()
        process = subprocess.Popen([*command, "--out", f"{folder}/prompts.jsonl"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        if status:
            sys.exit(f"swe-infer-prompts ended with status {os.waitstatus_to_exitcode(status)}")
        with open(f"{folder}/prompts.jsonl", "rb") as file:
            written = sum(1 for _ in file)
    print(
        f"{written:,} of {options.count:,} rows in {wall:.1f} s: {1000 * wall / written:.1f} ms of wall time and "
        f"{1000 * cpu / written:.1f} ms of processor time a row, peak memory {usage.ru_maxrss >> 10:,} MiB"
    )


if __name__ == "__main__":
    main()
