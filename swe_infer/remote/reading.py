"""Copies of remote folders and files for reading, in the user's cache. A second copy fetches only what is new."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from swe_infer.errors import ConfigError, RemoteStoreError
from swe_infer.files import LONGEST_NAME, open_regular
from swe_infer.locks import process_in
from swe_infer.remote.files import fetch_files, is_current, mirrored_files
from swe_infer.remote.manifest import (
    FOLDER,
    FileEntry,
    Manifest,
    claim_name,
    lease_left_s,
    mirrored_parent,
    mirrors_below,
    names_in,
    read_manifest,
)
from swe_infer.remote.paths import cached_path, plain_path
from swe_infer.remote.plain import fetch_plain, files_below, is_run_or_sweep
from swe_infer.remote.store import AT_ONCE, DamagedObject, Store, checked_url, is_remote, naming, with_key
from swe_infer.run_directory import layout

log = logging.getLogger(__name__)

_TRIES = 5
_DEPTH = 4
"""Levels of folders that are searched for runs."""
_PATTERN = frozenset("*?[")
_LARGE = 1 << 16
_NOT_LISTED = (".jsonl", ".wandb", ".sqlite", ".html", ".log")
"""Endings of files of which a list of runs needs no content, if they are large."""


class NotFound(ConfigError):
    """The store has nothing at a URL."""


def readable_path(text: str, key: str = "", *, listing: bool = False) -> Path:
    """The local path of a run, a sweep or a folder of them: the path itself, or a copy of the URL's folder.

    Args:
        key: the key or argument in messages; may be empty.
        listing: copy only what a list of runs needs. Large files of finished runs have their size, and no content.

    Raises:
        NotFound: there is nothing.
        ConfigError: the URL is invalid.
        RemoteStoreError: the store refuses or cannot be reached.
    """
    if not is_remote(text):
        return plain_path(text, key)
    url = checked_url(text, key)
    with naming(with_key(url, key)):
        root = mirrored_parent(url)
        place = cached_path(root or url, "remote_lists" if listing else "remote_copies")
        place = _copied(url, root, place, listing=listing)
    if not place.is_dir():
        raise NotFound(f"{with_key(url, key)}: not found")
    return place


def _copied(url: str, root: str | None, place: Path, *, listing: bool) -> Path:
    with _locked(place):
        if root is not None:
            inner = url.removeprefix(f"{root}/")
            _fetch_mirror(Store(root), place, listing=listing, inner=inner)
            place = place / inner
        else:
            _fetch_tree(Store(url), place, _DEPTH, listing=listing)
    return place


def dataset_path(text: str, key: str) -> Path:
    """The local path of a dataset: the path itself, or a copy of the URL's file, its folder, or the files that match
    a pattern in its last part.

    Raises:
        NotFound: there is nothing.
        ConfigError: the URL is invalid.
        RemoteStoreError: the store refuses or cannot be reached.
    """
    if not is_remote(text):
        return plain_path(text, key)
    url = checked_url(text, key)
    head, _, name = url.rpartition("/")
    if head.endswith("/") or _PATTERN & set(head):
        raise ConfigError(f"{key}={url}: names no file or folder in a bucket, or has a pattern before its last part")
    if len(name.encode()) > LONGEST_NAME:
        raise ConfigError(f"{key}={url}: its last part has more than {LONGEST_NAME} bytes, as no file name has")
    place, store = cached_path(url, "remote_files"), Store(head)
    with _locked(place), naming(f"{key}={url}"):
        if _PATTERN & set(name):
            found = {
                entry.name: entry
                for entry in store.entries()
                if not entry.is_folder and fnmatch.fnmatchcase(entry.name, name)
            }
            place = place.with_name(name)
            fetch_plain(store, found, place.parent)
            _prune(place.parent, set(found), name)
        elif (entry := store.info(name)) is None:
            found = {}
        elif entry.is_folder:
            found = files_below(Store(url))
            fetch_plain(Store(url), found, place)
            _prune(place, set(found))
        else:
            found = {name: entry}
            place = place.with_name(name)
            fetch_plain(store, found, place.parent)
    if not found:
        raise NotFound(f"{key}={url}: file not found")
    return place


def mirrored_folders(text: str) -> list[str]:
    """The URLs of the mirrored folders at or below a URL, or the one that contains it.

    Raises:
        ConfigError: the URL is invalid.
        RemoteStoreError: the store refuses or cannot be reached.
    """
    url = checked_url(text, "")
    parent = mirrored_parent(url)
    if parent is not None:
        return [parent]
    store = Store(url)
    return [url] if names_in(store).last else list(mirrors_below(store))


@contextlib.contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Excludes other processes that copy to the same place."""
    place.parent.mkdir(parents=True, exist_ok=True)
    descriptor = open_regular(place.parent / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fetch_tree(store: Store, place: Path, depth: int, *, listing: bool) -> None:
    """Copies a run, a sweep, or the runs in a folder."""
    entries = {entry.name: entry for entry in store.entries()}
    if FOLDER in entries and _fetch_mirror(store, place, listing=listing):
        return
    if is_run_or_sweep(entries):
        files = files_below(store)
        fetch_plain(store, files, place)
        _prune(place, set(files))
        return
    folders = [name for name, entry in entries.items() if entry.is_folder and not name.startswith(".")]
    if not folders or depth < 1:
        shutil.rmtree(place, ignore_errors=True)
        return
    place.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE, "remote-search") as pool:
        copies = [
            pool.submit(_fetch_child, Store(f"{store.url}/{name}"), place / name, depth - 1, listing=listing)
            for name in folders
        ]
        for copy in copies:
            copy.result()
    for child in place.iterdir():
        if child.name not in folders and not child.name.startswith("."):
            shutil.rmtree(child, ignore_errors=True)


def _fetch_child(store: Store, place: Path, depth: int, *, listing: bool) -> None:
    """Copies a folder's part of :func:`_fetch_tree`. A damaged run is left out, with a warning."""
    try:
        _fetch_tree(store, place, depth, listing=listing)
    except DamagedObject as error:
        log.warning("%s; it is left out", error.reason)
        shutil.rmtree(place, ignore_errors=True)


def _fetch_mirror(store: Store, place: Path, *, listing: bool, inner: str = "") -> bool:
    """Copies a mirrored folder, or a folder in it. Returns False if the folder is not mirrored."""
    for _ in range(_TRIES):
        manifest = read_manifest(store)
        if manifest is None:
            return False
        files = {
            name: entry
            for name, entry in manifest.files.items()
            if not inner or name == inner or name.startswith(f"{inner}/")
        }
        wanted = {name: entry for name, entry in files.items() if not is_current(place / name, entry)}
        skipped = {name for name in wanted if listing and not _is_listed(name, wanted[name], manifest)}
        try:
            fetch_files(store, {name: entry for name, entry in wanted.items() if name not in skipped}, place)
        except FileNotFoundError:  # replaced meanwhile
            continue
        for name in skipped:
            _make_empty(place / name, wanted[name])
        if not inner:
            _prune(place, set(files))
        _mark_running(store, manifest, place, files)
        return True
    raise RemoteStoreError(store.url, "keeps changing; repeat the command")


def _is_listed(name: str, entry: FileEntry, manifest: Manifest) -> bool:
    """Whether a list of runs needs the content of a file. It reads the records of a run that was killed."""
    if entry.size <= _LARGE or not name.endswith(_NOT_LISTED):
        return True
    path = PurePosixPath(name)
    if path.name != layout.RECORDS or manifest.is_running(path.parent):
        return False
    summary = manifest.files.get(str(path.with_name(layout.SUMMARY)))
    return summary is None or summary.modified_ns < entry.modified_ns


def _make_empty(path: Path, entry: FileEntry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.truncate(entry.size)
    os.utime(path, ns=(entry.modified_ns, entry.modified_ns))


def _prune(place: Path, names: set[str], pattern: str = "*") -> None:
    """Removes the files of a copy that the store no longer has."""
    for name in mirrored_files(place):
        if name not in names and (pattern == "*" or fnmatch.fnmatchcase(name, pattern)):
            (place / name).unlink(missing_ok=True)


def _mark_running(store: Store, manifest: Manifest, place: Path, files: Mapping[str, FileEntry]) -> None:
    """Gives the copies of runs in progress the lock file of their process, and removes it from others."""
    owner = None
    if not manifest.released and manifest.running and lease_left_s(store, names_in(store), by_local_clock=True) > 0:
        with contextlib.suppress(FileNotFoundError):  # its owner has just ended
            owner = store.read(claim_name(manifest.epoch))
    for name in files:
        path = place / name
        if path.name not in layout.MARKERS:
            continue
        lock = path.with_name(layout.LOCK)
        own = lock.with_name(f"{lock.name}.owner")
        if owner is not None and process_in(owner) and manifest.is_running(PurePosixPath(name).parent):
            lock.touch()
            own.write_bytes(owner)
        else:
            own.unlink(missing_ok=True)
