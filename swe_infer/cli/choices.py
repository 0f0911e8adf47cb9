"""Sweeps over a group's options, such as ``model=gpt-4o,gpt-4.1`` and ``model=glob(gpt-4o*)``.

Hydra composes a sweep's own configuration without the swept overrides, so the keys of the swept options would be
unknown: a placeholder option represents the group there. A glob is replaced by the options that it matches, because
Hydra ignores one that matches nothing and Optuna's sweeper ignores all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, flag_override

from swe_infer.conf_files import options_of
from swe_infer.errors import ConfigError


def placeholder_choices(overrides: Sequence[str]) -> list[str]:
    """Returns ``GROUP=OPTION`` with the first swept option, for each swept group without a plain choice."""
    found: dict[str, str] = {}
    chosen = set()
    for override in overrides:
        try:
            parsed = _parsed(override)
        except HydraException:  # Hydra's own message is better
            return []
        if not options_of(parsed.key_or_group):
            continue
        if parsed.is_discrete_sweep():
            options = _choices(parsed)
            found.update({parsed.key_or_group: f"{parsed.get_key_element()}={options[0]}"} if options else {})
        elif not parsed.is_sweep_override():
            chosen.add(parsed.key_or_group)
    return [override for group, override in found.items() if group not in chosen]


def conditional_keys(overrides: Sequence[str], *, varies: bool) -> list[str]:
    """Writes keys of groups as ``++KEY=VALUE`` if the options of a group may vary.

    Hydra composes the sweep's own configuration with one option of each swept group, which may lack a key that
    another option has.

    Args:
        varies: the sweep has points of a file, or starts from a run; both may choose options of groups.
    """
    keys = [override.partition("=")[0] for override in overrides]
    pairs = list(zip(keys, overrides, strict=True))
    varies = varies or "experiment" in keys or any(options_of(key) and is_swept(override) for key, override in pairs)
    return [f"++{override}" if varies and _is_key_of_group(key) else override for key, override in pairs]


def _is_key_of_group(key: str) -> bool:
    """Whether a key belongs to a group, such as ``decoding.temperature``."""
    group, dot, _ = key.partition(".")
    return bool(dot) and bool(options_of(group)) and group != "experiment"


PLACES = ("first", "second", "third", "fourth")
"""The places of ``provider=deployments``, in the order of preference."""


def place_choices(options: Mapping[str, str]) -> list[str]:
    """The overrides that choose an option for each place of ``provider=deployments``; the first two have defaults."""
    plus = {place: "" if place in PLACES[:2] else "+" for place in options}
    return [f"{plus[place]}provider@provider.{place}={option}" for place, option in options.items()]


def resolve_choices(config: DictConfig) -> None:
    """Removes placeholders and expands globs in the sweeper's overrides and ``params``.

    Raises:
        ConfigError: a glob matches nothing.
    """
    hydra = config.hydra
    overrides = [(_parsed(override), override) for override in raw_overrides(hydra.overrides.task)]
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
    """The keys that a composed sweep varies, including its sweeper's ``params``."""
    params: Any = config.hydra.sweeper.get("params") or {}
    given = [*raw_overrides(config.hydra.overrides.task), *(f"{key}={params[key]}" for key in params)]
    parsed = [_parsed(override) for override in given]
    return sorted({one.key_or_group for one in parsed if one.is_sweep_override()})


def is_swept(override: str) -> bool:
    """Whether an override has several values."""
    try:
        return _parsed(override).is_sweep_override()
    except HydraException:  # Hydra's own message is better
        return False


def raw_overrides(overrides: Any) -> list[str]:
    """Overrides without interpolation: launchers write them to disk, and values from the environment must not get
    there."""
    return [str(override) for override in cast(list[Any], OmegaConf.to_container(overrides, resolve=False))]


def _without_glob(parsed: Override, override: str) -> str:
    if not isinstance(parsed.value(), Glob):
        return override
    options = _choices(parsed)
    if not options:
        group, names = parsed.key_or_group, options_of(parsed.key_or_group)
        hint = f"available: {', '.join(names)}" if names else f"{group} is not a group"
        raise ConfigError(f"{override}: matches nothing; {hint}")
    return f"{parsed.get_key_element()}={','.join(options)}"


def _parsed(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _choices(parsed: Override) -> list[str]:
    value: Any = parsed.value()
    if isinstance(value, Glob):
        return value.filter(list(options_of(parsed.key_or_group)))
    return list(parsed.sweep_string_iterator())
