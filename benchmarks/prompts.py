"""Rows per second of ``swe-infer-prompts`` from local clones, with its processor time and peak memory.

The rows are repeated under other ids until there are ``--rows`` of them. With ``--spread`` each repetition has
another base commit, from the history before the row's own: the cost of a context that reads whole repositories
depends on how many files differ between commits. The user's cache is not used. Nothing is fetched.

    python -m benchmarks.prompts ROWS.jsonl CLONES
    python -m benchmarks.prompts ROWS.jsonl CLONES --rows 500 prompt=search_replace model=gpt-4o
    python -m benchmarks.prompts ROWS.jsonl CLONES --spread context=bm25 model=gpt-4o
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
from typing import Any

_HISTORY = 3000
"""First-parent commits before a row's own over which ``--spread`` distributes its repetitions."""


def repeated(rows: Path, count: int, out: Path, clones: Path | None) -> None:
    """Writes ``count`` rows, each row several times with other ids, sorted by repository.

    Args:
        clones: each repetition has another base commit of these clones; rows without a clone are left out. None:
            every repetition has the row's own.
    """
    with rows.open("rb") as file:
        originals = [json.loads(line) for line in file if line.strip()]
    histories = [[row["base_commit"]] if clones is None else history(clones, row) for row in originals]
    pairs = [(row, commits) for row, commits in zip(originals, histories, strict=True) if commits]
    made = []
    for number in range(count):
        row, commits = pairs[number % len(pairs)]
        repetition, repetitions = number // len(pairs), -(-count // len(pairs))
        commit = commits[len(commits) * repetition // repetitions]
        made.append({**row, "instance_id": f"{row['instance_id']}-{number}", "base_commit": commit})
    with out.open("w") as target:
        for row in sorted(made, key=lambda row: str(row["repo"])):
            target.write(json.dumps(row) + "\n")


def history(clones: Path, row: dict[str, Any]) -> list[str]:
    """The commits before a row's own, newest first; empty without a clone."""
    names = [row["repo"].replace("/", joint) for joint in ("/", "__", "-", "+")]
    places = [clones / name / inner for name in names for inner in ("", "repo", ".git")]
    place = next((place for place in places if (place / "objects").is_dir()), None)
    if place is None:
        return []
    command = ["git", "-C", place, "rev-list", "--first-parent", f"--max-count={_HISTORY}", row["base_commit"]]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON lines with repo, base_commit, patch and problem_statement")
    parser.add_argument("clones", type=Path, help="a folder of clones, as for context.repositories")
    parser.add_argument("--rows", dest="count", type=int, default=2294, help="rows to render (default: 2294)")
    parser.add_argument("--spread", action="store_true", help="each repetition of a row has an earlier base commit")
    parser.add_argument("overrides", nargs="*", help="overrides of swe-infer-prompts")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        repeated(options.rows, options.count, rows, options.clones if options.spread else None)
        command = [sys.executable, "-m", "swe_infer.prompts", "dataset=jsonl", f"dataset.path={rows}"]
        command += ["context=oracle", "prompt=style3", "context.offline=true"]
        command += [f"context.repositories={options.clones.absolute()}", *options.overrides]
        started = time.monotonic()
        process = subprocess.Popen(
            [*command, "--out", f"{folder}/prompts.jsonl"],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall, cpu = time.monotonic() - started, usage.ru_utime + usage.ru_stime
        if status:
            sys.exit(f"swe-infer-prompts ended with status {os.waitstatus_to_exitcode(status)}")
        with open(f"{folder}/prompts.jsonl", "rb") as file:
            written = sum(1 for _ in file)
        cached = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*.sqlite"))
    print(
        f"{written:,} of {options.count:,} rows in {wall:.1f} s: {1000 * wall / written:.1f} ms of wall time and "
        f"{1000 * cpu / written:.1f} ms of processor time a row, peak memory {usage.ru_maxrss >> 10:,} MiB, "
        f"cached term counts {cached >> 20:,} MiB"
    )


if __name__ == "__main__":
    main()
