"""The sentences of a comparison state what its figures state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_runs
from swe_infer.compare.summary import summary_of
from tests.compare.runs import answer, write_run


def run(
    directory: Path, good: int, total: int = 60, *, first: int = 0, cost: str | None = "0.5", **options: Any
) -> Path:
    """A run over the instances ``first`` to ``total``; the patches of those below ``good`` apply."""
    entries = [answer(f"i-{n}", "applies" if n < good else "none", cost=cost) for n in range(first, total)]
    return write_run(directory, entries, **options)


def summary(*runs: Path, **options: Any) -> str:
    return "\n".join(summary_of(compare(load_runs([str(one) for one in runs]), resamples=1000, **options)))


def test_sentences_state_the_direction_the_interval_and_the_common_instances(tmp_path: Path) -> None:
    more, less = run(tmp_path / "more", 45), run(tmp_path / "less", 30)
    better = "25.0 points more often than those of"
    assert f"The patches of A (more) apply {better} B (less) (95 % interval 13.7 to 36.3" in summary(more, less)
    assert f"The patches of B (more) apply {better} A (less) (95 % interval 13.7 to 36.3" in summary(less, more)
    worse = summary(more, less, baseline="A")
    assert "patches of B (less) apply 25.0 points less often than those of A (more) (95 % interval 13.7 to" in worse
    assert (
        "Of 60 instances, the patches of both apply to 30, at least one applies to 45; the runs differ on 15" in worse
    )
    other = run(tmp_path / "other", 100, 100, first=20)
    assert "than those of A (less) on their 40 common instances (" in summary(less, other)
    assert "Of 100 instances (40 common to both)" in summary(less, other)
    ids = [f"i-{n}" for n in range(60)]
    verdicts = [run(tmp_path / name, 60, resolved=ids[:n]) for name, n in (("x", 20), ("y", 33))]
    assert "B (y) resolves 21.7 points more than A (x)" in summary(*verdicts)
    assert "both resolve 20, at least one resolves 33" in summary(*verdicts)
    assert "resolve" not in summary(verdicts[1], less)  # not every run was evaluated


def test_ties_and_runs_without_records_are_stated_as_such(tmp_path: Path) -> None:
    equal = [run(tmp_path / name, 30) for name in "abc"]
    assert "Of 3 runs, A, B and C have the highest rate: 50.0 %." in summary(*equal)
    assert "most often" not in summary(*equal)
    empty = write_run(tmp_path / "empty", [])
    assert summary(empty) == "A (empty) has no answers yet."
    assert "no instance in common" in summary(empty, equal[0])
    damaged = run(tmp_path / "damaged", 30, remaining=-3)
    assert "Not finished" not in summary(damaged)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("0.5", "0.5", "at the same cost"),
        ("0.515", "0.5", "at 1.03 times the cost ($0.5150 and $0.5000 for each instance)"),
        ("0.9", "0.5", "at 1.8 times the cost"),
        ("0.00001", "0.5", "at less than 0.01 times the cost"),
        ("12345.6", "0.5", "at 24,691 times the cost"),
        ("0", "0.5", "at $0 for each instance instead of $0.5000"),
        (None, "0.5", "at an unknown cost (that of B is $0.5000 for each instance)"),
        ("0.5", None, "at $0.5000 for each instance (the cost of B is unknown)"),
        ("0", "0", "in the same time"),
    ],
)
def test_costs_are_compared(tmp_path: Path, first: str | None, second: str | None, expected: str) -> None:
    sentences = summary(run(tmp_path / "a", 45, cost=first), run(tmp_path / "b", 30, cost=second))
    assert expected in sentences


def test_the_frontier_has_the_runs_of_a_known_cost(tmp_path: Path) -> None:
    cheap, dear = run(tmp_path / "cheap", 12, cost="0.4"), run(tmp_path / "dear", 10)
    unknown = run(tmp_path / "unknown", 45, cost=None)
    assert "No other run costs less or has a higher rate than A (20.0 %" in summary(cheap, dear)
    assert "No other run of a known cost costs less or has a higher rate than A" in summary(cheap, dear, unknown)
    assert "No other run" not in summary(cheap, unknown)
