"""Runs whose prompts are rendered from a repository, as a user starts them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swe_infer.compare.analysis import compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_run
from swe_infer.run_directory.records import read_records
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.base_commit import BaseCommit
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent
EDITS = (
    "src/dos.py\n<<<<<<< SEARCH\nb = 'caf\ufffd'\n=======\nb = 'caf\ufffd' + 's'\n>>>>>>> REPLACE\n"
    "src/deep/more.py\n<<<<<<< SEARCH\nm = 1\n=======\nm = 2\n>>>>>>> REPLACE\n"
)
"""Of a line with a byte that is not UTF-8, in a file with carriage returns, and of a file that is not shown."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseCommit:
    return BaseCommit(tmp_path_factory.mktemp("base"))


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(answer=lambda prompt: EDITS) as server:
        yield server


def environment() -> dict[str, str]:
    return {**os.environ, "OPENAI_API_KEY": "sk-loopback-0123456789", "PYTHONPATH": str(ROOT)}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env=environment())


def records(directory: Path) -> list[dict[str, Any]]:
    return [dict(record) for record in read_records(directory / "records.jsonl")]


def test_answers_of_a_batch_that_another_process_handed_in_are_checked_against_the_repository(
    base: BaseCommit, server: ApiServer, tmp_path: Path
) -> None:
    arguments = base.arguments(
        "context=oracle", "prompt=search_replace", "model=gpt-4o", f"provider.base_url={server.openai_url}",
        "provider.mode=batch", "runner.batches.first_poll_s=0.1", "decoding.n=2", "output_dir=run",
    )  # fmt: skip
    server.batches.held = True
    process = commands.start("swe_infer", *arguments, cwd=tmp_path, env=environment())
    journal = tmp_path / "run" / "batches.jsonl"
    while not (journal.exists() and b'"submitted"' in journal.read_bytes()) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not records(tmp_path / "run")
    server.batches.held = False
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = records(tmp_path / "run")
    assert len(server.batches.submitted()) == 1
    assert [record["patch_status"] for record in found] == 6 * ["applies"], found
    predictions = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 3
    for prediction in predictions:
        assert base.after(prediction["model_patch"]) == {
            "src/dos.py": b"a = 1\r\nb = 'caf\xe9' + 's'\r\nc = 3\r\n",
            "src/deep/more.py": b"m = 2",
        }


def test_a_sweep_over_prompts_shows_prompt_and_context_as_columns(server: ApiServer, tmp_path: Path) -> None:
    arguments = [
        "dataset=sample", "dataset.limit=2", "dataset.run_tests=false", "model=gpt-4o",
        f"provider.base_url={server.openai_url}",
    ]  # fmt: skip
    sweep = ["-m", "prompt=style2,search_replace", "context=oracle", "tracker.mode=offline"]
    dry = run(*arguments, *sweep, "dry_run=true", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "requests   4 for 4 instances" in dry.stdout[dry.stdout.index("all 2 points") :]
    assert not server.log.asked()
    done = run(*arguments, *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prompt.style   prompt.edit_format   rules.prompt" in done.stderr
    runs = [tmp_path / line for line in done.stdout.splitlines() if (tmp_path / line / "summary.json").exists()]
    columns = set()
    for directory in runs:
        (kept,) = read_offline_runs(directory)
        rules, prompt = kept.config["rules"], kept.config["prompt"]
        columns.add((rules["context"], rules["prompt"], prompt["style"], prompt["edit_format"]))
    assert columns == {
        ("oracle-1", "style2-1", "style2", "unified_diff"),
        ("oracle-1", "plain-1", "plain", "search_replace"),
    }
    third = run(*arguments, "prompt=search_replace", "context=none", "tracker=none", cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    compared = as_json(compare([load_run(each) for each in (*runs, tmp_path / third.stdout.splitlines()[-1])]))
    differing = set(compared["differing_keys"])
    assert differing >= {"prompt.style", "prompt.edit_format", "rules.prompt", "rules.context"}
    for pair, said in [
        ("context=oracle prompt=given", "error: context=oracle chooses files, but prompt=given takes the row's own"),
        ("context=given prompt=style2", "error: context=given takes the row's own text, but prompt=style2 writes"),
    ]:
        refused = run(*pair.split(), "dataset=sample", "tracker=none", cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert refused.stderr.startswith(said)
