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
import yaml

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
    keys = dict.fromkeys(("OPENAI_API_KEY", "ANTHROPIC_API_KEY"), "sk-loopback-0123456789")
    return {**os.environ, **keys, "PYTHONPATH": str(ROOT)}


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


def columns(config: Any) -> tuple[str, ...]:
    rules, prompt = config["rules"], config["prompt"]
    return rules["context"], rules["prompt"], prompt["style"], prompt["edit_format"]


@pytest.mark.parametrize("tracker", ["none", pytest.param("wandb", marks=pytest.mark.full)])
def test_a_sweep_over_prompts_shows_prompt_and_context_as_columns(
    tracker: str, server: ApiServer, tmp_path: Path
) -> None:
    arguments = [
        "dataset=sample", "dataset.limit=2", "dataset.run_tests=false", "model=gpt-4o",
        f"provider.base_url={server.openai_url}",
    ]  # fmt: skip
    sweep = ["-m", "prompt=style2,search_replace", "context=oracle", "tracker=none"]
    dry = run(*arguments, *sweep, "dry_run=true", cwd=tmp_path)
    assert dry.returncode == 0, dry.stderr
    assert "requests   4 for 4 instances" in dry.stdout[dry.stdout.index("all 2 points") :]
    assert not server.log.asked()
    done = run(*arguments, *sweep, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    keys = {line.split()[0] for line in done.stderr.splitlines() if line.strip()}
    assert {"prompt.style", "prompt.edit_format", "rules.prompt"} <= keys
    runs = [tmp_path / line for line in done.stdout.splitlines() if (tmp_path / line / "summary.json").exists()]
    assert {columns(yaml.safe_load((each / "config.yaml").read_text())) for each in runs} == {
        ("oracle-1", "style2-1", "style2", "unified_diff"),
        ("oracle-1", "plain-1", "plain", "search_replace"),
    }
    tracked = [f"tracker={tracker}", *["tracker.mode=offline"] * (tracker == "wandb")]
    third = run(*arguments, "prompt=search_replace", "context=none", *tracked, cwd=tmp_path)
    assert third.returncode == 0, third.stderr
    if tracker == "wandb":
        (kept,) = read_offline_runs(tmp_path / third.stdout.splitlines()[-1])
        assert columns(kept.config) == ("none-1", "plain-1", "plain", "search_replace")
    compared = as_json(compare([load_run(each) for each in (*runs, tmp_path / third.stdout.splitlines()[-1])]))
    differing = set(compared["differing_keys"])
    assert differing >= {"prompt.style", "prompt.edit_format", "rules.prompt", "rules.context"}
    for pair, said in [
        ("context=oracle prompt=given", "error: context=oracle chooses files, but prompt=given uses the row's own"),
        ("context=given prompt=style2", "error: context=given uses the row's own text, but prompt=style2 writes"),
    ]:
        refused = run(*pair.split(), "dataset=sample", "tracker=none", cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert refused.stderr.startswith(said)


def test_what_cannot_be_had_costs_its_instance_and_the_next_command_tries_again(
    base: BaseCommit, server: ApiServer, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in base.rows.read_text().splitlines()]
    gone = "f" * 40
    rows[1]["base_commit"] = gone
    rows.append(
        {"instance_id": "o__n-3", "repo": "o/n", "base_commit": base.commit, "problem_statement": "No patch."}
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = tmp_path / "prompt.jinja"
    template.write_text("{{ issue }} {% for file in files %}{{ file.path }}{% endfor %}")
    arguments = [
        "dataset=jsonl", "dataset.path=rows.jsonl", "context=oracle", "context.offline=true", "prompt=template",
        "prompt.template=prompt.jinja", "model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=none",
        "output_dir=run",
    ]  # fmt: skip
    nowhere = run(*arguments, f"context.repositories={tmp_path / 'empty'}", cwd=tmp_path)
    assert nowhere.returncode == 0, nowhere.stderr
    assert "skipped    4 (RepositoryNotAvailable 4)" in nowhere.stderr
    (said,) = [line for line in nowhere.stderr.splitlines() if "every instance is skipped" in line]
    assert f"o__n-0: o/n: commit {base.commit} is not in {tmp_path / 'empty'} (context.offline=true)" in said
    assert not server.log.asked()
    assert "every instance is skipped" in run(*arguments, "dry_run=true", cwd=tmp_path).stderr

    found = run(*arguments, f"context.repositories={base.clones}", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "every instance is skipped" not in found.stderr
    assert "(PromptNotRendered 1, RepositoryNotAvailable 1)" in found.stderr
    latest = {record["instance_id"]: record for record in records(tmp_path / "run")}
    assert [latest[f"o__n-{n}"]["status"] for n in range(4)] == ["completed", "skipped", "completed", "skipped"]
    assert gone in latest["o__n-1"]["error"]["message"]
    assert "has no gold patch" in latest["o__n-3"]["error"]["message"]
    assert len(server.log.asked()) == 2

    rows[0]["problem_statement"] = "Another issue."
    rows[1]["base_commit"] = base.commit
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = run(*arguments, f"context.repositories={base.clones}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(server.log.asked()) == 3, "the commit that was missing is there now"
    (warned,) = [line for line in again.stderr.splitlines() if "the prompt differs" in line]
    assert "o__n-0:" in warned

    template.write_text(template.read_text() + ".")
    edited = run(*arguments, f"context.repositories={base.clones}", cwd=tmp_path)
    assert (edited.returncode, len(edited.stderr.splitlines())) == (2, 1), edited.stderr
    assert "rules.prompt" in edited.stderr
    assert len(server.log.asked()) == 3


def test_a_column_that_no_row_has_is_one_error_and_one_that_some_lack_skips_these(
    base: BaseCommit, server: ApiServer, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in base.rows.read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({**rows[2], "difficulty": "hard"}) + "\n")
    template = tmp_path / "prompt.jinja"
    arguments = [
        *base.arguments("dataset.path=rows.jsonl", "model=gpt-4o", f"provider.base_url={server.openai_url}"),
        "prompt=template", "prompt.template=prompt.jinja", "output_dir=run",
    ]  # fmt: skip
    place = "error: prompt.template=prompt.jinja, line 2: "
    for text, more, said in (
        (
            "\n{{ row.problem_statment }}",
            ["context=oracle"],
            f"{place}row.problem_statment: the dataset has no column ",
        ),
        ("\n{{ version }}", ["context=none", "dry_run=true"], f"{place}version: the dataset has no column 'version'"),
        (
            "{{ issue }}{{ hints }}",
            ["context=none", "prompt.hints=true"],
            "error: prompt.hints=true: the dataset has no",
        ),
        (
            "{{ issue }}",
            ["context=files", "context.column=pathes"],
            "error: context.column: the dataset has no column",
        ),
    ):
        template.write_text(text)
        refused = run(*arguments, *more, cwd=tmp_path)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert refused.stderr.startswith(said)
        assert not (tmp_path / "run" / "records.jsonl").exists()
    assert not server.log.asked()
    template.write_text("{{ issue }} {{ row.difficulty }}")
    done = run(*arguments, "context=none", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in records(tmp_path / "run")] == ["skipped", "skipped", "completed"]


def test_an_answer_from_a_batch_is_read_behind_its_given_beginning(base: BaseCommit, tmp_path: Path) -> None:
    beginning, rest = EDITS[:25], EDITS[25:]
    with ApiServer(answer=lambda prompt: rest if prompt.endswith(beginning) else "not continued") as server:
        done = run(
            *base.arguments("context=oracle", "prompt=search_replace", "dataset.limit=1"),
            "model=claude-sonnet-4-5", f"provider.base_url={server.anthropic_url}", "provider.mode=batch",
            f"prompt.prefill={json.dumps(beginning)}", "runner.batches.first_poll_s=0.1", "output_dir=run",
            cwd=tmp_path,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (record,) = records(tmp_path / "run")
    assert (record["full_output"], record["patch_status"]) == (rest, "applies")
