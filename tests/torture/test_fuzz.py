"""The short form of ``benchmarks.torture fuzz``, in its own process: the command changes logging and limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_absurd_inputs_end_in_one_line_or_a_skip(tmp_path: Path) -> None:
    kinds = ["overrides", "datasets", "records", "answers"]
    command = [sys.executable, "-m", "benchmarks.torture", "fuzz", "--only", *kinds, "--examples", "10"]
    result = subprocess.run(
        [*command, "--scratch", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.splitlines()[-1].split()[0] == "all"
