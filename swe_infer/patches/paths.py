"""Which paths and kinds of files a patch may touch, and which file of the prompt a written path means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from swe_infer.patches.diff import FilePatch

__all__ = ["PathIndex", "refusal", "unsafe_path"]

_MODES = frozenset({"100644", "100755", "100664"})
_DRIVE = re.compile(r"[A-Za-z]:")
_SIDE = re.compile(r"[abciow]/")
_DOT_GIT = re.compile(r"\.git[ .]*(?::.*)?|git~1[ .]*", re.IGNORECASE)
_DRESS = "`*'\" \t\r"


def unsafe_path(path: str) -> str | None:
    """Why a path must not be written, or None. Paths are relative to the repository's root, with ``/``."""
    if not path:
        return "an empty path"
    if path.startswith(("/", "\\", "~")) or _DRIVE.match(path):
        return f"the path {path!r} is absolute"
    parts = re.split(r"[/\\]", path)
    if ".." in parts:
        return f"the path {path!r} leaves the repository"
    if any(_DOT_GIT.fullmatch(part) for part in parts):
        return f"the path {path!r} lies in .git"
    if "." in parts or "" in parts or not path.isprintable():
        return f"the path {path!r} is not a plain one"
    return None


def refusal(patches: Iterable[FilePatch]) -> str | None:
    """Why a patch is refused whatever the files hold, or None."""
    for patch in patches:
        for path in (patch.old_path, patch.new_path):
            why = None if path is None else unsafe_path(path)
            if why is not None:
                return why
        for mode in (patch.old_mode, patch.new_mode):
            if mode == "120000":
                return f"{patch.path!r} is a symbolic link"
            if mode is not None and mode not in _MODES:
                return f"{patch.path!r} has the mode {mode}, which is no plain file's"
        if patch.binary:
            return f"{patch.path!r} is a binary file"
    return None


class PathIndex:
    """Finds the file of the prompt that a path in a patch means."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files
        self._by_name: dict[str, list[str]] = {}
        for path in files:
            self._by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)

    def clean(self, written: str) -> str:
        """A header's path without its side (``a/``, ``b/``) and without dress such as backticks.

        A path that the prompt holds as written keeps its first folder.
        """
        path = written.split("\t", 1)[0].strip(_DRESS)
        if path in self._files:
            return path
        path = path.removeprefix("./")
        return path[2:] if _SIDE.match(path) and not path.startswith("a//") else path

    def find(self, path: str) -> str | None:
        """The file that ``path`` names: itself, or the only one of which one path ends the other.

        A file of the root is found by its own name alone: ``docs/conf.py`` is not ``conf.py``.
        """
        if path in self._files:
            return path
        fits = [
            held
            for held in self._by_name.get(path.rsplit("/", 1)[-1], ())
            if held.endswith("/" + path) or ("/" in held and path.endswith("/" + held))
        ]
        return fits[0] if len(fits) == 1 else None
