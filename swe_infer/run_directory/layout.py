"""The names of the files in a run directory."""

from __future__ import annotations

import errno
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from swe_infer.errors import ConfigError, StoreError
from swe_infer.files import read_regular, special_kind
from swe_infer.harnesses import PredictionsForm

RECORDS = "records.jsonl"
PREDICTIONS = "predictions.jsonl"
"""The selected answer of each instance."""
SUMMARY = "summary.json"
CONFIG = "config.yaml"
EVALUATION = "evaluation.jsonl"
ALL_VERDICTS = "evaluation.all.jsonl"
"""All verdicts, if there are some of instances that the last command did not cover."""
COVERAGE = "asked.json"
PROVENANCE = "provenance.json"
LOCK = ".lock"
_HARNESS = "harness_"
"""Prefix of the files with predictions in the form of a benchmark's harness."""
RESERVE = ".reserve"
"""Reserved disk space for records, see :mod:`swe_infer.run_directory.fallback`."""

MARKERS = (RECORDS, SUMMARY)
"""A directory with one of these is a run directory."""


def predictions_name(sample: int, *, several: bool) -> str:
    """The name of the predictions file of a sample, in the format of the SWE-bench harness.

    Args:
        several: whether there are several samples for each instance.
    """
    return f"predictions.sample{sample}.jsonl" if several else PREDICTIONS


def predictions_of_sample(directory: Path, sample: int) -> Path:
    """The existing predictions file of a sample, also of a run of an earlier version."""
    path = directory / predictions_name(sample, several=True)
    return path if sample or path.exists() else directory / PREDICTIONS


def harness_predictions(predictions: Path, form: PredictionsForm | None) -> Path:
    """The file beside a predictions file with the same predictions in the form of a harness; with SWE-bench's form
    the predictions file itself."""
    if form is None:
        return predictions
    return predictions.with_name(f"{_HARNESS}{predictions.name.removesuffix(predictions.suffix)}{form.suffix}")


def all_harness_predictions(directory: Path) -> list[Path]:
    """The existing files of :func:`harness_predictions`."""
    found = directory.glob(f"{_HARNESS}predictions*.json*")
    return sorted(path for path in found if path.suffix in (".json", ".jsonl"))


def predictions(directory: Path) -> list[Path]:
    """The predictions files, that of the selected answers first."""
    return sorted(directory.glob("predictions*.jsonl"))


def patch_name(instance_id: str) -> str:
    """The name of the file with the patch of an instance, if the run writes one."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', instance_id).lstrip('.-')}.patch"


def is_reserved(name: str) -> bool:
    """Whether a run directory may get a file of this name."""
    if (
        fnmatch(name, "predictions*.jsonl")
        or fnmatch(name, f"{_HARNESS}predictions*.json*")
        or name.endswith(".patch")
    ):
        return True
    return name in (RECORDS, SUMMARY, CONFIG, EVALUATION, ALL_VERDICTS, COVERAGE, PROVENANCE, LOCK, RESERVE)


def result_files(directory: Path) -> list[Path]:
    """The files that a tracker uploads: the existing ones of predictions, verdicts, records, summary,
    configuration and provenance."""
    names = (EVALUATION, RECORDS, SUMMARY, CONFIG, PROVENANCE)
    every = [*predictions(directory), *all_harness_predictions(directory)]
    return [*every, *(directory / name for name in names if (directory / name).is_file())]


def is_run(directory: Path) -> bool:
    """Whether a directory is a run directory. False for an impossible path, which may be untrusted."""
    return any(os.path.isfile(directory / mark) for mark in MARKERS)


def has_records(directory: Path) -> bool:
    """Whether a directory contains a ``records.jsonl``, even an empty one."""
    return (directory / RECORDS).is_file()


def records_size(directory: Path) -> int:
    """Bytes of ``records.jsonl``; 0 if it does not exist."""
    try:
        return (directory / RECORDS).stat().st_size
    except OSError:
        return 0


def refuse_links(directory: Path, *, deep: bool = False, allow_hard_links: bool = True) -> None:
    """Check that a run directory contains only regular files and folders, before a file in it is opened for writing.
    A run directory may be untrusted, and a link in it may point anywhere.

    Args:
        deep: check subfolders, except those of single W&B runs, which are never written again.
        allow_hard_links: False where a foreign program may write to existing files.

    Raises:
        StoreError: names the first link or special file.
        OSError: the directory cannot be read.
    """
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            kind = special_kind(status.st_mode)
            if kind is None and status.st_nlink > 1 and not allow_hard_links:
                kind = "a file with several names (hard links)"
            if kind is not None and not entry.is_dir(follow_symlinks=False):
                raise StoreError(f"{entry.path}: is {kind}; only regular files may be in a run directory; remove it")
            if deep and entry.is_dir(follow_symlinks=False) and not entry.name.startswith(("run-", "offline-run-")):
                refuse_links(Path(entry.path), deep=True, allow_hard_links=allow_hard_links)


def content(directory: Path, name: str, max_bytes: int) -> bytes | None:
    """The content of a file in a run or sweep directory; None if it does not exist.

    Raises:
        ConfigError: it cannot be read, is not a regular file, or is longer than ``max_bytes``.
    """
    try:
        return read_regular(directory / name, max_bytes)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(unreadable(directory, error)) from None


def unreadable(directory: Path, error: OSError) -> str:
    """The message about a file in a run directory that cannot be read."""
    name = Path(os.fsdecode(error.filename)).name if error.filename else None
    where = directory if name in (None, directory.name) else directory / str(name)
    reason = error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)
    return f"{where}: cannot be read ({reason})"
