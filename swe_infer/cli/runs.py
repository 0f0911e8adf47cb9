"""``swe-infer-runs [list|show|rm|sync|move] …``: the runs and sweeps of a folder."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from swe_infer.errors import ConfigError, SweInferError
from swe_infer.remote.paths import displayed, message_of, plain_path
from swe_infer.remote.reading import mirrored_folders, readable_path
from swe_infer.remote.store import is_remote
from swe_infer.remote.writing import remove_mirrored, written_folder
from swe_infer.run_directory import layout
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS, sweep_entries
from swe_infer.runs.filters import Filter, check_keys, sorted_by
from swe_infer.runs.listing import (
    ListedRun,
    distinguishing_keys,
    memberships,
    read_run,
    read_runs,
    search,
    values_of,
)  # fmt: skip
from swe_infer.text import CommandParser, clean, cost_with_doubts, dollars, report_errors, shown

_Place = TypeVar("_Place", str, Path)
_COMMANDS = ("list", "show", "rm", "sync", "move")
_DEFAULT_FOLDER = "outputs"
_FORMS = "KEY=VALUE, KEY!=VALUE, KEY<VALUE, KEY>VALUE, KEY<=VALUE or KEY>=VALUE"


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status: 2 after an error, in one line for each run."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or (given[0] not in (*_COMMANDS, "-h", "--help")):
        given.insert(0, "list")
    options = _parser().parse_args(given)
    work: Callable[[argparse.Namespace], int] = options.work
    try:
        return work(options)
    except SweInferError as error:
        print(f"error: {clean(message_of(error))}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"error: {clean(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="swe-infer-runs",
        description="The runs and sweeps of a folder. Without a command: list.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    what = f"a folder (default {_DEFAULT_FOLDER}), run directories, and filters on any key: {_FORMS}"
    listing = _command(commands, "list", _list, "list runs with what differs among them")
    listing.add_argument("paths", nargs="*", metavar="FOLDER|FILTER", help=what)
    listing.add_argument("--sort", metavar="KEY", help="a column or any key; --sort=-KEY reverses (default -age)")
    listing.add_argument("--json", action="store_true", help="print a JSON list with every column")
    show = _command(commands, "show", _show, "what a run or sweep is, its figures and errors, and how to resume it")
    show.add_argument("paths", nargs="+", metavar="RUN_DIR|SWEEP_DIR")
    remove = _command(commands, "rm", _remove, "remove runs, and the directories of sweeps")
    remove.add_argument("paths", nargs="+", metavar="RUN_DIR|SWEEP_DIR|FOLDER|FILTER", help="a folder needs a filter")
    remove.add_argument("--force", action="store_true", help="also runs whose answers cost money")
    remove.add_argument("--dry-run", action="store_true", help="print what would be removed")
    upload = _command(commands, "sync", _sync, "upload runs to W&B that were logged offline or not completely")
    upload.add_argument("paths", nargs="*", metavar="RUN_DIR|FOLDER|FILTER", help=what)
    upload.add_argument("--entity", help="W&B user or team (default: the run's)")
    upload.add_argument("--project", help="W&B project (default: the run's)")
    upload.add_argument(
        "--wandb", action="store_true", help="also extend existing W&B runs that somebody else tracked"
    )
    upload.add_argument("--processes", type=_positive, metavar="N", help="runs that are uploaded at once (default 4)")
    upload.add_argument("--dry-run", action="store_true", help="print what would be uploaded")
    move = _command(commands, "move", _move, "move runs, also to another file system")
    move.add_argument("paths", nargs="+", metavar="RUN_DIR")
    move.add_argument("target", metavar="TARGET", help="an existing folder, or the new path of one run")
    return parser


def _command(
    commands: argparse._SubParsersAction[CommandParser],
    name: str,
    work: Callable[[argparse.Namespace], int],
    text: str,
) -> CommandParser:
    parser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(work=work)
    return parser


def _split(arguments: Sequence[str]) -> tuple[list[Path], list[Filter]]:
    """The paths and the filters among the arguments. An existing path is no filter. For a URL, the path is a
    local copy with what a list needs.

    Raises:
        ConfigError: an argument is neither.
    """
    paths: list[Path] = []
    filters: list[Filter] = []
    for argument in arguments:
        if is_remote(argument):
            paths.append(readable_path(argument, listing=True))
            continue
        path = plain_path(argument)
        if os.path.lexists(path):
            paths.append(path)
        elif (parsed := Filter.parse(argument)) is not None:
            filters.append(parsed)
        else:
            close = "" if argument not in _COMMANDS else f"; the command comes first: swe-infer-runs {argument} …"
            raise ConfigError(f"{argument}: directory not found, and not a filter such as state=failed{close}")
    return paths, filters


def _selected(paths: Sequence[Path], filters: Sequence[Filter]) -> tuple[list[ListedRun], list[str]]:
    """The runs in some folders, or the run directories themselves, that match all filters; and what cannot be read.

    Raises:
        ConfigError: a folder does not exist, or a filter has an unknown key.
    """
    runs: dict[str, ListedRun] = {}
    unreadable: list[str] = []
    for folder in paths:
        if not folder.is_dir():
            raise ConfigError(f"{displayed(folder)}: directory not found; name a folder of runs")
        found = search(folder)
        unreadable += found.unreadable
        for run in read_runs(folder, found):
            runs.setdefault(os.path.realpath(run.directory), run)
    listed = list(runs.values())
    check_keys([one.key for one in filters], listed)
    return [run for run in listed if all(one(run) for one in filters)], unreadable


def _list(options: argparse.Namespace) -> int:
    from swe_infer.compare.keys import differing_keys

    paths, filters = _split(options.paths)
    runs, unreadable = _selected(paths or [Path(_DEFAULT_FOLDER)], filters)
    order = options.sort or "age"
    check_keys([order.removeprefix("-")], runs)
    runs = sorted_by(runs, order)
    differing = [key for key in differing_keys(runs) if not key.endswith("_target_")]
    if options.json:
        print(json.dumps([_as_json(run, differing) for run in runs], indent=1, default=str))
    else:
        _print_table(runs, differing)
    for line in unreadable:
        print(line, file=sys.stderr)
    return 0


def _as_json(run: ListedRun, differing: Sequence[str]) -> dict[str, Any]:
    figures = {key: run.summary.get(key) for key in ("completed", "failed", "skipped", "remaining")}
    return {
        **run.columns,
        "directory": displayed(run.directory),
        "sweeps": list(run.sweeps),
        **figures,
        "differs": {key: run.config[key] for key in differing if key in run.config},
        "error": run.error,
    }


_OFTEN_SHARED = ("model", "dataset", "prompt", "sweep")
"""Columns that a narrow terminal shows once, below the table, if all runs have the same value."""


def _print_table(runs: Sequence[ListedRun], differing: Sequence[str]) -> None:
    if not runs:
        print("no runs", file=sys.stderr)
        return
    keys = distinguishing_keys(runs, differing)
    head = ["name", "state", "done", "rate", "cost", "age", "model", "dataset", "prompt", "sweep", "differs"]
    rows = [_row(run, keys) for run in runs]
    used = [index for index in range(len(head)) if any(row[index] not in ("", "-") for row in rows)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    lines = _lines([head, *rows], used)
    same = ""
    if width is not None and max(map(len, lines)) > width:
        shared = [index for index in used if head[index] in _OFTEN_SHARED and len({row[index] for row in rows}) == 1]
        lines = _lines([head, *rows], [index for index in used if index not in shared])
        same = "".join(f", {head[index]} {rows[0][index]}" for index in shared)
    for line in lines:
        print(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    states = Counter(run.state for run in runs)
    counts = ", ".join(f"{number:,} {state}" for state, number in sorted(states.items()))
    costs = [run.columns["cost"] for run in runs]
    total = dollars(sum(cost for cost in costs if cost is not None))
    if unknown := sum("cost_usd" in run.summary and cost is None for run, cost in zip(runs, costs, strict=True)):
        total += f" without the unknown cost of {unknown:,}"
    print(f"{len(runs):,} run{'s' * (len(runs) != 1)} ({counts}), {total}{same}", file=sys.stderr)


def _lines(table: Sequence[Sequence[str]], columns: Sequence[int]) -> list[str]:
    """The rows of a table as lines with aligned columns."""
    widths = [max(len(row[index]) for row in table) for index in columns]
    return ["  ".join(row[n].ljust(size) for n, size in zip(columns, widths, strict=True)).rstrip() for row in table]


def _row(run: ListedRun, keys: Sequence[str]) -> list[str]:
    columns = run.columns
    return [
        shown(run.name),
        run.state,
        f"{run.done}/{run.total}" if run.summary else "-",
        _rate(columns),
        cost_with_doubts(columns["cost"], run.summary.get("possibly_billed_usd"))
        if "cost_usd" in run.summary
        else "-",
        _age(columns["age"]) if run.modified else "-",
        *(shown(columns[key]) for key in ("model", "dataset", "prompt", "sweep")),
        run.error or values_of(run, keys),
    ]


def _rate(columns: Mapping[str, Any]) -> str:
    """The resolved rate of an evaluated run, else the apply rate."""
    if columns["resolved"] is not None:
        return f"{columns['resolved']:.1%} resolved"
    return "-" if columns["applies"] is None else f"{columns['applies']:.1%} apply"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _each(paths: Iterable[_Place], work: Callable[[_Place], object]) -> int:
    return max((report_errors(partial(work, path), message_of) for path in paths), default=0)


def _show(options: argparse.Namespace) -> int:
    return _each(options.paths, _show_one)


def _show_one(given: str) -> None:
    path = readable_path(given)
    if path.is_dir() and (path / SWEEP_JOBS).exists() and not layout.is_run(path):
        _show_sweep(path)
        return
    if not path.is_dir() or not search(path).runs == [path]:
        raise ConfigError(f"{path}: neither a run directory nor the directory of a sweep")
    from swe_infer.cli.run_details import print_run

    print_run(read_run(path, displayed(path), memberships(sweeps_near(path)).get(os.path.realpath(path), ())))


def _show_sweep(path: Path) -> None:
    from swe_infer.cli.command_line import command_line
    from swe_infer.cli.tables import print_rows
    from swe_infer.compare.keys import differing_keys
    from swe_infer.run_directory.sweep_paths import run_of_entry

    entries = sweep_entries(path)
    runs = [run for entry in entries if (run := run_of_entry(path, entry)) is not None]
    listed = [read_run(run, displayed(run), [path.resolve().name]) for run in runs]
    print(shown(displayed(path)))
    failed = sum(1 for entry in entries if entry.get("status"))
    command = (path / "command.txt").is_file() and command_line(path)
    print_rows(
        [
            ("sweep", shown(path.resolve().name)),
            ("jobs", f"{len(entries):,}, {failed:,} not finished" if failed else f"{len(entries):,}"),
            ("resume", clean(command or "")),
        ],
        sys.stdout,
    )
    _print_table(listed, differing_keys(listed))


def sweeps_near(run: Path) -> list[Path]:
    """The directories of sweeps that may list a run: the folders that contain it, and those in ``sweeps/`` there."""
    found: list[Path] = []
    for folder in list(run.absolute().parents)[:3]:
        places = [folder, folder / "sweeps"]
        with suppress(OSError):  # usually there is no such folder
            places += sorted((folder / "sweeps").iterdir())
        found += [place for place in places if (place / SWEEP_JOBS).is_file()]
    return list(dict.fromkeys(found))


def _remove(options: argparse.Namespace) -> int:
    from swe_infer.runs.directories import is_sweep, remove_run, remove_sweep

    paths, filters = _split(options.paths)
    if filters:
        runs = [run.directory for run in _selected(paths or [Path(_DEFAULT_FOLDER)], filters)[0]]
    else:
        runs = paths
    if not runs:
        print("no runs", file=sys.stderr)

    def remove(run: Path) -> None:
        remove_one = remove_sweep if is_sweep(run) else remove_run
        work = partial(remove_one, force=options.force, dry_run=options.dry_run)
        if is_remote(url := displayed(run)):
            remove_mirrored(url, work, dry_run=options.dry_run)
        else:
            work(run)
        print(f"{'would remove' if options.dry_run else 'removed'} {clean(url)}")

    return _each(runs, remove)


def _sync(options: argparse.Namespace) -> int:
    if not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("swe-infer-runs sync needs WANDB_API_KEY in the environment")
    with ExitStack() as stack:
        urls = [url for path in options.paths if is_remote(path) for url in mirrored_folders(path)]
        mirrored = [stack.enter_context(written_folder(url, exists=True)) for url in dict.fromkeys(urls)]
        return _upload(options, mirrored)


def _upload(options: argparse.Namespace, mirrored: Sequence[Path]) -> int:
    """Uploads the runs of local folders and of working directories of URLs to W&B."""
    from swe_infer.progress import progress
    from swe_infer.runs.sync import MAX_UPLOADS, Destination, ServerNotReachable, Upload, sync, upload_of

    paths, filters = _split([path for path in options.paths if not is_remote(path)])
    folders = [*paths, *mirrored] or [Path(_DEFAULT_FOLDER)]
    runs, unreadable = _selected(folders, filters)
    for line in unreadable:
        print(f"error: {line}", file=sys.stderr)
    destination = Destination(options.entity, options.project)
    status, unchanged, uploads = 2 if unreadable else 0, 0, list[Upload]()
    for run in runs:
        try:
            upload = upload_of(run.directory, destination, trusted=options.wandb)
        except (SweInferError, OSError) as error:
            print(f"error: {clean(str(error))}", file=sys.stderr)
            status = 2
            continue
        unchanged += upload is None
        if upload is not None:
            uploads.append(upload)
            if options.dry_run:
                print(f"would upload {clean(displayed(run.directory))}")
    failed = 0
    if uploads and not options.dry_run:
        with progress("syncing", len(uploads)) as advance:

            def report(upload: Upload, failure: str | None) -> None:
                advance()
                if failure is None:
                    print(f"synced {clean(displayed(upload.directory))}", flush=True)
                else:
                    print(f"error: {clean(failure)}", file=sys.stderr, flush=True)

            try:
                failed = sync(uploads, report, processes=options.processes or MAX_UPLOADS)
            except ServerNotReachable as error:
                print(f"error: {clean(str(error))}; repeat the command to sync the rest", file=sys.stderr)
                return 1
        print(f"runs: {len(uploads) - failed:,} synced, {failed:,} failed, {unchanged:,} unchanged", file=sys.stderr)
    elif not uploads:
        print(f"nothing to sync; runs that are unchanged or not tracked with W&B: {unchanged:,}", file=sys.stderr)
    if not (failed or filters or options.dry_run):
        _sync_sweeps(folders)
    return status or int(failed > 0)


def _sync_sweeps(folders: Sequence[Path]) -> None:
    """Uploads the summaries of the sweeps in some folders, once their runs are uploaded."""
    from swe_infer.tracking.state import is_synced, read_state

    for sweep in dict.fromkeys(sweep for folder in folders for sweep in search(folder).sweeps):
        if read_state(sweep) is not None and not is_synced(sweep):
            from swe_infer.cli.sweep_log import SweepLog
            from swe_infer.cli.sweep_tracking import log_sweep

            jobs = SweepLog(sweep).jobs()
            merged = [run for run in search(sweep / "merged").runs if (sweep / "merged").is_dir()]
            log_sweep(sweep, jobs, merged or None, max((job.status for job in jobs), default=0), online=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _move(options: argparse.Namespace) -> int:
    from swe_infer.runs.directories import move_run

    target = plain_path(options.target, "TARGET")
    if len(options.paths) > 1 and not target.is_dir():
        raise ConfigError(f"{target}: directory not found; several runs are moved into an existing folder")

    def move(run: Path) -> None:
        print(clean(str(move_run(run, target, sweeps_near(run)))))

    return _each([plain_path(path) for path in options.paths], move)
