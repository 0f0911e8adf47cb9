"""Figures agree wherever they are shown: rates are over every covered sample."""

from __future__ import annotations

import io
import json
import shutil
from decimal import Decimal
from pathlib import Path

import pytest
import yaml

from swe_infer.cli.merge import merge
from swe_infer.cli.study import objective_values
from swe_infer.cli.tables import print_summary
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_run
from swe_infer.errors import ConfigError
from swe_infer.run_directory.figures import Summary, figure, patch_rates, resolved_figures
from swe_infer.run_directory.objective import Objective
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.run_directory.totals import Totals
from swe_infer.runners.progress import Progress
from swe_infer.tracking.metrics import metrics_of
from swe_infer.types import Completion, Failure, PatchResult, PatchStatus, Skip, Usage


def answer(store: RunStore, name: str, status: PatchStatus, sample: int = 0) -> None:
    given = Completion("an answer", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
    store.append(record_of((name, sample), given, PatchResult("", status)))


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A run that skips half of its instances and solves the rest."""
    directory = tmp_path / "run"
    with RunStore(directory, "model") as store:
        for name in "ab":
            answer(store, name, "applies")
        for name in "cd":
            store.append(record_of((name, 0), Skip("PromptTooLong", "too long"), None))
        store.write_summary(store.totals.summary(instances=4, samples=1, wall_s=1.0))
    plain = {"shard": {"index": 0, "count": 1}, "decoding": {"n": 1}}
    (directory / "config.yaml").write_text(yaml.safe_dump(plain))
    lines = [{"instance_id": name, "sample": 0, "resolved": True} for name in "ab"]
    (directory / "evaluation.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


def test_the_rate_of_tokens_follows_from_the_time_that_the_summary_states(half: Path) -> None:
    with RunStore(half, "model") as store:
        summary = store.totals.summary(wall_s=0.14649)
        store.write_summary(summary)
    stated = json.loads((half / "summary.json").read_text())["output_tokens_per_s"]
    assert stated == round(10 / summary["wall_s"], 3)
    assert compare([load_run(half)]).runs[0].output_tokens_per_s == pytest.approx(stated, abs=1e-3)


def test_a_run_that_skips_half_scores_half_everywhere(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((half / "summary.json").read_text())
    assert summary["apply_rate"] == 0.5
    assert objective_values(half, [Objective.parse("apply_rate")]) == [0.5]
    assert metrics_of(summary)["apply_rate"] == 0.5
    progress = Progress(4, 0, io.StringIO())
    progress.update({"status": "completed"}, summary, {})
    assert "patches apply 2/4 (50%)" in progress.line()
    print_summary(summary, half, None)
    assert "apply rate 50.0%" in capsys.readouterr().err
    one = compare([load_run(half)]).runs[0]
    assert one.resolved is not None
    assert (one.applies.value, one.resolved.value) == (0.5, 0.5)
    assert merge(tmp_path / "merged", [half])["apply_rate"] == 0.5


def test_unchecked_patches_are_shown_with_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    statuses: list[PatchStatus] = ["applies", "repaired", "does_not_apply", "unchecked", "none"]
    with RunStore(tmp_path, "model") as store:
        for number, status in enumerate(statuses):
            answer(store, str(number), status)
        summary = store.totals.summary(instances=10, samples=1)
        store.write_summary(summary)
    assert summary["apply_rate"] == 0.2
    assert summary["unchecked_share"] == 0.1
    assert summary["apply_rate_checked"] == pytest.approx(2 / 3, abs=1e-6)
    assert metrics_of(summary).items() >= {k: v for k, v in patch_rates(summary).items() if v is not None}.items()
    print_summary(summary, tmp_path, None)
    assert "20.0%; 10.0% could not be checked, 66.7% of the others" in capsys.readouterr().err
    one = compare([load_run(tmp_path)]).runs[0]
    assert (one.checked.successes, one.checked.instances) == (2, 3)


def test_samples_without_a_record_count_as_not_solved(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        for sample in range(2):
            answer(store, "a", "applies", sample)
        store.write_summary(store.totals.summary(instances=2, samples=4))
    summary = json.loads((tmp_path / "summary.json").read_text())
    one = compare([load_run(tmp_path)]).runs[0]
    assert one.applies.value == summary["apply_rate"] == 0.25
    assert {k: value for k, value, _ in one.pass_at}[1] == 0.25


def test_failures_of_infrastructure_are_counted_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sample counts by its latest record, and only if it is covered."""
    with RunStore(tmp_path, "model") as store:
        answer(store, "a", "applies")
        for name, error in (("b", "TransientError"), ("c", "InvalidRequest"), ("e", "Overloaded")):
            store.append(record_of((name, 0), Failure(error, "no answer"), None))
        store.append(record_of(("d", 0), Skip("RepositoryNotAvailable", "no network"), None))
        answer(store, "e", "none")
        summary = store.totals.summary(instances=5, samples=1)
        assert store.totals.skip_reasons() == {"RepositoryNotAvailable": 1}
        store.totals.covered_ids = {"a", "c"}
        store.write_summary(summary)
    assert summary["infrastructure_failures"] == 2
    assert (summary["apply_rate"], summary["apply_rate_without_infrastructure_failures"]) == (0.2, 0.333333)
    verdicts = resolved_figures([("a", True), ("e", False)], summary)
    assert verdicts["resolved_rate_without_infrastructure_failures"] == 0.333333
    assert metrics_of(summary)["infrastructure_failures"] == 2
    print_summary(summary | verdicts, tmp_path, None)
    assert "outages    2 without an answer; without them: apply rate 33.3%, resolved 33.3%" in capsys.readouterr().err
    assert compare([load_run(tmp_path)]).runs[0].infrastructure_failures == 2
    totals = Totals({"a", "c"})
    for record in RunDirectory(tmp_path).records():
        totals.add_record(record)
    assert totals.summary(instances=2, samples=1)["infrastructure_failures"] == 0


def test_a_forged_summary_needs_no_memory(half: Path) -> None:
    forged: Summary = {"instances": 10**18, "samples": 10**18}
    (half / "summary.json").write_text(json.dumps(forged))
    one = compare([load_run(half)]).runs[0]
    assert one.applies.successes == 2
    shutil.rmtree(half)


def test_objectives_are_figures_with_a_direction() -> None:
    read = {text: Objective.parse(text) for text in ("resolved_rate", "cost_usd", "-apply_rate", "cost_usd:max")}
    assert [(one.name, one.direction) for one in read.values()] == [
        ("resolved_rate", "maximize"),
        ("cost_usd", "minimize"),
        ("apply_rate", "minimize"),
        ("cost_usd", "maximize"),
    ]
    assert Objective.parse("stats.accepted:max").direction == "maximize"
    assert Objective.parse("stats.accepted").direction is None
    assert [Objective.parse(str(one)) for one in read.values()] == list(read.values())
    for text in ("apply_rat", "usage", "stats.", "usage.tokens", "cost_usd:best", "-cost_usd:max", ""):
        with pytest.raises(ConfigError, match="objective="):
            Objective.parse(text)


def test_figures_of_an_evaluation_include_pass_at_k_and_the_cost_of_a_resolved_sample() -> None:
    summary: Summary = {"instances": 4, "samples": 2, "cost_usd": Decimal("0.6"), "patches": {"applies": 8}}
    verdicts = [("a", True), ("a", True), ("b", False), ("b", True), ("c", False)]
    found = resolved_figures(verdicts, summary)
    assert (found["resolved_rate"], found["pass_at_k"]) == (0.375, 0.5)
    assert found["cost_per_resolved_usd"] == Decimal("0.2")
    assert figure({**summary, **found}, "cost_per_resolved_usd") == pytest.approx(0.2)
    assert figure(summary, "patches.none") == 0, "a status that does not occur"
    assert figure(summary, "stats.accepted") is None
    assert resolved_figures([("a", False)], summary)["cost_per_resolved_usd"] is None
    assert resolved_figures(verdicts, {**summary, "cost_usd": None})["cost_per_resolved_usd"] is None
