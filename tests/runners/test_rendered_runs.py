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

from swe_infer.run_directory.records import read_records
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.base_commit import BaseCommit

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
