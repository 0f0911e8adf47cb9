"""Paths that are not UTF-8, and locales with another encoding: a path is bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swe_infer.run_directory.reader import RunDirectory
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""An ASCII locale in which Python does not choose UTF-8 by itself."""


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(commands.ROOT),
        "OPENAI_API_KEY": "sk-test",
        "WANDB_MODE": "offline",
        **more,
    }


def asked(server: ApiServer, folder: str) -> list[str]:
    return [
        "model=gpt-4o", f"provider.base_url={server.openai_url}", "evaluation=none", "dataset=jsonl",
        f"dataset.path={folder}/data.jsonl",
    ]  # fmt: skip


def test_every_command_reads_and_names_a_folder_that_is_not_utf8(server: ApiServer, tmp_path: Path) -> None:
    folder = "\udce9"
    (tmp_path / folder).mkdir()
    write_instances(tmp_path / folder / "data.jsonl", 2)

    def run(module: str, *arguments: str, status: int = 0) -> str:
        ended = commands.run(module, *arguments, cwd=tmp_path, env=environment())
        assert ended.returncode == status, ended.stderr
        return ended.stdout + ended.stderr

    options = ["tracker.mode=offline", "budget.max_usd=1"]
    said = run("swe_infer", *asked(server, folder), *options, f"output_dir={folder}/run")
    assert "swe-infer-compare \"$(printf '\\351/run')\" OTHER_RUN_DIR" in said
    assert f"{tmp_path}/\\xe9/run: its path is not UTF-8, which W&B requires; rename it. The run goes on." in said
    assert RunDirectory(tmp_path / folder / "run").config()["output_dir"] == f"{folder}/run"

    shown = run("swe_infer.runs", "show", f"{folder}/run")
    assert "state      complete" in shown
    path, output = (f"\"$(printf '{part}')\"" for part in (r"dataset.path=\351/data.jsonl", r"output_dir=\351/run"))
    assert f"{path} tracker.mode=offline budget.max_usd=1 {output}" in shown
    sent = len(server.log.exchanges)
    run("swe_infer", f"from={folder}/run", f"provider.base_url={server.openai_url}", f"output_dir={folder}/run")
    assert len(server.log.exchanges) == sent
    run("swe_infer.compare", f"{folder}/run", f"{folder}/run", "--html", f"{folder}/page.html")
    run("swe_infer.patches", f"{folder}/run")
    run("swe_infer.select", f"{folder}/run", "--by", "first", "--out", f"{folder}/selected.jsonl")
    sweep = ["-m", *asked(server, folder), "tracker=none", "decoding=sample", "decoding.temperature=0.2,0.4"]
    assert "2 of 2 runs finished" in run("swe_infer", *sweep)
    assert "2 of 2 runs finished: \\xe9/sweep" in run("swe_infer", *sweep, f"output_dir={folder}/sweep")
    assert "\\xe9/moved" in run("swe_infer.runs", "move", f"{folder}/run", f"{folder}/moved")
    assert "error: nope\\xe9: not a run directory" in run("swe_infer.evaluate", "nope\udce9", status=2)


def test_a_run_is_the_same_in_every_locale(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "é").mkdir()
    write_instances(tmp_path / "é" / "data.jsonl", 1)
    run = [*asked(server, "é"), "tracker=none", "output_dir=é/run"]
    for locale in (ASCII, {}):
        ended = subprocess.run(
            [sys.executable, "-m", "swe_infer", *run], cwd=tmp_path, env=environment(**locale),
            capture_output=True, check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout == "é/run\n".encode()
        assert "compare    swe-infer-compare 'é/run' OTHER_RUN_DIR".encode() in ended.stderr
        config = RunDirectory(tmp_path / "é" / "run").config()
        assert (config["output_dir"], config["dataset"]["path"]) == ("é/run", "é/data.jsonl")
    provenance = json.loads((tmp_path / "é" / "run" / "provenance.json").read_text())
    assert [entry["command"].partition("tracker")[2] for entry in provenance["commands"]] == [
        "=none 'output_dir=é/run'"
    ]


COMMAND = """
import subprocess, sys
from swe_infer.interrupts import run_command
def main():
    print(*map(ascii, sys.argv[1:]), flush=True)
    code = 'import sys; print(sys.getfilesystemencoding())'
    subprocess.run([sys.executable, '-c', code])
if __name__ == '__main__':
    run_command('command')
"""


RUN = "from swe_infer.interrupts import run_command; run_command('command')"


def command_says(tmp_path: Path, *python: str, program: str | None = None, **environ: str) -> tuple[str, str]:
    """What ``COMMAND`` prints for the arguments ``é 日本 \\xe9``."""
    (tmp_path / "command.py").write_text(COMMAND)
    ended = subprocess.run(
        [sys.executable, *python, "é", "日本", b"\xe9"], cwd=tmp_path, input=program,
        env=environment(**environ, PYTHONPATH=f"{commands.ROOT}{os.pathsep}{tmp_path}"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ended.stdout, ended.stderr


@pytest.mark.parametrize("options", [[], ["-X", "utf8"], ["-X", "utf8=0", "-W", "error"], ["-E", "-X", "utf8=0"]])
def test_processes_of_a_command_use_utf8_too(tmp_path: Path, options: list[str]) -> None:
    program = f"import sys; sys.path[:0] = {[str(commands.ROOT), str(tmp_path)]}; import command; {RUN}"
    for python in (["-m", "command"], ["-c", program]):
        if "-E" not in options or python[0] == "-c":
            said = command_says(tmp_path, *options, *python, **ASCII)
            assert said == ("'\\xe9' '\\u65e5\\u672c' '\\udce9'\nutf-8\n", "")


def test_a_program_on_standard_input_runs_in_its_locale(tmp_path: Path) -> None:
    output, error = command_says(tmp_path, "-", program=RUN, **ASCII)
    assert (output.splitlines()[-1], error) == ("ascii", "")


def test_arguments_that_pythons_codec_cannot_encode_are_kept(tmp_path: Path) -> None:
    """The C library reads the UTF-8 bytes of ``日本`` as characters of EUC-JP that Python's codec does not have."""
    if shutil.which("localedef") is None:
        pytest.skip("no localedef")
    made = subprocess.run(["localedef", "-c", "-i", "ja_JP", "-f", "EUC-JP", tmp_path / "ja"], check=False)
    if not (tmp_path / "ja").is_dir():
        pytest.skip(f"localedef cannot make a locale: status {made.returncode}")
    said = command_says(tmp_path, "-m", "command", LOCPATH=str(tmp_path), LC_ALL="ja", PYTHONUTF8="0")
    assert said == ("'\\xe9' '\\u65e5\\u672c' '\\udce9'\nutf-8\n", "")
