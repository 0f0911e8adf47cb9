"""A commit in memory, to choose files from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

EntryType = Literal["regular", "executable", "symlink", "submodule"]


@dataclass(frozen=True)
class Entry:
    type: EntryType
    oid: str | None = None


@dataclass
class MemoryCommit:
    """A commit of a few files. ``reads`` are the paths of each call of :meth:`read`.

    Args:
        has_ids: whether the ids of contents are known, as in git.
    """

    contents: Mapping[str, bytes]
    symlinks: Mapping[str, str] = field(default_factory=dict)
    submodules: frozenset[str] = frozenset()
    reads: list[list[str]] = field(default_factory=list)
    has_ids: bool = False

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        files = {path: Entry("regular", self._oid(content)) for path, content in self.contents.items()}
        links = {path: Entry("symlink") for path in self.symlinks}
        return files | links | {path: Entry("submodule") for path in self.submodules}

    def _oid(self, content: bytes) -> str | None:
        return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest() if self.has_ids else None

    def top_level(self) -> dict[str, Entry]:
        return {path: entry for path, entry in self._entries.items() if "/" not in path}

    def paths(self) -> dict[str, Entry]:
        return self._entries

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        return {path: self._entries[path] for path in paths if path in self._entries}

    def folders(self, paths: Iterable[str]) -> set[str]:
        return {path for path in paths if any(other.startswith(f"{path}/") for other in self._entries)}

    def links(self, paths: Iterable[str]) -> dict[str, str]:
        return {path: self.symlinks[path] for path in paths if path in self.symlinks}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        self.reads.append(list(paths))
        return {path: self.contents[path] for path in self.reads[-1] if path in self.contents}
