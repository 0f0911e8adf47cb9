"""Which requests may be sent now: a concurrency window (:mod:`swe_infer.api.concurrency`) and the provider's rate
limits (:mod:`swe_infer.api.rate_limits`).

A refusal that comes before any answer, and whose own headers tell no quota, is followed by a wait for the first
answer, whose headers may. What was refused before a quota was known is a matter of pace, and none of the level. A
Retry-After keeps all requests away where a quota is known or refusals come densely; a single one that no quota
explains keeps away the request that it was meant for.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from swe_infer.api.concurrency import ConcurrencyWindow
from swe_infer.api.rate_limits import RateLimiter, SharedRateLimiter
from swe_infer.api.tokens import CHARACTERS_PER_TOKEN
from swe_infer.errors import ConfigError, Overloaded, RateLimited, RateLimits, StoreError, SweInferError
from swe_infer.options import Option
from swe_infer.resources import expanded
from swe_infer.types import PathText, Usage


class Halted(SweInferError):
    """Nothing new may be sent: the run is stopping."""


class Rerouted(SweInferError):
    """This endpoint cannot be asked for a while, and another one can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much may be asked at once and in a minute. ``provider.max_concurrency`` is the upper bound of the level."""

    start: Annotated[int, Option("Requests in flight at the beginning.", "speed")] = 8
    doubling_s: Annotated[float, Option("Seconds in which the concurrency doubles at the beginning.", "speed")] = 0.2
    cut: Annotated[float, Option("What an episode of refusals multiplies the concurrency by.", "speed")] = 0.7
    requests_per_minute: Annotated[
        float | None, Option("Quota of requests; null: learnt from the answers' headers.", "speed")
    ] = None
    tokens_per_minute: Annotated[
        float | None,
        Option("Quota of tokens, of input alone where output has its own; null: learnt from the headers.", "speed"),
    ] = None
    output_tokens_per_minute: Annotated[
        float | None, Option("Quota of output tokens (Anthropic); null: learnt from the headers.", "speed")
    ] = None
    shared: Annotated[
        PathText | None, Option("A file through which runs with one key on one machine share these quotas.", "speed")
    ] = None

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ConfigError(f"runner.limits.start={self.start}: must be at least 1")
        if not 0 < self.doubling_s < float("inf"):
            raise ConfigError(
                f"runner.limits.doubling_s={self.doubling_s}: must be a finite number of seconds above 0"
            )
        if not 0 < self.cut < 1:
            raise ConfigError(f"runner.limits.cut={self.cut}: must be between 0 and 1")
        for key in ("requests_per_minute", "tokens_per_minute", "output_tokens_per_minute"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"runner.limits.{key}={value}: must be a finite number above 0")

    def divided(self, shards: int) -> Limits:
        """One shard's part of the quotas that are stated here, where ``shards`` share them.

        Raises:
            ConfigError: they share it through a file already.
        """
        if self.shared is not None:
            raise ConfigError("runner.limits.shared shares the quotas already; it does not go with division")
        keys = ("requests_per_minute", "tokens_per_minute", "output_tokens_per_minute")
        stated = {key: getattr(self, key) for key in keys}
        return replace(self, **{key: value / shards for key, value in stated.items() if value is not None})


@dataclass(slots=True)
class Permit:
    """Permission to send one request, and what came of it."""

    characters: int
    tokens: float
    """What it was taken to count for under the quota of tokens."""
    output_tokens: float
    sent_at: float
    sent: tuple[float, float, float]
    """:attr:`RateLimiter.sent` of requests, tokens and output tokens, with this request."""


class Limiter:
    """Grants tickets, oldest request first, retries before new ones. It is made in the event loop that it serves and
    goes by that loop's clock.

    Args:
        parts: how many processes share the quotas that are learnt; those of ``limits`` are one part already.
    """

    def __init__(self, limits: Limits, max_concurrency: int, parts: int = 1) -> None:
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._level = ConcurrencyWindow(limits.start, limits.doubling_s, limits.cut, max(1, max_concurrency))
        self._answered = False
        # What the provider counts for how long a prompt; it begins as if one long prompt had been seen.
        self._characters_seen, self._tokens_seen = 33_000.0, 33_000.0 / CHARACTERS_PER_TOKEN
        self._overloaded = False
        self._blind = False
        """Refused before any answer came to say what the quotas are: the next one is waited for."""
        self._paused_until = now
        self._requests = RateLimiter(limits.requests_per_minute, now, parts)
        self._tokens = RateLimiter(limits.tokens_per_minute, now, parts)
        self._output = RateLimiter(limits.output_tokens_per_minute, now, parts)
        self._waiters: list[tuple[bool, int, int, float, asyncio.Future[Permit]]] = []
        self._order = itertools.count()
        self._shared = (
            None if limits.shared is None else SharedRateLimiter(expanded(limits.shared, "runner.limits.shared"))
        )
        self._timer: asyncio.TimerHandle | None = None
        self._halted = False
        self.in_flight = 0
        self.peak = 0

    @property
    def level(self) -> int:
        """Requests that may be in flight now."""
        return self._level.value

    @property
    def cuts(self) -> int:
        """Episodes of refusals so far."""
        return self._level.cuts

    @property
    def waiting(self) -> int:
        """Requests that wait for a ticket."""
        return len(self._waiters)

    @property
    def requests_per_minute(self) -> float | None:
        return self._requests.per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        return self._tokens.per_minute

    @asynccontextmanager
    async def ticket(self, characters: int, output_tokens: float, *, urgent: bool = False) -> AsyncIterator[Permit]:
        """Wait for permission to send, and hold it while the body runs.

        Args:
            characters: of the prompt.
            output_tokens: at most.
            urgent: ahead of those that are not (retries; requests whose prompt a provider has just cached).

        Raises:
            Halted: the run is stopping.
            Rerouted: another endpoint is to be asked.
        """
        ticket = await self._acquire(characters, output_tokens, urgent)
        try:
            yield ticket
        finally:
            self.in_flight -= 1
            self._pump()

    def answered(self, ticket: Permit, stated: RateLimits, usage: Usage) -> None:
        """An answer came: learn the quotas from it, give back the tokens that it did not need, and grow."""
        now = self._clock()
        self._answered = True
        learnt = self._learn(ticket, stated, now)
        if usage.input_tokens:
            # Where output has a quota of its own (Anthropic), cached input is free and output counts as it comes.
            # Elsewhere (OpenAI) the bound on the output counts, whatever is used of it.
            counted: float = usage.input_tokens + ticket.output_tokens
            if self._output.per_minute is not None:
                counted = usage.input_tokens - usage.cached_input_tokens
                self._output.correct(max(0.0, ticket.output_tokens - usage.output_tokens))
            self._tokens.correct(ticket.tokens - counted)
        if usage.input_tokens:
            self._characters_seen += ticket.characters
            self._tokens_seen += usage.input_tokens
        if learnt:
            self._level.absolve(now, restart=not self._overloaded)
        self._blind = False
        self._level.answered(ticket.sent_at, self.in_flight)

    def unused(self, ticket: Permit) -> None:
        """Nothing was sent for ``ticket`` after all: its part of the quotas is left for others."""
        self._requests.correct(1.0)
        self._tokens.correct(ticket.tokens)
        self._output.correct(ticket.output_tokens)

    def refused(self, ticket: Permit, error: RateLimited, max_pause_s: float) -> None:
        """A 429, 503 or 529 came: back off, once for each episode, and keep away for as long as it asks."""
        now = self._clock()
        overloaded = isinstance(error, Overloaded)
        learnt = self._learn(ticket, error.rate_limits, now)
        self._blind = not self._answered and not self._known_quotas
        for quota in () if overloaded else self._quotas:
            quota.refused()
        if learnt and not overloaded:
            self._level.absolve(now, restart=not self._overloaded)
            episode = True
        else:
            episode = self._level.refused(ticket.sent_at, self.in_flight, now)
            self._overloaded |= episode and overloaded
        if error.retry_after_s is not None and (episode or (self._known_quotas and not overloaded)):
            pause_s = min(max(error.retry_after_s, 0.0), max_pause_s)
            self._paused_until = max(self._paused_until, now + pause_s)
            if self._shared is not None:
                self._shared.pause(pause_s)

    def _learn(self, ticket: Permit, stated: RateLimits, now: float) -> bool:
        """Take in the quotas that headers state; whether one was not known before."""
        known = self._known_quotas
        of_requests = (stated.limit_requests, stated.remaining_requests, stated.reset_requests_s)
        of_tokens = (stated.limit_tokens, stated.remaining_tokens, stated.reset_tokens_s)
        of_output = (stated.limit_output_tokens, stated.remaining_output_tokens, stated.reset_output_tokens_s)
        for quota, told, sent in zip(self._quotas, (of_requests, of_tokens, of_output), ticket.sent, strict=True):
            quota.learn(*told, sent_before=sent, now=now)
        return self._known_quotas > known

    @property
    def _quotas(self) -> tuple[RateLimiter, RateLimiter, RateLimiter]:
        return (self._requests, self._tokens, self._output)

    @property
    def _known_quotas(self) -> int:
        return sum(quota.per_minute is not None for quota in self._quotas)

    def halt(self) -> None:
        """Grant nothing from now on; everyone who waits gets :class:`Halted`."""
        self._halted = True
        if self._timer is not None:
            self._timer.cancel()
        self._dismiss(Halted("the run is stopping"))

    def send_away(self) -> None:
        """Everyone who waits gets :class:`Rerouted`, to ask elsewhere."""
        self._dismiss(Rerouted("another endpoint is asked"))

    def _dismiss(self, error: SweInferError) -> None:
        waiters, self._waiters = self._waiters, []
        for *_, future in waiters:
            if not future.done():
                future.set_exception(error)

    def _tokens_of(self, characters: int, output_tokens: float) -> float:
        """What a request counts for under the quota of tokens."""
        tokens = characters * self._tokens_seen / self._characters_seen
        return tokens if self._output.per_minute is not None else tokens + output_tokens

    def close(self) -> None:
        """Let go of the shared file."""
        if self._shared is not None:
            self._shared.close()

    async def _acquire(self, characters: int, output_tokens: float, urgent: bool) -> Permit:
        if self._halted:
            raise Halted("the run is stopping")
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (not urgent, next(self._order), characters, output_tokens, future))
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.in_flight -= 1  # granted in the same moment as it was cancelled
                self._pump()
            raise

    def _pump(self) -> None:
        """Grant what may be granted now, and come back when the next may be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = 0.0
        while self._waiters and not self._halted:
            _, _, characters, output_tokens, future = self._waiters[0]
            if future.done():  # cancelled while it waited
                heapq.heappop(self._waiters)
                continue
            now = self._clock()
            self._level.grow(self.in_flight, now)
            if self._blind and self.in_flight > 0:
                wait_s = 0.0
                break
            if self.in_flight >= self.level:
                wait_s = self._level.next_s
                break
            try:
                wait_s = self._wait_s(characters, output_tokens, now)
            except StoreError as error:  # a timer's callback must not leave requests waiting
                self._dismiss(error)
                return
            if wait_s > 0.0:
                break
            heapq.heappop(self._waiters)
            future.set_result(self._grant(characters, output_tokens, now))
        if self._waiters and wait_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.001), self._pump)

    def _wait_s(self, characters: int, output_tokens: float, now: float) -> float:
        """Seconds until the next request may go; with shared quotas, 0 takes its turn."""
        amounts = (1.0, self._tokens_of(characters, output_tokens), output_tokens)
        if self._shared is not None:
            return self._shared.acquire(amounts, [quota.pace for quota in self._quotas])
        waits = [quota.wait_s(amount, now) for quota, amount in zip(self._quotas, amounts, strict=True)]
        return max(self._paused_until - now, *waits)

    def _grant(self, characters: int, output_tokens: float, now: float) -> Permit:
        tokens = self._tokens_of(characters, output_tokens)
        self._requests.take(1.0, now)
        self._tokens.take(tokens, now)
        self._output.take(output_tokens, now)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        sent = (self._requests.sent, self._tokens.sent, self._output.sent)
        return Permit(characters, tokens, output_tokens, now, sent)
