"""What an evaluation needs to know of a run: its answers, its dataset, its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError
from swe_infer.locks import Locks, locks_of
from swe_infer.run_directory import layout
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Key


@dataclass(frozen=True, slots=True)
class EvaluableRun:
    """One run directory.

    Args:
        patches: the patch of every completed (instance, sample) that the last command asked for; empty where the
            answer held none.
        label: ``model_name_or_path`` of its predictions.
        dataset: the run's ``dataset`` group as its configuration has it.
        locks: how the run keeps other processes out.
    """

    directory: Path
    label: str
    patches: Mapping[Key, str]
    dataset: Mapping[str, Any]
    locks: Locks = "os"

    def predictions(self, sample: int) -> Path:
        """The file that the official harness reads."""
        return self.directory / layout.predictions_name(sample)

    @property
    def samples(self) -> list[int]:
        return sorted({sample for _, sample in self.patches})


def open_run(directory: Path) -> EvaluableRun:
    """Read a run directory.

    Raises:
        ConfigError: it is none, cannot be read, or nothing in it is completed.
    """
    run = RunDirectory(directory)
    if not layout.is_run(directory):
        raise ConfigError(f"{directory}: not a run directory (there is no {layout.RECORDS})")
    patches, config = run.patches(), run.config()
    if not patches:
        raise ConfigError(f"{directory}: nothing in it is completed, so there is nothing to evaluate")
    label = run.label()
    if label is None:
        raise ConfigError(f"{directory}: holds no predictions; run the same command once more, they are written anew")
    dataset = config.get("dataset")
    return EvaluableRun(directory, label, patches, dataset if isinstance(dataset, dict) else {}, locks_of(config))
