"""One run, from its configuration to its end: built, opened, executed, its closing table printed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from swe_infer import config
from swe_infer.cli.same_answers import Place, claim, read_config, turn
from swe_infer.cli.sweep_jobs import swept_keys
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.tables import print_estimate, print_summary
from swe_infer.cli.wandb_agent import AgentRun
from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.resources import expanded
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.runners.base import ProcessResources, RunContext
from swe_infer.tracking.base import RunInfo

if TYPE_CHECKING:
    from swe_infer.runners.run import PromptSource, Run


def run_one(cfg: DictConfig, sweep: SweepLog | None, resources: ProcessResources) -> tuple[Path | None, int]:
    """Build and execute one run; returns its directory (None for a dry run) and exit status.

    Raises:
        ConfigError: before anything is loaded or paid for.
    """
    with INTERRUPTS.stoppable():
        built = PreparedRun(cfg, sweep)
    return built.execute(resources)


class PreparedRun:
    """A run whose configuration is checked; nothing is opened, loaded or paid for yet.

    Raises:
        ConfigError: names the first key that is wrong and what would be right.
    """

    def __init__(self, cfg: DictConfig, sweep: SweepLog | None) -> None:
        self.experiment = config.build(cfg)
        self._sweep = sweep
        self._agent = AgentRun.of(os.environ) if sweep is None else None
        self._plain = config.with_rules(config.resolved(cfg), self.experiment)
        self.experiment.runner.check(dry_run=self.experiment.dry_run)
        swept = swept_keys(sweep.directory) if sweep is not None else ()
        named = partial(config.run_name, self._plain, self.experiment.runner.label, self.experiment.dataset.name)
        self._name = named(config.job_name_parts(self._plain, swept, sweep.overrides if sweep is not None else ()))
        self._place = self._placed(named(), swept)
        self._has_siblings = "output_dir" in swept or not all(config.in_digest(key, self._plain) for key in swept)
        self.identity = config.digest(self._plain)
        self.directory = self._place.directory

    def _placed(self, base: str, swept: Sequence[str]) -> Place:
        """Where the run is kept. Points of a sweep that share one ``output_dir`` get a folder each within it."""
        if self.experiment.output_dir is None:
            return Place.named(Path("outputs"), base, self._name, self._plain)
        directory = expanded(self.experiment.output_dir, "output_dir")
        if self._sweep is not None and (self._sweep.directory == directory or set(swept) > {"output_dir"}):
            return Place.named(directory, base, self._name, self._plain)
        return Place(directory)

    def execute(self, resources: ProcessResources) -> tuple[Path | None, int]:
        """The run by itself; returns its directory (None for a dry run) and exit status."""
        if self.experiment.dry_run:
            with INTERRUPTS.stoppable():
                self._estimate()
            return None, 0
        with self.open(resources) as opened:
            status = opened.run.execute()
            opened.print_summary()
        return self.directory, status

    def _estimate(self) -> None:
        from swe_infer.runners.run import estimate_remaining, select_instances

        experiment = self.experiment
        with ExitStack() as stack:
            prompts = self._prompts(stack)
            selection = select_instances(experiment.runner, experiment.dataset, experiment.shard, prompts)
            before = _coverage_before(read_config(self.directory))
            shared = self._place.answered(self._plain, self._sweep)
            found = estimate_remaining(experiment.runner, selection, self.directory, before, shared)
        print_estimate(found, f"dry run of {self.directory}")
        if self._sweep is not None:
            self._sweep.add_estimate(found)

    def _prompts(self, stack: ExitStack) -> PromptSource:
        """How prompts are made; ``stack`` closes the repositories."""
        from swe_infer.runners.run import PromptSource

        context, repositories = self.experiment.context, None
        if context.repository_options is not None:
            from swe_infer.repositories import Repositories

            repositories = stack.enter_context(Repositories(context.repository_options))
        return PromptSource(context, self.experiment.prompt, repositories)

    def open(self, resources: ProcessResources) -> RunSession:
        """Hold the run directory.

        Raises:
            DataError: the dataset cannot be read.
            StoreError: the directory is another process's, or another configuration's.
        """
        # Only now: a mistake in the configuration is found without them.
        from swe_infer.evaluate.command import kept_figures, own_tests_of
        from swe_infer.run_directory.store import RunStore
        from swe_infer.runners.run import Run, coverage_of, select_instances

        experiment, plain = self.experiment, self._plain
        with ExitStack() as stack, INTERRUPTS.stoppable():
            prompts = self._prompts(stack)
            selection = select_instances(experiment.runner, experiment.dataset, experiment.shard, prompts)
            if self._sweep is not None and self._has_siblings:
                stack.enter_context(turn(self._sweep, plain, self.directory))
            store = stack.enter_context(RunStore(self.directory, experiment.runner.label, experiment.locks))
            if store.resumed and _is_former(self.directory) and (moved := selection.moved()):
                raise StoreError(
                    f"output_dir={self.directory}: was divided into shards by an earlier version, which gave {moved} "
                    "instances to other shards; finish it with that version, or choose another output_dir"
                )
            before = _coverage_before(claim(self.directory, plain))
            store.set_coverage(coverage_of(selection), before)
            run_id = config.run_id_of(self.directory, plain)
            info = RunInfo(
                run_id=self._agent.run_id if self._agent else run_id,
                name=self._name,
                config=plain,
                directory=self.directory.resolve(),
                resumed=store.resumed,
                group=None if experiment.shard.index is None else config.unsharded_name(self._name, plain),
            )
            shared = self.directory.resolve().parent if self._sweep is None else self._sweep.directory.resolve()
            context = RunContext(
                directory=info.directory,
                run_id=run_id,
                spent_usd=store.totals.cost_usd or Decimal(0),
                sweep_ledger=self._agent.ledger if self._agent else shared / "sweep_ledger.sqlite",
                resources=resources,
                shards=experiment.shard.count,
                is_recorded=lambda key: store.totals.status(key) == "completed",
            )
            experiment.runner.bind(context)
            run = Run(
                experiment.runner,
                selection,
                store,
                experiment.tracker,
                info,
                always_track=self._agent is not None,
                evaluate=partial(own_tests_of, self.directory, unsafe=experiment.dataset.run_tests == "unsafe")
                if experiment.dataset.run_tests
                else None,
                earlier_verdicts=partial(kept_figures, self.directory),
                shared=self._place.answered(plain, self._sweep),
                over_budget=context.over_budget,
                edit_format=experiment.prompt.edit_format,
            )
            return RunSession(run, stack.pop_all())


@dataclass(frozen=True, slots=True)
class RunSession:
    """A run that holds its directory until it is left."""

    run: Run
    _held: ExitStack

    def __enter__(self) -> RunSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def print_summary(self) -> None:
        """The closing table."""
        print_summary(self.run.summary(), self.run.store.directory, self.run.tracker.address)


def _coverage_before(plain: Mapping[str, Any] | None) -> Coverage:
    """What the last command asked, by the configuration that it left; needed where an earlier version ran it."""
    covered = config.coverage(plain or {})
    return Coverage(None, covered["dataset.min_tokens"], covered["dataset.max_tokens"], decided=True)


def _is_former(directory: Path) -> bool:
    """Whether an earlier version left the directory."""
    first = RunDirectory(directory).identity_line()
    return bool(first) and not first.startswith(config.HEADER)
