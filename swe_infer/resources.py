"""Paths: ``package://MODULE/PATH`` for files inside a package, ``~``, the user's cache and state directories, and
names on the Hugging Face hub. Which modules are installed."""

from __future__ import annotations

import os
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from swe_infer.errors import ConfigError

_SCHEME = "package://"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HUB_PART = r"(?![.-])(?!.*(?:--|\.\.))[A-Za-z0-9_.-]{1,96}(?<![.-])"
_HUB_NAME = re.compile(rf"{_HUB_PART}(?:/{_HUB_PART})?")
_REVISION = re.compile(r"(?![-/.])(?!.*(?:\.\.|//|@\{))[\w./+-]{1,255}(?<![/.])", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Whether ``name`` is valid as ``NAME`` or ``OWNER/NAME`` on the Hugging Face hub. Excludes a leading hyphen,
    which would be an option on a command line, and ``..``."""
    return _HUB_NAME.fullmatch(name) is not None


def is_revision(name: str) -> bool:
    """Whether ``name`` is valid for a branch, tag or commit in git. Excludes a leading hyphen."""
    return _REVISION.fullmatch(name) is not None


def resolve_path(path: str, key: str = "") -> str:
    """The file system path of ``package://swe_infer.sample/tiny_llama``. In any other path ``~`` is expanded.

    Raises:
        ConfigError: the module or the file in it does not exist, or there is no home directory.
    """
    if not path.startswith(_SCHEME):
        return str(expanded(path, key)) if path.startswith("~") else path
    module, _, inner = path.removeprefix(_SCHEME).partition("/")
    try:
        root = Path(str(files(module)))
    except ModuleNotFoundError:
        raise ConfigError(f"{path}: there is no package {module}") from None
    found = root / inner
    if not found.exists():
        raise ConfigError(f"{path}: {module} contains no {inner}; is the installation complete?")
    return str(found)


def expanded(path: str, key: str = "") -> Path:
    """``path`` with ``~`` as the home directory.

    Raises:
        ConfigError: there is none, or it is a URL; the message names ``key``.
    """
    where = f"{key}={path}" if key else path
    if (url := _URL.match(path)) is not None:  # the rest may contain a password
        raise ConfigError(f"{key or 'a path'}: must be a path of this machine, not {url[0]}…")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(f"{where}: ~ names no home directory here; set HOME, or write the path out") from None


def read_named(path: str, key: str) -> bytes:
    """Reads the file that a key of the configuration names.

    Raises:
        ConfigError: the file does not exist, is not a regular file, or cannot be read.
    """
    place = Path(resolve_path(path, key))
    try:
        if place.exists() and not place.is_file():
            raise ConfigError(f"{key}={path} is not a regular file")
        return place.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{key}={path}: there is no such file (looked for {place.absolute()})") from None
    except OSError as error:
        raise ConfigError(f"{key}={path} cannot be read: {error.strerror}") from None


def is_installed(module: str) -> bool:
    """Whether a module can be imported. Its parent packages are imported, the module itself is not."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a parent is missing, or the module is blocked
        return False


def cache_home() -> Path | None:
    """This package's folder in ``$XDG_CACHE_HOME`` or ``~/.cache``; None without a home directory."""
    return _home("XDG_CACHE_HOME", ".cache")


def state_home() -> Path | None:
    """This package's folder in ``$XDG_STATE_HOME`` or ``~/.local/state``; None without a home directory."""
    return _home("XDG_STATE_HOME", ".local/state")


def _home(variable: str, default: str) -> Path | None:
    """XDG Base Directory Specification 0.8, which ignores relative paths."""
    if os.path.isabs(named := os.environ.get(variable, "")):
        return Path(named) / "swe_infer"
    try:
        return Path.home() / default / "swe_infer"
    except RuntimeError:
        return None
