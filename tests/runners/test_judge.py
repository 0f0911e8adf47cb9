"""Runs whose model judges their samples (``selection=judge``): what is sent and paid for, fallbacks, kills, caps."""

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
from swe_infer.run_directory.records import purpose_of, read_records
from swe_infer.selection.judge import named_patch
from tests.support import commands
from tests.support.api_server import ApiServer, Fault

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "OPENAI_API_KEY": "sk-planted-openai", "PYTHONPATH": str(ROOT)}
INSTANCES = 5
SAMPLES = 3


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for number in range(INSTANCES):
            row = {"instance_id": f"o__n-{number}", "problem_statement": f"Issue {number}: wrong value."}
            file.write(json.dumps({**row, "files": {"mod.py": f"part = {number}\nvalue = 1\n"}}) + "\n")
    return path


def patch(number: int, line: str) -> str:
    return f"--- a/mod.py\n+++ b/mod.py\n@@ -1,2 +1,2 @@\n part = {number}\n-value = 1\n+{line}\n"


class Model:
    """Samples 0 and 1 have one result, and sample 2 another one, which the judge prefers. Of instance 1 all samples
    have one result, and of instance 2 one patch applies. On instance 3 the judge names no patch."""

    def __init__(self) -> None:
        self.on_answer: Callable[[str], None] = lambda prompt: None
        self._samples: Counter[int] = Counter()

    def __call__(self, prompt: str) -> str:
        self.on_answer(prompt)
        number = int(prompt.partition("Issue ")[2].partition(":")[0])
        if "<patch number" in prompt:
            (best,) = [part for part in prompt.split("<patch number=")[1:] if "value = 3" in part]
            return "Both are fine." if number == 3 else f"The last one.\n```\n{best[1]}\n```\n"
        sample = self._samples[number] % SAMPLES
        self._samples[number] += 1
        lines = ["value = 2", "value  =  2  # two", "value = 3"]
        if number == 1:
            return patch(number, lines[min(sample, 1)])
        return "no idea" if number == 2 and sample else patch(number, lines[sample])


def arguments(rows: Path, server: ApiServer, directory: Path, *more: str) -> list[str]:
    return [
        "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={rows}",
        "context=none", "prompt=style3", f"output_dir={directory}", "decoding.max_new_tokens=256", "tracker=none",
        f"decoding.n={SAMPLES}", "decoding.temperature=1", "model.parameters=[temperature]",
        "provider.max_concurrency=1", *more,
    ]  # fmt: skip


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env=ENVIRONMENT)


def summary(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text(), parse_float=Decimal))


def selected(directory: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == INSTANCES
    return [(line["sample"], line["selected_by"]) for line in sorted(lines, key=lambda line: line["instance_id"])]


def judged(directory: Path) -> int:
    keys = Counter(
        (r["instance_id"], r.get("prompt_sha256"))
        for r in read_records(directory / "records.jsonl")
        if purpose_of(r) == "judge" and r["status"] == "completed"
    )
    assert set(keys.values()) <= {1}
    return len(keys)


CHOSEN = [(2, "judge"), (0, "judge"), (0, "judge"), (0, "majority"), (2, "judge")]


def test_the_judge_is_asked_once_where_different_results_apply(rows: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ApiServer(answer=Model()) as server:
        command = arguments(rows, server, directory)
        dry = run(*command, "selection=judge", "dry_run=true", cwd=tmp_path)
        assert f"{INSTANCES * SAMPLES} for {INSTANCES} instances" in dry.stdout, dry.stdout + dry.stderr
        plain = run(*command, cwd=tmp_path)
        assert plain.returncode == 0, plain.stderr
        assert selected(directory) == [(0, "first")] * INSTANCES
        assert len(server.log.answers()) == INSTANCES * SAMPLES

        (tmp_path / "report.json").write_text(json.dumps({"resolved_ids": ["o__n-0"], "completed_ids": ["o__n-0"]}))
        report = ["swe_infer.evaluate", str(directory), "--report", "report.json", "--sample", "2"]
        assert commands.run(*report, cwd=tmp_path, env=ENVIRONMENT).returncode == 0
        assert summary(directory)["selected_resolved"] == 0

        server.set_faults(Fault("bad_request", contains="Issue 4"))
        failed = run(*command, "selection=judge", cwd=tmp_path)
        assert failed.returncode == 1, failed.stderr
        assert selected(directory) == [*CHOSEN[:4], (0, "majority")]
        assert summary(directory)["selected_resolved"] == 1
        server.set_faults()
        done = run(*command, "selection=judge", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert selected(directory) == CHOSEN
        assert len(server.log.answers()) == INSTANCES * SAMPLES + 3
        assert judged(directory) == 3
        found = summary(directory)
        assert (found["auxiliary"]["judge"]["requests"], found["auxiliary"]["judge"]["failed"]) == (3, 0)
        assert abs(found["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")
        assert (found["completed"], found["selection"]) == (INSTANCES * SAMPLES, "judge, majority")
        assert "3 to judge samples" in done.stderr

        for more in ([], ["selection=judge"]):
            assert run(*command, *more, cwd=tmp_path).returncode == 0
        assert len(server.log.answers()) == INSTANCES * SAMPLES + 3, "the answers are kept"
        assert selected(directory) == CHOSEN
    assert not recompute(directory).patches
    assert selected(directory) == CHOSEN
    refused = commands.run(
        "swe_infer.select", str(directory), "--by", "judge", "--out", "x.jsonl", cwd=tmp_path, env=ENVIRONMENT
    )
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "selection=judge" in refused.stderr


def test_kills_caps_and_batches_pay_for_no_judgement_twice(rows: Path, tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    with ApiServer(answer=model) as server:
        command = arguments(rows, server, directory)
        assert run(*command, cwd=tmp_path).returncode == 0
        command.append("selection=judge")
        cap = server.log.cost_usd() + Decimal("0.0035")
        capped = run(*command, f"budget.max_usd={cap}", cwd=tmp_path)
        assert capped.returncode == 3, capped.stderr
        assert "not judged yet" in capped.stderr
        assert 0 < judged(directory) < 3
        assert server.log.cost_usd() <= cap

        server.batches.held = True
        batched = [
            *command,
            "provider.mode=batch",
            "runner.batches.first_poll_s=0.05",
            "runner.batches.max_poll_s=0.1",
        ]
        process = commands.start("swe_infer", *batched, cwd=tmp_path, env=ENVIRONMENT)
        deadline = time.monotonic() + 200
        while not server.batches.submitted() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.batches.held = False
        done = run(*batched, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(server.batches.submitted()) == 1
        assert (judged(directory), selected(directory)) == (3, CHOSEN)
        assert abs(summary(directory)["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")


@pytest.mark.full
def test_shards_keep_their_judgements_when_they_are_merged(rows: Path, tmp_path: Path) -> None:
    shards = [tmp_path / f"shard{index}" for index in range(2)]
    with ApiServer(answer=Model()) as server:
        for index, shard in enumerate(shards):
            command = arguments(rows, server, shard, "selection=judge", f"shard.index={index}", "shard.count=2")
            result = run(*command, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
        merged = merge(tmp_path / "merged", shards)
        assert len(server.log.answers()) == INSTANCES * SAMPLES + 3
    assert selected(tmp_path / "merged") == CHOSEN
    assert merged["auxiliary"]["judge"]["requests"] == 3


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("```\n2\n```", 2),
        ("Patch 1 is wrong.\n```\n2\n```", 2),
        ("<think>\n```\n1\n```\n</think>\nPatch 3", 3),
        ("```python\nx = 1\n```\nThe best patch is **2**.", 2),
        ("**Answer: 3**", 3),
        ("I prefer patch #2 for its tests.", 2),
        ("Patch 1 or patch 2", None),
        ("```\n7\n```", None),
        ("", None),
    ],
)
def test_the_patch_that_an_answer_names(answer: str, number: int | None) -> None:
    assert named_patch(answer, 3) == number
