"""Complete runs with every provider: real SDKs, real sockets, real processes, some of them killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.merge import merge
from swe_infer.cli.patches import recompute
from swe_infer.compare.analysis import compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_run
from swe_infer.python_api import Run
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import Key, Record, possibly_billed_usd, read_records
from swe_infer.runs.listing import read_run
from swe_infer.view.tail import LiveFigures
from tests.support import commands
from tests.support.api_server import ApiServer, Fault
from tests.support.instances import write_instances
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {
    "OPENAI_API_KEY": "sk-planted-openai-secret",
    "AZURE_OPENAI_API_KEY": "planted-azure-secret",
    "ANTHROPIC_API_KEY": "sk-ant-planted-secret",
}
PROVIDERS = {
    "openai": ["model=gpt-4o"],
    "azure_openai": ["model=gpt-4o", "provider=azure_openai"],
    "openai_compatible": ["model.name=local-model", "provider=openai_compatible", "model.pricing=unknown"],
    "openai_responses": ["model=gpt-4o", "provider=openai_responses"],
    "anthropic": ["model=claude-sonnet-4-5"],
    "anthropic_text": ["model=claude-2"],
}


def address(server: ApiServer, provider: str) -> str:
    url = {
        "azure_openai": server.azure_url,
        "anthropic": server.anthropic_url,
        "anthropic_text": server.anthropic_url,
    }
    return f"provider.base_url={url.get(provider, server.openai_url)}"


def environment() -> dict[str, str]:
    return {**os.environ, **KEYS, "PYTHONPATH": str(ROOT)}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env=environment())


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(latency_s=0.01) as server:
        yield server


OWN_PROVIDER = """
import os
from dataclasses import dataclass
from typing import Annotated

import httpx

from swe_infer.errors import ConfigError, TransientError
from swe_infer.options import Option
from swe_infer.providers.base import Answer, Provider
from swe_infer.types import Usage


@dataclass(kw_only=True, eq=False)
class MyProvider(Provider):
    address: Annotated[str, Option("The server.", "address")]
    greeting: Annotated[str, Option("Goes before each prompt.", "answer")] = ""
    name: Annotated[str, Option("The vendor.", "answer")] = "mine"
    pricing_id: Annotated[str, Option("Its name at genai-prices.", "reporting")] = "mine"
    max_concurrency: Annotated[int, Option("Requests in flight.", "speed")] = 4
    timeout_s: Annotated[float, Option("Seconds for a request.", "speed")] = 60.0
    mode: Annotated[str, Option("live alone.", "speed")] = "live"

    def check(self, model, decoding):
        pass

    def check_access(self):
        if not os.environ.get("MY_KEY"):
            raise ConfigError("set MY_KEY in the environment")

    async def open(self):
        self._client = httpx.AsyncClient(headers={"Authorization": f"Bearer {os.environ['MY_KEY']}"})

    async def close(self):
        await self._client.aclose()

    async def complete(self, request, model, *, timeout_s, cache_prompt=False):
        content = self.greeting + request.prompt.text
        body = {"model": model.name, "messages": [{"role": "user", "content": content}]}
        answer = await self._client.post(f"{self.address}/chat/completions", json=body, timeout=timeout_s)
        if answer.status_code != 200:
            raise TransientError(f"status {answer.status_code}")
        found = answer.json()
        used = Usage(found["usage"]["prompt_tokens"], output_tokens=found["usage"]["completion_tokens"])
        return Answer(found["choices"][0]["message"]["content"], "stop", used)
"""


def test_a_provider_is_one_file_and_one_yaml(server: ApiServer, tmp_path: Path) -> None:
    """A provider in the user's folder is selected, described, validated and resumed like a built-in one."""
    write_instances(tmp_path / "dataset.jsonl", 3)
    (tmp_path / "my_provider.py").write_text(OWN_PROVIDER)
    (tmp_path / "conf" / "provider").mkdir(parents=True)
    (tmp_path / "conf" / "provider" / "mine.yaml").write_text(
        f"# My own server.\n_target_: my_provider.MyProvider\naddress: {server.openai_url}\n"
        "greeting: ''\nmax_concurrency: 4\n"
    )
    environment_ = {**environment(), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def own(*arguments: str, key: str = "sk-my-planted-secret") -> subprocess.CompletedProcess[str]:
        command = ["--config-dir", "conf", "model.name=my-model", "model.pricing=unknown", "provider=mine",
                   "dataset=jsonl", "dataset.path=dataset.jsonl", "tracker=none", "output_dir=run"]  # fmt: skip
        return commands.run("swe_infer", *command, *arguments, cwd=tmp_path, env={**environment_, "MY_KEY": key})

    for arguments, key, said in [
        (["provider.greting=x"], "k", "provider.greting: unknown key; did you mean provider.greeting?"),
        ([], "", "set MY_KEY in the environment"),
    ]:
        refused = own(*arguments, key=key)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert said in refused.stderr
    assert not server.log.answers()
    done = own("provider.greeting='Good morning (#1).'", "dataset.limit=2")
    assert done.returncode == 0, done.stderr
    assert len(server.log.answers()) == 2
    assert all("Good morning (#1)." in str(exchange.body) for exchange in server.log.answers())
    # The server has moved, and the effects of its keys say that the answers are the same.
    with ApiServer() as elsewhere:
        moved = [f"provider.address={elsewhere.openai_url}", "provider.max_concurrency=2"]
        grown = own("provider.greeting='Good morning (#1).'", *moved)
        assert len(elsewhere.log.answers()) == 1
    assert grown.returncode == 0, grown.stderr
    assert len(server.log.answers()) == 2
    other = own("provider.greeting=Hello")
    assert other.returncode == 2
    assert "provider.greeting" in other.stderr
    completed_once(tmp_path / "run", 3)


def latest(directory: Path) -> dict[Key, Record]:
    return {(r["instance_id"], r["sample"]): r for r in read_records(directory / "records.jsonl")}


def completed_once(directory: Path, instances: int, samples: int = 1) -> None:
    """Every (instance, sample) has exactly one completed record and one prediction."""
    counts = Counter(
        (r["instance_id"], r["sample"])
        for r in read_records(directory / "records.jsonl")
        if r["status"] == "completed"
    )
    wanted = {(f"example__pkg-{i}", s) for i in range(instances) for s in range(samples)}
    assert counts.keys() == wanted
    assert set(counts.values()) == {1}
    for sample in range(samples):
        name = "predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl"
        predictions = [json.loads(line) for line in (directory / name).read_text().splitlines()]
        assert sorted(p["instance_id"] for p in predictions) == sorted(i for i, s in wanted if s == sample)
        assert len({p["model_name_or_path"] for p in predictions}) == 1


def holds_no_secret(directory: Path, *outputs: str) -> None:
    texts = [path.read_bytes() for path in directory.rglob("*") if path.is_file()]
    texts += [output.encode() for output in outputs]
    for key in KEYS.values():
        assert not any(key.encode() in text for text in texts)


@pytest.mark.parametrize(
    "provider",
    [
        pytest.param(name, marks=[pytest.mark.full] * (name not in ("openai", "openai_compatible", "anthropic")))
        for name in PROVIDERS
    ],
)
def test_a_run_answers_every_instance_and_the_same_command_costs_nothing_more(
    provider: str, server: ApiServer, tmp_path: Path
) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 6)
    arguments = [
        *PROVIDERS[provider], address(server, provider), "dataset=jsonl", f"dataset.path={data}",
        "decoding.max_new_tokens=512", "tracker=none", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    directory = tmp_path / "run"
    assert Path(result.stdout.strip().splitlines()[-1]) == directory
    completed_once(directory, 6)
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["instances"], summary["completed"], summary["remaining"]) == (6, 6, 0)
    assert summary["patches"] == {"applies": 6}
    billed = server.log.usage()
    if provider != "anthropic_text":  # it reports no usage; the record says that it is an estimate
        assert summary["usage"]["input_tokens"] == billed.input_tokens
        assert summary["usage"]["output_tokens"] == billed.output_tokens
        assert summary["usage"]["cached_input_tokens"] == billed.cached_input_tokens
    if provider == "openai_compatible":
        assert summary["cost_usd"] is None
    elif provider != "anthropic_text":
        assert abs(Decimal(str(summary["cost_usd"])) - server.log.cost_usd()) < Decimal("1e-9")
    holds_no_secret(directory, result.stdout, result.stderr)

    if provider not in ("openai", "anthropic"):
        return
    asked = len(server.log.asked())
    again = run(*arguments, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(server.log.asked()) == asked
    completed_once(directory, 6)


def test_a_new_name_follows_its_family_and_a_retired_one_is_warned_about(server: ApiServer, tmp_path: Path) -> None:
    rest = ["dataset=sample", "dataset.limit=2", "dataset.run_tests=false", "tracker=none"]
    rest.append(address(server, "anthropic"))
    new = run("model.name=claude-sonnet-6-0", "model.pricing=unknown", *rest, cwd=tmp_path)
    assert new.returncode == 0, new.stderr
    assert new.stderr.count("the rules of claude-sonnet-5-5 apply") == 1
    for exchange in server.log.exchanges:
        assert exchange.headers["anthropic-version"] == "2026-10-21"
        assert exchange.body is not None
        assert exchange.body["model"] == "claude-sonnet-6-0"
        assert not set(exchange.body) & {"temperature", "top_p"}
    asked = len(server.log.exchanges)
    old = run("model=claude-2", *rest, cwd=tmp_path)
    assert old.returncode == 0, old.stderr
    assert old.stderr.count("claude-2 is retired since 2025-07-21; a current model: model=claude-sonnet-5-5") == 1
    assert len(server.log.exchanges) == asked + 2


@pytest.mark.parametrize("provider", [pytest.param(p, marks=[pytest.mark.full] * (p != "openai")) for p in PROVIDERS])
def test_killed_at_random_moments_and_run_again_nothing_is_lost_or_paid_twice(provider: str, tmp_path: Path) -> None:
    instances, samples, in_flight, wanted = 40, 2, 8, 2
    data = write_instances(tmp_path / "instances.jsonl", instances)
    directory = tmp_path / "run"
    chance = random.Random(provider)
    with ApiServer(latency_s=(0.05, 0.25)) as server:
        arguments = [
            *PROVIDERS[provider], address(server, provider), "dataset=jsonl", f"dataset.path={data}",
            "decoding.max_new_tokens=512", f"decoding.n={samples}", "tracker=none", f"output_dir={directory}",
            f"provider.max_concurrency={in_flight}",
        ]  # fmt: skip
        kills = 0
        while kills < wanted:
            process = commands.start("swe_infer", *arguments, cwd=tmp_path, env=environment())
            before = len(server.log.asked())
            deadline = time.monotonic() + 200
            while len(server.log.asked()) < before + 4 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
        result = run(*arguments, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        completed_once(directory, instances, samples)
        answered = sum(len(e.texts) for e in server.log.answers())
        assert answered <= instances * samples + kills * in_flight * samples, "only what was in flight is asked again"
        recorded = sum((r["cost_usd"] or Decimal(0)) for r in read_records(directory / "records.jsonl"))
        summary = json.loads((directory / "summary.json").read_text(), parse_float=Decimal)
        if provider != "openai_compatible":
            assert abs(summary["cost_usd"] - recorded) < Decimal("1e-9")


def test_one_instance_that_keeps_failing_costs_itself_and_is_tried_again(server: ApiServer, tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 5)
    arguments = [
        "model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "tracker=none",
        f"output_dir={tmp_path / 'run'}", "decoding.max_new_tokens=512",
    ]  # fmt: skip
    server.script("bad_request")
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    records = latest(tmp_path / "run")
    assert Counter(r["status"] for r in records.values()) == {"completed": 4, "failed": 1}
    (failed,) = (r for r in records.values() if r["status"] == "failed")
    error = failed["error"]
    assert isinstance(error, dict)
    assert error["type"] == "InvalidRequest"
    assert run(*arguments, cwd=tmp_path).returncode == 0
    completed_once(tmp_path / "run", 5)
    assert len(server.log.asked()) == 6


def test_a_refused_key_stops_the_run_at_once_with_one_line(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 50)
    with ApiServer(latency_s=0.01, api_key="another") as server:
        result = run(
            "model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "tracker=none",
            f"output_dir={tmp_path / 'run'}", cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 2
        assert len(server.log.asked()) < 12
    holds_no_secret(tmp_path, result.stdout, result.stderr)


def test_a_cap_is_never_passed_and_more_budget_goes_on(server: ApiServer, tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 60, lines=200)
    arguments = [
        "model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "tracker=none",
        f"output_dir={tmp_path / 'run'}", "decoding.max_new_tokens=128",
    ]  # fmt: skip
    result = run(*arguments, "budget.max_usd=0.05", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert server.log.cost_usd() <= Decimal("0.05")
    first = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert first["completed"]
    assert first["remaining"]
    result = run(*arguments, "budget.max_usd=5", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    completed_once(tmp_path / "run", 60)
    total = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_float=Decimal)["cost_usd"]
    assert abs(total - server.log.cost_usd()) < Decimal("1e-9")


def test_a_prompt_too_long_for_the_model_is_skipped_with_its_reason(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 3)
    with data.open("a") as file:
        file.write(json.dumps({"instance_id": "long", "text": "system line\n" + "word " * 20_000}) + "\n")
    with ApiServer(context_window=8_000) as server:
        result = run(
            "model.name=small", "provider=openai_compatible", address(server, "openai_compatible"),
            "model.pricing=unknown", "dataset=jsonl", f"dataset.path={data}", "tracker=none",
            f"output_dir={tmp_path / 'run'}", cwd=tmp_path,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    record = latest(tmp_path / "run")["long", 0]
    assert record["status"] == "skipped"
    error = record["error"]
    assert isinstance(error, dict)
    assert error["type"] == "ContextOverflow"


def test_ctrl_c_finishes_what_is_in_flight_and_exits_with_130(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 200)
    with ApiServer(latency_s=0.4) as server:
        process = commands.start(
            "swe_infer", "model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}",
            "tracker=none", f"output_dir={tmp_path / 'run'}", "provider.max_concurrency=4",
            cwd=tmp_path, env=environment(),
        )  # fmt: skip
        while server.in_flight < 1 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=400)
        assert process.returncode == 130, errors
        assert output.strip().splitlines()[-1] == str(tmp_path / "run")
        answered = len(server.log.answers())
        assert answered < 200
    records = latest(tmp_path / "run")
    assert Counter(r["status"] for r in records.values()) == {"completed": answered}


@pytest.mark.full
def test_faults_that_pass_cost_nobody_an_instance(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 40)
    faults = [Fault("rate_limit", fraction=0.1), Fault("server_error", fraction=0.1), Fault("reset", fraction=0.1)]
    with ApiServer(latency_s=0.01, faults=faults) as server:
        result = run(
            "model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "tracker=none",
            f"output_dir={tmp_path / 'run'}", "decoding.max_new_tokens=512", cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert set(server.log.answers_by_prompt().values()) == {1}
    completed_once(tmp_path / "run", 40)


def test_a_request_that_no_budget_fits_is_left_and_more_budget_goes_on_with_it_alone(
    server: ApiServer, tmp_path: Path
) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 5)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[0]["text"] += "x " * 200_000
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [
        *PROVIDERS["openai"], address(server, "openai"), "dataset=jsonl", f"dataset.path={data}",
        "decoding.max_new_tokens=512", "tracker=none", f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    result = run(*arguments, "budget.max_usd=0.1", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_float=Decimal)
    assert (summary["completed"], summary["failed"], summary["remaining"]) == (4, 0, 1)
    (closing,) = [line for line in result.stderr.splitlines() if "is used up" in line]
    assert "remaining samples: 1;" in closing
    worst = Decimal(closing.partition("can cost up to $")[2].partition(";")[0])
    result = run(*arguments, f"budget.max_usd={summary['cost_usd'] + worst + Decimal('0.001')}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    completed_once(tmp_path / "run", 5)
    assert len(server.log.asked()) == 5


def test_a_damaged_file_costs_what_cannot_be_read_and_hides_no_dollar(server: ApiServer, tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 8)
    arguments = ["model=gpt-4o", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "output_dir=run"]
    arguments += ["shard.index=0", "shard.count=1"]
    assert run(*arguments, "tracker=none", cwd=tmp_path).returncode == 0
    directory = tmp_path / "run"
    records = (directory / "records.jsonl").read_bytes().splitlines(keepends=True)
    records[1] = records[1][: records[1].index(b'"latency_s"')]  # its cost is left, and the next one in its line
    records[3] = records[3][: records[3].index(b'"usage"')] + b"\n"  # only summary.json knows its cost
    records[4] = b"\0" * 4096 + records[4]
    records.insert(6, records[5])
    damaged = b"".join(records)
    (directory / "records.jsonl").write_bytes(damaged)

    again = run(*arguments, "tracker=none", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(server.log.answers()) == 10
    assert sum("unreadable records: 2; repeated records" in line for line in again.stderr.splitlines()) == 1
    assert "unreadable 2 records; $" in again.stderr
    assert (directory / "records.jsonl").read_bytes().startswith(damaged)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["cost_usd"] == pytest.approx(float(server.log.cost_usd()), abs=1e-9)
    assert (summary["completed"], summary["failed"], summary["unreadable_records"]) == (8, 0, 2)
    assert len((directory / "predictions.jsonl").read_text().splitlines()) == 8

    compared = as_json(compare([load_run(directory)]))["runs"][0]
    assert (compared["cost_usd"], compared["unreadable_records"]) == (summary["cost_usd"], 2)
    merged = merge(tmp_path / "merged", [directory])
    assert merged["cost_usd"] is not None
    assert (float(merged["cost_usd"]), merged["unreadable_records"]) == (summary["cost_usd"], 2)
    assert float(compare([load_run(tmp_path / "merged")]).runs[0].cost_usd or 0) == summary["cost_usd"]


def test_records_and_summary_say_what_was_billed_and_what_may_have_been(server: ApiServer, tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 3)
    arguments = [
        "model=gpt-5.4", "provider.service_tier=priority", address(server, "openai"), "dataset=jsonl",
        f"dataset.path={data}", "tracker=none", f"output_dir={tmp_path / 'run'}", "provider.max_concurrency=1",
        "runner.retry.tries=1", "budget.max_usd=5",
    ]  # fmt: skip
    server.script("cut")
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    records = list(latest(tmp_path / "run").values())
    assert [record.get("service_tier") for record in records if record["status"] == "completed"] == ["priority"] * 2
    (failed,) = (record for record in records if record["status"] == "failed")
    lost = Decimal((failed.get("details") or {})["possibly_billed_usd"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_float=Decimal)
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as ledger:
        ((spent,),) = ledger.execute("SELECT sum(amount) FROM spent").fetchall()
    assert abs(summary["possibly_billed_usd"] - lost) < Decimal("1e-9")
    assert abs(summary["cost_usd"] + lost - Decimal(spent) / 10**12) < Decimal("1e-9")
    assert server.log.cost_usd(only_usable=True) - summary["cost_usd"] < Decimal("1e-9")
    assert server.log.cost_usd() <= Decimal(spent) / 10**12
    assert "perhaps" in result.stderr
    shown = as_json(compare([load_run(tmp_path / "run")]))["runs"][0]
    assert shown["possibly_billed_usd"] == float(summary["possibly_billed_usd"])


@pytest.mark.full
def test_every_place_shows_what_may_have_been_billed_for_attempts_given_up_at_the_cap(
    server: ApiServer, tmp_path: Path
) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 6)
    arguments = [
        "model=gpt-5.4", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}",
        f"output_dir={tmp_path / 'run'}", "provider.max_concurrency=1", "decoding.max_new_tokens=256",
        "runner.retry.backoff_s=0.01", "provider.send_cache_key=false",
    ]  # fmt: skip
    server.script("cut", None, "cut", "cut", "cut", "cut", "cut", "cut", "cut", "cut")
    result = run(*arguments, "budget.max_usd=0.02", "tracker.mode=offline", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert re.search(r"used up: .* remaining samples: \d, failed samples: \d; repeat", result.stderr)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_float=Decimal)
    records = list(read_records(tmp_path / "run" / "records.jsonl"))
    assert Counter(record["status"] for record in records)["failed"] == summary["failed"] > 0
    recorded = sum(Decimal((record.get("details") or {}).get("possibly_billed_usd", "0")) for record in records)
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as ledger:
        ((spent,),) = ledger.execute("SELECT sum(amount) FROM spent").fetchall()
    assert summary["cost_usd"] + recorded == Decimal(spent) / 10**12
    assert server.log.cost_usd() <= Decimal(spent) / 10**12 <= Decimal("0.02")
    (tracked,) = read_offline_runs(tmp_path / "run")
    shown = [
        summary["possibly_billed_usd"], summary["stats"]["possibly_billed_usd"],
        tracked.summary["possibly_billed_usd"], tracked.history[-1]["possibly_billed_usd"],
    ]  # fmt: skip
    assert [float(usd) for usd in shown] == pytest.approx([float(recorded)] * 4)
    assert float(tracked.summary["cost_usd"]) == pytest.approx(float(summary["cost_usd"]))
    assert f"perhaps up to ${recorded:.4f}" in result.stderr
    server.reset()
    result = run(*arguments, "budget.max_usd=5", "tracker=none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    after = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_float=Decimal)
    assert (after["completed"], after["possibly_billed_usd"]) == (6, summary["possibly_billed_usd"])


def test_what_was_in_flight_at_a_kill_is_in_every_figure(server: ApiServer, tmp_path: Path) -> None:
    """The ledger charges it, so summary, closing table and W&B state it too, whatever command comes next."""
    arguments = [
        *("model=gpt-4o", address(server, "openai"), "dataset.limit=30", "dataset.run_tests=false", "output_dir=run"),
        *("provider.max_concurrency=3", "budget.max_usd=1", "budget.sweep_max_usd=1"),
    ]
    directory, records = tmp_path / "run", tmp_path / "run" / "records.jsonl"
    process = commands.start("swe_infer", *arguments, "tracker=none", cwd=tmp_path, env=environment())
    while not (records.exists() and records.stat().st_size):
        time.sleep(0.01)
    server.latency_s = 600.0  # the next ones wait until the process is killed
    while server.in_flight < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    server.latency_s = 0.0

    tables = []
    for cap, status, tracker in (  # with the first cap, nothing more is sent
        ("0.01", 3, "tracker=none"), ("1", 0, "tracker.mode=offline"), ("1", 0, "tracker=none"),
    ):  # fmt: skip
        done = run(*arguments, f"budget.max_usd={cap}", tracker, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        tables.append([line for line in done.stderr.splitlines() if line.startswith("  cost")])
        summary = json.loads((directory / "summary.json").read_text(), parse_float=Decimal)
        with contextlib.closing(sqlite3.connect(directory / "ledger.sqlite")) as ledger:
            ((spent,),) = ledger.execute("SELECT sum(amount) FROM spent")
        lost = Decimal(spent).scaleb(-12) - summary["cost_usd"]
        assert lost > Decimal("0.01"), "three requests with the longest output"
        assert abs(summary["possibly_billed_usd"] - lost) < Decimal("1e-9")
    assert tables[1] == tables[2] != []
    (shown,) = re.findall(r"up to \$([\d.]+) for requests", tables[0][0])
    assert float(shown) == pytest.approx(float(lost), abs=1e-4)
    assert read_offline_runs(directory)[-1].summary["possibly_billed_usd"] == pytest.approx(float(lost))


def killed_in_flight(server: ApiServer, *arguments: str, cwd: Path) -> None:
    """Kills a command while three of its requests are unanswered."""
    server.latency_s = 600.0
    before = server.in_flight
    process = commands.start("swe_infer", *arguments, cwd=cwd, env=environment())
    while server.in_flight < before + 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    server.latency_s = 0.0


def summary_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text(), parse_float=Decimal))


@pytest.mark.full
def test_what_was_in_flight_at_a_kill_is_stated_whatever_the_next_command_asks_for(
    server: ApiServer, tmp_path: Path
) -> None:
    """Nothing to send, no cap, or batches: the money is spent all the same, also in the merged run."""
    common = ["model=gpt-4o", address(server, "openai"), "dataset.run_tests=false", "tracker=none", "shard.count=2"]
    shards = [[*common, f"output_dir=shard{index}", f"shard.index={index}"] for index in range(2)]
    first, cap, fewer = shards[0], "budget.max_usd=1", "dataset.limit=6"
    for shard in shards:
        assert run(*shard, cap, fewer, cwd=tmp_path).returncode == 0
    killed_in_flight(server, *first, cap, "provider.max_concurrency=3", cwd=tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "shard0" / "ledger.sqlite")) as ledger:
        ((held,),) = ledger.execute("SELECT sum(amount) FROM held")
    lost = pytest.approx(held / 1e12)
    assert held > 1e10, "three requests with the longest output"

    for nothing_left in ([cap, fewer], [fewer]):
        assert run(*first, *nothing_left, cwd=tmp_path).returncode == 0
        assert float(summary_of(tmp_path / "shard0")["possibly_billed_usd"]) == lost, nothing_left
    merge(tmp_path / "merged", [tmp_path / "shard0", tmp_path / "shard1"])
    assert float(summary_of(tmp_path / "merged")["possibly_billed_usd"]) == lost
    in_batches = ["dataset.limit=8", "provider.mode=batch", "runner.batches.first_poll_s=0.05"]
    for more in (in_batches, ["dataset.limit=10", cap]):
        assert run(*first, *more, cwd=tmp_path).returncode == 0
        assert float(summary_of(tmp_path / "shard0")["possibly_billed_usd"]) == lost, more


@pytest.mark.full
@pytest.mark.parametrize("is_moved", [False, True])
def test_what_was_in_flight_under_the_cap_of_a_sweep_is_stated_without_a_cap(
    server: ApiServer, tmp_path: Path, is_moved: bool
) -> None:
    common = ["model=gpt-4o", address(server, "openai"), "dataset.run_tests=false", "tracker=none", "shard.count=1"]
    arguments, directory = [*common, "shard.index=0", "output_dir=run"], tmp_path / "run"
    cap = "budget.sweep_max_usd=1"
    assert run(*arguments, cap, "dataset.limit=6", cwd=tmp_path).returncode == 0
    killed_in_flight(server, *arguments, cap, "provider.max_concurrency=3", cwd=tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "sweep_ledger.sqlite")) as ledger:
        ((held,),) = ledger.execute("SELECT sum(amount) FROM held")
    lost = pytest.approx(held / 1e12)
    assert held > 1e10, "three requests with the longest output"
    if is_moved:  # out of the sweep's folder, whose ledger the run names
        directory = tmp_path / "elsewhere" / "run"
        directory.parent.mkdir()
        (tmp_path / "run").rename(directory)
        arguments[-1] = f"output_dir={directory}"

    for limit in ("6", "7", "8"):  # nothing left to send, then more
        assert run(*arguments, f"dataset.limit={limit}", cwd=tmp_path).returncode == 0
        assert float(summary_of(directory)["possibly_billed_usd"]) == lost, limit
    assert float(sum(map(possibly_billed_usd, read_records(directory / "records.jsonl")))) == lost
    merge(tmp_path / "merged", [directory])
    assert float(summary_of(tmp_path / "merged")["possibly_billed_usd"]) == lost
    assert compare([load_run(directory)]).runs[0].possibly_billed_usd == lost
    assert run(*arguments, cap, "dataset.limit=9", cwd=tmp_path).returncode == 0
    assert float(summary_of(directory)["possibly_billed_usd"]) == lost, "it is counted once"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_cap_counts_the_known_part_of_earlier_costs_if_the_rest_is_unknown(
    damaged: bool, server: ApiServer, tmp_path: Path
) -> None:
    """The first command has no cap: an answer comes from a tier without a price, or a record is damaged."""
    data = write_instances(tmp_path / "instances.jsonl", 60)
    arguments = [
        "model=gpt-5.4", address(server, "openai"), "dataset=jsonl", f"dataset.path={data}", "tracker=none",
        f"output_dir={tmp_path / 'run'}", "provider.max_concurrency=1", "decoding.max_new_tokens=256",
    ]  # fmt: skip
    server.maker.project_tier = "default" if damaged else "unheard-of"
    assert run(*arguments, "dataset.limit=1", cwd=tmp_path).returncode == 0
    server.maker.project_tier = "default"
    assert run(*arguments, "dataset.limit=20", cwd=tmp_path).returncode == 0
    if damaged:
        records = tmp_path / "run" / "records.jsonl"
        first, *rest = records.read_bytes().splitlines(keepends=True)
        records.write_bytes(re.sub(rb'"cost_usd":\s*[\d.]+', b'"cost_usd": null', first)[1:] + b"".join(rest))
    assert summary_of(tmp_path / "run")["cost_usd"] is None or damaged
    before = server.log.cost_usd()
    cap = before + Decimal("0.02")  # five requests with the longest output
    result = run(*arguments, f"budget.max_usd={cap}", cwd=tmp_path)
    assert result.returncode == 3, result.stderr
    assert before < server.log.cost_usd() <= cap
    assert "the budget counts the known part" in result.stderr


def plain_run(server: ApiServer) -> list[str]:
    return ["model=gpt-4o", address(server, "openai"), "dataset.run_tests=false", "tracker=none", "output_dir=run"]


def test_what_was_in_flight_at_kills_under_different_caps_is_added(server: ApiServer, tmp_path: Path) -> None:
    arguments = [*plain_run(server), "shard.index=0", "shard.count=1"]
    assert run(*arguments, "budget.max_usd=1", "dataset.limit=1", cwd=tmp_path).returncode == 0
    lost = 0.0
    for cap, ledger in (("max_usd", "run/ledger.sqlite"), ("sweep_max_usd", "sweep_ledger.sqlite")):
        killed_in_flight(server, *arguments, f"budget.{cap}=1", "provider.max_concurrency=3", cwd=tmp_path)
        with contextlib.closing(sqlite3.connect(tmp_path / ledger)) as database:
            ((held,),) = database.execute("SELECT sum(amount) FROM held")
        lost += held / 1e12
    # Nothing left to send, then more, from a folder outside of the sweep's.
    directory, moved = tmp_path / "run", tmp_path / "elsewhere" / "run"
    assert run(*arguments, "dataset.limit=1", cwd=tmp_path).returncode == 0
    assert float(summary_of(directory)["possibly_billed_usd"]) == pytest.approx(lost)
    moved.parent.mkdir()
    directory.rename(moved)
    assert run(*arguments, "dataset.limit=2", f"output_dir={moved}", cwd=tmp_path).returncode == 0
    assert float(summary_of(moved)["possibly_billed_usd"]) == pytest.approx(lost)
    merge(tmp_path / "merged", [moved])
    assert float(summary_of(tmp_path / "merged")["possibly_billed_usd"]) == pytest.approx(lost)


def test_figures_that_only_the_summary_knows_survive_an_update_from_the_records(
    server: ApiServer, tmp_path: Path
) -> None:
    """What ledgers know is in no record until the next one; a killed run wrote its last records after its summary."""
    run_directory = tmp_path / "run"
    arguments = ["model=gpt-4o", address(server, "openai"), "dataset.limit=2", "dataset.run_tests=false"]
    arguments += ["tracker=none"]
    assert run(*arguments, f"output_dir={run_directory}", cwd=tmp_path).returncode == 0
    summary = summary_of(run_directory)
    written = {**summary, "completed": 1, "remaining": 1, "possibly_billed_usd": 0.25}
    (run_directory / "summary.json").write_text(json.dumps(written, default=float))
    past = (run_directory / "records.jsonl").stat().st_mtime_ns - 10**9
    os.utime(run_directory / "summary.json", ns=(past, past))
    listed = read_run(run_directory, "run").summary
    assert (listed["completed"], float(listed["possibly_billed_usd"])) == (2, 0.25)
    assert compare([load_run(run_directory)]).runs[0].possibly_billed_usd == 0.25
    in_python = Run(run_directory, "run").summary
    assert (in_python["completed"], in_python["possibly_billed_usd"]) == (2, Decimal("0.25"))
    live = LiveFigures(run_directory, None, 1)
    assert live.update()
    assert float(live.summary(RunDirectory(run_directory).summary())["possibly_billed_usd"]) == 0.25
    change_patches(run_directory)
    again = summary_of(run_directory)
    assert (again["completed"], again["remaining"], again["possibly_billed_usd"]) == (2, 0, Decimal("0.25"))


def change_patches(directory: Path) -> None:
    """Computes the patches again, of which one was changed."""
    path = directory / "records.jsonl"
    first, *others = path.read_text().splitlines(keepends=True)
    record = {**json.loads(first), "model_patch": "", "patch_status": "none"}
    path.write_text("".join([json.dumps(record) + "\n", *others]))
    assert recompute(directory).patches


@pytest.mark.full
def test_requests_in_flight_at_a_kill_count_under_a_cap_that_returns(server: ApiServer, tmp_path: Path) -> None:
    arguments = plain_run(server)
    killed_in_flight(server, *arguments, "budget.max_usd=1", "provider.max_concurrency=3", cwd=tmp_path)
    path = tmp_path / "run" / "ledger.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        ((held,),) = ledger.execute("SELECT sum(amount) FROM held")
    for further in (["dataset.limit=4"], ["dataset.limit=5", "budget.max_usd=1"]):
        assert run(*arguments, *further, cwd=tmp_path).returncode == 0
    with contextlib.closing(sqlite3.connect(path)) as ledger:
        ((spent,),) = ledger.execute("SELECT sum(amount) FROM spent")
    summary = summary_of(tmp_path / "run")
    assert summary["cost_usd"] > 0
    assert spent == int((summary["cost_usd"] + Decimal(held).scaleb(-12)).scaleb(12))


def test_a_killed_run_that_has_every_answer_gets_its_last_summary(server: ApiServer, tmp_path: Path) -> None:
    """The process wrote the last records, but the summary only up to the first ones."""
    arguments = ["model=gpt-4o", address(server, "openai"), "dataset.limit=4", "dataset.run_tests=false"]
    arguments += ["tracker=none", "output_dir=run"]
    assert run(*arguments, cwd=tmp_path).returncode == 0
    path = tmp_path / "run" / "summary.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, "completed": 1, "remaining": 3, "cost_usd": whole["cost_usd"] / 4}))
    requests = len(server.log.exchanges)
    assert run(*arguments, cwd=tmp_path).returncode == 0
    again = json.loads(path.read_text())
    assert len(server.log.exchanges) == requests
    assert [again[name] for name in ("completed", "remaining", "cost_usd")] == [4, 0, whole["cost_usd"]]
