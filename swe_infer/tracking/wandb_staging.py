"""Copies of a run's growing files, made while it runs, so that its end need not wait for them.

An artifact needs a copy that later changes leave alone, and its MD5; for a long run that is a good part of a second
of work. The files are only ever appended to while a run goes on (:mod:`swe_infer.store`), so both can be had piece by
piece.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["StagedFile", "Staging"]

_PIECE = 1 << 20  # bytes read at a time


@dataclass(slots=True)
class StagedFile:
    """A copy of ``source`` as far as it was followed.

    Args:
        md5: of the copy.
        inode: of the source, for a file that took its name would be another one.
    """

    source: Path
    copy: Path
    inode: int
    size: int = 0
    md5: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))

    @property
    def digest(self) -> str:
        """As W&B's manifests write it: the MD5 in base64."""
        return base64.b64encode(self.md5.digest()).decode("ascii")

    def follow(self) -> None:
        """Take over what the source has grown by."""
        with self.source.open("rb") as source, self.copy.open("ab") as copy:
            source.seek(self.size)
            while piece := source.read(_PIECE):
                copy.write(piece)
                self.md5.update(piece)
                self.size += len(piece)


class Staging:
    """The copies of one run's files, in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged: dict[Path, StagedFile] = {}

    def follow(self, source: Path) -> StagedFile | None:
        """Bring the copy of ``source`` up to date, or begin one; None where there is no such file."""
        try:
            status = os.stat(source)
            staged = self._staged.get(source)
            if staged is None or staged.inode != status.st_ino or status.st_size < staged.size:
                staged = self._staged[source] = self._begun(source, status.st_ino)
            staged.follow()
        except FileNotFoundError:
            return None
        return staged

    def _begun(self, source: Path, inode: int) -> StagedFile:
        if (before := self._staged.get(source)) is not None:
            before.copy.unlink(missing_ok=True)
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, copy = tempfile.mkstemp(dir=self._folder, suffix=f"-{source.name}")
        os.close(descriptor)
        return StagedFile(source, Path(copy), inode)
