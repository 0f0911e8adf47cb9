"""Shards that a sweep has run become one run each, in the sweep's directory."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from swe_infer import config
from swe_infer.cli.merge import is_merged, merge
from swe_infer.cli.sweep_jobs import SweepJob, swept_keys
from swe_infer.errors import ConfigError
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.reader import RunDirectory


def merge_shards(directory: Path, points: Sequence[SweepJob]) -> list[Path] | None:
    """Merge the runs of a sweep over ``shard.index`` into ``directory/merged``, where all of them are finished.

    Where the sweep is over more than the shards, each of its configurations becomes a run in there.

    Returns:
        the merged run directories; None where the points are no shards.
    """
    swept = swept_keys(directory)
    plains = {Path(point.run): RunDirectory(Path(point.run)).config() for point in points if point.run}
    overrides = {Path(point.run): point.overrides for point in points if point.run}
    if any(config.shard_of(plain)[0] is None for plain in plains.values()):
        return None
    unfinished = sum(1 for point in points if point.status or not point.run)
    if unfinished:
        print(f"Not merged yet: {unfinished} of {len(points)} shards are not finished.", file=sys.stderr)
        return []
    groups: dict[str, list[Path]] = {}
    for run, plain in plains.items():
        parts = [config.digest(config.unsharded(plain)), *config.job_name_parts(plain, swept, overrides[run])]
        if "output_dir" in swept:
            parts.append(str(plain.get("output_dir")).strip("/").replace("/", "-"))
        groups.setdefault("__".join(parts), []).append(run)
    out = directory / "merged"
    merged = []
    for name, runs in groups.items():
        target = out if len(groups) == 1 else out / name
        if not _is_merged(target, runs):
            _merge_anew(target, runs)
        print(f"merged {len(runs)} shards into {target}", file=sys.stderr)
        print(target)
        merged.append(target)
    return merged


def _is_merged(target: Path, runs: Sequence[Path]) -> bool:
    """Whether ``target`` is what an earlier launch of the same sweep made of ``runs`` as they are now."""
    made = RunDirectory(target)
    try:
        merged = made.summary()
    except ConfigError:
        return False
    if not merged:
        return False
    parts = [RunDirectory(run).summary() for run in runs]
    asked = [RunDirectory(run).covered_ids() for run in runs]
    together = None if None in asked else frozenset().union(*(ids for ids in asked if ids is not None))
    counts = [sum(each) for each in zip(*map(_counts, parts), strict=True)]
    return together == made.covered_ids() and counts == _counts(merged)


def _merge_anew(target: Path, runs: Sequence[Path]) -> None:
    """Merge ``runs`` into ``target``, in the place of what an earlier launch merged there: shards grow. It goes on as
    the same W&B run."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():  # a launch that was killed in here left the new one unfinished
        shutil.rmtree(target, ignore_errors=True)
    elif is_merged(target):
        target.rename(old)
    run_id = old / "run_id"
    merge(target, runs, run_id=config.read_run_id(run_id) if run_id.exists() else None)
    shutil.rmtree(old, ignore_errors=True)


def _counts(summary: Summary) -> list[int]:
    return [int(summary.get(key, 0)) for key in ("instances", "completed", "failed", "skipped")]  # type: ignore[call-overload]
