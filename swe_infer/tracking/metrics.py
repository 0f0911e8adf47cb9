"""Data for W&B: metrics from a run's totals, and a table and histograms from its predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from swe_infer.errors import ConfigError
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import EVALUATED_FIGURES, patch_rates
from swe_infer.run_directory.intervals import wilson
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Record, key_of, purpose_of, records_of, supersedes, turn_of

DEFINITIONS: tuple[tuple[str, str, Literal["none"] | None], ...] = (
    # name or glob, x axis, "none" to keep it out of the W&B summary
    # By default the W&B summary has the last value. "max" and "last" would store it as NAME.max and NAME.last, which
    # sweeps and filters do not read.
    ("cost_usd", "elapsed_s", None),
    ("completed", "elapsed_s", None),
    ("failed", "elapsed_s", None),
    ("skipped", "elapsed_s", None),
    ("remaining", "elapsed_s", None),
    ("infrastructure_failures", "elapsed_s", None),
    ("apply_rate", "elapsed_s", None),
    ("apply_rate_without_infrastructure_failures", "elapsed_s", None),
    ("apply_rate_checked", "elapsed_s", None),
    ("unchecked_share", "elapsed_s", None),
    ("failure_rate", "elapsed_s", None),
    ("output_tokens_per_s", "elapsed_s", None),
    ("patches/*", "elapsed_s", None),
    ("tokens/*", "elapsed_s", None),
    ("engine/*", "elapsed_s", None),
    ("feedback/*", "elapsed_s", None),
    ("auxiliary/*", "elapsed_s", None),
    ("window/*", "elapsed_s", "none"),  # of the answers since the last point only
    ("over_usd/*", "cost_usd", "none"),  # the same metrics with dollars as x axis
)

_WITHOUT_FAILURES = ("apply_rate_without_infrastructure_failures", "resolved_rate_without_infrastructure_failures")

_TOKENS = {
    "input_tokens": "tokens/input",
    "cached_input_tokens": "tokens/cached_input",
    "cache_write_tokens": "tokens/cache_write",
    "cache_write_1h_tokens": "tokens/cache_write_1h",
    "output_tokens": "tokens/output",
    "reasoning_tokens": "tokens/reasoning",
}


def metrics_of(totals: Mapping[str, Any], latencies_s: Sequence[float] = ()) -> dict[str, float]:
    """The metrics of one point, without unknown values.

    Args:
        latencies_s: of the answers since the last point.
    """
    out: dict[str, float] = {}
    for key in (
        "completed",
        "failed",
        "skipped",
        "remaining",
        "infrastructure_failures",
        "cost_usd",
        "output_tokens_per_s",
    ):
        _put(out, key, totals.get(key))
    if totals.get("possibly_billed_usd"):
        _put(out, "possibly_billed_usd", totals["possibly_billed_usd"])
    _put(out, "elapsed_s", totals.get("wall_s"))
    for status, count in (totals.get("patches") or {}).items():
        _put(out, f"patches/{status}", count)
    for key, count in (totals.get("usage") or {}).items():
        _put(out, _TOKENS.get(key, f"tokens/{key}"), count)
    for key, value in (totals.get("feedback") or {}).items():
        _put(out, f"feedback/{key}", value)
    for name, figures in (totals.get("auxiliary") or {}).items():
        for key, value in figures.items():
            _put(out, f"auxiliary/{name}/{key}", value)
    for group in ("engine", "stats"):
        for key, value in (totals.get(group) or {}).items():
            _put(out, f"engine/{key}", value)
    out |= _rates(totals)
    out |= {f"window/{key}": value for key, value in latency_figures(latencies_s).items()}
    if out.get("cost_usd"):
        out |= {f"over_usd/{key}": out[key] for key in ("completed", "apply_rate") if key in out}
    return out


def summary_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """The W&B summary of a finished run: the final metrics, the figures of its evaluation, the 95 % Wilson intervals
    of its rates, and the share of cached input tokens.

    Unknown figures, such as a cost without a price, are absent.
    """
    out = {k: v for k, v in metrics_of(summary).items() if not k.startswith("over_usd/")}
    for key in ("instances", "samples", "selected", "selected_apply_rate", *sorted(EVALUATED_FIGURES)):
        _put(out, key, summary.get(key))
    if summary.get("infrastructure_failures"):
        _put(out, _WITHOUT_FAILURES[1], summary.get(_WITHOUT_FAILURES[1]))
    instances = int(out.get("instances", 0))
    for key in ("apply_rate", "resolved_rate"):
        if key in out and (interval := wilson(out[key] * instances, instances)) is not None:
            out |= {f"{key}_low": interval.low, f"{key}_high": interval.high}
    if out.get("tokens/input"):
        out["cached_share"] = out.get("tokens/cached_input", 0) / out["tokens/input"]
    return out


VANISHING = frozenset(["cost_usd", "cached_share", *EVALUATED_FIGURES, "resolved_rate_low", "resolved_rate_high"])
"""Figures of :func:`summary_of` that a later command of the same run may lack."""


def finished_of(totals: Mapping[str, Any]) -> int:
    """The number of completed, failed and skipped samples, which is the W&B step."""
    return sum(int(totals.get(key) or 0) for key in ("completed", "failed", "skipped"))


def quantile(ordered: Sequence[float], q: float) -> float:
    """The quantile of a sorted, non-empty sequence, by linear interpolation (Hyndman and Fan's type 7)."""
    position = (len(ordered) - 1) * q
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def latency_figures(latencies_s: Sequence[float]) -> dict[str, float]:
    """Mean, median and 95th percentile; empty without latencies."""
    if not latencies_s:
        return {}
    ordered = sorted(latencies_s)
    return {
        "latency_s_mean": math.fsum(ordered) / len(ordered),
        "latency_s_p50": quantile(ordered, 0.5),
        "latency_s_p95": quantile(ordered, 0.95),
    }


class Alerts:
    """Alerts during a run; each is sent once."""

    def __init__(self, failure_rate: float | None, budget_share: float | None, max_usd: float | None) -> None:
        self._failure_rate = failure_rate
        self._budget_share = budget_share
        self._max_usd = max_usd

    def due(self, totals: Mapping[str, Any]) -> list[tuple[str, str]]:
        """``(title, text)`` of alerts to send now."""
        due = []
        failed, answered = int(totals.get("failed") or 0), finished_of(totals) - int(totals.get("skipped") or 0)
        if self._failure_rate is not None and answered >= 20 and failed > self._failure_rate * answered:
            due.append(("Many failures", f"{failed} of {answered} samples have failed."))
            self._failure_rate = None
        charged = [number(totals.get(key)) or 0.0 for key in ("cost_usd", "possibly_billed_usd")]
        limit = self._budget_share * self._max_usd if self._budget_share and self._max_usd else None
        if limit is not None and sum(charged) >= limit:
            also = f", and {charged[1]:.4f} may have been billed" if charged[1] else ""
            due.append(("Budget nearly used", f"{charged[0]:.4f} of {self._max_usd:.4f} dollars are spent{also}."))
            self._budget_share = None
        return due


def _rates(totals: Mapping[str, Any]) -> dict[str, float]:
    """The patch rates of the summary, and ``failure_rate``: failed over completed and failed samples."""
    out = {name: rate for name, rate in patch_rates(totals).items() if rate is not None}
    if totals.get("infrastructure_failures"):
        _put(out, _WITHOUT_FAILURES[0], totals.get(_WITHOUT_FAILURES[0]))
    answered = (totals.get("completed") or 0) + (totals.get("failed") or 0)
    if answered:
        out["failure_rate"] = (totals.get("failed") or 0) / answered
    return out


def number(value: Any) -> float | None:
    """``value`` as a finite number, or None."""
    if value is None or isinstance(value, bool):
        return None
    try:
        figure = float(value)
    except (TypeError, ValueError):
        return None
    return figure if math.isfinite(figure) else None


def _put(out: dict[str, Any], key: str, value: Any) -> None:
    figure = number(value)
    if figure is not None:
        out[key] = int(figure) if isinstance(value, int) else figure


COLUMNS: dict[str, type] = {
    "instance_id": str,
    "sample": int,
    "status": str,
    "finish_reason": str,
    "patch_status": str,
    "resolved": bool,
    "prompt_tokens": int,
    "cached_tokens": int,
    "output_tokens": int,
    "cost_usd": float,
    "latency_s": float,
    "attempts": int,
    "error": str,
    "patch": str,
}
"""The columns of the predictions table and their types; cells may be None."""

PATCH_CHARACTERS = 4000
"""Longer patches are truncated in the table; the artifact contains them in full."""


class Predictions:
    """Table rows from the records of a running run, for the covered instances. One record of each sample counts, see
    :mod:`swe_infer.run_directory.records`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._coverage = RunDirectory(directory).coverage() or Coverage(None, turns=None)
        self._covered_ids = self._coverage.ids
        self._path = directory / layout.RECORDS
        self._offset = 0
        self._rows: dict[tuple[str, int], list[Any]] = {}
        self._turns: dict[tuple[str, int], int] = {}

    def read_new(self) -> list[float]:
        """Read the whole lines written since the last call; returns the latencies of new answers.

        Invalid lines are ignored; the store reports them.
        """
        latencies = []
        try:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        for record in records_of(data[:end]):
            if purpose_of(record) is not None:
                continue
            row, key, turn = _row(record), key_of(record), turn_of(record)
            if key in self._rows and not supersedes(row[2], self._rows[key][2], turn, self._turns.get(key, 0)):
                continue
            if self._covered_ids is not None and row[0] not in self._covered_ids:
                continue
            if not self._coverage.has_turn(turn):
                continue
            self._rows[key] = row
            if turn or key in self._turns:
                self._turns[key] = turn
            if row[2] == "completed" and row[10] is not None:
                latencies.append(row[10])
        return latencies

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, limit: int) -> list[list[Any]]:
        """The first ``limit`` rows, sorted by instance and sample, with the cells of :data:`COLUMNS`. ``resolved`` is
        None before evaluation."""
        try:
            resolved = RunDirectory(self._directory).resolved()
        except ConfigError:  # the run reports it
            resolved = {}
        out = []
        for key in sorted(self._rows)[:limit]:
            row = list(self._rows[key])
            row[5] = resolved.get((key, self._turns.get(key, 0)))
            out.append(row)
        return out

    def histograms(self, bins: int = 40) -> dict[str, tuple[list[int], list[float]]]:
        """``{name: (counts, edges)}`` of completed samples; names without values are missing."""
        completed = [row for row in self._rows.values() if row[2] == "completed"]
        columns = {"latency_s": 10, "output_tokens": 8, "prompt_tokens": 6}
        values = {name: [row[i] for row in completed if row[i] is not None] for name, i in columns.items()}
        return {f"histograms/{name}": histogram(v, bins) for name, v in values.items() if v}

    def latencies(self) -> list[float]:
        """Seconds of all completed samples, sorted."""
        return sorted(row[10] for row in self._rows.values() if row[2] == "completed" and row[10] is not None)


def histogram(values: Sequence[float], bins: int) -> tuple[list[int], list[float]]:
    """Counts and edges of equal-width bins over ``values`` (not empty); one bin if all values are equal."""
    low, high = float(min(values)), float(max(values))
    if low == high:
        return [len(values)], [low - 0.5, low + 0.5]
    width = (high - low) / bins
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return counts, [low + width * i for i in range(bins)] + [high]


def _row(record: Record) -> list[Any]:
    usage = record.get("usage") or {}
    error: Mapping[str, Any] = record.get("error") or {}
    cost = record.get("cost_usd")
    latency = record.get("latency_s")
    return [
        str(record["instance_id"]),
        int(record["sample"]),
        str(record["status"]),
        record.get("finish_reason"),
        record.get("patch_status"),
        None,
        usage.get("input_tokens"),
        usage.get("cached_input_tokens"),
        usage.get("output_tokens"),
        None if cost is None else float(cost),
        None if latency is None else float(latency),
        record.get("attempts"),
        ": ".join(str(error[k]) for k in ("type", "message") if error.get(k)) or None,
        _truncated(record.get("model_patch") or ""),
    ]


def record_of_row(row: Sequence[Any]) -> dict[str, Any]:
    """The record of a table row, without its answer, and with a long patch truncated."""
    cell = dict(zip(COLUMNS, row, strict=True))
    kind, _, message = (cell["error"] or "").partition(": ")
    usage = {
        "input_tokens": cell["prompt_tokens"] or 0,
        "cached_input_tokens": cell["cached_tokens"] or 0,
        "output_tokens": cell["output_tokens"] or 0,
    }
    copied = ("instance_id", "sample", "status", "finish_reason", "patch_status", "resolved", "cost_usd", "latency_s")
    return {
        **{name: cell[name] for name in copied},
        "attempts": cell["attempts"],
        "usage": usage,
        "full_output": "",
        "model_patch": cell["patch"] or "",
        "error": {"type": kind, "message": message} if kind else None,
    }


def _truncated(patch: str) -> str:
    if len(patch) <= PATCH_CHARACTERS:
        return patch
    return f"{patch[:PATCH_CHARACTERS]}\n… {len(patch) - PATCH_CHARACTERS} characters more"
