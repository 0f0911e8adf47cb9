"""Shards that a sweep has run become one run each, in the sweep's directory."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from swe_infer import config
from swe_infer.asked import asked_ids
from swe_infer.cli.merge import is_merged, merge
from swe_infer.cli.points import Point, swept_keys

__all__ = ["merge_shards"]

_COUNTS = ("instances", "completed", "failed", "skipped")


def merge_shards(directory: Path, points: Sequence[Point]) -> list[Path] | None:
    """Merge the runs of a sweep over ``shard.index`` into ``directory/merged``, where all of them are finished.

    Where the sweep is over more than the shards, each of its configurations becomes a run in there.

    Returns:
        the merged run directories; None where the points are no shards.
    """
    swept = swept_keys(directory)
    plains = {Path(point.run): _config(Path(point.run)) for point in points if point.run}
    if any((plain.get("shard") or {}).get("index") is None for plain in plains.values()):
        return None
    unfinished = sum(1 for point in points if point.status or not point.run)
    if unfinished:
        print(f"Not merged yet: {unfinished} of {len(points)} shards are not finished.", file=sys.stderr)
        return []
    groups: dict[str, list[Path]] = {}
    for run, plain in plains.items():
        parts = [config.digest(config.whole(plain)), *config.point_parts(plain, swept)]
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
    if not (target / "summary.json").is_file():
        return False
    parts = [_summary(run) for run in runs]
    asked: list[frozenset[str] | None] = [asked_ids(run) for run in runs]
    together = None if None in asked else frozenset().union(*(ids for ids in asked if ids is not None))
    counts = {key: sum(part[key] for part in parts) for key in _COUNTS}
    return together == asked_ids(target) and counts == {key: _summary(target)[key] for key in _COUNTS}


def _merge_anew(target: Path, runs: Sequence[Path]) -> None:
    """Merge ``runs`` into ``target``, in the place of what an earlier launch merged there: shards grow. It goes on as
    the same W&B run."""
    old = target.with_name(f"{target.name}.old")
    if old.exists():  # a launch that was killed in here left the new one unfinished
        shutil.rmtree(target, ignore_errors=True)
    elif is_merged(target):
        target.rename(old)
    run_id = old / "run_id"
    merge(target, runs, run_id=run_id.read_text() if run_id.exists() else None)
    shutil.rmtree(old, ignore_errors=True)


def _config(run: Path) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
