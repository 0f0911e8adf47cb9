"""The cache of compiled kernels, which machines with different libraries may share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from swe_infer.llama.native.build import Unavailable, cached_library

COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
FLAGS = ("-shared", "-fPIC")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "kernel.cpp"
    path.write_text('extern "C" int answer() { return 42; }\n')
    return path


def of_another_machine(target: Path, folder: Path) -> None:
    """A library at ``target`` that depends on one that is missing here."""
    gone, needs = folder / "libgone.so", folder / "needs.cpp"
    needs.write_text('extern "C" int gone(); extern "C" int answer() { return gone(); }\n')
    (folder / "gone.cpp").write_text('extern "C" int gone() { return 0; }\n')
    assert COMPILER is not None
    subprocess.run([COMPILER, *FLAGS, folder / "gone.cpp", "-o", gone], check=True)
    subprocess.run([COMPILER, *FLAGS, needs, "-o", target, gone, f"-Wl,-rpath,{folder}"], check=True)
    gone.unlink()


def test_a_library_that_cannot_be_loaded_is_compiled_again_and_kept(source: Path, tmp_path: Path) -> None:
    home = tmp_path / "cache"
    home.mkdir()
    target = home / "kernels-0123.so"
    for damaged in (False, True):
        for file in home.iterdir():
            file.unlink()
        if damaged:
            target.write_bytes(b"\x7fELF torn")
        else:
            of_another_machine(target, tmp_path)
        before = target.read_bytes()
        assert cached_library([source], FLAGS, target).answer() == 42
        assert target.read_bytes() == before, "the other machine's library is unchanged"
        own = {path: path.stat().st_mtime_ns for path in home.iterdir()}
        assert len(own) == 2
        assert cached_library([source], FLAGS, target).answer() == 42
        assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == own, "compiled once"


def test_a_compile_error_is_the_reason_given(source: Path, tmp_path: Path) -> None:
    source.write_text("no C++\n")
    with pytest.raises(Unavailable, match="cannot compile"):
        cached_library([source], FLAGS, tmp_path / "kernels.so")
