"""Paths that are not UTF-8, and locales with another encoding: a path is bytes."""

from __future__ import annotations

import json
import os
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
    assert "swe-infer-compare $'\\351/run' OTHER_RUN_DIR" in said
    assert f"{tmp_path}/\\xe9/run: its path is not UTF-8, which W&B requires; rename it. The run goes on." in said
    assert RunDirectory(tmp_path / folder / "run").config()["output_dir"] == f"{folder}/run"

    shown = run("swe_infer.runs", "show", f"{folder}/run")
    assert "state      complete" in shown
    assert "$'dataset.path=\\351/data.jsonl' tracker.mode=offline budget.max_usd=1 $'output_dir=\\351/run'" in shown
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


def test_processes_of_a_command_use_utf8_too(tmp_path: Path) -> None:
    (tmp_path / "command.py").write_text(
        "import subprocess, sys\n"
        "from swe_infer.interrupts import run_command\n"
        "def main():\n"
        "    print(*map(ascii, sys.argv[1:]), flush=True)\n"
        "    code = 'import sys; print(sys.getfilesystemencoding())'\n"
        "    subprocess.run([sys.executable, '-c', code])\n"
        "if __name__ == '__main__':\n    run_command('command')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "command", "é", b"\xe9"], cwd=tmp_path,
        env=environment(**ASCII, PYTHONPATH=f"{commands.ROOT}{os.pathsep}{tmp_path}"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "'\\xe9' '\\udce9'\nutf-8\n", "")
