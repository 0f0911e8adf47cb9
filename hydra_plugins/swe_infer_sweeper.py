"""The default sweeper of swe_infer, as Hydra's documentation describes plug-ins.

Hydra instantiates sweepers from the namespace package ``hydra_plugins`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PointSweeper(Sweeper):
    """Launches every combination of the swept values and of the points of ``sweep.points``.

    Args:
        max_batch_size: jobs per launch; None: all.
        params: overrides that the command line may replace, such as ``{"decoding.temperature": "0,1"}``.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self._max_batch_size = max_batch_size
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before :meth:`sweep`."""
        self._loader = hydra_context.config_loader
        self._config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Composes every job, which finds mistakes before anything is paid for, and launches them."""
        from swe_infer.cli.sweep_points import exit_on_error, sweep_jobs

        parser = OverridesParser.create(config_loader=self._loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self._params.items()), *arguments])

        def compose(job: Sequence[str]) -> DictConfig:
            return self._loader.load_sweep_config(self._config, list(job))

        with exit_on_error():
            jobs = sweep_jobs(overrides, self._config.sweep.points, compose)
        for job in jobs:
            compose(job)
        size = self._max_batch_size or max(1, len(jobs))
        returned = []
        for start in range(0, len(jobs), size):
            results = self._launcher.launch(jobs[start : start + size], initial_job_idx=start)
            for result in results:
                _ = result.return_value  # raises the job's exception
            returned.append(results)
        return returned
