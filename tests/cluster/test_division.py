"""``budget.across=division``: workers that share no file keep one cap and one rate by equal parts."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.limits import Limits
from swe_infer.api.rate_limits import RateLimiter
from swe_infer.errors import ConfigError
from swe_infer.types import Budget
from tests.api.test_limits import Bucket, Window
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.sweeps.command import ROOT


def worker(server: ApiServer, home: Path, index: int | None, *arguments: str) -> commands.Command:
    """One shard of two on a machine of its own: it shares no folder with the others."""
    home.mkdir(exist_ok=True)
    data = write_instances(home / "instances.jsonl", 60)
    shard = [] if index is None else ["shard.count=2", f"shard.index={index}"]
    return commands.start(
        "swe_infer", "tracker=none", "model=gpt-4o", "dataset=jsonl", f"dataset.path={data}",
        f"provider.base_url={server.openai_url}", "decoding.max_new_tokens=64", *shard, "budget.across=division",
        *arguments, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
    )  # fmt: skip


def test_shards_that_share_nothing_keep_one_cap_over_resumes_too(tmp_path: Path) -> None:
    cap = Decimal("0.02")
    with ApiServer(latency_s=0.05) as server:
        for _ in range(2):
            workers = [worker(server, tmp_path / str(i), i, f"budget.max_usd={cap}") for i in range(2)]
            for process in workers:
                _, errors = process.communicate(timeout=120)
                assert process.returncode == 3, errors
            assert cap / 2 < server.log.cost_usd() <= cap


def test_division_without_shards_is_refused(tmp_path: Path) -> None:
    with ApiServer() as server:
        process = worker(server, tmp_path, None, "budget.max_usd=1")
        _, errors = process.communicate(timeout=60)
        assert server.log.asked() == []
    assert process.returncode == 2
    assert "budget.across=division divides a run among its shards" in errors


def test_stated_quotas_are_divided() -> None:
    part = Limits(requests_per_minute=600, tokens_per_minute=90_000).divided(3)
    assert (part.requests_per_minute, part.tokens_per_minute, part.output_tokens_per_minute) == (200, 30_000, None)
    with pytest.raises(ConfigError, match=r"runner\.limits\.shared shares the quotas already"):
        Limits(shared="pace").divided(2)


@pytest.mark.parametrize(
    "server",
    [lambda: Bucket(600, 600), lambda: Bucket(600, 10), lambda: Window(600, sliding=False)],
    ids=["bucket", "small bucket", "fixed window"],
)
def test_quotas_that_are_learnt_from_headers_are_divided(server: Callable[[], Bucket | Window]) -> None:
    """Three workers that know nothing of each other, and one quota."""
    admitted, refused = together(server(), [RateLimiter(None, 0.0, parts=3) for _ in range(3)], 600)
    assert admitted >= 0.97 * 600 * 10
    assert refused <= 0.01 * admitted
    _, undivided = together(server(), [RateLimiter(None, 0.0) for _ in range(3)], 600)
    assert undivided > 10 * refused, "headers alone do not keep three workers under one quota"


def test_a_worker_s_part_of_a_learnt_quota_is_that_of_a_stated_one() -> None:
    stated, learnt = RateLimiter(200, 0.0), RateLimiter(None, 0.0, parts=3)
    learnt.take(1, 0.0)
    learnt.learn(600, 0, 60.0, sent_before=1, now=0.0)
    assert learnt.per_minute == stated.per_minute == 200


def together(server: Bucket | Window, quotas: Sequence[RateLimiter], seconds: float) -> tuple[int, int]:
    """(admitted, refused) of clients with a quota each that always have a request to send; 2 s of latency."""
    admitted, refused = 0, 0
    turns = [(0.001 * index, index) for index in range(len(quotas))]
    arrivals: list[tuple[float, int, float, tuple[float, float, float]]] = []
    while turns[0][0] < seconds:
        now, index = heapq.heappop(turns)
        while arrivals and arrivals[0][0] <= now:
            _, to, sent_before, stated = heapq.heappop(arrivals)
            quotas[to].learn(*stated, sent_before=sent_before, now=now)
        wait = min(quotas[index].wait_s(1.0, now), 0.5)
        if wait <= 0:
            quotas[index].take(1.0, now)
            if server.admits(now):
                admitted += 1
                heapq.heappush(arrivals, (now + 2.0, index, quotas[index].sent, server.headers(now)))
            else:
                refused += 1
                quotas[index].refused()
                wait = 1.0  # a Retry-After
        heapq.heappush(turns, (now + max(wait, 0.004), index))
    return admitted, refused


def test_a_sweep_s_cap_is_not_divided() -> None:
    with pytest.raises(ConfigError, match=r"budget\.sweep_max_usd needs the ledger"):
        Budget(sweep_max_usd=Decimal(1), across="division")
