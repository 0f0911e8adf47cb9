"""Runs that ask for the same answers: which directory a run goes on in, and whose paid answers it takes.

What does not decide answers (which instances, which address, how fast) is not part of a run's identity. So runs of
one identity may lie in several directories: points of a sweep that differ in nothing else, and runs of versions whose
names held more. An answer that one of them paid for is never asked for again.
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
from swe_infer.text import bounded_json

log = logging.getLogger(__name__)

_POLL_S = 0.2
_REGISTER = "same_answers.jsonl"
_MOST_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Place:
    """Where a run is kept.

    Args:
        directory: the run directory.
        others: directories of runs that ask for the same answers, as far as their names tell.
    """

    directory: Path
    others: tuple[Path, ...] = ()

    @classmethod
    def named(cls, folder: Path, base: str, name: str, plain: Mapping[str, Any]) -> Place:
        """The place of a run whose directory has the default name: ``folder/name``, or the directory in which an
        earlier version began the run under another name.

        Args:
            base: the name without what only tells the points of a sweep apart.
        """
        directory = folder / name
        former = _former(folder, base, plain)
        if not directory.exists() and former:
            covered = config.coverage(plain)
            same = [run for run in former if config.coverage(read_config(run) or {}) == covered]
            if same or name == base:
                directory = (same or sorted(former, key=layout.records_size, reverse=True))[0]
                rest = [str(run) for run in former if run != directory]
                log.info(
                    "%s was begun by an earlier version and goes on%s",
                    directory,
                    f"; answers are also taken from {', '.join(rest)}" if rest else "",
                )
        beside = [folder / base, *map(Path, sorted(glob.glob(f"{glob.escape(str(folder / base))}__*"))), *former]
        return cls(directory, tuple(run for run in dict.fromkeys(beside) if run != directory))

    def answered(self, plain: Mapping[str, Any], sweep: SweepLog | None) -> list[Path]:
        """The directories whose answers this run takes: those of :attr:`others`, and of points of the same sweep,
        that hold records of the same identity."""
        digest = config.digest(plain)
        candidates = [*self.others, *(_registered(sweep, digest) if sweep is not None else ())]
        own = self.directory.resolve()
        found = {run.resolve(): run for run in candidates if layout.has_records(run)}
        found.pop(own, None)
        return [run for run in found.values() if _digest_of(run) == digest]


def claim(directory: Path, plain: dict[str, Any]) -> dict[str, Any] | None:
    """Make sure that the directory is this run's, and write this command's configuration into it.

    Returns:
        The configuration of the last command; None where there was none.

    Raises:
        StoreError: it is another run's.
    """
    path = directory / layout.CONFIG
    before: dict[str, Any] | None = None
    if path.exists():
        before = read_config(directory)
        changed = [f"{path.name}: unreadable"] if before is None else config.differences(before, plain)
        if changed:
            raise StoreError(
                f"output_dir={directory}: holds a run of another configuration ({'; '.join(changed[:3])}); "
                "choose another output_dir"
            )
    elif layout.records_size(directory):
        raise StoreError(f"output_dir={directory}: holds records but no {path.name}; choose another output_dir")
    text = config.as_yaml(plain)
    if before is None or path.read_text(encoding="utf-8") != text:
        write_atomically(path, text)
    return before


def read_config(directory: Path) -> dict[str, Any] | None:
    """The configuration of a run directory; None where there is none that can be read."""
    try:
        return RunDirectory(directory).config() or None
    except ConfigError:
        return None


@contextmanager
def turn(sweep: SweepLog, plain: Mapping[str, Any], directory: Path) -> Iterator[None]:
    """Hold the turn of a point among the points of its sweep that ask for the same answers: one of them is run at a
    time, so that the next one finds what it paid for. The kernel ends a turn with its process.

    Raises:
        SweInferError: the sweep was interrupted meanwhile.
    """
    digest = config.digest(plain)
    descriptor = open_regular(sweep.directory / f"same_answers-{digest}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait(descriptor, sweep, directory)
        line = json.dumps({"identity": digest, "run": str(directory.resolve())}) + "\n"
        register = open_regular(sweep.directory / _REGISTER, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with open(register, "ab", buffering=0) as file:
            file.write(line.encode())
        yield
    finally:
        os.close(descriptor)


def _wait(descriptor: int, sweep: SweepLog, directory: Path) -> None:
    told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            pass
        except OSError:  # no locks here, which the run directory's own lock says
            return
        if sweep.is_stopped:
            raise _Interrupted("interrupted while it waited for another point")
        if not told:
            log.info("%s waits for another point of the sweep that asks for the same answers", directory)
            told = True
        time.sleep(_POLL_S)


class _Interrupted(SweInferError):
    exit_status = 130


def _former(folder: Path, base: str, plain: Mapping[str, Any]) -> list[Path]:
    """The directories in ``folder`` in which earlier versions, whose names held more, kept runs of this identity."""
    head = base.rpartition("__")[0] + "__"
    named = re.compile(re.escape(head) + "[0-9a-f]{12}")
    digest = config.digest(plain)
    try:
        children = sorted(child for child in folder.iterdir() if child.name != base and named.fullmatch(child.name))
    except OSError:
        return []
    return [child for child in children if _digest_of(child) == digest]


def _digest_of(run: Path) -> str | None:
    """The digest of what decides a run's answers; None where there is no run."""
    try:
        first = RunDirectory(run).identity_line()
        if first.startswith(config.HEADER):
            return first.removeprefix(config.HEADER)
        return _former_digest(run, (run / layout.CONFIG).stat().st_mtime_ns)
    except (ConfigError, OSError):
        return None


@functools.lru_cache(maxsize=10_000)
def _former_digest(run: Path, modified_ns: int) -> str | None:
    """Kept, because every point of a sweep asks for it, and reading YAML is slow."""
    plain = read_config(run)
    return None if plain is None else config.digest(plain)


def _registered(sweep: SweepLog, digest: str) -> list[Path]:
    """The run directories that points of the sweep with this identity have used."""
    try:
        lines = read_regular(sweep.directory / _REGISTER, _MOST_BYTES).splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = bounded_json(line)
            if entry["identity"] == digest:
                found.append(Path(entry["run"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a killed process left it unfinished
    return list(dict.fromkeys(found))
