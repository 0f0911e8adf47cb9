"""What each rule of the group ``selection`` would bring on the samples of an evaluated run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from swe_infer.compare.loading import LoadedRun
from swe_infer.conf_files import options_of
from swe_infer.errors import SweInferError
from swe_infer.run_directory.figures import SelectionGap, selection_gap
from swe_infer.run_directory.predictions import Candidate
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.selection.judge import Judge


@dataclass(frozen=True, slots=True)
class RuleFigures:
    """The figures of one rule on the answers of a run.

    Args:
        submitted: whether the predictions of the run were selected by this rule.
    """

    rule: str
    submitted: bool
    gap: SelectionGap


def rule_figures(run: LoadedRun, asked: int) -> list[RuleFigures]:
    """The figures of the rule that selected the run's predictions, and of every rule that can be applied to its
    answers here. Empty for a run that was not evaluated, or has one sample for each instance.

    Args:
        asked: all instances, those without a record included.

    Raises:
        ConfigError: the records cannot be read.
    """
    if run.samples < 2 or not run.evaluated:
        return []
    instances = run.instances()
    good = {name: sum(result.resolved is True for result in results) for name, results in instances.items()}
    successes = {name: (count, run.samples) for name, count in good.items()}
    submitted = {one.rule for one in run.selected.values()}
    if Judge.name in submitted:  # majority is its fallback
        submitted = {Judge.name}
    solved: dict[str, list[str]] = {}
    if len(submitted) == 1:
        solved[next(iter(submitted))] = [
            name for name, one in run.selected.items() if _resolved(run, name, one.sample)
        ]
    completed = {name: sum(result.status == "completed" for result in instances[name]) for name in instances}
    sure = [name for name, count in good.items() if count and count == completed[name] == run.samples]
    mixed = [name for name in good.keys() - set(sure) if good[name]]
    solved |= {rule: [*sure, *found] for rule, found in _applied(run, mixed, set(solved)).items()}
    figures = []
    for rule, names in sorted(solved.items()):
        gap = selection_gap(successes, names, asked)
        if gap is not None:
            figures.append(RuleFigures(rule, rule in submitted, gap))
    return figures


def _resolved(run: LoadedRun, name: str, sample: int) -> bool:
    result = run.results.get((name, sample))
    return result is not None and result.resolved is True


def _applied(run: LoadedRun, mixed: list[str], known: set[str]) -> dict[str, list[str]]:
    """The instances of which each other rule selects a resolved answer. A rule whose files are not available is left
    out.

    Args:
        mixed: the instances with resolved and other samples; on the others the rules do not differ.
    """
    from swe_infer.compare.prompts import recorded_rows
    from swe_infer.selection.base import FilesOfRows, InstanceSelector, rule_named

    candidates: dict[str, list[Candidate]] = {name: [] for name in mixed}
    for (name, _), (_, answer) in sorted(RunDirectory(run.directory).candidates().items()) if mixed else ():
        if name in candidates:
            candidates[name].append(answer)
    found: dict[str, list[str]] = {}
    with ExitStack() as stack:
        of_rows = FilesOfRows(lambda: recorded_rows(run.nested_config, stack, run.directory))
        missing: set[str] = set()

        def files_of(name: str) -> Mapping[str, str]:
            try:
                return of_rows(name)
            except SweInferError:
                missing.add(name)
                raise

        for rule in [option for option in options_of("selection") if option not in (*known, Judge.name)]:
            missing.clear()
            selector = InstanceSelector(rule_named(rule), files_of)
            names = []
            for name, answers in candidates.items():
                choice = selector.select(name, answers) if answers else None
                if missing:
                    break
                if choice is not None and _resolved(run, name, answers[choice.index].sample):
                    names.append(name)
            if not missing:
                found[rule] = names
    return found
