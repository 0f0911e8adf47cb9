"""Compiles the C++ kernels once per machine, with the installed compiler.

The library is cached in ``$XDG_CACHE_HOME/swe_infer/kernels`` (``~/.cache/swe_infer/kernels``). Its name covers the
instruction set, the sources and flags, the C library and the compiler. A library is executed, so the folder must
belong to the user, and nobody else may write in it. Where it does not, or cannot be written or executed from, the
kernels are compiled for the process alone.

The environment variable ``SWE_INFER_NATIVE_KERNELS`` limits the kernels: ``off`` disables them, ``avx2`` and
``avx512`` exclude later instruction sets of x86-64; ``amx`` or nothing is no limit.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.locks import has_no_locks
from swe_infer.resources import cache_home

_log = logging.getLogger(__name__)

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", "-Wl,-Bsymbolic")
_VARIABLE = "SWE_INFER_NATIVE_KERNELS"
_LIMITS = ("off", "avx2", "avx512", "amx")
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_AMX = frozenset({"amx_tile", "amx_bf16"})
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 120


class Unavailable(Exception):
    """The reason why the kernels are not available on this machine."""


def check_limit() -> str:
    """Return the limit that the environment sets: ``off``, ``avx2``, ``avx512`` or ``amx``.

    Raises:
        ConfigError: any other value.
    """
    limit = os.environ.get(_VARIABLE) or "amx"
    if limit not in _LIMITS:
        raise ConfigError(f"{_VARIABLE}={limit}: must be off, avx2, avx512 or amx")
    return limit


@cache
def library(bfloat16: bool, limit: str = "amx") -> ctypes.CDLL:
    """Return the compiled kernels.

    Args:
        bfloat16: element type bfloat16, else float32.
        limit: the latest instruction set of x86-64 to use, beside the limit of the environment.

    Raises:
        Unavailable: unsupported CPU, no working compiler, or disabled by the environment.
        ConfigError: see :func:`check_limit`.
    """
    limit = min(limit, check_limit(), key=_LIMITS.index)
    if limit == "off":
        raise Unavailable(f"turned off by {_VARIABLE}=off")
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise Unavailable(
            f"there are kernels for Linux on x86-64 and ARM, not for {platform.system()} on {platform.machine()}"
        )
    if platform.machine() == "aarch64":
        if bfloat16:
            raise Unavailable("there are no kernels in bfloat16 for ARM")
        return compiled("neon")
    features = _processor()
    wide = limit != "avx2" and features >= _AVX512
    if bfloat16 and not (wide and "avx512_bf16" in features):
        raise Unavailable("bfloat16 needs a processor with AVX-512 BF16")
    if not features >= _AVX2:
        raise Unavailable("needs a processor with AVX2 and FMA")
    if not wide:
        return compiled("avx2", "-march=x86-64-v3")
    flags = ["-march=x86-64-v4", *(["-mavx512bf16", "-DBFLOAT16"] if bfloat16 else [])]
    if limit == "amx" and features >= _AMX:
        try:
            loaded = compiled("amx", *flags, "-mamx-tile", "-mamx-bf16")
        except Unavailable as error:
            _log.debug("no kernels with AMX: %s", error)  # for example an older compiler
        else:
            if loaded.initialise():
                return loaded
            _log.debug("the kernel does not grant AMX tiles to this process")
    return compiled("avx512", *flags)


def _processor() -> frozenset[str]:
    """CPU feature flags, as named by Linux."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError as error:
        _log.debug("/proc/cpuinfo cannot be read: %s", error)
    return frozenset()


def compiled(name: str, *flags: str, folder: Path | None = None) -> ctypes.CDLL:
    """Return the library of the sources in ``folder``, by default the kernels, from the cache or newly compiled.

    Args:
        name: of the instruction set.

    Raises:
        Unavailable: it can be neither found nor compiled.
    """
    folder = folder or Path(__file__).parent
    sources = sorted(folder.glob("*.cpp"))
    digest = hashlib.sha256("\0".join((*_FLAGS, *flags, _c_library())).encode())
    for path in (*sources, *sorted(folder.glob("*.h"))):
        digest.update(path.read_bytes())
    compiler, identity = _compiler()
    command = [*compiler, *_FLAGS, *flags, *map(str, sources), "-o"]
    home = cache_home()
    if home is not None:
        try:
            place = _private(home / "kernels")
            return _cached(place, f"{name}-{digest.hexdigest()[:16]}", identity, command)
        except OSError as error:
            _log.warning("compiling kernels for this process alone, which takes a few seconds: %s", error)
    try:
        with tempfile.TemporaryDirectory() as alone:
            _compile(command, Path(alone) / "kernels.so")
            return _open(Path(alone) / "kernels.so")
    except OSError as error:
        raise Unavailable(f"they cannot be compiled in the folder for temporary files: {error}") from error


def _private(folder: Path) -> Path:
    """Create ``folder`` for this user alone, or check that it is.

    Raises:
        OSError: it cannot be created, another user owns it or may write in it, or programs may not run from it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} must be a folder of this user in which nobody else may write")
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise PermissionError(f"{folder} is on a file system that is mounted noexec")
    return folder


def _cached(folder: Path, kind: str, compiler: str | None, command: list[str]) -> ctypes.CDLL:
    """Load the library of a compiler; without a compiler, that of any. Machines with other runtimes may share the
    folder: a library that cannot be loaded stays, and this machine compiles its own beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    with _locked(folder):
        names = [f"{kind}-{compiler}.so", f"{kind}-{compiler}-{host}.so"]
        found = [folder / name for name in names] if compiler else sorted(folder.glob(f"{kind}-*.so"))
        for path in filter(Path.is_file, found):
            try:
                if path.lstat().st_uid != os.geteuid():  # from a time when others could write in the folder
                    raise Unavailable("another user wrote it")
                return _open(path)
            except Unavailable as error:
                _log.debug("%s: compiled again for this machine", error)
        target = next((path for path in found if not path.exists()), folder / names[-1])
        _compile(command, target)
        return _open(target)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time look for a library and compile it. Without file locks several may compile."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if not has_no_locks(error):
                raise
        yield
    finally:
        os.close(descriptor)


def _c_library() -> str:
    """Name and version of the C library."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # not glibc
        return " ".join(platform.libc_ver())


def _compiler() -> tuple[list[str], str | None]:
    """The command of the compiler, and what identifies its version; None: there is no such program."""
    variable = os.environ.get("CXX", "")
    try:
        command = shlex.split(variable) or [next(filter(shutil.which, _COMPILERS), "")]
    except ValueError as error:
        raise Unavailable(f"CXX={variable}: not a command ({error})") from error
    found = shutil.which(command[0])
    if found is None:
        return command, None
    path = Path(found).resolve()
    program = path.stat()
    identity = f"{path} {program.st_size} {program.st_mtime_ns} {command[1:]}"
    return command, hashlib.sha256(identity.encode()).hexdigest()[:8]


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the compiled kernels cannot be loaded ({error})") from error


def _compile(command: list[str], target: Path) -> None:
    """Compile into ``target``, which is created atomically.

    Raises:
        OSError: its folder cannot be written, or the disk is full.
        Unavailable: the compiler fails.
    """
    compiler = command[0]
    if not compiler:
        raise Unavailable("no C++ compiler on this machine")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        # The server of a compiler cache may hold the end of a pipe, and the disk may be full.
        with open(os.memfd_create("messages"), "w+b") as messages:
            try:
                done = subprocess.run(
                    [*command, str(made)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=messages,
                    timeout=_TIMEOUT_S,
                    env={**os.environ, "TMPDIR": folder, "LC_ALL": "C"},
                )
            except OSError as error:  # for example a program of another processor
                raise Unavailable(f"CXX={compiler}: not a compiler that can be run ({error.strerror})") from error
            except subprocess.TimeoutExpired as error:
                raise Unavailable(f"{compiler} did not end within {_TIMEOUT_S} s") from error
            messages.seek(0)
            said = messages.read().decode(errors="replace")
        if done.returncode:
            if os.strerror(errno.ENOSPC) in said:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.parent))
            lines = [line.strip() for line in said.splitlines() if not line.startswith("collect2:")]
            why = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit {done.returncode}")
            raise Unavailable(f"{compiler} cannot compile the kernels ({why})")
        os.replace(made, target)
    _log.info("compiled kernels for this processor in %.1f s", time.perf_counter() - started)
