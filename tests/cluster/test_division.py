"""``budget.across=division``: workers without shared files divide one budget and one rate limit equally."""

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
    """One of two shards, on a machine that shares no folder with the other."""
    home.mkdir(exist_ok=True)
    data = write_instances(home / "instances.jsonl", 60)
    shard = [] if index is None else ["shard.count=2", f"shard.index={index}"]
    return commands.start(
        "swe_infer", "tracker=none", "model=gpt-4o", "dataset=jsonl", f"dataset.path={data}",
        f"provider.base_url={server.openai_url}", "decoding.max_new_tokens=64", *shard, "budget.across=division",
        *arguments, cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
    )  # fmt: skip


def test_shards_without_shared_files_keep_one_cap_across_resumes(tmp_path: Path) -> None:
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
    assert "budget.across=division divides the budget among shards" in errors


def test_configured_quotas_are_divided() -> None:
    part = Limits(requests_per_minute=600, tokens_per_minute=90_000).divided(3)
    assert (part.requests_per_minute, part.tokens_per_minute, part.output_tokens_per_minute) == (200, 30_000, None)
    with pytest.raises(ConfigError, match=r"runner\.limits\.shared shares the quotas already"):
        Limits(shared="pace").divided(2)


@pytest.mark.parametrize(
    "server",
    [lambda: Bucket(600, 600), lambda: Bucket(600, 10), lambda: Window(600, sliding=False)],
    ids=["bucket", "small bucket", "fixed window"],
)
def test_quotas_learned_from_headers_are_divided(server: Callable[[], Bucket | Window]) -> None:
    """Three independent workers under one quota."""
    admitted, refused = simulate(server(), [RateLimiter(None, 0.0, parts=3) for _ in range(3)], 600)
    assert admitted >= 0.97 * 600 * 10
    assert refused <= 0.01 * admitted
    _, undivided = simulate(server(), [RateLimiter(None, 0.0) for _ in range(3)], 600)
    assert undivided > 10 * refused, "headers alone do not keep three workers under one quota"


def test_a_learned_quota_is_divided_like_a_configured_one() -> None:
    configured, learned = RateLimiter(200, 0.0), RateLimiter(None, 0.0, parts=3)
    learned.consume(1, 0.0)
    learned.update_from_headers(600, 0, 60.0, sent_before=1, now=0.0)
    assert learned.per_minute == configured.per_minute == 200


def simulate(server: Bucket | Window, limiters: Sequence[RateLimiter], seconds: float) -> tuple[int, int]:
    """Simulate clients with a rate limiter each and 2 s of latency. Returns (admitted, refused)."""
    admitted, refused = 0, 0
    turns = [(0.001 * index, index) for index in range(len(limiters))]
    arrivals: list[tuple[float, int, float, tuple[float, float, float]]] = []
    while turns[0][0] < seconds:
        now, index = heapq.heappop(turns)
        while arrivals and arrivals[0][0] <= now:
            _, to, sent_before, configured = heapq.heappop(arrivals)
            limiters[to].update_from_headers(*configured, sent_before=sent_before, now=now)
        wait = min(limiters[index].wait_s(1.0, now), 0.5)
        if wait <= 0:
            limiters[index].consume(1.0, now)
            if server.admits(now):
                admitted += 1
                heapq.heappush(arrivals, (now + 2.0, index, limiters[index].sent, server.headers(now)))
            else:
                refused += 1
                limiters[index].refused()
                wait = 1.0  # a Retry-After
        heapq.heappush(turns, (now + max(wait, 0.004), index))
    return admitted, refused


def test_a_sweep_s_cap_is_not_divided() -> None:
    with pytest.raises(ConfigError, match=r"budget\.sweep_max_usd needs a ledger"):
        Budget(sweep_max_usd=Decimal(1), across="division")
