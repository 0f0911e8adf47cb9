"""Verdicts of tests on a run's patches: ``evaluation.jsonl``, one line an (instance, sample).

A file of its own, because ``records.jsonl`` is append-only and belongs to the run. It covers what the last command
asked for. Once there are verdicts of other instances, ``evaluation.all.jsonl`` keeps all of them.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.files import write_atomically
from swe_infer.run_directory.layout import EVALUATION, EVERY_VERDICT, content
from swe_infer.run_directory.records import Key
from swe_infer.text import bounded_json
from swe_infer.types import MAX_SAMPLES

_MOST_BYTES = 1 << 30
_FORM = "not a verdict with instance_id and resolved"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one prediction.

    Args:
        reason: None where resolved, else one line that says why not.
        source: who found out: ``swebench``, ``report``, or ``tests`` for a dataset that brings its own.
        judged: of such tests: ``outside`` the process that runs the patched code, or ``beside`` that code, which can
            then forge its verdict.
    """

    instance_id: str
    sample: int
    resolved: bool
    reason: str | None = None
    source: str = ""
    judged: str | None = None

    @property
    def key(self) -> Key:
        return (self.instance_id, self.sample)


def read_verdicts(directory: Path, name: str = EVALUATION) -> list[Verdict]:
    """The verdicts of a run directory; none where it was never evaluated.

    Raises:
        ConfigError: the file cannot be read, or a line of it is no verdict.
    """
    path = directory / name
    verdicts = []
    for number, line in enumerate((content(directory, name, _MOST_BYTES) or b"").splitlines(), 1):
        try:
            verdicts.append(_verdict(bounded_json(line)))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise ConfigError(f"{path}, line {number}: {_FORM}; remove the file and evaluate again") from None
    return verdicts


def write_verdicts(directory: Path, verdicts: Iterable[Verdict], covers: Container[Key]) -> list[Verdict]:
    """Join ``verdicts`` with those that are there (new ones win); returns those of the keys that ``covers`` holds,
    which make up ``evaluation.jsonl`` from now on.

    Raises:
        ConfigError: the verdicts that are there cannot be read.
        StoreError: a file cannot be written.
    """
    before = [*read_verdicts(directory, EVERY_VERDICT), *read_verdicts(directory)]
    joined = {verdict.key: verdict for verdict in [*before, *verdicts]}
    everything = [joined[key] for key in sorted(joined)]
    covered = [verdict for verdict in everything if verdict.key in covers]
    if len(covered) < len(everything):  # before the other file: a kill in between loses no verdict
        write_atomically(directory / EVERY_VERDICT, _lines(everything))
    write_atomically(directory / EVALUATION, _lines(covered))
    return covered


def _verdict(entry: dict[str, object]) -> Verdict:
    resolved, sample = entry["resolved"], entry.get("sample", 0)
    if not isinstance(resolved, bool) or type(sample) is not int or not 0 <= sample < MAX_SAMPLES:
        raise TypeError
    reason, judged = entry.get("reason"), entry.get("judged")
    return Verdict(
        str(entry["instance_id"]),
        sample,
        resolved,
        None if reason is None else str(reason),
        str(entry.get("source", "")),
        None if judged is None else str(judged),
    )


def _lines(verdicts: Iterable[Verdict]) -> str:
    return "".join(json.dumps(asdict(verdict)) + "\n" for verdict in verdicts)
