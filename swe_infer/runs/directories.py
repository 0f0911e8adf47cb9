"""Removes and moves run directories. Both hold the run's lock, and follow no symbolic link."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path

from swe_infer.api.batch_journal import open_batches
from swe_infer.api.sweep_ledgers import SWEEP_LEDGER
from swe_infer.errors import ConfigError, StoreError, SweInferError
from swe_infer.files import hidden_beside, open_regular, sync_directory
from swe_infer.locks import Locks, locks_of
from swe_infer.run_directory import layout
from swe_infer.run_directory.fallback import fallback_lines
from swe_infer.run_directory.figures import sum_usd
from swe_infer.run_directory.lock import is_locked, locked
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Damage
from swe_infer.run_directory.store import recover_records
from swe_infer.run_directory.sweep_paths import SWEEP_JOBS, from_stored, sweep_entries, sweep_runs, to_stored
from swe_infer.run_directory.totals import Totals
from swe_infer.text import dollars
from swe_infer.tracking.state import moved_state

_FOLDERS = frozenset({"wandb", "evaluation"})
_OTHER_FILES = re.compile(
    r"run_id|batches\.jsonl|batch_prompts\.jsonl|ledger\.sqlite(-\w+)?|sweep_ledgers\.json|vllm\.log|found\.json|.*\.owner|\..*\.new",
    re.ASCII,
)
"""Files that a run writes beside those of :mod:`swe_infer.run_directory.layout`."""
_MOST_NAMED = 3


def remove_run(directory: Path, *, force: bool = False, dry_run: bool = False) -> None:
    """Removes a run directory.

    Args:
        force: also if its answers cost money.
        dry_run: check alone.

    Raises:
        ConfigError: it is not a run directory, contains other files, is in use, or cost money.
        OSError: it cannot be removed.
    """
    _check_is_run(directory)
    if foreign := sorted(_foreign(directory)):
        named = ", ".join(foreign[:_MOST_NAMED]) + (" …" if len(foreign) > _MOST_NAMED else "")
        raise ConfigError(f"{directory}: contains {named}, which no run writes; move it elsewhere first")
    with _holding(directory):
        if not force and (why := _costs(directory)) is not None:
            raise ConfigError(f"{directory}: {why}; --force removes it nevertheless")
        if not dry_run:
            _remove(directory)


_SWEEP_FILES = re.compile(
    r"(runs|begun|same_answers)\.jsonl|(plan|swept|search)\.json|command\.txt|stopped|comparison\.html|error\.log|run_id"
    r"|same_answers-\w+\.lock|multirun\.yaml|optimization_results\.yaml|[\w.-]+\.sqlite(-\w+)?|.*\.owner|\..*\.new",
    re.ASCII,
)
"""Files of a sweep's directory."""


def is_sweep(directory: Path) -> bool:
    """Whether a directory is that of a sweep, and no run."""
    return os.path.isfile(directory / SWEEP_JOBS) and not layout.is_run(directory)


def remove_sweep(directory: Path, *, force: bool = False, dry_run: bool = False) -> None:
    """Removes the directory of a sweep; its runs elsewhere stay.

    Args:
        force: also if it has the ledger of a paid sweep, which holds the sweep's budget.
        dry_run: check alone.

    Raises:
        ConfigError: it is a link, contains runs or other files, one of its runs is in use, or its runs cost money.
        OSError: it cannot be removed.
    """
    if directory.is_symlink():
        raise ConfigError(f"{directory}: is a symbolic link; name the directory of the sweep itself")
    with os.scandir(directory) as entries:
        foreign = sorted(
            entry.name
            for entry in entries
            if entry.name not in _FOLDERS and (entry.is_dir() or not _SWEEP_FILES.fullmatch(entry.name))
        )
    if foreign:
        named = ", ".join(foreign[:_MOST_NAMED]) + (" …" if len(foreign) > _MOST_NAMED else "")
        raise ConfigError(f"{directory}: contains {named}; remove runs in it first, and move other files elsewhere")
    if any(is_locked(run / layout.LOCK) for run in sweep_runs(directory)):
        raise ConfigError(f"{directory}: a run of the sweep is in progress; wait for it")
    if not force and (directory / SWEEP_LEDGER).exists():
        raise ConfigError(
            f"{directory}: has the ledger of budget.sweep_max_usd, without which the same sweep may spend its budget "
            "again; --force removes it nevertheless"
        )
    if not dry_run:
        _remove(directory)


def _check_is_run(directory: Path) -> None:
    try:
        mode = os.lstat(directory).st_mode
    except (OSError, ValueError):
        raise ConfigError(f"{directory}: directory not found") from None
    if stat.S_ISLNK(mode):
        raise ConfigError(f"{directory}: is a symbolic link; name the run directory itself")
    if not stat.S_ISDIR(mode) or not layout.is_run(directory):
        raise ConfigError(
            f"{directory}: not a run directory ({' or '.join(layout.MARKERS)} is missing); name one, or add a filter"
        )


def _foreign(directory: Path) -> Iterator[str]:
    """The entries of a run directory that no run writes."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _FOLDERS:
                    yield f"{entry.name}/"
            elif not layout.is_reserved(entry.name) and not _OTHER_FILES.fullmatch(entry.name):
                yield entry.name


@contextmanager
def _holding(directory: Path) -> Iterator[None]:
    """Holds the lock of a run directory within the block.

    Raises:
        StoreError: another process uses it, or it cannot be written.
    """
    try:
        lock = locked(directory / layout.LOCK, _locks(directory), str(directory))
    except OSError as error:
        raise StoreError(f"{directory}: cannot be locked ({error.strerror})") from None
    with lock:
        yield


def _locks(directory: Path) -> Locks:
    try:
        return locks_of(RunDirectory(directory).config())
    except ConfigError:
        return "os"


def _costs(directory: Path) -> str | None:
    """Why the answers of a run cost money; None if they did not. Reads its records, as a summary may be older."""
    try:
        damage, totals = Damage(), Totals()
        for record in RunDirectory(directory).records(damage, auxiliary=True):
            totals.add_record(record)
        cost = sum_usd(totals.cost_usd, damage.cost_usd)
        summary = RunDirectory(directory).summary()
        recorded = summary.get("cost_usd", Decimal(0))
    except SweInferError as error:
        return f"its cost is unknown ({error})"
    if cost is None or recorded is None:
        return "its answers cost money, at an unknown price"
    if largest := max(cost, Decimal(repr(float(recorded)))):
        return f"its answers cost {dollars(largest)}"
    if billed := totals.possibly_billed_usd + totals.unrecorded_usd(summary):
        return f"its requests may have cost up to {dollars(billed)}"
    if damage.unreadable and _is_paid(directory):
        return f"its records have {damage.unreadable:,} unreadable lines, which may have cost money"
    if open_batches(directory):
        return "it has batches at a provider that are not collected yet"
    return "it has answers that are not in its records yet" if any(fallback_lines(directory).values()) else None


def _is_paid(directory: Path) -> bool:
    """Whether the model of a run is behind an API, or unknown."""
    try:
        return RunDirectory(directory).config().get("provider", True) not in ({}, None)
    except SweInferError:
        return True


def _remove(directory: Path) -> None:
    """Removes a directory. It is renamed first, so that an interrupt leaves no half of a run."""
    directory = directory.resolve()  # "." has no name, and cannot be renamed
    hidden = hidden_beside(directory, f".{secrets.token_hex(4)}.removed")
    os.rename(directory, hidden)
    shutil.rmtree(hidden)


def move_run(directory: Path, target: Path, sweeps: Iterable[Path] = ()) -> Path:
    """Moves a run directory, also to another file system. A copy is complete before the original is removed.

    Records that a full disk kept elsewhere are brought into the run first. The files of sweeps that name the run get
    its new path, and its W&B state stays valid.

    Args:
        target: its new path, or an existing directory, which it is moved into.
        sweeps: directories of sweeps that may name the run.

    Returns:
        The new path.

    Raises:
        ConfigError: it is not a run directory or in use, or the target exists or is within the run.
        OSError: it cannot be moved.
    """
    _check_is_run(directory)
    if target.is_dir() and not layout.is_run(target):
        target = target / directory.resolve().name
    if os.path.lexists(target):
        raise ConfigError(f"{target}: exists already; name a new directory")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: directory not found; create it first")
    if target.resolve().is_relative_to(directory.resolve()):
        raise ConfigError(f"{target}: is within {directory}")
    entries = [(sweep, entry) for sweep in sweeps for entry in _entries_of(sweep, directory)]
    with _holding(directory):
        recover_records(directory)
        try:
            os.rename(directory, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _copy(directory, target)
            try:
                _remove(directory)
            except OSError:
                if layout.is_run(directory):  # otherwise only a part of the hidden directory is left
                    shutil.rmtree(target, ignore_errors=True)
                raise
    for sweep, (name, line) in entries:
        _append(sweep / name, {**line, "run": to_stored(sweep, target)})
    return target


def _copy(directory: Path, target: Path) -> None:
    """Copies a run to another file system, under a hidden name until the copy is complete and on disk."""
    new = hidden_beside(target, f".{secrets.token_hex(4)}.moving")
    try:
        shutil.copytree(
            directory, new, symlinks=True, ignore=lambda _, names: {layout.LOCK, layout.RESERVE} & set(names)
        )
        for path in new.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with open(open_regular(path), "rb") as file:
                    os.fsync(file.fileno())
        moved_state(directory, new)
        os.rename(new, target)
        sync_directory(target.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


_SHARED_ANSWERS = "same_answers.jsonl"
"""The runs of a sweep that share paid answers."""


def _entries_of(sweep: Path, run: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """The lines in the files of a sweep that name a run, with the name of the file."""
    place = run.resolve()
    with suppress(SweInferError, OSError):  # a damaged sweep does not keep a run from being moved
        for entry in sweep_entries(sweep):
            stored = entry.get("run")
            if isinstance(stored, str) and from_stored(sweep, stored).resolve() == place:
                yield SWEEP_JOBS, entry
        for line in (layout.content(sweep, _SHARED_ANSWERS, 1 << 28) or b"").splitlines():
            with suppress(ValueError, LookupError, TypeError, RecursionError):  # a damaged line names no run
                shared = json.loads(line)
                if from_stored(sweep, shared["run"]).resolve() == place:
                    yield _SHARED_ANSWERS, shared


def _append(path: Path, line: dict[str, object]) -> None:
    descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")  # one write, as processes of the sweep append too
    finally:
        os.close(descriptor)
