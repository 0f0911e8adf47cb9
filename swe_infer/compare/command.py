"""The command line of the comparison."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from swe_infer.compare.analysis import FULL, RESAMPLES, Cluster, Comparison, compare
from swe_infer.compare.export import as_json, write_csv, write_samples
from swe_infer.compare.levels import GROUPS
from swe_infer.compare.loading import load_sources
from swe_infer.compare.sources import find_sources, jobs_without_run
from swe_infer.compare.table import as_latex, as_markdown
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.files import replacing
from swe_infer.remote.paths import displayed, message_of, plain_path
from swe_infer.remote.store import is_remote
from swe_infer.run_directory import layout
from swe_infer.text import CommandParser, clean

_STANDARD_OUTPUT = Path("-")
_PLAIN_WIDTH = 160  # columns, if standard output is not a terminal and COLUMNS is not set


def run(arguments: Sequence[str] | None = None) -> int:
    """Compares runs, prints the tables and writes the files. Returns the exit status: 2 after an error, in one
    line."""
    options = _parser().parse_args(arguments)
    try:
        paths = [*options.runs, *_baseline_path(options)]
        sources, left_out = find_sources(paths)
        notes = [f"A job of the sweep has no run: {job}." for job in jobs_without_run(options.runs)]
        notes += [f"Left out: {line}" for line in left_out]
        comparison = compare(
            load_sources(sources),
            seed=options.seed,
            resamples=options.resamples,
            notes=notes,
            baseline=options.baseline,
            margin=options.margin,
            by=list(dict.fromkeys(options.by)),
            cluster=options.cluster,
            power=options.power,
        )
        _write(comparison, options)
        _print(comparison, options)
    except SweInferError as error:
        print(f"error: {message_of(error)}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {clean(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-compare",
        description="Compares runs: differences in configuration, rates with intervals, costs, paired tests.",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN_DIR",
        help="a run directory, or a directory of several (a sweep); or runs on a W&B server: "
        "wandb:ENTITY/PROJECT/RUN_ID, or all of wandb:ENTITY/PROJECT, …/groups/NAME, …/sweeps/ID",
    )
    parser.add_argument("--html", type=_file, metavar="FILE", help="write a self-contained interactive page")
    parser.add_argument("--json", type=_file, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--csv", type=_file, metavar="FILE", help="write all figures, one a row")
    parser.add_argument("--samples", type=_file, metavar="FILE", help="write CSV with a row for each run's samples")
    for name, what in (("--markdown", "in Markdown"), ("--latex", "for LaTeX (booktabs)")):
        parser.add_argument(
            name,
            nargs="?",
            const=_STANDARD_OUTPUT,
            type=_file,
            metavar="FILE",
            help=f"write the tables {what}; without FILE to standard output, in place of the plain ones",
        )
    parser.add_argument("--keys", action="store_true", help="list every configuration key that differs")
    parser.add_argument("--instances", action="store_true", help="list all instances, not only those that differ")
    parser.add_argument(
        "--baseline", metavar="RUN", help="compare every other run with this one: a directory, name or letter"
    )
    parser.add_argument(
        "--by", action="append", choices=GROUPS, default=[], help="break the rates down; may be repeated"
    )
    parser.add_argument(
        "--cluster",
        choices=get_args(Cluster),
        default="instance",
        help="what standard errors are clustered by (default instance)",
    )
    parser.add_argument(
        "--margin", type=_points, metavar="POINTS", help="test whether rates are equivalent within so many points"
    )
    parser.add_argument(
        "--power",
        type=_points,
        nargs="?",
        const=0.05,
        metavar="POINTS",
        help="what the runs can detect, and how many instances and samples this difference needs (default 5)",
    )
    parser.add_argument(
        "--full",
        type=_full,
        default=FULL,
        metavar="N|IDS",
        help="the instances that the page has with prompt, answers and reasoning: their number, or ids with commas "
        f"(default {FULL}, those on which the runs differ first)",
    )
    parser.add_argument(
        "--no-prompts", action="store_true", help="leave prompts, gold patches and files out of the page"
    )
    parser.add_argument("--seed", type=_natural, default=0, help="seed of the resampling tests (default 0)")
    parser.add_argument(
        "--resamples", type=_natural, default=RESAMPLES, help=f"number of resamples (default {RESAMPLES:,})"
    )
    return parser


def _points(text: str) -> float:
    """A difference of rates from percentage points."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"{text!r}: must be points between 0 and 100, such as 5")
    return value / 100


def _full(text: str) -> int | list[str]:
    """A number of instances, or their ids."""
    if text.isascii() and text.isdigit():
        return int(text)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of instances, or ids with commas")
    return names


def _baseline_path(options: argparse.Namespace) -> list[str]:
    """The baseline, if it is the directory of a run: it may be missing among the runs."""
    baseline = options.baseline
    is_run = baseline is not None and (is_remote(baseline) or layout.is_run(Path(baseline)))
    return [baseline] if is_run else []


def _file(text: str) -> Path:
    try:
        return plain_path(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 0")
    return int(text)


def _print(comparison: Comparison, options: argparse.Namespace) -> None:
    if _STANDARD_OUTPUT in (options.markdown, options.latex):
        return
    from rich.console import Console

    from swe_infer.compare.table import print_comparison

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PLAIN_WIDTH
    print_comparison(comparison, Console(width=width), every_instance=options.instances, every_key=options.keys)


def _write(comparison: Comparison, options: argparse.Namespace) -> None:
    if options.json is not None:
        with replacing(options.json) as new:
            new.write_text(json.dumps(as_json(comparison), indent=1) + "\n", encoding="utf-8")
    for path, write in ((options.csv, write_csv), (options.samples, write_samples)):
        if path is not None:
            with (
                replacing(path) as new,
                new.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
            ):
                write(comparison, file)
    for path, text_of in ((options.markdown, as_markdown), (options.latex, as_latex)):
        if path is None:
            continue
        text = text_of(comparison, every_instance=options.instances, every_key=options.keys)
        if path == _STANDARD_OUTPUT:
            sys.stdout.write(text)
        else:
            with replacing(path) as new:
                new.write_text(text, encoding="utf-8", errors="backslashreplace")
    if options.html is not None:
        from swe_infer.compare.report import write_report

        with replacing(options.html) as new:
            write_report(comparison, new, prompts=not options.no_prompts, full=options.full)
        print(f"report: {displayed(options.html)}", file=sys.stderr)
