"""The jobs of a sweep: every combination of the swept values and of the points of ``sweep.points``.

If a sweep varies a group, such as ``model=tiny,gpt-4o``, a key that only some of its options have applies to the jobs
with those options: ``provider.max_concurrency=8`` to the models behind an API. A key that no job has is an error.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from swe_infer.cli.choices import is_key_of_group
from swe_infer.cli.points import POINT, read_points
from swe_infer.conf_files import suggestion
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.options import parameters_of

Compose = Callable[[Sequence[str]], DictConfig]
"""Composes the configuration of a job from its overrides."""


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Reports an error of the user in one line. Hydra would treat it as a fault of the sweeper."""
    try:
        yield
    except SweInferError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None


def sweep_jobs(overrides: Sequence[Override], points: str | None, compose: Compose) -> list[list[str]]:
    """The overrides of each job, in the order of the points, then of the swept values.

    Args:
        points: the file of ``sweep.points``.

    Raises:
        ConfigError: a key exists in no job, or a point is invalid.
        HydraException: an option does not exist, or a kind of sweep needs another sweeper.
    """
    by_key: dict[str, list[str]] = {}
    for override in overrides:
        by_key[_key(override.get_key_element())] = _choices(override)
    conditions = _Conditions(compose)
    jobs: dict[tuple[str, ...], None] = {}
    for point in read_points(points) if points else [None]:
        own = [] if point is None else [*point.overrides, f"{POINT}={point.name}"]
        for combination in itertools.product(*by_key.values()):
            last = {_key(one): one for one in (*combination, *own)}
            try:
                jobs[tuple(conditions.applicable(list(last.values())))] = None
            except HydraException as error:
                if point is None:
                    raise
                raise ConfigError(f"sweep.points={points}: point {point.name}: {_line(error)}") from None
        if point is not None and (unknown := conditions.unknown({_key(one) for one in own})):
            raise ConfigError(f"sweep.points={points}: point {point.name}: {unknown}")
    if unknown := conditions.unknown(by_key):
        raise ConfigError(unknown)
    return [list(job) for job in jobs]


def _line(error: HydraException) -> str:
    return " ".join(str(error).split())[:300]


def _choices(override: Override) -> list[str]:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"] if not override.is_delete() else [_deletion(override)]
    if not override.is_discrete_sweep():
        kind = getattr(override.value_type, "name", "")
        raise HydraException(f"{key}: {kind.lower()} needs a sweeper that searches, such as hydra/sweeper=optuna")
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _deletion(override: Override) -> str:
    value = override.get_value_element_as_str()
    return override.get_key_element() + (f"={value}" if value else "")


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


class _Conditions:
    """Decides which overrides apply to a job. Jobs with the same options are composed once."""

    def __init__(self, compose: Compose) -> None:
        self._compose = compose
        self._composed: dict[tuple[str, ...], DictConfig] = {}
        self._applied: set[str] = set()
        self._names: dict[str, set[str]] = {}

    def applicable(self, job: Sequence[str]) -> list[str]:
        """The overrides of a job without keys that its options do not have."""
        always = tuple(one for one in job if not is_key_of_group(_key(one)))
        if always not in self._composed:
            self._composed[always] = self._compose(always)
        kept = [one if one in always else self._written(one, self._composed[always]) for one in job]
        return [one for one in kept if one is not None]

    def _written(self, override: str, cfg: DictConfig) -> str | None:
        """The override as the job needs it; None if its options do not have the key."""
        key, _, value = override.partition("=")
        path = key.lstrip("+~")
        parent_path, _, name = path.rpartition(".")
        parent = OmegaConf.select(cfg, parent_path)
        if not isinstance(parent, DictConfig):
            return None
        names = {str(child) for child in parent if child != "_target_"} | _parameters(parent)
        self._names.setdefault(path, set()).update(names)
        if name not in names and not (key[0] == "+" and key[1] != "+" and parent_path.count(".")):
            return None
        self._applied.add(path)
        if name in parent and key.startswith("++") and not value.startswith("{"):
            return override.removeprefix("++")
        return override

    def unknown(self, keys: Any) -> str | None:
        """The message about the first key that exists in no job; None if there is none."""
        for key in keys:
            if is_key_of_group(key) and key not in self._applied:
                parent, _, name = key.rpartition(".")
                hint = suggestion(name, self._names.get(key, set()))
                return f"{key}: unknown key" + hint.replace("did you mean ", f"did you mean {parent}.")
        return None


def _parameters(node: DictConfig) -> set[str]:
    """The parameters of a node's class."""
    from hydra.utils import get_object

    target = node.get("_target_")
    if not isinstance(target, str):
        return set()
    try:
        return set(parameters_of(get_object(target)))
    except (ImportError, ValueError):
        return set()
