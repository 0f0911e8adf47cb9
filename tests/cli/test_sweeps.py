"""Sweeps from the command line: one run per job, failed jobs, resuming."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent.parent


def sweep(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", "-m", "tracker=none", *arguments, cwd=cwd, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}


def test_each_job_is_a_run_and_a_failed_one_does_not_stop_the_others(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 4)
    with ApiServer() as server:
        arguments = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={data}",
            "decoding=sample", "decoding.temperature=0.2,7,0.8", "decoding.top_p=0.9",
        ]  # fmt: skip
        result = sweep(*arguments, cwd=tmp_path)
        assert result.returncode == 2, result.stderr
        runs = [Path(line) for line in result.stdout.splitlines() if (tmp_path / line / "summary.json").exists()]
        assert len(set(runs)) == 2
        for run in runs:
            assert json.loads((tmp_path / run / "summary.json").read_text())["completed"] == 4
        assert "decoding.temperature=7" in result.stderr
        assert len(server.log.asked()) == 8

        again = sweep(*arguments, cwd=tmp_path)
        assert again.returncode == 2
        assert len(server.log.asked()) == 8, "what is finished is not asked again"


def test_one_cap_over_all_runs_of_a_sweep(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 8, lines=200)
    with ApiServer() as server:
        arguments = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={data}",
            "decoding.temperature=0,1", "decoding.max_new_tokens=128",
        ]  # fmt: skip
        result = sweep(*arguments, "budget.sweep_max_usd=0.02", cwd=tmp_path)
        assert result.returncode == 3, result.stderr
        assert 0 < server.log.cost_usd() <= 0.02
        assert sweep(*arguments, "budget.sweep_max_usd=0.02", cwd=tmp_path).returncode == 3
        assert server.log.cost_usd() <= 0.02, "the ledger outlives the process"
        assert sweep(*arguments, "budget.sweep_max_usd=50", cwd=tmp_path).returncode == 0
        assert set(server.log.answers_by_prompt().values()) == {2}


def test_a_dry_run_sends_and_writes_nothing_and_a_sweep_sums_estimates(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 6)
    with ApiServer() as server:
        arguments = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={data}",
            "dry_run=true", "decoding.n=1,2", f"output_dir={tmp_path / 'sweep'}",
        ]  # fmt: skip
        result = sweep(*arguments, cwd=tmp_path)
        assert server.log.asked() == []
    assert result.returncode == 0, result.stderr
    total = result.stdout[result.stdout.index("all 2 points") :]
    assert "requests   12 for 12 instances" in total, "two samples of a prompt are one request"
    assert not list((tmp_path / "sweep").glob("*/records.jsonl"))
