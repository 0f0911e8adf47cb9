"""Commands whose standard streams are closed, full or without a reader."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

COMMAND = """
import subprocess
import sys

from swe_infer.interrupts import run_command


def main():
    with open("records", "w") as records:
        print("progress", file=sys.stderr, flush=True)
        subprocess.run(["sh", "-c", "echo warning >&2"])
        records.write("a record")
    sys.stdout.write("line\\n" * 100_000)


if __name__ == "__main__":
    run_command("command")
"""


@pytest.mark.parametrize(
    ("streams", "status", "said"),
    [
        ("2>&- >/dev/null", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full >/dev/null", 0, ""),
        ("2> >(true) >/dev/null", 0, ""),
        ("> >(true)", 0, "progress\nwarning\n"),
        (">&-", 0, "progress\nwarning\n"),
        (">/dev/full", 1, "progress\nwarning\nerror: standard output: No space left on device\n"),
    ],
)
def test_a_command_outlives_its_standard_streams(streams: str, status: int, said: str, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    ended = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m command {streams}'],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (status, said)
    assert (tmp_path / "records").read_text() == "a record"


def test_a_full_pipe_that_is_not_blocking_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(COMMAND)
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with open(reads) as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "command"], cwd=tmp_path, stdout=writes,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        )  # fmt: skip
        os.close(writes)
        assert output.read() == "line\n" * 100_000
    assert process.wait(60) == 0


@pytest.mark.parametrize(("encoding", "written"), [("ascii", b"\\xe9-\xc3\n"), ("utf-8", b"\xc3\xa9-\xc3\n")])
def test_a_path_that_the_encoding_lacks_is_written(encoding: str, written: bytes, tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "from swe_infer.interrupts import run_command\n"
        "def main():\n    print('\\xe9-\\udcc3')\n"
        "if __name__ == '__main__':\n    run_command('command')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "command"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "PYTHONIOENCODING": encoding},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, written, b"")
