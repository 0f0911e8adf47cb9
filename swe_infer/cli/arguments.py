"""Rewrites the command line for Hydra's parser."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from swe_infer.cli.choices import conditional_keys, is_swept, placeholder_choices
from swe_infer.cli.config_dir import config_dir_of
from swe_infer.cli.points import Point, read_points
from swe_infer.cli.quoting import quote, quote_values, text_value
from swe_infer.config import IDENTITY_GROUPS, is_identity
from swe_infer.errors import ConfigError

_SWEEPS = Path("outputs/sweeps")
_PLACES = ("first", "second", "third", "fourth")


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments for Hydra.

    * Overrides may come before and after flags. argparse requires them together, so they are moved to the end.
    * ``model.name=NAME`` without ``model`` or ``experiment`` adds ``model=api``, which accepts any name.
    * ``provider=vllm`` without ``runner`` adds ``runner=api``, because Llama presets choose ``runner=llama``.
    * ``provider=[openai,azure_openai]``, several deployments of one model in order of preference, becomes
      ``provider=deployments`` with these options as its ``first``, ``second``, ``third`` and ``fourth``.
    * String and path values are quoted where necessary, see :mod:`swe_infer.cli.quoting`.
    * A sweep gets a directory that depends on its overrides alone, so that the same command finds its ledger again.
      With one plain ``output_dir``, that is the sweep's directory and each run gets a folder in it.
    * ``from=RUN`` adds the recorded configuration of that run, see :mod:`swe_infer.cli.from_run`.
    * ``sweep=NAME`` names the sweep's folder, and is written ``sweep.name=NAME``.
    * Where a sweep varies a group, a key of a group is written ``++KEY=VALUE``, as not every option may have it. The
      sweeper applies it where it exists, see :mod:`swe_infer.cli.sweep_points`.
    * A swept group gets one of its options for the sweep's own configuration, so that Hydra knows the keys that the
      options define.

    Raises:
        ConfigError: a list of providers is empty or too long, or a value cannot be parsed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    result = [a for a in arguments if a not in overrides]
    overrides = [_sweep_name(part) for override in overrides for part in _deployments(override)]
    source, points = _value_of("from", overrides), _points(overrides, sweep)
    overrides = quote_values(overrides, sweep=sweep)
    if source:
        from swe_infer.cli.from_run import read_recorded, recorded_overrides

        sets = [point.overrides for point in points]
        recorded = read_recorded(source)
        overrides = [
            *recorded_overrides(recorded, overrides, sets, config_dir_of(arguments), sweep=sweep),
            *overrides,
        ]
    chosen = {override.partition("=")[0] for override in overrides}
    if "model.name" in chosen and not chosen & {"model", "experiment"}:
        overrides.append("model=api")
    if "provider=vllm" in overrides and "runner" not in chosen:
        overrides.append("runner=api")
    directory = _sweep_directory(overrides, points) if sweep and "hydra.sweep.dir" not in chosen else None
    if sweep:
        overrides = conditional_keys(overrides, has_points=bool(points))
    result += overrides
    if sweep:
        result += placeholder_choices([a for a in result if not a.startswith("-")])
        if directory is not None:
            result.append(f"hydra.sweep.dir={quote(directory)}")
    return result


def _value_of(key: str, overrides: Sequence[str]) -> str | None:
    """The value of a key that may be given once; None without one.

    Raises:
        ConfigError: it is given twice.
    """
    found = [override.partition("=")[2] for override in overrides if override.startswith(f"{key}=")]
    if len(found) > 1:
        raise ConfigError(f"{key}={found[1]}: {key} is given twice")
    value = found[0] if found else ""
    if value[:1] in ("'", '"'):
        value = text_value(f"{key}={value}") or value
    return None if value in ("", "null") else value


def _sweep_name(override: str) -> str:
    """Writes ``sweep=NAME`` as ``sweep.name=NAME``.

    Raises:
        ConfigError: the name cannot be the name of a folder.
    """
    key, _, value = override.partition("=")
    if key not in ("sweep", "sweep.name"):
        return override
    if value != "null" and not _NAME.fullmatch(value):
        raise ConfigError(f"{override}: must be a name of letters, digits and . _ -; it names a folder")
    return f"sweep.name={value}"


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


def _points(overrides: Sequence[str], sweep: bool) -> Sequence[Point]:
    """The points of ``sweep.points``.

    Raises:
        ConfigError: the file is invalid, or there is no sweep that could run its points.
    """
    path = _value_of("sweep.points", overrides)
    if path is None:
        return ()
    if not sweep:
        raise ConfigError(f"sweep.points={path}: the points of a file are a sweep, which needs -m")
    for override in overrides:
        if override.startswith("hydra/sweeper=") and override != "hydra/sweeper=basic":
            raise ConfigError(f"sweep.points={path}: {override} chooses its own points; leave one of them out")
    return read_points(path)


def _deployments(override: str) -> list[str]:
    """Expands ``provider=[a,b]`` to ``provider=deployments``. Returns any other override unchanged."""
    if not (override.startswith("provider=[") and override.endswith("]")):
        return [override]
    options = [option.strip() for option in override.removeprefix("provider=[").removesuffix("]").split(",")]
    if not all(options) or len(options) > len(_PLACES) or any({"[", "]"} & set(option) for option in options):
        raise ConfigError(
            f"{override}: a list of providers must have one to {len(_PLACES)} options of the group provider"
        )
    if len(options) == 1:
        return [f"provider={options[0]}"]
    chosen = [f"provider@provider.{place}={option}" for place, option in zip(_PLACES, options, strict=False)]
    return ["provider=deployments", *chosen[:2], *(f"+{choice}" for choice in chosen[2:])]


def sweep_directory(arguments: Sequence[str]) -> Path | None:
    """The sweep's directory, from the result of :func:`hydra_arguments`; None for a single run."""
    if not {"-m", "--multirun"} & set(arguments):
        return None
    named = [text_value(a) for a in arguments if a.startswith("hydra.sweep.dir=")]
    return Path(named[-1]) if named and named[-1] else None


def _sweep_directory(overrides: Sequence[str], points: Sequence[Point]) -> str:
    plain = [text_value(o) for o in overrides if o.startswith("output_dir=")]
    if plain and plain[-1]:
        return plain[-1]
    if (name := _value_of("sweep.name", overrides)) is not None:
        return str(_SWEEPS / name)
    overrides = [*overrides, *(" ".join((point.name, *point.overrides)) for point in points)]
    asked = [o for o in overrides if _is_request(o)]
    named, former = (_digest_path(chosen) for chosen in ([o for o in asked if _changes_identity(o)], asked))
    return str(former if former.is_dir() and not named.is_dir() else named)


def _digest_path(overrides: Sequence[str]) -> Path:
    digest = hashlib.blake2b("\x1f".join(sorted(overrides)).encode(), digest_size=6).hexdigest()
    return _SWEEPS / digest


def _is_request(override: str) -> bool:
    """Whether an override is part of the digest by which earlier versions named a sweep: not budgets, trackers,
    launchers."""
    if override.startswith("hydra.sweeper.params."):
        return True
    return not override.lstrip("+").startswith(
        ("budget.", "locks=", "hydra.", "hydra/launcher", "tracker", "sweep.", "from=")
    )


def _changes_identity(override: str) -> bool:
    """Whether an override makes it another sweep: it is swept, or part of a run's identity. A sweep with a larger
    ``dataset.limit`` or another ``base_url`` keeps its ledger."""
    key = override.partition("=")[0].lstrip("+~")
    group = key.partition(".")[0]
    return group not in IDENTITY_GROUPS or is_identity(key) or is_swept(override)
