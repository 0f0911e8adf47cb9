"""Reads the folder ``conf/`` without Hydra: groups, options, and the classes that they construct.

Help, completion and command-line parsing use it, because the import of Hydra is slow.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from swe_infer.errors import ConfigError
from swe_infer.locks import Locks
from swe_infer.options import Parameter, parameters_of
from swe_infer.text import flatten
from swe_infer.types import PathText

CommonObjective = Literal[
    "resolved_rate", "pass_at_k", "apply_rate", "cost_per_resolved_usd", "cost_usd", "wall_s", "output_tokens_per_s"
]
"""The figures that completion offers, see :class:`swe_infer.run_directory.objective.Objective` for all."""

ROOT_KEYS: Mapping[str, Any] = {
    "from": PathText | None,
    "output_dir": PathText | None,
    "upload_interval_s": float,
    "locks": Locks,
    "dry_run": bool,
    "objective": CommonObjective | str | tuple[str, ...] | None,
}
"""The scalar keys of the root configuration, with their types."""

ROOT = "config"
"""The root configuration's name in conf/."""

_OVERRIDE = re.compile(r"override /([\w/-]+)(?:@.*)?")
_ELSEWHERE = re.compile(r"/?([\w/-]+)(?:@([\w.]+))?")


@functools.cache
def conf_dir() -> Path:
    """The configuration folder: inside the package in an installation, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@functools.cache
def groups() -> Mapping[str, Sequence[str]]:
    """The options of every group, such as ``{"model/attention": ["auto", …], …}``, in the order of the names."""
    found = {}
    for folder, _, names in os.walk(conf_dir()):
        options = sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
        group = os.path.relpath(folder, conf_dir()).replace(os.sep, "/")
        if options and group != ".":
            found[group] = options
    return dict(sorted(found.items()))


def options_of(group: str) -> Sequence[str]:
    """The names of a group's options; empty for an unknown group."""
    return groups().get(group, ())


def file_of(group: str, option: str) -> Path:
    """The YAML file of an option."""
    return conf_dir() / group / f"{option}.yaml"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest known name, or all."""
    names = sorted(known)
    if close := difflib.get_close_matches(name, names, n=1):
        return f"; did you mean {close[0]}?"
    return f"; available: {', '.join(names)}"


def unknown_option(group: str, option: str, known: Iterable[str]) -> str:
    """The message about an unknown option of a group, with similar names, or all names of a small group."""
    names = sorted(known)
    close = difflib.get_close_matches(option, names, n=3)
    if close := close or [name for name in names if option and option.lower() in name][:_MAX_SIMILAR]:
        *others, last = close
        hint = f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"
    elif len(names) > _MAX_LISTED:
        hint = f"--help {group} lists all {len(names)}"
    else:
        hint = f"available: {', '.join(names)}"
    return f"{group}={option}: unknown option; {hint}"


_MAX_SIMILAR, _MAX_LISTED = 5, 16


def default_options() -> dict[str, str]:
    """The option that the root configuration selects for each group."""
    return {group: option for group, option in _pairs(_read(file_of("", ROOT))) if " " not in group}


def config_node(key: str) -> dict[str, Any]:
    """The mapping at a key of the root configuration, such as ``shard``; empty for any other key."""
    node = _read(file_of("", ROOT)).get(key)
    return node if isinstance(node, dict) else {}


def defaults_of(group: str, option: str) -> list[str]:
    """The options of the same group that an option inherits from, nearest first."""
    names = [e.partition("@")[0] for e in _read(file_of(group, option)).get("defaults", ()) if isinstance(e, str)]
    near = [name for name in names if name in options_of(group)]
    return [*near, *(far for name in near for far in defaults_of(group, name))]


def keys_set_by(path: Path) -> set[str]:
    """The dotted keys of the root configuration that a file such as an experiment sets.

    Raises:
        ConfigError: the file cannot be read.
    """
    values = {key: value for key, value in _read(path).items() if key not in ("defaults", "hydra")}
    return {key for key, _ in flatten(values)}


def overridden_by(group: str, option: str) -> dict[str, str]:
    """The options of other groups that an option selects: a model selects its provider and runner."""
    found: dict[str, str] = {}
    for name in (option, *defaults_of(group, option)):
        for key, value in _pairs(_read(file_of(group, name))):
            if match := _OVERRIDE.fullmatch(key):
                found.setdefault(match[1], value)
    return found


def node_of(group: str, option: str) -> dict[str, Any]:
    """The keys and values of an option, inherited ones included."""
    path = file_of(group, option)
    content = _read(path)
    node: dict[str, Any] = {}
    for entry in content.get("defaults", ()):
        if isinstance(entry, str) and (name := entry.partition("@")[0]) in options_of(group):
            node |= node_of(group, name)
    for key, value in _pairs(content):
        if not key.startswith("override ") and (match := _ELSEWHERE.fullmatch(key)):
            other = match[1] if key.startswith("/") else f"{group}/{match[1]}"
            if value in options_of(other):
                node[match[2] or match[1]] = node_of(other, value)
    own = content.get(group.partition("/")[0], {}) if _is_global(path) else content
    return node | {key: value for key, value in own.items() if key != "defaults"}


def key_named(name: str) -> str | None:
    """Resolves a name to a key. A name is a group, a dotted key, or the last part of a key, such as
    ``temperature``."""
    group = name.partition(".")[0]
    if name in (*ROOT_KEYS, *_NODES) or group in groups() or (group in _NODES and group != name):
        return name
    if "." in name:
        return None
    for group in ("decoding", "dataset", "provider", "model", "runner"):
        if any(name in node for node in _nodes(group)) and not name.startswith("_"):
            return f"{group}.{name}"
    return next((f"{group}.{name}" for group in _NODES if name in config_node(group)), None)


_NODES = ("budget", "shard", "sweep")
"""The mappings of the root configuration that are not groups."""


@functools.cache
def parameters_at(key: str) -> Sequence[Parameter]:
    """The parameters that a dotted key such as ``runner.retry.tries`` sets, one for each class of the group with it.

    The key may belong to a nested option of the same group, as in ``provider.first.base_url``. Imports the classes.
    """
    group, *names = key.split(".")
    if not names:
        return ()
    found: list[Parameter] = []
    has_nested = False
    for node in _nodes(group):
        inner: Any = node
        for name in names[:-1]:
            inner = inner.get(name) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            parameter = class_parameters(inner.get("_target_")).get(names[-1])
            found += [parameter] if parameter is not None and parameter not in found else []
        elif any("@" in at for at, _ in _pairs(node) if not at.startswith("override ")):
            has_nested = True
    return [*found, *(parameters_at(f"{group}.{names[-1]}") if has_nested else ())]


def values_at(key: str) -> Iterator[Any]:
    """The values that the files of options have for a dotted key. Imports no class."""
    group, *names = key.split(".")
    for node in _nodes(group) if names else ():
        found: Any = node
        for name in names:
            found = found.get(name) if isinstance(found, dict) else None
        yield found


@functools.cache
def _nodes(group: str) -> Sequence[dict[str, Any]]:
    return [*(_read(file_of(group, option)) for option in options_of(group)), config_node(group)]


def _pairs(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The entries of a defaults list that select an option of a group."""
    for entry in content.get("defaults", ()):
        if isinstance(entry, dict):
            yield from ((str(key), str(value)) for key, value in entry.items() if value is not None)


@functools.cache
def class_parameters(target: object) -> Mapping[str, Parameter]:
    """The parameters of the class that a ``_target_`` names, which is imported; empty if there is none."""
    module, _, name = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    try:
        return parameters_of(getattr(importlib.import_module(module), name)) if module else {}
    except (ImportError, AttributeError):
        return {}


@functools.cache
def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _is_global(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip() == "# @package _global_"
