"""Compiles the C++ kernels once per machine, with the installed compiler.

The library is cached in ``$XDG_CACHE_HOME/swe_infer/kernels`` (``~/.cache/swe_infer/kernels``). Its name covers the
instruction set, the sources and flags, the C library and the compiler. A library is executed, so the folder must
belong to the user, and nobody else may write in it or replace it through a folder above it. Where it does not, or
cannot be written or executed from, the kernels are compiled for the process alone.

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
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache, partial
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.files import own_folder
from swe_infer.locks import has_no_locks
from swe_infer.resources import cache_home

_log = logging.getLogger(__name__)

_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC", "-fvisibility=protected")
_VARIABLE = "SWE_INFER_NATIVE_KERNELS"
_AVX2 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe", "abm"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
_SETS = {
    "avx2": (_AVX2, ("-march=x86-64-v3",)),
    "avx512": (_AVX512, ("-march=x86-64-v4",)),
    "amx": (_AVX512 | {"amx_tile", "amx_bf16"}, ("-march=x86-64-v4", "-mamx-tile", "-mamx-bf16")),
}
"""Instruction sets of x86-64, the latest last: flags of the processor, as named by Linux, and of the compiler."""
_LIMITS = ("off", *_SETS)
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
    sets = [name for name in _LIMITS[1 : _LIMITS.index(limit) + 1] if features >= _SETS[name][0]]
    if bfloat16 and not ("avx512" in sets and "avx512_bf16" in features):
        raise Unavailable("bfloat16 needs a processor with AVX-512 BF16")
    if not sets:
        raise Unavailable("needs a processor with AVX2 and FMA")
    flags = ("-mavx512bf16", "-DBFLOAT16") if bfloat16 else ()
    if sets[-1] == "amx":
        try:
            loaded = compiled("amx", *_SETS["amx"][1], *flags)
            if loaded.initialise():
                return loaded
            reason = "Linux does not grant its registers to this process"
        except Unavailable as error:  # for example an older compiler
            reason = str(error)
        loaded = library(bfloat16, "avx512")
        _log.warning("no kernels with AMX: %s", reason)
        return loaded
    return compiled(sets[-1], *_SETS[sets[-1]][1], *flags)


def _processor() -> frozenset[str]:
    """CPU feature flags, as named by Linux."""
    with suppress(OSError):  # then no kernels are chosen, which is a warning
        if found := re.search(r"^flags\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return frozenset(found[1].split())
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
    digest = hashlib.sha256("\0".join((*_FLAGS, *flags, *platform.libc_ver())).encode())
    for path in (*sources, *sorted(folder.glob("*.h"))):
        digest.update(path.read_bytes())
    compiler, identity = _compiler()
    command = [*compiler, *_FLAGS, *flags, *map(str, sources), "-o"]
    try:
        if (home := cache_home()) is None:
            raise FileNotFoundError("this user has no home directory")
        return _cached(home / "kernels", f"{name}-{digest.hexdigest()[:16]}", identity, command)
    except OSError as error:
        reason = error
    try:
        with tempfile.TemporaryDirectory() as alone:
            loaded = _compile(command, Path(alone) / "kernels.so")
    except OSError as error:
        raise Unavailable(f"they cannot be compiled in the folder for temporary files: {error}") from error
    _log.warning("compiled kernels for this process alone, which takes a few seconds: %s", reason)
    return loaded


def _cached(folder: Path, kind: str, compiler: str | None, command: list[str]) -> ctypes.CDLL:
    """Load the library of a compiler; without a compiler, that of any. One process at a time looks for it and
    compiles it. Machines with other runtimes may share the folder: a library that cannot be loaded stays, and this
    machine compiles its own beside it.

    Raises:
        OSError: the folder cannot be written, is not this user's alone, or programs may not run from it.
    """
    folder = own_folder(folder)
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise PermissionError(f"{folder} is on a file system that is mounted noexec")
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    with open(folder / "lock", "w", opener=partial(os.open, mode=0o600)) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # without locks several processes may compile
            if not has_no_locks(error):
                raise
        own = [folder / f"{kind}-{compiler}.so", folder / f"{kind}-{compiler}-{host}.so"]
        for path in own if compiler else sorted(folder.glob(f"{kind}-*.so")):
            if not path.exists():
                return _compile(command, path)
            try:
                if path.lstat().st_uid == os.geteuid():  # else from a time when others could write in the folder
                    return ctypes.CDLL(str(path))
            except OSError as error:
                _log.debug("%s: compiled again for this machine: %s", path, error)
        return _compile(command, own[-1])


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
    return command, hashlib.sha256(os.fsencode(identity)).hexdigest()[:8]


def _compile(command: list[str], target: Path) -> ctypes.CDLL:
    """Compile and load a library, and then create ``target`` atomically.

    Raises:
        OSError: its folder cannot be written, or the disk is full.
        Unavailable: the compiler fails, or makes a library that cannot be loaded.
    """
    compiler = command[0]
    if not compiler:
        raise Unavailable("no C++ compiler on this machine")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        # The server of a compiler cache may hold the end of a pipe, and the disk may be full.
        with open(os.memfd_create("messages"), "w+b") as messages:
            run = partial(subprocess.run, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages)
            environment = {**os.environ, "TMPDIR": folder, "LC_ALL": "C"}
            try:
                done = run([*command, str(made)], timeout=_TIMEOUT_S, env=environment)
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
        try:
            ctypes.CDLL(str(made))
        except OSError as error:
            raise Unavailable(f"the compiled kernels cannot be loaded ({error})") from error
        os.replace(made, target)
    _log.info("compiled kernels for this processor in %.1f s", time.perf_counter() - started)
    return ctypes.CDLL(str(target))
