"""The short form of ``benchmarks.torture fuzz``, in its own process: the command changes logging and limits."""

from __future__ import annotations

import os
from pathlib import Path

from tests.support import commands

ROOT = Path(__file__).resolve().parents[2]


def test_absurd_inputs_end_in_one_line_or_a_skip(tmp_path: Path) -> None:
    kinds = ["overrides", "datasets", "records", "answers"]
    result = commands.run(
        "benchmarks.torture", "fuzz", "--only", *kinds, "--examples", "10", "--scratch", str(tmp_path),
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1].split()[0] == "all"
