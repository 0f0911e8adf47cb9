"""One run that is to be hurt: its directory, its data, its environment, and the real processes that work on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

__all__ = ["MODEL", "Ended", "Place", "Process", "finish", "forked", "start", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
MODEL = "gpt-4o"
_PATIENCE_S = 300.0
_PACKAGES: ContextVar[tuple[str, ...]] = ContextVar("packages", default=())

Process = subprocess.Popen[str] | commands.Command


@contextmanager
def forked(packages: tuple[str, ...] = commands.PACKAGES) -> Iterator[None]:
    """Start processes within as :mod:`tests.support.commands` does, without the time that importing takes; not those
    that are to be prepared, or changed by a library."""
    token = _PACKAGES.set(packages)
    try:
        yield
    finally:
        _PACKAGES.reset(token)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended, and what it said."""

    status: int
    output: str
    errors: str

    @property
    def error_lines(self) -> list[str]:
        return [line for line in self.errors.splitlines() if line.startswith(("ERROR", "error:"))]

    @property
    def has_trace(self) -> bool:
        return "Traceback (most recent call last)" in self.errors


@dataclass
class Place:
    """A run of ``swe_infer`` in a scratch directory.

    Args:
        scratch: holds the data, the home directory and, unless ``run`` says otherwise, the run directory.
        server: None: the bundled model on the local engine.
        instances: how many are asked.
        samples: of each instance.
        in_flight: requests at once.
        tracked: log to W&B, offline.
        overrides: further ones of the command line.
    """

    scratch: Path
    server: ApiServer | None
    instances: int = 40
    samples: int = 1
    in_flight: int = 8
    tracked: bool = False
    overrides: Sequence[str] = ()
    run: Path = field(default=Path())
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scratch.mkdir(parents=True, exist_ok=True)
        if self.run == Path():
            self.run = self.scratch / "run"
        self.home = self.scratch / "home"
        self.home.mkdir(exist_ok=True)
        self.data = write_instances(self.scratch / "instances.jsonl", self.instances)

    @property
    def ids(self) -> set[str]:
        if self.server is None:
            from swe_infer.data.sample import SampleDataset

            return set(list(SampleDataset().open().ids)[: self.instances])
        return {f"example__pkg-{number}" for number in range(self.instances)}

    def arguments(self, *more: str) -> list[str]:
        shared = [
            f"output_dir={self.run}",
            f"decoding.n={self.samples}",
            f"tracker={'wandb' if self.tracked else 'none'}",
        ]
        if self.samples > 1:
            shared.insert(0, "decoding=sample")
        if self.server is None:
            return [*shared, f"dataset.limit={self.instances}", "model.device=cpu", *self.overrides, *more]
        return [
            f"model={MODEL}",
            f"provider.base_url={self.server.openai_url}",
            f"provider.max_concurrency={self.in_flight}",
            "dataset=jsonl",
            f"dataset.path={self.data}",
            "decoding.max_new_tokens=512",
            *shared,
            *self.overrides,
            *more,
        ]

    def start(
        self, *more: str, prepare: Callable[[], None] | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start a try. ``prepare`` runs in the child before the program does."""
        return start(
            ["swe_infer", *self.arguments(*more)],
            self.scratch,
            self.home,
            prepare=prepare,
            environment={**self.environment, **(environment or {})},
        )

    def finish(self, process: Process) -> Ended:
        """Wait for the end of a try."""
        return finish(process)

    def go(self, *more: str) -> Ended:
        """One undisturbed try."""
        return self.finish(self.start(*more))

    def killed(self, process: Process) -> Ended:
        process.send_signal(signal.SIGKILL)
        return self.finish(process)

    def records_size(self) -> int:
        try:
            return (self.run / "records.jsonl").stat().st_size
        except OSError:
            return 0


def start(
    command: Sequence[str],
    directory: Path,
    home: Path,
    *,
    prepare: Callable[[], None] | None = None,
    environment: Mapping[str, str] | None = None,
    own_session: bool = False,
) -> Process:
    """``python -m COMMAND`` in ``directory``, with a key for the loopback server and a home directory of its own.

    Args:
        prepare: runs in the child before the program does.
        environment: further variables.
        own_session: no signal of this process's terminal reaches it.
    """
    whole = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WANDB_")},
        "OPENAI_API_KEY": "sk-loopback",
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "TMPDIR": str(home),
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache"),  # of compiled kernels
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    if (packages := _PACKAGES.get()) and prepare is None and "LD_PRELOAD" not in whole:
        return commands.start(*command, cwd=directory, env=whole, start_new_session=own_session, packages=packages)
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=directory,
        env=whole,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=prepare,
        start_new_session=own_session,
    )


def finish(process: Process) -> Ended:
    """Wait for the end of a process; one that does not end is killed."""
    try:
        output, errors = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        errors += f"\nERROR torture: did not end within {_PATIENCE_S:.0f} s\n"
    status = process.wait()
    return Ended(status, output, errors)


def wait_until(condition: Callable[[], bool], process: Process, *, seconds: float = 60.0) -> bool:
    """Wait for ``condition``; False where the process ended or the time ran out before it came true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return condition()
        time.sleep(0.005)
    return False
