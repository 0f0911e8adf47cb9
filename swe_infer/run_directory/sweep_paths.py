"""Paths of run directories in the files of a sweep's directory, which may be copied to another machine."""

from __future__ import annotations

import os
from pathlib import Path

from swe_infer.run_directory import layout


def to_stored(sweep: Path, run: Path) -> str:
    """The path of ``run`` relative to the sweep's directory; absolute if they share no folder but the root."""
    try:
        start, target = sweep.resolve(), run.resolve()
    except ValueError:  # a NUL, from a stranger's file
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
