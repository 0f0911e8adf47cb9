"""The command line of the comparison."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from swe_infer.compare.analysis import RESAMPLES, Comparison, compare
from swe_infer.compare.export import as_json, write_csv
from swe_infer.compare.loading import load_sources
from swe_infer.compare.sources import find_sources, jobs_without_run
from swe_infer.errors import SweInferError
from swe_infer.files import replacing
from swe_infer.text import clean

_PLAIN_WIDTH = 160  # columns, if standard output is not a terminal and COLUMNS is not set


def run(arguments: Sequence[str] | None = None) -> int:
    """Compares runs, prints the tables and writes the files. Returns the exit status: 2 after an error, in one
    line."""
    options = _parser().parse_args(arguments)
    try:
        sources, left_out = find_sources(options.runs)
        notes = [f"A job of the sweep has no run: {job}." for job in jobs_without_run(options.runs)]
        notes += [f"Left out: {line}" for line in left_out]
        comparison = compare(load_sources(sources), seed=options.seed, resamples=options.resamples, notes=notes)
        _write(comparison, options)
        _print(comparison, options.instances)
    except SweInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:  # such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {clean(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
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
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a self-contained interactive page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each run, instance and sample")
    parser.add_argument("--instances", action="store_true", help="list all instances, not only those that differ")
    parser.add_argument("--no-prompts", action="store_true", help="leave the prompts out of the page")
    parser.add_argument("--seed", type=_natural, default=0, help="seed of the resampling tests (default 0)")
    parser.add_argument(
        "--resamples", type=_natural, default=RESAMPLES, help=f"number of resamples (default {RESAMPLES:,})"
    )
    return parser


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _print(comparison: Comparison, every_instance: bool) -> None:
    from rich.console import Console

    from swe_infer.compare.table import print_comparison

    class ComparisonConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would exit with status 1

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PLAIN_WIDTH
    print_comparison(comparison, ComparisonConsole(width=width), every_instance=every_instance)


def _write(comparison: Comparison, options: argparse.Namespace) -> None:
    if options.json is not None:
        with replacing(options.json) as new:
            new.write_text(json.dumps(as_json(comparison), indent=1) + "\n", encoding="utf-8")
    if options.csv is not None:
        with (
            replacing(options.csv) as new,
            new.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            write_csv(comparison, file)
    if options.html is not None:
        from swe_infer.compare.report import write_report

        with replacing(options.html) as new:
            write_report(comparison, new, prompts=not options.no_prompts)
        print(f"report: {options.html}", file=sys.stderr)
