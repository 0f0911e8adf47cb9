"""A search over the points of a sweep with Optuna, and successive halving over the number of instances.

A search asks Optuna for points, runs each as a job, and reports the job's objective. With ``instances=[20,60,null]``
all points answer the first 20 instances, the best third of them continues with 60, and the best third of those with
all. A run grows in its own directory, so an answer is paid for once. Successive halving: Jamieson and Talwalkar,
"Non-stochastic Best Arm Identification and Hyperparameter Optimization" (2016).

Nothing of a study is stored: the same command rebuilds it from ``runs.jsonl``.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from swe_infer.cli.study import directed_objectives, rescored
from swe_infer.cli.sweep_jobs import SearchPlan, SweepJob
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_planner import Compose, announce_search, announce_sweep
from swe_infer.errors import ConfigError
from swe_infer.files import write_atomically
from swe_infer.interrupts import INTERRUPTS
from swe_infer.run_directory.objective import Objective

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import Trial

Launch = Callable[[Sequence[Sequence[str]]], Sequence[Any]]
"""Runs jobs, each given by its overrides. Returns the objective of each: a number, a list of numbers, or None if the
job failed."""

Values = list[float]
LIMIT = "dataset.limit"
_TRIALS = 20
"""The number of points if neither ``n_trials`` nor a grid states it."""
_MOST_REPEATS = 200
"""Proposals in a row that were tried before, after which the search space counts as exhausted."""


class Grid:
    """The sampler of ``hydra/sweeper/sampler=grid``: every combination of choices and ranges, in their order."""


def run_search(
    config: DictConfig, arguments: Sequence[str], launch: Launch, compose: Compose, **options: Any
) -> None:
    """Runs the search of a composed sweep.

    Args:
        arguments: the sweep's overrides, swept and single ones.
        options: of the sweeper, see ``conf/hydra/sweeper/optuna.yaml``.

    Raises:
        ConfigError: an option, an objective or the search space is invalid.
    """
    Search(config, arguments, launch, compose, SearchOptions(**options)).run()


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """The options of the sweeper.

    Args:
        sampler: the configuration of the sampler.
        n_trials: points in total; None: all of a grid, otherwise 20.
        n_jobs: points that are launched together.
        direction: of each objective; None: as the objective states.
        params: overrides that those of the command line replace.
        instances: the number of instances of each step of successive halving, increasing; None stands for all.
        reduction: one of this many points continues with the next number of instances.

    Raises:
        ConfigError: a value is invalid.
    """

    sampler: Mapping[str, Any]
    n_trials: int | None = None
    n_jobs: int = 1
    direction: Any = None
    params: Mapping[str, Any] | None = None
    instances: Sequence[int | None] | None = None
    reduction: int = 3

    def __post_init__(self) -> None:
        _check_whole("n_trials", self.n_trials, least=1, optional=True)
        _check_whole("n_jobs", self.n_jobs, least=1)
        _check_whole("reduction", self.reduction, least=2)
        steps = self.instances
        if steps is None:
            return
        if not OmegaConf.is_list(steps) and not isinstance(steps, list | tuple):
            raise ConfigError(f"hydra.sweeper.instances={steps}: must be a list, such as [20,60,null]")
        for step in steps:
            _check_whole("instances", step, least=1, optional=True)
        sizes = [math.inf if step is None else step for step in steps]
        if len(sizes) < 2 or sorted(set(sizes)) != sizes:
            raise ConfigError(f"hydra.sweeper.instances={list(steps)}: must increase, such as [20,60,null]")


def _check_whole(name: str, value: Any, *, least: int, optional: bool = False) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"hydra.sweeper.{name}={value}: must be a whole number, at least {least}")


class Search:
    """One launch of a search.

    Raises:
        ConfigError: an option, an objective or the search space is invalid.
    """

    def __init__(
        self,
        config: DictConfig,
        arguments: Sequence[str],
        launch: Launch,
        compose: Compose,
        options: SearchOptions,
    ) -> None:
        self._config, self._options, self._run_jobs, self._compose = config, options, launch, compose
        self._log = SweepLog(Path(config.hydra.sweep.dir))
        self._objectives = directed_objectives(config, options.direction)
        self._steps = _steps(options.instances, config.dataset.get("limit"))
        if self._steps and len(self._objectives) > 1:
            raise ConfigError("hydra.sweeper.instances: successive halving ranks the points by one objective")
        params = [f"{key}={value}" for key, value in (options.params or {}).items()]
        self._space, fixed = search_space([*params, *arguments])
        if not self._space:
            raise ConfigError("a search needs a key with several values, such as decoding.temperature=interval(0,1)")
        self._fixed = [text for key, text in fixed.items() if not (self._steps and key == LIMIT)]
        jobs = self._earlier_jobs()
        self._known = {job.overrides: job.objective for job in jobs if job.status == 0 and _is_scored(job)}
        self._study = _study(self._objectives, _sampler(options.sampler, len(jobs)))
        earlier = [point for job in jobs if (point := point_of(job.overrides, self._space)) is not None]
        self._grid = _grid(self._space)[: options.n_trials] if _is_grid(options.sampler) else []
        self._wanted = len(self._grid) or options.n_trials or _TRIALS
        self._asked: set[tuple[str, ...]] = set()
        self._jobs: list[tuple[str, ...]] = []
        # Earlier points come first, so that those that failed are tried again.
        for point in {tuple(point.items()): point for point in (*earlier, *self._grid)}.values():
            self._study.enqueue_trial(point)

    def run(self) -> None:
        """Runs jobs until the search is finished or interrupted, and writes its results."""
        try:
            if self._steps:
                self._halve()
            else:
                self._optimize()
        except _InterruptedError:
            return
        self._write_results()

    def _earlier_jobs(self) -> list[SweepJob]:
        """The jobs of earlier launches, with the values of this launch's objectives."""
        plan, jobs = SearchPlan(tuple(map(str, self._objectives)), self._steps), self._log.jobs()
        before = SearchPlan.read(self._log.directory)
        if before is not None and before.objectives != plan.objectives:
            # A run that has grown no longer has the figures of fewer instances: its step runs again, at no cost.
            jobs = [replace(job, objective=None) if self._steps else rescored(job, self._objectives) for job in jobs]
            self._log.write_jobs(jobs)
        plan.write(self._log.directory)
        return jobs

    def _optimize(self) -> None:
        """Asks for ``n_jobs`` points at a time, each chosen by the results before."""
        if self._grid:
            self._announce([self._overrides(point, None) for point in self._grid])
        else:
            announce_search(self._config, self._wanted)
        missing = self._wanted
        while missing > 0 and (trials := self._ask(min(self._options.n_jobs, missing))):
            missing -= len(trials)
            for trial, values in zip(trials, self._objective_values(trials, None), strict=True):
                self._tell(trial, values)

    def _halve(self) -> None:
        """Successive halving: every point on the first number of instances, the best of them on the next."""
        trials, last = self._ask(self._wanted), len(self._steps) - 1
        for index, step in enumerate(self._steps):
            self._announce([self._overrides(trial.params, step) for trial in trials], f"step {index + 1}")
            scored = []
            for trial, values in zip(trials, self._objective_values(trials, step), strict=True):
                if values is None:
                    self._tell(trial, None)
                    continue
                trial.report(values[0], step=index)
                scored.append((trial, values))
            ranked = sorted(scored, key=lambda one: self._sign * one[1][0])
            kept = ranked if index == last else ranked[: math.ceil(len(ranked) / self._options.reduction)]
            for trial, values in ranked if index == last else ranked[len(kept) :]:
                self._tell(trial, values, stopped_early=index != last)
            trials = [trial for trial in trials if any(trial is one for one, _ in kept)]
            if index != last and trials:
                print(self._progress(index, len(scored), len(trials)), file=sys.stderr, flush=True)

    def _announce(self, jobs: Sequence[tuple[str, ...]], label: str = "sweep") -> None:
        """Prints what the jobs that did not run before may cost. They are numbered after the launched ones."""
        self._jobs += [job for job in jobs if job not in self._known]
        announce_sweep(self._config, self._jobs, self._compose, label)

    @property
    def _sign(self) -> int:
        """Orders values from the best to the worst."""
        return 1 if self._objectives[0].direction == "minimize" else -1

    def _progress(self, index: int, before: int, after: int) -> str:
        following = "all" if (step := self._steps[index + 1]) is None else step
        return (
            f"halving: {before} points on {self._steps[index]} instances; {after} of them continue with {following}"
        )

    def _ask(self, count: int) -> list[Trial]:
        """Asks for up to ``count`` points that were not asked for before; fewer if the search space has no more."""
        found: list[Trial] = []
        repeats = 0
        while len(found) < count and repeats < _MOST_REPEATS:
            trial = self._study.ask(fixed_distributions=dict(self._space))
            overrides = self._overrides(trial.params, None)
            if overrides in self._asked:
                repeats += 1
                self._tell(trial, None)
                continue
            self._asked.add(overrides)
            found.append(trial)
            repeats = 0
        return found

    def _overrides(self, params: Mapping[str, Any], step: int | None) -> tuple[str, ...]:
        """The job of a point. With successive halving it states its number of instances."""
        point = [f"{name}={params[name]}" for name in self._space]
        limit = [f"{LIMIT}={'null' if step is None else step}"] if self._steps else []
        return (*point, *self._fixed, *limit)

    def _objective_values(self, trials: Sequence[Trial], step: int | None) -> list[Values | None]:
        """Runs the jobs of ``trials`` that did not run before.

        Returns:
            The values of each; None if its job failed.
        """
        jobs = [self._overrides(trial.params, step) for trial in trials]
        missing = [job for job in jobs if job not in self._known]
        for start in range(0, len(missing), self._options.n_jobs):
            batch = missing[start : start + self._options.n_jobs]
            returned = self._run_jobs(batch)
            if INTERRUPTS.stopping or self._log.is_stopped:
                raise _InterruptedError
            self._known.update(zip(batch, map(_values, returned), strict=True))
        return [self._known[job] for job in jobs]

    def _tell(self, trial: Trial, values: Values | None, *, stopped_early: bool = False) -> None:
        from optuna.trial import TrialState

        if values is None or len(values) != len(self._objectives):
            self._study.tell(trial, state=TrialState.FAIL)
        elif stopped_early:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, values)

    def _write_results(self) -> None:
        """Writes ``optimization_results.yaml``, in the form of Hydra's own sweepers."""
        best = self._study.best_trials
        results: dict[str, Any] = {"name": "optuna"}
        if best and len(self._objectives) == 1:
            results |= {"best_params": best[0].params, "best_value": best[0].value}
        elif best:
            results["solutions"] = [{"params": one.params, "values": list(one.values)} for one in best]
        write_atomically(self._log.directory / "optimization_results.yaml", OmegaConf.to_yaml(results))


class _InterruptedError(Exception):
    """The sweep was interrupted."""


def _is_scored(job: SweepJob) -> bool:
    """Whether a finished job's objective is known, or known to be absent."""
    return job.objective is not None or job.error is not None


def _values(returned: Any) -> Values | None:
    if returned is None:
        return None
    return list(returned) if isinstance(returned, list | tuple) else [returned]


def _steps(instances: Sequence[int | None] | None, limit: int | None) -> tuple[int | None, ...]:
    """The numbers of instances of successive halving, within the user's own ``dataset.limit``; empty without it."""
    if instances is None:
        return ()
    most = math.inf if limit is None else limit
    return (*(step for step in instances if step is not None and step < most), limit)


def _is_grid(sampler: Mapping[str, Any]) -> bool:
    return sampler.get("_target_") == f"{Grid.__module__}.{Grid.__name__}"


def _sampler(options: Mapping[str, Any], jobs: int) -> BaseSampler | None:
    """Creates the sampler. Its seed advances with the jobs: the same seed would propose the first points again."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    if _is_grid(options):
        return None
    seed = options.get("seed")
    try:
        sampler: BaseSampler = instantiate(options, **({} if seed is None else {"seed": seed + jobs}))
    except (InstantiationException, TypeError) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"hydra.sweeper.sampler: {' '.join(str(cause).split())}") from None
    return sampler


def _study(objectives: Sequence[Objective], sampler: BaseSampler | None) -> Study:
    import optuna

    optuna.logging.set_verbosity(logging.ERROR)
    directions = [objective.direction or "maximize" for objective in objectives]
    return optuna.create_study(study_name="swe-infer", directions=directions, sampler=sampler)


def search_space(overrides: Sequence[str]) -> tuple[dict[str, BaseDistribution], dict[str, str]]:
    """The distributions of the swept keys, and the overrides with a single value by their keys.

    The last override of a key counts, but a single value takes precedence over a sweep.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = [(one.get_key_element(), one) for one in OverridesParser.create().parse_overrides(list(overrides))]
    fixed = {key: str(one.input_line) for key, one in parsed if not one.is_sweep_override()}
    return {key: _distribution(one) for key, one in parsed if key not in fixed}, fixed


def _distribution(override: Override) -> BaseDistribution:
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep, Transformer
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        bounds: list[Any] = [value.start, value.end]
        of: Any = IntDistribution if all(isinstance(bound, int) for bound in bounds) else FloatDistribution
        return cast("BaseDistribution", of(*bounds, log="log" in value.tags))
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers: list[Any] = list(value.range())
        of = IntDistribution if all(isinstance(number, int) for number in numbers) else FloatDistribution
        if len(numbers) > 1 and value.step > 0:
            return cast("BaseDistribution", of(numbers[0], numbers[-1], step=value.step))
    choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
    return CategoricalDistribution(choices)


def _grid(space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Every combination of a search space.

    Raises:
        ConfigError: a key has infinitely many values.
    """
    values = [_values_of(name, distribution) for name, distribution in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*values)]


def _values_of(name: str, distribution: BaseDistribution) -> Sequence[Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        count = round((distribution.high - distribution.low) / distribution.step) + 1
        return [distribution.low + index * distribution.step for index in range(count)]
    raise ConfigError(
        f"{name}: an interval has no finite number of values for a grid; write choices or a range, or choose "
        "hydra/sweeper/sampler=random"
    )


def point_of(overrides: Sequence[str], space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """A job's values of the search space; None if the job is of another space."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import create_trial

    values: dict[str, Any] = {}
    for name, _, text in (override.partition("=") for override in overrides):
        distribution = space.get(name)
        if isinstance(distribution, CategoricalDistribution):
            values.update((name, choice) for choice in distribution.choices if str(choice) == text)
        elif distribution is not None:
            value = int(text) if isinstance(distribution.low, int) else float(text)  # type: ignore[attr-defined] # of both
            try:
                create_trial(params={name: value}, distributions={name: distribution}, value=0.0)
            except ValueError:
                return None
            values[name] = value
    return {name: values[name] for name in space} if len(values) == len(space) else None
