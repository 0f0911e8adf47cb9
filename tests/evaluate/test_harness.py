"""The official harness and its reports; its process is a fake with the same command line."""

from __future__ import annotations

import importlib.util
import json
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.evaluate.command import run as evaluate
from swe_infer.evaluate.harness import read_report
from tests.evaluate.runs import make_run, verdict_lines

LITE = {"_target_": "swe_infer.data.hub.HubDataset", "name": "princeton-nlp/SWE-bench_Lite_oracle", "split": "test"}
PATCHES: dict[str, str | None] = {
    "a__a-1": "diff 1",
    "a__a-2": "diff 2",
    "b__b-3": "",
    "b__b-4": "diff 4",
    "c__c-5": None,
}
REPORT = {
    "total_instances": 300,
    "submitted_instances": 4,
    "resolved_ids": ["a__a-1"],
    "unresolved_ids": ["a__a-2"],
    "empty_patch_ids": ["b__b-3"],
    "error_ids": ["b__b-4"],
    "completed_ids": ["a__a-1", "a__a-2"],
    "incomplete_ids": ["c__c-5"],
    "failure_reasons": {"b__b-4": "oom"},
    "schema_version": 2,
}


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_finished_report_gives_each_instance_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", PATCHES, LITE)
    assert evaluate([str(run), "--report", str(written(tmp_path / "report.json", REPORT))]) == 0
    verdicts = verdict_lines(run)
    assert {i: v["resolved"] for (i, _), v in verdicts.items()} == {
        "a__a-1": True,
        "a__a-2": False,
        "b__b-3": False,
        "b__b-4": False,
    }
    assert verdicts["b__b-4", 0]["reason"].endswith("(oom)")
    assert "resolved 1 of 5 (20.0%), evaluated 4" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["resolved"], summary["resolved_rate"]) == (1, 0.2)


def test_the_summary_of_a_killed_run_counts_its_last_records_after_an_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a__a-1": "x", "b__b-2": "y"}, LITE)
    path = run / "summary.json"
    older = {**json.loads(path.read_text()), "completed": 1, "remaining": 1, "cost_usd": 0.5}
    path.write_text(json.dumps({**older, "possibly_billed_usd": 0.25}))
    os.utime(path, (1, 1))
    report = written(tmp_path / "report.json", {"resolved_ids": ["a__a-1"], "unresolved_ids": ["b__b-2"]})
    assert evaluate([str(run), "--report", str(report)]) == 0
    figures = json.loads(path.read_text())
    found = [figures[key] for key in ("completed", "remaining", "cost_usd", "possibly_billed_usd", "resolved")]
    assert found == [2, 0, 1.0, 0.25, 1]


def test_reports_on_further_samples_join_the_first(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"a__a-1": "x"}, LITE, more_samples=({"a__a-1": "y"},))
    first = written(tmp_path / "0.json", {"resolved_ids": [], "unresolved_ids": ["a__a-1"]})
    second = written(tmp_path / "1.json", {"resolved_ids": ["a__a-1"], "unresolved_ids": []})
    assert evaluate([str(run), "--report", str(first)]) == 0
    assert evaluate([str(run), "--report", str(second), "--sample", "1"]) == 0
    assert {key: v["resolved"] for key, v in verdict_lines(run).items()} == {
        ("a__a-1", 0): False,
        ("a__a-1", 1): True,
    }


@pytest.mark.parametrize(
    ("report", "found"),
    [
        (
            {"completed_ids": ["r", "u"], "resolved_ids": ["r"], "schema_version": 1},
            {"r": (True, None), "u": (False, "tests fail")},
        ),
        (
            {"resolved": ["r"], "applied": ["r", "u"], "generated": ["r", "u", "g"], "no_generation": ["n"]},
            {
                "r": (True, None),
                "u": (False, "tests fail"),
                "g": (False, "the patch does not apply"),
                "n": (False, "no patch"),
            },
        ),
        (
            {
                "r": {"resolved": True, "patch_successfully_applied": True},
                "g": {"resolved": False, "patch_successfully_applied": False},
                "n": {"resolved": False, "patch_is_None": True},
                "u": {"resolved": False, "patch_successfully_applied": True},
            },
            {
                "r": (True, None),
                "g": (False, "the patch does not apply"),
                "n": (False, "no patch"),
                "u": (False, "tests fail"),
            },
        ),
    ],
    ids=["lists of schema 1", "old lists", "one entry an instance"],
)
def test_every_report_format_is_read(report: Any, found: dict[str, Any], tmp_path: Path) -> None:
    assert read_report(written(tmp_path / "report.json", report)) == found


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"a": 1}', '{"resolved": 3}'])
def test_other_files_are_refused_as_reports(content: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"report\.json: not") as caught:
        read_report(tmp_path / "report.json")
    assert "\n" not in str(caught.value)


def test_a_report_on_other_instances_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", PATCHES, LITE)
    report = written(tmp_path / "report.json", {"resolved_ids": ["z__z-9"]})
    assert evaluate([str(run), "--report", str(report)]) == 2
    assert "covers none of the 4 instances" in capsys.readouterr().err
    assert not (run / "evaluation.jsonl").exists()


@pytest.mark.skipif(importlib.util.find_spec("swebench") is not None, reason="the harness is installed here")
def test_without_the_harness_one_line_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", PATCHES, LITE)
    assert evaluate([str(run)]) == 2
    error = capsys.readouterr().err
    assert "swe_infer[evaluate]" in error
    assert "--report FILE" in error
    assert error.count("\n") == 1


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, *, docker: str, harness: str = "") -> None:
    """Installs fake packages ``docker`` and ``swebench`` for this process and its children."""
    package = folder / "swebench" / "harness"
    package.mkdir(parents=True)
    for init in (folder / "swebench", package):
        (init / "__init__.py").write_text("", encoding="utf-8")
    (package / "run_evaluation.py").write_text(textwrap.dedent(harness), encoding="utf-8")
    (folder / "docker.py").write_text(textwrap.dedent(docker), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))


NO_DAEMON = """
def from_env(timeout):
    raise RuntimeError("Error while fetching server API version: No such file or directory")
"""
DAEMON = """
class Client:
    def ping(self): return True
def from_env(timeout): return Client()
"""
HARNESS = """
import argparse, json, sys
parser = argparse.ArgumentParser()
for name in "dataset_name split run_id report_dir predictions_path max_workers timeout".split():
    parser.add_argument("--" + name, required=True)
given = parser.parse_args()
assert given.dataset_name == "SWE-bench/SWE-bench_Lite" and given.split == "test", given
predictions = [json.loads(line) for line in open(given.predictions_path)]
good = [p["instance_id"] for p in predictions if p["model_patch"] == "diff 1"]
none = [p["instance_id"] for p in predictions if not p["model_patch"]]
bad = [p["instance_id"] for p in predictions if p["instance_id"] not in good + none]
report = {"resolved_ids": good, "unresolved_ids": bad, "empty_patch_ids": none, "error_ids": []}
label = predictions[0]["model_name_or_path"].replace("/", "__")
json.dump(report, open(f"{given.report_dir}/{label}.{given.run_id}.json", "w"))
"""


@pytest.mark.slow
def test_without_docker_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(tmp_path / "packages", monkeypatch, docker=NO_DAEMON)
    run = make_run(tmp_path / "run", PATCHES, LITE)
    assert evaluate([str(run)]) == 2
    error = capsys.readouterr().err
    assert "needs a Docker daemon" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_predictions_go_to_the_harness_and_its_report_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "packages", monkeypatch, docker=DAEMON, harness=HARNESS)
    run = make_run(tmp_path / "run", PATCHES, LITE, more_samples=({"a__a-2": "diff 1"},))
    assert evaluate([str(run)]) == 0
    verdicts = verdict_lines(run)
    assert {key for key, v in verdicts.items() if v["resolved"]} == {("a__a-1", 0), ("a__a-2", 1)}
    assert len(verdicts) == 5
    assert {v["source"] for v in verdicts.values()} == {"swebench"}


@pytest.mark.slow
def test_a_failed_harness_is_exit_1_and_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(tmp_path / "packages", monkeypatch, docker=DAEMON, harness="raise SystemExit('images are missing')")
    run = make_run(tmp_path / "run", PATCHES, LITE)
    assert evaluate([str(run)]) == 1
    assert "harness.sample0.log" in capsys.readouterr().err
    assert "images are missing" in (run / "evaluation" / "harness.sample0.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_dataset_without_an_official_name_must_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(tmp_path / "packages", monkeypatch, docker=DAEMON, harness=HARNESS)
    run = make_run(tmp_path / "run", PATCHES, {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": "gone.jsonl"})
    assert evaluate([str(run)]) == 2
    assert "--dataset NAME" in capsys.readouterr().err
    assert evaluate([str(run), "--dataset", "SWE-bench/SWE-bench_Lite"]) == 0


def test_the_official_loader_takes_the_predictions_as_they_are(tmp_path: Path) -> None:
    utils = pytest.importorskip("swebench.harness.utils", reason="the official harness is not installed here")
    run = make_run(tmp_path / "run", PATCHES, LITE)
    predictions = utils.get_predictions_from_file(str(run / "predictions.jsonl"), "unused", "test")
    assert [p["instance_id"] for p in predictions] == ["a__a-1", "a__a-2", "b__b-3", "b__b-4"]
    assert all(set(p) >= {"instance_id", "model_name_or_path", "model_patch"} for p in predictions)
