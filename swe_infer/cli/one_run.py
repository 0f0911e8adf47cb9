"""One run, from its configuration to its end: built, opened, executed, its closing table printed."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from swe_infer import config
from swe_infer.cli.sweep import SweepLog
from swe_infer.cli.tables import print_estimate, print_summary
from swe_infer.cli.wandb_agent import AgentRun
from swe_infer.errors import StoreError
from swe_infer.evaluate.command import own_tests_of
from swe_infer.llama.pool import EnginePool
from swe_infer.runners.base import RunContext
from swe_infer.runners.run import Run, estimated, selected
from swe_infer.store import RunStore, write_atomically
from swe_infer.tracking.base import RunInfo

__all__ = ["BuiltRun", "OpenRun", "run_one"]


def run_one(cfg: DictConfig, sweep: SweepLog | None, engines: EnginePool) -> tuple[Path | None, int]:
    """Build and execute one run; returns its directory (None for a dry run) and exit status.

    Raises:
        ConfigError: before anything is loaded or paid for.
    """
    return BuiltRun(cfg, sweep).execute(engines)


class BuiltRun:
    """A run whose configuration is checked; nothing is opened, loaded or paid for yet.

    Raises:
        ConfigError: names the first key that is wrong and what would be right.
    """

    def __init__(self, cfg: DictConfig, sweep: SweepLog | None) -> None:
        self.experiment = config.build(cfg)
        self._sweep = sweep
        self._agent = AgentRun.of(os.environ) if sweep is None else None
        self._plain = config.resolved(cfg)
        self.experiment.runner.check(dry_run=self.experiment.dry_run)
        self._name = config.run_name(self._plain, self.experiment.runner.label, self.experiment.dataset.name)
        self.directory = _directory(self.experiment.output_dir, self._name, sweep)

    def execute(self, engines: EnginePool) -> tuple[Path | None, int]:
        """The run by itself; returns its directory (None for a dry run) and exit status."""
        if self.experiment.dry_run:
            self._estimate()
            return None, 0
        with self.open(engines) as opened:
            status = opened.run.execute()
            opened.print_summary()
        return self.directory, status

    def _estimate(self) -> None:
        experiment = self.experiment
        selection = selected(experiment.runner, experiment.dataset, experiment.shard)
        found = estimated(experiment.runner, selection, self.directory)
        print_estimate(found, f"dry run of {self.directory}")
        if self._sweep is not None:
            self._sweep.add_estimate(found)

    def open(self, engines: EnginePool) -> OpenRun:
        """Hold the run directory.

        Raises:
            DataError: the dataset cannot be read.
            StoreError: the directory is another process's, or another configuration's.
        """
        experiment, plain = self.experiment, self._plain
        selection = selected(experiment.runner, experiment.dataset, experiment.shard)
        with ExitStack() as stack:
            store = stack.enter_context(RunStore(self.directory, experiment.runner.label))
            _claim(self.directory, plain)
            run_id = config.run_id_of(self.directory, plain)
            info = RunInfo(
                run_id=self._agent.run_id if self._agent else run_id,
                name=self._name,
                config=plain,
                directory=self.directory.resolve(),
                resumed=store.resumed,
                group=None if experiment.shard.index is None else config.whole_name(self._name, plain),
            )
            shared = self.directory.resolve().parent if self._sweep is None else self._sweep.directory.resolve()
            experiment.runner.begin(
                RunContext(
                    directory=info.directory,
                    run_id=run_id,
                    spent_usd=store.totals.cost_usd or Decimal(0),
                    sweep_ledger=self._agent.ledger if self._agent else shared / "sweep_ledger.sqlite",
                    engines=engines,
                    shards=experiment.shard.count,
                )
            )
            run = Run(
                experiment.runner,
                selection,
                store,
                experiment.tracker,
                info,
                announce=self._agent is not None,
                evaluate=partial(own_tests_of, self.directory) if experiment.dataset.run_tests else None,
            )
            return OpenRun(run, stack.pop_all())


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that holds its directory until it is left."""

    run: Run
    _held: ExitStack

    def __enter__(self) -> OpenRun:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def print_summary(self) -> None:
        """The closing table."""
        print_summary(self.run.summary(), self.run.store.directory, self.run.tracker.address)


def _directory(output_dir: str | None, name: str, sweep: SweepLog | None) -> Path:
    """The run directory. The points of a sweep that share one ``output_dir`` get a folder each within it."""
    if output_dir is None:
        return Path("outputs") / name
    directory = Path(output_dir).expanduser()
    return directory / name if sweep is not None and sweep.directory == directory else directory


def _claim(directory: Path, plain: dict[str, Any]) -> None:
    """Make sure that the directory is this configuration's, and write ``config.yaml`` where it is new."""
    path = directory / "config.yaml"
    if path.exists():
        before = OmegaConf.to_container(OmegaConf.load(path))
        changed = (
            config.differences({str(k): v for k, v in before.items()}, plain)
            if isinstance(before, dict)
            else ["config.yaml: unreadable"]
        )
        if changed:
            raise StoreError(
                f"output_dir={directory}: holds a run of another configuration ({'; '.join(changed[:3])}); "
                "choose another output_dir"
            )
    elif (directory / "records.jsonl").exists() and (directory / "records.jsonl").stat().st_size:
        raise StoreError(f"output_dir={directory}: holds records but no config.yaml; choose another output_dir")
    else:
        write_atomically(path, OmegaConf.to_yaml(OmegaConf.create(plain)))
