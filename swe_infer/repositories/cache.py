"""Finds clones, creates partial clones in the cache, and fetches missing objects."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from swe_infer.errors import ConfigError, RepositoryError, RepositoryInterrupted
from swe_infer.files import open_regular, read_regular
from swe_infer.interrupts import INTERRUPTS
from swe_infer.locks import has_no_locks
from swe_infer.redaction import without_secrets
from swe_infer.repositories.commit import Commit
from swe_infer.repositories.git import HostFailed, fetch, make_git_directory
from swe_infer.repositories.objects import DamagedClone, Kind, ObjectReader
from swe_infer.repositories.options import (
    Address,
    RepositoryOptions,
    checked_branch,
    checked_commit,
    checked_repo,
)
from swe_infer.resources import expanded

log = logging.getLogger(__name__)

_EVERYTHING = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_MOST_READERS = 8
_PAUSE_S = 0.05
_REMOVES_TESTS = "Remove F2P Tests"
"""In the message of SWE-smith's commits that remove the failing tests."""


class Repositories:
    """The repositories of a run. Thread-safe; several processes may share a cache.

    Args:
        silence_s: maximum seconds without output from a server, and for one read from a clone.

    Raises:
        ConfigError: ``context.repositories`` is not a directory, or there is no home directory for ``~``.
    """

    def __init__(self, options: RepositoryOptions, *, silence_s: float = 60.0) -> None:
        self.options = options
        self.root = expanded(options.repositories, "context.repositories").absolute()
        if os.path.lexists(self.root) and not self.root.is_dir():
            raise ConfigError(f"context.repositories={options.repositories} is not a directory")
        self.silence_s = silence_s
        self.hosts_failed: dict[str, str] = {}
        """By server name, why no further request is sent to it."""
        self.hosts_answered: set[str] = set()
        self._lock = threading.Lock()
        self._known: dict[str, Repository] = {}
        self._reading: dict[str, Repository] = {}  # least recently used first
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def open(self, repo: str, commit: str) -> Commit:
        """A commit of a repository. A missing clone is created, and a missing commit is fetched.

        Args:
            repo: such as ``owner/name``.
            commit: all 40 digits of its id.

        Raises:
            RepositoryError: it is not available; the message says why.
        """
        repo, commit = checked_repo(repo), checked_commit(commit)
        return self._repository(repo).commit(commit)

    def open_bug(self, repo: str, branch: str) -> Commit:
        """The commit of a branch of SWE-smith that introduces its bug: the head of the branch, or its parent if the
        head only removes the failing tests. A branch without a clone is fetched without its history.

        Raises:
            RepositoryError: it is not available; the message says why.
        """
        repo, branch = checked_repo(repo), checked_branch(branch)
        repository = self._repository(repo)
        head = repository.head(branch)
        message, parent = repository.message(head)
        return repository.commit(parent if parent is not None and _REMOVES_TESTS in message else head)

    def _repository(self, repo: str) -> Repository:
        with self._lock:
            repository = self._known.get(repo)
            if repository is None:
                repository = self._known[repo] = Repository(self, repo)
        return repository

    def close(self) -> None:
        """Ends all git processes. Nothing can be read afterwards."""
        with self._lock:
            self._closed = True
            repositories = list(self._known.values())
        for repository in repositories:
            with repository.lock:
                repository.close_reader()
        if self._directory is not None:
            self._directory.cleanup()

    def workplace(self) -> Path:
        """An empty git directory without objects or remote, for readers.

        Raises:
            RepositoryError: this object is closed, or the directory cannot be written.
        """
        with self._lock:
            if self._closed:
                raise RepositoryError("the repositories are closed")
            if self._directory is None:
                try:
                    directory = tempfile.TemporaryDirectory(prefix="swe_infer-git-")
                    make_git_directory(Path(directory.name) / "empty.git")
                except OSError as error:
                    raise RepositoryError(f"no temporary directory can be written ({error.strerror})") from None
                self._directory = directory
            return Path(self._directory.name) / "empty.git"

    def used(self, repository: Repository) -> None:
        """Marks a repository's reader as used, and closes the least recently used ones above ``_MOST_READERS``."""
        with self._lock:
            self._reading.pop(repository.name, None)
            self._reading[repository.name] = repository
            for name in list(self._reading)[:-_MOST_READERS]:
                other = self._reading[name]
                if other.lock.acquire(blocking=False):  # fails while another thread reads from it
                    try:
                        other.close_reader()
                    finally:
                        other.lock.release()
                    del self._reading[name]


class Repository:
    """One repository: clones on this machine that may contain it, and this package's own clone in the cache.

    Objects are read from all of them: ids are hashes of the contents, so a clone of another repository does no harm.
    Only the package's own clone is written to.
    """

    def __init__(self, repositories: Repositories, name: str) -> None:
        self.name = name
        self.lock = threading.RLock()
        self._all = repositories
        self._source = repositories.options.source(name)
        self._own = repositories.root / f"{name.replace('/', '__')}.partial.git"
        self._found, self._left_out = self._look()
        self._reader: ObjectReader | None = None
        self._failure: str | None = None
        self._discarded = False
        self._absent: dict[str, str] = {}

    def commit(self, oid: str) -> Commit:
        if oid in self._absent:
            raise RepositoryError(self._absent[oid])
        try:
            content = self.read({oid: f"{self.name}: commit {oid}"}, "commit")[oid]
        except RepositoryInterrupted:
            raise
        except RepositoryError as error:
            self._absent[oid] = str(error)
            raise
        tree = re.match(rb"tree ([0-9a-f]{40})\n", content)
        if tree is None:
            raise RepositoryError(f"{self.name}: commit {oid} is damaged")
        return Commit(self.name, oid, tree[1].decode(), self)

    def head(self, branch: str) -> str:
        """The id of the commit at the head of a branch, which is fetched if no clone has the branch."""
        with self.lock:
            if branch in self._absent:
                raise RepositoryError(self._absent[branch])
            if (oid := self._known_head(branch)) is not None:
                return oid
            label = f"{self.name}: branch {branch}"
            try:
                source = self._server(label)
                with self._writing():
                    self._all.root.mkdir(parents=True, exist_ok=True)
                    with self._file_lock():
                        self._ask(source, label, [f"+refs/heads/{branch}:refs/heads/{branch}"], branch=branch)
                if (oid := self._known_head(branch)) is None:
                    raise RepositoryError(f"{label}: {source.host} did not send it")
            except RepositoryInterrupted:
                raise
            except RepositoryError as error:
                self._absent[branch] = str(error)
                raise
            self.close_reader()  # it does not know the new objects
            return oid

    def _known_head(self, branch: str) -> str | None:
        """The head of a branch in the clones, from their files: git would read their configuration."""
        for objects in (*self._found, self._own / "objects"):
            git_dir = objects.parent
            for name in (f"refs/heads/{branch}", f"refs/remotes/origin/{branch}"):
                if (oid := _ref(git_dir, name)) is not None:
                    return oid
        return None

    def message(self, oid: str) -> tuple[str, str | None]:
        """The message of a commit, and its first parent."""
        content = self.read({oid: f"{self.name}: commit {oid}"}, "commit")[oid]
        header, _, message = content.partition(b"\n\n")
        parent = re.search(rb"^parent ([0-9a-f]{40})$", header, re.MULTILINE)
        return message.decode("utf-8", "replace"), None if parent is None else parent[1].decode()

    def read(self, wanted: Mapping[str, str], kind: Kind) -> dict[str, bytes]:
        with self.lock:
            try:
                return self._read_or_fetch(wanted, kind)
            except DamagedClone as error:
                if not self._discard_own():
                    places = ", ".join(map(str, (*self._found, self._own) if self._own.exists() else self._found))
                    raise RepositoryError(f"{error}; remove or repair {places}") from None
                log.warning("%s; %s is fetched again", error, self._own)
                return self._read_or_fetch(wanted, kind)

    def _read_or_fetch(self, wanted: Mapping[str, str], kind: Kind) -> dict[str, bytes]:
        found, missing = self._read(wanted, kind)
        return found | self._obtain(missing, kind) if missing else found

    def _discard_own(self) -> bool:
        """Removes the package's own clone, once; False if the damage is elsewhere or nothing may be fetched."""
        if self._discarded or self._found or isinstance(self._source, Path) or self._all.options.offline:
            return False
        self._discarded = True
        self.close_reader()
        self._failure = None
        with self._writing(), self._file_lock():
            self._remove_own()
        return True

    def _remove_own(self) -> None:
        if os.path.lexists(self._own):
            old = self._own.with_name(f".{self._own.name}.{secrets.token_hex(6)}.new")
            os.rename(self._own, old)
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old, ignore_errors=True)
            else:
                old.unlink()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Converts an OSError to a RepositoryError that names the path."""
        try:
            yield
        except OSError as error:
            place = error.filename or self._all.root
            raise RepositoryError(f"{place}: cannot be written ({error.strerror})") from None

    def close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _look(self) -> tuple[list[Path], list[str]]:
        """The object folders of the existing clones, and the reasons why others are not used."""
        name = self.name.rpartition("/")[2]
        flat = [self.name.replace("/", joint) for joint in ("__", "-", "+")]
        folders = [self._all.root / part for part in (self.name, *flat, f"{flat[2]}/repo", name)]
        if isinstance(self._source, Path):
            folders.insert(0, self._source.absolute())
        places = [place for folder in folders for place in (folder, folder.with_name(f"{folder.name}.git"))]
        places.append(self._all.root)
        found, left_out = [], []
        for place in places:
            objects, fault = _objects_of(place)
            if fault is not None:
                log.warning("%s", fault)
                left_out.append(fault)
            elif objects is not None and objects not in found:
                found.append(objects)
        return found, left_out

    def _read(self, wanted: Mapping[str, str], kind: Kind) -> tuple[dict[str, bytes], dict[str, str]]:
        if self._reader is None:
            own, fault = _objects_of(self._own)
            if fault is not None:
                raise RepositoryError(f"{self.name}: {fault}")
            folders = [*self._found, *([own] if own is not None else [])]
            if not folders:
                return {}, dict(wanted)
            self._reader = ObjectReader(self._all.workplace(), folders, self._all.silence_s)
        self._all.used(self)
        try:
            return self._reader.read(wanted, kind)
        except BaseException:
            self.close_reader()  # a half-read response would be taken for the next one
            raise

    def _obtain(self, wanted: Mapping[str, str], kind: Kind) -> dict[str, bytes]:
        """Fetches objects that no clone has into the package's own clone, in one request, and reads them."""
        label = next(iter(wanted.values()))
        source = self._server(label)
        with self._writing():
            self._all.root.mkdir(parents=True, exist_ok=True)
            with self._file_lock() as alone:
                if alone:
                    self._remove_leftovers()
                found, missing = self._read_again(wanted, kind)  # another process may have fetched it
                if missing and not self._found and _objects_of(self._own)[0] is None:
                    self._ask(source, label, _EVERYTHING)
                    found, missing = self._read_again(wanted, kind)
                if missing:
                    self._ask(source, label, list(missing), is_commit=kind == "commit")
                    found, missing = self._read_again(wanted, kind)
        if missing:
            raise DamagedClone(f"{next(iter(missing.values()))}: {source.host} sent it, but it cannot be read")
        return found

    def _server(self, label: str) -> Address:
        """The server from which a missing object is fetched.

        Raises:
            RepositoryError: nothing may be fetched, or the server, or this repository on it, has failed before in
                this run.
        """
        source, offline = self._source, self._all.options.offline
        if offline or isinstance(source, Path):
            own = [self._own] if self._own.exists() else []
            places = [*self._found, *own] or [source if isinstance(source, Path) else self._all.root]
            reason = "context.offline=true" if offline else "context.repository_url is a folder, nothing is fetched"
            more = "".join(f"; {fault}" for fault in self._left_out)
            raise RepositoryError(f"{label} is not in {', '.join(map(str, places))} ({reason}{more})")
        failure = self._failure or self._all.hosts_failed.get(source.host)
        if failure is not None:
            raise RepositoryError(f"{label}: {failure}")
        return source

    def _read_again(self, wanted: Mapping[str, str], kind: Kind) -> tuple[dict[str, bytes], dict[str, str]]:
        self.close_reader()
        return self._read(wanted, kind)

    def _ask(
        self,
        source: Address,
        label: str,
        wanted: Sequence[str],
        *,
        is_commit: bool = False,
        branch: str | None = None,
    ) -> None:
        """Fetches refs or object ids. Failures are remembered.

        Args:
            branch: the name in ``wanted``, if that is one branch.
        """
        tries = 2 if source.host in self._all.hosts_answered else 1
        for left in reversed(range(tries)):
            try:
                self._fetch(source, wanted, is_commit, branch)
                self._all.hosts_answered.add(source.host)
                return
            except RepositoryInterrupted:
                raise
            except RepositoryError as error:
                if left and isinstance(error, HostFailed):
                    continue
                failure = without_secrets(str(error))
                if str(self._own) in failure:
                    raise DamagedClone(f"{label}: {failure}") from None
                if isinstance(error, HostFailed):
                    self._all.hosts_failed[source.host] = failure
                elif not is_commit and branch is None:  # the server may still have other commits
                    self._failure = failure
                raise RepositoryError(f"{label}: {failure}") from None

    def _fetch(self, source: Address, wanted: Sequence[str], is_commit: bool, branch: str | None) -> None:
        """Fetches into the package's own clone, which is created atomically. Commits are fetched without history, and
        a branch with two commits."""
        new = self._own.with_name(f".{self._own.name}.{secrets.token_hex(6)}.new")
        try:
            make_git_directory(new, source.url)
            target = self._own if _objects_of(self._own)[0] is not None else new
            depth = ("--depth=1",) if is_commit else ("--depth=2",) if branch is not None else ()
            fetch(new, target / "objects", source, (*depth, "origin"), wanted, self._all.silence_s)
            if target is new:
                self._remove_own()  # what is there is no clone
                os.rename(new, self._own)
            elif branch is not None:
                heads = self._own / "refs" / "heads"
                heads.mkdir(parents=True, exist_ok=True)
                os.replace(new / "refs" / "heads" / branch, heads / branch)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        """Removes temporary folders of killed processes."""
        for leftover in self._own.parent.glob(f".{self._own.name}.*.new"):
            shutil.rmtree(leftover, ignore_errors=True)
        for torn in (self._own / "objects" / "pack").glob("tmp_*"):
            torn.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[bool]:
        """Keeps other processes from fetching the same objects.

        Yields False if the file system has no locks. Concurrent fetches are then wasteful but safe: clones and packs
        are renamed into place when complete.
        """
        descriptor = open_regular(self._own.with_name(f".{self._own.name}.lock"), os.O_RDWR | os.O_CREAT)
        try:
            locked = False
            while not locked:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
                except BlockingIOError:
                    if INTERRUPTS.stopping:
                        raise RepositoryInterrupted(
                            f"{self.name}: interrupted while another process fetches"
                        ) from None
                    time.sleep(_PAUSE_S)
                except OSError as error:
                    if has_no_locks(error):
                        break
                    raise
            yield locked
        finally:
            os.close(descriptor)


_LONGEST_PACKED_REFS = 1 << 28


def _ref(git_dir: Path, name: str) -> str | None:
    """The id that a ref names in a clone, which may be untrusted; None if it has no such ref."""
    try:
        found = read_regular(git_dir / name, 64).decode("ascii", "replace").strip()
        return found if re.fullmatch(r"[0-9a-f]{40}", found) else None
    except OSError:
        pass  # a ref without a file of its own may be packed
    try:
        packed = read_regular(git_dir / "packed-refs", _LONGEST_PACKED_REFS)
    except OSError:
        return None
    match = re.search(rb"^([0-9a-f]{40}) " + re.escape(name.encode()) + rb"$", packed, re.MULTILINE)
    return None if match is None else match[1].decode()


def _objects_of(place: Path) -> tuple[Path | None, str | None]:
    """(object folder of a clone, bare or with a work tree; reason why it is not used).

    Both are None if there is no clone.
    """
    try:
        for git_dir in (place / ".git", place):
            if git_dir.name == ".git" and git_dir.is_file():
                return None, f"{place} is a linked work tree: name its main clone"
            if not ((git_dir / "HEAD").exists() and (git_dir / "objects").is_dir()):
                continue
            if not os.access(git_dir / "objects", os.R_OK | os.X_OK):
                return None, f"{git_dir} may not be read by this user"
            if (git_dir / "objects" / "info" / "alternates").exists():
                return (
                    None,
                    f"{git_dir} borrows objects from elsewhere (objects/info/alternates), which is not followed",
                )
            return git_dir / "objects", None
    except OSError as error:
        return None, f"{place} cannot be read ({error.strerror})"
    return None, None
