"""The command line of the evaluation."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.evaluate.harness import HarnessOptions, check_harness, run_harness, verdicts_of_report
from swe_infer.evaluate.own_tests import judge, tested_rows
from swe_infer.evaluate.run_directory import FILE_NAME, EvaluableRun, Verdict, figures, open_run, write_verdicts
from swe_infer.resources import expanded
from swe_infer.sample import sandbox
from swe_infer.store import RunStore
from swe_infer.tracking.wandb import WandbTracker

_OWN_TIMEOUT_S = 10.0
"""For one test of a dataset that brings its own."""

_STEPS = {False: {"tested_in": "sandbox", "not_tested": None}, True: {"tested_in": "process", "not_tested": None}}
"""What the summary says of where tests ran, by whether that was unsafe."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Evaluate runs and print their resolved rates.

    Returns the exit status: 0; 1 where the harness failed; 2 with one line for bad input.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    status = 0
    for directory in options.runs:
        try:
            summary = evaluate(directory, options)
        except SweInferError as error:
            print(f"error: {error}", file=sys.stderr)
            status = max(status, error.exit_status)
            continue
        except OSError as error:
            print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
            status = 2
            continue
        print(_line(directory, summary))
    return status


def evaluate(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Find out what one run resolved; write ``evaluation.jsonl`` and ``summary.json``, and tell the run's tracker.

    Raises:
        ConfigError: not a run, in use, or nothing to evaluate it with.
        HarnessError: the harness failed.
    """
    if options.report is not None and len(options.runs) > 1:
        raise ConfigError("--report is about one run: name one RUN_DIR")
    found = open_run(directory)
    with RunStore(directory, found.label, found.locks) as store:  # nobody goes on with the run meanwhile
        verdicts = _verdicts(found, options)
        before = store.read_summary() or _counts(store)
        totals = store.totals.as_dict()
        unreadable = {key: totals[key] for key in ("unreadable_records", "unreadable_cost_usd")}
        summary = {**before, **unreadable, **_kept(found, verdicts, before)}
        store.write_summary(summary)
        _tell_tracker(directory, summary)
    return summary


def own_tests_of(directory: Path, summary: Mapping[str, Any], *, unsafe: bool = False) -> dict[str, Any]:
    """Run the tests that the run's dataset brings; for whoever holds the run directory.

    Args:
        summary: of the run.
        unsafe: without the sandbox.

    Returns:
        What they add to the summary; nothing where the dataset brings no tests.

    Raises:
        ConfigError: nothing in the run is completed, or the directory cannot be read.
    """
    found = open_run(directory)
    rows = tested_rows(found, None)
    if rows is None:
        return {}
    if not unsafe and (why := sandbox.why_unavailable()) is not None:
        return {"not_tested": why}
    verdicts = judge(found, rows, timeout_s=_OWN_TIMEOUT_S, contained=not unsafe)
    return {**_kept(found, verdicts, summary), **_STEPS[unsafe]}


def _kept(found: EvaluableRun, verdicts: Iterable[Verdict], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Keep verdicts in the run directory; returns what they add to its summary."""
    return figures(write_verdicts(found.directory, verdicts, found.patches), summary)


def kept_figures(directory: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What earlier evaluations say of what is asked for now, as they add it to the summary; for whoever holds the run
    directory.

    Raises:
        ConfigError: a file of verdicts cannot be read.
    """
    if not (directory / FILE_NAME).exists():
        return {}
    try:
        found: Container[tuple[str, int]] = open_run(directory).patches
    except ConfigError:  # nothing of what is asked for now is completed
        found = ()
    verdicts = write_verdicts(directory, (), found)
    return figures(verdicts, summary) if verdicts else {}


def _verdicts(found: EvaluableRun, options: argparse.Namespace) -> list[Verdict]:
    if options.report is not None:
        return verdicts_of_report(found, options.report, options.sample)
    dataset = None if options.dataset is None else expanded(options.dataset, "--dataset")
    rows = tested_rows(found, dataset)
    if rows is not None:
        if not options.unsafe and (why := sandbox.why_unavailable()) is not None:
            raise ConfigError(f"{found.directory}: {why}; --unsafe runs the tests without a sandbox")
        return judge(found, rows, timeout_s=float(options.timeout or _OWN_TIMEOUT_S), contained=not options.unsafe)
    check_harness()
    harness = HarnessOptions(options.dataset, options.split, options.max_workers, options.timeout or 1800)
    return run_harness(found, harness)


def _counts(store: RunStore) -> dict[str, Any]:
    """A summary for a run that was killed before it wrote one."""
    totals = store.totals.as_dict()
    done = totals["completed"] + totals["failed"] + totals["skipped"]
    return {"instances": done, "samples": 1, **totals}


def _tell_tracker(directory: Path, summary: dict[str, Any]) -> None:
    tracked = WandbTracker.of_run(directory)
    if tracked is None:
        return
    tracker, info = tracked
    tracker.start(info)
    names = ("records.jsonl", "summary.json", "config.yaml", FILE_NAME)
    files = sorted(directory.glob("predictions*.jsonl")) + [directory / name for name in names]
    unfinished = bool(summary.get("failed") or summary.get("remaining"))
    tracker.finish(summary, files, int(unfinished))


def _line(directory: Path, summary: dict[str, Any]) -> str:
    rate = summary["resolved_rate"]
    asked = int(summary.get("instances") or 0) * int(summary.get("samples") or 1)
    share = "" if rate is None else f" ({100 * rate:.1f}%)"
    return f"{directory}: resolved {summary['resolved']} of {asked}{share}, evaluated {summary['evaluated']}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swe-infer-evaluate",
        description="Resolved rates. Datasets that bring their tests (the bundled sample) are tested here; others "
        "go to the official harness (package swebench, needs Docker), or bring its finished report.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument("--report", type=Path, metavar="FILE", help="a finished report of the official harness")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="the sample that --report is about")
    parser.add_argument("--dataset", metavar="NAME", help="the harness's name, or a file with tests to run")
    parser.add_argument(
        "--unsafe", action="store_true", help="run the dataset's own tests without a sandbox, as this user"
    )
    parser.add_argument("--split", metavar="NAME", help="split of the dataset (default: the run's)")
    parser.add_argument(
        "--max-workers", type=_positive, default=4, metavar="N", help="containers at once (default 4)"
    )
    parser.add_argument(
        "--timeout", type=_positive, metavar="S", help="for one instance (default 10; the harness's own 1800)"
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value
