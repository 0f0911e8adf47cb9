"""The cache of compiled kernels, with small sources in place of the kernels."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swe_infer.llama.native.build import Unavailable, compiled
from tests.support import commands

COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with one source."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "kernel.cpp").write_text('extern "C" int answer() { return 42; }\n')
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of compiled kernels, which does not exist yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "home" / "swe_infer" / "kernels"


def answer(source: Path, *flags: str, name: str = "test") -> int:
    found: int = compiled(name, *flags, folder=source).answer()
    return found


def planted(source: Path, cache: Path, name: str) -> Path:
    """Where the library of another name will be looked for. One that this process has loaded would stay loaded."""
    answer(source)
    (library,) = cache.glob("test-*.so")
    return library.rename(library.with_name(library.name.replace("test", name)))


def libraries(cache: Path) -> dict[str, int]:
    """When each library was compiled."""
    return {path.name: path.stat().st_mtime_ns for path in cache.glob("*.so")}


def fake_compiler(tmp_path: Path, script: str) -> Path:
    compiler = tmp_path / "compiler"
    compiler.write_text(script if script == "\0" else f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    return compiler


def test_a_library_is_compiled_once_for_its_source_flags_and_compiler(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer(source) == answer(source) == 42
    first = libraries(cache)
    assert len(first) == 1
    assert cache.stat().st_mode & 0o777 == 0o700
    answer(source, "-DOTHER")
    assert len(libraries(cache)) == 2
    (source / "kernel.cpp").write_text('extern "C" int answer() { return 43; }\n')
    assert answer(source) == 43
    (source / "kernel.h").touch()
    (source / "kernel.h").write_text("// no change of the result\n")
    assert answer(source) == 43
    before = libraries(cache)
    assert len(before) == 4
    assert before.items() >= first.items()
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, 'exec c++ "$@"')))
    assert answer(source) == 43
    assert len(libraries(cache)) == 5
    for command in ("/no/compiler", "/no/compiler -v"):  # a library of any compiler will do
        monkeypatch.setenv("CXX", command)
        assert answer(source) == 43
    assert len(libraries(cache)) == 5


def test_processes_that_start_together_compile_once(source: Path, cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    compiler = fake_compiler(tmp_path, f'echo compiled >> {log}; sleep 1; exec c++ "$@"')
    code = (
        "import sys; from pathlib import Path; from swe_infer.llama.native.build import compiled; "
        "print(compiled('test', folder=Path(sys.argv[1])).answer())"
    )

    def run(_: int) -> str:
        environment = {**os.environ, "CXX": str(compiler)}
        command = [sys.executable, "-c", code, str(source)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stdout

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(run, range(3))) == ["42\n"] * 3
    assert log.read_text() == "compiled\n"
    assert len(libraries(cache)) == 1


def test_a_library_that_another_user_may_have_written_is_not_loaded(
    source: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = planted(source, cache, "planted")
    library.unlink()
    library.write_bytes(b"not to be loaded")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(cache, elsewhere)
    for attack in ("writable", "link", "owner"):
        if attack == "writable":
            cache.chmod(0o777)
        elif attack == "link":
            shutil.rmtree(cache)
            cache.symlink_to(elsewhere)
        elif os.geteuid() == 0:
            cache.unlink()
            shutil.copytree(elsewhere, cache)
            os.chown(cache, 12345, -1)
        else:
            continue
        caplog.clear()
        assert answer(source, name="planted") == 42
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "must be a folder of this user in which nobody else may write" in caplog.text
        assert (cache / library.name).read_bytes() == b"not to be loaded"


def test_a_cache_that_another_user_may_replace_is_not_used(
    source: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer(source)
    above = cache.parent.parent
    kept = above.stat()

    def is_used(mode: int, owner: int = -1, group: int = -1) -> bool:
        os.chown(above, owner, group)
        above.chmod(mode)
        caplog.clear()
        before = libraries(cache)
        try:
            assert answer(source, f"-DMODE={mode}", f"-DOWNER={owner}", f"-DGROUP={group}") == 42
        finally:
            os.chown(above, kept.st_uid, kept.st_gid)
            above.chmod(kept.st_mode)
        is_refused = f"{above} belongs to another user, or others may write in it" in caplog.text
        assert is_refused == (libraries(cache) == before)
        return not is_refused

    assert not is_used(0o777)
    assert not is_used(0o757)
    if os.geteuid() == 0:
        assert not is_used(0o755, owner=12345)
        assert not is_used(0o1777, owner=12345), "the owner of a sticky folder may rename all in it"
        assert not is_used(0o775, group=12345)
    assert is_used(0o1777)
    assert is_used(0o755)


def of_another_machine(target: Path, folder: Path) -> None:
    """A library at ``target`` that depends on one that is missing here."""
    gone, needs = folder / "libgone.so", folder / "needs.cpp"
    needs.write_text('extern "C" int gone(); extern "C" int answer() { return gone(); }\n')
    (folder / "gone.cpp").write_text('extern "C" int gone() { return 0; }\n')
    assert COMPILER is not None
    flags = ("-shared", "-fPIC")
    subprocess.run([COMPILER, *flags, folder / "gone.cpp", "-o", gone], check=True)
    subprocess.run([COMPILER, *flags, needs, "-o", target, gone, f"-Wl,-rpath,{folder}"], check=True)
    gone.unlink()


def test_a_library_that_cannot_be_loaded_is_compiled_again_and_kept(
    source: Path, cache: Path, tmp_path: Path
) -> None:
    for damaged in (False, True):
        name = f"damaged{damaged}"
        library = planted(source, cache, name)
        library.unlink()
        if damaged:
            library.write_bytes(b"\x7fELF torn")
        else:
            of_another_machine(library, tmp_path)
        before = library.read_bytes()
        assert answer(source, name=name) == 42
        assert library.read_bytes() == before, "the other machine's library is unchanged"
        own = libraries(cache)
        assert len([found for found in own if found.startswith(name)]) == 2
        assert answer(source, name=name) == 42
        assert libraries(cache) == own, "compiled once"


def test_without_a_cache_directory_kernels_are_compiled_for_the_process(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file")
    assert answer(source) == 42
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert answer(source) == 42


def run_mounted(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a command that may mount something with ``unshare``, and exits with 77 if it may not."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("may not mount a file system")
    return done


@pytest.mark.parametrize("problem", ["full", "noexec", "homeless"])
def test_where_the_cache_cannot_be_used_kernels_are_compiled_for_the_process(
    source: Path, cache: Path, tmp_path: Path, problem: str
) -> None:
    full = 'case "$*" in */swe_infer/kernels/*) echo "ld: No space left on device" >&2; exit 1; esac; exec c++ "$@"'
    code = (
        "import logging, os, sys; from pathlib import Path; from swe_infer.llama.native.build import compiled; "
        "logging.basicConfig(); len(sys.argv) < 3 or os.setresuid(int(sys.argv[2]), 0, 0); "
        "print(compiled('test', folder=Path(sys.argv[1])).answer())"
    )
    command = [sys.executable, "-c", code, str(source)]
    environment = dict(os.environ)
    if problem == "homeless":
        if os.geteuid() != 0:
            pytest.skip("only root may become a user that is not in the system's list")
        command.append("54321")
        del environment["XDG_CACHE_HOME"]
        environment.pop("HOME", None)
        reason = "this user has no home directory"
    elif problem == "full":
        environment["CXX"] = str(fake_compiler(tmp_path, full))
        reason = "No space left on device"
    else:
        mount = 'mkdir -p "$0" && mount -t tmpfs -o noexec,mode=700 none "$0"'
        command = ["unshare", "-m", "sh", "-c", f'{mount} || exit 77; exec "$@"', str(cache), *command]
        reason = "is on a file system that is mounted noexec"
    done = run_mounted(command, environment)
    assert done.stdout == "42\n", done.stderr
    assert done.stderr.count("WARNING") == 1
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "not a compiler that can be run"),
        ("\0", r"not a compiler that can be run \(Exec format error\)"),
        (
            "echo 'ld: undefined symbol' >&2; echo 'collect2: error: ld failed' >&2; exit 1",
            r"\(ld: undefined symbol\)",
        ),
        ("echo 'x.cpp:1: error: no flag' >&2; exit 1", r"cannot compile the kernels \(x.cpp:1: error: no flag\)"),
        ('while [ "$1" != -o ]; do shift; done; echo rubbish > "$2"', "cannot be loaded"),
    ],
    ids=["missing", "not_a_program", "linker", "failing", "invalid_library"],
)
def test_a_failing_compiler_is_the_reason(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, reason: str
) -> None:
    compiler = fake_compiler(tmp_path, script) if script else tmp_path / "compiler"
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(Unavailable, match=reason):
        answer(source)
    assert cache.is_dir()


def test_a_compiler_that_starts_a_server_is_not_waited_for(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As sccache does. The server keeps the compiler's standard error open."""
    server = f'sleep 150 & echo $! > "{tmp_path}/server"; exec c++ "$@"'
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path, server)))
    try:
        assert answer(source) == 42
    finally:
        os.kill(int((tmp_path / "server").read_text()), signal.SIGKILL)


def test_a_variable_that_is_no_command_is_the_reason(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "g++ '")
    with pytest.raises(Unavailable, match=r"^CXX=g\+\+ ': not a command \(No closing quotation\)$"):
        answer(source)


def test_a_relative_cache_directory_is_ignored(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory may belong to anyone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert answer(source) == 42
    assert not Path("here").exists()
    assert len(libraries(tmp_path / ".cache" / "swe_infer" / "kernels")) == 1


def test_options_in_the_variable_do_not_hide_the_kernels(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "c++ -fvisibility=hidden")
    assert answer(source) == 42


def test_the_path_of_a_compiler_may_have_bytes_that_are_not_utf_8(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.setenv("CXX", str(fake_compiler(folder, 'exec c++ "$@"')))
    assert answer(source) == 42


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_library_of_another_user_in_the_folder_is_not_loaded(source: Path, cache: Path) -> None:
    os.chown(planted(source, cache, "foreign"), 12345, -1)
    assert answer(source, name="foreign") == 42
    assert len([name for name in libraries(cache) if name.startswith("foreign")]) == 2


def test_a_missing_compiler_is_the_reason(
    source: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The only one, also where there can be no cache."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for blocked in (False, True):
        if blocked:
            shutil.rmtree(cache.parent)
            cache.parent.touch()
        with pytest.raises(Unavailable, match=r"^no C\+\+ compiler on this machine$"):
            answer(source)
        assert not libraries(cache)
    assert not caplog.records


OTHER_PROCESSOR = """
import ctypes, logging, sys, torch
from swe_infer.llama.native.kernels import load_kernels

NEW_NAMESPACE, PRIVATE, RECURSIVE, BIND = 0x20000, 0x40000, 0x4000, 0x1000  # of linux/sched.h and linux/mount.h
libc = ctypes.CDLL(None)
if (
    libc.unshare(NEW_NAMESPACE)
    or libc.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None)
    or libc.mount(sys.argv[1].encode(), b"/proc/cpuinfo", None, BIND, None)
):
    sys.exit(77)
logging.basicConfig()
print(load_kernels(torch.float32))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is an extension of x86-64")
def test_one_warning_says_that_no_instruction_set_has_kernels(cache: Path, tmp_path: Path) -> None:
    """On a processor with AMX, which is described by a file in place of /proc/cpuinfo."""
    sets = "avx2 fma f16c bmi1 bmi2 movbe abm avx512f avx512bw avx512dq avx512vl avx512cd amx_tile amx_bf16"
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {sets}\n")
    environment = {**os.environ, "SWE_INFER_NATIVE_KERNELS": "", "PATH": "/nowhere"}
    file = str(tmp_path / "cpuinfo")
    done = commands.run("-c", OTHER_PROCESSOR, file, cwd=tmp_path, env=environment, packages=commands.LOCAL)
    if done.returncode == 77:
        pytest.skip("may not mount a file system")
    assert done.stdout == "no C++ compiler on this machine\n", done.stderr
    assert done.stderr.count("WARNING") == 1
