"""Which requests may be sent now: a concurrency window (:mod:`swe_infer.api.concurrency`) and the provider's rate
limits (:mod:`swe_infer.api.rate_limits`).

If a refusal comes before any answer and its headers report no quota, requests wait for the first answer, whose
headers may. Refusals before a quota was known count for the rate limiter, not for the concurrency window. A
Retry-After pauses all requests if a quota is known or refusals are frequent; otherwise only the request that was
refused waits. Quotas that a refusal reports expire, and a Retry-After far below the time until such a quota is
available again is evidence against it: it is not used.

The time limit of a request does not run while the server answers others that may be ahead of it in its queue
(:meth:`Limiter.time_limit`).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import math
from array import array
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Annotated

from swe_infer.api.budget_address import BudgetAddress, is_budget_address
from swe_infer.api.concurrency import ConcurrencyWindow
from swe_infer.api.rate_limits import RateLimiter, SharedRateLimiter
from swe_infer.api.remote_ledger import RemoteRateLimiter
from swe_infer.api.tokens import CHARACTERS_PER_TOKEN
from swe_infer.errors import ConfigError, Overloaded, RateLimited, RateLimits, StoreError, SweInferError
from swe_infer.options import Option
from swe_infer.resources import expanded
from swe_infer.types import PathText, Usage

_SHARED = "runner.limits.shared"

logger = logging.getLogger(__name__)

_KINDS = ("requests", "tokens", "output tokens")
_LEAST_EXPIRY_S = 60.0
"""Quotas are counted per minute, so what a refusal reports is used for at least a minute."""
_FAR_BELOW = 0.25
"""A Retry-After below this part of the time until a quota is available again contradicts it."""
_LONG_RESET_S = 90.0
"""Up to this time, a quota per minute may be available again in part after a Retry-After of seconds."""
_LOGGED_CHANGE = 0.25
"""A pace is logged again if it has changed by this part."""
_LOGGED_AGAIN_S = 600.0
"""Seconds after which a pace that was logged before is logged again."""
_LOGGED_PAUSE_S = 5.0
_BLOCKED_S = 0.2
"""The event loop was blocked if a timer is later than this."""


class Halted(SweInferError):
    """Nothing new may be sent: the run is stopping."""


class Rerouted(SweInferError):
    """The request must be sent to another endpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Concurrency and quotas. ``provider.max_concurrency`` bounds the concurrency."""

    start: Annotated[int, Option("Initial number of concurrent requests.", "speed")] = 8
    doubling_s: Annotated[float, Option("Seconds in which the concurrency doubles initially.", "speed")] = 0.2
    backoff_factor: Annotated[
        float, Option("Factor by which the concurrency decreases after rate-limit or overload errors.", "speed")
    ] = 0.7
    requests_per_minute: Annotated[
        float | None, Option("Quota of requests; null: from response headers.", "speed")
    ] = None
    tokens_per_minute: Annotated[
        float | None,
        Option("Quota of tokens; of input alone if output has its own; null: from response headers.", "speed"),
    ] = None
    output_tokens_per_minute: Annotated[
        float | None, Option("Quota of output tokens (Anthropic); null: from response headers.", "speed")
    ] = None
    shared: Annotated[
        PathText | None,
        Option(
            "A file through which runs on one machine share the quotas of one API key, http://HOST:PORT/NAME of "
            "swe-infer-budget, or ray://NAME.",
            "speed",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.start < 1:
            raise ConfigError(f"runner.limits.start={self.start}: must be at least 1")
        if not 0 < self.doubling_s < float("inf"):
            raise ConfigError(
                f"runner.limits.doubling_s={self.doubling_s}: must be a finite number of seconds above 0"
            )
        if not 0 < self.backoff_factor < 1:
            raise ConfigError(f"runner.limits.backoff_factor={self.backoff_factor}: must be between 0 and 1")
        for key in ("requests_per_minute", "tokens_per_minute", "output_tokens_per_minute"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"runner.limits.{key}={value}: must be a finite number above 0")
        if self.shared is not None and is_budget_address(self.shared):
            BudgetAddress.parse(self.shared, _SHARED)

    def divided(self, shards: int) -> Limits:
        """One shard's part of the configured quotas, divided among ``shards``.

        Raises:
            ConfigError: a file shares them already.
        """
        if self.shared is not None:
            raise ConfigError("runner.limits.shared shares the quotas already; it cannot be combined with division")
        keys = ("requests_per_minute", "tokens_per_minute", "output_tokens_per_minute")
        stated = {key: getattr(self, key) for key in keys}
        return replace(self, **{key: value / shards for key, value in stated.items() if value is not None})


def _shared_limiter(shared: str) -> SharedRateLimiter | RemoteRateLimiter:
    """Raises StoreError if the file or the server cannot be used."""
    if is_budget_address(shared):
        return RemoteRateLimiter(shared, _SHARED)
    return SharedRateLimiter(expanded(shared, _SHARED))


@dataclass(slots=True)
class Permit:
    """Permission to send one request, and what it counts for."""

    characters: int
    tokens: float
    """Estimated amount under the quota of tokens."""
    output_tokens: float
    sent_at: float
    sent: tuple[float, float, float]
    """:attr:`RateLimiter.sent` of requests, tokens and output tokens, with this request."""
    answered_before: int
    """Answers to other requests before it was sent."""


class Limiter:
    """Grants permits, oldest request first, retries before new ones. It must be created in the event loop that it
    serves, and uses that loop's clock.

    Args:
        parts: how many processes share the quotas in headers; those of ``limits`` are divided already.
        name: of the server, for the log.
    """

    def __init__(self, limits: Limits, max_concurrency: int, parts: int = 1, name: str = "the server") -> None:
        self._name = name
        self._clock = asyncio.get_running_loop().time
        now = self._clock()
        self._window = ConcurrencyWindow(
            limits.start, limits.doubling_s, limits.backoff_factor, max(1, max_concurrency)
        )
        self._answered_at = array("d")
        self._pace: dict[str, float] = {}
        """Of each quota, as logged or as it was set again."""
        self._logged_at: dict[tuple[str, int], float] = {}
        """When a pace of about this size was logged."""
        self._expired: set[str] = set()
        """Quotas that the shared file still has."""
        # How many tokens the provider counts for how many characters, starting with one assumed long prompt.
        self._characters_seen, self._tokens_seen = 33_000.0, 33_000.0 / CHARACTERS_PER_TOKEN
        self._overloaded = False
        self._awaits_answer = False
        """A request was refused before any answer has reported the quotas, or timed out while the server answered
        none."""
        self._paused_until = now
        self._requests = RateLimiter(limits.requests_per_minute, now, parts)
        self._tokens = RateLimiter(limits.tokens_per_minute, now, parts)
        self._output = RateLimiter(limits.output_tokens_per_minute, now, parts)
        self._waiters: list[tuple[bool, int, int, float, asyncio.Future[Permit], object]] = []
        self._halted_users: set[object] = set()
        self._users = Counter[object]()
        self._order = itertools.count()
        self._shared = None if limits.shared is None else _shared_limiter(limits.shared)
        self._timer: asyncio.TimerHandle | None = None
        self.in_flight = 0
        self.peak = 0

    @property
    def concurrency(self) -> int:
        """How many requests may be in flight now."""
        return self._window.value

    @property
    def backoffs(self) -> int:
        """Episodes of refusals so far."""
        return self._window.backoffs

    @property
    def waiting(self) -> int:
        """Requests that wait for a permit."""
        return len(self._waiters)

    @property
    def requests_per_minute(self) -> float | None:
        return self._requests.per_minute

    @property
    def tokens_per_minute(self) -> float | None:
        return self._tokens.per_minute

    @asynccontextmanager
    async def permit(
        self, characters: int, output_tokens: float, *, urgent: bool = False, user: object = None
    ) -> AsyncIterator[Permit]:
        """Waits for permission to send. The request counts as in flight while the body runs.

        Args:
            characters: length of the prompt.
            output_tokens: upper bound.
            urgent: granted before others (retries; requests whose prompt a provider has just cached).
            user: of several runs that share this limiter, see :meth:`halt`.

        Raises:
            Halted: the run is stopping.
            Rerouted: the request must be sent to another endpoint.
        """
        permit = await self._acquire(characters, output_tokens, urgent, user)
        self._users[user] += 1
        try:
            yield permit
        finally:
            self._users[user] -= 1
            self.in_flight -= 1
            self._pump()

    def in_flight_of(self, user: object) -> int:
        """Requests of ``user`` in flight."""
        return self._users[user]

    def answered(self, permit: Permit, stated: RateLimits, usage: Usage) -> None:
        """Records an answer: updates the quotas, refunds tokens that were not used, and grows the window."""
        now = self._clock()
        self._answered_at.append(now)
        newly_known = self._update_quotas(permit, stated, now)
        if usage.input_tokens:
            # Where output has its own quota (Anthropic), cached input is free and only written output counts.
            # Elsewhere (OpenAI) the bound on the output counts, used or not.
            counted: float = usage.input_tokens + permit.output_tokens
            if self._output.per_minute is not None:
                counted = usage.input_tokens - usage.cached_input_tokens
                self._output.refund(max(0.0, permit.output_tokens - usage.output_tokens))
            self._tokens.refund(permit.tokens - counted)
        if usage.input_tokens:
            self._characters_seen += permit.characters
            self._tokens_seen += usage.input_tokens
        if newly_known:
            self._window.forget_refusals(now, restart=not self._overloaded)
        self._awaits_answer = False
        self._window.answered(permit.sent_at, self.in_flight, now)

    def refund(self, permit: Permit) -> None:
        """Returns a permit's share of the quota if nothing was sent."""
        self._requests.refund(1.0)
        self._tokens.refund(permit.tokens)
        self._output.refund(permit.output_tokens)

    def refused(self, permit: Permit, error: RateLimited, max_pause_s: float) -> None:
        """Records a 429, 503 or 529: backs off once per episode, and pauses for its Retry-After up to
        ``max_pause_s``."""
        now = self._clock()
        overloaded = isinstance(error, Overloaded)
        newly_known = self._update_quotas(permit, error.rate_limits, now, error)
        self._awaits_answer = not self._answered_at and not self._known_quotas
        for quota in () if overloaded else self._quotas:
            quota.refused()
        if newly_known and not overloaded:
            self._window.forget_refusals(now, restart=not self._overloaded)
            episode = True
        else:
            episode = self._window.refused(permit.sent_at, self.in_flight, now)
            self._overloaded |= episode and overloaded
        if error.retry_after_s is not None and (episode or (self._known_quotas and not overloaded)):
            pause_s = min(max(error.retry_after_s, 0.0), max_pause_s)
            if now + pause_s > self._paused_until + _LOGGED_PAUSE_S:
                logger.info("%s: all requests pause for %.0f s, as its Retry-After asks", self._name, pause_s)
            self._paused_until = max(self._paused_until, now + pause_s)
            if self._shared is not None:
                self._shared.pause(pause_s)

    def failed(self, permit: Permit) -> None:
        """Records an HTTP status from 500 on. During an outage few requests are sent, as each may be billed."""
        self._awaits_answer = False
        self._window.refused(permit.sent_at, self.in_flight, self._clock())

    def timed_out(self, permit: Permit) -> None:
        """Records that no answer came in time."""
        answers = len(self._answered_at) - permit.answered_before
        self._awaits_answer |= answers == 0
        self._window.timed_out(permit.sent_at, self.in_flight, answers, self._clock())

    @asynccontextmanager
    async def time_limit(self, limit_s: float) -> AsyncIterator[None]:
        """Raises TimeoutError in the body ``limit_s`` seconds after its start, or after the last answer to a request
        that may have been ahead of this one in the server's queue.

        A server that answers one request at a time is as slow for the last one as the queue is long. At most as many
        requests may have been ahead as were ever in flight, so a request without an answer still ends.
        """
        loop = asyncio.get_running_loop()
        started, answered_before = loop.time(), len(self._answered_at)
        timer: asyncio.TimerHandle
        async with asyncio.timeout(None) as timeout:

            def check() -> None:
                nonlocal timer
                late_s = loop.time() - timer.when()
                ahead = min(len(self._answered_at), answered_before + self.peak)
                due = limit_s + (self._answered_at[ahead - 1] if ahead > answered_before else started)
                if due <= loop.time() and late_s < _BLOCKED_S:
                    timeout.reschedule(due)
                elif due <= loop.time():  # the loop was blocked: an answer may be waiting to be read
                    timer = loop.call_later(late_s, check)
                else:
                    timer = loop.call_at(due, check)

            timer = loop.call_at(started + limit_s, check)
            try:
                yield
            finally:
                timer.cancel()

    def _update_quotas(
        self, permit: Permit, stated: RateLimits, now: float, refusal: RateLimited | None = None
    ) -> bool:
        """Updates the quotas from headers. Returns whether a quota became known.

        Args:
            refusal: whose headers they are; None: those of an answer.
        """
        known = self._known_quotas
        of_requests = (stated.limit_requests, stated.remaining_requests, stated.reset_requests_s)
        of_tokens = (stated.limit_tokens, stated.remaining_tokens, stated.reset_tokens_s)
        of_output = (stated.limit_output_tokens, stated.remaining_output_tokens, stated.reset_output_tokens_s)
        reports = zip(_KINDS, self._quotas, (of_requests, of_tokens, of_output), permit.sent, strict=True)
        if refusal is not None and self._is_contradictory(refusal, of_requests, of_tokens, of_output):
            return False
        for kind, quota, reported, sent in reports:
            limit, remaining, reset_s = reported
            if limit is None:
                continue
            expires_at = None
            if refusal is not None:
                expires_at = now + max(_LEAST_EXPIRY_S, refusal.retry_after_s or 0.0, reset_s or 0.0)
            quota.update_from_headers(limit, remaining, reset_s, sent_before=sent, now=now, expires_at=expires_at)
            self._log_pace(kind, quota, reported, refusal)
        return self._known_quotas > known

    def _is_contradictory(self, refusal: RateLimited, *reports: tuple[int | None, int | None, float | None]) -> bool:
        """Whether the Retry-After of a refusal contradicts a quota that it reports. Then none of them is used."""
        for kind, (limit, remaining, reset_s) in zip(_KINDS, reports, strict=True):
            if limit is not None and _contradicts(refusal.retry_after_s, remaining, reset_s):
                logger.warning(
                    "%s refused a request for %g s, and reported %s %s per minute, available in %g s: its report is "
                    "not used",
                    self._name, refusal.retry_after_s, _grouped(limit), kind, reset_s,
                )  # fmt: skip
                return True
        return False

    def _log_pace(
        self,
        kind: str,
        quota: RateLimiter,
        reported: tuple[int | None, int | None, float | None],
        refusal: RateLimited | None,
    ) -> None:
        """Logs the pace and its reason, if it is new or has changed much."""
        pace, before = quota.per_minute, self._pace.get(kind)
        if pace is None or (before is not None and abs(pace - before) <= _LOGGED_CHANGE * before):
            return
        self._pace[kind] = pace
        # A gateway to several deployments states another quota with each answer.
        size, now = (kind, round(math.log(pace, 1 + _LOGGED_CHANGE))), self._clock()
        if now < self._logged_at.get(size, float("-inf")) + _LOGGED_AGAIN_S:
            return
        self._logged_at[size] = now
        limit, remaining, reset_s = reported
        logger.log(
            logging.INFO if refusal is None else logging.WARNING,
            "%s: at most %s %s per minute, as %s reports (limit %s, remaining %s, reset in %s s)",
            self._name, _grouped(pace), kind, "an answer" if refusal is None else "a refusal",
            _grouped(limit), _grouped(remaining), reset_s,
        )  # fmt: skip

    def _forget_expired(self, now: float) -> None:
        for kind, quota in zip(_KINDS, self._quotas, strict=True):
            if quota.forget_expired(now):
                self._pace.pop(kind, None)
                self._logged_at = {size: at for size, at in self._logged_at.items() if size[0] != kind}
                self._expired.add(kind)
                logger.info("%s: the pace of %s that a refusal reported has expired", self._name, kind)

    @property
    def _quotas(self) -> tuple[RateLimiter, RateLimiter, RateLimiter]:
        return (self._requests, self._tokens, self._output)

    @property
    def _known_quotas(self) -> int:
        return sum(quota.per_minute is not None for quota in self._quotas)

    def halt(self, user: object = None) -> None:
        """Grants nothing to the requests of ``user`` from now on. Those that wait raise :class:`Halted`."""
        self._halted_users.add(user)
        self._dismiss(Halted("the run is stopping"), [waiter for waiter in self._waiters if waiter[-1] is user])
        self._pump()

    def reroute_waiters(self, user: object = None) -> None:
        """The waiting requests of ``user`` raise :class:`Rerouted`."""
        error = Rerouted("the request goes to another endpoint")
        self._dismiss(error, [waiter for waiter in self._waiters if waiter[-1] is user])
        self._pump()

    def _dismiss(
        self, error: SweInferError, waiters: list[tuple[bool, int, int, float, asyncio.Future[Permit], object]]
    ) -> None:
        """``waiters`` raise ``error``. :meth:`_pump` drops them from the queue."""
        for *_, future, _ in waiters:
            if not future.done():
                future.set_exception(error)

    def _tokens_of(self, characters: int, output_tokens: float) -> float:
        """Estimated amount of a request under the quota of tokens."""
        tokens = characters * self._tokens_seen / self._characters_seen
        return tokens if self._output.per_minute is not None else tokens + output_tokens

    def close(self) -> None:
        """Closes the file of shared quotas."""
        if self._shared is not None:
            self._shared.close()

    async def _acquire(self, characters: int, output_tokens: float, urgent: bool, user: object) -> Permit:
        if user in self._halted_users:
            raise Halted("the run is stopping")
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiters, (not urgent, next(self._order), characters, output_tokens, future, user))
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self.in_flight -= 1  # granted just before it was cancelled
                self._pump()
            raise

    def _pump(self) -> None:
        """Grants what may be granted now, and sets a timer for the next."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wait_s = 0.0
        while self._waiters:
            _, _, characters, output_tokens, future, _ = self._waiters[0]
            if future.done():  # cancelled or dismissed while it waited
                heapq.heappop(self._waiters)
                continue
            now = self._clock()
            self._window.grow(self.in_flight, now)
            self._forget_expired(now)
            if self._awaits_answer and self.in_flight > 0:
                wait_s = 0.0
                break
            if self.in_flight >= self.concurrency:
                wait_s = self._window.next_growth_s
                break
            try:
                wait_s = self._wait_s(characters, output_tokens, now)
            except StoreError as error:  # a timer's callback must not leave requests waiting
                self._dismiss(error, self._waiters)
                self._waiters.clear()
                return
            if wait_s > 0.0:
                break
            heapq.heappop(self._waiters)
            future.set_result(self._grant(characters, output_tokens, now))
        if self._waiters and wait_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(max(wait_s, 0.001), self._pump)

    def _wait_s(self, characters: int, output_tokens: float, now: float) -> float:
        """Seconds until the next request may be sent. With shared quotas, a result of 0 also records the request."""
        amounts = (1.0, self._tokens_of(characters, output_tokens), output_tokens)
        if self._shared is not None:
            rates = [
                0.0 if kind in self._expired and quota.target_rate is None else quota.target_rate
                for kind, quota in zip(_KINDS, self._quotas, strict=True)
            ]
            wait_s = self._shared.acquire(amounts, rates)
            self._expired.clear()
            return min(wait_s, *(quota.expires_in_s(now) for quota in self._quotas)) if wait_s else wait_s
        waits = [
            min(quota.wait_s(amount, now), quota.expires_in_s(now))
            for quota, amount in zip(self._quotas, amounts, strict=True)
        ]
        return max(self._paused_until - now, *waits)

    def _grant(self, characters: int, output_tokens: float, now: float) -> Permit:
        tokens = self._tokens_of(characters, output_tokens)
        self._requests.consume(1.0, now)
        self._tokens.consume(tokens, now)
        self._output.consume(output_tokens, now)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        sent = (self._requests.sent, self._tokens.sent, self._output.sent)
        return Permit(characters, tokens, output_tokens, now, sent, len(self._answered_at))


def _grouped(count: float | None) -> str:
    return "unknown" if count is None else f"{count:,.0f}" if count >= 1000 else f"{count:.6g}"


def _contradicts(retry_after_s: float | None, remaining: float | None, reset_s: float | None) -> bool:
    """Whether a Retry-After is evidence against a quota that is reported to be used up for minutes."""
    if retry_after_s is None or reset_s is None or remaining:
        return False
    return reset_s > _LONG_RESET_S and retry_after_s < _FAR_BELOW * reset_s
