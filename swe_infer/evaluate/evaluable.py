"""The parts of a run that an evaluation needs: its patches, dataset and label."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.harnesses import benchmark_of
from swe_infer.locks import Locks, locks_of
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import Summary, resolved_figures, selection_figures
from swe_infer.run_directory.predictions import Selected
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Key
from swe_infer.run_directory.verdicts import Verdict, write_verdicts


class EvaluationError(SweInferError):
    """The patches could not be evaluated."""


@dataclass(frozen=True, slots=True)
class EvaluableRun:
    """One run directory.

    Args:
        label: ``model_name_or_path`` of its predictions.
        patches: the patch of every completed (instance, sample) that the last command requested; empty if the answer
            contained none.
        turns: the turn of the answer with each patch, see :mod:`swe_infer.feedback`.
        dataset: the ``dataset`` group of the run's configuration.
        locks: the run's key ``locks``.
    """

    directory: Path
    label: str
    patches: Mapping[Key, str]
    turns: Mapping[Key, int]
    dataset: Mapping[str, Any]
    locks: Locks = "os"

    def predictions(self, sample: int) -> Path:
        """The predictions file for the official harness."""
        return layout.predictions_of_sample(self.directory, sample)

    def harness_predictions(self, sample: int) -> Path:
        """The predictions file for the harness of the run's benchmark."""
        benchmark = benchmark_of(self.dataset)
        return layout.harness_predictions(self.predictions(sample), None if benchmark is None else benchmark.form)

    @property
    def samples(self) -> list[int]:
        return sorted({sample for _, sample in self.patches})


def open_run(directory: Path) -> EvaluableRun:
    """Reads a run directory.

    Raises:
        ConfigError: it is not a run directory, cannot be read, or has no completed sample.
    """
    run = RunDirectory(directory)
    if not layout.is_run(directory):
        raise ConfigError(f"{directory}: not a run directory (there is no {layout.RECORDS})")
    answers, config = run.patches(), run.config()
    if not answers:
        raise ConfigError(f"{directory}: no sample is completed, so there is nothing to evaluate")
    label = run.label()
    if label is None:
        raise ConfigError(f"{directory}: contains no predictions; run the same command again to write them")
    dataset = config.get("dataset")
    patches = {key: patch for key, (_, patch) in answers.items()}
    turns = {key: turn for key, (turn, _) in answers.items()}
    return EvaluableRun(
        directory, label, patches, turns, dataset if isinstance(dataset, dict) else {}, locks_of(config)
    )


def evaluation_folder(run: EvaluableRun) -> Path:
    """The folder of logs and reports in the run directory, created if necessary.

    Raises:
        StoreError: it contains links.
    """
    folder = run.directory / "evaluation"
    if folder.exists():
        layout.refuse_links(folder, deep=True, allow_hard_links=False)
    folder.mkdir(exist_ok=True)
    return folder


def save_verdicts(run: EvaluableRun, verdicts: Iterable[Verdict], summary: Summary) -> Summary:
    """Writes verdicts to the run directory; returns the figures to add to its summary."""
    of_turns = (replace(verdict, turn=run.turns.get(verdict.key, 0)) for verdict in verdicts)
    found = write_verdicts(run.directory, of_turns, run.turns)
    return evaluated_figures(found, summary, RunDirectory(run.directory).selected())


def evaluated_figures(verdicts: Iterable[Verdict], summary: Summary, selected: Mapping[str, Selected]) -> Summary:
    """The figures of verdicts on a run with this summary.

    Args:
        selected: the selected answer of each instance, with several samples.
    """
    found = list(verdicts)
    figures = resolved_figures(((verdict.instance_id, verdict.resolved) for verdict in found), summary)
    resolved = {verdict.key: verdict.resolved for verdict in found}
    figures |= selection_figures(selected, summary, resolved)
    figures["evaluated_by"] = ", ".join(
        sorted({_EVALUATIONS.get(verdict.source, verdict.source) for verdict in found})
    )
    return figures


_EVALUATIONS = {"tests": "own_tests", "swebench": "harness"}
"""The option of the group ``evaluation`` by the source of its verdicts, if the names differ."""
