"""The scripts in ``examples/`` do what their comments say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import commands
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
@pytest.mark.full
def test_the_sweep_has_a_run_for_each_temperature(tmp_path: Path) -> None:
    result = example("sweep.sh", "dataset.limit=2", "dataset.run_tests=false", "tracker=none", cwd=tmp_path)
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

        def forked(argument: str, key: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "PYTHONPATH": f"{EXAMPLES}{os.pathsep}{ROOT}", "GATEWAY_API_KEY": key}
            return commands.run(
                "swe_infer", "--config-dir", str(EXAMPLES / "conf"), "tracker=none", "model=api",
                "model.name=my-model", "model.pricing=unknown", "provider=gateway", argument,
                cwd=tmp_path, env=environment,
            )  # fmt: skip

        mistyped = forked("provider.taem=b", "k")
        assert mistyped.returncode == 2
        assert "provider.team" in mistyped.stderr
        keyless = forked(f"provider.base_url={server.openai_url}", "")
        assert keyless.returncode == 2
        assert "GATEWAY_API_KEY" in keyless.stderr
        assert len(server.log.asked()) == 5, "neither mistake sends a request"


@pytest.mark.slow
def test_classes_outside_the_package_answer_a_run(tmp_path: Path) -> None:
    """In a folder of the user's own, by --config-dir, by hydra.searchpath, and from Python."""
    folder = tmp_path / "plugin"
    shutil.copytree(EXAMPLES / "plugin", folder)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}

    def swe_infer(*arguments: str, module: str = "swe_infer", path: str = "") -> subprocess.CompletedProcess[str]:
        every = ("experiment=my_plugin", "tracker=none", *arguments)
        env = environment if not path else {**environment, "PYTHONPATH": path}
        return commands.run(module, *every, cwd=tmp_path, env=env)

    first = swe_infer("--config-dir", "plugin", "output_dir=run")
    assert first.returncode == 0, first.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["patches"], summary["selection"]) == ({"applies": 6}, "last_that_applies")
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [1, 1, 1]
    again = swe_infer(f"hydra.searchpath=[file://{folder}]", "output_dir=run", "context.most=4")
    assert again.returncode == 2
    assert "another configuration (context.most: 5 → 4)" in again.stderr
    assert again.stderr.endswith("or continue the recorded run with context.most=5\n")
    mistyped = swe_infer("--config-dir", "plugin", "prompt.greting=Hello")
    assert mistyped.stderr == (
        "error: prompt.greting: unknown key; a key that the file does not list is added with +prompt.greting=VALUE\n"
    )
    code = (
        "import swe_infer as si; r = si.run(['experiment=my_plugin', 'tracker=none'], config_dir='plugin');"
        "print(r.exit_status, r.summary['completed'])"
    )
    called = commands.run("-c", code, cwd=tmp_path, env=environment)
    assert called.stdout == "0 6\n", called.stderr

    missing = swe_infer("--config-dir", "plugin", path=str(ROOT))
    assert missing.returncode == 2
    assert missing.stderr == (
        "error: provider._target_=my_plugin.SpellingProvider: cannot be imported, as there is no module my_plugin: "
        "add its folder to PYTHONPATH, or install its package\n"
    )
    shutil.copy(folder / "my_plugin.py", tmp_path)
    script = (
        "import os, sys; sys.path.remove(os.getcwd()); from swe_infer.__main__ import main; main()"  # as swe-infer
    )
    here = commands.run(
        "-c", script, "--config-dir", "plugin", "experiment=my_plugin", cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert here.returncode == 2
    assert "add its folder to PYTHONPATH (PYTHONPATH=. for this folder), or install" in here.stderr
