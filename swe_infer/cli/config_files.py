"""Keeps the YAML files of configurations in memory. Hydra parses every file again for each composition, which takes a
third of the time."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml.constructor import SafeConstructor
from yaml.resolver import Resolver

from swe_infer.conf_files import conf_dir
from swe_infer.errors import ConfigError
from swe_infer.text import first_line

Version = tuple[int, ...] | None
"""What changes with a file; None: the file does not exist."""

_CACHE: dict[tuple[str, str, str], tuple[Version, bytes]] = {}
"""By provider, search path and file: the version of the file, and its result, pickled since Hydra may change it."""

_RECORDED: dict[str, Version] | None = None
"""Where :func:`recording` collects files and versions; None outside its block."""


def version_of(file: str) -> Version:
    """The version of a file."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino


@contextmanager
def recording() -> Iterator[Mapping[str, Version]]:
    """Yields the files that Hydra reads within the block, and their versions."""
    global _RECORDED
    before, _RECORDED = _RECORDED, {}
    try:
        yield _RECORDED
    finally:
        _RECORDED = before


def cache_config_files() -> None:
    """Makes Hydra read files and package resources through this cache. A changed file is read again."""
    Plugins.instance()  # registers Hydra's own sources
    types: dict[str, type[ConfigSource]] = SourcesRegistry.instance().types
    types |= {"file": _CachedFiles, "pkg": _CachedPackages}


class _CachedFiles(FileConfigSource):
    def load_config(self, config_path: str) -> ConfigResult:
        return _load(self, Path(self.path), config_path, super().load_config)


class _CachedPackages(ImportlibResourcesConfigSource):
    def load_config(self, config_path: str) -> ConfigResult:
        folder = resources.files(self.path)
        if not isinstance(folder, Path):  # in a zip file
            return super().load_config(config_path)
        return _load(self, folder, config_path, super().load_config)


# The processes of launchers import these classes, and register Hydra's, which must have the same names.
_CachedFiles.__name__ = FileConfigSource.__name__
_CachedPackages.__name__ = ImportlibResourcesConfigSource.__name__


def _load(source: ConfigSource, folder: Path, name: str, load: Callable[[str], ConfigResult]) -> ConfigResult:
    """The configuration of a file.

    Args:
        folder: the folder of the source.
        name: the option with its group.
        load: Hydra's way, whose errors are the user's.

    Raises:
        ConfigError: the file cannot be read, or is not YAML. Names the line.
    """
    file = os.path.realpath(folder / source._normalize_file_name(name))
    version = version_of(file)
    if _RECORDED is not None:
        _RECORDED[file] = version
    if version is None:
        return load(name)
    key = (source.provider, source.full_path(), file)
    if key in _CACHE and _CACHE[key][0] == version:
        result: ConfigResult = pickle.loads(_CACHE[key][1])
        return result
    try:
        result = _parse(source, file) or load(name)
        _CACHE[key] = version, pickle.dumps(result)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, OSError) as error:
        raise _unreadable(file, error) from None
    return result


def _unreadable(file: str, error: Exception) -> ConfigError:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "strerror", None) or first_line(error)
    return ConfigError(f"{file}{f', line {mark.line + 1}' if mark else ''}: cannot be read ({problem})")


def _parse(source: ConfigSource, file: str) -> ConfigResult | None:
    """Parses a file of this package with libyaml, which is ten times as fast as the parser that Hydra uses. Returns
    None for the user's files, because the two parsers differ in rare cases and in their messages."""
    loader = _loader()
    is_ours = file.startswith(os.path.join(os.path.realpath(conf_dir()), ""))
    if loader is None or not is_ours:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
        content = yaml.load(text, loader)
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    if not isinstance(content, dict) or {"\t", "\ufeff"} & set(text):  # which libyaml accepts in more places
        return None
    header = source._get_header_dict(text[:512])
    return ConfigResult(source.provider, source.full_path(), OmegaConf.create(content), header)


@functools.cache
def _loader() -> Any:
    """OmegaConf's loader with libyaml's parser instead of PyYAML's; None if PyYAML was built without libyaml."""
    try:
        from yaml._yaml import CParser
    except ImportError:
        return None

    def initialise(self: Any, stream: Any) -> None:
        CParser.__init__(self, stream)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)

    return type("_Loader", (CParser, get_yaml_loader()), {"__init__": initialise})
