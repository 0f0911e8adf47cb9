"""Predictions in the form that the harness of each benchmark reads, and its report.

The readers below state the rules of the harnesses' own code, which is named beside each.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.merge import main as merge
from swe_infer.cli.patches import main as patches
from swe_infer.cli.select import main as select
from swe_infer.conf_files import node_of
from swe_infer.evaluate.command import run as evaluate
from swe_infer.evaluate.harness import official_name, other_harness, read_report
from swe_infer.harnesses import BENCHMARKS, benchmark_of
from swe_infer.run_directory import layout
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, Usage
from tests.data.benchmark_rows import GOLD, Clones, Shape
from tests.data.test_benchmarks import PRESETS, dataset_of, write
from tests.evaluate.runs import GENERATED_NAME
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_swebench(path: Path) -> dict[str, str]:
    """``get_predictions_from_file`` of SWE-bench 5.0.2 and its forks; SWE-smith 0.0.9, ``harness/eval.py``;
    SWE-PolyBench 9c836c5, ``run_evaluation.py``, which reads JSON lines with pandas."""
    found = lines(path)
    assert all(set(one) >= {"instance_id", "model_patch", "model_name_or_path"} for one in found)
    return {one["instance_id"]: one["model_patch"] for one in found}


def read_pro(path: Path) -> dict[str, str]:
    """SWE-bench_Pro-os ca10a60, ``swe_bench_pro_eval.py``. ``prefix`` is the start of file names."""
    found = json.loads(path.read_text())
    assert all("/" not in one["prefix"] and one["prefix"] for one in found)
    return {one["instance_id"]: one["patch"] for one in found}


def read_live(path: Path) -> dict[str, str]:
    """SWE-bench-Live 70ec57e, ``evaluation/evaluation.py``."""
    return {instance_id: one["model_patch"] for instance_id, one in json.loads(path.read_text()).items()}


def read_v2(path: Path) -> dict[str, str]:
    """SWE-rebench-V2 c71902a, ``scripts/eval.py``."""
    return {one["instance_id"]: one["patch"] for one in json.loads(path.read_text())}


def read_multi(path: Path) -> dict[str, str]:
    """multi-swe-bench 24f493f, ``harness/run_evaluation.py``: class ``Patch``, whose reader refuses other keys."""
    found = lines(path)
    assert all(list(one) == ["org", "repo", "number", "fix_patch"] and type(one["number"]) is int for one in found)
    return {f"{one['org']}__{one['repo']}-{one['number']}": one["fix_patch"] for one in found}


READERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "swebench_pro": read_pro, "swebench_live": read_live, "swe_rebench_v2": read_v2, "multi_swe_bench": read_multi,
}  # fmt: skip


def answer(instance_id: str, sample: int, patch: str) -> Any:
    completion = Completion("an answer", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
    return record_of((instance_id, sample), completion, PatchResult(patch, "applies" if patch else "none"))


def faults(preset: str, shape: Shape, directory: Path) -> list[str]:
    """What is wrong with the files of a run of two samples over one row, of which the second has no patch."""
    (directory / "rows").mkdir(parents=True)
    dataset = dataset_of(preset, write(directory / "rows" / "rows.jsonl", [shape.row]))
    (instance_id,) = dataset.open().ids
    node = {**node_of("dataset", preset), "benchmark": dataset.benchmark}
    with RunStore(directory / "run", GENERATED_NAME, samples=2, benchmark=benchmark_of(node)) as store:
        store.append(answer(instance_id, 0, GOLD))
        store.append(answer(instance_id, 1, ""))
        store.check()
    form = BENCHMARKS[dataset.benchmark].form
    read = READERS.get(dataset.benchmark, read_swebench)
    found = {
        path.name: read(layout.harness_predictions(path, form)) for path in layout.predictions(directory / "run")
    }
    expected = {
        "predictions.jsonl": {instance_id: GOLD},
        "predictions.sample0.jsonl": {instance_id: GOLD},
        "predictions.sample1.jsonl": {instance_id: ""},
    }
    wrong = [] if found == expected else [f"{found}"]
    count = len(layout.all_harness_predictions(directory / "run"))
    if count != (0 if form is None else 3):
        wrong.append(f"{count} files for the harness")
    how = other_harness(node, Path("RUN/predictions.jsonl"))
    if dataset.benchmark == "swebench":
        if how is not None or official_name(node) != node["name"]:
            wrong.append("the official harness should evaluate it")
    elif how is None or any(mark in how for mark in "{\n") or "RUN/" not in how:
        wrong.append(f"its harness: {how}")
    return wrong


def test_a_row_of_each_benchmark_ends_in_a_file_that_its_harness_reads(tmp_path: Path) -> None:
    shapes = Clones(tmp_path / "clones").shapes()
    offenders = {preset: faults(preset, shapes[preset], tmp_path / preset) for preset in PRESETS}
    assert {preset: wrong for preset, wrong in offenders.items() if wrong} == {}


@pytest.mark.parametrize(
    "report",
    [
        {"o__n-1": True, "o__n-2": False},  # SWE-bench Pro
        {"submitted": 2, "success_ids": ["o__n-1"], "failure_ids": ["o__n-2"], "error_ids": []},  # SWE-bench-Live
        {"resolved": 1, "unresolved": 1, "ids_resolved": ["o__n-1"], "ids_unresolved": ["o__n-2"]},  # SWE-smith
        {"resolved_ids": ["o/n:pr-1"], "unresolved_ids": ["o/n:pr-2"], "error_ids": []},  # Multi-SWE-bench
        {"resolved": ["o__n-1"], "not_resolved": ["o__n-2"], "no_generation": []},  # SWE-PolyBench
    ],
)
def test_the_report_of_each_harness_is_read(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report))
    found = read_report(tmp_path / "report.json")
    assert {name: resolved for name, (resolved, _) in found.items()} == {"o__n-1": True, "o__n-2": False}


def test_the_commands_leave_the_file_of_the_harness_and_say_how_to_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    clones = Clones(tmp_path / "clones")
    row = clones.shapes()["swebench_pro"].row
    rows = write(tmp_path / "rows.jsonl", [row, {**row, "instance_id": "bad", "fail_to_pass": "[1, 2"}])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}

    def run(*arguments: str, status: int = 0) -> str:
        done = commands.run("swe_infer", *arguments, cwd=tmp_path, env=environment)
        assert done.returncode == status, done.stderr
        return done.stderr

    with ApiServer(answer=lambda prompt: f"<patch>\n{GOLD}</patch>") as server:
        base = [
            "dataset=swebench_pro", f"dataset.path={rows}", f"context.repositories={clones.root}", "model=gpt-4o",
            "context.offline=true", f"provider.base_url={server.openai_url}", "tracker=none",
        ]  # fmt: skip
        refused = run(*base, "output_dir=run", "evaluation=harness", status=2)
        assert refused.count("\n") == 1
        assert "scaleapi/SWE-bench_Pro-os" in refused
        assert "--patch_path=RUN_DIR/harness_predictions.json" in refused
        assert server.log.asked() == []
        said = run(*base, "output_dir=run", "shard.index=0", "shard.count=1")
    assert "--patch_path=run/harness_predictions.json" in said
    assert "skipped    1 (InvalidRow 1)" in said
    records = {record["instance_id"]: record for record in lines(tmp_path / "run" / "records.jsonl")}
    why = records["bad"]["error"]["message"]
    assert "bad: column 'fail_to_pass' is neither JSON nor a Python literal: '[1, 2'" in why

    expected = {row["instance_id"]: GOLD}
    file = tmp_path / "run" / "harness_predictions.json"
    assert read_pro(file) == expected
    file.unlink()
    assert merge(["merged", "run"]) == 0
    assert read_pro(tmp_path / "merged" / "harness_predictions.json") == expected
    assert select(["merged", "--by", "first", "--out", "best.jsonl"]) == 0
    assert read_pro(tmp_path / "harness_best.json") == expected
    assert "--patch_path=harness_best.json" in capsys.readouterr().err

    text = (tmp_path / "merged" / "records.jsonl").read_text()
    (tmp_path / "merged" / "records.jsonl").write_text(text.replace('"extractor": ', '"extractor": 1'))
    (tmp_path / "merged" / "harness_predictions.json").unlink()
    assert patches(["merged"]) == 0
    assert read_pro(tmp_path / "merged" / "harness_predictions.json") == expected
    (tmp_path / "report.json").write_text(json.dumps({row["instance_id"]: True}))
    assert evaluate(["merged"]) == 2
    assert "scaleapi/SWE-bench_Pro-os" in capsys.readouterr().err
    assert evaluate(["merged", "--report", "report.json"]) == 0
    assert json.loads((tmp_path / "merged" / "summary.json").read_text())["resolved"] == 1
