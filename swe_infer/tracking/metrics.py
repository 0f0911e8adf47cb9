"""What W&B shows of a run: metrics made of its totals, and a table and histograms made of its predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from swe_infer.errors import ConfigError
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import patch_rates
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Record, key_of, records_of, supersedes

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
    ("apply_rate_checked", "elapsed_s", None),
    ("unchecked_share", "elapsed_s", None),
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
    out |= {f"window/{key}": value for key, value in latency_figures(latencies_s).items()}
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


def latency_figures(latencies_s: Sequence[float]) -> dict[str, float]:
    """Mean, median and 95th percentile; nothing of nothing."""
    if not latencies_s:
        return {}
    ordered = sorted(latencies_s)
    return {
        "latency_s_mean": math.fsum(ordered) / len(ordered),
        "latency_s_p50": quantile(ordered, 0.5),
        "latency_s_p95": quantile(ordered, 0.95),
    }


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
        cost = number(totals.get("cost_usd"))
        limit = self._budget_share * self._max_usd if self._budget_share and self._max_usd else None
        if limit is not None and cost is not None and cost >= limit:
            due.append(("Budget nearly used", f"{cost:.4f} of {self._max_usd:.4f} dollars are spent."))
            self._budget_share = None
        return due


def _rates(totals: Mapping[str, Any]) -> dict[str, float]:
    """The rates of patches as the run's summary has them; ``failure_rate`` is failed samples over answered ones."""
    out = {name: rate for name, rate in patch_rates(totals).items() if rate is not None}
    answered = (totals.get("completed") or 0) + (totals.get("failed") or 0)
    if answered:
        out["failure_rate"] = (totals.get("failed") or 0) / answered
    return out


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
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
"""The columns and their types; a cell may also be None."""

PATCH_CHARACTERS = 4000
"""A patch in the table is cut there; the whole one is in the artifact's files."""


class Predictions:
    """Follows the records of a run, for the instances that the last command asked for; a row is of the record that
    counts, see :mod:`swe_infer.run_directory.records`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = RunDirectory(directory).covered_ids()
        self._path = directory / layout.RECORDS
        self._offset = 0
        self._rows: dict[tuple[str, int], list[Any]] = {}

    def read_new(self) -> list[float]:
        """Take in the whole lines written since the last call; return the latencies of the answers among them.

        What is no record is passed over: damage is the store's to report.
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
            row, key = _row(record), key_of(record)
            if key in self._rows and not supersedes(row[2], self._rows[key][2]):
                continue
            if self._asked is not None and row[0] not in self._asked:
                continue
            self._rows[key] = row
            if row[2] == "completed" and row[10] is not None:
                latencies.append(row[10])
        return latencies

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, most: int) -> list[list[Any]]:
        """The first ``most`` rows of :data:`COLUMNS`, in order of instance and sample; ``resolved`` is None where the
        run was not evaluated."""
        try:
            resolved = RunDirectory(self._directory).resolved()
        except ConfigError:  # for the run to report
            resolved = {}
        out = []
        for key in sorted(self._rows)[:most]:
            row = list(self._rows[key])
            row[5] = resolved.get(key)
            out.append(row)
        return out

    def histograms(self, bins: int = 40) -> dict[str, tuple[list[int], list[float]]]:
        """``{name: (counts, edges)}`` of completed samples, for what there are values of."""
        completed = [row for row in self._rows.values() if row[2] == "completed"]
        columns = {"latency_s": 10, "output_tokens": 8, "prompt_tokens": 6}
        values = {name: [row[i] for row in completed if row[i] is not None] for name, i in columns.items()}
        return {f"histograms/{name}": histogram(v, bins) for name, v in values.items() if v}

    def latencies(self) -> list[float]:
        """Of all completed samples, in seconds, sorted."""
        return sorted(row[10] for row in self._rows.values() if row[2] == "completed" and row[10] is not None)


def histogram(values: Sequence[float], bins: int) -> tuple[list[int], list[float]]:
    """Equal-width counts over the range of ``values`` (not empty); one bin where they are all equal."""
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
        _cut(record.get("model_patch") or ""),
    ]


def record_of_row(row: Sequence[Any]) -> dict[str, Any]:
    """What a row of the table keeps of its record: no answer, and a long patch cut."""
    cell = dict(zip(COLUMNS, row, strict=True))
    kind, _, message = (cell["error"] or "").partition(": ")
    usage = {
        "input_tokens": cell["prompt_tokens"] or 0,
        "cached_input_tokens": cell["cached_tokens"] or 0,
        "output_tokens": cell["output_tokens"] or 0,
    }
    kept = ("instance_id", "sample", "status", "finish_reason", "patch_status", "resolved", "cost_usd", "latency_s")
    return {
        **{name: cell[name] for name in kept},
        "attempts": cell["attempts"],
        "usage": usage,
        "full_output": "",
        "model_patch": cell["patch"] or "",
        "error": {"type": kind, "message": message} if kind else None,
    }


def _cut(patch: str) -> str:
    if len(patch) <= PATCH_CHARACTERS:
        return patch
    return f"{patch[:PATCH_CHARACTERS]}\n… {len(patch) - PATCH_CHARACTERS} characters more"
