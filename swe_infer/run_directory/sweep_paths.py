"""The run directories that the files of a sweep's directory name. The directory may be copied to another machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from swe_infer.run_directory import layout
from swe_infer.text import bounded_json

SWEEP_JOBS = "runs.jsonl"
"""A line for each job of a sweep that ended. A directory with it is the directory of a sweep."""

_MAX_BYTES = 1 << 28


def to_stored(sweep: Path, run: Path) -> str:
    """The path of ``run`` relative to the sweep's directory; absolute if they share no folder but the root."""
    try:
        start, target = sweep.resolve(), run.resolve()
    except ValueError:  # a NUL, from an untrusted file
        return str(run)
    if os.path.commonpath([start, target]) == os.sep:
        return str(target)
    return os.path.relpath(target, start)


def from_stored(sweep: Path, stored: str) -> Path:
    """The run directory that a file of the sweep names.

    Earlier versions stored paths relative to the working directory, which usually contains the sweep, or absolute
    ones. A run that was copied with such a sweep is found by its name.

    Returns:
        The first candidate that is a run directory, otherwise the path relative to the sweep. It is absolute if
        ``sweep`` is, and otherwise relative to the working directory if it is in there.
    """
    start = Path(os.path.realpath(sweep))
    relative = start / stored  # `stored` itself if it is absolute
    candidates = [relative, *(parent / stored for parent in start.parents), Path(stored), start / Path(stored).name]
    run = next((candidate for candidate in candidates if layout.is_run(candidate)), relative)
    path = Path(os.path.abspath(run))
    here = Path.cwd()
    return path.relative_to(here) if not sweep.is_absolute() and path.is_relative_to(here) else path


def sweep_runs(sweep: Path) -> Iterator[Path]:
    """The run directories of a sweep's jobs.

    Raises:
        ConfigError: the list of jobs cannot be read.
    """
    for entry in sweep_entries(sweep):
        if (run := run_of_entry(sweep, entry)) is not None:
            yield run


def sweep_entries(sweep: Path) -> list[dict[str, Any]]:
    """The last line of each job of a sweep, with its overrides and run, in their order. Malformed lines are ignored.

    Raises:
        ConfigError: the file cannot be read.
    """
    content = layout.content(sweep, SWEEP_JOBS, _MAX_BYTES) or b""
    found: dict[object, dict[str, Any]] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines()):
        try:
            job = bounded_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(job, dict):
            overrides = job.get("overrides")
            found[tuple(map(str, overrides)) if isinstance(overrides, list) else number] = job
    return list(found.values())


def run_of_entry(sweep: Path, entry: Mapping[str, Any]) -> Path | None:
    """The run directory of a job; None if it does not exist."""
    stored = entry.get("run")
    run = from_stored(sweep, stored) if isinstance(stored, str) else None
    return run if run is not None and layout.is_run(run) else None
