"""The end of a run whose dataset contains tests: they run by default, and the closing table has the result."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from swe_infer.evaluate.command import run as evaluate
from tests.evaluate.runs import verdict_lines
from tests.support import commands
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent
INSTANCES, SAMPLES = 3, 2

pytestmark = pytest.mark.usefixtures("sandbox")


def run(directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run of the bundled model on a few of the bundled instances."""
    arguments = [
        f"dataset.limit={INSTANCES}", "decoding=sample", f"decoding.n={SAMPLES}",
        "decoding.seed=1", "decoding.temperature=0.2", "runner.kv_cache_gb=0.1", f"output_dir={directory}",
        *overrides,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = commands.run("swe_infer", *arguments, cwd=Path.cwd(), env=environment, packages=commands.LOCAL)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(directory)
    return result


def summary(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    directory = tmp_path_factory.mktemp("end") / "run"
    return directory, run(directory).stderr


def test_the_tests_are_run_and_the_closing_table_says_what_is_resolved(tested: tuple[Path, str]) -> None:
    directory, told = tested
    verdicts, figures = verdict_lines(directory), summary(directory)
    assert len(verdicts) == INSTANCES * SAMPLES == figures["evaluated"]
    resolved = [key for key, verdict in verdicts.items() if verdict["resolved"]]
    by_any = len({instance for instance, _ in resolved})
    assert figures["resolved"] == len(resolved)
    assert figures["resolved_by_any"] == by_any
    share = f"{len(resolved)} of 6 ({len(resolved) / 6:.1%}); pass@2 {by_any} of 3"
    assert f"  resolved   {share}\n" in told
    assert f"  view       swe-infer-compare {directory} --html page.html\n" in told


def test_they_agree_with_a_later_evaluation(tested: tuple[Path, str]) -> None:
    directory, _ = tested
    verdicts, figures = verdict_lines(directory), summary(directory)
    assert evaluate([str(directory)]) == 0
    assert verdict_lines(directory) == verdicts
    assert summary(directory) == figures


def test_the_tracker_gets_the_verdicts(tested: tuple[Path, str]) -> None:
    tracked = read_offline_runs(tested[0])[0]
    assert tracked.summary["resolved"] == summary(tested[0])["resolved"]
    assert tracked.summary["resolved_rate"] == pytest.approx(summary(tested[0])["resolved_rate"])


def test_a_finished_run_shows_them_again(tested: tuple[Path, str]) -> None:
    directory, told = tested
    again = run(directory).stderr
    line = next(line for line in told.splitlines() if line.startswith("  resolved"))
    assert line in again.splitlines()


def test_a_run_that_ended_before_its_tests_runs_them_when_resumed(tested: tuple[Path, str]) -> None:
    directory, _ = tested
    known = summary(directory)
    (directory / "evaluation.jsonl").unlink()
    (directory / "summary.json").write_text(
        json.dumps({k: v for k, v in known.items() if not k.startswith(("resolved", "evaluated"))})
    )
    again = run(directory, "tracker=none").stderr
    assert "  resolved   " in again
    assert summary(directory)["resolved"] == known["resolved"]
    assert len(verdict_lines(directory)) == INSTANCES * SAMPLES


def test_they_can_be_left_out(tmp_path: Path) -> None:
    told = run(tmp_path / "run", "dataset.run_tests=false", "tracker=none").stderr
    assert "resolved" not in told
    assert "resolved" not in summary(tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation.jsonl").exists()
