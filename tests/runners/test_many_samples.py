"""A billion samples per instance: estimates do not enumerate them, and runs request them lazily."""

from __future__ import annotations

import itertools
import json
import os
import resource
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Literal

import pytest

from swe_infer.api.batch import BatchSettings
from swe_infer.api.dispatch import by_prompt
from swe_infer.errors import BudgetExceeded, ConfigError
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.runners.api import ApiRunner
from swe_infer.runners.base import PendingSamples
from swe_infer.runners.llama import LlamaRunner
from swe_infer.types import (
    MAX_SAMPLES,
    ApiModel,
    Budget,
    Completion,
    Decoding,
    Estimate,
    LlamaModel,
    PatchResult,
    Range,
    Request,
    Usage,
)
from tests.api.scripted import ScriptedProvider, context, request
from tests.api.test_runner import Outcomes
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
BILLION = 10**9
MORE_MEGABYTES = 100


def pending(total: int, *excluded: int) -> PendingSamples:
    one = request("a", 0, "word " * 3000)
    return PendingSamples("a", one.prompt, one.decoding, total, frozenset(excluded))


def one_by_one(samples: PendingSamples) -> list[PendingSamples]:
    everything = range(samples.total)
    return [
        PendingSamples(r.instance_id, r.prompt, r.decoding, samples.total, frozenset(everything) - {r.sample})
        for r in samples.requests()
    ]


def figures(found: Estimate) -> tuple[int, Range, Range, Range | None, Range | None]:
    return found.requests, found.input_tokens, found.output_tokens, found.live_usd, found.batch_usd


@pytest.mark.parametrize("vendor", ["openai", "llama"])
def test_estimates_equal_those_of_single_samples(vendor: Literal["openai", "llama"]) -> None:
    runner: ApiRunner | LlamaRunner
    if vendor == "llama":
        runner = LlamaRunner(
            model=LlamaModel(path=str(ROOT / "swe_infer" / "sample" / "tiny_llama")), decoding=Decoding()
        )
    else:
        runner = ApiRunner(
            model=ApiModel(name="gpt-4o"),
            provider=OpenAIChat(),
            decoding=Decoding(max_new_tokens=100),
            prompt_caching="never",
        )
    few = pending(9, 2, 5, 8)
    assert few.count == len(list(few.requests())) == 6
    assert figures(runner.estimate([few])) == figures(runner.estimate(one_by_one(few)))
    one, many = runner.estimate([pending(1)]), runner.estimate([pending(BILLION, 3)])
    assert many.requests == BILLION - 1
    assert many.input_tokens.high / one.input_tokens.high == pytest.approx(Decimal(BILLION), rel=Decimal("0.001"))
    assert one.live_usd is not None
    assert many.live_usd == Range(one.live_usd.low * (BILLION - 1), one.live_usd.high * (BILLION - 1))


def test_cached_samples_are_found_without_a_lookup_of_each(tmp_path: Path) -> None:
    api = ApiRunner(
        model=ApiModel(name="gpt-4o"), provider=ScriptedProvider(), decoding=Decoding(), response_cache=str(tmp_path)
    )
    few = pending(6, 1, 4)
    api.generate(few.requests(), Outcomes(), threading.Event())
    found = api.estimate([pending(BILLION)])
    assert (found.response_cache_hits, found.requests) == (4, BILLION - 4)


def test_the_most_samples_are_the_most_that_a_record_may_have() -> None:
    Decoding(n=MAX_SAMPLES)
    with pytest.raises(ConfigError, match=r"decoding\.n=1000+: must be at most 1,000"):
        Decoding(n=10**13)
    with pytest.raises(ConfigError, match=r"decoding\.max_new_tokens=1000+: must be at most 1,000"):
        Decoding(max_new_tokens=10**13)


@pytest.mark.parametrize("mode", ["live", pytest.param("batch", marks=pytest.mark.full)])
def test_a_run_reads_few_more_requests_than_it_sends(
    mode: Literal["live", "batch"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")
    decoding, read, run_context = Decoding(max_new_tokens=64), 0, context(tmp_path)

    def requests() -> Iterator[Request]:
        nonlocal read
        for read in range(BILLION):
            if "a" in run_context.over_budget:
                return
            yield request("a", read, "fix it", decoding)

    with ApiServer() as server:
        provider = OpenAIChat(base_url=server.openai_url, mode=mode, max_concurrency=BILLION)
        batches = BatchSettings(max_requests=50, first_poll_s=0.05, max_poll_s=0.1, settle_s=0.3)
        api = ApiRunner(
            model=ApiModel(name="gpt-4o"),
            provider=provider,
            decoding=decoding,
            budget=Budget(max_usd=Decimal("0.02")),
            batches=batches,
        )
        api.check()
        api.bind(run_context)
        outcomes = Outcomes()
        with pytest.raises(BudgetExceeded):
            api.generate(requests(), outcomes, threading.Event())
        assert len(outcomes.by_key) >= 5
        assert read < 20_000


def test_parts_of_a_prompts_samples_are_whole_requests() -> None:
    asked = [*(request("a", n) for n in range(7)), *(request("b", n) for n in range(2))]
    assert [[r.key for r in part] for part in by_prompt(asked, 3)] == [
        [("a", 0), ("a", 1), ("a", 2)], [("a", 3), ("a", 4), ("a", 5)], [("a", 6)], [("b", 0), ("b", 1)],
    ]  # fmt: skip
    assert len(next(by_prompt((request("a", n) for n in itertools.count()), 3))) == 3


def test_a_run_of_more_samples_than_files_may_be_open_is_written_and_resumed(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 100, limits[1]))
    try:
        with RunStore(tmp_path, "model") as store:
            for name, number in itertools.product("ab", [*range(150), 10**9]):
                answer = Completion("", "stop", Usage(), Decimal(0), 1.0)
                store.append(record_of((name, number), answer, PatchResult(name, "applies")))
            store.check()
            before = {path.name: path.read_bytes() for path in tmp_path.glob("predictions*")}
        with RunStore(tmp_path, "model") as store:
            assert store.totals.count("completed") == 302
        assert {path.name: path.read_bytes() for path in tmp_path.glob("predictions*")} == before
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(before) == 152, "one for each sample, and the selected ones"
    lines = before["predictions.sample1000000000.jsonl"].splitlines()
    assert [json.loads(line)["model_patch"] for line in lines] == ["a", "b"]


PEAK_MEMORY = """
import atexit, resource, runpy, sys
atexit.register(lambda: print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, flush=True))
runpy.run_module("swe_infer", run_name="__main__", alter_sys=True)
"""


def command(*arguments: str, cwd: Path) -> tuple[str, int, int]:
    """The output of a command, its exit status, and its peak memory in megabytes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-loopback"}
    done = commands.run("-c", PEAK_MEMORY, "tracker=none", *arguments, cwd=cwd, env=environment)
    said, _, peak = done.stdout.rpartition("peak ")
    return said, done.returncode, int(peak)


def test_a_billion_samples_need_no_more_memory_than_one(tmp_path: Path) -> None:
    with ApiServer() as server:
        real = ["model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset.limit=2", "decoding.seed=1"]
        real += ["decoding.max_new_tokens=64", "budget.max_usd=0.02"]
        _, status, least = command(*real, cwd=tmp_path)
        assert status == 0
        said, status, most = command(*real, f"decoding.n={BILLION}", cwd=tmp_path)
    assert status == 3
    assert most < least + MORE_MEGABYTES
    summary = json.loads((tmp_path / said.strip() / "summary.json").read_text())
    assert summary["completed"] > 2
    assert summary["completed"] + summary["remaining"] == 2 * BILLION
    dry = ["dry_run=true", "model=gpt-4o"]
    said, status, most = command(*dry, f"decoding.n={BILLION}", cwd=tmp_path)
    assert status == 0
    assert f"tokens out {40 * BILLION:,} to " in said
    assert most < least + MORE_MEGABYTES
    _, status, most = command(*dry, "shard.index=3", f"shard.count={BILLION}", cwd=tmp_path)
    assert status == 0
    assert most < least + MORE_MEGABYTES
