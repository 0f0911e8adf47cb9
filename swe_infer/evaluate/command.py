"""The command line of the evaluation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.evaluate.evaluable import EvaluableRun, evaluated_figures, open_run, save_verdicts
from swe_infer.remote.paths import displayed, message_of
from swe_infer.remote.reading import dataset_path, readable_path
from swe_infer.remote.store import is_remote
from swe_infer.remote.writing import written_folder
from swe_infer.resources import expanded
from swe_infer.run_directory import layout
from swe_infer.run_directory.figures import Summary, covered_samples
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Key
from swe_infer.run_directory.store import RunStore
from swe_infer.run_directory.verdicts import Verdict, read_verdicts, write_verdicts
from swe_infer.text import CommandParser, clean, report_errors

_OWN_TIMEOUT_S = 10.0
"""Default seconds per instance for a dataset's own tests."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Evaluates runs and prints their resolved rates.

    Returns:
        The exit status: 1 if the harness failed, 2 for invalid input.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return for_each_run(options.runs, lambda directory: _line(directory, evaluate(directory, options)))


def for_each_run(runs: Iterable[str], work: Callable[[Path], str], *, writes: bool = True) -> int:
    """Prints what ``work`` returns for each run directory. An error is one line, and stops no other run.

    Args:
        runs: paths or URLs.
        writes: ``work`` changes the run.

    Returns:
        The exit status: the highest of the errors, or 0.
    """
    works = (partial(_print_result, work, run, writes=writes) for run in runs)
    return max((report_errors(one, message_of) for one in works), default=0)


def _print_result(work: Callable[[Path], str], run: str, *, writes: bool) -> None:
    with written_folder(run, exists=True) if writes else nullcontext(readable_path(run)) as directory:
        print(work(directory), flush=True)


def evaluate(directory: Path, options: argparse.Namespace) -> Summary:
    """Evaluates one run, writes its verdicts and summary, and logs them to the run's tracker.

    Raises:
        ConfigError: the directory is not a run or in use, or cannot be evaluated.
        HarnessError: the harness failed.
    """
    if options.report is not None and len(options.runs) > 1:
        raise ConfigError("--report belongs to one run: name one RUN_DIR")
    found = open_run(directory)
    with RunStore(directory, found.label, found.locks) as store:  # the lock keeps other processes from resuming it
        verdicts = _verdicts(found, options)
        before = RunDirectory(directory).latest_summary()
        summary: Summary = {
            **before,
            "unreadable_records": store.totals.unreadable,
            "unreadable_cost_usd": store.totals.unreadable_usd,
            **save_verdicts(found, verdicts, before),
        }
        store.write_summary(summary)
        _log_to_tracker(directory, summary, trusted=options.wandb)
    return summary


def figures_of_saved_verdicts(directory: Path, summary: Summary) -> Summary:
    """The figures of earlier verdicts on the samples that the last command requested, to add to the summary. The
    caller must hold the lock of the run directory.

    Raises:
        ConfigError: a file of verdicts cannot be read.
    """
    if not read_verdicts(directory):
        return {}
    try:
        found: Mapping[Key, int] = open_run(directory).turns
    except ConfigError:  # no requested sample is completed
        found = {}
    verdicts = write_verdicts(directory, (), found)
    return evaluated_figures(verdicts, summary, RunDirectory(directory).selected()) if verdicts else {}


def _verdicts(found: EvaluableRun, options: argparse.Namespace) -> list[Verdict]:
    from swe_infer.evaluate.harness import (
        HarnessOptions,
        check_harness,
        refuse_other_harness,
        run_harness,
        verdicts_of_report,
    )
    from swe_infer.evaluate.own_tests import run_own_tests, tested_rows
    from swe_infer.sample import sandbox

    if options.report is not None:
        return verdicts_of_report(found, options.report, options.sample)
    dataset = None if options.dataset is None else _local_dataset(options.dataset)
    rows = tested_rows(found, dataset)
    if rows is not None:
        if not options.unsafe and (why := sandbox.why_unavailable()) is not None:
            raise ConfigError(f"{found.directory}: {why}; --unsafe runs the tests without a sandbox")
        return run_own_tests(
            found, rows, timeout_s=float(options.timeout or _OWN_TIMEOUT_S), contained=not options.unsafe
        )
    if options.dataset is None:
        refuse_other_harness(found)
    check_harness()
    harness = HarnessOptions(options.dataset, options.split, options.max_workers, options.timeout or 1800)
    return run_harness(found, harness)


def _local_dataset(name: str) -> Path:
    return dataset_path(name, "--dataset") if is_remote(name) else expanded(name, "--dataset")


def _log_to_tracker(directory: Path, summary: Summary, *, trusted: bool) -> None:
    from swe_infer.tracking.wandb import WandbTracker

    tracked = WandbTracker.of_run(directory, trusted=trusted)
    if tracked is None:
        return
    tracker, info = tracked
    tracker.start(info)
    unfinished = bool(summary.get("failed") or summary.get("remaining"))
    tracker.finish(summary, layout.result_files(directory), int(unfinished))


def _line(directory: Path, summary: Summary) -> str:
    rate = summary["resolved_rate"]
    share = "" if rate is None else f" ({100 * rate:.1f}%)"
    asked = covered_samples(summary)
    resolved = f"resolved {summary['resolved']} of {asked}{share}, evaluated {summary['evaluated']}"
    line = f"{clean(displayed(directory))}: {resolved}"
    if "selected_resolved" in summary and (instances := summary["instances"]):
        selected, by_any = summary["selected_resolved"], summary["resolved_by_any"]
        line += (
            f"; selected ({clean(summary['selection'])}) {selected} of {instances} ({selected / instances:.1%}), "
            f"pass@{summary['samples']} {by_any} of {instances} ({by_any / instances:.1%})"
        )
    return line


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-evaluate",
        description="Resolved rates. The bundled sample and files with tests are tested here. Other datasets need "
        "the official harness (package swebench, needs Docker), or its finished report.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    parser.add_argument("--report", type=Path, metavar="FILE", help="a finished report of the official harness")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="the sample that --report covers (default 0)"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="a dataset by its name in the harness, or a file with tests"
    )
    parser.add_argument(
        "--unsafe", action="store_true", help="run the dataset's own tests without a sandbox, as this user"
    )
    parser.add_argument(
        "--wandb", action="store_true", help="log to the W&B run that RUN_DIR names, even if somebody else tracked it"
    )
    parser.add_argument("--split", metavar="NAME", help="split of the dataset (default: the run's)")
    parser.add_argument(
        "--max-workers", type=_positive, default=4, metavar="N", help="containers at once (default 4)"
    )
    parser.add_argument(
        "--timeout", type=_positive, metavar="S", help="seconds per instance (default 10; in the harness 1800)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value
