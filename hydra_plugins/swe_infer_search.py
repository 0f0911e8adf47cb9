"""The sweeper of ``hydra/sweeper=optuna`` and ``halving``. Hydra finds plug-ins in this namespace package alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Chooses the points of a sweep by the results of those before, see :mod:`swe_infer.cli.search`.

    Its options are described in ``conf/hydra/sweeper/optuna.yaml``.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra once, before :meth:`sweep`."""
        from swe_infer.cli.config_loader import cached_context

        context = cached_context(hydra_context)
        self._loader = context.config_loader
        self._config = config
        self._launched = 0
        self._launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the search."""
        from swe_infer.cli.search import run_search

        run_search(self._config, arguments, self._launch, self._compose, **self._options)

    def _compose(self, job: Sequence[str]) -> DictConfig:
        return self._loader.load_sweep_config(self._config, list(job))

    def _launch(self, jobs: Sequence[Sequence[str]]) -> list[Any]:
        returned = self._launcher.launch(jobs, initial_job_idx=self._launched)
        self._launched += len(jobs)
        return [job.return_value for job in returned]
