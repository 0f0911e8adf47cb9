"""A job of a sweep, as one line of ``runs.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from swe_infer.cli.quoting import text_value
from swe_infer.errors import ConfigError
from swe_infer.files import read_regular, write_atomically
from swe_infer.redaction import command_without_secrets
from swe_infer.run_directory.objective import Objective
from swe_infer.run_directory.provenance import SweepMembership
from swe_infer.text import bounded_json, short_keys

LOST = 1
"""The exit status of a job whose process died before it ended."""

_SWEPT = "swept.json"
_SEARCH = "search.json"
_UNNAMED = frozenset(["output_dir", "shard.index", "shard.count"])
"""Swept keys that do not distinguish the configurations of a sweep."""
_MAX_DIGITS = 8


@dataclass(frozen=True, slots=True)
class SweepJob:
    """How one job of a sweep ended.

    Args:
        overrides: the sweep's overrides for this job, in the order of the command line.
        run: the run directory; None after a configuration error or a dry run.
        status: the exit status, as in the README.
        objective: the values that a search optimises; None if the job has none.
        error: the error in one line.
        elsewhere: it ran in a process that does not share the sweep's standard output.
        number: its index in the sweep; negative for jobs of earlier launches.
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
    def from_line(cls, line: bytes) -> Self | None:
        """Parses one line. Returns None for a malformed line, such as one that a killed process left unfinished."""
        try:
            fields = bounded_json(line)
            overrides, run = parse_overrides(json.dumps(fields["overrides"]).encode()), fields["run"]
            if overrides is None or not isinstance(run, str | None):
                return None
            if type(fields["status"]) is not int or type(fields.get("number", 0)) is not int:
                return None
            return cls(**{**fields, "overrides": overrides})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None


def parse_overrides(line: bytes) -> tuple[str, ...] | None:
    """Parses one line of ``begun.jsonl``: the overrides of a job. Returns None for a malformed line."""
    try:
        found = bounded_json(line)
    except (ValueError, RecursionError):
        return None
    is_list = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return tuple(found) if is_list else None


def distinguishing_overrides(jobs: list[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """For each job, the overrides that not all jobs share. A single job keeps all of its own."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return {job: " ".join(item for item in job if item not in shared) for job in jobs}


def membership(directory: Path, overrides: Sequence[str]) -> SweepMembership:
    """How a job with these overrides appears among the runs of the sweep in ``directory``."""
    swept = set(swept_keys(directory)) - _UNNAMED
    values = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if (key := key.lstrip("+")).partition("@")[0] in swept:
            text = text_value(override)
            values[key] = command_without_secrets(value if text is None else text)
    name = " ".join(f"{short}={_rounded(values[key])}" for key, short in short_keys(values).items())
    return SweepMembership(directory.resolve().name, name, tuple(f"{key}={value}" for key, value in values.items()))


def _rounded(value: str) -> str:
    """A long fraction with six significant digits, for display; any other value unchanged."""
    try:
        return f"{float(value):.6g}" if "." in value and len(value) > _MAX_DIGITS else value
    except ValueError:
        return value


def write_swept_keys(directory: Path, keys: Sequence[str]) -> None:
    """Writes which keys the sweep in ``directory`` varies, for every process that runs one of its jobs."""
    write_atomically(directory / _SWEPT, json.dumps(list(keys)) + "\n")


def swept_keys(directory: Path) -> tuple[str, ...]:
    """The keys that the sweep in ``directory`` varies."""
    try:
        found = bounded_json(read_regular(directory / _SWEPT, 1 << 20))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(map(str, found)) if isinstance(found, list) else ()


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What a search optimises, and on how many instances.

    Args:
        objectives: as in ``objective``, each with its direction.
        steps: the numbers of instances of successive halving, None for all; empty without it.
    """

    objectives: tuple[str, ...]
    steps: tuple[int | None, ...] = ()

    def write(self, directory: Path) -> None:
        """Writes ``search.json`` in the sweep's directory."""
        write_atomically(directory / _SEARCH, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Reads ``search.json``; None if the sweep is not a search."""
        try:
            found = bounded_json(read_regular(directory / _SEARCH, 1 << 20))
            plan = cls(tuple(map(str, found["objectives"])), tuple(found["steps"]))
            _ = plan.parsed
        except (OSError, ValueError, TypeError, KeyError, RecursionError, ConfigError):
            return None
        return plan

    @property
    def parsed(self) -> list[Objective]:
        return [Objective.parse(text) for text in self.objectives]

    def final(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """The jobs that ran on the last number of instances: the others are of points that were stopped early."""
        if not self.steps:
            return list(jobs)
        last = f"dataset.limit={'null' if self.steps[-1] is None else self.steps[-1]}"
        return [job for job in jobs if last in job.overrides]

    def points(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """The last job of each point. With successive halving a point has one for each number of instances."""
        if not self.steps:
            return list(jobs)
        last = {tuple(o for o in job.overrides if not o.startswith("dataset.limit=")): job for job in jobs}
        return list(last.values())


def best_jobs(jobs: Sequence[SweepJob], objectives: Sequence[Objective]) -> list[SweepJob]:
    """The jobs with objectives that no other one dominates: the Pareto front, or all jobs that tie for the best value
    of a single objective."""
    signs = [-1.0 if objective.direction == "minimize" else 1.0 for objective in objectives]
    scored = [
        (job, [sign * value for sign, value in zip(signs, job.objective, strict=True)])
        for job in jobs
        if job.objective is not None and len(job.objective) == len(signs)
    ]

    def is_dominated(values: list[float]) -> bool:
        return any(
            other != values and all(theirs >= own for theirs, own in zip(other, values, strict=True))
            for _, other in scored
        )

    return [job for job, values in scored if not is_dominated(values)]
