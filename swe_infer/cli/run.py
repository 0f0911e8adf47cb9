"""``swe-infer``: composes the configuration with Hydra and runs it. A user error is one line and exit status 2."""

from __future__ import annotations

import functools
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from swe_infer.cli.arguments import hydra_arguments, mirror_of_sweep, sweep_directory
from swe_infer.cli.command_line import remember_arguments
from swe_infer.cli.config_loader import initialized_hydra
from swe_infer.cli.extras import prepare_hydra
from swe_infer.cli.hydra_errors import one_line, unset_variable
from swe_infer.cli.quoting import quote
from swe_infer.cli.study import PointFailed, is_search, objective_values
from swe_infer.cli.sweep import report_sweep
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.conf_files import conf_dir
from swe_infer.config import objectives as objectives_of
from swe_infer.errors import ConfigError, SweInferError
from swe_infer.files import write_atomically
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.redaction import RedactingFormatter, without_credentials
from swe_infer.remote.paths import displayed, message_of
from swe_infer.run_directory.objective import Objective
from swe_infer.runners.base import ProcessResources

if TYPE_CHECKING:
    from swe_infer.cli.job_batches import JobBatcher
    from swe_infer.tracking.writer import SweepWriter

log = logging.getLogger("swe_infer")


def main() -> NoReturn:
    """The console script. Exits with the status that the README states."""
    set_up_logging()
    remember_arguments(sys.argv[1:])
    # Makes Hydra raise composition errors instead of printing several lines and exiting with 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    task = HydraTask()
    try:
        _check_working_directory()
        sys.argv[1:] = hydra_arguments(sys.argv[1:])
        if (cfg := _compose_single_run(sys.argv[1:])) is not None:
            task(cfg)
        else:
            with mirror_of_sweep(sys.argv[1:]) or nullcontext():
                if not _run_sweep(sys.argv[1:], task):
                    prepare_hydra()
                    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(task)()
    except SweInferError as error:  # of the command line, or of a sweep before its first job
        print(f"error: {without_credentials(message_of(error))}", file=sys.stderr)
        sys.exit(error.exit_status)
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {without_credentials(one_line(error))}", file=sys.stderr)
        sys.exit(2)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - reported, with a traceback if the fault is ours
        line = one_line(error) if isinstance(error, ValueError) and _from_hydra(error) else unset_variable(error)
        if line is not None:
            print(f"error: {without_credentials(line)}", file=sys.stderr)
            sys.exit(2)
        task.abandon_waiting()
        sys.exit(_report_stopped_sweep(error))
    finally:
        task.finish_tracking()
    sys.exit(task.status)


def _check_working_directory() -> None:
    """Hydra, and every relative path, needs it.

    Raises:
        ConfigError: it was removed, or a folder above it may not be read.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(f"the working directory cannot be used ({error.strerror}); change to another one") from None


def _compose_single_run(arguments: Sequence[str]) -> DictConfig | None:
    """Composes the configuration of a single run; returns None if the arguments need Hydra's own entry point.

    That one is slower: it composes twice, the first time to find out whether it is a sweep.
    """
    if any(argument.startswith(("-", "hydra")) for argument in arguments):
        return None
    with initialized_hydra():
        composed = hydra.compose("config", list(arguments), return_hydra_config=True)
    node = composed.hydra
    job = node.job
    needs_hydra = (
        node.mode not in (None, RunMode.RUN)
        or node.run.dir != "."
        or any((node.output_subdir, node.verbose, node.job_logging.get("root"), job.chdir, job.env_set))
        or set(node.callbacks) != {"sweep"}  # ours, which does nothing in a single run
    )
    if needs_hydra:
        return None
    return _without_hydra_node(composed)


def _run_sweep(arguments: Sequence[str], task: HydraTask) -> bool:
    """Runs a sweep; returns False if the arguments need Hydra's own entry point, which composes without a cache."""
    flags = [argument for argument in arguments if argument.startswith("-")]
    if flags not in (["-m"], ["--multirun"]):
        return False
    overrides = [argument for argument in arguments if argument not in flags]
    with initialized_hydra():
        application: Any = GlobalHydra.instance().hydra
        mode = application.get_mode("config", overrides)
        if mode == RunMode.RUN:
            return False
        application.multirun("config", task, [*overrides, *([] if mode else ["hydra.mode=MULTIRUN"])])
    return True


def _without_hydra_node(composed: DictConfig) -> DictConfig:
    """Removes Hydra's own node, which :class:`HydraConfig` then contains."""
    with flag_override(composed, ["readonly", "struct"], False):
        composed.hydra.runtime.output_dir = os.getcwd()
        HydraConfig.instance().set_config(composed)
        del composed["hydra"]
    return composed


_COMPOSING = threading.RLock()
"""Hydra's state is global."""


@contextmanager
def composed_run(overrides: Sequence[str], config_dir: Path | None = None) -> Iterator[DictConfig]:
    """Composes the configuration of one run in any process, which may have its own Hydra application.

    Within the block, Hydra's global state is that of the run.

    Args:
        config_dir: a folder with options of the user's own.

    Raises:
        ConfigError: a group, option or key does not exist, or a value is invalid.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: there is no such directory")
    with _COMPOSING:
        application, job = GlobalHydra.instance(), HydraConfig.instance()
        outer = application.hydra, job.cfg
        application.clear()
        try:
            arguments = hydra_arguments(overrides, config_dir)
            if config_dir is not None:
                arguments.append(f"hydra.searchpath=[{quote(f'file://{config_dir.absolute()}')}]")
            with initialized_hydra():
                composed = hydra.compose("config", arguments, return_hydra_config=True)
            yield _without_hydra_node(composed)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            if isinstance(error, ValueError) and not _from_hydra(error):
                raise
            raise ConfigError(one_line(error)) from None
        except KeyError as error:
            if (line := unset_variable(error)) is None:
                raise
            raise ConfigError(line) from None
        finally:
            GlobalHydra.instance().hydra, HydraConfig.instance().cfg = outer


@functools.cache
def _print_error(line: str) -> None:
    """Prints why a job of a sweep failed, unless another one of this process failed alike."""
    print(f"error: {line}", file=sys.stderr)


def _report_stopped_sweep(error: BaseException) -> int:
    """Reports a sweep that its launcher or sweeper aborted, or a single run that raised. Returns the exit status.

    Jobs do not raise, so in a sweep a worker died, a job timed out, or Ctrl-C came between two jobs.
    """
    directory = sweep_directory(sys.argv[1:])
    if directory is None or not (directory / "runs.jsonl").exists():
        return _report_stopped_run(error)
    if INTERRUPTS.stopping:
        return report_sweep(directory)
    trace = without_credentials("".join(traceback.format_exception(error)))
    write_atomically(directory / "error.log", trace)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = without_credentials(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))
    return report_sweep(directory, f"the sweep was aborted: {cause} ({directory / 'error.log'})")


def _report_stopped_run(error: BaseException) -> int:
    """Reports an exception of a single run in one line, or with a traceback if the fault is ours. Returns the exit
    status."""
    if INTERRUPTS.stopping:
        return INTERRUPTED
    if isinstance(error, OSError | MemoryError):
        message = without_credentials(" ".join(str(error).split()))
        print(f"error: {message or 'out of memory'}", file=sys.stderr)
    else:
        log.critical("internal error", exc_info=error)
    return 1


def _from_hydra(error: BaseException) -> bool:
    """Whether Hydra itself raised this: it raises ValueError for contradicting flags."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


class HydraTask:
    """Hydra's task function: one run, or one job of a sweep. It owns what the runs of a process share."""

    __name__ = "swe_infer"

    def __init__(self) -> None:
        self.status = 0
        self.resources = ProcessResources()
        self.in_worker = False
        self._may_batch = False

    @functools.cached_property
    def batcher(self) -> JobBatcher:
        """The jobs that wait to share an engine."""
        from swe_infer.cli.job_batches import JobBatcher

        return JobBatcher(self.resources, self._record_end)

    def __getstate__(self) -> dict[str, Any]:
        """The state in a launcher's worker process. Engines are not included."""
        return {
            "status": 0,
            "resources": ProcessResources(),
            "in_worker": True,
            "_may_batch": False,
            "home": os.getcwd(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Enters the original working directory, for relative paths: a cluster's workers start elsewhere."""
        os.chdir(state.pop("home"))
        self.__dict__.update(state)

    def __call__(self, cfg: DictConfig) -> list[float] | float | None:
        """Returns the objective values for a search; None without any, or if the run failed."""
        import swe_infer.cli.run_session  # noqa: F401 - before the signal handlers: Ctrl-C ends an import at once

        with INTERRUPTS.finishing():
            sweep = SweepLog.from_hydra(HydraConfig.get())
            if sweep is None:
                self._run_single(cfg)
                return None
            if not self.in_worker:
                return self._run_job(cfg, sweep)
            set_up_logging()
            with sweep.forwarding_interrupts():
                return self._run_job(cfg, sweep)

    def _run_single(self, cfg: DictConfig) -> None:
        from swe_infer.cli.run_session import run_one

        try:
            directory, self.status = run_one(cfg, None, self.resources)
        except SweInferError as error:
            print(f"error: {without_credentials(message_of(error))}", file=sys.stderr)
            self.status = error.exit_status
            return
        if directory is not None:
            print(displayed(directory), flush=True)

    def _run_job(self, cfg: DictConfig, sweep: SweepLog) -> list[float] | float | None:
        from swe_infer.cli.run_session import PreparedRun

        # An interrupted job ends its sweep: the rest is left for the next launch.
        if INTERRUPTS.stopping or self.status == INTERRUPTED or sweep.is_stopped:
            sweep.record_end(None, INTERRUPTED)
            return None
        sweep.record_start()
        if not self.in_worker:
            _ = self.tracking  # a launcher's worker processes log each run on their own
        directory: Path | None = None
        end: int | Exception
        try:
            with INTERRUPTS.stoppable():
                prepared = PreparedRun(cfg, sweep)
            if self._can_batch() and self.batcher.submit(prepared, sweep):
                return None
            self.run_waiting()
            directory, end = prepared.execute(self.resources)
        except KeyboardInterrupt:
            sweep.record_end(None, INTERRUPTED)
            raise
        except Exception as error:  # noqa: BLE001 - a fault in our code fails this job and not the sweep
            end = error
        objectives = objectives_of(cfg) if end in (0, 1) and is_search(HydraConfig.get()) else ()
        values = self._record_end(sweep, directory, end, objectives)
        return values[0] if values is not None and len(values) == 1 else values

    def _can_batch(self) -> bool:
        """Whether a job may be deferred to share an engine with others of this process."""
        return self._may_batch and not self.in_worker and not HydraConfig.get().job.env_set

    def _record_end(
        self, sweep: SweepLog, directory: Path | None, end: int | Exception, objectives: Sequence[Objective] = ()
    ) -> list[float] | None:
        """Logs how a job ended. Returns its objective values; None without any, or if it failed.

        Args:
            objectives: of a search.
        """
        status, values, line = (end, None, None) if isinstance(end, int) else (1, None, None)
        if isinstance(end, SweInferError):
            line = without_credentials(message_of(end))
            _print_error(line)
            status = end.exit_status
        elif isinstance(end, Exception):
            log.error("this run of the sweep failed", exc_info=end)
            line = without_credentials(f"{type(end).__name__}: {end}")
        elif directory is not None and objectives:
            try:
                values = objective_values(directory, objectives)
            except (ConfigError, PointFailed) as error:
                line = without_credentials(str(error))
                _print_error(line)
                status = max(status, error.exit_status if isinstance(error, PointFailed) else 0)
            except (OSError, ValueError) as error:
                status, line = 1, without_credentials(f"{type(error).__name__}: {error}")
        self.status = max(self.status, status)
        sweep.record_end(directory, status, objective=values, error=line, elsewhere=self.in_worker)
        if directory is not None and not self.in_worker:
            print(displayed(directory), flush=True)
        return values

    @property
    def tracking(self) -> SweepWriter:
        """Logs the runs of this process to W&B."""
        from swe_infer.tracking.writer import SweepWriter

        return self.resources.get(SweepWriter)

    def finish_tracking(self) -> None:
        """Waits a limited time for the runs that are not logged completely."""
        from swe_infer.tracking.writer import SweepWriter

        if (writer := self.resources.find(SweepWriter)) is not None:
            writer.finish()

    def allow_batching(self) -> None:
        """Jobs may be deferred: the sweep's callback calls :meth:`run_waiting` once all were launched."""
        self._may_batch = True

    def run_waiting(self) -> None:
        """Runs the deferred jobs."""
        if "batcher" in self.__dict__:
            self.batcher.run_waiting()

    def abandon_waiting(self) -> None:
        """Drops the deferred jobs: the sweep ended early."""
        if "batcher" in self.__dict__:
            self.batcher.abandon()


def set_up_logging() -> None:
    """Logs to standard error, with secrets redacted. Standard output is for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("swe_infer").setLevel(logging.INFO)
    for name in ("hydra", "hydra_plugins"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # main() prints their errors in one line
