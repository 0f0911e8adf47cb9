"""At most how many tokens of input a request is billed for: what a reservation is made of.

The number of UTF-8 bytes is sure and free, and about four times too large. The model's own tokenizer is exact, where
its vocabulary is on this machine. Elsewhere the vendor's counting endpoint is asked, where a reservation depends on
it: at most once for each prompt, and never again after an answer that cannot be relied on.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swe_infer.api.endpoints import Endpoint
from swe_infer.api.prompt_cache import prompt_key
from swe_infer.api.tokens import sure_bound
from swe_infer.errors import RateLimited, RequestError
from swe_infer.providers.base import Provider
from swe_infer.types import Request, TokenCounter, Usage

logger = logging.getLogger(__name__)

_TIMEOUT_S = 15.0
_TRIES = 3
_LONGEST_WAIT_S = 10.0
_LARGEST_TOKEN = 8
"""Bytes. No text of the kind that is asked about has more of them in a token on average: no bound goes below that."""
_NO_TOKEN = 64
"""Bytes in a token, on average, that only a broken count comes to."""
_SLACK = 0.8
"""On the fewest tokens a byte that answers have shown, where it is guessed whether asking for a count is of use."""
_KEPT = 10_000
"""Counts in memory, each of some hundred bytes."""

_OWN_FRAMING = 64
"""Tokens around the messages that the model's own tokenizer may not know of."""


@dataclass(slots=True)
class _Account:
    """What is known of one endpoint's tokens."""

    off: bool = False
    fewest: float = 0.0
    """Tokens a byte: the fewest that an answer was billed for; 0 before the first one."""


class InputBounds:
    """Bounds on the input tokens that requests of one run are billed for.

    Args:
        counter: of the run's model; used where it is exact.
        pause: waits for so many seconds; False where the run is stopping.
    """

    def __init__(self, counter: TokenCounter, pause: Callable[[float], Awaitable[bool]]) -> None:
        self._counter = counter
        self._pause = pause
        self._accounts: dict[str, _Account] = {}
        self._counts: dict[bytes, int | None] = {}
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    def sure(self, request: Request, endpoint: Endpoint) -> int:
        """The bound that is free: bytes."""
        return sure_bound(request.prompt, endpoint.model.extra_body)

    def can_be_tighter(self, endpoint: Endpoint) -> bool:
        """Whether :meth:`tight` may come to less than :meth:`sure`."""
        return self._counter.exact or (endpoint.provider.counts_input and not self._account(endpoint).off)

    def least(self, endpoint: Endpoint, sure: int) -> int:
        """What :meth:`tight` comes to at least, as far as can be told without counting. It tells where a count is of
        no use, and is partly learnt from answers: no reservation may be made of it."""
        if not self.can_be_tighter(endpoint):
            return sure
        floor = 0 if self._counter.exact else sure // _LARGEST_TOKEN
        return max(floor, int(_SLACK * self._account(endpoint).fewest * sure))

    async def tight(self, request: Request, endpoint: Endpoint, sure: int) -> int:
        """The tightest bound there is, at most ``sure``. Never raises over a counting endpoint's faults."""
        if self._counter.exact:
            return self._exact(request, endpoint, sure)
        provider = endpoint.provider
        if not provider.counts_input or self._account(endpoint).off:
            return sure
        key = prompt_key(request.prompt, endpoint.model, provider.name, endpoint.address)
        async with self._locks.setdefault(key, asyncio.Lock()):  # samples of one prompt wait for one count
            if key not in self._counts:
                if len(self._counts) >= _KEPT:
                    del self._counts[next(iter(self._counts))]
                self._counts[key] = await self._asked(request, endpoint, provider, sure)
        counted = self._counts.get(key)
        if counted is None or self._account(endpoint).off:
            return sure
        return min(sure, max(counted, sure // _LARGEST_TOKEN))

    def learn(self, endpoint: Endpoint, usage: Usage, sure: int, used: int) -> None:
        """Take in what an answer was billed for.

        Args:
            sure: the request's :meth:`sure` bound.
            used: the bound that its reservation was made of.
        """
        account = self._account(endpoint)
        if usage.input_tokens > used and used < sure and not self._counter.exact:
            why = f"{usage.input_tokens} tokens of input were billed and at most {used} counted"
            self._give_up(endpoint, why, level=logging.WARNING)
        if usage.input_tokens > 0:
            seen = usage.input_tokens / sure
            account.fewest = min(account.fewest, seen) if account.fewest else seen

    def _exact(self, request: Request, endpoint: Endpoint, sure: int) -> int:
        """By the model's own tokenizer; what surrounds the prompt is bounded by its bytes."""
        around = sure - sure_bound(request.prompt)
        return min(sure, self._counter(request.prompt) + around + _OWN_FRAMING)

    async def _asked(self, request: Request, endpoint: Endpoint, provider: Provider, sure: int) -> int | None:
        """The vendor's count with its allowance; None: it has none to rely on."""
        for attempt in range(1, _TRIES + 1):
            try:
                timeout_s = min(_TIMEOUT_S, provider.timeout_s)
                async with asyncio.timeout(timeout_s + 1.0):
                    count = await provider.count_input(request, endpoint.model, timeout_s=timeout_s)
            except RateLimited as error:
                wait_s = min(_LONGEST_WAIT_S, error.retry_after_s or 0.5 * attempt)
                if attempt == _TRIES or not await self._pause(wait_s):
                    return None  # this prompt's bytes count; others may be counted yet
            except (RequestError, TimeoutError) as error:
                self._give_up(endpoint, str(error) or "no answer in time")
                return None
            except Exception as error:  # noqa: BLE001 - a free count never costs a run
                self._give_up(endpoint, f"{type(error).__name__}: {error}")
                return None
            else:
                if not max(1, (sure - _OWN_FRAMING) // _NO_TOKEN) <= count.tokens <= sure:
                    self._give_up(endpoint, f"{count.tokens} tokens in a prompt of {sure} bytes")
                    return None
                return count.tokens + count.beyond
        return None

    def _give_up(self, endpoint: Endpoint, why: str, *, level: int = logging.INFO) -> None:
        account = self._account(endpoint)
        if not account.off:
            account.off = True
            told = "%s: its counts of tokens are not used, bytes bound the price instead: %s"
            logger.log(level, told, endpoint.provider.name, " ".join(why.split())[:300])

    def _account(self, endpoint: Endpoint) -> _Account:
        return self._accounts.setdefault(f"{endpoint.provider.name} {endpoint.address}", _Account())
