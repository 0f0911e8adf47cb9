"""From a run's totals to W&B's metrics: their names, their axes, and what a run's summary keeps of each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from swe_infer.asked import apply_rate

__all__ = ["DEFINITIONS", "Alerts", "finished_of", "metrics_of", "quantile", "summary_of"]

DEFINITIONS: tuple[tuple[str, str, Literal["none"] | None], ...] = (
    # name or glob, its x axis, "none" where the run's summary must not keep it
    # Elsewhere W&B keeps the last value under the plain name. "max" and "last" are kept under NAME.max and NAME.last,
    # where neither sweeps nor filters look, and every figure here is right when it is the last one.
    ("cost_usd", "elapsed_s", None),
    ("completed", "elapsed_s", None),
    ("failed", "elapsed_s", None),
    ("skipped", "elapsed_s", None),
    ("remaining", "elapsed_s", None),
    ("apply_rate", "elapsed_s", None),
    ("failure_rate", "elapsed_s", None),
    ("output_tokens_per_s", "elapsed_s", None),
    ("patches/*", "elapsed_s", None),
    ("tokens/*", "elapsed_s", None),
    ("engine/*", "elapsed_s", None),
    ("window/*", "elapsed_s", "none"),  # of the answers since the last point: no figure of the whole run
    ("over_usd/*", "cost_usd", "none"),  # the same curves over dollars
)

_TOKENS = {
    "input_tokens": "tokens/input",
    "cached_input_tokens": "tokens/cached_input",
    "cache_write_tokens": "tokens/cache_write",
    "output_tokens": "tokens/output",
    "reasoning_tokens": "tokens/reasoning",
}


def metrics_of(totals: Mapping[str, Any], latencies_s: Sequence[float] = ()) -> dict[str, float]:
    """One point. ``latencies_s`` are those of the answers since the last point. What is unknown is left out."""
    out: dict[str, float] = {}
    for key in ("completed", "failed", "skipped", "remaining", "cost_usd", "output_tokens_per_s"):
        _put(out, key, totals.get(key))
    _put(out, "elapsed_s", totals.get("wall_s"))
    for status, count in (totals.get("patches") or {}).items():
        _put(out, f"patches/{status}", count)
    for key, count in (totals.get("usage") or {}).items():
        _put(out, _TOKENS.get(key, f"tokens/{key}"), count)
    for group in ("engine", "stats"):
        for key, value in (totals.get(group) or {}).items():
            _put(out, f"engine/{key}", value)
    out |= _rates(totals)
    if latencies_s:
        ordered = sorted(latencies_s)
        out["window/latency_s_mean"] = math.fsum(ordered) / len(ordered)
        out["window/latency_s_p50"] = quantile(ordered, 0.5)
        out["window/latency_s_p95"] = quantile(ordered, 0.95)
    if out.get("cost_usd"):
        out |= {f"over_usd/{key}": out[key] for key in ("completed", "apply_rate") if key in out}
    return out


def summary_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the run's page shows when it is over: the last totals, and ``resolved`` where it was evaluated."""
    out: dict[str, Any] = {k: v for k, v in metrics_of(summary).items() if not k.startswith("over_usd/")}
    _put(out, "instances", summary.get("instances"))
    _put(out, "samples", summary.get("samples"))
    for key in ("resolved", "evaluated", "resolved_rate"):
        _put(out, key, summary.get(key))
    if summary.get("cost_usd") is None and "cost_usd" in summary:
        out["cost_usd"] = "unknown"
    return out


def finished_of(totals: Mapping[str, Any]) -> int:
    """The step: how many samples are completed, failed or skipped."""
    return sum(int(totals.get(key) or 0) for key in ("completed", "failed", "skipped"))


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear interpolation between the closest ranks of a sorted, non-empty sequence (Hyndman and Fan's type 7)."""
    position = (len(ordered) - 1) * q
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


class Alerts:
    """What a user wants to be told about while the run is live; each once."""

    def __init__(self, failure_rate: float | None, budget_share: float | None, max_usd: float | None) -> None:
        self._failure_rate = failure_rate
        self._budget_share = budget_share
        self._max_usd = max_usd

    def due(self, totals: Mapping[str, Any]) -> list[tuple[str, str]]:
        """``(title, text)`` of the alerts that have just become due."""
        due = []
        failed, answered = int(totals.get("failed") or 0), finished_of(totals) - int(totals.get("skipped") or 0)
        if self._failure_rate is not None and answered >= 20 and failed > self._failure_rate * answered:
            due.append(("Many failures", f"{failed} of {answered} samples have failed."))
            self._failure_rate = None
        cost = _number(totals.get("cost_usd"))
        limit = self._budget_share * self._max_usd if self._budget_share and self._max_usd else None
        if limit is not None and cost is not None and cost >= limit:
            due.append(("Budget nearly used", f"{cost:.4f} of {self._max_usd:.4f} dollars are spent."))
            self._budget_share = None
        return due


def _rates(totals: Mapping[str, Any]) -> dict[str, float]:
    """``apply_rate`` is over every sample that was asked for, as in ``summary.json``; ``failure_rate`` is failed
    samples over answered ones."""
    out = {}
    if (applied := apply_rate(totals)) is not None:
        out["apply_rate"] = applied
    answered = (totals.get("completed") or 0) + (totals.get("failed") or 0)
    if answered:
        out["failure_rate"] = (totals.get("failed") or 0) / answered
    return out


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _put(out: dict[str, Any], key: str, value: Any) -> None:
    number = _number(value)
    if number is not None:
        out[key] = int(number) if isinstance(value, int) else number
