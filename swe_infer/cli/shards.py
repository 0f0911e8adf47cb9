"""Shards that a sweep has run become one run each, in the sweep's directory."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from swe_infer import config
from swe_infer.cli.merge import merge
from swe_infer.cli.points import Point

__all__ = ["merge_shards"]

_COUNTS = ("instances", "completed", "failed", "skipped")


def merge_shards(directory: Path, points: Sequence[Point]) -> list[Path] | None:
    """Merge the runs of a sweep over ``shard.index`` into ``directory/merged``, where all of them are finished.

    Where the sweep is over more than the shards, each of its configurations becomes a run in there.

    Returns:
        the merged run directories; None where the points are no shards.
    """
    plains = {Path(point.run): _config(Path(point.run)) for point in points if point.run}
    if any((plain.get("shard") or {}).get("index") is None for plain in plains.values()):
        return None
    unfinished = sum(1 for point in points if point.status or not point.run)
    if unfinished:
        print(f"Not merged yet: {unfinished} of {len(points)} shards are not finished.", file=sys.stderr)
        return []
    groups: dict[str, list[Path]] = {}
    for run, plain in plains.items():
        groups.setdefault(config.digest(config.whole(plain)), []).append(run)
    out = directory / "merged"
    merged = []
    for digest, runs in groups.items():
        target = out if len(groups) == 1 else out / digest
        if not _is_merged(target, runs):
            merge(target, runs)
        print(f"merged {len(runs)} shards into {target}", file=sys.stderr)
        print(target)
        merged.append(target)
    return merged


def _is_merged(target: Path, runs: Sequence[Path]) -> bool:
    """Whether ``target`` is what an earlier launch of the same sweep made of ``runs``."""
    if not (target / "summary.json").is_file():
        return False
    parts = [_summary(run) for run in runs]
    return {key: sum(part[key] for part in parts) for key in _COUNTS} == {
        key: _summary(target)[key] for key in _COUNTS
    }


def _config(run: Path) -> dict[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text(encoding="utf-8")))
