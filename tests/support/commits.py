"""Commits to choose files from: one in memory, and one of a real repository, read by git."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

EntryType = Literal["regular", "executable", "symlink", "submodule"]


@dataclass(frozen=True)
class Entry:
    type: EntryType


@dataclass
class MemoryCommit:
    """A commit of a few files. ``reads`` are the paths of each call of :meth:`read`."""

    contents: Mapping[str, bytes]
    symlinks: Mapping[str, str] = field(default_factory=dict)
    submodules: frozenset[str] = frozenset()
    reads: list[list[str]] = field(default_factory=list)

    @cached_property
    def _entries(self) -> dict[str, Entry]:
        files = {path: Entry("regular") for path in self.contents}
        links = {path: Entry("symlink") for path in self.symlinks}
        return files | links | {path: Entry("submodule") for path in self.submodules}

    def top_level(self) -> dict[str, Entry]:
        return {path: entry for path, entry in self._entries.items() if "/" not in path}

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        return {path: self._entries[path] for path in paths if path in self._entries}

    def links(self, paths: Iterable[str]) -> dict[str, str]:
        return {path: self.symlinks[path] for path in paths if path in self.symlinks}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        self.reads.append(list(paths))
        return {path: self.contents[path] for path in self.reads[-1] if path in self.contents}


_TYPES: dict[str, EntryType] = {"100755": "executable", "120000": "symlink", "160000": "submodule"}


@dataclass
class GitCommit:
    """A commit of the repository in a folder, bare or with a work tree; a process for each content."""

    folder: Path
    sha: str

    def top_level(self) -> dict[str, Entry]:
        return self._listed()

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        return self._listed("--", *paths)

    def links(self, paths: Iterable[str]) -> dict[str, str]:
        found = self.entries(paths)
        return {path: self._blob(path).decode() for path, entry in found.items() if entry.type == "symlink"}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        return {path: self._blob(path) for path in dict.fromkeys(paths)}

    def _listed(self, *arguments: str) -> dict[str, Entry]:
        listed = self._git("ls-tree", "-z", self.sha, *arguments).decode("utf-8", "surrogateescape")
        lines = (line.partition("\t") for line in listed.split("\0") if line)
        return {
            path: Entry(_TYPES.get(head.split()[0], "regular")) for head, _, path in lines if " tree " not in head
        }

    def _blob(self, path: str) -> bytes:
        return self._git("cat-file", "blob", f"{self.sha}:{path}")

    def _git(self, *arguments: str) -> bytes:
        return subprocess.run(["git", "-C", self.folder, *arguments], capture_output=True, check=True).stdout
