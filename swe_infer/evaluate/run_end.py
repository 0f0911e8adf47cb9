"""The evaluation at the end of a run: the group ``evaluation``.

It costs no answer if it fails. It is not part of a run's identity, so a finished run can be evaluated in another way
by the same command with another option.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from swe_infer.data.base import Dataset
from swe_infer.errors import ConfigError
from swe_infer.evaluate.evaluable import EvaluableRun, EvaluationError, evaluation_folder, open_run, save_verdicts
from swe_infer.options import Option
from swe_infer.progress import progress
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import Summary
from swe_infer.run_directory.verdicts import Verdict


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The result of an evaluation.

    Args:
        verdicts: None if no test ran.
        figures: to add to the summary.
    """

    verdicts: Sequence[Verdict] | None
    figures: Summary = field(default_factory=Summary)


class Evaluation(Protocol):
    """An option of the group ``evaluation``. Constructors are cheap."""

    @property
    def name(self) -> str:
        """Identifies the evaluation. A run that another one has evaluated is evaluated again."""
        ...

    def check(self, dataset: Dataset, description: Mapping[str, Any]) -> None:
        """Checks, before anything is paid for, that the evaluation can run.

        Args:
            description: the ``dataset`` group of the run's configuration.

        Raises:
            ConfigError: it cannot.
        """
        ...

    def evaluate(self, run: EvaluableRun, dataset: Dataset) -> Evaluated:
        """Evaluates the finished predictions.

        Raises:
            ConfigError, EvaluationError: the patches cannot be evaluated.
        """
        ...


def evaluate_run(evaluation: Evaluation, dataset: Dataset, directory: Path, summary: Summary) -> Summary:
    """Evaluates the run in ``directory`` and writes its verdicts. The caller must hold the lock of the directory.

    Returns:
        The figures to add to the summary.

    Raises:
        ConfigError, EvaluationError: the patches cannot be evaluated.
    """
    run = open_run(directory)
    found = evaluation.evaluate(run, dataset)
    if found.verdicts is None:
        return found.figures
    return {**save_verdicts(run, found.verdicts, summary), **found.figures}


@dataclass(frozen=True, kw_only=True)
class NoEvaluation:
    """``evaluation=none``."""

    name: ClassVar[str] = "none"

    def check(self, dataset: Dataset, description: Mapping[str, Any]) -> None:
        """Does nothing."""

    def evaluate(self, run: EvaluableRun, dataset: Dataset) -> Evaluated:
        """Evaluates nothing."""
        return Evaluated(None)


@dataclass(frozen=True, kw_only=True)
class OwnTests:
    """``evaluation=own_tests``: the tests in the dataset's columns ``files`` and ``test``, see
    :mod:`swe_infer.sample.testing`.

    Raises:
        ConfigError: a value is out of range.
    """

    name: ClassVar[str] = "own_tests"

    timeout_s: Annotated[float, Option("Seconds for the tests of one instance.", "reporting")] = 10.0
    sandbox: Annotated[
        bool, Option("Run the tests in a sandbox; false: without one, with all rights of this user.", "reporting")
    ] = True

    def __post_init__(self) -> None:
        _check_seconds("evaluation.timeout_s", self.timeout_s)

    def check(self, dataset: Dataset, description: Mapping[str, Any]) -> None:
        """Raises ConfigError if the first row of the dataset contains no test."""
        from swe_infer.evaluate.own_tests import tested_row

        if tested_row(dataset.without_prompts().open().row(0)) is None:
            raise ConfigError(
                f"evaluation=own_tests: {dataset.name} contains no tests (columns files and test); choose "
                "evaluation=harness, command or none"
            )

    def evaluate(self, run: EvaluableRun, dataset: Dataset) -> Evaluated:
        from swe_infer.evaluate.own_tests import rows_of_dataset, run_own_tests
        from swe_infer.sample import sandbox

        rows = rows_of_dataset(run, dataset)
        if self.sandbox and (why := sandbox.why_unavailable()) is not None:
            return Evaluated(None, {"not_tested": why})
        verdicts = run_own_tests(run, rows, timeout_s=self.timeout_s, contained=self.sandbox)
        return Evaluated(verdicts, {"tested_in": "sandbox" if self.sandbox else "process", "not_tested": None})


@dataclass(frozen=True, kw_only=True)
class Harness:
    """``evaluation=harness``: the official harness (package ``swebench``), which runs each instance in a container.

    Raises:
        ConfigError: a value is out of range.
    """

    name: ClassVar[str] = "harness"

    dataset: Annotated[
        str | None, Option("The dataset's name in the harness, or a file; null: from dataset.name.", "reporting")
    ] = None
    split: Annotated[str | None, Option("Its split; null: that of the dataset group.", "reporting")] = None
    max_workers: Annotated[int, Option("Containers at a time.", "reporting")] = 4
    timeout_s: Annotated[int, Option("Seconds for the tests of one instance.", "reporting")] = 1800

    def __post_init__(self) -> None:
        _check_seconds("evaluation.timeout_s", self.timeout_s)
        if self.max_workers < 1:
            raise ConfigError(f"evaluation.max_workers={self.max_workers}: must be at least 1")

    def check(self, dataset: Dataset, description: Mapping[str, Any]) -> None:
        """Raises ConfigError if the harness does not know the dataset, is not installed, or has no Docker daemon."""
        from swe_infer.evaluate.harness import REPORT, check_harness, official_name, other_harness

        how = other_harness(description, Path("RUN_DIR") / layout.PREDICTIONS)
        if self.dataset is None and how is not None:
            raise ConfigError(
                "evaluation=harness: this benchmark has a harness of its own. Choose evaluation=none, and start it "
                f"{how}; {REPORT}"
            )
        if self.dataset is None and official_name(description) is None:
            raise ConfigError(
                f"evaluation.dataset: the harness does not know {dataset.name}; name the official dataset, such as "
                "SWE-bench/SWE-bench_Lite, or choose evaluation=none"
            )
        try:
            check_harness()
        except ConfigError as error:
            raise ConfigError(f"evaluation=harness: {error}") from None

    def evaluate(self, run: EvaluableRun, dataset: Dataset) -> Evaluated:
        from swe_infer.evaluate.harness import HarnessOptions, run_harness

        options = HarnessOptions(self.dataset, self.split, self.max_workers, self.timeout_s)
        return Evaluated(run_harness(run, options))


_PLACEHOLDER = re.compile(r"(?<!\$)\{(predictions|harness_predictions|run_dir|report|sample)\}")


@dataclass(frozen=True, kw_only=True)
class Command:
    """``evaluation=command``: a command of the user that evaluates the predictions of one sample at a time.

    ``{predictions}``, ``{harness_predictions}`` (in the form that the harness of the dataset's benchmark reads),
    ``{run_dir}``, ``{report}`` and ``{sample}`` in it are replaced. It writes its report to
    ``{report}``, or to standard output if it does not mention ``{report}``. See
    :func:`swe_infer.evaluate.harness.read_report` for the formats.

    Raises:
        ConfigError: the command is empty or mentions no predictions, or a value is out of range.
    """

    command: Annotated[
        str | tuple[str, ...],
        Option("A list of arguments, or a line for the shell, with {predictions} and {report}.", "reporting"),
    ]
    timeout_s: Annotated[float, Option("Seconds for one sample of all instances.", "reporting")] = 3600.0

    def __post_init__(self) -> None:
        _check_seconds("evaluation.timeout_s", self.timeout_s)
        if not self._arguments or not self._arguments[0].strip():
            raise ConfigError("evaluation.command is empty: name a program and its arguments")
        mentioned = {name for part in self._arguments for name in _PLACEHOLDER.findall(part)}
        if not mentioned & {"predictions", "harness_predictions", "run_dir"}:
            raise ConfigError(
                "evaluation.command: mentions neither {predictions} nor {run_dir}, so it cannot read the predictions"
            )

    @property
    def name(self) -> str:
        """``command:`` and a digest of the command."""
        text = json.dumps(self.command)
        return f"command:{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"

    @property
    def _arguments(self) -> Sequence[str]:
        return (self.command,) if isinstance(self.command, str) else self.command

    def check(self, dataset: Dataset, description: Mapping[str, Any]) -> None:
        """Raises ConfigError if the program of a list of arguments does not exist."""
        if not isinstance(self.command, str) and shutil.which(self.command[0]) is None:
            raise ConfigError(f"evaluation.command: there is no program {self.command[0]}")

    def evaluate(self, run: EvaluableRun, dataset: Dataset) -> Evaluated:
        from swe_infer.evaluate.harness import verdicts_of_report

        folder = evaluation_folder(run)
        verdicts: list[Verdict] = []
        with progress("evaluating with the command", len(run.samples), fewest=1) as advance:
            for sample in run.samples:
                report = self._run(run, sample, folder)
                verdicts += verdicts_of_report(run, report, sample, source=self.name)
                advance()
        return Evaluated(verdicts)

    def _run(self, run: EvaluableRun, sample: int, folder: Path) -> Path:
        """Runs the command for one sample; returns its report."""
        from swe_infer.evaluate.process import redact, run_process

        report = (folder / f"report.sample{sample}.json").absolute()
        log = (folder / f"command.sample{sample}.log").absolute()
        report.unlink(missing_ok=True)
        values = {
            "predictions": str(run.predictions(sample).absolute()),
            "harness_predictions": str(run.harness_predictions(sample).absolute()),
            "run_dir": str(run.directory.absolute()),
            "report": str(report),
            "sample": str(sample),
        }
        shell = isinstance(self.command, str)
        quoted = {name: shlex.quote(value) if shell else value for name, value in values.items()}
        arguments = [_PLACEHOLDER.sub(lambda match: quoted[match[1]], part) for part in self._arguments]
        prints_report = not any("report" in _PLACEHOLDER.findall(part) for part in self._arguments)
        try:
            status = run_process(
                ["/bin/sh", "-c", arguments[0]] if shell else arguments,
                output=report if prints_report else log,
                log=log,
                timeout_s=self.timeout_s,
            )
        except OSError as error:
            raise EvaluationError(f"evaluation.command cannot be started: {error.strerror}") from None
        finally:
            redact(log)
            if prints_report:
                redact(report)
        if status is None:
            raise EvaluationError(f"evaluation.command did not end in {self.timeout_s:g} s; see {log}")
        if status:
            raise EvaluationError(f"evaluation.command ended with status {status}; see {log}")
        return report


def _check_seconds(key: str, seconds: float) -> None:
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{key}={seconds}: must be a finite number of seconds above 0")
