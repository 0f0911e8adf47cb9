"""Searches (``hydra/sweeper=optuna``): the objective of a job, and how the same command resumes a study.

The study is not stored but rebuilt from ``runs.jsonl``, which has every job with its objective. A job that failed or
was interrupted is tried again.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from omegaconf import DictConfig, flag_override

from swe_infer.cli.choices import swept_keys
from swe_infer.cli.sweep_jobs import SweepJob, read_objectives, write_objectives
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.config import objectives
from swe_infer.errors import ConfigError
from swe_infer.run_directory.figures import Direction, figure, why_absent
from swe_infer.run_directory.objective import Objective
from swe_infer.run_directory.reader import RunDirectory

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution
    from optuna.storages import InMemoryStorage

STUDY = "swe-infer"


def objective_values(run: Path, objectives: Sequence[Objective]) -> list[float]:
    """The values of ``objectives`` in a run's summary.

    Raises:
        ConfigError: a figure is absent, such as the cost if a price is unknown.
    """
    summary = RunDirectory(run).summary()
    values = []
    for name in (objective.name for objective in objectives):
        if (value := figure(summary, name)) is None:
            raise ConfigError(f"objective={name}: {run} does not have this figure ({why_absent(summary, name)})")
        values.append(value)
    return values


def is_search(hydra: Any) -> bool:
    """Whether the sweep chooses each job by the objectives of those before."""
    return str(hydra.sweeper.get("_target_")).startswith("hydra_plugins.hydra_optuna_sweeper.")


def resume_study(config: DictConfig, jobs: Sequence[SweepJob]) -> None:
    """Reduces ``hydra.sweeper.n_trials`` of a composed configuration by the finished jobs.

    A null direction becomes that of the objectives. The seed advances with the jobs: the same seed would propose the
    first ones again.

    Raises:
        ConfigError: the objectives are invalid, or contradict the sweeper's direction.
    """
    sweeper = config.hydra.sweeper
    chosen = _directed(config)
    directory = Path(config.hydra.sweep.dir)
    if list(read_objectives(directory)) != chosen:
        SweepLog(directory).write_jobs(_rescored(job, chosen) for job in jobs)
    write_objectives(directory, chosen)
    finished = sum(1 for job in jobs if job.status == 0)
    with flag_override(config, ["readonly", "struct"], False), flag_override(sweeper, ["readonly"], False):
        sweeper.n_trials = max(0, sweeper.n_trials - finished)
        sweeper.direction = [objective.direction for objective in chosen]
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += len(jobs)


_DECIDES_EVALUATION = frozenset({"dataset", "dataset.run_tests", "evaluation", "experiment"})
"""Keys that change the default objective."""


def _directed(config: DictConfig) -> list[Objective]:
    """The objectives of a search, each with a direction."""
    if config.objective is None and (swept := _DECIDES_EVALUATION & set(swept_keys(config))):
        raise ConfigError(
            f"objective: name a figure, because the default may differ between the points of {min(swept)}"
        )
    found, wanted = objectives(config), config.hydra.sweeper.direction
    if wanted is None:
        directions: list[str | None] = [None] * len(found)
    else:
        directions = [str(one) for one in ([wanted] if isinstance(wanted, str) else wanted)]
    if len(directions) != len(found):
        raise ConfigError(f"hydra.sweeper.direction={wanted}: must have one direction for each objective, or be null")
    return [_agreed(objective, direction) for objective, direction in zip(found, directions, strict=True)]


def _rescored(job: SweepJob, objectives: Sequence[Objective]) -> SweepJob:
    """A job of an earlier launch with the values of this launch's objectives."""
    try:
        values = objective_values(Path(job.run), objectives) if job.run and job.status == 0 else None
    except ConfigError as error:
        return replace(job, objective=None, error=str(error))
    return replace(job, objective=values)


def _agreed(objective: Objective, direction: str | None) -> Objective:
    if direction is None:
        if objective.direction is None:
            name = objective.name
            raise ConfigError(f"objective={name}: has no natural direction; write {name}:max or {name}:min")
        return objective
    if direction not in get_args(Direction):
        raise ConfigError(f"hydra.sweeper.direction={direction}: must be minimize or maximize")
    if objective.direction not in (None, direction):
        raise ConfigError(
            f"hydra.sweeper.direction={direction}: contradicts objective={objective}; leave it null, or write "
            f"objective={objective.name}:{direction[:3]}"
        )
    return Objective(objective.name, cast(Direction, direction))


def study_storage(
    directory: str, overrides: Sequence[str], params: Mapping[str, Any] | None, direction: str | Sequence[str]
) -> InMemoryStorage:
    """Optuna's storage with a study of the jobs that the sweep in ``directory`` has run so far.

    Args:
        overrides: the sweep's overrides, such as ``decoding.temperature=interval(0,1)``: the search space.
        params: the sweeper's ``params``; an override takes precedence.
        direction: ``maximize`` or ``minimize``, for each objective.
    """
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    for name in ("ExperimentalWarning", "FutureWarning"):
        category = getattr(optuna.exceptions, name, None) or FutureWarning
        warnings.filterwarnings("ignore", category=category, module="optuna|swe_infer")
    storage = optuna.storages.InMemoryStorage()
    directions = [direction] if isinstance(direction, str) else list(direction)
    study = optuna.create_study(storage=storage, study_name=STUDY, directions=directions)
    space = _search_space([f"{key}={value}" for key, value in (params or {}).items()] + list(overrides))
    for job in SweepLog(Path(directory)).jobs():
        params_of_job = _trial_params(job, space)
        if len(params_of_job) < len(space):
            continue  # of another search space
        if job.status == 0 and job.objective is not None and len(job.objective) == len(directions):
            trial = optuna.trial.create_trial(params=params_of_job, distributions=space, values=job.objective)
            study.add_trial(trial)
        elif job.status != 0:
            study.enqueue_trial(params_of_job)
    return storage


def grid_sampler() -> functools.partial[Any]:
    """A grid sampler for Optuna's plug-in for Hydra that can resume a study.

    Optuna's own stops the study after the last combination, which raises outside ``Study.optimize``; the plug-in
    handles that only if the last job succeeded, and counts the combinations itself. It also recognises tried
    combinations by a mark that those of an earlier process lack.
    """
    from optuna.samplers import BaseSampler, GridSampler

    class EqualToGrid(type(BaseSampler)):  # type: ignore[misc] # a metaclass
        """The plug-in recognises a grid by ``sampler.func == GridSampler``."""

        def __eq__(cls, other: object) -> bool:
            return other is GridSampler or other is cls

        __hash__ = type.__hash__

    class EndlessGrid(BaseSampler, metaclass=EqualToGrid):
        def __init__(self, search_space: Mapping[str, Sequence[Any]]) -> None:
            combinations = itertools.product(*search_space.values())
            self._points = [dict(zip(search_space, values, strict=True)) for values in combinations]
            self._chosen: dict[int, dict[str, Any]] = {}

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            if trial.number not in self._chosen:
                tried = [other.params for other in study.get_trials(deepcopy=False) if other.number != trial.number]
                untried = [point for point in self._points if point not in tried]
                self._chosen[trial.number] = random.choice(untried or self._points)
            return self._chosen[trial.number][param_name]

    return functools.partial(EndlessGrid)


def _search_space(overrides: list[str]) -> dict[str, BaseDistribution]:
    """The search space, as Optuna's plug-in builds it from the same overrides: the last sweep of a key counts, and a
    key that also has a single value is fixed."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = [(one.get_key_element(), one) for one in OverridesParser.create().parse_overrides(overrides)]
    fixed = {key for key, one in parsed if not one.is_sweep_override()}
    return {key: _distribution(one) for key, one in parsed if key not in fixed}


def _distribution(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Transformer
    from optuna import distributions as of

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        bounds: list[Any] = [value.start, value.end]
        if all(isinstance(bound, int) for bound in bounds):
            whole = of.IntLogUniformDistribution if "log" in value.tags else of.IntUniformDistribution
            return whole(*bounds)
        real = of.LogUniformDistribution if "log" in value.tags else of.UniformDistribution
        return real(*bounds)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers: list[Any] = [value.start, value.stop, value.step]
        if any(isinstance(number, float) for number in numbers):
            return of.DiscreteUniformDistribution(*numbers)
        return of.IntUniformDistribution(*map(int, numbers))
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return of.CategoricalDistribution(choices)


def _trial_params(job: SweepJob, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """The job's values of the search space, without those outside of it."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import create_trial

    values: dict[str, Any] = {}
    for name, _, text in (override.partition("=") for override in job.overrides):
        distribution = space.get(name)
        if isinstance(distribution, CategoricalDistribution):
            values.update((name, choice) for choice in distribution.choices if str(choice) == text)
        elif distribution is not None:
            number = float(text)
            value = int(number) if isinstance(distribution.low, int) else number  # type: ignore[attr-defined] # of all but the categorical ones
            try:
                create_trial(params={name: value}, distributions={name: distribution}, value=0.0)
            except ValueError:
                continue
            values[name] = value
    return values
