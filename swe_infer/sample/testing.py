"""Runs one instance's test against its files, in a process of its own with limits.

The limits guard against mistakes of a model: an endless loop, a list that grows without end, a stray connection, a
file written in the wrong place. Time, memory, the size and number of files, and (where the kernel lets this user make
a network namespace) the network are the kernel's limits; what may be called and written is the interpreter's, and
code that is out to get around that can. Whatever this user may read can be read. Hostile code needs a container or a
virtual machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

_running: set[subprocess.Popen[str]] = set()
_TEST_FILE = "swe_infer_instance_test.py"

# Runs in the child. The word of success is read from standard input and printed after the last test, so a patched
# file that ends the process early does not count as a pass. The hook hears of every such event of the interpreter.
_CHILD = """
import ctypes, os, resource, sys
seconds, megabytes = int(sys.argv[1]), int(sys.argv[2])
for kind, soft, hard in (
    (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU first: SIGKILL would not say why
    (resource.RLIMIT_AS, megabytes * 2**20, megabytes * 2**20),
    (resource.RLIMIT_FSIZE, 2**20, 2**20),
    (resource.RLIMIT_NOFILE, 64, 64),
    (resource.RLIMIT_CORE, 0, 0),
):
    try:
        resource.setrlimit(kind, (soft, hard))
    except (OSError, ValueError):
        pass
new_user, new_network = 0x10000000, 0x40000000
try:
    libc = ctypes.CDLL(None)
    libc.unshare(new_network) and libc.unshare(new_user | new_network)
except (OSError, AttributeError):
    pass
del ctypes, new_user, new_network
word = sys.stdin.readline()
refused = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
           "ctypes.", "pty.")
changing = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "shutil.rmtree")
writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
home, inside = os.getcwd(), os.path.realpath(os.getcwd()) + os.sep
def outside(path, join=os.path.join, real=os.path.realpath, decode=os.fsdecode):
    path = real(join(home, decode(path)))
    return path != "/dev/null" and not path.startswith(inside)
def hook(event, arguments):
    if event.startswith(refused):
        raise PermissionError("a test may not use " + event)
    if event == "open":
        path, mode, flags = arguments
        if flags & writing and not isinstance(path, int) and outside(path):
            raise PermissionError("a test may not write outside its directory")
    elif event in changing and any(outside(p) for p in arguments[:2] if isinstance(p, (str, bytes, os.PathLike))):
        raise PermissionError("a test may not change what is outside its directory")
sys.addaudithook(hook)
sys.path.insert(0, "")
with open(sys.argv[3], encoding="utf-8") as file:
    code = compile(file.read(), sys.argv[3], "exec")
names = {"__name__": "instance_test"}
exec(code, names)
tests = [value for name, value in names.items() if name.startswith("test") and callable(value)]
if not tests:
    sys.exit("the instance's test holds no test function")
for test in tests:
    test()
sys.stdout.write("\\n" + word)
"""


@dataclass(frozen=True, slots=True)
class TestResult:
    """What became of a test.

    Args:
        resolved: every test function returned.
        reason: None where resolved, else one line that says why not.
        seconds: wall clock.
    """

    __test__: ClassVar[bool] = False  # not a test class for pytest

    resolved: bool
    reason: str | None
    seconds: float


def run_test(
    files: Mapping[str, str], test: str, *, timeout_s: float = 10.0, max_memory_mib: int = 1024
) -> TestResult:
    """Write ``files`` (path to content) into an empty directory and run ``test`` there.

    ``test`` is Python source with functions ``test…`` without arguments, which raise when something is wrong. The
    child sees neither the environment nor the packages of this process, nor the network.

    Args:
        timeout_s: seconds of wall clock and (rounded up) of processor time.
        max_memory_mib: address space in MiB.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="swe_infer_test_") as place:
        outside = _write(Path(place), {**files, _TEST_FILE: test})
        if outside is not None:
            return TestResult(False, f"the path {outside!r} leads out of the repository", 0.0)
        word = secrets.token_hex(16)
        reason = _run(place, word, timeout_s, max_memory_mib)
    return TestResult(reason is None, reason, time.monotonic() - begun)


def end_tests() -> None:
    """End the tests that other threads are running; each of them counts as ended by the system."""
    for process in list(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _write(root: Path, files: Mapping[str, str]) -> str | None:
    """Write the files; the first path that leads out of ``root`` is returned instead."""
    for path in files:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:
            return path
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode("utf-8"))
    return None


def _run(place: str, word: str, timeout_s: float, max_memory_mib: int) -> str | None:
    """Run the child; None where all tests passed, else why not."""
    cpu_seconds = str(max(1, int(timeout_s + 0.999)))
    command = [sys.executable, "-I", "-S", "-B", "-c", _CHILD, cpu_seconds, str(max_memory_mib), _TEST_FILE]
    process = subprocess.Popen(
        command,
        cwd=place,
        env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    _running.add(process)
    late = f"the test did not end within {timeout_s:g} s"
    try:
        output, errors = process.communicate(word + "\n", timeout=timeout_s)
    except subprocess.TimeoutExpired:
        _end(process)
        return late
    finally:
        _running.discard(process)
    if output.rstrip("\n").rpartition("\n")[2] == word:
        return None
    lines = [line for line in errors.splitlines() if line.strip()]
    if process.returncode == -signal.SIGXCPU:  # its processor time was up a moment before the clock's
        return late
    if process.returncode == -signal.SIGKILL:
        return f"the test was ended by the system (signal {-process.returncode})"
    return lines[-1][:300] if lines else f"the process ended with status {process.returncode} before the tests did"


def _end(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
