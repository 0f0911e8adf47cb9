"""Errors of Hydra and OmegaConf in one line."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import traceback
import types
import typing
from collections.abc import Mapping

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from swe_infer.cli.extras import missing_extra
from swe_infer.conf_files import (
    class_parameters,
    groups,
    key_named,
    node_of,
    options_of,
    parameters_at,
    unknown_option,
)

_MOST_OPTIONS = 3
_COPY_VARIABLES = (["_load_configuration_impl", "__getitem__"], ["_with_values", "__getitem__"])
"""The last functions in Hydra's loader and in ours when a variable is read."""


def one_line(error: HydraException | OmegaConfBaseException | ValueError) -> str:
    """An error of Hydra or OmegaConf in one line: the invalid key or option, and what would be right."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | AttributeError) and getattr(cause, "full_key", None):
            return _unknown_key(cause)
        cause = cause.__cause__
    text = str(error)
    if match := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        return _unknown_option(match[1], match[2], text)
    if match := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return f"{match[1]}: unknown group; see --help"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line.strip() for line in str(error.__cause__ or "").splitlines()[:1]]
    return " ".join([*lines[:2], *(c for c in causes if c and c not in text)]) or type(error).__name__


def unset_variable(error: BaseException) -> str | None:
    """An error line if a variable of ``hydra.job.env_copy``, which Hydra reads while it composes, is not set."""
    frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    if not isinstance(error, KeyError) or frames[-2:] not in _COPY_VARIABLES:
        return None
    return f"hydra.job.env_copy: the environment variable {error.args[0]} is not set"


def _unknown_key(error: BaseException) -> str:
    key = str(getattr(error, "full_key", ""))
    name = key.rpartition(".")[2]
    parent = getattr(error, "parent_node", None)
    names = sorted(str(k) for k in parent if k != "_target_") if isinstance(parent, DictConfig) else []
    if any(_has_key(parameter.hint, name) for parameter in parameters_at(key.rpartition(".")[0])):
        return f"{key}: is not set yet; a new key of a mapping is added with +{key}=VALUE"
    if re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+", key):
        return f"{key}: unknown key; an environment variable is set before the command: export {key}=…"
    target = str(parent.get("_target_") or "") if isinstance(parent, DictConfig) else ""
    if target.startswith("swe_infer.") and name in class_parameters(target):
        return f"{key}: its YAML file does not list it; such a key is added with +{key}=VALUE"
    meant = key_named(key)
    if meant is not None and meant != key:
        return f"{key}: unknown key; did you mean {meant}?"
    if close := difflib.get_close_matches(name, names, n=1):
        return f"{key}: unknown key; did you mean {key.removesuffix(name)}{close[0]}?"
    if target and not target.startswith("swe_infer."):
        listed = f"; its YAML file sets {', '.join(names)}" if names else ""
        return f"{key}: unknown key{listed}; a key that the file does not list is added with +{key}=VALUE"
    if options := _options_with(key):
        return f"{key}: unknown key of the chosen option; it belongs to {', '.join(options)}"
    return f"{key}: unknown key" + (f"; available: {', '.join(names)}" if names else "")


def _has_key(hint: object, name: str) -> bool:
    """Whether a value of the type ``hint`` may be a mapping with the key ``name``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_has_key(member, name) for member in typing.get_args(hint))
    if dataclasses.is_dataclass(hint):
        return name in {field.name for field in dataclasses.fields(hint)}
    return typing.get_origin(hint) is Mapping


def _options_with(key: str) -> list[str]:
    """The first options of a key's group that have this key, as ``GROUP=OPTION``."""
    group, _, name = key.partition(".")
    having = (f"{group}={option}" for option in options_of(group) if name in node_of(group, option))
    return list(itertools.islice(having, _MOST_OPTIONS)) if group in groups() else []


def _unknown_option(group: str, option: str, text: str) -> str:
    _, _, listing = text.partition("Available options in")
    if (hint := missing_extra(group, option)) is not None:
        return hint
    options = [line.strip() for line in listing.splitlines()[1:] if line.strip() and ":" not in line]
    return unknown_option(group, option, options)
