"""Local paths of what object stores contain: working directories, copies for reading, names to show."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from swe_infer.errors import ConfigError, SweInferError, UploadIncomplete
from swe_infer.remote.store import checked_url, is_remote, scheme_of, with_key, writable_url
from swe_infer.resources import cache_home, expanded, state_home

_FILE = re.compile(r"file://(?:localhost)?(/.*)", re.DOTALL)
_UNSAFE = re.compile(r"[^A-Za-z0-9._=,+@-]")
_MOST_CHARACTERS = 100
"""Of a URL's last part, in the name of its local folder."""

_SHOWN: dict[Path, str] = {}
"""The URLs of local folders."""


def plain_path(text: str, key: str = "") -> Path:
    """A path of this machine from a path or ``file://`` URL; ``~`` is expanded.

    Raises:
        ConfigError: it is empty or another URL, or there is no home directory.
    """
    if not text:  # a variable of the shell that is not set; not the current directory
        raise ConfigError(f"{key or 'a path'} is empty: name a path")
    if scheme_of(text) is None:
        return expanded(text, key)
    if (found := _FILE.fullmatch(text)) is not None:
        return Path(found[1])
    shown = with_key(text, key)
    if scheme_of(text) == "file":
        raise ConfigError(f"{shown}: must be an absolute path, such as file:///home/me/runs")
    checked_url(text, key)
    raise ConfigError(f"{shown}: must be a path of this machine")


def working_path(text: str, key: str = "", kind: str = "remote") -> Path:
    """The local path where a folder is written: the path itself, or the working directory of a URL in the user's
    state directory.

    Args:
        kind: "remote_out" for a file, so that it does not conflict with a folder of the same URL.

    Raises:
        ConfigError: the URL is invalid, or there is no home directory.
    """
    if not is_remote(text):
        return plain_path(text, key)
    url = writable_url(text, key)
    home = state_home()
    if home is None:
        raise ConfigError(f"{key}={url}: is written by way of ~/.local/state; set HOME or XDG_STATE_HOME")
    return _local_path(home, url, kind)


def cached_path(url: str, kind: str) -> Path:
    """The local path of a copy for reading, in the user's cache.

    Args:
        url: see :func:`checked_url`.
        kind: distinguishes copies of one URL. None of :func:`working_path`: the cache may be in the state directory.

    Raises:
        ConfigError: there is no home directory.
    """
    home = cache_home()
    if home is None:
        raise ConfigError(f"{url}: is read by way of ~/.cache; set HOME or XDG_CACHE_HOME")
    return _local_path(home, url, kind)


def _local_path(home: Path, url: str, kind: str) -> Path:
    parent, _, name = url.rpartition("/")
    local = _UNSAFE.sub("-", name)[-_MOST_CHARACTERS:]
    # Two URLs whose last parts get the same local name need different folders. No parent ends in a slash.
    distinct = parent if local == name else f"{url}/"
    path = home / kind / hashlib.blake2b(distinct.encode(), digest_size=6).hexdigest() / local
    _SHOWN[path] = _SHOWN[path.resolve()] = url
    return path


def message_of(error: SweInferError) -> str:
    """An error's message with URLs instead of the local paths of their copies. UploadIncomplete keeps the path, which
    has what is not in the store."""
    text = str(error)
    if isinstance(error, UploadIncomplete):
        return text
    for folder, url in sorted(_SHOWN.items(), key=lambda item: -len(str(item[0]))):
        text = text.replace(str(folder), url)
    return text


def displayed(path: Path) -> str:
    """A path for messages and scripts: the URL that it stands for, if any."""
    for folder in (path, *path.parents):
        if (url := _SHOWN.get(folder)) is not None:
            return "/".join((url, *path.relative_to(folder).parts))
    return str(path)
