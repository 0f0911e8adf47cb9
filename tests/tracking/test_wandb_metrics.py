"""Names and figures of the metrics, and the rows of the table."""

from __future__ import annotations

import json
import statistics
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.tracking.metrics import Alerts, Predictions, finished_of, histogram, metrics_of, quantile, summary_of

TOTALS = {
    "instances": 10,
    "completed": 3,
    "failed": 1,
    "skipped": 2,
    "remaining": 4,
    "patches": {"applies": 1, "repaired": 1, "none": 1},
    "usage": {"input_tokens": 100, "output_tokens": 10},
    "cost_usd": Decimal("0.5"),
    "wall_s": 2.0,
    "output_tokens_per_s": 5.0,
    "stats": {"concurrency": 8.0},
}


def test_a_point_holds_counts_rates_tokens_dollars_and_engine_figures() -> None:
    assert metrics_of(TOTALS, [1.0, 3.0]) == {
        "completed": 3,
        "failed": 1,
        "skipped": 2,
        "remaining": 4,
        "cost_usd": 0.5,
        "elapsed_s": 2.0,
        "output_tokens_per_s": 5.0,
        "patches/applies": 1,
        "patches/repaired": 1,
        "patches/none": 1,
        "tokens/input": 100,
        "tokens/output": 10,
        "engine/concurrency": 8.0,
        "apply_rate": 0.2,
        "apply_rate_checked": 1.0,
        "unchecked_share": 0.0,
        "failure_rate": 0.25,
        "window/latency_s_mean": 2.0,
        "window/latency_s_p50": 2.0,
        "window/latency_s_p95": pytest.approx(2.9),
        "over_usd/completed": 3,
        "over_usd/apply_rate": 0.2,
    }
    assert finished_of(TOTALS) == 6


def test_an_unknown_cost_is_absent_from_curves_and_summary() -> None:
    totals = {**TOTALS, "cost_usd": None}
    assert not [key for key in metrics_of(totals) if "usd" in key]
    assert "cost_usd" not in summary_of(totals)


def test_the_summary_has_intervals_and_the_cached_share() -> None:
    usage = {"input_tokens": 400, "cached_input_tokens": 100}
    evaluated = {"resolved_rate": 0.5, "pass_at_k": 0.75, "resolved_by_any": 3, "cost_per_resolved_usd": 0.1}
    patches = {"applies": 2, "does_not_apply": 2}
    out = summary_of({**TOTALS, **evaluated, "patches": patches, "instances": 4, "samples": 1, "usage": usage})
    assert (out["resolved_rate_low"], out["resolved_rate_high"]) == pytest.approx((0.15, 0.85), abs=0.001)
    assert out["apply_rate_low"] == out["resolved_rate_low"]
    assert out["cached_share"] == 0.25
    assert out.items() >= evaluated.items()


def test_figures_that_are_no_finite_numbers_are_left_out() -> None:
    totals = {**TOTALS, "stats": {"nan": float("nan"), "inf": float("inf"), "fine": 1.0}}
    assert [key for key in metrics_of(totals) if key.startswith("engine/")] == ["engine/fine"]


def test_resolved_counts_reach_the_summary() -> None:
    out = summary_of({**TOTALS, "resolved": 2, "evaluated": 4, "resolved_rate": 0.5})
    assert (out["resolved"], out["evaluated"], out["resolved_rate"]) == (2, 4, 0.5)


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=50))
def test_quantiles_are_those_of_the_standard_library(values: list[float]) -> None:
    ordered = sorted(values)
    percentiles = statistics.quantiles(ordered, n=20, method="inclusive")
    assert quantile(ordered, 0.5) == pytest.approx(statistics.median(ordered))
    assert quantile(ordered, 0.95) == pytest.approx(percentiles[-1])


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 40))
def test_a_histogram_counts_each_value_once_within_its_edges(values: list[float], bins: int) -> None:
    counts, edges = histogram(values, bins)
    assert sum(counts) == len(values)
    assert len(edges) == len(counts) + 1
    assert edges[0] <= min(values)
    assert edges[-1] >= max(values)
    assert edges == sorted(edges)


def test_each_alert_comes_once_and_only_when_it_is_due() -> None:
    alerts = Alerts(failure_rate=0.2, budget_share=0.9, max_usd=1.0)
    assert alerts.due({"completed": 10, "failed": 8, "cost_usd": 0.1}) == []  # too few to say
    assert alerts.due({"completed": 96, "failed": 4, "skipped": 900, "cost_usd": 0.89}) == []
    due = alerts.due({"completed": 96, "failed": 40, "cost_usd": Decimal("0.9")})
    assert [title for title, _ in due] == ["Many failures", "Budget nearly used"]
    assert alerts.due({"completed": 96, "failed": 40, "cost_usd": 0.95}) == []
    billed = {"completed": 4, "cost_usd": Decimal("0.3"), "possibly_billed_usd": Decimal("0.61")}
    assert Alerts(None, 0.9, 1.0).due(billed) == [
        ("Budget nearly used", "0.3000 of 1.0000 dollars are spent, and 0.6100 may have been billed.")
    ]
    assert Alerts(None, None, 1.0).due({"completed": 0, "failed": 100, "cost_usd": 2}) == []


def line(instance: str, status: str, **more: object) -> bytes:
    record = {"instance_id": instance, "sample": 0, "status": status, "model_patch": "", "cost_usd": 0, **more}
    return json.dumps(record).encode() + b"\n"


def test_records_are_followed_line_by_line_and_the_last_one_of_a_sample_holds(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    predictions = Predictions(tmp_path)
    assert predictions.read_new() == []
    path.write_bytes(line("a", "failed", latency_s=9) + line("b", "completed", latency_s=1.5)[:20])
    assert predictions.read_new() == []
    path.write_bytes(line("a", "failed", latency_s=9) + line("b", "completed", latency_s=1.5) + b"{torn\n[]\n")
    assert predictions.read_new() == [1.5]
    with path.open("ab") as file:
        file.write(line("a", "completed", latency_s=2, cost_usd=None))
    assert predictions.read_new() == [2.0]
    assert [(row[0], row[2]) for row in predictions.rows(10)] == [("a", "completed"), ("b", "completed")]
    assert [row[0] for row in predictions.rows(1)] == ["a"]
    assert predictions.latencies() == [1.5, 2.0]


def test_the_table_shows_what_an_evaluation_found(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_bytes(line("a", "completed") + line("b", "completed") + line("c", "failed"))
    evaluated = [
        {"instance_id": "a", "sample": 0, "resolved": True},
        {"instance_id": "b", "sample": 0, "resolved": False},
    ]
    (tmp_path / "evaluation.jsonl").write_text("\n".join(map(json.dumps, evaluated)), encoding="utf-8")
    predictions = Predictions(tmp_path)
    predictions.read_new()
    assert [row[5] for row in predictions.rows(10)] == [True, False, None]
