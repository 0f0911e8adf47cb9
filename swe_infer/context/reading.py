"""Reads files of a repository for a context, and decodes them as the text of a prompt."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping
from typing import Protocol

from swe_infer.instance_files import Tree, TreeEntry


class Commit(Tree, Protocol):
    """The files of a repository at one commit. Every method may raise RepositoryError."""

    def top_level(self) -> Mapping[str, TreeEntry]:
        """The paths of the repository's root; folders are left out."""
        ...

    def paths(self) -> Mapping[str, TreeEntry]:
        """All paths except folders."""
        ...

    def links(self, paths: Iterable[str]) -> Mapping[str, str]:
        """The targets of the symbolic links among ``paths``, as written in the links."""
        ...


README_PREFIX = "readme"

_MOST_LINKS = 8
"""Maximum length of a chain of symbolic links."""
_ASTRAY = "it does not lead to a file of the repository"
_HEAD = 8000
"""A NUL in these first bytes makes a file binary, as in git."""


def as_shown(content: bytes | str) -> tuple[str | None, str]:
    """Decodes a file. Returns its text, or None and the reason why it cannot be shown.

    As Python reads a file in text mode, ``\\r\\n`` and ``\\r`` become ``\\n``. Bytes that are not UTF-8 become
    U+FFFD.

    Args:
        content: a string says why there is no content.
    """
    if isinstance(content, str):
        return None, content
    if b"\0" in content[:_HEAD]:
        return None, "it is binary"
    return content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"), ""


def followed(commit: Commit, paths: Iterable[str]) -> dict[str, bytes | str]:
    """The content of every path, or a string with the reason why there is none.

    Symbolic links inside the repository are followed.
    """
    found: dict[str, bytes | str] = {}
    files: dict[str, str] = {}
    places = {path: path for path in paths}
    for _ in range(_MOST_LINKS):
        entries = commit.entries(places.values())
        kinds = {path: entries[place].type for path, place in places.items() if place in entries}
        links = commit.links(place for path, place in places.items() if kinds.get(path) == "symlink")
        for path, place in places.items():
            if kinds.get(path) in ("regular", "executable"):
                files[path] = place
            elif place not in links:
                found[path] = "it is a submodule" if path in kinds else _ASTRAY
        places = {path: _target(place, links[place]) for path, place in places.items() if place in links}
        if not places:
            break
    contents = commit.read(files.values())
    return found | dict.fromkeys(places, _ASTRAY) | {path: contents[place] for path, place in files.items()}


def _target(link: str, text: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), text))
