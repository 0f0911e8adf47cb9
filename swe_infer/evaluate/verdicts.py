"""Verdicts, and where they are kept: ``evaluation.jsonl`` of the run directory, one line an (instance, sample).

A file of its own, because ``records.jsonl`` is append-only and belongs to the run. It covers what the last command
asked for. Once there are verdicts of other instances, ``evaluation.all.jsonl`` keeps all of them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swe_infer.asked import share
from swe_infer.errors import ConfigError
from swe_infer.store import write_atomically

__all__ = ["FILE_NAME", "Verdict", "figures", "read_verdicts", "write_verdicts"]

FILE_NAME = "evaluation.jsonl"
_ALL = "evaluation.all.jsonl"


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


def read_verdicts(directory: Path, name: str = FILE_NAME) -> list[Verdict]:
    """The verdicts of a run directory; none where it was never evaluated.

    Raises:
        ConfigError: a line is no verdict.
    """
    path = directory / name
    if not path.exists():
        return []
    verdicts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            verdicts.append(Verdict(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: not a verdict; remove the file and evaluate again") from error
    return verdicts


def write_verdicts(directory: Path, verdicts: Iterable[Verdict], covers: Container[tuple[str, int]]) -> list[Verdict]:
    """Join ``verdicts`` with those that are there (new ones win); returns those of the keys that ``covers`` holds,
    which make up ``evaluation.jsonl`` from now on."""
    before = [*read_verdicts(directory, _ALL), *read_verdicts(directory)]
    joined = {(v.instance_id, v.sample): v for v in [*before, *verdicts]}
    everything = [joined[key] for key in sorted(joined)]
    covered = [verdict for verdict in everything if (verdict.instance_id, verdict.sample) in covers]
    if len(covered) < len(everything):  # before the other file: a kill in between loses no verdict
        write_atomically(directory / _ALL, _lines(everything))
    write_atomically(directory / FILE_NAME, _lines(covered))
    return covered


def _lines(verdicts: Iterable[Verdict]) -> str:
    return "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)


def figures(verdicts: Iterable[Verdict], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``summary.json``: ``resolved`` and ``evaluated`` count samples; ``resolved_rate`` is over every
    sample that the run asked for, so that what failed, was skipped or has no patch counts as not resolved.
    ``resolved_by_any`` counts instances of which one sample at least is resolved."""
    everything = list(verdicts)
    resolved = sum(verdict.resolved for verdict in everything)
    by_any = len({verdict.instance_id for verdict in everything if verdict.resolved})
    return {
        "resolved": resolved,
        "evaluated": len(everything),
        "resolved_rate": share(resolved, summary),
        "resolved_by_any": by_any,
    }
