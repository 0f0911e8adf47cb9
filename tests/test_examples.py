"""The scripts in ``examples/`` do what their comments say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def example(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script with this interpreter as its ``python``."""
    return subprocess.run(
        ["bash", str(EXAMPLES / script), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_the_sweep_has_a_run_for_each_temperature(tmp_path: Path) -> None:
    result = example("sweep.sh", "dataset.limit=2", "dataset.run_tests=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    summaries = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/summary.json")]
    assert [summary["completed"] for summary in summaries] == [4, 4]
    assert len(list((tmp_path / "outputs" / "sweeps").glob("*/comparison.html"))) == 1


@pytest.mark.slow
@pytest.mark.full
def test_the_comparison_shows_both_runs(tmp_path: Path) -> None:
    result = example("compare.sh", "dataset.limit=2", "dataset.run_tests=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(json.loads((tmp_path / "comparison.json").read_text())["runs"]) == 2
    assert (tmp_path / "comparison.html").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.full
def test_a_template_is_compared_with_a_form_of_swe_bench(tmp_path: Path) -> None:
    result = example("own_prompt.sh", "dataset.limit=2", "dataset.run_tests=false", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    compared = json.loads((tmp_path / "comparison.json").read_text())
    assert {"prompt.template", "rules.prompt"} <= set(compared["differing_keys"])
    assert [run["statuses"] for run in compared["runs"]] == [{"completed": 2}] * 2


@pytest.mark.slow
def test_a_provider_outside_the_package_gets_retries_and_key_checks(tmp_path: Path) -> None:
    with ApiServer(api_key="sk-gateway") as server:
        server.script("rate_limit", "server_error")
        result = example(
            "own_provider.sh", server.openai_url, "dataset.limit=3", "output_dir=run", "dataset.run_tests=false",
            cwd=tmp_path, GATEWAY_API_KEY="sk-gateway",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert len(server.log.asked()) == 5, "both failures are tried again"
        assert {exchange.headers["x-team"] for exchange in server.log.asked()} == {"research"}
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["completed"] == 3

        mistyped = example("own_provider.sh", server.openai_url, "provider.taem=b", cwd=tmp_path, GATEWAY_API_KEY="k")
        assert mistyped.returncode == 2
        assert "provider.team" in mistyped.stderr
        keyless = example("own_provider.sh", server.openai_url, cwd=tmp_path, GATEWAY_API_KEY="")
        assert keyless.returncode == 2
        assert "GATEWAY_API_KEY" in keyless.stderr
        assert len(server.log.asked()) == 5, "neither mistake sends a request"
