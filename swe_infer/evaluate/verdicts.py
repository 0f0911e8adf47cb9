"""Verdicts, and where they are kept: ``evaluation.jsonl`` of the run directory, one line an (instance, sample).

A file of its own, because ``records.jsonl`` is append-only and belongs to the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.store import write_atomically

__all__ = ["FILE_NAME", "Verdict", "figures", "read_verdicts", "write_verdicts"]

FILE_NAME = "evaluation.jsonl"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction.

    Args:
        reason: None where resolved, else one line that says why not.
        source: who found out: ``swebench``, ``report``, or ``tests`` for a dataset that brings its own.
    """

    instance_id: str
    sample: int
    resolved: bool
    reason: str | None
    source: str


def read_verdicts(directory: Path) -> list[Verdict]:
    """The verdicts of a run directory; none where it was never evaluated.

    Raises:
        ConfigError: a line is no verdict.
    """
    path = directory / FILE_NAME
    if not path.exists():
        return []
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            verdicts.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: not a verdict; remove the file and evaluate again") from error
    return verdicts


def write_verdicts(directory: Path, verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Join ``verdicts`` with those that are there (new ones win) and replace the file in one step; returns all."""
    joined = {(v.instance_id, v.sample): v for v in [*read_verdicts(directory), *verdicts]}
    everything = [joined[key] for key in sorted(joined)]
    write_atomically(directory / FILE_NAME, "".join(json.dumps(asdict(v)) + "\n" for v in everything))
    return everything


def figures(verdicts: Iterable[Verdict], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``summary.json``: ``resolved`` and ``evaluated`` count samples; ``resolved_rate`` is over every
    sample that the run asked for, so that what failed, was skipped or has no patch counts as not resolved.
    ``resolved_by_any`` counts instances of which one sample at least is resolved."""
    everything = list(verdicts)
    resolved = sum(verdict.resolved for verdict in everything)
    asked = int(summary.get("instances") or 0) * int(summary.get("samples") or 1)
    rate = round(resolved / asked, 6) if asked else None
    by_any = len({verdict.instance_id for verdict in everything if verdict.resolved})
    return {"resolved": resolved, "evaluated": len(everything), "resolved_rate": rate, "resolved_by_any": by_any}
