"""Folders and files that a command writes, on this machine or in an object store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swe_infer.errors import ConfigError, RemoteStoreError, UploadIncomplete
from swe_infer.remote.files import mirrored_files
from swe_infer.remote.manifest import mirrored_parent
from swe_infer.remote.mirror import Mirror
from swe_infer.remote.paths import plain_path, working_path
from swe_infer.remote.store import Store, is_remote, naming, with_key, writable_url


@contextmanager
def written_folder(text: str, key: str = "", *, exists: bool = False) -> Iterator[Path]:
    """A folder to write: a path, or the working directory of a URL, see :class:`swe_infer.remote.mirror.Mirror`.

    Args:
        key: the key or argument in messages; may be empty.
        exists: whether the store must have it already.

    Raises:
        ConfigError: the URL is invalid, or the folder does not exist.
        RemoteStoreError: the store refuses or cannot be reached.
        StoreError: another process writes the folder.
        UploadIncomplete: at the end.
    """
    if not is_remote(text):
        yield plain_path(text, key)
        return
    url = writable_url(text, key)
    with naming(with_key(url, key)):
        parent = mirrored_parent(url)
        if exists and parent is None and not Store(url).entries():
            raise ConfigError(f"{url}: not found")
    with Mirror(parent or url, key) as mirror:
        yield mirror.directory if parent is None else mirror.directory / url.removeprefix(f"{parent}/")


@contextmanager
def written_file(text: str, key: str = "") -> Iterator[Path]:
    """A file to write: a path, or a local copy of a URL's file, which is uploaded at the end without an error.

    Raises:
        ConfigError: the URL is invalid.
        RemoteStoreError: the store refuses or cannot be reached.
        UploadIncomplete: at the end.
    """
    if not is_remote(text):
        yield plain_path(text, key)
        return
    url = writable_url(text, key)
    head, _, name = url.rpartition("/")
    if head.endswith("/"):
        raise ConfigError(f"{key} {url}: names no file in a bucket".lstrip())
    store, place = Store(head), working_path(url, key, "remote_out")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    with naming(f"{key} {url}".lstrip()):
        entry = store.info(name)
        if entry is not None and entry.is_folder:
            raise ConfigError(f"{key} {url}: is a folder; name a file".lstrip())
        if entry is not None:
            store.download(name, str(place))
    yield place
    if place.is_file():
        try:
            store.upload(name, str(place))
        except RemoteStoreError as error:
            raise UploadIncomplete(f"{url}: not uploaded ({error.reason}); {place} is the file") from None


def remove_mirrored(url: str, remove: Callable[[Path], None], *, dry_run: bool) -> None:
    """Removes a folder of an object store that a command of ours wrote.

    Args:
        remove: checks and removes the working directory.

    Raises:
        ConfigError: ``remove`` refuses, or the folder is part of one that is mirrored as a whole.
        RemoteStoreError: the store refuses or cannot be reached.
        StoreError: another process writes the folder.
    """
    with Mirror(url) as mirror:
        names = mirrored_files(mirror.directory)
        remove(mirror.directory)
        if not dry_run:
            mirror.delete(names)
