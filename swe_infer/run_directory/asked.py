"""The instances and turns that the last command on a run directory covered (``asked.json``).

``records.jsonl`` contains the answers of all commands. Counts, rates and predictions cover the instances and turns of
the last one only.
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path

from swe_infer.files import read_regular, write_atomically
from swe_infer.run_directory.layout import COVERAGE
from swe_infer.text import bounded_json

_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Coverage:
    """The instances of one command.

    Args:
        instance_ids: in the dataset's order; None: every instance that has a record.
        min_tokens, max_tokens: the bounds on a prompt's length.
        decided: every prompt was checked against the bounds, so those with a record need no second check.
        turns: further turns of each conversation (:mod:`swe_infer.feedback`); None: all that have a record.
        turns_done: every answer was checked, and each further turn that it needs has a record.
    """

    instance_ids: tuple[str, ...] | None
    min_tokens: int | None = None
    max_tokens: int | None = None
    decided: bool = False
    turns: int | None = 0
    turns_done: bool = False

    @property
    def ids(self) -> frozenset[str] | None:
        """The instances that the figures cover; None: all with a record."""
        return None if self.instance_ids is None else frozenset(self.instance_ids)

    def has_turn(self, turn: int) -> bool:
        """Whether the figures cover a turn."""
        return self.turns is None or turn <= self.turns

    def decides(self, now: Coverage, recorded: Set[str]) -> bool:
        """Whether the records of the instances ``recorded`` need no check against the bounds of ``now``."""
        if not self.decided or (self.min_tokens, self.max_tokens) != (now.min_tokens, now.max_tokens):
            return False
        return self.instance_ids is None or (recorded & set(now.instance_ids or ())) <= set(self.instance_ids)


def read_coverage(directory: Path) -> Coverage | None:
    """The coverage of the last command; None without a valid file, as in runs of earlier versions.

    Raises:
        OSError: the file exists but cannot be read.
    """
    try:
        found = bounded_json(read_regular(directory / COVERAGE, _MAX_BYTES))
        ids = found["instance_ids"]
        if not isinstance(ids, list):
            return None
        bounds = found["min_tokens"], found["max_tokens"]
        turns = found.get("turns", 0)  # absent in files of earlier versions
        if not all(bound is None or type(bound) is int for bound in (*bounds, turns)):
            return None
        done = found.get("turns_done") is True
        return Coverage(tuple(map(str, ids)), *bounds, found["decided"] is True, turns, done)
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_coverage(directory: Path, coverage: Coverage) -> None:
    """Replace the file.

    Raises:
        StoreError: the file cannot be written; the old one is unchanged.
    """
    write_atomically(directory / COVERAGE, json.dumps(asdict(coverage)) + "\n")
