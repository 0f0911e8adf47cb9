"""The level of concurrency and the pace, against simulated servers, under clocks of their own."""

from __future__ import annotations

import asyncio
import heapq
import random
import socket
import sqlite3
import time
from collections import deque
from pathlib import Path

import pytest

from swe_infer.api.limits import Halted, Limiter, Limits
from swe_infer.api.rate_limits import RateLimiter, SharedRateLimiter
from swe_infer.errors import ConfigError, Overloaded, RateLimited, RateLimits, StoreError
from swe_infer.types import Usage
from tests.support.virtual_time import VirtualLoop, run_virtual


def clock() -> float:
    return asyncio.get_running_loop().time()


class Bucket:
    """A quota that refills continuously, as OpenAI and Anthropic describe theirs."""

    def __init__(self, per_minute: float, burst: float) -> None:
        self.rate, self.burst, self.concurrency, self.at = per_minute / 60, burst, burst, 0.0

    def admits(self, now: float) -> bool:
        self.concurrency = min(self.burst, self.concurrency + (now - self.at) * self.rate)
        self.at = now
        if self.concurrency < 1:
            return False
        self.concurrency -= 1
        return True

    def headers(self, now: float) -> tuple[float, float, float]:
        return self.rate * 60, int(self.concurrency), (self.burst - self.concurrency) / self.rate


class Window:
    """At most so many requests in any 60 seconds (sliding), or in each minute of the clock (fixed)."""

    def __init__(self, per_minute: float, sliding: bool) -> None:
        self.limit, self.sliding = per_minute, sliding
        self.sent: deque[float] = deque()

    def _drop(self, now: float) -> None:
        start = now - 60 if self.sliding else now // 60 * 60
        while self.sent and self.sent[0] < start:
            self.sent.popleft()

    def admits(self, now: float) -> bool:
        self._drop(now)
        if len(self.sent) >= self.limit:
            return False
        self.sent.append(now)
        return True

    def headers(self, now: float) -> tuple[float, float, float]:
        self._drop(now)
        reset = (self.sent[0] + 60 - now if self.sent else 0.0) if self.sliding else 60 - now % 60
        return self.limit, self.limit - len(self.sent), reset


def simulate(server: Bucket | Window, quota: RateLimiter, seconds: float, latency: float = 2.0) -> tuple[int, int]:
    """(admitted, refused) of a client that always has a request to send, at most 400 in flight."""
    now, admitted, refused = 0.0, 0, 0
    arrivals: list[tuple[float, float, float, float, float]] = []
    while now < seconds:
        while arrivals and arrivals[0][0] <= now:
            _, sent_before, *stated = heapq.heappop(arrivals)
            quota.update_from_headers(*stated, sent_before=sent_before, now=now)
        if len(arrivals) >= 400:
            now = arrivals[0][0]
            continue
        wait = quota.wait_s(1.0, now)
        if wait > 0:
            now = min(now + max(wait, 1e-3), arrivals[0][0] if arrivals else float("inf"))
            continue
        quota.consume(1.0, now)
        if server.admits(now):
            admitted += 1
            heapq.heappush(arrivals, (now + latency, quota.sent, *server.headers(now)))
        else:
            refused += 1
            quota.refused()
            now += 1.0  # a Retry-After
        now += 0.004  # what a request costs of the client's time
    return admitted, refused


@pytest.mark.parametrize(
    "server",
    [Bucket(600, 600), Bucket(600, 10), Window(600, sliding=True), Window(600, sliding=False)],
    ids=["bucket", "small bucket", "sliding window", "fixed window"],
)
def test_a_quota_from_headers_is_used_up_and_rarely_exceeded(server: Bucket | Window) -> None:
    admitted, refused = simulate(server, RateLimiter(None, 0.0), 600)
    assert admitted >= 0.97 * 600 * 10
    assert refused <= 0.01 * admitted


@pytest.mark.parametrize(
    "server",
    [Bucket(300, 5), Window(300, sliding=True), Window(300, sliding=False)],
    ids=["small bucket", "sliding window", "fixed window"],
)
def test_a_configured_quota_is_used_up_without_any_refusal(server: Bucket | Window) -> None:
    admitted, refused = simulate(server, RateLimiter(300, 0.0), 600)
    assert admitted >= 0.99 * 300 * 10
    assert refused == 0


def test_headers_do_not_raise_a_configured_quota() -> None:
    admitted, _ = simulate(Bucket(6000, 6000), RateLimiter(60, 0.0), 300)
    assert 59 * 5 <= admitted <= 61 * 5


def test_the_remaining_quota_in_headers_may_be_sent_at_once() -> None:
    quota = RateLimiter(None, 0.0)
    quota.consume(1, 0.0)
    quota.update_from_headers(600, 599, 0.1, sent_before=1, now=1.0)
    for _ in range(599):
        assert quota.wait_s(1, 1.0) == 0
        quota.consume(1, 1.0)
    assert quota.wait_s(1, 1.0) > 0


def test_the_schedule_starts_with_the_first_request() -> None:
    quota = RateLimiter(None, 0.0)
    for _ in range(10):
        quota.consume(1, 30.0)
    quota.update_from_headers(600, 0, 1.0, sent_before=10, now=30.1)
    assert quota.wait_s(1, 30.1) == pytest.approx(0.65, abs=0.02)  # ten are a second's worth; a quarter is tolerance


def test_a_daily_quota_is_recognised() -> None:
    quota = RateLimiter(None, 0.0)
    quota.consume(1, 0.0)
    quota.update_from_headers(200, 199, 432.0, sent_before=1, now=1.0)
    assert quota.per_minute == pytest.approx(200 / 1440)


def test_unused_tokens_are_refunded() -> None:
    quota = RateLimiter(60_000, 0.0)
    quota.consume(10_000, 0.0)
    assert quota.wait_s(10_000, 0.0) == pytest.approx(10, rel=0.1)
    quota.refund(8_000)
    assert quota.wait_s(10_000, 0.0) == pytest.approx(2, rel=0.2)


async def worker(limiter: Limiter, seconds: float, answers: list[float], limits: RateLimits | None = None) -> None:
    async with limiter.permit(100, 10) as permit:
        await asyncio.sleep(seconds)
        limiter.answered(permit, limits or RateLimits(), Usage())
        answers.append(clock())


def test_concurrency_doubles_up_to_its_maximum_before_the_first_answer() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=8, doubling_s=0.1), 128)
        answers: list[float] = []
        tasks = [asyncio.create_task(worker(limiter, 1.0, answers)) for _ in range(200)]
        await asyncio.sleep(0.02)
        assert 8 <= limiter.in_flight <= 16
        await asyncio.sleep(0.75)
        assert limiter.in_flight == 128
        assert not answers
        await asyncio.gather(*tasks)
        assert limiter.peak == 128

    run_virtual(scenario())


def test_one_episode_of_refusals_backs_off_once() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=40), 64)

        async def refused(after: float) -> None:
            async with limiter.permit(1, 1) as permit:
                await asyncio.sleep(after)
                limiter.refused(permit, Overloaded("529", status=529), 60)

        await asyncio.gather(*(refused(0.02 + n / 1000) for n in range(40)))
        assert limiter.backoffs == 1
        assert 20 <= limiter.concurrency <= 28
        for _ in range(7):
            await refused(0.0)
        assert limiter.backoffs == 2

    run_virtual(scenario())


def test_after_a_backoff_concurrency_grows_only_while_it_is_full() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=20), 64)
        for _ in range(10):
            async with limiter.permit(1, 1) as permit:
                limiter.refused(permit, Overloaded("529", status=529), 60)
        low = limiter.concurrency
        assert low < 20
        answers: list[float] = []
        for _ in range(50):
            await worker(limiter, 0.0, answers)  # one at a time
        assert limiter.concurrency <= max(low, 2)
        await asyncio.gather(*(worker(limiter, 0.002, answers) for _ in range(600)))
        assert limiter.concurrency > 5

    run_virtual(scenario())


def test_a_retry_after_pauses_all_requests_if_a_quota_is_known() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=4, requests_per_minute=6_000_000), 4)
        async with limiter.permit(1, 1) as permit:
            limiter.refused(permit, RateLimited("429", retry_after_s=0.3), 60)
        began = clock()
        await asyncio.gather(*(worker(limiter, 0.0, []) for _ in range(3)))
        assert clock() - began == pytest.approx(0.3, abs=0.01)

    run_virtual(scenario())


def test_repeated_retry_after_pauses_all_requests_without_a_known_quota() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=4), 4)
        await worker(limiter, 0.0, [])

        async def refused() -> None:
            async with limiter.permit(1, 1) as permit:
                limiter.refused(permit, RateLimited("429", retry_after_s=0.3), 60)

        began = clock()
        await refused()
        await asyncio.gather(*(worker(limiter, 0.0, []) for _ in range(4)))
        assert clock() == began
        for _ in range(6):
            await refused()
        await worker(limiter, 0.0, [])
        assert clock() - began == pytest.approx(0.3, abs=0.01)

    run_virtual(scenario())


def test_a_rare_refusal_under_a_known_quota_does_not_cost_concurrency() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=32, requests_per_minute=6_000_000), 64)
        answers: list[float] = []
        await asyncio.gather(*(worker(limiter, 0.001, answers) for _ in range(200)))
        before = limiter.concurrency
        async with limiter.permit(1, 1) as permit:
            limiter.refused(permit, RateLimited("429", retry_after_s=0.01), 60)
        assert limiter.concurrency == before

    run_virtual(scenario())


def test_a_refused_start_resumes_once_the_quota_is_known() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=8, doubling_s=0.05), 64)
        for _ in range(20):
            async with limiter.permit(1, 1) as permit:
                limiter.refused(permit, RateLimited("429"), 60)
        assert limiter.concurrency == 1
        generous = RateLimits(limit_requests=10**9, remaining_requests=10**9, reset_requests_s=0.0)
        await worker(limiter, 0.0, [], generous)
        tasks = [asyncio.create_task(worker(limiter, 1.0, [])) for _ in range(64)]
        await asyncio.sleep(0.8)
        assert limiter.in_flight == 64
        await asyncio.gather(*tasks)

    run_virtual(scenario())


def test_a_start_that_is_refused_waits_for_the_first_answer() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=8), 64)
        answers: list[float] = []

        async def refused() -> None:
            async with limiter.permit(1, 1) as permit:
                limiter.refused(permit, RateLimited("429"), 60)

        first = asyncio.create_task(worker(limiter, 0.4, answers))
        await asyncio.sleep(0.01)
        await refused()
        others = [asyncio.create_task(worker(limiter, 0.0, answers)) for _ in range(20)]
        await asyncio.sleep(0.3)
        assert limiter.in_flight == 1
        await asyncio.gather(first, *others)
        assert len(answers) == 21

    run_virtual(scenario())


def test_quotas_in_a_refusal_are_used_like_those_in_an_answer() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=8), 64)
        stated = RateLimits(limit_requests=1200, remaining_requests=0, reset_requests_s=0.1)

        async def first(number: int) -> None:
            async with limiter.permit(1, 1) as permit:
                await asyncio.sleep(0.01)
                if number >= 5:
                    limiter.refused(permit, RateLimited("429", retry_after_s=0.05, rate_limits=stated), 60)
                    return
                await asyncio.sleep(5)

        waiting = [asyncio.create_task(first(number)) for number in range(8)]
        await asyncio.sleep(0.05)
        assert limiter.requests_per_minute == 1200
        assert limiter.backoffs == 0
        answers: list[float] = []
        began = clock()
        tasks = [asyncio.create_task(worker(limiter, 0.0, answers)) for _ in range(20)]
        await asyncio.gather(*tasks)  # nobody waits for the five that are still in flight
        assert 0.9 < clock() - began < 2.0  # 20 a second, after the 8 of the beginning
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run_virtual(scenario())


def test_time_of_a_blocked_event_loop_does_not_grow_concurrency() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=8, doubling_s=0.1), 256)
        tasks = [asyncio.create_task(worker(limiter, 1.0, [])) for _ in range(256)]
        await asyncio.sleep(0.01)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.now += 0.5  # five doublings' worth of the loop's time go by in one callback
        await asyncio.sleep(0.01)
        assert limiter.concurrency <= 16
        await asyncio.gather(*tasks)

    run_virtual(scenario())


def test_urgent_requests_go_before_waiting_ones() -> None:
    async def scenario() -> list[str]:
        limiter = Limiter(Limits(start=1), 1)
        order: list[str] = []

        async def ask(name: str, urgent: bool) -> None:
            async with limiter.permit(1, 1, urgent=urgent):
                order.append(name)
                await asyncio.sleep(0.005)

        names = ["first", "new", "retry"]
        await asyncio.gather(*(ask(name, name == "retry") for name in names))
        return order

    assert run_virtual(scenario()) == ["first", "retry", "new"]


def test_a_cancelled_request_releases_its_permit() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=1), 1)
        async with limiter.permit(1, 1):
            waiting = asyncio.create_task(worker(limiter, 0.0, []))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.wait_for(worker(limiter, 0.0, []), 1)
        assert limiter.in_flight == 0

    run_virtual(scenario())


def test_a_halt_ends_all_waiting_requests() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(start=1), 1)
        async with limiter.permit(1, 1):
            waiting = asyncio.create_task(worker(limiter, 0.0, []))
            await asyncio.sleep(0.01)
            limiter.halt()
            with pytest.raises(Halted):
                await waiting
        with pytest.raises(Halted):
            await worker(limiter, 0.0, [])

    run_virtual(scenario())


@pytest.mark.parametrize("characters_per_token", [1.5, 8.0])
def test_a_token_quota_is_used_up_at_any_ratio_of_tokens_to_characters(
    characters_per_token: float,
) -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(tokens_per_minute=60_000), 256)
        chance = random.Random(0)
        began, used = clock(), 0.0

        async def ask(characters: int) -> None:
            nonlocal used
            async with limiter.permit(characters, 100) as permit:
                await asyncio.sleep(2.0)
                tokens = int(characters / (characters_per_token * chance.uniform(0.7, 1.3)))
                used += tokens + 100
                limiter.answered(permit, RateLimits(), Usage(input_tokens=tokens, output_tokens=10))

        await asyncio.gather(*(ask(chance.randint(500, 8000)) for _ in range(300)))
        share = used / (1000 * (clock() - began))
        assert 0.95 < share < 1.03

    run_virtual(scenario())


def test_runs_with_one_key_share_a_quota_through_a_file(tmp_path: Path) -> None:
    """One of them knows the quota, the others go by it too."""
    now = 1000.0
    runs = [SharedRateLimiter(tmp_path / "deep" / "pace", clock=lambda: now) for _ in range(3)]
    taken = 0
    assert runs[0].acquire((1.0, 0.0, 0.0), (20.0, None, None)) == 0
    while now < 1060:
        waits = []
        for number, run in enumerate(runs):
            wait = run.acquire((1.0, 0.0, 0.0), (20.0 if number == 0 else None, None, None))
            taken += wait == 0
            waits.append(wait)
        now += max(min(waits), 0.001)
    assert 0.98 * 20 * 60 <= taken <= 20 * 60 + 10
    for run in runs:
        run.close()


def test_an_answer_that_came_while_the_loop_was_blocked_is_read() -> None:
    async def scenario() -> None:
        here, there = socket.socketpair()
        with there:
            reader, writer = await asyncio.open_connection(sock=here)
            limiter = Limiter(Limits(), 8)

            def block() -> None:
                there.send(b"an answer")
                time.sleep(1.0)

            asyncio.get_running_loop().call_soon(block)
            async with limiter.time_limit(0.5):
                assert await reader.read(100) == b"an answer"
            with pytest.raises(TimeoutError):
                async with limiter.time_limit(0.1):
                    await reader.read(100)
            writer.close()

    asyncio.run(scenario())


def test_a_clock_that_is_set_back_does_not_stop_the_runs(tmp_path: Path) -> None:
    now = 10_000.0
    run = SharedRateLimiter(tmp_path / "pace", clock=lambda: now)
    while run.acquire((1.0, 0.0, 0.0), (1.0, None, None)) == 0:
        pass
    now = 1000.0
    assert run.acquire((1.0, 0.0, 0.0), (1.0, None, None)) <= 60
    run.close()


def test_limiters_that_share_a_file_wait_for_each_other(tmp_path: Path) -> None:
    """In real time, as the file's clock is every process's; what is waited for is an hour away."""
    file = str(tmp_path / "pace")

    async def granted(limiter: Limiter) -> bool:
        asking = asyncio.create_task(worker(limiter, 0.0, []))
        for _ in range(5):
            await asyncio.sleep(0)
        granted = limiter.waiting == 0
        limiter.halt()
        await asyncio.gather(asking, return_exceptions=True)
        limiter.close()
        return granted

    async def scenario() -> None:
        assert await granted(Limiter(Limits(shared=file), 64))
        assert await granted(Limiter(Limits(requests_per_minute=1 / 60, shared=file), 64))
        assert not await granted(Limiter(Limits(shared=file), 64))
        other = str(tmp_path / "other")
        refused = Limiter(Limits(requests_per_minute=6_000_000, shared=other), 64)
        async with refused.permit(1, 1) as permit:
            refused.refused(permit, RateLimited("429", retry_after_s=3600.0), 3600)
        refused.close()
        assert not await granted(Limiter(Limits(shared=other), 64))

    asyncio.run(scenario())


def test_a_locked_file_of_shared_quotas_is_tried_again_and_never_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "pace"
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        first = SharedRateLimiter(path, clock=lambda: 1000.0)  # opens it, though it is locked
        assert 0 < first.acquire((1.0, 0.0, 0.0), (20.0, None, None)) < 1
        first.pause(30.0)
        other.execute("COMMIT")
    assert first.acquire((1.0, 0.0, 0.0), (20.0, None, None)) == 30
    second = SharedRateLimiter(path, clock=lambda: 1000.0)
    assert second.acquire((1.0, 0.0, 0.0), (None, None, None)) == 30
    first.close()
    second.close()


def test_an_invalid_file_of_shared_quotas_is_refused_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"x" * 56)
    SharedRateLimiter(tmp_path / "invalid").close()
    with sqlite3.connect(tmp_path / "invalid") as db:
        db.execute("INSERT OR REPLACE INTO schedules VALUES (1, 'soon', 0, 0, 0, 0, 0, 0)")
    for name, why in (("other", "not a database; remove the file"), ("invalid", "invalid values")):
        with pytest.raises(StoreError, match=rf"runner\.limits\.shared=.*{name}: .*{why}"):
            SharedRateLimiter(tmp_path / name)


def test_requests_do_not_hang_when_the_file_of_shared_quotas_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(shared=str(tmp_path / "pace")), 4)
        with sqlite3.connect(tmp_path / "pace") as db:
            db.execute("DROP TABLE schedules")
        with pytest.raises(StoreError, match=r"runner\.limits\.shared"):
            await worker(limiter, 0.0, [])
        limiter.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "values",
    [
        {"start": 0},
        {"backoff_factor": 1.0},
        {"doubling_s": 0.0},
        {"requests_per_minute": 0.0},
        {"tokens_per_minute": -1.0},
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Limits(**values)  # type: ignore[arg-type]
