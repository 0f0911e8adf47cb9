"""Runs commands in separate processes, as a user does, but without the time that imports take.

Importing Hydra, pydantic, the vendors' SDKs and our own modules takes most of a short command's processor time. A
server imports these once for all workers of a test session. It forks a process for each command, which takes over the
command's arguments, folder, environment and streams, and then runs the module as ``python -m`` does. What a command
composes of ``conf/``, later ones find in the cache. A launcher's workers, and the other processes that a command
starts, start as usual.

Tests of startup and of imports start the interpreter themselves.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import functools
import gc
import hashlib
import json
import os
import pickle
import runpy
import select
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import IO, Any

__all__ = ["LOCAL", "PACKAGES", "STARTED", "Command", "pause", "run", "start"]

ROOT = Path(__file__).resolve().parent.parent.parent
COMMON = (
    "anyio._backends._asyncio", "genai_prices.data", "genai_prices.decompose", "genai_prices.validation", "httpcore2",
    "httpx2", "hydra", "hydra._internal.instantiate._instantiate2", "hydra.compose", "hydra.core.plugins", "numpy",
    "omegaconf", "pydantic", "rich.progress", "rich.table", "sqlite3",
)  # fmt: skip
PACKAGES = (
    *COMMON, "aiohttp", "alembic", "anthropic", "openai", "openai.types", "optuna", "pandas", "s3fs", "sqlalchemy",
    "tiktoken", "wandb", "wandb.apis.public", "wandb.cli.cli",
)  # fmt: skip
"""What commands import; an extra may be missing. What these read from the environment meanwhile, no test changes."""
LOCAL = (*COMMON, "tokenizers", "torch")
"""For runs of the local engine. OMP_NUM_THREADS, which torch and numpy read at once, is 1."""
SHARED = "SWE_INFER_TESTS_COMMANDS"
"""Names the folder of the sockets that the workers of a test session share."""
_MESSAGE = 1 << 20
STARTED: weakref.WeakSet[Command] = weakref.WeakSet()


class Command:
    """A started command, with the interface of :class:`subprocess.Popen` that tests need."""

    def __init__(self, args: list[str], pid: int, stdout: int, stderr: int, ended: int) -> None:
        self.args = args
        self.pid = pid
        self.stdout = open(stdout, encoding="utf-8", errors="replace")  # noqa: SIM115
        self.stderr = open(stderr, encoding="utf-8", errors="replace")  # noqa: SIM115
        self.returncode: int | None = None
        self._ended = ended
        STARTED.add(self)

    def poll(self) -> int | None:
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if (status := self._wait(timeout)) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their end, and wait for the process."""
        texts = ["", ""]

        def read(number: int, stream: IO[str]) -> None:
            with stream:
                texts[number] = stream.read()

        readers = [
            threading.Thread(target=read, args=each, daemon=True) for each in enumerate((self.stdout, self.stderr))
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                self.kill()
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def end(self) -> None:
        """Kill the process if it runs, and close its streams."""
        self.kill()
        for stream in (self.stdout, self.stderr):
            stream.close()

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            self.returncode = array.array("i", os.read(self._ended, 4))[0]
            os.close(self._ended)
        return self.returncode


def start(
    module: str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    start_new_session: bool = False,
    packages: tuple[str, ...] = PACKAGES,
) -> Command:
    """Start ``python -m module arguments``, or ``python -c arguments`` where the module is ``-c``.

    Args:
        packages: packages that the server has imported.
    """
    reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
    order = [module, list(arguments), str(cwd), dict(env), start_new_session]
    server = _server(packages)
    socket.send_fds(server, [json.dumps(order).encode()], writes)
    for descriptor in writes:
        os.close(descriptor)
    pid = array.array("i", server.recv(4))[0]
    flag = [] if module == "-c" else ["-m"]
    return Command(["python", *flag, module, *arguments], pid, reads[0], reads[1], reads[2])


def run(
    module: str,
    *arguments: str,
    cwd: Path,
    env: Mapping[str, str],
    start_new_session: bool = False,
    packages: tuple[str, ...] = PACKAGES,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run what :func:`start` starts to its end."""
    command = start(module, *arguments, cwd=cwd, env=env, start_new_session=start_new_session, packages=packages)
    output, errors = command.communicate(timeout)
    return subprocess.CompletedProcess(command.args, command.wait(), output, errors)


def pause(pid: int) -> None:
    """Send SIGSTOP, and return when every thread of the process has stopped: the kernel stops them later."""
    os.kill(pid, signal.SIGSTOP)
    while any(_state(thread) in "RSD" for thread in Path(f"/proc/{pid}/task").glob("*/stat")):
        time.sleep(0.001)


def _state(stat: Path) -> str:
    try:
        return stat.read_text().rpartition(") ")[2][0]
    except OSError:  # the thread has ended
        return "X"


@functools.cache
def _server(packages: tuple[str, ...]) -> socket.socket:
    """A connection to the server that has imported ``packages``. The processes of a test session share it, and the
    first that needs it starts it. It ends when the last connection is closed."""
    directory = Path(os.environ.get(SHARED) or tempfile.mkdtemp(prefix="commands-"))
    name = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:16]
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE)
    atexit.register(connection.close)
    with (directory / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        address = str(directory / name)
        try:
            connection.connect(address)
        except OSError:  # no server listens there yet, or it has ended
            Path(address).unlink(missing_ok=True)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(address)
                listener.listen()
                _start_server(listener, packages)
                connection.connect(address)
    return connection


def _start_server(listener: socket.socket, packages: tuple[str, ...]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(listener.fileno()), *packages],
        cwd=ROOT, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    atexit.register(process.poll)  # it may outlive this process


def _serve(listener: socket.socket, packages: list[str]) -> tuple[str, list[str], Path]:
    """Fork for each order; returns in the forked process, with what is to run and the server's folder."""
    directory = Path(listener.getsockname()).parent
    path = sys.path[1:]  # the first is this process's own folder
    gc.disable()  # it takes a fifth of the time of the imports, and finds nothing
    for package in (*packages, *_our_modules()):
        with suppress(ModuleNotFoundError):
            import_module(package)
    _fill_caches()
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    of_tests = [name for name in sys.modules if name.partition(".")[0] == "tests"]  # a fork would copy many pages
    gc.collect()
    gc.freeze()
    gc.enable()
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the commands
    ends: dict[int, int] = {}
    connections: list[socket.socket] = []
    while True:
        numbers = [woken, listener.fileno(), *(connection.fileno() for connection in connections)]
        readable = select.select(numbers, [], [])[0]
        if woken in readable:
            os.read(woken, 4096)
            _reap(ends, directory)
        if listener.fileno() in readable:
            connections.append(listener.accept()[0])
        for ready in [connection for connection in connections if connection.fileno() in readable]:
            message, descriptors, _, _ = socket.recv_fds(ready, _MESSAGE, 3)
            if not message:
                connections.remove(ready)
                ready.close()
                if not connections:
                    os._exit(0)
                continue
            if pid := os.fork():
                ready.send(array.array("i", [pid]).tobytes())
                ends[pid] = descriptors[2]
                for descriptor in descriptors[:2]:
                    os.close(descriptor)
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for connection in (listener, *connections):
                connection.close()
            for descriptor in (woken, wake, *ends.values()):
                os.close(descriptor)
            for name in of_tests:
                del sys.modules[name]
            return *_become(json.loads(message), descriptors, path), directory


def _our_modules() -> list[str]:
    """All but those that import torch."""
    files = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / "swe_infer").rglob("*.py")]
    others = (path for path in files if path.parts[1] != "llama" and path.stem != "llama_requests")
    return [".".join(path.parts) for path in others if path.stem[:2] != "__"]


def _fill_caches() -> None:
    """Fill what each process would fill again: the tables of Hydra's and OmegaConf's parsers, which take longer than
    the parsing, the files of ``conf/``, the parameters of the classes that they name and the libraries' versions."""
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from swe_infer import config, presets
    from swe_infer.cli.config_loader import initialized_hydra
    from swe_infer.run_directory import provenance

    with initialized_hydra():
        for choices in ("model=gpt-4o tracker=none", "model=claude-sonnet-4-5", "model=tiny"):
            cfg = compose("config", choices.split())
            config.build(cfg)
            config.run_name(config.resolved(cfg), "model", "data")
    presets.presets()
    provenance.describe("", None)
    characters = string.ascii_letters + string.digits + "_-"
    parser = OverridesParser.create()
    parser.parse_overrides(["a=b", "a.b=1", "+a=[1,'2']", "a@b.c={d:1.0}", "~a", "a=1,2", "a=${b:c}"])
    parser.parse_overrides([f"{letter}{characters}={letter}" for letter in string.ascii_letters])
    parser.parse_overrides([f"a.{letter}={letter}/{characters}" for letter in string.ascii_lowercase])
    parser.parse_overrides([f"a={digit}{digit}.{string.digits}" for digit in string.digits])
    parser.parse_overrides(["a=http://127.0.0.1:80/v1", "a=/b.c/d-e_f", f"a='{characters} :/.,=[]{{}}'"])
    OmegaConf.to_container(OmegaConf.create({"a": "${b}/${b}", "b": "${oc.env:HOME,null}"}), resolve=True)


def _reap(ends: dict[int, int], directory: Path) -> None:
    while ends:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with suppress(FileNotFoundError), (directory / f"{pid}.composed").open("rb") as composed:
            _compositions().update(pickle.load(composed))
        with suppress(BrokenPipeError):  # nobody waits for it
            os.write(ends[pid], array.array("i", [os.waitstatus_to_exitcode(status)]).tobytes())
        os.close(ends.pop(pid))


def _become(order: list[Any], descriptors: list[int], path: list[str]) -> tuple[str, list[str]]:
    module, arguments, cwd, env, start_new_session = order
    if start_new_session:
        os.setsid()
    os.chdir(cwd)
    for descriptor, standard in zip(descriptors, (1, 2), strict=False):
        os.dup2(descriptor, standard)
    for descriptor in descriptors:
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # of the environment's TMPDIR
    sys.path[:] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *path]
    return module, arguments


def _compositions() -> dict[tuple[Any, ...], Any]:
    """The cache of composed options. Each entry names its files, and is used while these are the same."""
    from swe_infer.cli import config_loader

    return config_loader._COMPOSED


def _hand_over(directory: Path, known: set[tuple[Any, ...]]) -> None:
    """Write what this command has composed for the server, which reads it when the command has ended."""
    if new := {key: options for key, options in _compositions().items() if key not in known}:
        unfinished = directory / f"{os.getpid()}.unfinished"
        unfinished.write_bytes(pickle.dumps(new))
        unfinished.rename(unfinished.with_suffix(".composed"))


def _run(module: str, arguments: list[str], directory: Path) -> None:
    """Run the command to its end. Where it ends as it should, its objects are not taken apart one by one: with all
    these packages that takes as long as a short command."""
    status, known = 0, set(_compositions())
    try:
        if module == "-c":
            code, *arguments = arguments
            sys.argv = ["-c", *arguments]
            sys.modules["__main__"] = main = ModuleType("__main__")
            exec(compile(code, "<string>", "exec"), vars(main))
        else:
            sys.argv[1:] = arguments
            if not hasattr(sys.modules.get(module), "__path__"):
                sys.modules.pop(module, None)  # runpy warns about a module that was imported
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            raise
        status = ended.code or 0
    shut_down_threads: Callable[[], None] = threading._shutdown  # type: ignore[attr-defined]
    shut_down_threads()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(status)
    with suppress(OSError):  # the command may have limited its files
        _hand_over(directory, known)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    _run(*_serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]))
