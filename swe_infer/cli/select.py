"""``swe-infer-select RUN_DIR … --by RULE --out FILE``: one submission from the samples of one run or of several.

The candidates of an instance are its samples in all runs, in the order of the runs and then of the samples. Nothing
is requested, and no run directory is written.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from swe_infer import config
from swe_infer.compare.loading import distinct_names
from swe_infer.compare.prompts import recorded_rows
from swe_infer.conf_files import options_of, suggestion
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.evaluate.harness import official_name, other_harness
from swe_infer.files import replacing
from swe_infer.harnesses import benchmark_of
from swe_infer.remote.paths import message_of
from swe_infer.remote.reading import readable_path
from swe_infer.remote.writing import written_file
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import SelectionGap, covered_samples, selection_gap
from swe_infer.run_directory.predictions import (
    Candidate,
    Selected,
    answer_digest,
    digest_of,
    json_line,
    write_harness_predictions,
)
from swe_infer.run_directory.provenance import read_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.selection.base import FilesOfRows, InstanceSelector, rule_named
from swe_infer.selection.judge import Judge
from swe_infer.text import CommandParser, clean, percent, report_errors

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script. Returns 2 for invalid input."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    status = report_errors(lambda: _select(options), message_of)
    if not status:
        print(options.out)
    return status


def _select(options: argparse.Namespace) -> None:
    runs = [readable_path(run) for run in options.runs]
    with written_file(options.out, "--out") as out:
        select(runs, options.by, out, options.name)


def select(directories: Sequence[Path], by: str, out: Path, name: str | None = None) -> None:
    """Selects an answer of each instance, writes the predictions, and prints figures to standard error.

    Args:
        by: the rule, an option of the group ``selection``.
        out: JSON lines, or a JSON list if its name ends in ``.json``. The predictions of a benchmark whose harness
            reads another form are written beside it, too.
        name: ``model_name_or_path``; None: the names of the runs' models.

    Raises:
        ConfigError: there is no such rule, a directory is not a run, the runs have different datasets, or ``out``
            cannot be written or belongs to a run.
        OSError: ``out`` cannot be written.
    """
    if by == Judge.name:
        raise ConfigError(
            "--by judge: a model judges, and this command sends no request; repeat the run with selection=judge"
        )
    if by not in _rules():
        raise ConfigError(f"--by {by}: unknown rule{suggestion(by, _rules())}")
    _check_out(out)
    runs = _read(directories)
    with ExitStack() as stack:
        files = _Files(runs, stack)
        lines = list(_lines(runs, InstanceSelector(rule_named(by), files), name or _label(runs)))
    if not lines:
        raise ConfigError(f"{runs[0].directory}: no answer can be selected by {by}")
    with replacing(out) as new:
        if out.suffix == ".json":
            new.write_text(json.dumps(lines, indent=1) + "\n", encoding="ascii")
        else:
            new.write_bytes(b"".join(map(json_line, lines)))
    benchmark = benchmark_of(runs[0].config.get("dataset"))
    if benchmark is not None and benchmark.form is not None and out.is_file():
        write_harness_predictions(out, benchmark.form, lines)
    _print_figures(runs, lines, by)
    if (how := other_harness(runs[0].config.get("dataset") or {}, out)) is not None:
        print(f"  {'harness':<10} {how}", file=sys.stderr)


@dataclass(frozen=True, slots=True)
class _Run:
    """One run.

    Args:
        name: distinct among the runs.
        label: its ``model_name_or_path``.
        answers: by instance, in the order of the samples.
        ids: the instances of its last command.
        resolved: the verdicts; None: it was not evaluated.
    """

    directory: Path
    name: str
    label: str
    config: Mapping[str, Any]
    samples: int
    answers: Mapping[str, Sequence[Candidate]]
    ids: Sequence[str]
    resolved: Mapping[tuple[str, int], bool] | None


@dataclass(slots=True)
class _Files:
    """The files of instances, from the dataset of the first run that has them."""

    runs: Sequence[_Run]
    stack: ExitStack
    _of_runs: list[FilesOfRows] = field(default_factory=list)

    def __call__(self, instance_id: str) -> Mapping[str, str]:
        """
        Raises:
            ConfigError: they are not available.
        """
        if not self._of_runs:
            opened = (partial(recorded_rows, run.config, self.stack, run.directory) for run in self.runs)
            self._of_runs = [FilesOfRows(rows) for rows in opened]
        error: SweInferError = ConfigError("there is no run")
        for files_of in self._of_runs:
            try:
                return files_of(instance_id)
            except SweInferError as raised:
                error = raised
        raise error


def _rules() -> list[str]:
    """The rules that need no request."""
    return [option for option in options_of("selection") if option != Judge.name]


def _check_out(out: Path) -> None:
    place = out.resolve()
    if place.is_dir() or not place.parent.is_dir():
        reason = "is a directory" if place.is_dir() else f"there is no directory {place.parent}"
        raise ConfigError(f"--out {out}: {reason}; name a file")
    of_run = next((parent for parent in place.parents if layout.is_run(parent)), None)
    if of_run is not None and (place.exists() or layout.is_reserved(place.name)):
        raise ConfigError(f"--out {out}: belongs to the run {of_run}; choose another name")


def _read(directories: Sequence[Path]) -> list[_Run]:
    places = list(dict.fromkeys(directory.resolve() for directory in directories))
    for place in places:
        if not layout.has_records(place):
            raise ConfigError(f"{place}: not a run directory (there is no {layout.RECORDS})")
    runs = [_read_run(place, name) for place, name in zip(places, distinct_names(places), strict=True)]
    for run in runs[1:]:
        if not _same_dataset(runs[0], run):
            names = f"({_dataset(run)}) than {runs[0].directory} ({_dataset(runs[0])})"
            raise ConfigError(f"{run.directory}: has another dataset {names}")
    return runs


def _read_run(directory: Path, name: str) -> _Run:
    run = RunDirectory(directory)
    summary, coverage = run.summary(), run.coverage()
    found: dict[str, dict[int, Candidate]] = {}
    turns: dict[tuple[str, int], int] = {}
    for (instance_id, sample), (turn, answer) in run.candidates().items():
        found.setdefault(instance_id, {})[sample] = answer
        turns[instance_id, sample] = turn
    answers = {key: [of_sample[sample] for sample in sorted(of_sample)] for key, of_sample in found.items()}
    verdicts = run.resolved()
    if summary.get("remaining") or summary.get("failed"):
        log.warning("%s: %d of %d samples have no answer", directory, _unanswered(summary), covered_samples(summary))
    return _Run(
        directory,
        name,
        run.label() or name,
        run.config(),
        max([summary.get("samples", 1), *(1 + sample for _, sample in turns)]),
        answers,
        list(answers) if coverage is None or coverage.instance_ids is None else coverage.instance_ids,
        {key: verdicts.get((key, turn), False) for key, turn in turns.items()} if verdicts else None,
    )


def _unanswered(summary: Mapping[str, Any]) -> int:
    return int(summary.get("remaining") or 0) + int(summary.get("failed") or 0)


def _dataset(run: _Run) -> str:
    node = run.config.get("dataset")
    node = node if isinstance(node, Mapping) else {}
    parts = [str(node[key]) for key in ("name", "path", "subset", "split") if node.get(key) is not None]
    return clean(" ".join(parts) or str(node.get("_target_")).rpartition(".")[2])


def _same_dataset(one: _Run, other: _Run) -> bool:
    """Whether two runs have the same instances: by the official name of the dataset, which its variants with prompts
    share; by the digest of its content; or by its location."""
    locations, names = [], []
    for run in (one, other):
        node = run.config.get("dataset")
        node = dict(node) if isinstance(node, Mapping) else {}
        official = official_name(node)
        names.append(official and (official, node.get("split")))
        ignored = ("text_column", "run_tests", *config.COVERAGE)
        locations.append({key: value for key, value in node.items() if key not in ignored})
    if names[0] is not None and names[0] == names[1]:
        return True
    digests = [
        {entry.get("dataset_sha256") for entry in read_provenance(run.directory).commands} - {None}
        for run in (one, other)
    ]
    if all(digests):
        return bool(digests[0] & digests[1])
    return locations[0] == locations[1]


def _label(runs: Sequence[_Run]) -> str:
    return "+".join(dict.fromkeys(run.label for run in runs))


def _lines(runs: Sequence[_Run], selector: InstanceSelector, label: str) -> Iterator[dict[str, Any]]:
    """The predictions in the order of the runs' instances."""
    several = len(runs) > 1
    for instance_id in dict.fromkeys(name for run in runs for name in run.ids):
        found = [
            (run, replace(answer, run=run.name if several else None))
            for run in runs
            for answer in run.answers.get(instance_id, ())
        ]
        candidates = [answer for _, answer in found]
        choice = selector.select(instance_id, candidates) if candidates else None
        if choice is None:
            continue
        run, answer = found[choice.index]
        digests = {(at.name, one.sample): answer_digest(one.patch, one.patch_status) for at, one in found}
        selected = Selected(
            answer.sample,
            answer.patch_status,
            selector.name,
            choice.reason,
            len(candidates),
            digest_of(digests),
            choice.votes,
            choice.share,
        )
        yield {
            "instance_id": instance_id,
            "model_name_or_path": label,
            "model_patch": answer.patch,
            "patch_status": answer.patch_status,
            "run": run.name,
            "model": run.label,
            **selected.fields(),
        }


def _print_figures(runs: Sequence[_Run], lines: Sequence[Mapping[str, Any]], by: str) -> None:
    instances = len({name for run in runs for name in run.ids})
    applying = sum(line["patch_status"] in ("applies", "repaired") for line in lines)
    shares = [line["share"] for line in lines if "share" in line]
    gap, samples = _gap(runs, lines, instances), sum(run.samples for run in runs)
    rows = [
        ("selection", f"{by}, from {len(runs)} run{'s' * (len(runs) > 1)} with {samples} samples"),
        ("selected", f"{len(lines):,} of {instances:,} instances"),
        ("applies", f"{applying:,} of {instances:,} ({percent(applying / instances)})"),
        ("votes", f"mean share {sum(shares) / len(shares):.2f}" if shares else ""),
    ]
    if gap is not None:
        closed = "" if gap.closed is None else f"; closes {percent(gap.closed)} of the gap"
        rates = (
            f"pass@1 {percent(gap.pass_1)}, selected {percent(gap.selected)}, pass@{samples} {percent(gap.pass_n)}"
        )
        rows.append(("resolved", rates + closed))
    for title, text in rows:
        if text:
            print(f"  {title:<10} {text}", file=sys.stderr)


def _gap(runs: Sequence[_Run], lines: Sequence[Mapping[str, Any]], instances: int) -> SelectionGap | None:
    """The resolved rates; None if a run was not evaluated."""
    verdicts = {run.name: run.resolved for run in runs if run.resolved is not None}
    if len(verdicts) < len(runs):
        return None
    counts: dict[str, tuple[int, int]] = {}
    for run in runs:
        for name in run.ids:
            good = sum(verdicts[run.name].get((name, answer.sample), False) for answer in run.answers.get(name, ()))
            before = counts.get(name, (0, 0))
            counts[name] = (before[0] + good, before[1] + run.samples)
    solved = {
        line["instance_id"] for line in lines if verdicts[line["run"]].get((line["instance_id"], line["sample"]))
    }
    return selection_gap(counts, solved, instances)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-select",
        description="One submission from the samples of one run or of several runs of the same dataset. Nothing is "
        "requested. Verdicts of tests are shown, but never used to select.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--by", required=True, metavar="RULE", help=", ".join(_rules()))
    parser.add_argument("--out", required=True, metavar="FILE", help="the predictions, as JSON lines or a .json list")
    parser.add_argument("--name", help="model_name_or_path of the predictions (default: the runs' models)")
    return parser
