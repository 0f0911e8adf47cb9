"""One run from the command line: :class:`PreparedRun` checks the configuration, :class:`RunSession` executes it."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from swe_infer import config
from swe_infer.api.sweep_ledgers import SWEEP_LEDGER, agents_ledger
from swe_infer.cli.answer_sharing import RunLocation, claim_directory, has_identity, identity_lock, read_config
from swe_infer.cli.command_line import command_line
from swe_infer.cli.recorded_run import WANDB
from swe_infer.cli.sweep_jobs import membership, swept_keys
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_position import SweepPosition
from swe_infer.cli.tables import print_estimate, print_summary
from swe_infer.errors import ConfigError, StoreError, UploadIncomplete
from swe_infer.files import replacing
from swe_infer.harnesses import benchmark_of
from swe_infer.interrupts import INTERRUPTS
from swe_infer.redaction import without_credentials
from swe_infer.remote.paths import displayed, working_path
from swe_infer.remote.store import is_remote
from swe_infer.resources import state_home
from swe_infer.run_directory import layout
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.provenance import SweepMembership, describe, read_provenance, record_provenance
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.runners.base import ProcessResources, RunContext
from swe_infer.text import clean
from swe_infer.tracking.base import RunInfo
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.tracking.writer import SweepWriter

if TYPE_CHECKING:
    from swe_infer.data.select import Selection
    from swe_infer.runners.instances import PromptSource
    from swe_infer.runners.remainder import Remainder
    from swe_infer.runners.run import Run
    from swe_infer.types import Estimate

log = logging.getLogger(__name__)

_MOST_PREDICTIONS_BYTES = 1 << 30


def run_one(cfg: DictConfig, sweep: SweepLog | None, resources: ProcessResources) -> tuple[Path | None, int]:
    """Runs one configuration; returns the run directory (None for a dry run) and the exit status.

    Raises:
        ConfigError: before anything is loaded or paid for.
    """
    with INTERRUPTS.stoppable():
        prepared = PreparedRun(cfg, sweep)
    return prepared.execute(resources)


def prompt_source(experiment: config.Experiment, stack: ExitStack) -> PromptSource:
    """Creates the source of an experiment's prompts. ``stack`` closes the repositories."""
    from swe_infer.runners.instances import PromptSource

    context, repositories = experiment.context, None
    if context.repository_options is not None:
        from swe_infer.repositories import Repositories

        repositories = stack.enter_context(Repositories(context.repository_options))
    return PromptSource(context, experiment.prompt, repositories)


class PreparedRun:
    """A run whose configuration is checked; nothing is opened, loaded or paid for yet.

    Raises:
        ConfigError: names the first invalid key and what would be right.
    """

    def __init__(self, cfg: DictConfig, sweep: SweepLog | None) -> None:
        self.experiment = config.build(cfg)
        self._sweep = sweep
        self._agent = AgentRun.from_environment(os.environ) if sweep is None else None
        self._plain = config.with_rules(config.resolved(cfg), self.experiment)
        self.experiment.runner.check(dry_run=self.experiment.dry_run)
        swept = swept_keys(sweep.directory) if sweep is not None else ()
        named = partial(config.run_name, self._plain, self.experiment.runner.label, self.experiment.dataset.name)
        self._name = named(config.job_name_parts(self._plain, swept, sweep.overrides if sweep is not None else ()))
        self._location = self._locate(named(), swept)
        self._has_siblings = "output_dir" in swept or not all(config.in_digest(key, self._plain) for key in swept)
        self.identity = config.digest(self._plain)
        self.directory = self._location.directory

    def _locate(self, base: str, swept: Sequence[str]) -> RunLocation:
        """The location of the run. Jobs of a sweep that share one ``output_dir`` get a folder each within it. A run
        that starts from one of the same identity resumes that one."""
        started_from = self._started_from()
        if self.experiment.output_dir is None:
            if started_from is not None and self._sweep is None and has_identity(started_from, self._plain):
                return RunLocation(self._output_dir(str(self.experiment.started_from)))
            location = RunLocation.named(Path("outputs"), base, self._name, self._plain)
        else:
            directory = self._output_dir(self.experiment.output_dir)
            location = RunLocation(directory)
            if self._sweep is not None and (self._sweep.directory == directory or set(swept) > {"output_dir"}):
                location = RunLocation.named(directory, base, self._name, self._plain)
        if started_from is None:
            return location
        return RunLocation(location.directory, (*location.others, started_from))

    def _output_dir(self, place: str) -> Path:
        """The local path of ``output_dir``. A dry run reads a copy of a URL, and writes nothing there."""
        if is_remote(place) and self.experiment.dry_run and self._sweep is None:
            from swe_infer.remote.reading import NotFound, readable_path

            with suppress(NotFound):  # a new run
                return readable_path(place, "output_dir")
        return working_path(place, "output_dir")

    def _started_from(self) -> Path | None:
        """The run directory that ``from`` names. Its answers are reused if it has the same identity.

        Raises:
            ConfigError: a file sets ``from``: only the command line adds the recorded configuration.
        """
        source = self.experiment.started_from
        if source is None:
            return None
        overrides = HydraConfig.get().overrides.task if self._sweep is None else self._sweep.overrides
        if not any(override.startswith("from=") for override in overrides):
            raise ConfigError(f"from={source}: must be given on the command line, without +")
        from swe_infer.remote.reading import readable_path

        return None if source.startswith(WANDB) else readable_path(source, "from")

    @property
    def _url(self) -> str | None:
        """The URL of the run directory; None if it is a path. The sweep's own process writes a sweep's URL."""
        url = displayed(self.directory)
        if not is_remote(url) or (self._sweep is not None and self.directory.is_relative_to(self._sweep.directory)):
            return None
        return url

    def execute(self, resources: ProcessResources) -> tuple[Path | None, int]:
        """Executes the run alone; returns its directory (None for a dry run) and exit status."""
        if self.experiment.dry_run:
            with INTERRUPTS.stoppable():
                print_estimate(self.estimate(), f"dry run of {displayed(self.directory)}")
            return None, 0
        try:
            with self.open(resources) as session:
                status = session.run.execute()
                session.print_summary(prints_patches=self._sweep is None)
        except UploadIncomplete as error:
            print(f"error: {without_credentials(str(error))}", file=sys.stderr)
            status = status if INTERRUPTS.count else error.exit_status
        return self.directory, status

    def _run_info(self, run_id: str, selection: Selection, *, resumed: bool) -> RunInfo:
        """Records the run's provenance, and describes the run for the tracker."""
        folder = None if self._sweep is None else self._sweep.directory
        member = None if self._sweep is None else membership(self._sweep.directory, self._sweep.overrides)
        if member is None and (label := self.experiment.sweep.name) is not None:
            member = SweepMembership(label, "")
        entry = describe(command_line(folder), selection.rows.content_sha256(), selection.rows.revision)
        known = {one.get("dataset_sha256") for one in read_provenance(self.directory).commands} - {None}
        if resumed and known and entry["dataset_sha256"] not in (*known, None):
            log.warning(
                "the dataset has changed since this run began: its answers are kept; for new ones choose another "
                "output_dir"
            )
        provenance = record_provenance(self.directory, entry, member)
        sweep, further = provenance.sweep, [f"sweep={other.group}" for other in provenance.sweeps[1:]]
        plain = {**self._plain, "provenance": entry}
        info = RunInfo(run_id, self._name, plain, self.directory.resolve(), resumed)
        if sweep is not None:
            tags = (*sweep.tags, *further)  # W&B shows a run in one group alone
            info = replace(info, group=sweep.group or None, name=sweep.name or self._name, tags=tags)
        if self.experiment.shard.index is not None:
            whole = config.unsharded_name(self._name, self._plain)
            info = replace(info, group=whole, name=self._name, job_type="shard")
        return info

    def estimate(self) -> Estimate:
        """The tokens, cost and time of the samples without an answer. No request is sent."""
        from swe_infer.runners.instances import select_instances

        experiment = self.experiment
        with ExitStack() as stack:
            prompts = self.prompt_source(stack)
            selection = select_instances(experiment.runner, experiment.dataset, experiment.shard, prompts)
            rest = self.remainder(selection, self._sweep)
            if rest.damage:
                log.warning("%s: %s", self.directory, rest.damage)
            found = rest.estimate(experiment.runner)
            rest.warn()
        return found

    def remainder(self, selection: Selection, sweep: SweepLog | None) -> Remainder:
        """The samples of the run that have no answer yet. Reads the records, and writes no file."""
        from swe_infer.runners.remainder import Remainder
        from swe_infer.selection.judge import Judge

        experiment = self.experiment
        before, shared = self.earlier_answers(sweep)
        return Remainder(
            selection,
            experiment.runner.decoding,
            self.directory,
            before,
            shared,
            experiment.feedback,
            experiment.prompt.edit_format,
            judges=isinstance(experiment.selection, Judge),
        )

    def earlier_answers(self, sweep: SweepLog | None) -> tuple[Coverage, list[Path]]:
        """The coverage of the last command, and the other run directories whose answers this run reuses."""
        before = _previous_coverage(read_config(self.directory))
        return before, self._location.answer_sources(self._plain, sweep)

    def prompt_source(self, stack: ExitStack) -> PromptSource:
        """The source of the run's prompts. ``stack`` closes the repositories."""
        return prompt_source(self.experiment, stack)

    def prompts_key(self) -> str:
        """Equal for runs whose datasets have the same rows and prompts."""
        dataset = {key: value for key, value in self._plain["dataset"].items() if key not in config.COVERAGE}
        counter = None
        if self._plain["context"].get("max_tokens") is not None:  # which files fit depends on the tokenizer
            counter = self.experiment.runner.token_counter().name
        if self.experiment.context.file_requests is not None:  # the model of each run chooses the files
            counter = f"{counter} {self.identity}"
        nodes = [self._plain.get(name) for name in ("context", "prompt", config.RULES)]
        return json.dumps([dataset, *nodes, counter], sort_keys=True, default=str)

    def open(self, resources: ProcessResources) -> RunSession:
        """Locks the run directory and builds the run.

        Raises:
            DataError: the dataset cannot be read.
            StoreError: another process holds the directory, or it belongs to another configuration.
        """
        # Imported here so that a configuration error is reported without them.
        from swe_infer.data.choices import load_file_choices
        from swe_infer.evaluate.command import figures_of_saved_verdicts
        from swe_infer.evaluate.run_end import evaluate_run
        from swe_infer.run_directory.store import RunStore
        from swe_infer.runners.instances import coverage_of, select_instances
        from swe_infer.runners.run import Run
        from swe_infer.selection.base import FilesOfRows
        from swe_infer.selection.judge import JudgeSelector, selector_of

        experiment, plain = self.experiment, self._plain
        evaluation = experiment.evaluation
        with ExitStack() as stack, INTERRUPTS.stoppable():
            evaluation.check(experiment.dataset, plain["dataset"])
            if self._url is not None:
                from swe_infer.remote.mirror import Mirror

                stack.enter_context(Mirror(self._url, "output_dir", experiment.upload_interval_s))
            prompts = self.prompt_source(stack)
            selection = select_instances(experiment.runner, experiment.dataset, experiment.shard, prompts)
            if self._sweep is not None and self._has_siblings:
                stack.enter_context(identity_lock(self._sweep, plain, self.directory))
            load_file_choices(selection.rows.file_choices, selection.rows.ids, [self.directory])
            selector = selector_of(experiment.selection, FilesOfRows(lambda: selection.rows), self.directory)
            store = stack.enter_context(
                RunStore(
                    self.directory,
                    experiment.runner.label,
                    experiment.locks,
                    selector=selector,
                    samples=experiment.runner.decoding.n,
                    benchmark=benchmark_of(plain["dataset"]),
                )
            )
            if store.resumed and _is_legacy(self.directory) and (moved := selection.moved()):
                raise StoreError(
                    f"output_dir={self.directory}: was divided into shards by an earlier version, which assigned "
                    f"{moved} instances to other shards; finish it with that version, or choose another output_dir"
                )
            before = _previous_coverage(claim_directory(self.directory, plain))
            store.set_coverage(coverage_of(selection, experiment.feedback.turns), before)
            run_id = config.run_id_of(self.directory, plain)
            info = self._run_info(self._agent.run_id if self._agent else run_id, selection, resumed=store.resumed)
            shared = self.directory.resolve().parent if self._sweep is None else self._sweep.directory.resolve()
            context = RunContext(
                directory=info.directory,
                run_id=run_id,
                spent_usd=store.totals.known_usd + store.totals.possibly_billed_usd,
                sweep_ledger=self._agent.ledger if self._agent else shared / SWEEP_LEDGER,
                resources=resources,
                shards=experiment.shard.count,
                is_recorded=lambda key, turn, auxiliary: store.totals.is_answered(key, turn, auxiliary),
            )
            experiment.runner.bind(context)
            budget = experiment.budget
            if store.totals.cost_usd is None and (budget.max_usd, budget.sweep_max_usd) != (None, None):
                log.warning("what some earlier answers cost is not known: the budget counts the known part of it")
            if (writer := resources.find(SweepWriter)) is not None and isinstance(experiment.tracker, WandbTracker):
                experiment.tracker.share(writer)
            run = Run(
                experiment.runner,
                selection,
                store,
                experiment.tracker,
                info,
                always_track=self._agent is not None,
                evaluate=partial(evaluate_run, evaluation, experiment.dataset, self.directory)
                if evaluation.name != "none"
                else None,
                evaluated_by=evaluation.name,
                earlier_verdicts=partial(figures_of_saved_verdicts, self.directory),
                shared=self._location.answer_sources(plain, self._sweep),
                over_budget=context.over_budget,
                edit_format=experiment.prompt.edit_format,
                sweep=SweepPosition.of(self._sweep),
                feedback=experiment.feedback,
                judge=selector if isinstance(selector, JudgeSelector) else None,
            )
            return RunSession(run, plain["dataset"], experiment.dataset.has_patch_files, stack.pop_all())


@dataclass(frozen=True, slots=True)
class RunSession:
    """A run and the lock of its directory. Use it as a context manager.

    Args:
        dataset: the ``dataset`` group of its configuration.
        has_patch_files: each submitted patch is also written into a file.
    """

    run: Run
    dataset: Mapping[str, Any]
    has_patch_files: bool
    _exit_stack: ExitStack

    def __enter__(self) -> RunSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit_stack.__exit__(kind, error, trace)

    def print_summary(self, *, prints_patches: bool = False) -> None:
        """Prints the closing table to standard error, and writes the files of patches.

        Args:
            prints_patches: also prints these patches to standard output.
        """
        run, directory, how = self.run, self.run.store.directory, None
        summary = run.summary()
        if benchmark_of(self.dataset) is not None and "resolved" not in summary:
            from swe_infer.evaluate.harness import other_harness

            how = other_harness(self.dataset, directory / layout.PREDICTIONS)
        print_summary(summary, directory, run.tracker.address, run.store.totals.skip_reasons(), how)
        for patch in _written_patches(directory) if self.has_patch_files else ():
            if prints_patches:
                text = clean(patch) if sys.stdout.isatty() else patch.encode("utf-8", "replace").decode()
                print(text, end="" if text.endswith("\n") else "\n", flush=True)


def _written_patches(directory: Path) -> Iterator[str]:
    """Writes the submitted patch of each instance into a file of its own, and yields it."""
    content = layout.content(directory, layout.PREDICTIONS, _MOST_PREDICTIONS_BYTES) or b""
    for line in content.splitlines():
        prediction = json.loads(line)
        patch, path = prediction["model_patch"], directory / layout.patch_name(prediction["instance_id"])
        if not patch:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # of an earlier command
            log.warning("%s: the answer contains no patch", prediction["instance_id"])
            continue
        try:
            with replacing(path) as new:
                new.write_bytes(patch.encode("utf-8", "surrogateescape"))
            log.info("the patch is in %s (patch_status: %s)", path, prediction["patch_status"])
        except OSError as error:
            log.warning("%s: cannot be written (%s); %s has the patch", path, error.strerror, layout.PREDICTIONS)
        yield patch


def _previous_coverage(plain: Mapping[str, Any] | None) -> Coverage:
    """The request of the last command, from its configuration, for directories without ``asked.json``."""
    covered = config.coverage(plain or {})
    return Coverage(None, covered["dataset.min_tokens"], covered["dataset.max_tokens"], decided=True)


def _is_legacy(directory: Path) -> bool:
    """Whether an earlier version wrote the directory."""
    first = RunDirectory(directory).identity_line()
    return bool(first) and not first.startswith(config.HEADER)


@dataclass(frozen=True, slots=True)
class AgentRun:
    """A run that ``wandb agent`` started.

    Args:
        run_id: id of the W&B run that the server created; the W&B sweep waits for its metrics.
        ledger: the sweep's spending on this machine. It does not depend on an agent's working directory, so that all
            agents share one ``budget.sweep_max_usd``.
    """

    run_id: str
    ledger: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> AgentRun | None:
        """Reads the variables that the agent sets; returns None for a run that no agent started.

        Raises:
            ConfigError: the run could not report to its sweep.
        """
        sweep, run_id = environment.get("WANDB_SWEEP_ID"), environment.get("WANDB_RUN_ID")
        if not sweep or not run_id:
            return None
        if not environment.get("WANDB_API_KEY"):
            raise ConfigError(
                f"WANDB_API_KEY is not set: this run of the W&B sweep {sweep} could not report to it; set it before "
                "`wandb agent`"
            )
        state = state_home()
        if state is None:
            raise ConfigError(
                "the runs of a W&B sweep share a ledger in ~/.local/state, and there is no home directory; set "
                "XDG_STATE_HOME"
            )
        parts = [environment.get("WANDB_ENTITY"), environment.get("WANDB_PROJECT"), sweep]
        name = "__".join(re.sub(r"[^A-Za-z0-9._-]+", "-", part) for part in parts if part)
        return cls(run_id, agents_ledger(state, name))
