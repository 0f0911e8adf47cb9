"""Where runs lie: directories, sweeps, W&B. What a command line names becomes a list of run directories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.resources import expanded
from swe_infer.run_directory import layout
from swe_infer.text import bounded_json
from swe_infer.tracking.download import PREFIX, WandbAddress

_MOST_BYTES = 1 << 28  # of a sweep's list of runs
_DEPTH = 3  # how deep below a given directory runs are looked for


@dataclass(frozen=True, slots=True)
class Source:
    """A run directory, and what is known of it from elsewhere.

    Args:
        known_as: a path whose last parts name the run.
        address: ``wandb:ENTITY/PROJECT/RUN_ID``; None for a directory that was given as one.
        remark: what a reader must know of how it was had.
    """

    directory: Path
    known_as: Path
    address: str | None = None
    remark: str | None = None


def find_sources(paths: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The runs that ``paths`` name, each once, in their order; those on a W&B server are fetched.

    Returns:
        the runs, and a line for each run of a W&B project that had to be left out.

    Raises:
        ConfigError: a path holds no run, or is an address that cannot be read.
    """
    local = {path: find_runs(expanded(path)) for path in paths if not path.startswith(PREFIX)}
    remote, left_out = _fetched([path for path in paths if path.startswith(PREFIX)])
    found: dict[Path, Source] = {}
    for path in paths:
        if path in local:
            sources = [Source(run.resolve(), run.resolve()) for run in local[path]]
        else:
            sources = remote[path]
        for source in sources:
            found.setdefault(source.directory, source)
    return list(found.values()), left_out


def _fetched(paths: list[str]) -> tuple[dict[str, list[Source]], list[str]]:
    """The runs behind W&B addresses, by address."""
    if not paths:
        return {}, []
    from swe_infer.tracking.download import download_runs

    runs, left_out = download_runs([WandbAddress.parse(path) for path in paths])
    sources: dict[str, list[Source]] = {path: [] for path in paths}
    for run in runs:
        known_as = Path(run.address.removeprefix(PREFIX)) / run.name.replace("/", " ")
        sources[paths[run.asked]].append(Source(run.directory, known_as, run.address, run.remark))
    for path, found in sources.items():
        if not found:
            raise ConfigError(f"{path}: no run of it holds predictions yet")
    return sources, left_out


def find_runs(path: Path) -> list[Path]:
    """The run directories that ``path`` is or holds; those of a sweep by its ``runs.jsonl`` too, wherever they lie.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: there is no such directory")
    if layout.is_run(path):
        return [path]
    found = list(dict.fromkeys([*_noted_by_sweep(path), *_below(path, _DEPTH)]))
    if not found:
        raise ConfigError(
            f"{path}: neither a run directory nor a directory of some ({' or '.join(layout.MARKS)} is missing)"
        )
    return found


def _below(path: Path, depth: int) -> Iterator[Path]:
    for child in sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if layout.is_run(child):
            yield child
        elif depth > 1:
            yield from _below(child, depth - 1)


def failed_points(paths: Sequence[str]) -> list[str]:
    """The points of the sweeps among ``paths`` that have no run, by the overrides that not all points share."""
    failed = []
    for path in paths:
        points = [point for point in _points(expanded(path)) if _is_texts(point.get("overrides"))]
        shared = set.intersection(*(set(point["overrides"]) for point in points)) if len(points) > 1 else set()
        for point in points:
            run = point.get("run")
            if not isinstance(run, str) or not layout.is_run(Path(run)):
                failed.append(" ".join(str(item) for item in point["overrides"] if item not in shared))
    return failed


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _noted_by_sweep(path: Path) -> Iterator[Path]:
    for point in _points(path):
        run = point.get("run")
        if isinstance(run, str) and layout.is_run(Path(run)):
            yield Path(run)


def _points(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a sweep's ``runs.jsonl``; what is no point is left out.

    Raises:
        ConfigError: the file cannot be read.
    """
    content = layout.content(path, "runs.jsonl", _MOST_BYTES) or b""
    for line in content.decode("utf-8", "replace").splitlines():
        try:
            point = bounded_json(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(point, dict):
            yield point
