"""The tree of a commit, and the contents of its files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from swe_infer.errors import RepositoryError

EntryType = Literal["regular", "executable", "symlink", "submodule"]

MOST_ENTRIES = 500_000
"""Maximum files and folders of one commit: a few small objects can describe a tree of billions."""
_LONGEST_PATH = 4096
_KIND, _TREE, _LINK, _SUBMODULE = 0o170000, 0o040000, 0o120000, 0o160000
_OID_BYTES = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of a tree.

    ``mode`` is git's, such as ``0o100644``; ``oid`` is the id of the blob, or of a submodule's commit.
    """

    mode: int
    oid: str
    type: EntryType

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file, executable or not."""
        return self.type in ("regular", "executable")


class Objects(Protocol):
    """A source of git objects."""

    def read(self, wanted: Mapping[str, str], kind: Literal["blob", "tree", "commit"]) -> dict[str, bytes]:
        """Contents by object id. Missing objects are fetched in one request.

        Args:
            wanted: how messages call each object, by its id.

        Raises:
            RepositoryError: an object is not available, too large, or of another kind.
        """
        ...


class Commit:
    """The files of a repository at one commit. Paths and contents are data: no file is written.

    Args:
        oid: the commit's id.
        tree: the id of its tree.
    """

    def __init__(self, repo: str, oid: str, tree: str, objects: Objects) -> None:
        self.repo = repo
        self.oid = oid
        self._tree = tree
        self._objects = objects
        self._trees: dict[str, dict[str, tuple[int, str]]] = {}
        self._paths: dict[str, Entry] | None = None
        self.files: Mapping[str, str] = _Files(self)
        """The text of every regular file by path: decoded as UTF-8 with ``surrogateescape``, with unchanged line
        ends. Each access reads that file alone, and may raise RepositoryError.
        """

    def paths(self) -> Mapping[str, Entry]:
        """All paths of the tree except folders; cached. Bytes that are not UTF-8 are kept as surrogates.

        Raises:
            RepositoryError: a part of the tree is not available, or there are too many paths.
        """
        if self._paths is None:
            found: dict[str, Entry] = {}
            folders, entries = [("", self._tree)], 0
            while folders:
                self._load(dict.fromkeys((oid for _, oid in folders), f"a folder of {self}"))
                deeper = []
                for folder, oid in folders:
                    tree = self._trees[oid]
                    entries += len(tree)
                    if entries > MOST_ENTRIES or len(folder) > _LONGEST_PATH:
                        raise RepositoryError(f"{self}: more than {MOST_ENTRIES:,} paths, or one that is too long")
                    for name, (mode, child) in tree.items():
                        if mode & _KIND == _TREE:
                            deeper.append((f"{folder}{name}/", child))
                        else:
                            found[folder + name] = _entry(mode, child)
                folders = deeper
            self._paths = found
            self._trees.clear()
        return self._paths

    def entries(self, paths: Iterable[str]) -> dict[str, Entry]:
        """Entries of those ``paths`` that exist, except folders. Reads only their parent folders.

        Raises:
            RepositoryError: a part of the tree is not available.
        """
        if self._paths is not None:
            return {path: self._paths[path] for path in paths if path in self._paths}
        found: dict[str, Entry] = {}
        places = [(path, self._tree, path) for path in dict.fromkeys(paths) if len(path) <= _LONGEST_PATH]
        while places:
            self._load(dict.fromkeys((tree for _, tree, _ in places), f"a folder of {self}"))
            deeper = []
            for path, tree, rest in places:
                name, inner, below = rest.partition("/")
                if (entry := self._trees[tree].get(name)) is None:
                    continue
                mode, oid = entry
                is_tree = mode & _KIND == _TREE
                if is_tree and inner:
                    deeper.append((path, oid, below))
                elif not is_tree and not inner:
                    found[path] = _entry(mode, oid)
            places = deeper
        return found

    def folders(self, paths: Iterable[str]) -> set[str]:
        """The folders among ``paths``. Reads only their parent folders.

        Raises:
            RepositoryError: a part of the tree is not available.
        """
        if self._paths is not None:
            return {path for path in paths if any(other.startswith(f"{path}/") for other in self._paths)}
        return {path for path in paths if len(path) <= _LONGEST_PATH and self._is_folder(path)}

    def _is_folder(self, path: str) -> bool:
        tree = self._tree
        for name in path.split("/"):
            self._load({tree: f"a folder of {self}"})
            mode, tree = self._trees[tree].get(name, (0, ""))
            if mode & _KIND != _TREE:
                return False
        return True

    def top_level(self) -> dict[str, Entry]:
        """The paths of the repository's root, except folders.

        Raises:
            RepositoryError: the tree is not available.
        """
        self._load({self._tree: f"the root folder of {self}"})
        root = self._trees[self._tree].items()
        return {name: _entry(mode, oid) for name, (mode, oid) in root if mode & _KIND != _TREE}

    def links(self, paths: Iterable[str]) -> dict[str, str]:
        """The targets of the symbolic links among ``paths``, as written in the links.

        Raises:
            RepositoryError: a link is not available.
        """
        links = {path: entry.oid for path, entry in self.entries(paths).items() if entry.type == "symlink"}
        targets = self._objects.read({oid: f"{path} of {self}" for path, oid in links.items()}, "blob")
        return {path: targets[oid].decode("utf-8", "surrogateescape") for path, oid in links.items()}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """The contents of the regular files among ``paths``. Missing objects are fetched in one request. Symbolic
        links (which are not followed), submodules and missing paths are left out.

        Raises:
            RepositoryError: a file is not available, or too large.
        """
        files = {path: entry.oid for path, entry in self.entries(paths).items() if entry.is_file}
        blobs = self._objects.read({oid: f"{path} of {self}" for path, oid in files.items()}, "blob")
        return {path: blobs[oid] for path, oid in files.items()}

    def _load(self, wanted: Mapping[str, str]) -> None:
        new = {oid: label for oid, label in wanted.items() if oid not in self._trees}
        for oid, content in self._objects.read(new, "tree").items() if new else ():
            self._trees[oid] = _parsed(content, f"{self}")

    def __str__(self) -> str:
        return f"{self.repo} at {self.oid[:12]}"


class _Files(Mapping[str, str]):
    def __init__(self, commit: Commit) -> None:
        self._commit = commit

    def __getitem__(self, path: str) -> str:
        content = self._commit.read([path])
        return content[path].decode("utf-8", "surrogateescape")

    def __contains__(self, path: object) -> bool:
        entry = self._commit.entries([path]).get(path) if isinstance(path, str) else None
        return entry is not None and entry.is_file

    def __iter__(self) -> Iterator[str]:
        return (path for path, entry in self._commit.paths().items() if entry.is_file)

    def __len__(self) -> int:
        return sum(entry.is_file for entry in self._commit.paths().values())


def _parsed(content: bytes, label: str) -> dict[str, tuple[int, str]]:
    """Mode and object id by name. Invalid names (empty, or with a slash) are left out."""
    entries: dict[str, tuple[int, str]] = {}
    position = 0
    try:
        while position < len(content):
            space = content.index(b" ", position)
            end = content.index(b"\0", space)
            mode = int(content[position:space], 8)
            name = content[space + 1 : end].decode("utf-8", "surrogateescape")
            position = end + 1 + _OID_BYTES
            oid = content[end + 1 : position].hex()
            if len(oid) != 2 * _OID_BYTES:
                raise ValueError
            if name and "/" not in name:
                entries[name] = (mode, oid)
    except ValueError:
        raise RepositoryError(f"{label}: a folder of the tree is damaged") from None
    return entries


def _entry(mode: int, oid: str) -> Entry:
    if mode & _KIND == _SUBMODULE:
        return Entry(mode, oid, "submodule")
    if mode & _KIND == _LINK:
        return Entry(mode, oid, "symlink")
    return Entry(mode, oid, "executable" if mode & 0o100 else "regular")
