"""Test verdicts on a run's patches: ``evaluation.jsonl``, one line per (instance, sample).

They are not in ``records.jsonl``, which is append-only and owned by the running process. The file covers the
instances of the last command. If there are verdicts of other instances, ``evaluation.all.jsonl`` contains all.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.files import write_atomically
from swe_infer.run_directory.layout import ALL_VERDICTS, EVALUATION, content
from swe_infer.run_directory.records import Key
from swe_infer.text import bounded_json
from swe_infer.types import MAX_SAMPLES

_MAX_BYTES = 1 << 30
_FORM = "not a verdict with instance_id and resolved"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The test result of one prediction.

    Args:
        reason: one line that says why it is not resolved; None if it is.
        source: ``swebench``, ``report``, ``command:DIGEST``, or ``tests`` for the dataset's own tests.
        judged: for ``tests``: ``outside`` the process of the patched code, or ``beside`` that code, which can then
            forge the verdict.
        turn: the further turn whose patch was tested; 0: the first answer.
    """

    instance_id: str
    sample: int
    resolved: bool
    reason: str | None = None
    source: str = ""
    judged: str | None = None
    turn: int = 0

    @property
    def key(self) -> Key:
        return (self.instance_id, self.sample)


def read_verdicts(directory: Path, name: str = EVALUATION) -> list[Verdict]:
    """The verdicts of a run directory; empty if it was not evaluated.

    Raises:
        ConfigError: the file cannot be read, or contains an invalid line.
    """
    path = directory / name
    verdicts = []
    for number, line in enumerate((content(directory, name, _MAX_BYTES) or b"").splitlines(), 1):
        try:
            verdicts.append(_verdict(bounded_json(line)))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise ConfigError(f"{path}, line {number}: {_FORM}; remove the file and evaluate again") from None
    return verdicts


def write_verdicts(directory: Path, verdicts: Iterable[Verdict], covers: Mapping[Key, int]) -> list[Verdict]:
    """Merge ``verdicts`` into the existing ones (new ones win).

    Args:
        covers: the turn of the answer that counts of each covered (instance, sample).

    Returns:
        The verdicts of the answers in ``covers``, which ``evaluation.jsonl`` now contains.

    Raises:
        ConfigError: the existing verdicts cannot be read.
        StoreError: a file cannot be written.
    """
    existing = [*read_verdicts(directory, ALL_VERDICTS), *read_verdicts(directory)]
    merged = {(verdict.key, verdict.turn): verdict for verdict in [*existing, *verdicts]}
    ordered = [merged[answer] for answer in sorted(merged)]
    covered = [verdict for verdict in ordered if covers.get(verdict.key) == verdict.turn]
    if len(covered) < len(ordered):  # written first, so that a kill in between loses no verdict
        write_atomically(directory / ALL_VERDICTS, _lines(ordered))
    write_atomically(directory / EVALUATION, _lines(covered))
    return covered


def drop_verdicts(directory: Path, answers: Collection[tuple[Key, int]]) -> int:
    """Remove the verdicts of ``answers`` (key and turn), because their patches have changed; returns their number.

    Raises:
        ConfigError: the verdicts cannot be read.
        StoreError: a file cannot be written.
    """
    dropped: set[tuple[Key, int]] = set()
    for name in (EVALUATION, ALL_VERDICTS):
        verdicts = read_verdicts(directory, name)
        left = [verdict for verdict in verdicts if (verdict.key, verdict.turn) not in answers]
        if len(left) < len(verdicts):
            dropped |= {(verdict.key, verdict.turn) for verdict in verdicts if verdict not in left}
            write_atomically(directory / name, _lines(left))
    return len(dropped)


def _verdict(entry: dict[str, object]) -> Verdict:
    resolved, sample, turn = entry["resolved"], entry.get("sample", 0), entry.get("turn", 0)
    if not isinstance(resolved, bool) or type(sample) is not int or not 0 <= sample < MAX_SAMPLES:
        raise TypeError
    if type(turn) is not int or turn < 0:
        raise TypeError
    reason, judged = entry.get("reason"), entry.get("judged")
    return Verdict(
        str(entry["instance_id"]),
        sample,
        resolved,
        None if reason is None else str(reason),
        str(entry.get("source", "")),
        None if judged is None else str(judged),
        turn,
    )


def _lines(verdicts: Iterable[Verdict]) -> str:
    return "".join(json.dumps(_entry(verdict)) + "\n" for verdict in verdicts)


def _entry(verdict: Verdict) -> dict[str, object]:
    entry = asdict(verdict)
    if not verdict.turn:
        del entry["turn"]
    return entry
