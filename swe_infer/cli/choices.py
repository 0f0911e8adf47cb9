"""Choices of a group's options in a sweep, such as ``model=gpt-4o,gpt-4.1`` and ``model=glob(gpt-4o*)``.

Two things about them are not as a user expects. Hydra composes the configuration of a sweep without what is swept, so
that a key of the chosen models' provider would be unknown: an option stands in for the group there. And a glob means
no point at all where it matches nothing, and nothing to Optuna's sweeper: it becomes the options that it matches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override

from swe_infer.conf_files import options_of
from swe_infer.errors import ConfigError


def stand_ins(overrides: Sequence[str]) -> list[str]:
    """A plain choice, the first of its options, for each group that is swept and not also chosen."""
    found: dict[str, str] = {}
    chosen = set()
    for override in overrides:
        try:
            parsed = _parsed(override)
        except HydraException:  # Hydra itself says it better
            return []
        if not options_of(parsed.key_or_group):
            continue
        if parsed.is_discrete_sweep():
            options = _choices(parsed)
            found.update({parsed.key_or_group: f"{parsed.get_key_element()}={options[0]}"} if options else {})
        elif not parsed.is_sweep_override():
            chosen.add(parsed.key_or_group)
    return [override for group, override in found.items() if group not in chosen]


def settle_choices(config: DictConfig) -> None:
    """Give the sweeper of a composed sweep its overrides without stand-ins and globs; its ``params`` too.

    Raises:
        ConfigError: a glob matches nothing.
    """
    hydra = config.hydra
    overrides = [(_parsed(override), override) for override in unresolved(hydra.overrides.task)]
    swept = {parsed.key_or_group for parsed, _ in overrides if parsed.is_sweep_override()}
    kept = [
        _without_glob(parsed, override)
        for parsed, override in overrides
        if parsed.is_sweep_override() or parsed.key_or_group not in swept
    ]
    with flag_override(config, ["readonly", "struct"], False), flag_override(hydra, ["readonly"], False):
        hydra.overrides.task = kept
        params: Any = hydra.sweeper.get("params")
        for key in params or ():
            override = f"{key}={params[key]}"
            if "glob(" in override:
                params[key] = _without_glob(_parsed(override), override).partition("=")[2]


def swept_keys(config: DictConfig) -> list[str]:
    """The keys that a composed sweep varies, those of its sweeper's ``params`` included."""
    params: Any = config.hydra.sweeper.get("params") or {}
    given = [*unresolved(config.hydra.overrides.task), *(f"{key}={params[key]}" for key in params)]
    parsed = [_parsed(override) for override in given]
    return sorted({one.key_or_group for one in parsed if one.is_sweep_override()})


def is_swept(override: str) -> bool:
    """Whether an override stands for several values."""
    try:
        return _parsed(override).is_sweep_override()
    except HydraException:  # Hydra itself says it better
        return False


def unresolved(overrides: Any) -> list[str]:
    """Overrides as they were written. Going through the list itself would put values from the environment into them,
    which launchers write to disk for their workers."""
    return [str(override) for override in cast(list[Any], OmegaConf.to_container(overrides, resolve=False))]


def _without_glob(parsed: Override, override: str) -> str:
    if not isinstance(parsed.value(), Glob):
        return override
    options = _choices(parsed)
    if not options:
        group, names = parsed.key_or_group, options_of(parsed.key_or_group)
        there_are = f"there are {', '.join(names)}" if names else f"{group} is no group of options"
        raise ConfigError(f"{override}: matches nothing; {there_are}")
    return f"{parsed.get_key_element()}={','.join(options)}"


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _choices(parsed: Override) -> list[str]:
    value: Any = parsed.value()
    if isinstance(value, Glob):
        return value.filter(list(options_of(parsed.key_or_group)))
    return list(parsed.sweep_string_iterator())
