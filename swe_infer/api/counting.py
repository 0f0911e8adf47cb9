"""Upper bounds on the input tokens that a request is billed for. Reservations are made from them.

The number of UTF-8 bytes is safe and free, and about four times too large. The model's own tokenizer is exact, if its
vocabulary is on this machine. Otherwise the vendor's counting endpoint is called if a reservation depends on it: at
most once per prompt, and never again after an implausible count.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from swe_infer.api.endpoints import Endpoint
from swe_infer.api.prompt_cache import prompt_key
from swe_infer.api.tokens import byte_bound
from swe_infer.errors import RateLimited, RequestError
from swe_infer.providers.base import Provider
from swe_infer.types import Request, TokenCounter, Usage

logger = logging.getLogger(__name__)

_TIMEOUT_S = 15.0
_TRIES = 3
_LONGEST_WAIT_S = 10.0
_LARGEST_TOKEN = 8
"""Average bytes per token, at most, in prompts of this kind. No bound is below that."""
_NO_TOKEN = 64
"""A count with more bytes per token than this is wrong."""
_SLACK = 0.8
"""Factor on the least tokens per byte in answers so far, to guess whether a count would help."""
_KEPT = 10_000
"""Counts in memory, about a hundred bytes each."""

_OWN_FRAMING = 64
"""Tokens around the messages that the model's own tokenizer may not count."""


@dataclass(slots=True)
class _TokenStats:
    """Token counts of one endpoint."""

    is_off: bool = False
    least_tokens_per_byte: float = 0.0
    """Least tokens per byte that an answer was billed for; 0 before the first answer."""


class InputBounds:
    """Bounds on the input tokens that requests of one run are billed for.

    Args:
        counter: of the run's model; used only if it is exact.
        pause: sleeps for some seconds; returns False if the run is stopping.
    """

    def __init__(self, counter: TokenCounter, pause: Callable[[float], Awaitable[bool]]) -> None:
        self._counter = counter
        self._pause = pause
        self._stats_by_endpoint: dict[str, _TokenStats] = {}
        self._counts: dict[bytes, int | None] = {}
        self._locks: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()

    def byte_bound(self, request: Request, endpoint: Endpoint) -> int:
        """The bound by UTF-8 bytes, which costs nothing. An image counts as ``model.image_tokens``."""
        return byte_bound(request.prompt, endpoint.model.extra_body) + _image_bound(request, endpoint)

    def can_be_tighter(self, endpoint: Endpoint) -> bool:
        """Whether :meth:`tightest` may be less than :meth:`byte_bound`."""
        return (self._counter.exact or endpoint.provider.counts_input) and not self._stats(endpoint).is_off

    def lower_estimate(self, endpoint: Endpoint, in_bytes: int) -> int:
        """A lower estimate of :meth:`tightest` without counting, partly from earlier answers.

        It shows whether a count could help; it is not safe for a reservation.
        """
        if not self.can_be_tighter(endpoint):
            return in_bytes
        floor = 0 if self._counter.exact else in_bytes // _LARGEST_TOKEN
        return max(floor, int(_SLACK * self._stats(endpoint).least_tokens_per_byte * in_bytes))

    async def tightest(self, request: Request, endpoint: Endpoint, in_bytes: int) -> int:
        """The tightest bound, at most ``in_bytes``. Errors of a counting endpoint are not raised."""
        if not self.can_be_tighter(endpoint):
            return in_bytes
        if self._counter.exact:
            return self._exact(request, endpoint, in_bytes)
        provider = endpoint.provider
        key = prompt_key(request.prompt, endpoint.model, provider.name, endpoint.address)
        async with self._locks.setdefault(key, asyncio.Lock()):  # samples of one prompt wait for one count
            if key not in self._counts:
                if len(self._counts) >= _KEPT:
                    del self._counts[next(iter(self._counts))]
                self._counts[key] = await self._vendor_count(request, endpoint, provider, in_bytes)
        counted = self._counts.get(key)
        if counted is None or self._stats(endpoint).is_off:
            return in_bytes
        text_bytes = in_bytes - _image_bound(request, endpoint)
        return min(in_bytes, max(counted, text_bytes // _LARGEST_TOKEN))

    def observe(self, endpoint: Endpoint, usage: Usage, in_bytes: int, reserved: int) -> None:
        """Records what an answer was billed for.

        Args:
            in_bytes: the request's :meth:`byte_bound`.
            reserved: the bound from which its reservation was computed.
        """
        stats = self._stats(endpoint)
        if usage.input_tokens > reserved and reserved < in_bytes:
            why = f"{usage.input_tokens} tokens of input were billed and at most {reserved} counted"
            self._give_up(endpoint, why, level=logging.WARNING)
        if usage.input_tokens > 0:
            ratio = usage.input_tokens / in_bytes
            stats.least_tokens_per_byte = min(stats.least_tokens_per_byte or ratio, ratio)

    def _exact(self, request: Request, endpoint: Endpoint, in_bytes: int) -> int:
        """By the model's own tokenizer; text around the prompt is bounded by its bytes."""
        around = in_bytes - byte_bound(request.prompt)
        return min(in_bytes, self._counter(request.prompt) + around + _OWN_FRAMING)

    async def _vendor_count(
        self, request: Request, endpoint: Endpoint, provider: Provider, in_bytes: int
    ) -> int | None:
        """The vendor's count with its allowance; None: there is no reliable count."""
        for attempt in range(1, _TRIES + 1):
            try:
                timeout_s = min(_TIMEOUT_S, provider.timeout_s)
                async with asyncio.timeout(timeout_s + 1.0):
                    count = await provider.count_input(request, endpoint.model, timeout_s=timeout_s)
            except RateLimited as error:
                wait_s = min(_LONGEST_WAIT_S, error.retry_after_s or 0.5 * attempt)
                if attempt == _TRIES or not await self._pause(wait_s):
                    return None  # bytes bound this prompt; others may still be counted
            except (RequestError, TimeoutError) as error:
                self._give_up(endpoint, str(error) or "no answer in time")
                return None
            except Exception as error:  # noqa: BLE001 - a free count never costs a run
                self._give_up(endpoint, f"{type(error).__name__}: {error}")
                return None
            else:
                text_bytes = in_bytes - _image_bound(request, endpoint)
                if not max(1, (text_bytes - _OWN_FRAMING) // _NO_TOKEN) <= count.tokens <= in_bytes:
                    self._give_up(endpoint, f"{count.tokens} tokens in a prompt of {in_bytes} bytes")
                    return None
                return count.tokens + count.beyond
        return None

    def _give_up(self, endpoint: Endpoint, why: str, *, level: int = logging.INFO) -> None:
        stats = self._stats(endpoint)
        if not stats.is_off:
            stats.is_off = True
            message = "%s: its token counts are not used, bytes bound the price instead: %s"
            logger.log(level, message, endpoint.provider.name, " ".join(why.split())[:300])

    def _stats(self, endpoint: Endpoint) -> _TokenStats:
        return self._stats_by_endpoint.setdefault(f"{endpoint.provider.name} {endpoint.address}", _TokenStats())


def _image_bound(request: Request, endpoint: Endpoint) -> int:
    """The most tokens that a request's images are billed as."""
    return endpoint.model.image_tokens * len(request.prompt.images)
