"""Runs of the same identity: which directory a run resumes, and whose paid answers it reuses.

A run's identity is what decides its answers: not which instances, which server or how fast. So several directories
may have the same identity: jobs of a sweep that differ in nothing else, and runs of earlier versions with longer
names. An answer that one of them paid for is never requested again.
"""

from __future__ import annotations

import fcntl
import functools
import glob
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swe_infer import config
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.errors import ConfigError, StoreError, SweInferError
from swe_infer.files import open_regular, read_regular, write_atomically
from swe_infer.run_directory import layout
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.sweep_paths import from_stored, to_stored
from swe_infer.text import bounded_json

log = logging.getLogger(__name__)

_POLL_S = 0.2
_REGISTER = "same_answers.jsonl"
_MOST_BYTES = 1 << 28
_PLAIN_VALUE = re.compile(r"(?!None$)[\w.-]+")
"""A value that needs no quotes on a command line."""


@dataclass(frozen=True, slots=True)
class RunLocation:
    """The directory of a run.

    Args:
        directory: the run directory.
        others: directories that may have the same identity, by their names.
    """

    directory: Path
    others: tuple[Path, ...] = ()

    @classmethod
    def named(cls, folder: Path, base: str, name: str, plain: Mapping[str, Any]) -> RunLocation:
        """The location of a run with the default name: ``folder/name``, or the directory in which an earlier version
        started the run under another name.

        Args:
            base: the name without the parts that only distinguish the jobs of a sweep.
        """
        directory = folder / name
        legacy = _legacy_directories(folder, base, plain)
        if not directory.exists() and legacy:
            covered = config.coverage(plain)
            same = [run for run in legacy if config.coverage(read_config(run) or {}) == covered]
            if same or name == base:
                directory = (same or sorted(legacy, key=layout.records_size, reverse=True))[0]
                rest = [str(run) for run in legacy if run != directory]
                log.info(
                    "resuming %s, which an earlier version started%s",
                    directory,
                    f"; answers are also reused from {', '.join(rest)}" if rest else "",
                )
        beside = [folder / base, *map(Path, sorted(glob.glob(f"{glob.escape(str(folder / base))}__*"))), *legacy]
        return cls(directory, tuple(run for run in dict.fromkeys(beside) if run != directory))

    def answer_sources(self, plain: Mapping[str, Any], sweep: SweepLog | None) -> list[Path]:
        """The other directories with records of the same identity, whose answers this run reuses."""
        digest = config.digest(plain)
        candidates = [*self.others, *(_registered_runs(sweep, digest) if sweep is not None else ())]
        own = self.directory.resolve()
        found = {run.resolve(): run for run in candidates if layout.has_records(run)}
        found.pop(own, None)
        return [run for run in found.values() if _digest_of(run) == digest]


def claim_directory(directory: Path, plain: dict[str, Any]) -> dict[str, Any] | None:
    """Checks that the directory belongs to this run, and writes this command's configuration into it.

    Returns:
        The configuration of the last command; None for a new directory, or if it is damaged.

    Raises:
        StoreError: the directory belongs to another run.
    """
    path = directory / layout.CONFIG
    before = read_config(directory)
    has_records = layout.records_size(directory) > 0
    if has_records and (before is None or config.differences(before, plain)) and _run_id_names(directory, plain):
        log.warning("%s: missing or damaged; written again, as run_id names the same configuration", path)
        before = None
    elif path.exists():
        changed = [f"{path.name}: unreadable"] if before is None else config.differences(before, plain)
        if changed:
            raise StoreError(
                f"output_dir={directory}: contains a run of another configuration ({'; '.join(changed[:3])}); "
                f"choose another output_dir{_overrides_to_continue(before or {}, plain)}"
            )
    elif has_records:
        raise StoreError(f"output_dir={directory}: contains records but no {path.name}; choose another output_dir")
    text = config.as_yaml(plain)
    if before is None or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return before


def _run_id_names(directory: Path, plain: Mapping[str, Any]) -> bool:
    """Whether the run's id, which contains the digest of its identity, is one of ``plain``."""
    try:
        return config.read_run_id(directory / "run_id").startswith(config.digest(plain))
    except StoreError:
        return False


def _overrides_to_continue(before: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """How to continue the recorded run, if few plain values differ: earlier versions had other defaults."""
    recorded, now = config.identity(before), config.identity(plain)
    values = {key: recorded.get(key) for key in recorded.keys() | now.keys() if recorded.get(key) != now.get(key)}
    if not 0 < len(values) <= 3 or not all(_PLAIN_VALUE.fullmatch(str(value)) for value in values.values()):
        return ""
    overrides = (f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items())
    return f", or continue the recorded run with {' '.join(sorted(overrides))}"


def read_config(directory: Path) -> dict[str, Any] | None:
    """The configuration of a run directory; None if it is missing or unreadable."""
    try:
        return RunDirectory(directory).config() or None
    except ConfigError:
        return None


@contextmanager
def identity_lock(sweep: SweepLog, plain: Mapping[str, Any], directory: Path) -> Iterator[None]:
    """Locks an identity within a sweep: its jobs run one at a time, so that the next one finds the paid answers.
    The kernel releases the lock when the process dies.

    Raises:
        SweInferError: the sweep was interrupted during the wait.
    """
    digest = config.digest(plain)
    descriptor = open_regular(sweep.directory / f"same_answers-{digest}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, sweep, directory)
        line = json.dumps({"identity": digest, "run": to_stored(sweep.directory, directory)}) + "\n"
        register = open_regular(sweep.directory / _REGISTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(register, "ab", buffering=0) as file:
            file.write(line.encode())
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, sweep: SweepLog, directory: Path) -> None:
    has_logged = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError:  # the file system has no locks; the run directory's own lock reports it
            return
        if sweep.is_stopped:
            raise _Interrupted("interrupted while waiting for another run of the sweep")
        if not has_logged:
            log.info("%s waits for another run of the sweep that requests the same answers", directory)
            has_logged = True
        time.sleep(_POLL_S)


class _Interrupted(SweInferError):
    exit_status = 130


def _legacy_directories(folder: Path, base: str, plain: Mapping[str, Any]) -> list[Path]:
    """The directories in ``folder`` with this identity that earlier versions named."""
    head = base.rpartition("__")[0] + "__"
    named = re.compile(re.escape(head) + "[0-9a-f]{12}")
    digest = config.digest(plain)
    try:
        children = sorted(child for child in folder.iterdir() if child.name != base and named.fullmatch(child.name))
    except OSError:
        return []
    return [child for child in children if _digest_of(child) == digest]


def has_identity(directory: Path, plain: Mapping[str, Any]) -> bool:
    """Whether a directory contains a run of the same identity as ``plain``."""
    return _digest_of(directory) == config.digest(plain)


def _digest_of(run: Path) -> str | None:
    """The digest of a run's identity; None if there is no run."""
    try:
        first = RunDirectory(run).identity_line()
        if first.startswith(config.HEADER):
            return first.removeprefix(config.HEADER)
        return _legacy_digest(run, (run / layout.CONFIG).stat().st_mtime_ns)
    except (ConfigError, OSError):
        return None


@functools.lru_cache(maxsize=10_000)
def _legacy_digest(run: Path, modified_ns: int) -> str | None:
    """Cached, because every job of a sweep needs it and parsing YAML is slow."""
    plain = read_config(run)
    return None if plain is None else config.digest(plain)


def _registered_runs(sweep: SweepLog, digest: str) -> list[Path]:
    """The run directories of the sweep's jobs with this identity."""
    try:
        lines = read_regular(sweep.directory / _REGISTER, _MOST_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = bounded_json(line)
            if entry["identity"] == digest:
                found.append(from_stored(sweep.directory, entry["run"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a killed process left the line unfinished
    return list(dict.fromkeys(found))
