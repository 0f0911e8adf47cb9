"""Rewrites the command line for Hydra's parser."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from swe_infer.cli.choices import PLACES, conditional_keys, is_swept, place_choices, placeholder_choices
from swe_infer.cli.config_dir import config_dir_of
from swe_infer.cli.points import Point, read_points
from swe_infer.cli.quoting import quote, quote_values, text_value
from swe_infer.config import IDENTITY_GROUPS, MAX_UPLOAD_INTERVAL_S, is_identity
from swe_infer.errors import ConfigError
from swe_infer.remote.paths import displayed, working_path
from swe_infer.remote.store import is_remote, scheme_of

if TYPE_CHECKING:
    from swe_infer.remote.mirror import Mirror

_SWEEPS = Path("outputs/sweeps")
_SHOWS = frozenset(["--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--version"])
"""Flags with which Hydra prints something instead of running the sweep."""
_ELSEWHERE = frozenset(["ray", "submitit_slurm"])
"""Launchers whose workers may be on other machines."""
_HYDRA_FOLDERS = frozenset(["hydra.run.dir", "hydra.output_subdir", "hydra.sweep.subdir"])
_TRUE = frozenset(["true", "yes", "on", "1"])
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)


def hydra_arguments(arguments: Sequence[str], config_dir: Path | None = None) -> list[str]:
    """Returns the arguments for Hydra.

    * Overrides may come before and after flags. argparse requires them together, so they are moved to the end.
    * ``model.name=NAME`` without ``model`` or ``experiment`` adds ``model=api``, which accepts any name. If the name
      is newer than the presets of its family, such as ``claude-sonnet-6-0``, the newest of them is chosen instead.
    * ``provider=vllm`` without ``runner`` adds ``runner=api``, because Llama presets choose ``runner=llama``.
    * ``provider=[openai,azure_openai]``, several deployments of one model in order of preference, becomes
      ``provider=deployments`` with these options as its ``first``, ``second``, ``third`` and ``fourth``.
    * String and path values are quoted where necessary, see :mod:`swe_infer.cli.quoting`.
    * ``from=RUN`` adds the recorded configuration of that run, see :mod:`swe_infer.cli.from_run`. In a sweep, the
      sweeper adds it to each job.
    * ``sweep=NAME`` is written ``sweep.name=NAME``.

    For a sweep, also:

    * The sweep's directory is named, or depends on its overrides alone, so that the same command finds its ledger
      again. With one plain ``output_dir``, that is the sweep's directory and each run gets a folder in it.
    * Where the options of a group may vary, the keys of groups are written ``++KEY=VALUE``, as not every option has
      them. The sweeper applies each where it exists, see :mod:`swe_infer.cli.sweeper`.
    * A swept group gets one of its options for the sweep's own configuration, so that Hydra knows the keys that the
      options define.

    Args:
        config_dir: the user's configuration folder, if ``arguments`` do not name it.

    Raises:
        ConfigError: an argument is invalid, or the run of ``from`` cannot be started from.
        HydraException: with ``from``, an override does not compose.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    flags = [a for a in arguments if a not in overrides]
    overrides = [_named_sweep(part) for override in overrides for part in _deployments(override)]
    overrides = quote_values(overrides, sweep=sweep)
    _check_hydra_keys(overrides, sweep=sweep)
    overrides = _with_newest_preset(overrides)
    points, implied = _points(overrides, sweep), _implied_choices(overrides)
    if not sweep:
        return [*flags, *_started_from_run([*overrides, *implied], config_dir or config_dir_of(arguments))]
    result = conditional_keys([*overrides, *implied], varies=bool(points) or _may_start_from_run(overrides))
    result += placeholder_choices(result)
    named = [text_value(override) for override in overrides if override.startswith("hydra.sweep.dir=")]
    directory = (named and named[-1]) or _sweep_directory(overrides, points)
    if scheme_of(directory) is not None:
        directory = str(working_path(directory, "hydra.sweep.dir" if named else "output_dir"))
    elif named:
        return [*flags, *result]
    result = [override for override in result if not override.startswith("hydra.sweep.dir=")]
    return [*flags, *result, f"hydra.sweep.dir={quote(directory)}"]


def _check_hydra_keys(overrides: Sequence[str], *, sweep: bool) -> None:
    """Refuses values of Hydra's own keys that would start another command than the user means."""
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in _HYDRA_FOLDERS and scheme_of(value := text_value(override) or "") is not None:
            raise ConfigError(f"{key}={value}: must be a local folder; results are uploaded with output_dir={value}")
        if key == "hydra.mode":
            raise ConfigError(f"{key}={value}: a sweep is started with -m, and a single run without it")
        if sweep and key == "hydra.job.chdir" and value.lower() in _TRUE:
            raise ConfigError(f"{key}={value}: the runs of a sweep share the working directory; set output_dir")


def _implied_choices(overrides: Sequence[str]) -> list[str]:
    """The choices of options that follow from other overrides."""
    chosen = {override.partition("=")[0] for override in overrides}
    implied = []
    if "model.name" in chosen and not chosen & {"model", "experiment", "from"}:
        implied.append("model=api")
    if "provider=vllm" in overrides and "runner" not in chosen:
        implied.append("runner=api")
    return implied


def _with_newest_preset(overrides: list[str]) -> list[str]:
    """Chooses the newest preset of a family for a ``model.name`` that is newer than all of them, instead of
    ``model=api`` or an older preset of the vendor."""
    chosen = {override.partition("=")[0]: override for override in overrides}
    named = chosen.get("model.name")
    if (
        named is None
        or chosen.keys() & {"experiment", "from"}
        or any(is_swept(chosen[key]) for key in ("model", "model.name") if key in chosen)
    ):
        return overrides
    from swe_infer.presets import newest_rules, presets, vendor_of

    provider, option = (chosen.get(group, "").partition("=")[2] for group in ("provider", "model"))
    rules = newest_rules(text_value(named) or "", vendor_of(provider) if provider else None)
    former = presets().get(option)
    if rules is None or (option not in ("", "api") and (former is None or former.vendor != rules.vendor)):
        return overrides
    return [*(override for override in overrides if override != chosen.get("model")), f"model={rules.option}"]


def _may_start_from_run(overrides: Sequence[str]) -> bool:
    return any(override.startswith("from=") and override != "from=null" for override in overrides)


def _started_from_run(overrides: list[str], config_dir: Path | None) -> list[str]:
    """Adds the recorded configuration of the run that ``from`` names."""
    if (source := value_of("from", overrides)) is None:
        return overrides
    from swe_infer.cli.composer import composer
    from swe_infer.cli.from_run import expand_from
    from swe_infer.cli.recorded_run import read_recorded

    run = read_recorded(source)
    with composer(config_dir) as composing:
        return expand_from(run, overrides, composing)


def value_of(key: str, overrides: Sequence[str]) -> str | None:
    """The text of a key that may be given once; None if it is not given, or null.

    Raises:
        ConfigError: it is given twice.
    """
    found = [override for override in overrides if override.startswith(f"{key}=")]
    if len(found) > 1:
        raise ConfigError(f"{found[1]}: {key} is given twice")
    value = found[0].partition("=")[2] if found else "null"
    return None if value in ("", "null") else text_value(found[0]) or value


def _named_sweep(override: str) -> str:
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


def _points(overrides: Sequence[str], sweep: bool) -> Sequence[Point]:
    """The points of ``sweep.points``.

    Raises:
        ConfigError: the file is invalid, or there is no ``-m``.
    """
    path = value_of("sweep.points", overrides)
    if path is None:
        return ()
    if not sweep:
        raise ConfigError(f"sweep.points={path}: several points are a sweep, which needs -m")
    return read_points(path)


def _deployments(override: str) -> list[str]:
    """Expands ``provider=[a,b]`` to ``provider=deployments``. Returns any other override unchanged."""
    if not (override.startswith("provider=[") and override.endswith("]")):
        return [override]
    options = [option.strip() for option in override.removeprefix("provider=[").removesuffix("]").split(",")]
    if not all(options) or len(options) > len(PLACES) or any({"[", "]"} & set(option) for option in options):
        raise ConfigError(
            f"{override}: a list of providers must have one to {len(PLACES)} options of the group provider"
        )
    if len(options) == 1:
        return [f"provider={options[0]}"]
    return ["provider=deployments", *place_choices(dict(zip(PLACES, options, strict=False)))]


def sweep_directory(arguments: Sequence[str]) -> Path | None:
    """The sweep's directory, from the result of :func:`hydra_arguments`; None for a single run."""
    if not {"-m", "--multirun"} & set(arguments):
        return None
    named = [text_value(a) for a in arguments if a.startswith("hydra.sweep.dir=")]
    return Path(named[-1]) if named and named[-1] else None


def mirror_of_sweep(arguments: Sequence[str]) -> Mirror | None:
    """Writes the URL of a sweep's directory; None if it is a path, or if the arguments start no sweep.

    Args:
        arguments: the result of :func:`hydra_arguments`.
    """
    directory = sweep_directory(arguments)
    url = None if directory is None else displayed(directory)
    if url is None or not is_remote(url) or _SHOWS & {argument.partition("=")[0] for argument in arguments}:
        return None
    launcher = value_of("hydra/launcher", arguments)
    if launcher in _ELSEWHERE:
        raise ConfigError(
            f"output_dir={url}: the runs of hydra/launcher={launcher} may be on other machines, and this one uploads "
            "the sweep; choose a folder that they share"
        )
    from swe_infer.remote.mirror import INTERVAL_S, Mirror

    interval = value_of("upload_interval_s", arguments)
    try:
        seconds = INTERVAL_S if interval is None else float(interval)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_UPLOAD_INTERVAL_S:
        raise ConfigError(f"upload_interval_s={interval}: must be positive seconds, at most a day")
    return Mirror(url, "output_dir", seconds)


def _sweep_directory(overrides: Sequence[str], points: Sequence[Point]) -> str:
    plain = [text_value(o) for o in overrides if o.startswith("output_dir=")]
    if plain and plain[-1]:
        return plain[-1]
    if (name := value_of("sweep.name", overrides)) is not None:
        return str(_SWEEPS / name)
    asked = [o for o in overrides if _is_request(o)]
    chosen = ["\x1e".join((point.name, *point.overrides)) for point in points]
    named, former = (_digest_path([*parts, *chosen]) for parts in ([o for o in asked if _changes_identity(o)], asked))
    return str(former if former.is_dir() and not named.is_dir() else named)


def _digest_path(overrides: Sequence[str]) -> Path:
    digest = hashlib.blake2b(os.fsencode("\x1f".join(sorted(overrides))), digest_size=6).hexdigest()
    return _SWEEPS / digest


_NOT_REQUESTED = ("budget.", "locks=", "upload_interval_s=", "hydra.", "hydra/launcher", "tracker", "sweep.")


def _is_request(override: str) -> bool:
    """Whether an override is part of the digest by which earlier versions named a sweep: not budgets, trackers,
    launchers."""
    if override.startswith("hydra.sweeper.params."):
        return True
    return not override.lstrip("+").startswith(_NOT_REQUESTED)


def _changes_identity(override: str) -> bool:
    """Whether an override makes it another sweep: it is swept, or part of a run's identity. A sweep with a larger
    ``dataset.limit`` or another ``base_url`` keeps its ledger."""
    key = override.partition("=")[0].lstrip("+~")
    group = key.partition(".")[0]
    return group not in IDENTITY_GROUPS or is_identity(key) or is_swept(override)
