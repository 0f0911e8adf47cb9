"""The group ``evaluation``: a run evaluates its patches at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.evaluate.harness import read_report
from swe_infer.evaluate.run_end import Command
from tests.evaluate.runs import sample_rows, verdict_lines
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "a-secret-of-the-environment"
SCORER = """\
import json, os, sys
predictions, report, sample = sys.argv[1:]
ids = sorted(json.loads(line)["instance_id"] for line in open(predictions))
print(os.environ["JUDGE_API_KEY"], file=sys.stderr)
with open(report, "w") as file:
    json.dump({name: (number + int(sample)) % 2 == 0 for number, name in enumerate(ids)}, file)
"""

SOLVED = """\
import json, sys
for line in sys.stdin:
    print(json.dumps({"instance_id": json.loads(line)["instance_id"], "resolved": True}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as started:
        yield started


class Runs:
    """Runs of one model over three instances in ``directory``."""

    def __init__(self, server: ApiServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.run_directory = directory / "run"
        self.scorer = directory / "score.py"
        self.scorer.write_text(SCORER)
        data = write_instances(directory / "instances.jsonl", 3)
        self.base = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={data}",
            "output_dir=run",
        ]  # fmt: skip

    def run(self, *arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        environment |= {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test", "JUDGE_API_KEY": SECRET}
        return commands.run("swe_infer", *flags, *self.base, *arguments, cwd=self.directory, env=environment)

    @property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_directory / "summary.json").read_text())
        return found

    @property
    def asked(self) -> int:
        return len(self.server.log.asked())

    def list_command(self) -> str:
        return f'evaluation.command=[{sys.executable},{self.scorer},"{{predictions}}","{{report}}","{{sample}}"]'


@pytest.fixture
def runs(server: ApiServer, tmp_path: Path) -> Runs:
    return Runs(server, tmp_path)


def test_a_command_evaluates_each_sample_and_its_verdicts_are_in_the_run_and_in_w_and_b(runs: Runs) -> None:
    result = runs.run("decoding=sample", "decoding.n=2", "evaluation=command", runs.list_command())
    assert result.returncode == 0, result.stderr
    assert "resolved   3 of 6 (50.0%); pass@2 3 of 3" in result.stderr
    verdicts = verdict_lines(runs.run_directory)
    assert sorted(verdict["resolved"] for verdict in verdicts.values()) == [False] * 3 + [True] * 3
    summary = runs.summary
    assert summary["evaluated_by"].startswith("command:")
    assert {verdict["source"] for verdict in verdicts.values()} == {summary["evaluated_by"]}
    assert (summary["resolved_rate"], summary["pass_at_k"]) == (0.5, 1.0)
    assert summary["cost_per_resolved_usd"] == pytest.approx(summary["cost_usd"] / 3)
    (tracked,) = read_offline_runs(runs.run_directory)
    assert tracked.summary["resolved_rate"] == 0.5
    for path in runs.run_directory.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert "***" in (runs.run_directory / "evaluation" / "command.sample0.log").read_text()

    asked = runs.asked
    runs.run("decoding=sample", "decoding.n=2", "evaluation=command", runs.list_command())
    assert len(read_offline_runs(runs.run_directory)) == 1, "a finished evaluation is not repeated"
    (runs.directory / "all.py").write_text(SOLVED)
    shell = f'evaluation.command="{sys.executable} all.py <{{predictions}}"'
    again = runs.run("decoding=sample", "decoding.n=2", "evaluation=command", shell)
    assert (again.returncode, runs.summary["resolved"]) == (0, 6), again.stderr
    assert read_offline_runs(runs.run_directory)[-1].summary["resolved_rate"] == 1.0
    assert runs.asked == asked, "evaluations send no request"


def test_a_failed_evaluation_is_one_line_and_costs_no_answer(runs: Runs) -> None:
    failing = runs.run("tracker=none", "evaluation=command", 'evaluation.command="echo no >&2; exit 7 # {run_dir}"')
    asked = runs.asked
    (line,) = [line for line in failing.stderr.splitlines() if "not evaluated" in line]
    assert "evaluation.command ended with status 7; see " in line
    assert failing.returncode == 0
    assert (runs.summary["completed"], "resolved" in runs.summary) == (3, False)

    slow = runs.run(
        "tracker=none", "evaluation=command", "evaluation.timeout_s=0.2", 'evaluation.command="sleep 600 # {run_dir}"'
    )
    assert "evaluation.command did not end in 0.2 s" in slow.stderr
    assert slow.returncode == 0
    works = runs.run("tracker=none", "evaluation=command", runs.list_command())
    assert (works.returncode, runs.summary["resolved"]) == (0, 2), works.stderr
    assert runs.asked == asked


def test_an_evaluation_that_cannot_run_is_one_line_before_anything_is_paid_for(runs: Runs) -> None:
    asked = runs.asked
    absent = "evaluation=harness: the official harness" if find_spec("swebench") is None else ""
    for arguments, message in (
        (["evaluation=harness", "evaluation.dataset=SWE-bench/SWE-bench_Lite"], absent),
        (["evaluation=harness"], "evaluation.dataset: the harness does not know instances"),
        (["evaluation=own_tests"], "evaluation=own_tests: instances contains no tests"),
        (["evaluation=command"], "evaluation.command is missing"),
        (["evaluation=command", "evaluation.command=[absent-program,'{run_dir}']"], "there is no program absent-pro"),
        (["evaluation=command", "evaluation.command=[python,score.py]"], "mentions neither {predictions} nor"),
    ):
        result = runs.run("tracker=none", *arguments)
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        (line,) = result.stderr.splitlines()
        assert message in line
    assert runs.asked == asked


def test_own_tests_of_a_file_run_if_the_user_chooses_them(runs: Runs, sandbox: None) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in sample_rows()[:2])
    (runs.directory / "tested.jsonl").write_text(rows)
    result = runs.run("tracker=none", "dataset.path=tested.jsonl", "evaluation=own_tests")
    assert result.returncode == 0, result.stderr
    assert (runs.summary["evaluated"], runs.summary["evaluated_by"]) == (2, "own_tests")


def test_the_evaluation_is_not_part_of_the_identity_and_decides_the_default_objective(runs: Runs) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    search = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "decoding.max_new_tokens=8,16")
    runs.base[-1] = "tracker=none"
    result = runs.run(*search, "evaluation=command", runs.list_command(), flags=("-m",))
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("best (2 tie): decoding.max_new_tokens=") == 2
    assert "(resolved_rate=0.666667)" in result.stderr
    asked = runs.asked
    plain = runs.run(*search, flags=("-m",))
    assert "(apply_rate=" in plain.stderr
    assert runs.asked == asked


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"a": true, "b": false}', {"a": True, "b": False}),
        ('{"instance_id": "a", "resolved": true}', {"a": True}),
        ('{"instance_id": "a", "resolved": true}\n{"instance_id": "b", "resolved": true, "sample": 1}', {"a": True}),
        ('[{"instance_id": "a", "resolved": false, "reason": "two\\nlines"}]', {"a": False}),
    ],
)
def test_other_programs_report_in_simple_formats(content: str, found: dict[str, bool], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(content)
    findings = read_report(report)
    assert {name: resolved for name, (resolved, _) in findings.items()} == found
    assert all(reason is None or "\n" not in reason for _, reason in findings.values())


@pytest.mark.parametrize(
    "content", ['{"a": 1}', '{"instance_id": "a"}', '{"instance_id": "a", "resolved": 1}\n{}', "{}\nno", "true"]
)
def test_lines_that_are_no_verdicts_are_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(ConfigError, match=r"report\.json: not"):
        read_report(tmp_path / "report.json")


def test_a_command_without_predictions_or_time_is_refused() -> None:
    for options in ({"command": ""}, {"command": ()}, {"command": "x {report}"}, {"command": "x ${run_dir}"}):
        with pytest.raises(ConfigError, match=r"evaluation\.command"):
            Command(**options)
    with pytest.raises(ConfigError, match=r"evaluation\.timeout_s=0"):
        Command(command="x {predictions}", timeout_s=0)
