"""The default sweeper of swe_infer.

Hydra instantiates only sweepers of the namespace package ``hydra_plugins``, to which other distributions add modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class PointSweeper(Sweeper):
    """Launches the jobs of :func:`swe_infer.cli.sweeper.sweep_jobs`.

    Args:
        max_batch_size: jobs per launch; None: all.
        params: overrides that the command line may replace, such as ``{"decoding.temperature": "0,1"}``.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        self._max_batch_size = max_batch_size
        self._params = dict(params or {})

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra calls this once, before :meth:`sweep`."""
        from swe_infer.cli.config_loader import cached_context

        context = cached_context(hydra_context)
        self._loader = context.config_loader
        self._config = config
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Checks every job before the first is launched.

        Raises:
            ConfigError, HydraException: a job is invalid.
        """
        from swe_infer.cli.composer import JobComposer
        from swe_infer.cli.sweep_planner import announce_sweep
        from swe_infer.cli.sweeper import sweep_jobs

        parser = OverridesParser.create(config_loader=self._loader)
        overrides = parser.parse_overrides([*(f"{key}={value}" for key, value in self._params.items()), *arguments])
        jobs = sweep_jobs(overrides, self._config.sweep.points, JobComposer(self._loader, self._config))
        announce_sweep(self._config, jobs, lambda job: self._loader.load_sweep_config(self._config, list(job)))
        size = self._max_batch_size or max(1, len(jobs))
        returned = []
        for start in range(0, len(jobs), size):
            results = self._launcher.launch(jobs[start : start + size], initial_job_idx=start)
            for result in results:
                _ = result.return_value  # raises the job's exception
            returned.append(results)
        return returned
