"""The level of concurrency against simulated servers, under a clock of their own: single faults do not cost it,
limits do."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from swe_infer.api.limits import Limiter, Limits
from swe_infer.errors import Overloaded, RateLimited, RateLimits
from swe_infer.types import Usage
from tests.support.virtual_time import run_virtual


@dataclass
class Client:
    """Sends ``count`` requests, ``most`` at a time, each again after a second's back-off until it is answered.

    Args:
        refuses: whether a server with so many requests in flight refuses one; a pair of share and seconds.
        refusal_s: how long a refusal takes.
    """

    count: int
    refuses: Callable[[int], bool]
    most: int = 64
    latency_s: tuple[float, float] = (0.2, 1.0)
    refusal_s: float = 0.005
    error: type[RateLimited] = Overloaded
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    at_server: int = 0
    answered: int = 0
    refused: int = 0
    busy_s: float = 0.0

    def run(self) -> tuple[float, Limiter]:
        """(requests in flight at the server on average, the limiter)."""
        return run_virtual(self._run())

    async def _run(self) -> tuple[float, Limiter]:
        limiter = Limiter(Limits(), self.most)
        began = asyncio.get_running_loop().time()
        left = iter(range(self.count))
        await asyncio.gather(*(self._one_after_the_other(limiter, left) for _ in range(2 * self.most)))
        return self.busy_s / (asyncio.get_running_loop().time() - began), limiter

    async def _one_after_the_other(self, limiter: Limiter, left: Iterator[int]) -> None:
        for _ in left:
            while not await self._is_answered(limiter):  # noqa: ASYNC110 - nothing announces the next try
                await asyncio.sleep(self.chance.uniform(0.0, 1.0))

    async def _is_answered(self, limiter: Limiter) -> bool:
        async with limiter.permit(100, 10) as permit:
            if self.refuses(self.at_server):
                self.refused += 1
                await asyncio.sleep(self.refusal_s)
                limiter.refused(permit, self.error("no", retry_after_s=1.0), 60)
                return False
            self.at_server += 1
            latency_s = self.chance.uniform(*self.latency_s)
            await asyncio.sleep(latency_s)
            self.at_server -= 1
            self.busy_s += latency_s
            self.answered += 1
            limiter.answered(permit, RateLimits(), Usage())
            return True


@pytest.mark.parametrize(("share", "error"), [(0.01, RateLimited), (0.05, Overloaded), (0.1, RateLimited)])
def test_faults_in_a_tenth_of_requests_at_any_load_keep_concurrency_high(
    share: float, error: type[RateLimited]
) -> None:
    chance = random.Random(1)
    client = Client(1500, lambda in_flight: chance.random() < share, error=error)
    in_flight, limiter = client.run()
    assert client.answered == 1500
    assert in_flight >= 0.65 * 64
    assert limiter.backoffs <= 2


@pytest.mark.parametrize("capacity", [5, 40])
@pytest.mark.parametrize("refusal_s", [0.005, 0.6], ids=["at once", "as late as an answer"])
def test_a_server_with_a_concurrency_limit_is_used_fully_with_few_refusals(capacity: int, refusal_s: float) -> None:
    client = Client(1500, lambda in_flight: in_flight >= capacity, most=128, refusal_s=refusal_s)
    in_flight, limiter = client.run()
    assert client.answered == 1500
    assert in_flight >= 0.6 * capacity
    assert client.refused <= (0.25 if refusal_s < 0.1 else 0.5) * client.answered
    assert limiter.concurrency <= 2 * capacity


def test_concurrency_backs_off_in_an_outage_and_recovers() -> None:
    client = Client(1500, lambda in_flight: False)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        client.refuses = lambda in_flight: 5.0 <= loop.time() - 1000.0 < 15.0
        _, limiter = await client._run()
        assert client.answered == 1500
        assert limiter.concurrency >= 40  # grown again
        assert limiter.backoffs >= 5
        assert client.refused < 500  # 64 in flight for ten seconds would be 128,000 refusals of 5 ms

    run_virtual(scenario())
