"""Parts of the benchmarks that can go wrong where nobody watches."""

from __future__ import annotations

import subprocess
import sys
from array import array
from pathlib import Path

import pytest

from benchmarks.engine_llama_cpp import lookup

ROOT = Path(__file__).parent.parent


def test_llama_cpp_drafts_what_followed_the_last_earlier_occurrence() -> None:
    assert lookup(array("i", [9, 1, 2, 3, 4, 5, 1, 2, 6, 7, 1, 2]), 2, 8) == [6, 7, 1]
    assert lookup(array("i", [9, 1, 2, 3, 4, 5, 1, 2, 6, 7, 1, 2]), 2, 2) == [6, 7]
    assert lookup(array("i", [9, 1, 2, 3, 4, 5, 6, 7, 8]), 2, 8) == []
    assert lookup(array("i", [9, 8, 1, 1, 1, 1]), 1, 4) == [1]
    # the bytes of 1 << 16 also occur across two tokens of 1 << 24
    assert lookup(array("i", [9, 1 << 24, 1 << 24, 7, 7, 7, 7, 7, 1 << 16]), 1, 4) == []


def test_a_part_on_a_gpu_that_hangs_is_ended_with_its_processes() -> None:
    from benchmarks.gpu_table import run

    lines: list[str] = []
    assert run(["sh", "-c", "echo begun; sleep 600 & wait"], 5, lines.append) == -9
    assert lines == ["begun\n"]
    assert run(["sh", "-c", "echo next; exit 3"], 60, lines.append) == 3
    assert lines == ["begun\n", "next\n"]


@pytest.mark.full
def test_all_parts_on_a_gpu_can_be_tried_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_table", "--out", str(tmp_path / "table"), "--seconds", "1500"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1600)
    table = (tmp_path / "table").read_text()
    assert done.returncode == 0, table
    for figure in ("prefill", "decode", "work", "drafting", "peer"):
        assert f'"figure": "{figure}"' in table


def test_instances_of_the_drafting_benchmarks_are_checked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "patch": "b"}\n{"text": "a"}\n')
    command = [sys.executable, "-m", "benchmarks.drafting", str(tmp_path / "rows.jsonl")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path}/rows.jsonl, line 2: not a JSON object with text and patch\n"
