"""The output of tests, which SWE-bench's harness leaves in ``evaluation/`` of a run directory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from swe_infer.files import open_regular

_LOGS = ("evaluation", "logs", "run_evaluation")
_RUN_ID = re.compile(r"[0-9a-f]{12}\.sample(\d{1,6})")
_INSTANCE = re.compile(r"[\w.-]+", re.ASCII)
_OUTPUT, _PATCH = "test_output.txt", "patch.diff"
_LONGEST_PATCH = 1 << 24
_TAIL = 20_000
"""Bytes of the end of an output, where test runners sum up."""


class HarnessLogs:
    """The logs of a run directory, which may be untrusted: links are not followed."""

    def __init__(self, directory: Path) -> None:
        self._folders: dict[int, list[Path]] = {}
        for name in _LOGS:
            directory /= name
            if directory.is_symlink():
                return
        for run in _folders(directory):
            if match := _RUN_ID.fullmatch(run.name):
                self._folders.setdefault(int(match[1]), []).extend(_folders(run))

    def test_output(self, instance_id: str, sample: int, patch: str) -> str | None:
        """The end of the output of an instance's tests with ``patch``; None if the harness has not run them."""
        if not _INSTANCE.fullmatch(instance_id) or instance_id in (".", ".."):
            return None
        for folder in self._folders.get(sample, ()):
            logs = folder / instance_id
            if logs.is_symlink() or _read(logs / _PATCH, _LONGEST_PATCH) != patch:
                continue
            if (output := _read(logs / _OUTPUT, _TAIL)) is not None:
                return output
        return None


def _folders(directory: Path) -> Iterator[Path]:
    try:
        with os.scandir(directory) as entries:
            yield from sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:  # a run may have no logs
        return


def _read(path: Path, most: int) -> str | None:
    """The last ``most`` bytes of a regular file as text; None if it cannot be read."""
    try:
        with open(open_regular(path), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - most))
            return file.read(most).decode("utf-8", "replace")
    except OSError:
        return None
