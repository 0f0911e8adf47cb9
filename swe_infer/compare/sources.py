"""Finds the runs that a command line names: run directories, sweeps, W&B runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.remote.paths import displayed
from swe_infer.remote.reading import readable_path
from swe_infer.run_directory import layout
from swe_infer.run_directory.sweep_paths import run_of_entry, sweep_entries, sweep_runs
from swe_infer.tracking.download import PREFIX, WandbAddress

_DEPTH = 3  # levels of subdirectories that are searched for runs


@dataclass(frozen=True, slots=True)
class Source:
    """A run directory and where it came from.

    Args:
        label: a path whose last parts name the run.
        address: ``wandb:ENTITY/PROJECT/RUN_ID`` of a downloaded run; None for a local one.
        remark: a note for the reader on how the run was loaded.
    """

    directory: Path
    label: Path
    address: str | None = None
    remark: str | None = None


def find_sources(paths: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Finds the runs that ``paths`` name, each once, in order. Downloads those on a W&B server.

    Returns:
        The runs, and one line for each W&B run that was left out.

    Raises:
        ConfigError: a path contains no run, or a W&B run cannot be read.
    """
    local = {path: find_runs(readable_path(path)) for path in paths if not path.startswith(PREFIX)}
    remote, left_out = _download([path for path in paths if path.startswith(PREFIX)])
    found: dict[str, Source] = {}
    for path in paths:
        if path in local:
            sources = [Source(run.resolve(), Path(displayed(run.resolve()))) for run in local[path]]
        else:
            sources = remote[path]
        for source in sources:
            found.setdefault(displayed(source.directory), source)
    return list(found.values()), left_out


def _download(paths: list[str]) -> tuple[dict[str, list[Source]], list[str]]:
    if not paths:
        return {}, []
    from swe_infer.tracking.download import download_runs

    runs, left_out = download_runs([WandbAddress.parse(path) for path in paths])
    sources: dict[str, list[Source]] = {path: [] for path in paths}
    for run in runs:
        label = Path(run.address.removeprefix(PREFIX)) / run.name.replace("/", " ")
        sources[paths[run.address_index]].append(Source(run.directory, label, run.address, run.remark))
    for path, found in sources.items():
        if not found:
            raise ConfigError(f"{path}: none of its runs has predictions yet")
    return sources, left_out


def find_runs(path: Path) -> list[Path]:
    """``path`` itself if it is a run directory, or the runs in it and those that a sweep's ``runs.jsonl`` lists.

    Raises:
        ConfigError: there is none.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: directory not found")
    if layout.is_run(path):
        return [path]
    found = list(dict.fromkeys([*sweep_runs(path), *_below(path, _DEPTH)]))
    if not found:
        raise ConfigError(
            f"{path}: neither a run directory nor a directory of runs ({' or '.join(layout.MARKERS)} is missing)"
        )
    return found


def _below(path: Path, depth: int) -> Iterator[Path]:
    for child in sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if layout.is_run(child):
            yield child
        elif depth > 1:
            yield from _below(child, depth - 1)


def jobs_without_run(paths: Sequence[str]) -> list[str]:
    """The jobs without a run of the sweeps among ``paths``, by the overrides that not all jobs share."""
    failed = []
    for path in paths:
        if path.startswith(PREFIX):
            continue
        folder = readable_path(path)
        jobs = [job for job in sweep_entries(folder) if _is_string_list(job.get("overrides"))]
        shared = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
        for job in jobs:
            if run_of_entry(folder, job) is None:
                failed.append(" ".join(str(item) for item in job["overrides"] if item not in shared))
    return failed


def _is_string_list(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
