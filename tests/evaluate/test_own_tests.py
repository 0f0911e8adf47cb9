"""Datasets with their own tests: reference patches resolve, others do not, and the sandbox holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from swe_infer.compare.loading import load_run
from swe_infer.evaluate.command import run as evaluate
from swe_infer.run_directory.store import RunStore
from swe_infer.tracking.wandb import WandbTracker
from tests.evaluate.runs import GENERATED_NAME, SAMPLE, make_run, sample_rows, verdict_lines
from tests.support.wandb_files import read_offline_runs
from tests.tracking.scripted import info

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sandbox")]  # each starts the tests of its instances

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS = sample_rows()


def rewritten(row: dict[str, Any], code: str) -> str:
    """A patch that prepends ``code`` to the instance's file."""
    (path,) = row["files"]
    lines = code.splitlines()
    added = "".join(f"+{line}\n" for line in lines)
    first = row["files"][path].splitlines()[0]
    return f"--- a/{path}\n+++ b/{path}\n@@ -1 +1,{len(lines) + 1} @@\n{added} {first}\n"


def test_every_gold_patch_of_the_bundled_sample_resolves_its_instance(tmp_path: Path) -> None:
    run = make_run(tmp_path, {row["instance_id"]: row["patch"] for row in ROWS}, SAMPLE)
    assert evaluate([str(run)]) == 0
    verdicts = verdict_lines(run)
    assert len(verdicts) == len(ROWS) >= 8
    assert [v for v in verdicts.values() if not v["resolved"]] == []
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["resolved"], summary["evaluated"], summary["resolved_rate"]) == (len(ROWS), len(ROWS), 1.0)
    assert summary["completed"] == len(ROWS)  # the run's own figures are kept


def test_patches_that_are_wrong_missing_or_harmful_do_not_resolve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    harmful = {
        "greedy": "x = [0] * 10**10",
        "early": "import os\nos._exit(0)",
        "network": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "shell": f"import os\nos.system('touch {canary}')",
    }
    names = [*harmful, "untouched", "empty", "misfit", "escape", "gold"]
    rows = dict(zip(names, ROWS, strict=False))
    patches: dict[str, str | None] = {
        rows[name]["instance_id"]: rewritten(rows[name], code) for name, code in harmful.items()
    }
    patches[rows["untouched"]["instance_id"]] = rewritten(rows["untouched"], "# nothing changes")
    patches[rows["empty"]["instance_id"]] = ""
    patches[rows["misfit"]["instance_id"]] = "--- a/no.py\n+++ b/no.py\n@@ -1 +1 @@\n-a\n+b\n"
    patches[rows["escape"]["instance_id"]] = f"--- /dev/null\n+++ b/../{canary.name}\n@@ -0,0 +1 @@\n+x\n"
    patches[rows["gold"]["instance_id"]] = rows["gold"]["patch"]
    patches["never-answered"] = None
    run = make_run(tmp_path / "run", patches, SAMPLE)
    assert evaluate([str(run)]) == 0
    verdicts = verdict_lines(run)
    resolved = {instance_id for (instance_id, _), v in verdicts.items() if v["resolved"]}
    assert resolved == {rows["gold"]["instance_id"]}
    reasons = {name: verdicts[rows[name]["instance_id"], 0]["reason"] for name in names}
    assert reasons["empty"] == "no patch"
    assert "MemoryError" in reasons["greedy"]
    assert "refused" in reasons["network"]
    assert "AssertionError" in reasons["untouched"]
    assert "AssertionError" in reasons["shell"]  # it ran without access
    assert all(reason and "\n" not in reason for name, reason in reasons.items() if name != "gold")
    assert not canary.exists()
    assert ("never-answered", 0) not in verdicts  # not answered yet, but part of the rate
    assert f"{run}: resolved 1 of 10 (10.0%), evaluated 9" in capsys.readouterr().out


def test_a_test_that_never_ends_is_ended(tmp_path: Path) -> None:
    run = make_run(tmp_path, {ROWS[0]["instance_id"]: rewritten(ROWS[0], "import time\ntime.sleep(600)")}, SAMPLE)
    assert evaluate([str(run), "--timeout", "2"]) == 0
    (verdict,) = verdict_lines(run).values()
    assert "2 s" in verdict["reason"] or "signal" in verdict["reason"]


def test_samples_are_evaluated_each_for_itself(tmp_path: Path) -> None:
    row = ROWS[0]
    run = make_run(tmp_path, {row["instance_id"]: ""}, SAMPLE, more_samples=({row["instance_id"]: row["patch"]},))
    assert evaluate([str(run)]) == 0
    verdicts = verdict_lines(run)
    assert [verdicts[row["instance_id"], sample]["resolved"] for sample in (0, 1)] == [False, True]
    assert json.loads((run / "summary.json").read_text(encoding="utf-8"))["resolved_rate"] == 0.5


def test_the_tests_of_a_file_run_only_where_it_is_named_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**row, "instance_id": f"mine-{number}"} for number, row in enumerate(ROWS[:3])]
    file = tmp_path / "tasks.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": str(file)}
    run = make_run(tmp_path / "run", {row["instance_id"]: row["patch"] for row in rows}, dataset)
    assert evaluate([str(run)]) == 2
    assert "official harness" in capsys.readouterr().err
    assert evaluate([str(run), "--dataset", str(file)]) == 0
    assert [v["resolved"] for v in verdict_lines(run).values()] == [True, True, True]


def test_the_comparison_reads_the_verdicts(tmp_path: Path) -> None:
    good, bad = ROWS[:2]
    run = make_run(tmp_path, {good["instance_id"]: good["patch"], bad["instance_id"]: ""}, SAMPLE)
    assert evaluate([str(run)]) == 0
    loaded = load_run(run)
    assert loaded.evaluated
    assert loaded.results[good["instance_id"], 0].resolved is True
    assert loaded.results[bad["instance_id"], 0].resolved is False


def test_verdicts_reach_the_same_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    good, bad = ROWS[:2]
    run = make_run(tmp_path, {good["instance_id"]: good["patch"], bad["instance_id"]: ""}, SAMPLE)
    tracker = WandbTracker(project="a-project", group="a-group")
    tracker.start(info(run))
    tracker.finish({"completed": 2, "wall_s": 1.0}, [], 0)
    assert evaluate([str(run)]) == 0
    first, second = read_offline_runs(run)
    assert second.run["run_id"] == first.run["run_id"] == "run-0001"
    assert second.run["project"] == "a-project"
    assert second.summary["resolved"] == 1
    assert second.summary["resolved_rate"] == 0.5
    assert second.history[0]["_step"] > first.history[-1]["_step"]
    table = second.table("predictions")
    column = table["columns"].index("resolved")
    assert sorted(str(row[column]) for row in table["data"]) == ["False", "True"]
    contents = second.artifacts["predictions-run-0001"]["manifest"]["contents"]
    assert "evaluation.jsonl" in {entry["path"] for entry in contents}


def test_invalid_or_locked_directories_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate([str(tmp_path)]) == 2
    assert "not a run directory" in capsys.readouterr().err
    nothing = make_run(tmp_path / "nothing", {"a": None}, SAMPLE)
    assert evaluate([str(nothing)]) == 2
    assert "no sample is completed" in capsys.readouterr().err
    busy = make_run(tmp_path / "busy", {ROWS[0]["instance_id"]: ""}, SAMPLE)
    with RunStore(busy, GENERATED_NAME):
        assert evaluate([str(busy)]) == 2
    assert "in use by" in capsys.readouterr().err
    lost = make_run(tmp_path / "lost", {ROWS[0]["instance_id"]: "", "of-another-version": ""}, SAMPLE)
    assert evaluate([str(lost)]) == 2
    error = capsys.readouterr().err
    assert "lacks 1 of its instances, such as of-another-version" in error
    assert error.count("\n") == 1


def test_patches_that_print_keys_leave_none_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-planted-0123456789abcdef"
    monkeypatch.setenv("OPENAI_API_KEY", secret)
    looks = (
        "import glob\nfound = ''\nfor path in glob.glob('/proc/*/environ'):\n    try:\n"
        "        found += open(path).read()\n    except OSError:\n        pass\nraise ValueError(found)"
    )
    run = make_run(tmp_path, {ROWS[0]["instance_id"]: rewritten(ROWS[0], looks)}, SAMPLE)
    for arguments in ([], ["--unsafe"]):  # without the sandbox the code finds the key, but no file may contain it
        assert evaluate([str(run), *arguments]) == 0
        (verdict,) = verdict_lines(run).values()
        assert not verdict["resolved"]
        assert [path for path in run.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == []


def test_without_namespaces_no_test_runs_unless_requested(tmp_path: Path) -> None:
    run = make_run(tmp_path, {ROWS[0]["instance_id"]: ROWS[0]["patch"]}, SAMPLE)
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    inside = ["unshare", "-Ur", "sh", "-c", forbid, "sh"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user cannot make a namespace in which others are forbidden")
    command = [*inside, sys.executable, "-m", "swe_infer.evaluate", str(run)]
    refused = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 2
    assert "--unsafe runs the tests without a sandbox" in refused.stderr
    assert not (run / "evaluation.jsonl").exists()
    assert subprocess.run([*command, "--unsafe"], check=False, capture_output=True, cwd=ROOT).returncode == 0
    assert [verdict["resolved"] for verdict in verdict_lines(run).values()] == [True]
