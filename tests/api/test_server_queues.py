"""Servers that answer fewer requests at once than they accept: nothing in their queue times out, and a timeout
shrinks the window."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from swe_infer.api.concurrency import ConcurrencyWindow
from swe_infer.api.limits import Limiter, Limits
from swe_infer.api.retry import Retry
from swe_infer.errors import RateLimits
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Usage
from tests.api.scripted import requests
from tests.api.test_runner import Outcomes
from tests.providers.test_dialects import CHAT
from tests.support.api_http import HttpRequest, Peer, serving
from tests.support.virtual_time import run_virtual


class SlowServer:
    """Answers ``at_once`` requests at a time, each after ``seconds``, the first or the last one first. A request
    whose client has gone is answered too."""

    def __init__(self, at_once: int, seconds: float, *, last_first: bool = False) -> None:
        self.seconds, self.last_first = seconds, last_first
        self.asked = self.busy = self.longest_queue = 0
        self.at_once = at_once
        self.queue: list[asyncio.Future[None]] = []
        self.port = 0

    async def __call__(self, request: HttpRequest, peer: Peer) -> None:
        self.asked += 1
        if self.busy >= self.at_once:
            turn = asyncio.get_running_loop().create_future()
            self.queue.append(turn)
            self.longest_queue = max(self.longest_queue, len(self.queue))
            await turn
        else:
            self.busy += 1
        await asyncio.sleep(self.seconds)
        peer.send(200, {"content-type": "application/json"}, json.dumps(CHAT).encode())
        if self.queue:
            self.queue.pop(-1 if self.last_first else 0).set_result(None)
        else:
            self.busy -= 1

    def __enter__(self) -> SlowServer:
        ready, self._stop = threading.Event(), threading.Event()

        async def life() -> None:
            async with serving(self) as self.port:
                ready.set()
                while not self._stop.is_set():  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.02)

        self._thread = threading.Thread(target=lambda: asyncio.run(life()), daemon=True)
        self._thread.start()
        assert ready.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)


def answered(server: SlowServer, count: int, timeout_s: float) -> int:
    provider = OpenAIChat(
        name="own", base_url=f"http://127.0.0.1:{server.port}/v1", api_key_env=None, timeout_s=timeout_s
    )
    model = ApiModel(name="m", pricing="unknown")
    runner = ApiRunner(
        model=model, provider=provider, decoding=Decoding(max_new_tokens=16), retry=Retry(backoff_s=0.01, tries=12)
    )
    outcomes = Outcomes()
    runner.generate(requests(count), outcomes, threading.Event())
    return sum(isinstance(outcome, Completion) for outcome in outcomes.by_key.values())


@pytest.mark.parametrize("at_once", [1, 3])
def test_no_request_times_out_in_the_queue_of_a_server_that_answers(at_once: int) -> None:
    # the whole queue takes three times as long as the limit of one request
    with SlowServer(at_once, 0.05 * at_once) as server:
        assert answered(server, 60, timeout_s=1.0) == 60
    assert server.asked <= 70
    assert server.longest_queue <= 60


def test_a_server_that_answers_the_last_request_first_is_asked_for_no_more_than_it_can_answer() -> None:
    with SlowServer(1, 0.03, last_first=True) as server:
        assert answered(server, 60, timeout_s=1.0) == 60
    assert server.asked <= 90


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
