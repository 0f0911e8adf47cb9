"""The files of an instance: those in its prompt, and the others of its repository at the base commit."""

from __future__ import annotations

import json
import logging
from abc import abstractmethod
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, Protocol

from swe_infer.errors import DataError, RepositoryError

log = logging.getLogger(__name__)

FILES_COLUMN = "files"
"""The column of a dataset with the files of an instance."""
BRANCH_COLUMN = "base_branch"
"""The column with the branch that introduces the bug, of a row without a base commit (SWE-smith)."""
_MOST_FILES = 10_000
_LONGEST_PATH = 4096
_MOST_CHARACTERS = 1 << 28  # characters of all files of an instance


EntryType = Literal["regular", "executable", "symlink", "submodule"]


class TreeEntry(Protocol):
    """One path of a tree."""

    @property
    def type(self) -> EntryType: ...

    @property
    def oid(self) -> str | None:
        """Git's id of the content, in hexadecimal; None: unknown."""
        ...


class Tree(Protocol):
    """The files of a repository at one commit. Every method may raise RepositoryError."""

    def entries(self, paths: Iterable[str]) -> Mapping[str, TreeEntry]:
        """Entries of those ``paths`` that exist, except folders."""
        ...

    def folders(self, paths: Iterable[str]) -> Container[str]:
        """The folders among ``paths``."""
        ...

    def read(self, paths: Iterable[str]) -> Mapping[str, bytes]:
        """The contents of the regular files among ``paths``, fetched in one request."""
        ...


_KINDS: Mapping[EntryType, str] = {"symlink": "a symbolic link", "submodule": "a submodule"}


class KnownFiles(Mapping[str, str]):
    """Files, with the knowledge which other paths do not exist."""

    @abstractmethod
    def why_absent(self, path: str) -> str | None:
        """See :func:`why_absent`."""

    @abstractmethod
    def obstacle(self, path: str, removed: Container[str]) -> str | None:
        """See :func:`obstacle`."""


class InstanceFiles(KnownFiles):
    """Path to content. Iteration gives the files that the prompt shows; a lookup finds every file of the repository.

    Contents are the repository's bytes, not the prompt's text: line ends are kept, and bytes that are not UTF-8 are
    lone surrogates (``surrogateescape``). Nothing is read before it is needed. If the repository cannot be read, only
    shown files that were read before are available.

    Pickled, it is a plain dictionary of the files that are shown.

    Args:
        shown: returns paths, in the order of the prompt; called once, when a file is first needed. Links and missing
            files are left out.
        open_tree: called once, when a file is first needed.
    """

    def __init__(self, shown: Callable[[], Sequence[str]], open_tree: Callable[[], Tree]) -> None:
        self._choose = shown
        self._open_tree = open_tree
        self._read: dict[str, str | None] = {}
        self._kinds: dict[str, EntryType] = {}

    @cached_property
    def _tree(self) -> Tree | None:
        try:
            return self._open_tree()
        except RepositoryError as error:
            log.warning("patches are checked against the shown files alone: %s", error)
            return None

    @cached_property
    def _shown(self) -> tuple[str, ...]:
        try:
            wanted = self._choose()
        except (RepositoryError, DataError) as error:
            log.warning("patches are checked without the shown files: %s", error)
            return ()
        self._fetch(wanted)
        return tuple(path for path in wanted if self._read.get(path) is not None)

    def __getitem__(self, path: str) -> str:
        self._shown  # noqa: B018 - all shown files are fetched in one request
        if path not in self._read:
            self._fetch([path])
        content = self._read.get(path)
        if content is None:
            raise KeyError(path)
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._shown)

    def __len__(self) -> int:
        return len(self._shown)

    def why_absent(self, path: str) -> str | None:
        if path in self or path not in self._read:
            return None
        kind = self._kinds.get(path)
        return "the file does not exist at the base commit" if kind is None else f"it is {_KINDS[kind]}"

    def obstacle(self, path: str, removed: Container[str]) -> str | None:
        parents = [parent for parent in _parents(path) if parent not in removed]
        if self._tree is None:
            return None
        try:
            entries = self._tree.entries([path, *parents])
            if path in entries and entries[path].type in _KINDS:
                return f"{_KINDS[entries[path].type]} of this name exists"
            for parent in parents:
                if parent in entries:
                    return f"{parent} is {_KINDS.get(entries[parent].type, 'a file')}, not a folder"
            return "a folder of this name exists" if path in self._tree.folders([path]) else None
        except RepositoryError as error:
            log.warning("%s: cannot be looked up for the check of a patch: %s", path, error)
            return None

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        return dict, (dict(self),)

    def _fetch(self, paths: Sequence[str]) -> None:
        """Read ``paths``; None for one that is not a file of the tree."""
        if self._tree is None:
            return
        try:
            entries = self._tree.entries(paths)
            regular = [path for path, entry in entries.items() if entry.type in ("regular", "executable")]
            contents = self._tree.read(regular)
        except RepositoryError as error:
            log.warning("%s: cannot be read for the check of a patch: %s", ", ".join(paths[:3]), error)
            return
        for path in paths:
            content = contents.get(path)
            if path in entries and entries[path].type in _KINDS:
                self._kinds[path] = entries[path].type
            self._read[path] = None if content is None else content.decode(errors="surrogateescape")


def why_absent(files: Mapping[str, str], path: str) -> str | None:
    """Why ``path`` is known not to be a file; None if it is one, or if that is unknown, as for a plain mapping, which
    may be incomplete.
    """
    return files.why_absent(path) if isinstance(files, KnownFiles) else None


def obstacle(files: Mapping[str, str], path: str, removed: Container[str] = ()) -> str | None:
    """Why no file can be created at ``path``, which is not in ``files``: a folder or link has this name, or a parent
    is a file. None if no obstacle is known.

    Args:
        removed: files that are removed first.
    """
    if isinstance(files, KnownFiles):
        return files.obstacle(path, removed)
    parent = next((parent for parent in _parents(path) if parent in files and parent not in removed), None)
    return None if parent is None else f"{parent} is a file, not a folder"


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def files_of(row: Mapping[str, Any]) -> Mapping[str, str] | None:
    """The files in a row's ``files`` column: path to content.

    The column contains an object of paths and contents, a list of ``{"path": ..., "content": ...}`` or of pairs, as
    Arrow tables have them, or one of these as JSON text. Contents and paths may be bytes too; invalid UTF-8 becomes
    lone surrogates. Null files are left out, since tables pad objects with nulls.

    Returns:
        None if there is no such column, or it contains something else: other datasets use the name differently, such
        as for a list of paths.
    """
    value = row.get(FILES_COLUMN)
    try:
        if isinstance(value, str) and len(value) <= _MOST_CHARACTERS:
            value = json.loads(value)
        return _checked_files(_file_pairs(value))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _file_pairs(value: object) -> list[tuple[object, object]]:
    if isinstance(value, Mapping):
        if value.keys() == {"path", "content"} and all(isinstance(column, list) for column in value.values()):
            return list(zip(value["path"], value["content"], strict=True))  # a list of structs, by column
        return list(value.items())
    if not isinstance(value, Sequence):
        raise TypeError("neither an object nor a list")
    return [(file["path"], file["content"]) if isinstance(file, Mapping) else _pair(file) for file in value]


def _pair(value: object) -> tuple[object, object]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{type(value).__name__} is not a pair of path and content")
    path, content = value
    return path, content


def _checked_files(pairs: list[tuple[object, object]]) -> dict[str, str]:
    """Raises ValueError for an invalid value."""
    files: dict[str, str] = {}
    characters = 0
    for path, content in pairs:
        if content is None:
            continue
        path, content = _as_text(path), _as_text(content)
        characters += len(path) + len(content)
        if not 0 < len(path) <= _LONGEST_PATH or "\0" in path or path in files:
            raise ValueError(f"invalid or duplicate path: {path[:60]!r}")
        if len(files) == _MOST_FILES or characters > _MOST_CHARACTERS:
            raise ValueError("too many files or characters")
        files[path] = content
    return files


def _as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is not text")
    if not value.isascii():
        value.encode("utf-8", "surrogateescape")  # raises for a surrogate that encodes no byte
    return value
