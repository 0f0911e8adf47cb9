"""A point of a sweep, as one line of ``runs.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from swe_infer.files import read_regular, write_atomically
from swe_infer.text import bounded_json

LOST = 1
"""The exit status of a point whose process died before it ended."""

_SWEPT = "swept.json"


@dataclass(frozen=True, slots=True)
class SweepJob:
    """How one point ended.

    Args:
        overrides: what the sweep set, in the order of the command line.
        run: the run directory; None where there is none: a bad configuration, a dry run.
        status: the exit status, as the README states it.
        objective: the figures that a searching sweeper asked for; None where the point has none.
        error: one line that says what went wrong.
        elsewhere: it ran in a process that does not share the sweep's standard output.
        number: its place among the points; those of earlier launches are below 0.
    """

    overrides: tuple[str, ...]
    run: str | None
    status: int
    objective: list[float] | None = None
    error: str | None = None
    elsewhere: bool = False
    number: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_line(cls, line: bytes) -> Self | None:
        """The point of one line; None for a line that a killed process left unfinished, or that is no point."""
        try:
            fields = bounded_json(line)
            overrides, run = overrides_of(json.dumps(fields["overrides"]).encode()), fields["run"]
            if overrides is None or not isinstance(run, str | None):
                return None
            if type(fields["status"]) is not int or type(fields.get("number", 0)) is not int:
                return None
            return cls(**{**fields, "overrides": overrides})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def overrides_of(line: bytes) -> tuple[str, ...] | None:
    """The overrides of a point, which are a line of ``begun.jsonl``; None for a line that holds none."""
    try:
        found = bounded_json(line)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return tuple(found) if is_list else None


def distinguishing_overrides(points: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """For each point, the overrides that not all points share; all of them where there is one point."""
    shared = set.intersection(*map(set, points)) if len(points) > 1 else set()
    return {point: " ".join(item for item in point if item not in shared) for point in points}


def keep_swept_keys(directory: Path, keys: Sequence[str]) -> None:
    """Write down which keys the sweep in ``directory`` varies, for every process that runs a point of it."""
    write_atomically(directory / _SWEPT, json.dumps(list(keys)) + "\n")


def swept_keys(directory: Path) -> tuple[str, ...]:
    """The keys that the sweep in ``directory`` varies."""
    try:
        found = bounded_json(read_regular(directory / _SWEPT, 1 << 20))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()
