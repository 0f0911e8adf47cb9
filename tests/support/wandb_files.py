"""Reads a run back from the ``.wandb`` file that the W&B SDK wrote, with W&B's own reader."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["OfflineRun", "read_offline_runs"]


@dataclass
class OfflineRun:
    """One session of a run, from its transaction log."""

    directory: Path
    run: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The run's configuration, without W&B's own entry."""
        return {k: v for k, v in self.run["config"]["update"].items() if k != "_wandb"}

    def table(self, name: str) -> dict[str, Any]:
        """A logged table: ``columns`` and ``data``."""
        (path,) = (self.directory / "files" / "media" / "table").glob(f"{name}_*.table.json")
        table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return table


def read_offline_runs(run_directory: Path) -> list[OfflineRun]:
    """All sessions in ``run_directory``, oldest first. An empty log is an error."""
    logs = sorted((run_directory / "wandb").glob("*run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    return [_read(log) for log in logs]


def _read(log: Path) -> OfflineRun:
    assert log.stat().st_size > 0, f"{log} is empty"
    command = [_wandb_core(), "leet", "inspect", "--no-observability", "--json", "--run-file", str(log)]
    done = subprocess.run([*command, str(log.parent.parent)], capture_output=True, text=True, check=True, timeout=60)
    run = OfflineRun(log.parent)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kind = record["type"]
        run.kinds.add(kind)
        content = record.get(kind) or {}
        if kind == "run":
            run.run = content
        elif kind == "history":
            run.history.append(content["item"])
        elif kind == "summary":
            run.summary |= content.get("update") or {}
            run.summary = {key: value for key, value in run.summary.items() if key not in content.get("remove", ())}
        elif kind == "metric":
            run.metrics[content.get("name") or content["glob_name"]] = content
        elif kind == "artifact":
            run.artifacts[content["name"]] = content
        elif kind == "alert":
            run.alerts.append(content)
        elif kind == "exit":
            run.exit_code = content.get("exit_code", 0)
    return run


@functools.cache
def _wandb_core() -> str:
    """The program that ``wandb leet`` starts. Importing wandb before it takes most of a second for each log."""
    spec = importlib.util.find_spec("wandb")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "bin" / "wandb-core")
