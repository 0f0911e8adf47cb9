"""The predictions as W&B shows them: read from ``records.jsonl`` as it grows, one row a sample, and histograms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from swe_infer.asked import asked_ids

__all__ = ["COLUMNS", "Predictions", "histogram", "record_of_row"]

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
    """Follows a ``records.jsonl``, for the instances that the last command asked for. The last record of an
    (instance, sample) is the one that holds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._asked = asked_ids(directory)
        self._path = directory / "records.jsonl"
        self._offset = 0
        self._rows: dict[tuple[str, int], list[Any]] = {}

    def read_new(self) -> list[float]:
        """Take in the whole lines written since the last call; return the latencies of the answers among them.

        Lines that are not a record's are passed over: a torn one is the store's to repair.
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
        for line in data[:end].splitlines():
            try:
                record = json.loads(line)
                row = _row(record)
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
            if self._asked is not None and row[0] not in self._asked:
                continue
            self._rows[(row[0], row[1])] = row
            if row[2] == "completed" and row[10] is not None:
                latencies.append(row[10])
        return latencies

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, most: int) -> list[list[Any]]:
        """The first ``most`` rows of :data:`COLUMNS`, in order of instance and sample; ``resolved`` is None where the
        run was not evaluated."""
        resolved = _resolved(self._directory / "evaluation.jsonl")
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


def _row(record: dict[str, Any]) -> list[Any]:
    usage = record.get("usage") or {}
    error = record.get("error") or {}
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
    """What a row of the table keeps of its line of ``records.jsonl``: no answer, and a long patch cut."""
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


def _resolved(path: Path) -> dict[tuple[str, int], bool]:
    """``resolved`` of each (instance, sample) from an ``evaluation.jsonl``; empty where there is none."""
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    out = {}
    for line in lines:
        try:
            record = json.loads(line)
            if isinstance(record.get("resolved"), bool):
                out[(str(record["instance_id"]), int(record.get("sample", 0)))] = record["resolved"]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return out
