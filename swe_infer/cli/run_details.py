"""``swe-infer-runs show``: what a run is, how it was started, its errors, what is left, and how to resume it."""

from __future__ import annotations

import contextlib
import io
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swe_infer.cli.tables import print_rows, summary_rows
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.remote.paths import displayed
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.provenance import Provenance, read_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Damage, Key, Record, key_of, purpose_of, supersedes, turn_of
from swe_infer.run_directory.totals import Totals
from swe_infer.runs.listing import ListedRun
from swe_infer.text import clean, first_line, quoted, shown
from swe_infer.tracking.state import read_state

_MOST_NAMED = 5
_LONGEST = 100


def print_run(run: ListedRun) -> None:
    """Prints a run to standard output.

    Raises:
        ConfigError: its records cannot be read.
    """
    provenance, directory = read_provenance(run.directory), RunDirectory(run.directory)
    columns = run.columns
    print(shown(displayed(run.directory)))
    print_rows(
        [
            ("state", f"{run.state}{f': {run.error}' if run.error else ''}"),
            *((name, shown(columns[name])) for name in ("model", "dataset", "prompt") if columns[name]),
            *(("sweep", _sweep(run, name, provenance)) for name in run.sweeps),
            *_started(provenance),
            *_tracked(run.directory),
        ],
        sys.stdout,
    )
    if run.error is None:
        last = _last_records(directory)
        figures: dict[str, Any] = {**Totals().summary(), **run.summary}
        skips = Counter(_kind(record) for record in last.values() if record["status"] == "skipped")
        errors = Counter(_kind(record) for record in last.values() if record["status"] == "failed")
        example = {_kind(record): _message(record) for record in last.values() if record["status"] == "failed"}
        print_rows(summary_rows(figures, skips), sys.stdout)
        print_rows([("error", f"{n:,} {kind}: {example[kind]}") for kind, n in errors.most_common()], sys.stdout)
        print_rows([("left", _left(directory.coverage(), last, figures))], sys.stdout)
    if run.state in ("interrupted", "failed"):
        print_rows([("resume", resume_command(run.directory))], sys.stdout)


def _sweep(run: ListedRun, name: str, provenance: Provenance) -> str:
    own = next((sweep.name for sweep in provenance.sweeps if clean(sweep.group) == name), "")
    return shown(f"{name} ({own})" if own else name)


def _started(provenance: Provenance) -> list[tuple[str, str]]:
    """How the run was started, the first command first."""
    rows = [("started by", shown(str(entry.get("command")))) for entry in provenance.commands]
    if provenance.commands:
        last = provenance.commands[-1]
        commit = last.get("commit")
        version = f"swe_infer {last.get('swe_infer')}{f' ({str(commit)[:12]})' if commit else ''}"
        gpus = last.get("gpus")
        machine = ", ".join(map(str, [last.get("processor"), *(gpus if isinstance(gpus, list) else [])]))
        rows.append(("with", shown(f"{version}, Python {last.get('python')}, {machine}")))
    return list(dict.fromkeys(rows))


def _tracked(directory: Path) -> list[tuple[str, str]]:
    state = read_state(directory)
    return [] if state is None else [("tracker", shown(state.values.get("address")))]


def _last_records(directory: RunDirectory) -> dict[Key, Record]:
    """The record of each covered sample that counts."""
    coverage = directory.coverage() or Coverage(None, turns=None)
    ids = coverage.ids
    last: dict[Key, Record] = {}
    for record in directory.records(Damage()):
        key, turn = key_of(record), turn_of(record)
        if purpose_of(record) is not None or not coverage.has_turn(turn) or (ids is not None and key[0] not in ids):
            continue
        before = last.get(key)
        if before is None or supersedes(record["status"], before["status"], turn, turn_of(before)):
            kept: Record = {**record, "full_output": None, "model_patch": None}
            last[key] = kept
    return last


def _kind(record: Record) -> str:
    error: Mapping[str, Any] = record.get("error") or {}
    return shown(str(error.get("type") or "unknown"))[:_LONGEST]


def _message(record: Record) -> str:
    error: Mapping[str, Any] = record.get("error") or {}
    text = shown(str(error.get("message") or ""))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _left(coverage: Coverage | None, last: Mapping[Key, Record], summary: Mapping[str, Any]) -> str:
    """The samples that the next command requests."""
    failed = [key for key, record in last.items() if record["status"] == "failed"]
    parts = [f"{len(failed):,} failed"] if failed else []
    asked = () if coverage is None else coverage.instance_ids or ()
    missing = [(name, sample) for name in asked for sample in range(summary["samples"]) if (name, sample) not in last]
    if missing or summary["remaining"]:
        parts.append(f"{len(missing) or summary['remaining']:,} not answered")
    names = list(dict.fromkeys(shown(name) for name, _ in [*failed, *missing]))
    more = f", … ({len(names) - _MOST_NAMED:,} more)" if len(names) > _MOST_NAMED else ""
    named = f": {', '.join(names[:_MOST_NAMED])}{more}" if names else ""
    return f"{' and '.join(parts)}{named}" if parts else ""


def resume_command(directory: Path) -> str:
    """The command that resumes a run, from any folder in which its relative paths are valid.

    It starts from the recorded configuration of the last command, and repeats what ``from`` does not inherit, such as
    the address of a server. If the configuration does not compose, it is the last recorded command.
    """
    from swe_infer.cli.composer import composer
    from swe_infer.cli.from_run import RecordedStart
    from swe_infer.cli.recorded_run import read_recorded

    command = ["swe-infer", f"from={directory}"]
    try:
        with contextlib.redirect_stderr(io.StringIO()), composer(None) as composing:
            recorded = read_recorded(str(directory))
            for one in RecordedStart(recorded, composing).refused():
                text = one.value if isinstance(one.value, str) else recorded.literal(one.value, one.key)
                command.append(f"{one.key}={text}")
    except ConfigError as error:
        typed = [entry.get("command") for entry in read_provenance(directory).commands]
        if not typed or not isinstance(typed[-1], str):
            return f"unknown: {shown(first_line(error))}"
        return shown(f"{typed[-1]} output_dir={quoted(displayed(directory))}")
    except SweInferError as error:
        return f"unknown: {shown(first_line(error))}"
    return clean(quoted(*command))
