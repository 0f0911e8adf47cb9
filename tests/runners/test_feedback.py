"""Further turns through complete runs: what is sent and paid for, kills, caps, batches, sweeps, local chat models."""

from __future__ import annotations

import json
import os
import re
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
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_run, read_texts
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import StoreError
from swe_infer.run_directory.records import read_records, turn_of
from tests.support import commands
from tests.support.api_server import ApiServer, Fault

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {
    **os.environ, "OPENAI_API_KEY": "sk-planted-openai", "ANTHROPIC_API_KEY": "sk-planted-anthropic",
    "GEMINI_API_KEY": "planted-gemini", "MISTRAL_API_KEY": "planted-mistral", "TOGETHER_API_KEY": "planted-together",
    "PYTHONPATH": str(ROOT),
}  # fmt: skip
INSTANCES = 6
REMOVED = re.compile(r"^-(?!--)(.*\S.*)$", re.MULTILINE)


class Model:
    """A model that gives a right patch at once for every third instance, one that does not apply for the next, and no
    patch for the rest. It corrects itself only if a message tells the right reason.

    Args:
        instances: bundled instances whose patch removes a line.
    """

    def __init__(self) -> None:
        rows = SampleDataset().open()
        every = [rows[index] for index in range(len(rows.ids))]
        self.instances = [one for one in every if REMOVED.search(str(one.metadata["patch"]))]
        self.on_answer: Callable[[], None] = lambda: None

    def ids(self, count: int = INSTANCES) -> str:
        return f"dataset.instance_ids=[{','.join(one.instance_id for one in self.instances[:count])}]"

    def __call__(self, prompt: str) -> str:
        self.on_answer()
        number = next(n for n, one in enumerate(self.instances) if one.prompt.user.strip() in prompt)
        gold = str(self.instances[number].metadata["patch"])
        (removed,) = REMOVED.findall(gold)[:1]
        wrong = gold.replace(f"-{removed}\n", "-        nothing = like_this()\n")
        first = [gold, wrong, "I am not sure."][number % 3]
        _, said, reply = prompt.rpartition(first.strip())
        if not said:
            return first
        right_reason = removed in reply if number % 3 == 1 else "no diff and no search/replace block" in reply
        return gold if right_reason else first


def run(*arguments: str, cwd: Path, sweep: bool = False) -> subprocess.CompletedProcess[str]:
    common = ["decoding.max_new_tokens=512", "tracker=none"]
    return commands.run("swe_infer", *(["-m"] if sweep else []), *common, *arguments, cwd=cwd, env=ENVIRONMENT)


def summary(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text(), parse_float=Decimal))


def patches(directory: Path) -> dict[str, str]:
    lines = (directory / "predictions.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len({one["instance_id"] for one in found}) == len(found)
    return {one["instance_id"]: one["model_patch"] for one in found}


def completed(directory: Path) -> Counter[tuple[str, int, int]]:
    """How often each turn of each sample is completed."""
    records = [r for r in read_records(directory / "records.jsonl") if r["status"] == "completed"]
    return Counter((r["instance_id"], r["sample"], turn_of(r)) for r in records)


@pytest.mark.usefixtures("sandbox")
def test_a_turn_with_the_right_reason_resolves_and_only_turns_are_paid_for(tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    gold = {one.instance_id: str(one.metadata["patch"]) for one in model.instances[:INSTANCES]}
    with ApiServer(answer=model) as server:
        arguments = [
            "model=gpt-4o",
            f"provider.base_url={server.openai_url}",
            f"output_dir={directory}",
            model.ids(8),
        ]
        arguments.append(f"dataset.limit={INSTANCES}")

        def go_on(*more: str, requests: int, resolved: int) -> dict[str, Any]:
            before = len(server.log.asked())
            result = run(*arguments, *more, cwd=tmp_path)
            assert result.returncode == 0, result.stderr
            assert len(server.log.asked()) - before == requests
            found = summary(directory)
            assert (found["resolved"], found["evaluated"], found["completed"]) == (resolved, INSTANCES, INSTANCES)
            assert abs(found["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")
            return found

        plain = go_on(requests=INSTANCES, resolved=2)
        assert "feedback" not in plain
        first = patches(directory)
        dry = run(*arguments, "feedback=apply_error", "feedback.turns=2", "dry_run=true", cwd=tmp_path)
        assert "4 for 4 instances" in dry.stdout, dry.stdout
        assert "up to 4 further turns" in dry.stdout

        turned = go_on("feedback=apply_error", requests=4, resolved=INSTANCES)
        figures = turned["feedback"]
        assert (figures["turns"], figures["fixed"], figures["broken"], figures["failed"]) == (4, 4, 0, 0)
        turns = [e for e in server.log.answers() if len((e.body or {}).get("messages", ())) > 2]
        assert len(turns) == 4
        for exchange in turns:
            roles = [message["role"] for message in (exchange.body or {})["messages"]]
            assert roles == ["system", "user", "assistant", "user"]
        assert figures["input_tokens"] == sum(e.usage.input_tokens for e in turns if e.usage)
        assert patches(directory) == gold
        records = [r for r in read_records(directory / "records.jsonl") if turn_of(r)]
        digests = {r["instance_id"]: r.get("prompt_sha256") for r in read_records(directory / "records.jsonl")}
        assert all(r.get("prompt_sha256") == digests[r["instance_id"]] for r in records)
        assert all(
            "Answer again" in (r.get("feedback") or "") or "answer again" in (r.get("feedback") or "")
            for r in records
        )

        comparison = compare([loaded := load_run(directory)])
        compared = as_json(comparison)["runs"][0]
        assert (compared["feedback"]["fixed"], compared["applies"]["successes"]) == (4, INSTANCES)
        assert compared["resolved"]["successes"] == INSTANCES
        assert compared["cost_usd"] == pytest.approx(float(turned["cost_usd"]))
        assert (
            sum("answer to further turn 1" in text.notes[0] for text in read_texts(loaded).values() if text.notes)
            == 4
        )
        printed = commands.run("swe_infer.compare", str(directory), cwd=tmp_path, env=ENVIRONMENT).stdout
        assert "Further turns (feedback)" in printed
        assert go_on("feedback=apply_error", requests=0, resolved=INSTANCES)["feedback"] == figures

        back = go_on(requests=0, resolved=2)
        assert {key: back[key] for key in ("patches", "apply_rate")} == {
            key: plain[key] for key in ("patches", "apply_rate")
        }
        assert patches(directory) == first
        assert as_json(compare([load_run(directory)]))["runs"][0]["resolved"]["successes"] == 2
        assert (
            go_on("feedback=apply_error", "feedback.turns=2", requests=0, resolved=INSTANCES)["feedback"] == figures
        )
        grown = run(*arguments, "feedback=apply_error", "dataset.limit=8", cwd=tmp_path)
        assert grown.returncode == 0, grown.stderr
        assert set(completed(directory).values()) == {1}
        assert summary(directory)["resolved"] == 8
        changes = recompute(directory, dry_run=True)
        assert not changes.patches
        assert len(changes.statuses) == 8 + 5, "every turn has a patch of its own"


@pytest.mark.parametrize("turns", [None, pytest.param("1,2", marks=pytest.mark.full)])
def test_points_of_a_sweep_share_first_answers_and_turns(turns: str | None, tmp_path: Path) -> None:
    with ApiServer(answer=(model := Model())) as server:
        result = run(
            model.ids(), "model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={tmp_path / 'sweep'}",
            "feedback=apply_error,none", "dataset.run_tests=false", cwd=tmp_path, sweep=True,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert len(server.log.asked()) == INSTANCES + 4
        runs = {path.name.rpartition("__")[2]: path for path in (tmp_path / "sweep").iterdir() if path.is_dir()}
        assert {"feedback=none", "feedback=apply_error"} <= runs.keys()
        counts = {name: summary(runs[name])["patches"] for name in ("feedback=none", "feedback=apply_error")}
        assert sum(counts["feedback=apply_error"].values()) == INSTANCES
        assert counts["feedback=none"]["none"] == 2
        if turns is None:
            return
        other = run(
            "model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={tmp_path / 'sweep'}",
            model.ids(), "feedback=apply_error", f"feedback.turns={turns}", "dataset.run_tests=false",
            cwd=tmp_path, sweep=True,
        )  # fmt: skip
        assert other.returncode == 0, other.stderr
        assert len(server.log.asked()) == INSTANCES + 4, "turns are shared, too"


def test_a_cap_holds_over_turns_and_more_budget_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ApiServer(answer=(model := Model())) as server:
        arguments = ["model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={directory}"]
        arguments += [model.ids(12), "dataset.run_tests=false", "shard.index=0", "shard.count=1"]
        assert run(*arguments, cwd=tmp_path).returncode == 0
        cap = server.log.cost_usd() + Decimal("0.008")
        result = run(*arguments, "feedback=apply_error", f"budget.max_usd={cap}", cwd=tmp_path)
        assert result.returncode == 3, result.stderr
        assert "some further turns are not sent yet" in result.stderr
        assert server.log.cost_usd() <= cap
        assert 12 < len(server.log.answers()) < 20
        assert summary(directory)["cost_usd"] <= cap
        with pytest.raises(StoreError, match="some further turns are not sent yet"):
            merge(tmp_path / "merged", [directory])
        again = run(*arguments, "feedback=apply_error", "budget.max_usd=1", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert len(server.log.answers()) == 20
        assert set(completed(directory).values()) == {1}
        assert abs(summary(directory)["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")
        merged = merge(tmp_path / "merged", [directory])
        assert merged["feedback"]["turns"] == 8
        assert patches(tmp_path / "merged") == patches(directory)


@pytest.mark.full
def test_killed_in_a_turn_nothing_is_paid_for_twice(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    with ApiServer(answer=(model := Model())) as server:
        server.latency_s = lambda call: 0.4 if len(call.body["messages"]) > 2 else 0.0
        arguments = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={directory}",
            "feedback=apply_error", model.ids(24), "dataset.run_tests=false", "provider.max_concurrency=2",
            "decoding.n=2", "decoding.temperature=1", "decoding.max_new_tokens=512", "tracker=none",
        ]  # fmt: skip
        process = commands.start("swe_infer", *arguments, cwd=tmp_path, env=ENVIRONMENT)
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline and process.poll() is None:
            if directory.exists() and sum(turn > 0 for _, _, turn in completed(directory)) >= 4:
                break
            time.sleep(0.02)
        process.kill()
        process.communicate()
        recorded = completed(directory)
        assert 4 <= sum(turn > 0 for _, _, turn in recorded) < 32
        server.latency_s = 0.0
        before = len(server.log.answers())
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(server.log.answers()) - before == 32 - sum(turn > 0 for _, _, turn in recorded)
        assert set(completed(directory).values()) == {1}
        assert len(completed(directory)) == 48 + 32


def test_a_failed_turn_replaces_nothing_and_is_tried_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ApiServer(answer=(model := Model()), faults=[Fault("bad_request", contains="does not apply")]) as server:
        arguments = ["model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={directory}"]
        arguments += [model.ids(), "feedback=apply_error", "dataset.run_tests=false"]
        assert run(*arguments, cwd=tmp_path).returncode == 1
        found = summary(directory)
        assert (found["completed"], found["failed"], found["remaining"]) == (INSTANCES, 0, 0)
        assert (found["feedback"]["failed"], found["feedback"]["turns"]) == (2, 2)
        assert found["patches"]["does_not_apply"] == 2
        server.set_faults()
        before = len(server.log.asked())
        assert run(*arguments, cwd=tmp_path).returncode == 0
        assert len(server.log.asked()) - before == 2
        assert summary(directory)["feedback"]["failed"] == 0


@pytest.mark.parametrize(
    ("vendor", "name"),
    [
        ("openai", "gpt-4o"),
        pytest.param("anthropic", "claude-sonnet-4-5", marks=pytest.mark.full),
        pytest.param("gemini", "gemini-3.8-flash", marks=pytest.mark.full),
        pytest.param("mistral", "mistral-large-4", marks=pytest.mark.full),
        pytest.param("together", "gpt-oss-120b-together", marks=pytest.mark.full),
    ],
)
def test_batches_of_a_turn_are_collected_as_that_turn_after_a_kill(vendor: str, name: str, tmp_path: Path) -> None:
    directory, model = tmp_path / "run", Model()
    with ApiServer(answer=model) as server:
        # The first batch is being answered: it ends, and all later ones are held.
        model.on_answer = lambda: setattr(server.batches, "held", True)
        url = {"anthropic": server.anthropic_url, "gemini": server.gemini_url}.get(vendor, server.openai_url)
        arguments = [
            f"model={name}", f"provider.base_url={url}",
            f"output_dir={directory}", "provider.mode=batch", "dataset.run_tests=false",
            "runner.batches.first_poll_s=0.05", "runner.batches.max_poll_s=0.1", model.ids(),
            "decoding.max_new_tokens=512", "tracker=none",
        ]  # fmt: skip
        process = commands.start("swe_infer", *arguments, "feedback=apply_error", cwd=tmp_path, env=ENVIRONMENT)
        deadline = time.monotonic() + 200
        while len(server.batches.submitted()) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(server.batches.submitted()) == 2
        process.kill()
        process.communicate()
        model.on_answer = lambda: None
        server.batches.held = False
        result = run(*arguments, "feedback=apply_error", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert len(server.batches.submitted()) == 2
        assert set(completed(directory).values()) == {1}
        assert summary(directory)["feedback"]["fixed"] == 4
        assert abs(summary(directory)["cost_usd"] - server.log.cost_usd()) < Decimal("1e-9")
        assert run(*arguments, cwd=tmp_path).returncode == 0
        assert summary(directory)["patches"]["none"] == 2


@pytest.mark.full
def test_ctrl_c_in_a_turn_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with ApiServer(answer=(model := Model())) as server:
        server.latency_s = lambda call: 0.5 if len(call.body["messages"]) > 2 else 0.0
        arguments = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", f"output_dir={directory}",
            "feedback=apply_error", model.ids(24), "dataset.run_tests=false", "provider.max_concurrency=2",
            "decoding.max_new_tokens=512", "tracker=none",
        ]  # fmt: skip
        process = commands.start("swe_infer", *arguments, cwd=tmp_path, env=ENVIRONMENT)
        deadline = time.monotonic() + 200
        while len(server.log.asked()) < 26 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
        assert process.returncode == 130, errors
        sent = len(server.log.asked())
        assert sent < 40
        assert len(completed(directory)) == sent, "turns in flight are finished"
        server.latency_s = 0.0
        assert run(*arguments, cwd=tmp_path).returncode == 0
        assert len(server.log.asked()) == 40
        assert set(completed(directory).values()) == {1}
