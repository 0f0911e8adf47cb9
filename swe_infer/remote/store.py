"""Object stores through fsspec: the supported URLs and operations."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from swe_infer.errors import ConfigError, RemoteStoreError
from swe_infer.redaction import without_credentials, without_secrets
from swe_infer.resources import is_installed
from swe_infer.text import clean, first_line

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_PASSWORD = re.compile(r"[^/@:]*:[^/@]*@")
_EXISTS = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "409", "412"})
"""Codes of S3 for an object that exists already."""
_SETTINGS = ("AWS_", "AZURE_", "FSSPEC_", "GOOGLE_", "HF_")
"""Prefixes of environment variables that configure a file system."""
AT_ONCE = 8
"""Requests at once where there are many."""
_TIMEOUTS = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How fsspec reaches a kind of store.

    Args:
        module: the module of its file system.
        extra: the extra of this package that installs it.
        is_writable: whether it can create an object in one step, only if there is none.
    """

    module: str
    extra: str | None
    is_writable: bool = True


SCHEMES = {
    "s3": Scheme("s3fs", "s3"),
    "gs": Scheme("gcsfs", "gcs"),
    "gcs": Scheme("gcsfs", "gcs"),
    "az": Scheme("adlfs", "azure"),
    "abfs": Scheme("adlfs", "azure"),
    "abfss": Scheme("adlfs", "azure"),
    "hf": Scheme("huggingface_hub", None, is_writable=False),
}


def scheme_of(text: str) -> str | None:
    """The scheme of a URL; None for a path."""
    found = _URL.fullmatch(text)
    return found[1] if found else None


def is_remote(text: str) -> bool:
    """Whether a path is the URL of an object store."""
    return scheme_of(text) in SCHEMES


def checked_url(text: str, key: str) -> str:
    """A URL without trailing slashes.

    Args:
        key: the key or argument in messages; may be empty.

    Raises:
        ConfigError: the scheme is unknown or its package is missing, or the URL contains credentials or names no
            bucket.
    """
    shown = without_credentials(with_key(text, key))
    found = _URL.fullmatch(text)
    scheme = None if found is None else SCHEMES.get(found[1])
    if found is None or scheme is None:
        raise ConfigError(f"{shown}: unknown scheme; use a path, file:// or {', '.join(f'{s}://' for s in SCHEMES)}")
    rest = found[2].strip("/")
    if _PASSWORD.match(rest) or "?" in rest:
        raise ConfigError(f"{shown}: must contain no credentials and no ?; credentials come from the environment")
    if not rest or any(part in ("", ".", "..") for part in rest.split("/")) or not rest.isprintable():
        raise ConfigError(f"{shown}: names no bucket and path, such as {found[1]}://BUCKET/FOLDER")
    if not is_installed(scheme.module):
        raise ConfigError(f"{shown}: needs {scheme.module}; install swe_infer[{scheme.extra}]")
    return f"{found[1]}://{rest}"


def writable_url(text: str, key: str) -> str:
    """:func:`checked_url` of a folder that is written.

    Raises:
        ConfigError: also if the store has no conditional writes.
    """
    url = checked_url(text, key)
    scheme = url.partition("://")[0]
    if not SCHEMES[scheme].is_writable:
        raise ConfigError(
            f"{key}={url}: {scheme}:// is read only, as it has no conditional writes; write to another store or to a "
            "local folder, and upload that with `hf upload`"
        )
    return url


class AccessDenied(RemoteStoreError):
    """The store refuses these credentials."""


class DamagedObject(RemoteStoreError):
    """An object has unexpected content."""


def with_key(url: str, key: str) -> str:
    """A URL for messages, with the key that named it, if any."""
    return f"{key}={url}" if key else url


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Errors of a store name ``place``: the key and the URL that the user gave."""
    try:
        yield
    except RemoteStoreError as error:
        raise RemoteStoreError(place, error.reason) from error


@dataclass(frozen=True, slots=True)
class Entry:
    """An object or folder.

    Args:
        name: relative to the listed folder.
        size: in bytes; 0 for a folder.
        version: changes when the content does.
    """

    name: str
    size: int
    is_folder: bool
    version: str


@functools.lru_cache(maxsize=16)
def _file_system(root: str, settings: tuple[tuple[str, str], ...]) -> Any:
    """fsspec's file system of a bucket. Creating one takes longer than a request.

    Args:
        settings: the variables that it reads.
    """
    from fsspec.core import url_to_fs

    options = {"config_kwargs": _TIMEOUTS} if root.startswith("s3://") else {}
    return url_to_fs(root, skip_instance_cache=True, use_listings_cache=False, **options)[0]


class Store:
    """The objects below a URL. Names are relative to it. Thread-safe.

    Every method raises RemoteStoreError if the store refuses or cannot be reached.

    Args:
        url: see :func:`checked_url`.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def _files(self) -> Any:
        scheme, _, rest = self.url.partition("://")
        settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS)))
        try:
            return _file_system(f"{scheme}://{rest.partition('/')[0]}", settings)
        except Exception as error:
            raise self._failed(error) from error

    def _path(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _failed(self, error: BaseException) -> RemoteStoreError:
        reason = without_credentials(clean(without_secrets(first_line(error))))
        if isinstance(error, PermissionError):
            return AccessDenied(self.url, f"access denied ({reason})" if str(error).strip() else "access denied")
        return RemoteStoreError(self.url, reason)

    def invalid(self, name: str) -> RemoteStoreError:
        """The error for an object with unexpected content."""
        return DamagedObject(self.url, f"the object {name} is damaged")

    def entries(self, folder: str = "") -> list[Entry]:
        """The objects and folders directly in a folder; empty if it does not exist."""
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._path(folder), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise self._failed(error) from error
        own = self._files._strip_protocol(self._path(folder)).rstrip("/")
        paths = ((info, str(info["name"]).rstrip("/")) for info in found)
        return [_entry(info, path.rpartition("/")[2]) for info, path in paths if path != own]

    def info(self, name: str = "") -> Entry | None:
        """An object or folder; None if it does not exist."""
        try:
            self._files.invalidate_cache()
            return _entry(self._files.info(self._path(name)), name)
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error) from error

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes:
        """The bytes of an object from ``start`` to ``end``.

        Raises:
            FileNotFoundError: there is no such object.
        """
        try:
            whole = start == 0 and end is None
            content = self._files.cat_file(self._path(name), **({} if whole else {"start": start, "end": end}))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._failed(error) from error
        return bytes(content)

    def download(self, name: str, path: str) -> None:
        """Copies an object into a local file.

        Raises:
            FileNotFoundError: there is no such object.
        """
        try:
            self._files.get_file(self._path(name), path)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def write(self, name: str, content: bytes) -> None:
        """Creates or replaces an object."""
        try:
            self._files.pipe_file(self._path(name), content)
        except Exception as error:
            raise self._failed(error) from error

    def upload(self, name: str, path: str) -> None:
        """Creates or replaces an object with the content of a local file."""
        try:
            self._files.put_file(path, self._path(name))
        except Exception as error:
            raise self._failed(error) from error

    def create(self, name: str, content: bytes) -> bool:
        """Creates an object. Returns False if it exists with other content.

        It is one step. A request that was repeated after a lost response finds its own content.
        """
        try:
            self._files.pipe_file(self._path(name), content, mode="create")
        except Exception as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")
            if not isinstance(error, FileExistsError) and code not in _EXISTS:
                raise self._failed(error) from error
        else:
            return True
        try:
            return self.read(name) == content
        except FileNotFoundError:
            return False

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that do not exist are no error."""

        def remove_one(name: str) -> None:
            try:
                self._files.rm_file(self._path(name))
            except FileNotFoundError:
                return
            except Exception as error:
                raise self._failed(error) from error

        with ThreadPoolExecutor(AT_ONCE, "remote-removal") as pool:
            for _ in pool.map(remove_one, names):
                pass

    def remove_all(self) -> None:
        """Removes every object below the URL."""
        try:
            self._files.rm(self.url, recursive=True)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._failed(error) from error

    def modified(self, name: str) -> float | None:
        """When an object was written, in seconds since the epoch by the store's clock; None if it does not exist or
        the store reports no time."""
        try:
            self._files.invalidate_cache()
            return float(self._files.modified(self._path(name)).timestamp())
        except (FileNotFoundError, NotImplementedError, KeyError):
            return None
        except Exception as error:
            raise self._failed(error) from error


def _entry(info: Any, name: str) -> Entry:
    keys = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "last_commit", "mtime")
    version = "|".join(str(info[key]) for key in keys if info.get(key) is not None)
    size = int(info.get("size") or 0)
    return Entry(name, size, info.get("type") == "directory", f"{size}|{version}")
