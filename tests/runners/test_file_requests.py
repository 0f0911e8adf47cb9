"""Runs whose model chooses the files to show (``context=llm``): what is sent and paid for, kills, caps, sweeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.merge import merge
from swe_infer.cli.patches import recompute
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_run
from swe_infer.compare.prompts import PromptSource
from swe_infer.run_directory.records import purpose_of, read_records
from tests.support import commands
from tests.support.api_server import ApiServer, Fault
from tests.support.base_commit import GOLD, BaseCommit

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": "sk-planted-openai", "PYTHONPATH": str(ROOT)}
INSTANCES = 6


def path_of(number: int) -> str:
    return f"pkg/part_{number}.py"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Instances with the files of their repository, in which one file has to be changed."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(INSTANCES):
            files = {path_of(part): f"part = {part}\nvalue = 1\n" for part in range(INSTANCES)}
            files |= {"README.md": "# Parts\n", "tests/test_part.py": "assert True\n"}
            row = {"instance_id": f"o__n-{number}", "problem_statement": f"Issue {number}: value of part {number}."}
            file.write(json.dumps({**row, "files": files}) + "\n")
    return path


class Model:
    """Names the file that its issue is about, and gives a patch that applies if the prompt shows that file.

    Args:
        unusable: issues for which it names no file of the repository.
    """

    def __init__(self, unusable: tuple[int, ...] = ()) -> None:
        self._unusable = unusable
        self.on_answer: Callable[[str], None] = lambda prompt: None

    def __call__(self, prompt: str) -> str:
        self.on_answer(prompt)
        number = int(prompt.partition("Issue ")[2].partition(":")[0])
        path = path_of(number)
        if "<paths>" in prompt:
            named = "pkg/none.py" if number in self._unusable else path
            return f"These files:\n\n```\n{named}\npkg/invented.py\n```\n"
        if f"[start of {path}]" not in prompt:
            return "I cannot see the file."
        return f"--- a/{path}\n+++ b/{path}\n@@ -1,2 +1,2 @@\n part = {number}\n-value = 1\n+value = 2\n"


def arguments(rows: Path, server: ApiServer, directory: Path | str, *more: str) -> list[str]:
    return [
        "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={rows}",
        "context=llm", "prompt=style3", f"output_dir={directory}", "decoding.max_new_tokens=256", "tracker=none",
        *more,
    ]  # fmt: skip


def run(
    *arguments: str, cwd: Path, sweep: bool = False, packages: tuple[str, ...] = commands.PACKAGES
) -> subprocess.CompletedProcess[str]:
    flags = ["-m"] if sweep else []
    return commands.run("swe_infer", *flags, *arguments, cwd=cwd, env=ENVIRONMENT, packages=packages)


def summary(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text(), parse_float=Decimal))


def completed(directory: Path) -> Counter[tuple[str, str | None, int]]:
    """How often each request and sample is completed."""
    records = [r for r in read_records(directory / "records.jsonl") if r["status"] == "completed"]
    return Counter((r["instance_id"], purpose_of(r), r["sample"]) for r in records)


def chosen(directory: Path) -> int:
    return sum(purpose is not None for _, purpose, _ in completed(directory))


def check_paid(directory: Path, server: ApiServer, samples: int = 1) -> dict[str, Any]:
    """Every request was answered and recorded once, and the cost is the server's. The samples share a request."""
    found = summary(directory)
    assert set(completed(directory).values()) == {1}
    assert (chosen(directory), found["auxiliary"]["context"]["requests"]) == (INSTANCES, INSTANCES)
    assert len(server.log.answers()) == 2 * INSTANCES
    assert abs(found["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")
    usage = [exchange.usage for exchange in server.log.answers() if exchange.usage]
    assert found["usage"]["input_tokens"] == sum(one.input_tokens for one in usage)
    of_files = [e.usage for e in server.log.answers() if e.usage and "<paths>" in (e.prompt or "")]
    assert found["auxiliary"]["context"]["input_tokens"] == sum(one.input_tokens for one in of_files)
    assert (found["completed"], found["failed"], found["remaining"]) == (samples * INSTANCES, 0, 0)
    return found


def test_the_model_chooses_the_files_once_for_all_samples(rows: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ApiServer(answer=Model(unusable=(3,)), faults=[Fault("bad_request", contains="Issue 4")]) as server:
        command = arguments(rows, server, directory, "decoding.temperature=1", "decoding.n=2")
        frozen = commands.run("swe_infer.prompts", *command[2:6], "--out", "x", cwd=tmp_path, env=ENVIRONMENT)
        assert (frozen.returncode, len(frozen.stderr.splitlines())) == (2, 1)
        assert "context=llm" in frozen.stderr
        dry = run(*command, "dry_run=true", cwd=tmp_path)
        assert f"{2 * INSTANCES} for {INSTANCES} instances" in dry.stdout, dry.stdout + dry.stderr
        assert not server.log.asked()

        failed = run(*command, cwd=tmp_path)
        assert failed.returncode == 1, failed.stderr
        found = summary(directory)
        assert (found["completed"], found["failed"], found["infrastructure_failures"]) == (2 * INSTANCES - 2, 2, 0)
        assert (found["auxiliary"]["context"]["requests"], found["auxiliary"]["context"]["failed"]) == (5, 1)
        records = [r for r in read_records(directory / "records.jsonl") if r["status"] == "failed"]
        errors = [r["error"] for r in records if not purpose_of(r) and "error" in r]
        assert [error and error["type"] for error in errors] == 2 * ["ContextRequestFailed"]
        assert sum("Issue 4" in (e.prompt or "") for e in server.log.asked()) == 1, "no answer without the files"

        server.set_faults()
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "6 for files to show" in done.stderr
        found = check_paid(directory, server, samples=2)
        assert found["patches"] == {"applies": 10, "none": 2}
        assert found["auxiliary"]["context"]["failed"] == 0
        of_third = [e.prompt or "" for e in server.log.answers() if "Issue 3" in (e.prompt or "")]
        assert ["[start of README.md]" in prompt for prompt in of_third] == [False, True]
        assert not any("[start of pkg/" in prompt for prompt in of_third)

        sent = len(server.log.asked())
        assert "nothing left to run" in run(*command, "dry_run=true", cwd=tmp_path).stdout
        assert run(*command, cwd=tmp_path).returncode == 0
        assert len(server.log.asked()) == sent
    assert not recompute(directory).patches
    by_votes = ["swe_infer.select", str(directory), "--by", "majority", "--out", "votes.jsonl"]
    assert "WARNING" not in commands.run(*by_votes, cwd=tmp_path, env=ENVIRONMENT).stderr
    rows_of = ["swe_infer.export", str(directory), "--where", "applies", "--format", "chat", "--out", "out.jsonl"]
    exported = commands.run(*rows_of, cwd=tmp_path, env=ENVIRONMENT)
    assert exported.returncode == 0, exported.stderr
    assert "[start of pkg/part_0.py]" in (tmp_path / "out.jsonl").read_text()
    frozen = commands.run("swe_infer.prompts", f"from={directory}", "--out", "x.jsonl", cwd=tmp_path, env=ENVIRONMENT)
    assert frozen.returncode == 0, frozen.stderr
    texts = [json.loads(line)["text"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert len(texts) == INSTANCES
    assert all(any(text in (e.prompt or "") for e in server.log.answers()) for text in texts)
    with PromptSource([loaded := load_run(directory)]) as prompts:
        assert (task := prompts["o__n-1"]) is not None
        assert "[start of pkg/part_1.py]" in str(task.prompt)
        assert not prompts.notes
    (figures,) = compare([loaded]).runs
    assert (figures.cost_usd, figures.recorded) == (found["cost_usd"], INSTANCES)


@pytest.mark.parametrize("interrupted", ["files", pytest.param("answers", marks=pytest.mark.full)])
def test_a_run_that_is_killed_in_a_round_pays_for_nothing_twice(interrupted: str, rows: Path, tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    with ApiServer(answer=model) as server:
        command = arguments(rows, server, directory, "provider.max_concurrency=1")
        of_round = [0]

        def hang(prompt: str) -> None:
            of_round[0] += ("<paths>" in prompt) == (interrupted == "files")
            if of_round[0] == 4:
                server.latency_s = 60.0

        model.on_answer = hang
        server.latency_s = 0.0
        process = commands.start("swe_infer", *command, cwd=tmp_path, env=ENVIRONMENT)
        expected = 3 if interrupted == "files" else INSTANCES + 3
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if directory.exists() and sum(completed(directory).values()) >= expected:
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert expected <= sum(completed(directory).values()) < 2 * INSTANCES
        model.on_answer, server.latency_s = lambda prompt: None, 0.0
        kept, answered = sum(completed(directory).values()), len(server.log.answers())
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(server.log.answers()) - answered == 2 * INSTANCES - kept
        assert set(completed(directory).values()) == {1}
        assert summary(directory)["patches"] == {"applies": INSTANCES}


@pytest.mark.full
def test_a_cap_or_ctrl_c_among_the_requests_for_files(rows: Path, tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    with ApiServer(answer=model) as server:
        command = arguments(rows, server, directory, "provider.max_concurrency=1", "runner.prompt_caching=never")
        result = run(*command, "budget.max_usd=0.004", cwd=tmp_path)
        assert result.returncode == 3, result.stderr
        assert server.log.cost_usd() <= Decimal("0.004")
        assert 0 < chosen(directory) < INSTANCES
        assert (summary(directory)["completed"], summary(directory)["remaining"]) == (0, INSTANCES)

        model.on_answer = lambda prompt: setattr(server, "latency_s", 0.5)
        before = len(server.log.asked())
        process = commands.start("swe_infer", *command, "budget.max_usd=1", cwd=tmp_path, env=ENVIRONMENT)
        deadline = time.monotonic() + 200
        while len(server.log.asked()) < before + 1 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        model.on_answer, server.latency_s = lambda prompt: None, 0.0
        again = run(*command, "budget.max_usd=1", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        check_paid(directory, server)


@pytest.mark.full
def test_batches_of_the_requests_for_files_are_collected_after_a_kill(rows: Path, tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    with ApiServer(answer=model) as server:
        server.batches.held = True
        command = arguments(
            rows, server, directory, "provider.mode=batch", "runner.batches.first_poll_s=0.05",
            "runner.batches.max_poll_s=0.1",
        )  # fmt: skip
        for batches in (1, 2):
            process = commands.start("swe_infer", *command, cwd=tmp_path, env=ENVIRONMENT)
            deadline = time.monotonic() + 200
            while (
                len(server.batches.submitted()) < batches and process.poll() is None and time.monotonic() < deadline
            ):
                time.sleep(0.02)
            process.kill()
            process.communicate()
            assert len(server.batches.submitted()) == batches
            # The batch of files ends, and that of answers is held again.
            model.on_answer = lambda prompt: setattr(server.batches, "held", "<paths>" in prompt)
            server.batches.held = False
        model.on_answer = lambda prompt: None
        result = run(*command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(server.batches.submitted()) == 2
        assert check_paid(directory, server)["patches"] == {"applies": INSTANCES}


def test_points_and_shards_share_and_merge_the_choices(rows: Path, tmp_path: Path) -> None:
    with ApiServer(answer=Model()) as server:
        folder = tmp_path / "sweep"
        result = run(*arguments(rows, server, folder, f"dataset.limit=2,{INSTANCES}"), cwd=tmp_path, sweep=True)
        assert result.returncode == 0, result.stderr
        assert len(server.log.answers()) == 2 * INSTANCES, "the second point reuses the choices of the first"
        runs = [path.parent for path in folder.glob("*/summary.json")]
        figures = [summary(path) for path in runs]
        assert sum(one["cost_usd"] for one in figures) - server.log.cost_usd() < Decimal("1e-9")
        assert sorted(one["auxiliary"]["context"]["requests"] for one in figures) == [2, INSTANCES]
        assert [one["patches"] for one in figures] == [{"applies": one["instances"]} for one in figures]

        shards = [tmp_path / f"shard{index}" for index in range(2)]
        for index, shard in enumerate(shards):
            command = arguments(rows, server, shard, f"shard.index={index}", "shard.count=2")
            assert run(*command, cwd=tmp_path).returncode == 0
        merged = merge(tmp_path / "merged", shards)
    assert merged["auxiliary"]["context"]["requests"] == INSTANCES
    assert merged["cost_usd"] == sum(summary(shard)["cost_usd"] for shard in shards)
    assert merged["completed"] == INSTANCES


def test_an_instance_without_its_repository_is_skipped_until_it_is_available(tmp_path: Path) -> None:
    base, directory = BaseCommit(tmp_path / "base"), tmp_path / "run"

    def answer(prompt: str) -> str:
        return "```\nsrc/dos.py\nvendor\nlib/other.py\n```" if "<paths>" in prompt else GOLD

    with ApiServer(answer=answer) as server:
        command = base.arguments(
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "context=llm", "prompt=style3",
            f"output_dir={directory}",
        )  # fmt: skip
        absent = run(*command, f"context.repositories={tmp_path}", cwd=tmp_path)
        assert absent.returncode == 0, absent.stderr
        assert (summary(directory)["skipped"], "auxiliary" in summary(directory)) == (3, False)
        assert not server.log.asked()
        done = run(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (summary(directory)["patches"], chosen(directory)) == ({"repaired": 3}, 3)
        assert len(server.log.answers()) == 6
        paths, shown = (e.prompt or "" for e in (server.log.answers()[0], server.log.answers()[-1]))
    assert "\nlink.py\nsrc/deep/more.py\n" in paths
    assert "vendor" not in paths
    assert "[start of src/dos.py]" in shown
    assert "[start of src/other.py]" not in shown


@pytest.mark.parametrize("tokens", [(16,), pytest.param((16, 24), marks=pytest.mark.full)])
def test_a_local_base_model_without_a_usable_choice_is_shown_the_readmes(
    tokens: tuple[int, ...], tmp_path: Path
) -> None:
    command = ["context=llm", "prompt=style2", "dataset.limit=2", "dataset.run_tests=false", "tracker=none"]
    result = run(
        *command, f"decoding.max_new_tokens={','.join(map(str, tokens))}", f"output_dir={tmp_path / 'sweep'}",
        cwd=tmp_path, sweep=True, packages=commands.LOCAL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    summaries = list((tmp_path / "sweep").glob("*/summary.json"))
    assert len(summaries) == len(tokens)
    for path in summaries:
        found = summary(path.parent)
        assert (found["completed"], found["auxiliary"]["context"]["requests"]) == (2, 2)
        assert found["stats"]["concurrent_jobs"] == len(tokens)
        assert found["cost_usd"] == 0
