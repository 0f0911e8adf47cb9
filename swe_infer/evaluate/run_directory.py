"""What an evaluation needs to know of a run: its answers, its dataset, its label."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.asked import asked_ids
from swe_infer.errors import ConfigError
from swe_infer.locks import Locks, locks_of
from swe_infer.store import read_records

__all__ = ["EvaluableRun", "open_run"]

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class EvaluableRun:
    """One run directory.

    Args:
        patches: the patch of every completed (instance, sample) that the last command asked for; empty where the
            answer held none.
        label: ``model_name_or_path`` of its predictions.
        dataset: the run's ``dataset`` group as ``config.yaml`` has it.
        locks: how the run keeps other processes out.
    """

    directory: Path
    label: str
    patches: Mapping[Key, str]
    dataset: Mapping[str, Any]
    locks: Locks = "os"

    def predictions(self, sample: int) -> Path:
        """The file that the official harness reads."""
        return self.directory / ("predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl")

    @property
    def samples(self) -> list[int]:
        return sorted({sample for _, sample in self.patches})


def open_run(directory: Path) -> EvaluableRun:
    """Read a run directory.

    Raises:
        ConfigError: it is none, or nothing in it is completed.
    """
    import yaml

    if not (directory / "records.jsonl").is_file():
        raise ConfigError(f"{directory}: not a run directory (there is no records.jsonl)")
    try:
        asked = asked_ids(directory)
        patches: dict[Key, str] = {}
        for record in read_records(directory / "records.jsonl"):
            key = (record["instance_id"], record["sample"])
            if record["status"] != "completed":
                patches.pop(key, None)  # a later command left it out
            elif asked is None or key[0] in asked:
                patches[key] = str(record.get("model_patch") or "")
        path = directory / "config.yaml"
        config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"{directory}: cannot be read ({reason})") from None
    if not patches:
        raise ConfigError(f"{directory}: nothing in it is completed, so there is nothing to evaluate")
    config = config if isinstance(config, dict) else {}
    dataset = config.get("dataset")
    return EvaluableRun(
        directory, _label(directory), patches, dataset if isinstance(dataset, dict) else {}, locks_of(config)
    )


def _label(directory: Path) -> str:
    for path in sorted(directory.glob("predictions*.jsonl")):
        try:
            with path.open(encoding="utf-8") as file:
                for line in file:
                    return str(json.loads(line)["model_name_or_path"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    raise ConfigError(f"{directory}: holds no predictions.jsonl; run the same command once more, it is written anew")
