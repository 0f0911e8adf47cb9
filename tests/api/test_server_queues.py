"""Servers that answer fewer requests at once than they accept: nothing in their queue times out, and a timeout
shrinks the window."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import pytest

from swe_infer.api.concurrency import ConcurrencyWindow
from swe_infer.api.limits import Limiter, Limits
from swe_infer.api.retry import Retry
from swe_infer.errors import RateLimits
from swe_infer.providers.base import Answer
from swe_infer.runners.api import ApiRunner
from swe_infer.runners.base import ConcurrentRun
from swe_infer.types import ApiModel, Completion, Decoding, Request, Usage
from tests.api.scripted import ScriptedProvider, requests
from tests.api.test_runner import Outcomes
from tests.support.virtual_time import run_virtual


@dataclass
class SlowServer(ScriptedProvider):
    """Answers ``at_once`` requests at a time, each after ``latency_s``, the first or the last one first. A request
    whose client has gone is answered too. Time is virtual."""

    at_once: int = 1
    last_first: bool = False
    timeout_s: float = 1.0
    busy: int = 0
    longest_queue: int = 0
    queue: list[asyncio.Future[None]] = field(default_factory=list)

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        self.sent.append(request)
        return await asyncio.shield(asyncio.create_task(self._serve(request)))

    async def _serve(self, request: Request) -> Answer:
        if self.busy >= self.at_once:
            turn = asyncio.get_running_loop().create_future()
            self.queue.append(turn)
            self.longest_queue = max(self.longest_queue, len(self.queue))
            await turn
        else:
            self.busy += 1
        await asyncio.sleep(self.latency_s)
        if self.queue:
            self.queue.pop(-1 if self.last_first else 0).set_result(None)
        else:
            self.busy -= 1
        return self.usual(request)


@dataclass
class Loading(SlowServer):
    """Answers nothing in the first seconds after its first request."""

    ready_at: float = 0.0

    async def _serve(self, request: Request) -> Answer:
        now = asyncio.get_running_loop().time()
        self.ready_at = self.ready_at or now + 6.0
        await asyncio.sleep(max(0.0, self.ready_at - now))
        return await super()._serve(request)


def answered(server: SlowServer, count: int) -> int:
    runner = ApiRunner(
        model=ApiModel(name="m", pricing="unknown"), provider=server, decoding=Decoding(max_new_tokens=16),
        retry=Retry(backoff_s=0.01, tries=12),
    )  # fmt: skip
    outcomes, stop = Outcomes(), threading.Event()
    run = ConcurrentRun(runner, [requests(count)], outcomes, stop, on_done=lambda: None)
    assert run_virtual(runner._generate([run], stop)) == [None]
    return sum(isinstance(outcome, Completion) for outcome in outcomes.by_key.values())


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_request_times_out_in_the_queue_of_a_server_that_answers(at_once: int) -> None:
    # the whole queue takes three times as long as the limit of one request
    server = SlowServer(latency_s=0.05 * at_once, at_once=at_once)
    assert answered(server, 60) == 60
    assert len(server.sent) <= 70
    assert server.longest_queue <= 60


def test_a_server_that_answers_the_last_request_first_is_asked_for_no_more_than_it_can_answer() -> None:
    server = SlowServer(latency_s=0.03, last_first=True)
    assert answered(server, 60) == 60
    assert len(server.sent) <= 90


async def _limited(limiter: Limiter, limit_s: float, seconds: float) -> bool:
    """Whether a request that takes ``seconds`` ends within its limit."""
    async with limiter.permit(10, 10) as permit:
        try:
            async with limiter.time_limit(limit_s):
                await asyncio.sleep(seconds)
        except TimeoutError:
            limiter.timed_out(permit)
            return False
        limiter.answered(permit, RateLimits(), Usage())
        return True


def test_a_request_without_an_answer_ends_although_others_are_answered() -> None:
    async def scenario() -> float:
        limiter = Limiter(Limits(start=8), 8)
        loop = asyncio.get_running_loop()
        hanging = asyncio.create_task(_limited(limiter, 10.0, 1e6))
        others = asyncio.create_task(_until_cancelled(limiter))
        began = loop.time()
        assert await hanging is False
        others.cancel()
        assert limiter.concurrency == 8  # the server answers eight in that time
        return loop.time() - began

    assert run_virtual(scenario()) == pytest.approx(12.0, abs=2.0)


async def _until_cancelled(limiter: Limiter) -> None:
    async def worker() -> None:
        while True:
            await _limited(limiter, 10.0, 2.0)

    await asyncio.gather(*(worker() for _ in range(7)))


def test_timeouts_shrink_the_window_to_what_the_server_answers() -> None:
    window = ConcurrencyWindow(40, 0.2, 0.7, 64)
    window.timed_out(1.0, 40, 10, 11.0)
    assert (window.value, window.backoffs) == (9, 1)
    window.timed_out(2.0, 40, 5, 11.5)  # sent before the backoff
    assert (window.value, window.backoffs) == (9, 1)
    window.timed_out(12.0, 9, 60, 22.0)  # one of many
    assert (window.value, window.backoffs) == (9, 1)
    for _ in range(200):
        window.answered(12.0, window.value, 20.0)  # after eight seconds, as its queue is almost too long
    assert window.value == 9
    for _ in range(200):
        window.answered(22.0, window.value, 26.0)
    assert window.value > 18
    window.timed_out(26.0, 8, 0, 36.0)
    assert (window.value, window.backoffs) == (5, 2)


def test_one_request_at_a_time_is_sent_to_a_server_that_has_stopped_answering() -> None:
    async def scenario() -> list[int]:
        limiter = Limiter(Limits(start=8), 8)
        loop = asyncio.get_running_loop()
        stalled_until = loop.time() + 60.0
        in_flight: list[int] = []

        async def ask() -> None:
            while True:
                async with limiter.permit(10, 10, urgent=True) as permit:
                    in_flight.append(limiter.in_flight)
                    await asyncio.sleep(min(10.0, max(0.1, stalled_until - loop.time())))
                    if loop.time() > stalled_until:
                        limiter.answered(permit, RateLimits(), Usage())
                        return
                    limiter.timed_out(permit)

        await asyncio.gather(*(ask() for _ in range(20)))
        return in_flight

    in_flight = run_virtual(scenario())
    assert in_flight[:8] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert len(in_flight) <= 20 + 8 + 6  # every ten seconds one, and then all of them
    assert max(in_flight[16:]) > 2


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_a_server_that_loads_its_model_first_is_not_flooded(at_once: int) -> None:
    # ollama/ollama loads a model with the first request, which may take longer than the limit of one
    server = Loading(latency_s=0.05, at_once=at_once)
    assert answered(server, 60) == 60
    assert len(server.sent) <= 60 + 64 + 8  # all that were sent before the first answer, and one each second
