"""The command line before Hydra sees it: what the interface promises and Hydra's parser does not know."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from swe_infer.cli.choices import is_swept, stand_ins
from swe_infer.cli.typed import as_typed, plain_text, quoted
from swe_infer.config import IDENTITY_GROUPS, is_identity
from swe_infer.errors import ConfigError

_PLACES = ("first", "second", "third", "fourth")


def prepared(arguments: Sequence[str]) -> list[str]:
    """The arguments for Hydra.

    * Overrides may stand before and after flags; argparse wants them together, so they go last.
    * ``model.name=NAME`` without a choice of ``model`` (or ``experiment``) means an API model of any name: it gets
      ``model=api``.
    * ``provider=vllm`` serves the checkpoints of ``runner=llama`` too, whose presets choose that runner: it gets
      ``runner=api``, where no runner is chosen.
    * ``provider=[openai,azure_openai]`` means several deployments of one model in order of preference: it becomes
      ``provider=deployments`` with these options as its ``first``, ``second``, ``third`` and ``fourth``.
    * A value that is a text or a path is taken as it was typed, see :mod:`swe_infer.cli.typed`.
    * A sweep gets a directory that depends on its overrides alone, so that the same command finds its ledger again.
      If it has one plain ``output_dir``, that is the sweep's directory and each point gets a folder in it.
    * A group that a sweep goes through gets one of its options for the sweep's own configuration, so that keys which
      the options bring are known there.

    Raises:
        ConfigError: a list of providers that holds none, or too many; a value that cannot be read.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    result = [a for a in arguments if a not in overrides]
    overrides = [part for override in overrides for part in _deployments(override)]
    overrides = as_typed(overrides, sweep=sweep)
    result += overrides
    chosen = {override.partition("=")[0] for override in overrides}
    if "model.name" in chosen and not chosen & {"model", "experiment"}:
        result.append("model=api")
    if "provider=vllm" in overrides and "runner" not in chosen:
        result.append("runner=api")
    if sweep:
        result += stand_ins([a for a in result if not a.startswith("-")])
        if "hydra.sweep.dir" not in chosen:
            result.append(f"hydra.sweep.dir={quoted(_sweep_directory(overrides))}")
    return result


def _deployments(override: str) -> list[str]:
    """``provider=[a,b]`` in terms of ``provider=deployments``; any other override as it is.

    Raises:
        ConfigError: the list has no or too many options.
    """
    if not (override.startswith("provider=[") and override.endswith("]")):
        return [override]
    options = [option.strip() for option in override.removeprefix("provider=[").removesuffix("]").split(",")]
    if not all(options) or len(options) > len(_PLACES) or any({"[", "]"} & set(option) for option in options):
        raise ConfigError(
            f"{override}: a list of providers holds one to {len(_PLACES)} options of the group provider"
        )
    if len(options) == 1:
        return [f"provider={options[0]}"]
    chosen = [f"provider@provider.{place}={option}" for place, option in zip(_PLACES, options, strict=False)]
    return ["provider=deployments", *chosen[:2], *(f"+{choice}" for choice in chosen[2:])]


def sweep_directory(prepared: Sequence[str]) -> Path | None:
    """The sweep's directory by the arguments that :func:`prepared` made; None for a single run."""
    if not {"-m", "--multirun"} & set(prepared):
        return None
    named = [plain_text(a) for a in prepared if a.startswith("hydra.sweep.dir=")]
    return Path(named[-1]) if named and named[-1] else None


def _sweep_directory(overrides: Sequence[str]) -> str:
    plain = [plain_text(o) for o in overrides if o.startswith("output_dir=")]
    if plain and plain[-1]:
        return plain[-1]
    asked = [o for o in overrides if _is_asked(o)]
    named, former = (_named_after(chosen) for chosen in ([o for o in asked if _decides(o)], asked))
    return str(former if former.is_dir() and not named.is_dir() else named)


def _named_after(overrides: Sequence[str]) -> Path:
    digest = hashlib.blake2b("\x1f".join(sorted(overrides)).encode(), digest_size=6).hexdigest()
    return Path("outputs/sweeps") / digest


def _is_asked(override: str) -> bool:
    """Whether an override is part of what is asked; not what it may cost, who is told, or where and how it runs.
    Earlier versions named a sweep after all of these."""
    if override.startswith("hydra.sweeper.params."):
        return True
    return not override.startswith(("budget.", "locks=", "hydra.", "hydra/launcher", "tracker"))


def _decides(override: str) -> bool:
    """Whether an override makes it another sweep: it is swept, or part of a run's identity. So a sweep whose limit
    grows or whose server moves keeps its ledger."""
    key = override.partition("=")[0].lstrip("+~")
    group = key.partition(".")[0]
    return group not in IDENTITY_GROUPS or is_identity(key) or is_swept(override)
