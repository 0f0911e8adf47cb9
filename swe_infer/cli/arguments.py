"""Rewrites the command line for Hydra's parser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from swe_infer.cli.choices import is_swept, placeholder_choices
from swe_infer.cli.quoting import quote, quote_values, text_value
from swe_infer.config import IDENTITY_GROUPS, is_identity
from swe_infer.errors import ConfigError

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
    * A swept group gets one of its options for the sweep's own configuration, so that Hydra knows the keys that the
      options define.

    Raises:
        ConfigError: a list of providers is empty or too long, or a value cannot be parsed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    result = [a for a in arguments if a not in overrides]
    overrides = [part for override in overrides for part in _deployments(override)]
    overrides = quote_values(overrides, sweep=sweep)
    result += overrides
    chosen = {override.partition("=")[0] for override in overrides}
    if "model.name" in chosen and not chosen & {"model", "experiment"}:
        result.append("model=api")
    if "provider=vllm" in overrides and "runner" not in chosen:
        result.append("runner=api")
    if sweep:
        result += placeholder_choices([a for a in result if not a.startswith("-")])
        if "hydra.sweep.dir" not in chosen:
            result.append(f"hydra.sweep.dir={quote(_sweep_directory(overrides))}")
    return result


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


def _sweep_directory(overrides: Sequence[str]) -> str:
    plain = [text_value(o) for o in overrides if o.startswith("output_dir=")]
    if plain and plain[-1]:
        return plain[-1]
    asked = [o for o in overrides if _is_request(o)]
    named, former = (_digest_path(chosen) for chosen in ([o for o in asked if _changes_identity(o)], asked))
    return str(former if former.is_dir() and not named.is_dir() else named)


def _digest_path(overrides: Sequence[str]) -> Path:
    digest = hashlib.blake2b("\x1f".join(sorted(overrides)).encode(), digest_size=6).hexdigest()
    return Path("outputs/sweeps") / digest


def _is_request(override: str) -> bool:
    """Whether an override is part of the digest by which earlier versions named a sweep: not budgets, trackers,
    launchers."""
    if override.startswith("hydra.sweeper.params."):
        return True
    return not override.startswith(("budget.", "locks=", "hydra.", "hydra/launcher", "tracker"))


def _changes_identity(override: str) -> bool:
    """Whether an override makes it another sweep: it is swept, or part of a run's identity. A sweep with a larger
    ``dataset.limit`` or another ``base_url`` keeps its ledger."""
    key = override.partition("=")[0].lstrip("+~")
    group = key.partition(".")[0]
    return group not in IDENTITY_GROUPS or is_identity(key) or is_swept(override)
