"""The names of the files in a run directory."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from swe_infer.errors import ConfigError, StoreError
from swe_infer.files import read_regular, special_kind

RECORDS = "records.jsonl"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
EVALUATION = "evaluation.jsonl"
EVERY_VERDICT = "evaluation.all.jsonl"
"""Verdicts of instances that the last command did not ask for too; only where there are any."""
ASKED = "asked.json"
LOCK = ".lock"
RESERVE = ".reserve"
"""Disk space for answers that ``records.jsonl`` does not take, see :mod:`swe_infer.run_directory.fallback`."""

MARKS = (RECORDS, SUMMARY)
"""A directory that holds one of these is a run directory."""


def predictions_name(sample: int) -> str:
    """The file of the predictions of sample ``sample``, as the official harness reads it."""
    return "predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl"


def predictions(directory: Path) -> list[Path]:
    """The files of predictions, sample 0 first."""
    return sorted(directory.glob("predictions*.jsonl"))


def result_files(directory: Path) -> list[Path]:
    """What a tracker keeps of a run: every file that is there of predictions, verdicts, records, summary and
    configuration."""
    names = (EVALUATION, RECORDS, SUMMARY, CONFIG)
    return [*predictions(directory), *(directory / name for name in names if (directory / name).is_file())]


def is_run(directory: Path) -> bool:
    """Whether a directory holds a run."""
    return any((directory / mark).is_file() for mark in MARKS)


def has_records(directory: Path) -> bool:
    """Whether a directory holds a ``records.jsonl``, empty or not."""
    return (directory / RECORDS).is_file()


def records_size(directory: Path) -> int:
    """Bytes of ``records.jsonl``; 0 where there is none."""
    try:
        return (directory / RECORDS).stat().st_size
    except OSError:
        return 0


def refuse_links(directory: Path, *, deep: bool = False, several_names: bool = True) -> None:
    """Make sure that a run directory holds regular files and folders alone, before anything in it is opened for
    writing. A run directory may come from a stranger, and a link in it may point anywhere.

    Args:
        deep: in its folders too, but for those in which W&B's SDK keeps one run, and which are never written again.
        several_names: False: hard links are refused too, for a program of others that writes into what it finds.

    Raises:
        StoreError: names the first link or special file.
        OSError: the directory cannot be read.
    """
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            kind = special_kind(status.st_mode)
            if kind is None and status.st_nlink > 1 and not several_names:
                kind = "a file with several names (hard links)"
            if kind is not None and not entry.is_dir(follow_symlinks=False):
                raise StoreError(f"{entry.path}: is {kind}; a run directory holds regular files alone, so remove it")
            if deep and entry.is_dir(follow_symlinks=False) and not entry.name.startswith(("run-", "offline-run-")):
                refuse_links(Path(entry.path), deep=True, several_names=several_names)


def content(directory: Path, name: str, most: int) -> bytes | None:
    """The content of a file of a run or sweep directory; None where the file is not there.

    Args:
        most: bytes that are read at most.

    Raises:
        ConfigError: it cannot be read, is no regular file, or is longer.
    """
    try:
        return read_regular(directory / name, most)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(unreadable(directory, error)) from None


def unreadable(directory: Path, error: OSError) -> str:
    """What is said of a file of a run directory that cannot be read."""
    name = Path(os.fsdecode(error.filename)).name if error.filename else None
    where = directory if name in (None, directory.name) else directory / str(name)
    reason = error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{where}: cannot be read ({reason})"
