"""Compiles the C++ kernels once per machine, with the installed compiler.

The library is cached in ``$XDG_CACHE_HOME/swe_infer`` (``~/.cache/swe_infer``) under a hash of the sources, the flags
and the C library. Machines with different C++ runtimes may share a home directory: where a cached library cannot be
loaded, the machine compiles its own.

The environment variable ``SWE_INFER_NATIVE_KERNELS`` limits the kernels: ``off`` disables them, ``avx512`` disables
AMX; ``amx`` or nothing is no limit.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path

from swe_infer.errors import ConfigError
from swe_infer.resources import cache_home

_log = logging.getLogger(__name__)

_FLAGS = ("-std=c++17", "-O3", "-march=x86-64-v4", "-fopenmp", "-shared", "-fPIC", "-Wl,-Bsymbolic")
_FLOAT32_FLAGS = ("-DFLOAT32",)
_BFLOAT16_FLAGS = ("-mavx512bf16",)
_AMX_FLAGS = ("-mamx-tile", "-mamx-bf16")
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_BFLOAT16 = frozenset({"avx512_bf16"})
_AMX = frozenset({"amx_tile", "amx_bf16"})
_VARIABLE = "SWE_INFER_NATIVE_KERNELS"
_LIMITS = ("off", "avx512", "amx")
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT_S = 120


class Unavailable(Exception):
    """The reason why the kernels are not available on this machine."""


def check_limit() -> str:
    """Return the limit that the environment sets: ``off``, ``avx512`` or ``amx``.

    Raises:
        ConfigError: any other value.
    """
    limit = os.environ.get(_VARIABLE) or "amx"
    if limit not in _LIMITS:
        raise ConfigError(f"{_VARIABLE}={limit}: must be off, avx512 or amx")
    return limit


@cache
def library(bfloat16: bool, amx: bool = True) -> ctypes.CDLL:
    """Return the compiled kernels.

    Args:
        bfloat16: element type bfloat16, else float32.
        amx: use AMX, if the CPU has it, for products with bfloat16 weights.

    Raises:
        Unavailable: unsupported CPU, no working compiler, or disabled by the environment.
        ConfigError: see :func:`check_limit`.
    """
    limit = check_limit()
    if limit == "off":
        raise Unavailable(f"turned off by {_VARIABLE}=off")
    features = _processor()
    if not features >= _AVX512:
        raise Unavailable("needs a processor with AVX-512")
    if bfloat16 and not features >= _BFLOAT16:
        raise Unavailable("needs a processor with AVX-512 BF16")
    flags = _FLAGS + (_BFLOAT16_FLAGS if bfloat16 else _FLOAT32_FLAGS)
    if amx and limit == "amx" and features >= _AMX:
        try:
            loaded = _load(flags + _AMX_FLAGS)
        except Unavailable as error:
            _log.debug("no kernels with AMX: %s", error)  # for example an older compiler
        else:
            if loaded.initialise():
                return loaded
            _log.debug("the kernel does not grant AMX tiles to this process")
    return _load(flags)


def _processor() -> frozenset[str]:
    """CPU feature flags, as named by Linux."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return frozenset()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except OSError as error:
        _log.debug("/proc/cpuinfo cannot be read: %s", error)
    return frozenset()


def _load(flags: tuple[str, ...]) -> ctypes.CDLL:
    sources = sorted(Path(__file__).parent.glob("*.cpp"))
    digest = hashlib.sha256("\0".join(flags).encode())
    for path in (*sources, *sorted(Path(__file__).parent.glob("*.h"))):
        digest.update(path.read_bytes())
    digest.update(f"{platform.machine()} {_c_library()}".encode())
    home = cache_home()
    if home is not None:
        try:
            return cached_library(sources, flags, home / f"kernels-{digest.hexdigest()[:16]}.so")
        except OSError as error:
            _log.debug("%s cannot be written (%s); compiling the kernels for this process only", home, error)
    with tempfile.TemporaryDirectory() as alone:
        target = Path(alone) / "kernels.so"
        _compile(sources, flags, target)
        return _open(target)


def cached_library(sources: list[Path], flags: tuple[str, ...], target: Path) -> ctypes.CDLL:
    """Load the library at ``target``, compiling it if it is missing. If it was compiled on a machine with another
    runtime, use one of this machine's own beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if target.is_file():
        try:
            return _open(target)
        except Unavailable as error:
            _log.debug("%s: compiled again for this machine", error)
        target = target.with_stem(f"{target.stem}-{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}")
        if target.is_file():
            try:
                return _open(target)
            except Unavailable as error:
                _log.debug("%s: compiled again, because this machine has changed", error)
    _compile(sources, flags, target)
    return _open(target)


def _c_library() -> str:
    """Name and version of the C library."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # not glibc
        return " ".join(platform.libc_ver())


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"the compiled kernels cannot be loaded ({error})") from error


def _compile(sources: list[Path], flags: tuple[str, ...], target: Path) -> None:
    """Compile into ``target``, which is created atomically, since several processes may do so."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise Unavailable("no C++ compiler on this machine")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [*compiler.split(), *flags, *map(str, sources), "-o", str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S)
        except (FileNotFoundError, PermissionError) as error:
            raise Unavailable(f"CXX={compiler}: not a compiler that can be run") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{compiler} did not end within {_TIMEOUT_S} s") from error
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if "error" in line), f"exit {done.returncode}")
            raise Unavailable(f"{compiler} cannot compile the kernels ({why.strip()})")
        os.replace(made, target)
    _log.info("compiled kernels for this processor in %.1f s", time.perf_counter() - started)
