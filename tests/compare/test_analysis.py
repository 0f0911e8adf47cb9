"""The figures of comparisons, from runs with known results."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swe_infer.compare.analysis import Comparison, compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_runs
from swe_infer.compare.summary import summary_of
from swe_infer.compare.table import print_comparison
from swe_infer.errors import ConfigError
from swe_infer.patches import VERSION
from tests.compare.runs import Entry, answer, failure, skip, write_run

IDS = [f"i-{number}" for number in range(20)]


def compared(*directories: Path) -> Comparison:
    return compare(load_runs([str(directory) for directory in directories]), resamples=2000)


def test_failed_and_skipped_instances_count_as_not_solved(tmp_path: Path) -> None:
    entries = [answer("a"), answer("b", "repaired"), answer("c", "does_not_apply"), answer("d", "none"), skip("e")]
    (one,) = compared(write_run(tmp_path / "r", [*entries, failure("f"), answer("g", "unchecked")])).runs
    assert (one.applies.successes, one.applies.instances) == (2, 7)
    assert one.statuses == {"completed": 5, "skipped": 1, "failed": 1}
    assert one.patches == {"applies": 1, "repaired": 1, "does_not_apply": 1, "none": 1, "unchecked": 1}
    assert one.errors == {"ContextOverflow": 1, "Overloaded": 1}
    assert one.cost_usd == Decimal("2.5")
    assert one.cost_per_success == Decimal("1.25")
    assert one.output_tokens_per_s == pytest.approx(50 / 60)


def test_resolved_counts_where_every_run_was_evaluated_and_else_whether_the_patch_applies(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [answer(i) for i in IDS], resolved=IDS[:5])
    b = write_run(tmp_path / "b", [answer(i) for i in IDS], resolved=IDS[:8])
    c = write_run(tmp_path / "c", [answer(i) for i in IDS[:3]])
    both = compared(a, b)
    assert both.metric == "resolved"
    assert (both.pairs[0].first_only, both.pairs[0].second_only) == (0, 3)
    mixed = compared(a, c)
    assert mixed.metric == "applies"
    assert mixed.runs[0].resolved is not None
    assert mixed.runs[0].resolved.successes == 5
    assert "Only A evaluated" in mixed.notes[0]


def test_pairs_are_tested_over_the_instances_that_both_have(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [answer(i, "applies" if n < 2 else "none") for n, i in enumerate(IDS)])
    b = write_run(tmp_path / "b", [answer(i, "applies" if n < 9 else "none") for n, i in enumerate(IDS[:15])])
    (pair,) = compared(a, b).pairs
    assert (pair.instances, pair.both, pair.first_only, pair.second_only, pair.neither) == (15, 2, 0, 7, 6)
    assert pair.test == "McNemar"
    assert pair.p_exact == pytest.approx(2 / 2**7)
    assert pair.p == pair.p_holm == pytest.approx(math.erfc(math.sqrt(7 / 2)))  # chi-squared of 7 with 1 degree
    assert pair.difference == pytest.approx(7 / 15)
    assert pair.agreement == pytest.approx(8 / 15)
    assert pair.kappa == pytest.approx((8 / 15 - 96 / 225) / (1 - 96 / 225))


def test_p_values_are_corrected_for_the_number_of_pairs(tmp_path: Path) -> None:
    solved = {"a": 0, "b": 6, "c": 12}
    runs = [
        write_run(tmp_path / name, [answer(i, "applies" if n < k else "none") for n, i in enumerate(IDS)])
        for name, k in solved.items()
    ]
    pairs = {(pair.first, pair.second): pair for pair in compared(*runs).pairs}
    assert pairs[0, 2].p_holm == pytest.approx(3 * math.erfc(math.sqrt(12 / 2)))
    assert pairs[0, 1].p_holm == pairs[1, 2].p_holm == pytest.approx(2 * math.erfc(math.sqrt(6 / 2)))
    against = compare(load_runs([str(run) for run in runs]), baseline="b", resamples=1000)
    assert [(pair.first, pair.second) for pair in against.pairs] == [(1, 0), (1, 2)]
    assert against.pairs[0].p_holm == pytest.approx(2 * math.erfc(math.sqrt(6 / 2)))
    with pytest.raises(ConfigError, match=r"--baseline d: no such run; the runs are A \(a\), B \(b\), C \(c\)"):
        compare(load_runs([str(run) for run in runs]), baseline="d")


def test_costs_are_compared_instance_by_instance(tmp_path: Path) -> None:
    names = [f"i-{number}" for number in range(30)]
    a = write_run(tmp_path / "a", [answer(i, cost=str(n)) for n, i in enumerate(names)])
    b = write_run(tmp_path / "b", [answer(i, cost=str(n + 0.25)) for n, i in enumerate(names)])
    comparison = compared(a, b)
    (pair,) = comparison.pairs
    assert pair.cost is not None
    assert pair.cost.mean == pytest.approx(0.25)
    assert (pair.cost.interval.low, pair.cost.interval.high) == pytest.approx((0.25, 0.25))
    assert pair.cost.p == pytest.approx(1 / 2001)
    per_success = comparison.runs[0].cost_per_success_interval
    assert per_success is not None
    assert 10 < per_success.low < 14.5 < per_success.high < 20


def test_costs_are_not_compared_where_one_is_unknown_or_instances_are_few(tmp_path: Path) -> None:
    names = [f"i-{number}" for number in range(40)]
    a = write_run(tmp_path / "a", [answer(i) for i in names])
    unknown = write_run(tmp_path / "b", [answer(i, cost=None if i == "i-3" else "1") for i in names])
    few = write_run(tmp_path / "c", [answer(i) for i in names[:29]])
    comparison = compared(a, unknown, few)
    assert [pair.cost for pair in comparison.pairs] == [None] * 3
    assert comparison.runs[1].cost_usd is None
    assert [one.cost_per_success_interval is None for one in comparison.runs[1:]] == [True, True]


def test_only_what_differs_in_the_configuration_is_shown(tmp_path: Path) -> None:
    base = {
        "model": {"_target_": "x.Y", "name": "m"},
        "decoding": {"temperature": 0.0, "stop": []},
        "output_dir": "o",
    }
    hot = {**base, "decoding": {"temperature": 0.8, "stop": []}, "output_dir": "p"}
    other = {**base, "model": {"_target_": "x.Z", "name": "m"}, "provider": {"name": "p"}}
    runs = [write_run(tmp_path / n, [answer("a")], c) for n, c in (("1", base), ("2", hot), ("3", other))]
    comparison = compared(*runs)
    assert list(comparison.keys) == ["decoding.temperature", "provider.name"]
    assert comparison.runs[1].differs == {"decoding.temperature": 0.8, "provider.name": None}
    assert list(compared(runs[0], write_run(tmp_path / "4", [answer("a")], other | {"provider": {}})).keys) == [
        "provider"
    ]


def test_samples_give_pass_at_k_and_a_paired_test(tmp_path: Path) -> None:
    def entries(correct: int) -> list[Entry]:
        return [answer(i, "applies" if s < correct else "none", sample=s) for i in IDS for s in range(4)]

    a = write_run(tmp_path / "a", entries(1))
    b = write_run(tmp_path / "b", entries(2))
    comparison = compared(a, b)
    assert comparison.runs[0].applies.value == 0.25
    assert comparison.runs[0].applies.instances == 20
    assert [k for k, _, _ in comparison.runs[1].pass_at] == [1, 2, 4]
    assert [value for _, value, _ in comparison.runs[1].pass_at] == pytest.approx([0.5, 1 - 1 / 6, 1.0])
    (pair,) = comparison.pairs
    assert pair.test == "paired score"
    assert pair.p == pytest.approx(math.erfc(math.sqrt(20 / 2)))
    assert pair.p_exact is None
    assert pair.second_only == 20


def test_the_pareto_front_of_cost_and_rate(tmp_path: Path) -> None:
    def run(name: str, solved: int, cost: str | None) -> Path:
        return write_run(
            tmp_path / name, [answer(i, "applies" if n < solved else "none", cost=cost) for n, i in enumerate(IDS)]
        )

    comparison = compared(
        run("cheap", 4, "0.1"),
        run("good", 12, "1"),
        run("worse", 10, "1"),
        run("dear", 12, "2"),
        run("free", 20, None),
    )
    assert [one.letter for one in comparison.runs if one.on_front] == ["A", "B"]


def test_overlap_counts_each_set_of_runs_that_solved_an_instance(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [answer("x"), answer("y"), answer("z", "none")])
    b = write_run(tmp_path / "b", [answer("x"), answer("y", "none"), answer("z", "none"), answer("w")])
    comparison = compared(a, b)
    assert dict(comparison.overlap) == {(True, True): 1, (True, False): 1, (False, False): 1, (False, True): 1}
    assert comparison.scores == {"w": [None, 1.0], "x": [1.0, 1.0], "y": [1.0, 0.0], "z": [0.0, 0.0]}


def test_notes_warn_of_misleading_figures(tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", [answer("x", "unchecked"), answer("y")], remaining=3)
    b = write_run(tmp_path / "b", [answer("x")], resolved=[])
    (b / "config.yaml").unlink()
    (b / "evaluation.jsonl").unlink()
    notes = " ".join(compared(a, b).notes)
    for part in (
        "No run was evaluated",
        "remaining samples: A 3.",
        "count as not applying: A 1.",
        "the differences are unknown: B.",
        "have different instances",
    ):
        assert part in notes


def test_note_warns_of_different_extractors(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, [answer("x")]) for name in "ab")
    assert "extractor" not in " ".join(compared(a, b).notes)
    record = json.loads((b / "records.jsonl").read_text())
    del record["extractor"]
    (b / "records.jsonl").write_text(json.dumps(record) + "\n")
    assert f"extractor found the patches (A {VERSION}, B 1)" in " ".join(compared(a, b).notes)


def test_a_run_without_records_can_be_compared(tmp_path: Path) -> None:
    comparison = compared(write_run(tmp_path / "a", []), write_run(tmp_path / "b", [answer("x")]))
    assert comparison.runs[0].applies.value is None
    assert comparison.pairs == []


def test_an_outage_is_told_apart_from_a_weaker_model(tmp_path: Path) -> None:
    """Four failures of the network look like -100 points; a rejected request is no failure of infrastructure."""
    good = write_run(tmp_path / "a", [answer(i) for i in IDS[:4]], resolved=IDS[:4])
    outage = [failure(i, error="TransientError") for i in IDS[:3]] + [answer(IDS[3])]
    bad = write_run(tmp_path / "b", outage, resolved=[IDS[3]])
    rejected = write_run(tmp_path / "c", [failure(i, error="InvalidRequest") for i in IDS[:4]], resolved=[])
    comparison = compared(good, bad, rejected)
    a, b, c = comparison.runs
    assert [one.infrastructure_failures for one in (a, b, c)] == [0, 3, 0]
    assert (b.applies.value, b.applies_without_failures.value) == (0.25, 1.0)
    assert b.resolved_without_failures is not None
    assert (b.resolved_without_failures.successes, b.resolved_without_failures.instances) == (1, 1)
    assert c.applies_without_failures.value == 0.0
    pair = next(pair for pair in comparison.pairs if (pair.first, pair.second) == (0, 1))
    assert (pair.difference, pair.decided_by_failures) == (-0.75, 3)
    assert pair.without_failures is not None
    assert (pair.without_failures.instances, pair.without_failures.difference, pair.without_failures.p) == (1, 0, 1)
    other = next(pair for pair in comparison.pairs if (pair.first, pair.second) == (0, 2))
    assert other.without_failures is None
    notes = " ".join(comparison.notes)
    assert "Infrastructure failures (network, provider, account, repository) count as not solved: B 3." in notes
    assert "A : B rests on infrastructure failures: on 3 of the 3 instances that differ" in notes
    assert "without them +0.0 points over 1 instances, p 1.0000" in notes
    assert "A : C rests" not in notes
    assert "Fewer than 50 instances (A 4, B 4, C 4)" in notes
    with StringIO() as out:
        print_comparison(comparison, Console(file=out, width=160))
        text = out.getvalue()
    assert re.search(r"Outcomes without infrastructure failures.*\n B +3 +1/1 100.0 %", text, re.DOTALL)
    rows = r"Paired differences without infrastructure failures.* A : B +1 +\+0.0 \[-79.3 to 79.3\] +1.0000 +-75.0"
    assert re.search(rows, text, re.S), text
    stated = as_json(comparison)
    assert stated["runs"][1]["applies_without_failures"]["value"] == 1.0
    assert [pair["without_infrastructure_failures"] is None for pair in stated["pairs"]] == [False, True, False]


def test_a_failed_sample_does_not_count_as_a_wrong_one(tmp_path: Path) -> None:
    entries = [answer("x"), failure("x", sample=1, error="RateLimited"), *(failure("y", sample=s) for s in range(2))]
    (one,) = compared(write_run(tmp_path / "a", entries)).runs
    assert (one.applies.successes, one.applies.instances) == (0.5, 2)
    assert (one.applies_without_failures.successes, one.applies_without_failures.instances) == (1, 1)


def test_samples_that_an_outage_left_without_a_record_do_not_count_against_the_model(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", [answer("x")], instances=4, samples=1, remaining=3, stopped_by="Unreachable")
    interrupted = write_run(tmp_path / "b", [answer("x")], instances=4, samples=1, remaining=3, stopped_by=None)
    comparison = compared(run, interrupted)
    stopped, other = comparison.runs
    assert (stopped.infrastructure_failures, other.infrastructure_failures) == (3, 0)
    assert (stopped.applies.value, stopped.applies_without_failures.value) == (0.25, 1.0)
    assert other.applies_without_failures.value == 0.25
    assert any("count as not solved: A 3." in note for note in comparison.notes)


def test_a_summary_says_what_is_known(tmp_path: Path) -> None:
    def summary(*runs: Path, **options: Any) -> list[str]:
        return summary_of(compare(load_runs([str(run) for run in runs]), resamples=1000, **options))

    names = [f"i-{n}" for n in range(40)]
    a = write_run(tmp_path / "a", [answer(name) for name in names], resolved=names[:20])
    b = write_run(tmp_path / "b", [answer(name, cost="0.1") for name in names], resolved=names[:10])
    unknown = write_run(tmp_path / "c", [answer(name, cost=None) for name in names], resolved=names[:10])
    other = write_run(tmp_path / "d", [answer("j-1")], resolved=["j-1"], remaining=1)
    better = "A (a) resolves 25.0 points more than B (b) (95 % interval 10.9 to 39.1, p = 0.0016)"
    assert summary(a, b) == [
        f"{better}, at 5.0 times the cost ($0.5000 and $0.1000 for each instance).",
        "The Pareto frontier of cost and rate, cheapest first: B (25.0 % for $0.1000 an instance) and "
        "A (50.0 % for $0.5000 an instance).",
        "Of 40 instances, both resolve 10, at least one resolves 20; the runs differ on 10.",
    ]
    assert summary(b, a, baseline="B")[0].startswith("A (b) resolves 25.0 points less than B (a)")
    assert summary(a, unknown)[:2] == [
        better.replace("(b)", "(c)") + ", at $0.5000 for each instance (the cost of B is unknown).",
        "Of 40 instances, both resolve 10, at least one resolves 20; the runs differ on 10.",
    ]
    assert summary(b, unknown)[0] == (
        "A (b) and B (c) have the same rate on their 40 common instances; A ran at $0.1000 for each instance "
        "(the cost of B is unknown)."
    )
    assert summary(a, other) == [
        "B (d) and A (a) have no instance in common, so they are not compared.",
        "Of 41 instances (0 common to both), both resolve 0, at least one resolves 21; the runs differ on 0.",
        "Not finished: B (1 sample remains).",
    ]
    assert summary(write_run(tmp_path / "e", [], remaining=2)) == [
        "A (e) has no answers yet.",
        "Not finished: A (2 samples remain).",
    ]
    many = summary(a, b, unknown)
    assert many[0] == "Of 3 runs, A (a) resolves most: 50.0 % (95 % interval 35.2 to 64.8)."
    assert many[1].startswith(
        "A resolves 25.0 points more than B (b) (95 % interval 10.9 to 39.1, p = 0.0047 after Holm"
    )
