"""The objectives of a search (``hydra/sweeper=optuna``), and their values in a finished job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

from omegaconf import DictConfig

from swe_infer.cli.choices import swept_keys
from swe_infer.cli.sweep_jobs import SweepJob
from swe_infer.config import objectives
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.run_directory.figures import Direction, figure, infrastructure_share, why_absent
from swe_infer.run_directory.objective import Objective
from swe_infer.run_directory.reader import RunDirectory

_MAX_INFRASTRUCTURE_SHARE = 0.05
"""A point with a larger share of infrastructure failures fails, so that a search does not learn from an outage."""


class PointFailed(SweInferError):
    """A point of a search has too few answers for an objective."""


def objective_values(run: Path, objectives: Sequence[Objective]) -> list[float]:
    """The values of ``objectives`` in a run's summary.

    Raises:
        ConfigError: a figure is absent, such as the cost if a price is unknown.
        PointFailed: infrastructure failed too many samples, or the run is not finished.
    """
    summary = RunDirectory(run).summary()
    if summary.get("remaining"):
        raise PointFailed(f"{run}: {summary['remaining']:,} samples remain")
    if (share := infrastructure_share(summary)) > _MAX_INFRASTRUCTURE_SHARE:
        raise PointFailed(
            f"{run}: infrastructure failures on {share:.1%} of the samples, more than the "
            f"{_MAX_INFRASTRUCTURE_SHARE:.0%} that a search accepts"
        )
    values = []
    for name in (objective.name for objective in objectives):
        if (value := figure(summary, name)) is None:
            raise ConfigError(f"objective={name}: {run} does not have this figure ({why_absent(summary, name)})")
        values.append(value)
    return values


def is_search(hydra: Any) -> bool:
    """Whether the sweep chooses each job by the objectives of those before."""
    return str(hydra.sweeper.get("_target_")).startswith("hydra_plugins.swe_infer_search.")


_DECIDES_EVALUATION = frozenset({"dataset", "dataset.run_tests", "evaluation", "experiment"})
"""Keys that change the default objective."""


def directed_objectives(config: DictConfig, wanted: Any) -> list[Objective]:
    """The objectives of a search, each with a direction.

    Args:
        wanted: the sweeper's own direction, or one for each objective; None: those of the objectives.

    Raises:
        ConfigError: the objectives are invalid, or contradict the sweeper's direction.
    """
    if config.objective is None and (swept := _DECIDES_EVALUATION & set(swept_keys(config))):
        raise ConfigError(
            f"objective: name a figure, because the default may differ between the points of {min(swept)}"
        )
    found = objectives(config)
    if wanted is None:
        directions: list[str | None] = [None] * len(found)
    else:
        directions = [str(one) for one in ([wanted] if isinstance(wanted, str) else wanted)]
    if len(directions) != len(found):
        raise ConfigError(f"hydra.sweeper.direction={wanted}: must have one direction for each objective, or be null")
    return [_agreed(objective, direction) for objective, direction in zip(found, directions, strict=True)]


def rescored(job: SweepJob, objectives: Sequence[Objective]) -> SweepJob:
    """A job of an earlier launch with the values of this launch's objectives."""
    try:
        values = objective_values(Path(job.run), objectives) if job.run and job.status == 0 else None
    except PointFailed as error:
        return replace(job, objective=None, error=str(error), status=error.exit_status)
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
