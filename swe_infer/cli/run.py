"""``swe-infer``: compose with Hydra, build, run. One line and exit 2 for whatever the user got wrong."""

from __future__ import annotations

import functools
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from swe_infer.cli.arguments import prepared, sweep_directory
from swe_infer.cli.extras import prefer_own_options
from swe_infer.cli.messages import one_line
from swe_infer.cli.study import objective_of
from swe_infer.cli.sweep import finish
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.conf_files import Objective, conf_dir
from swe_infer.config import objectives as objectives_of
from swe_infer.errors import SweInferError
from swe_infer.files import write_atomically
from swe_infer.interrupts import INTERRUPTED, INTERRUPTS
from swe_infer.redaction import RedactingFormatter, without_credentials
from swe_infer.runners.base import ProcessResources

if TYPE_CHECKING:
    from swe_infer.cli.job_batches import JobBatcher

log = logging.getLogger("swe_infer")


def main() -> NoReturn:
    """The console script. Exits with the status that the README states."""
    _set_up_logging()
    try:
        sys.argv[1:] = prepared(sys.argv[1:])
    except SweInferError as error:
        print(f"error: {without_credentials(str(error))}", file=sys.stderr)
        sys.exit(error.exit_status)
    # Hydra prints a composition error over several lines and exits with 1; with this it hands the error on.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    job = _Job()
    prefer_own_options()
    try:
        if (cfg := _composed(sys.argv[1:])) is not None:
            job(cfg)
        else:
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {without_credentials(one_line(error))}", file=sys.stderr)
        sys.exit(2)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told of, with its trace where it is our fault
        if isinstance(error, ValueError) and _from_hydra(error):
            print(f"error: {without_credentials(one_line(error))}", file=sys.stderr)
            sys.exit(2)
        job.give_up()
        sys.exit(_stopped_sweep(error))
    sys.exit(job.status)


def _composed(arguments: Sequence[str]) -> DictConfig | None:
    """The configuration of a single run; None where more is asked of Hydra than to compose one.

    Hydra's own entry point composes twice, the first time to find out whether it is a sweep.
    """
    if any(argument.startswith(("-", "hydra")) for argument in arguments):
        return None
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose("config", list(arguments), return_hydra_config=True)
    asked = composed.hydra
    job = asked.job
    asks_more = (
        asked.mode not in (None, RunMode.RUN)
        or asked.run.dir != "."
        or any((asked.output_subdir, asked.verbose, asked.job_logging.get("root"), job.chdir, job.env_set))
        or set(asked.callbacks) != {"sweep"}  # ours, which has nothing to do in a single run
    )
    if asks_more:
        return None
    with flag_override(composed, ["readonly", "struct"], False):
        asked.runtime.output_dir = os.getcwd()
        HydraConfig.instance().set_config(composed)
        del composed["hydra"]
    return composed


def _stopped_sweep(error: BaseException) -> int:
    """The exit status of a sweep that its launcher or sweeper gave up, or of the one run where there is no sweep.

    Points do not raise, so this is a worker that died, a job that ran out of time, or Ctrl-C between two points.
    """
    directory = sweep_directory(sys.argv[1:])
    if directory is None or not (directory / "runs.jsonl").exists():
        return _stopped_run(error)
    if INTERRUPTS.stopping:
        return finish(directory)
    trace = without_credentials("".join(traceback.format_exception(error)))
    write_atomically(directory / "error.log", trace)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = without_credentials(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "))
    return finish(directory, f"the sweep was given up: {cause} ({directory / 'error.log'})")


def _stopped_run(error: BaseException) -> int:
    """The exit status of a run that ended before or after its work, and one line that says why: a trace only where
    the fault is ours."""
    if INTERRUPTS.stopping:
        return INTERRUPTED
    if isinstance(error, OSError | MemoryError):
        told = without_credentials(" ".join(str(error).split()))
        print(f"error: {told or 'out of memory'}", file=sys.stderr)
    else:
        log.critical("an unforeseen error", exc_info=error)
    return 1


def _from_hydra(error: BaseException) -> bool:
    """Whether Hydra itself raised this: it uses ValueError for flags that contradict each other."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "hydra" in Path(trace.tb_frame.f_code.co_filename).parts


class _Job:
    """Hydra's task function: one run, or one point of a sweep. What runs of one process share lives here."""

    __name__ = "swe_infer"

    def __init__(self) -> None:
        self.status = 0
        self.resources = ProcessResources()
        self.elsewhere = False
        self._may_wait = False

    @functools.cached_property
    def waiting(self) -> JobBatcher:
        """Points that are run later, at once with others."""
        from swe_infer.cli.job_batches import JobBatcher

        return JobBatcher(self.resources, self._ended)

    def __getstate__(self) -> dict[str, Any]:
        """What a launcher takes to another process: no engine, and the knowledge that it is another one."""
        return {
            "status": 0,
            "resources": ProcessResources(),
            "elsewhere": True,
            "_may_wait": False,
            "home": os.getcwd(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In the other process, before Hydra makes any folder there: paths may be relative, and a cluster's workers
        start wherever the cluster was started."""
        os.chdir(state.pop("home"))
        self.__dict__.update(state)

    def __call__(self, cfg: DictConfig) -> list[float] | float | None:
        """Returns the objective, for sweepers that search; None where the run has none, or did not end well."""
        import swe_infer.cli.run_session  # noqa: F401 - before signals are taken: a process that imports ends at once

        with INTERRUPTS.finishing():
            sweep = SweepLog.of(HydraConfig.get())
            if sweep is None:
                self._single(cfg)
                return None
            if not self.elsewhere:
                return self._point(cfg, sweep)
            _set_up_logging()
            with sweep.interrupts_passed_on():
                return self._point(cfg, sweep)

    def _single(self, cfg: DictConfig) -> None:
        from swe_infer.cli.run_session import run_one

        try:
            directory, self.status = run_one(cfg, None, self.resources)
        except SweInferError as error:
            print(f"error: {without_credentials(str(error))}", file=sys.stderr)
            self.status = error.exit_status
            return
        if directory is not None:
            print(directory, flush=True)

    def _point(self, cfg: DictConfig, sweep: SweepLog) -> list[float] | float | None:
        from swe_infer.cli.run_session import PreparedRun

        # An interrupted point ends its sweep: the rest is for the next time.
        if INTERRUPTS.stopping or self.status == INTERRUPTED or sweep.is_stopped:
            sweep.add(None, INTERRUPTED)
            return None
        sweep.begin()
        directory: Path | None = None
        end: int | Exception
        try:
            with INTERRUPTS.stoppable():
                built = PreparedRun(cfg, sweep)
            if self._can_wait() and self.waiting.add(built, sweep):
                return None
            self.finish()
            directory, end = built.execute(self.resources)
        except KeyboardInterrupt:
            sweep.add(None, INTERRUPTED)
            raise
        except Exception as error:  # noqa: BLE001 - a fault in our code costs this point; the others are still wanted
            end = error
        values = self._ended(sweep, directory, end, objectives_of(cfg) if end == 0 else ())
        return values[0] if values is not None and len(values) == 1 else values

    def _can_wait(self) -> bool:
        """Whether a point may be run later in this process, at once with others."""
        return self._may_wait and not self.elsewhere and not HydraConfig.get().job.env_set

    def _ended(
        self, sweep: SweepLog, directory: Path | None, end: int | Exception, objectives: Sequence[Objective] = ()
    ) -> list[float] | None:
        """Note how a point ended; returns its figures, where it has some and ended well."""
        status, values, line = (end, None, None) if isinstance(end, int) else (1, None, None)
        if isinstance(end, SweInferError):
            line = without_credentials(str(end))
            print(f"error: {line}", file=sys.stderr)
            status = end.exit_status
        elif isinstance(end, Exception):
            log.error("this point of the sweep failed", exc_info=end)
            line = without_credentials(f"{type(end).__name__}: {end}")
        elif end == 0 and directory is not None:
            try:
                values = objective_of(directory, objectives)
            except (OSError, ValueError) as error:
                status, line = 1, without_credentials(f"{type(error).__name__}: {error}")
        self.status = max(self.status, status)
        sweep.add(directory, status, objective=values, error=line, elsewhere=self.elsewhere)
        if directory is not None and not self.elsewhere:
            print(directory, flush=True)
        return values

    def allow_waiting(self) -> None:
        """Points may wait: the sweep's report calls :meth:`finish` when all jobs were launched."""
        self._may_wait = True

    def finish(self) -> None:
        """Run the points that wait."""
        if "waiting" in self.__dict__:
            self.waiting.run()

    def give_up(self) -> None:
        """The sweep ended before its time: what waits is not run."""
        if "waiting" in self.__dict__:
            self.waiting.give_up()


def _set_up_logging() -> None:
    """Everything to standard error, without secrets: standard output belongs to results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("swe_infer").setLevel(logging.INFO)
    for name in ("hydra", "hydra_plugins"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their errors are shown by main(), in one line
