"""What a context reads of a repository, and how bytes become the text that a prompt shows."""

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

    def links(self, paths: Iterable[str]) -> Mapping[str, str]:
        """The targets of those of ``paths`` that are symbolic links, as the links state them."""
        ...


README_PREFIX = "readme"

_MOST_LINKS = 8
"""Symbolic links that lead to one another, at most."""
_ASTRAY = "it leads to no file of the repository"
_HEAD = 8000
"""Bytes in which git looks for a NUL, which makes a file binary."""


def as_shown(content: bytes | str) -> tuple[str | None, str]:
    """A file as text, and why not where the text is None.

    As Python reads a file in text mode, ``\\r\\n`` and ``\\r`` become ``\\n``. Bytes that are no UTF-8 become U+FFFD.

    Args:
        content: a string says why there is no content.
    """
    if isinstance(content, str):
        return None, content
    if b"\0" in content[:_HEAD]:
        return None, "it is binary"
    return content.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"), ""


def followed(commit: Commit, paths: Iterable[str]) -> dict[str, bytes | str]:
    """The content of every path, symbolic links inside the repository followed; a string where there is none."""
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
