"""One request from start to end: response cache, rate limits, budget, provider with retries, price, outcome.

The rate limits come before the budget, so that money is reserved only while a request is in flight. This keeps more
of a cap usable, and whatever a killed process had reserved was really sent.

A failure costs its request, not the run. What stops a run is an exception from :meth:`Chain.complete`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

from swe_infer.api.budget import CostBudget, Reservation
from swe_infer.api.cache import ResponseCache, cache_key
from swe_infer.api.counting import InputBounds
from swe_infer.api.endpoints import Endpoint, Endpoints
from swe_infer.api.first_answers import keys_of_the_api_key
from swe_infer.api.limits import Halted, Permit, Rerouted
from swe_infer.api.pricing import bill_details, caching_pays, settled_usd, with_lifetimes
from swe_infer.api.prompt_cache import prompt_key
from swe_infer.api.reachability import Reachability, Unreachable
from swe_infer.api.retry import Retry, may_have_been_billed, never_connected
from swe_infer.api.tokens import CHARACTERS_PER_TOKEN
from swe_infer.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    RateLimited,
    RequestError,
    StoreError,
    TransientError,
)
from swe_infer.providers.base import Answer
from swe_infer.types import Completion, Failure, Outcome, Prompt, Request, Skip, TokenCounter, Usage

_T = TypeVar("_T")

_MAX_UNREADABLE = 3
"""Unreadable answers to a request after which it is not sent again, if the server has sent no readable one to any
request: each may be billed."""
_UNBOUNDED = 1 << 30
_ROUNDED_USD = Decimal("0.000001")
"""Dollars by which rounding may make the sum of a run's records differ from its ledger, at most."""
_LEAST_TRUNCATED = 2_000
"""Characters of the shortest prompt that is checked for truncation."""
_WRITE_S = 0.1
"""Answers are in the response cache after this time."""
_GRACE_S = 1.0
_CONNECT_S = 17.0
"""A request that has not failed after this time has connected."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """Counters for progress and summary."""

    sent: int = 0
    retried: int = 0
    refused: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    usage: Usage = field(default_factory=Usage)
    possibly_billed: Decimal = Decimal(0)
    """Dollars that may have been billed beyond the cost of the answers, of samples without a record too."""


@dataclass(slots=True)
class _Unanswered:
    """An attempt without an answer that may have been billed, and what was charged for it."""

    endpoint: Endpoint
    output_tokens: int
    usd: Decimal


@dataclass(slots=True)
class _InFlight:
    """One request, for one or several samples of a prompt."""

    requests: Sequence[Request]
    cache_prompt: bool
    attempts: int = 0
    samples_refused: bool = False
    """The server rejected it with several samples, so it asks for one."""
    unreadable: int = 0
    """Attempts that ended with an unreadable answer."""
    began: float = 0.0
    error: RequestError | None = None
    """Of the last attempt."""
    possibly_billed: Decimal = Decimal(0)
    unanswered: list[_Unanswered] = field(default_factory=list)
    byte_bound: int = 0
    """Upper bound on the input tokens of the current attempt: the prompt's bytes."""
    reserved_bound: int = 0
    """Upper bound on the input tokens from which its reservation is computed."""

    @property
    def request(self) -> Request:
        return self.requests[0]

    @property
    def output_tokens(self) -> int:
        """Upper bound on the output tokens."""
        return len(self.requests) * self.request.decoding.max_new_tokens

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began if self.began else 0.0

    @property
    def billing_details(self) -> dict[str, str]:
        """For the record: what may have been billed beyond the cost."""
        return {"possibly_billed_usd": str(self.possibly_billed)} if self.possibly_billed else {}

    def failure(self, error: RequestError) -> Failure:
        """The outcome if it is not sent again after ``error``."""
        return Failure(type(error).__name__, str(error), self.attempts, self.elapsed_s, details=self.billing_details)

    def continue_from(self, earlier: _InFlight) -> None:
        """Counts the attempts of an earlier flight of the same request as its own."""
        self.attempts, self.began, self.error = earlier.attempts, earlier.began, earlier.error
        self.possibly_billed, self.unanswered = earlier.possibly_billed, earlier.unanswered


@dataclass(frozen=True, slots=True)
class _Charged:
    """Answers, the endpoint that sent them and what each of them cost."""

    answers: Sequence[Answer]
    endpoint: Endpoint
    usd: Sequence[Decimal | None]


class Chain:
    """Answers requests, any number of them at once, in one event loop.

    Args:
        endpoints: in order of preference.
        budget: the caps.
        retry: when to retry.
        counter: counts a prompt's tokens; used to bound prices if it is exact.
        cache: answers of earlier runs.
        unrecorded_usd: what counts under the caps for earlier requests of the run, and is in no record.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        budget: CostBudget,
        retry: Retry,
        counter: TokenCounter,
        cache: ResponseCache | None = None,
        unrecorded_usd: Decimal = Decimal(0),
    ) -> None:
        self.earlier_usd = unrecorded_usd if unrecorded_usd > _ROUNDED_USD else Decimal(0)
        """What requests of earlier commands may have been billed, and that no outcome states."""
        self._stated_usd = Decimal(0)
        """What outcomes of this command have stated."""
        self._endpoints = endpoints
        self._budget = budget
        self._retry = retry
        self.bounds = InputBounds(counter, self.sleep)
        self._cache = cache
        self._writing: asyncio.TimerHandle | None = None
        self._reachability = Reachability([endpoint.address for endpoint in endpoints.all])
        self._halted = asyncio.Event()
        self._stop = threading.Event()
        self.in_flight = 0
        self._billed_without_outcome: dict[tuple[str, int], _InFlight] = {}
        self._unspent_at_start: Decimal | None = None
        self.counts = Counts()

    def stop_on(self, stop: threading.Event) -> None:
        """Sends nothing once ``stop`` is set, even before :meth:`halt` is called."""
        self._stop = stop

    def halt(self) -> None:
        """Sends nothing from now on. Requests in flight finish; waiting ones give up at once."""
        self._halted.set()
        self._endpoints.halt()
        self._budget.halt()

    def cached_completion(self, request: Request) -> Completion | None:
        """The answer of an earlier run, or None."""
        if self._cache is None:
            return None
        for endpoint in self._endpoints.all:
            current, *former = self._cache.keys(request, endpoint.model, endpoint.provider)
            answer = self._cache.get(current)
            if answer is None and former and (answer := self._cache.get(former[0])) is not None:
                self.store(request, answer, endpoint)  # found from now on at any address of the server
            if answer is not None:
                self.counts.cache_hits += 1
                answer = answer.cut_at(request.decoding.stop)
                details = {**_details(answer, endpoint), "response_cache": True}
                return Completion(answer.text, "stop", Usage(), Decimal(0), 0.0, attempts=0, details=details)
        self.counts.cache_misses += 1
        return None

    @property
    def unrecorded_usd(self) -> Decimal:
        """Dollars that may have been billed for requests of this and earlier commands, and that no outcome states."""
        return self.earlier_usd + self.counts.possibly_billed - self._stated_usd

    def with_earlier_bills(self, outcome: Outcome) -> Outcome:
        """``outcome``, which is about to be recorded. The first one that has details also states what requests of
        earlier commands may have been billed without a record."""
        if isinstance(outcome, Skip):
            return outcome
        stated = Decimal(outcome.details.get("possibly_billed_usd", 0))
        self._stated_usd += stated
        if not self.earlier_usd:
            return outcome
        usd, self.earlier_usd = stated + self.earlier_usd, Decimal(0)
        return replace(outcome, details={**outcome.details, "possibly_billed_usd": str(usd)})

    def store(self, request: Request, answer: Answer, endpoint: Endpoint) -> None:
        """Stores an answer in the response cache for later runs. The cache is written soon, once for all answers of
        that time; the record of an answer is written at once."""
        if self._cache is None:
            return
        provider = endpoint.provider
        key = cache_key(request, endpoint.model, provider.name, variant=provider.variant)
        is_new = self._cache.put(key, answer, model=endpoint.model.name, provider=provider.name)
        if is_new and self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(_WRITE_S, self._write_cache, self._cache)

    def _write_cache(self, cache: ResponseCache) -> None:
        self._writing = None
        cache.write()

    def caching_pays(self, request: Request, samples: int) -> bool:
        """Whether ``samples`` of a prompt cost less if the provider caches it. No provider caches prompts under 1,024
        tokens; if no price is known, caching still saves computation."""
        tokens = int(request.prompt.characters / CHARACTERS_PER_TOKEN)
        prices = self._endpoints.all[0].prices
        return tokens >= 1024 and (prices is None or caching_pays(prices, tokens, samples))

    def prompt_key(self, request: Request) -> bytes:
        """The key of a prompt in the prompt cache of the first provider."""
        first = self._endpoints.all[0]
        return prompt_key(request.prompt, first.model, first.provider.name, first.address)

    def max_samples(self, request: Request) -> int:
        """How many samples of a prompt one request may ask for, at any endpoint."""
        return min(
            min(e.provider.max_samples(e.model, request.decoding), e.most_samples or _UNBOUNDED)
            for e in self._endpoints.all
        )

    async def complete(
        self, requests: Sequence[Request], *, cache_prompt: bool = False, urgent: bool = False
    ) -> Sequence[Outcome]:
        """Sends a request to a provider: one, or several that differ only in their sample.

        Returns the outcomes of the leading requests: fewer than ``requests`` if the provider sent fewer answers, none
        if the run was halted before anything was sent that may be billed.

        Args:
            requests: at most :meth:`max_samples`.
            cache_prompt: whether the provider should cache the prompt for later requests.
            urgent: whether to go before other waiting requests.

        Raises:
            BudgetExceeded: the request cannot fit under a cap.
            ProviderFatal: no request of this run can succeed.
        """
        flight = _InFlight(requests, cache_prompt)
        if (earlier := self._billed_without_outcome.pop(flight.request.key, None)) is not None:
            flight.continue_from(earlier)
        try:
            return await self._outcomes(flight, requests, urgent=urgent)
        except BaseException:
            if flight.possibly_billed:
                self._billed_without_outcome[flight.request.key] = flight
            raise

    def failure_of(self, request: Request) -> Failure | None:
        """The failure of a request for which :meth:`complete` raised an error after attempts that may have been
        billed; None if there are none. The record of the failure states what they may have cost."""
        flight = self._billed_without_outcome.pop(request.key, None)
        return None if flight is None or flight.error is None else flight.failure(flight.error)

    async def _outcomes(self, flight: _InFlight, requests: Sequence[Request], *, urgent: bool) -> Sequence[Outcome]:
        while True:
            endpoint = self._endpoints.pick()
            try:
                charged = await self._attempt_when_bounded(flight, endpoint, urgent or flight.attempts > 0)
            except Halted:
                return self._given_up(flight)
            except Rerouted:
                continue
            except ContextOverflow as error:
                return [Skip("ContextOverflow", str(error))] * len(requests)
            except Unreachable:  # no endpoint can be reached
                raise
            except RequestError as error:
                flight.error = error
                if self._endpoints.fail_over(endpoint, _with_key(error, endpoint)):
                    continue
                not_connected = self._reachability.is_doubtful() and never_connected(error)
                if isinstance(error, InvalidRequest) and len(flight.requests) > 1:
                    flight.requests, flight.samples_refused = flight.requests[:1], True
                    continue
                delay_s = self._retry.delay_s(error, flight.attempts, flight.elapsed_s)
                flight.unreadable += error.status == 200
                if flight.unreadable >= _MAX_UNREADABLE and not endpoint.first_answers.answered:
                    delay_s = None
                if delay_s is None:
                    fatal = endpoint.first_answers.fatal_error(
                        flight.request.instance_id, error, flight.attempts, endpoint.provider, endpoint.model
                    )
                    if fatal is not None and self._endpoints.fail_over(endpoint, fatal):
                        continue
                    logger.info("%s, try %d, the last one: %s", flight.request.instance_id, flight.attempts, error)
                    failure = flight.failure(error)
                    alike = flight.samples_refused and isinstance(error, InvalidRequest)  # with one sample too
                    others = [replace(failure, details={})] * (len(requests if alike else flight.requests) - 1)
                    return [failure, *others]
                self.counts.retried += 1
                if not_connected:
                    continue
                logger.info("%s, try %d: %s", flight.request.instance_id, flight.attempts, error)
                if not await self.sleep(delay_s):
                    return self._given_up(flight)
            else:
                self._note_samples(flight, charged)
                return self._completions(flight, charged)

    def _given_up(self, flight: _InFlight) -> Sequence[Outcome]:
        """The outcome of a request that is not sent again because the run is halted."""
        return [flight.failure(flight.error)] if flight.possibly_billed and flight.error is not None else []

    async def _attempt_when_bounded(self, flight: _InFlight, endpoint: Endpoint, urgent: bool) -> _Charged:
        """:meth:`_attempt_when_reachable`. Under a cap, one request at a time is sent to a server that may bill more
        than is reserved, until an answer costs no more.

        Raises:
            Rerouted: the request must be sent to another endpoint, or wait for such an answer.
        """
        if self._must_go_alone(flight, endpoint):
            async with endpoint.trial_lock:
                if self._must_go_alone(flight, endpoint):
                    await endpoint.idle.wait()
                if self._must_go_alone(flight, endpoint):  # no answer meanwhile has shown that the bound holds
                    if self._endpoints.pick() is not endpoint:
                        raise Rerouted("the request goes to another endpoint")
                    return await self._attempt_when_reachable(flight, endpoint, urgent, is_alone=True)
        return await self._attempt_when_reachable(flight, endpoint, urgent)

    def _must_go_alone(self, flight: _InFlight, endpoint: Endpoint) -> bool:
        if not self._budget.has_caps or endpoint.bound_is_certain:
            return False
        if self._unspent_at_start is None:
            self._unspent_at_start = self._budget.unspent_usd()
        byte_bound = self.bounds.byte_bound(flight.request, endpoint)
        return endpoint.must_go_alone(byte_bound, len(flight.requests), self._unspent_at_start)

    async def _attempt_when_reachable(
        self, flight: _InFlight, endpoint: Endpoint, urgent: bool, *, is_alone: bool = False
    ) -> _Charged:
        """:meth:`_attempt`. After a failure to connect, and until a request connects, one at a time tries.

        Raises:
            Unreachable: no endpoint can be reached.
            Rerouted: the request must be sent to another endpoint, or as the probe.
        """
        if not self._reachability.is_doubtful():
            return await self._attempt(flight, endpoint, urgent, is_alone=is_alone)
        async with self._reachability.probe_lock:
            if self._endpoints.pick() is not endpoint:
                raise Rerouted("the request goes to another endpoint")
            if self._reachability.is_doubtful() and not await self.sleep(
                self._reachability.pause_s(endpoint.address)
            ):
                raise Halted("the run is stopping")
            attempt = asyncio.create_task(self._attempt(flight, endpoint, urgent, is_probe=True, is_alone=is_alone))
            try:
                if self._reachability.is_doubtful():
                    await asyncio.wait([attempt], timeout=_CONNECT_S)
            except asyncio.CancelledError:
                attempt.cancel()
                await asyncio.gather(attempt, return_exceptions=True)
                raise
        return await attempt

    async def _attempt(
        self,
        flight: _InFlight,
        endpoint: Endpoint,
        urgent: bool,
        *,
        is_probe: bool = False,
        is_alone: bool = False,
    ) -> _Charged:
        """One attempt: waits for a permit, reserves, sends, charges."""
        size = flight.request.prompt.characters
        self._refuse_early(flight, endpoint)
        user = self._endpoints
        async with endpoint.limiter.permit(size, flight.output_tokens, urgent=urgent, user=user) as permit:
            flight.requests = flight.requests[: endpoint.most_samples]  # which may be known only now
            exceeded = self._budget.exceeded
            reservation = await self._reserve(flight, endpoint, permit)
            if self._halted.is_set() or self._stop.is_set():
                self._budget.charge(reservation, Decimal(0))
                raise Halted("the run is stopping")
            unreachable = self._reachability.is_doubtful() and not is_probe
            if (  # since this request waits
                unreachable
                or (self._must_go_alone(flight, endpoint) and not is_alone)
                or self._budget.exceeded > exceeded
            ):
                self._budget.charge(reservation, Decimal(0))
                endpoint.limiter.refund(permit)
                raise Rerouted("one request at a time is sent, or less of the cap is left")
            flight.attempts += 1
            flight.began = flight.began or time.monotonic()
            self.counts.sent += 1
            self.in_flight += 1
            sent_at = datetime.now(tz=UTC)
            try:
                with endpoint.sending():
                    answers = await self._send(flight, endpoint)
            except BaseException as error:
                billed = may_have_been_billed(error)
                charged = self._budget.charge(reservation, None if billed else Decimal(0))
                if billed and charged:
                    self._add_possibly_billed(flight, charged)
                    flight.unanswered.append(_Unanswered(endpoint, flight.output_tokens, charged))
                self._on_error(endpoint, permit, error)
                tries = 1 + is_probe * self._reachability.failed_attempts(endpoint.address)
                self._reachability.record(endpoint.address, error, tries=tries)
                raise
            finally:
                self.in_flight -= 1
            self._reachability.record(endpoint.address, None)
            answers = [with_lifetimes(answer, endpoint.prices) for answer in answers]
            answers = self._checked(flight, endpoint, answers)
            usage = sum((answer.usage for answer in answers), Usage())
            endpoint.observe(
                None if "usage_estimated" in answers[0].details else usage,
                answers[0].bill,
                flight.byte_bound,
                flight.output_tokens,
                cache_write=flight.cache_prompt,
                is_last=endpoint.idle.is_set(),
            )
            try:
                usd = self._pay(flight, reservation, endpoint, answers, usage, sent_at)
            except Exception:  # a paid answer is never lost because of its price or a full disk
                logger.exception(
                    "%s: the answer is kept, its price is unknown: %s", flight.request.instance_id, usage
                )
                usd = [None] * len(answers)
            if "usage_estimated" not in answers[0].details and flight.byte_bound:
                self.bounds.observe(endpoint, usage, flight.byte_bound, flight.reserved_bound)
                self._refund_unanswered(flight, endpoint, usage.input_tokens)
            endpoint.limiter.answered(permit, answers[0].rate_limits, usage)
            self._endpoints.mark_up(endpoint)
            return _Charged(answers, endpoint, usd)

    def _add_possibly_billed(self, flight: _InFlight, usd: Decimal) -> None:
        flight.possibly_billed += usd
        self.counts.possibly_billed += usd

    def _refund_unanswered(self, flight: _InFlight, endpoint: Endpoint, input_tokens: int) -> None:
        """Lowers what was charged for attempts without an answer, when the tokens of the prompt become known. The
        server may still have billed the longest output."""
        for attempt in flight.unanswered:
            if attempt.endpoint is not endpoint:
                continue
            most = endpoint.worst_case(input_tokens, attempt.output_tokens, cache_write=flight.cache_prompt)
            if (surplus := attempt.usd - most) > 0:
                try:
                    self._budget.refund(surplus)
                except StoreError as error:
                    logger.debug("%s", error)
                    continue
                attempt.usd = most
                self._add_possibly_billed(flight, -surplus)

    def _pay(
        self,
        flight: _InFlight,
        reservation: Reservation,
        endpoint: Endpoint,
        answers: Sequence[Answer],
        usage: Usage,
        sent_at: datetime,
    ) -> Sequence[Decimal | None]:
        """Charges the price of the request, and divides it among the answers. If the price cannot be computed, the
        full reservation stays. If the usage is estimated, all of it is charged, because the server may bill it."""
        prices = endpoint.prices
        usd = settled_usd(prices, usage, answers[0].bill, sent_at)
        if usd is None:
            # A tier without a price, which no request of a run with a cap asks for.
            dearest = Decimal(0) if prices is None else prices.dearest(usage)
            most = max(reservation.usd, dearest)
            self._add_possibly_billed(flight, self._budget.charge(reservation, most))
            return [None] * len(answers)
        is_bill = prices is None or (prices.states_bill and answers[0].bill.usd is not None)
        if "usage_estimated" in answers[0].details and not is_bill and usd < reservation.usd:
            self._add_possibly_billed(flight, self._budget.charge(reservation, None) - usd)
        else:
            self._budget.charge(reservation, usd)
        others = [Decimal(0)] * (len(answers) - 1)
        if prices is not None and not is_bill:
            others = [prices.price(answer.usage, answer.bill, sent_at) for answer in answers[1:]]
        return [usd - sum(others, Decimal(0)), *others]

    async def _send(self, flight: _InFlight, endpoint: Endpoint) -> Sequence[Answer]:
        limit_s = self._retry.attempt_timeout_s(flight.request.decoding.max_new_tokens, endpoint.provider.timeout_s)
        timeout_s = max(limit_s, self._retry.total_s)  # in a server's queue
        try:
            # The provider reports a failure to connect first.
            async with endpoint.limiter.time_limit(limit_s + min(_GRACE_S, 0.1 * limit_s)):
                if len(flight.requests) > 1:
                    answers = await endpoint.provider.complete_samples(
                        flight.requests, endpoint.model, timeout_s=timeout_s, cache_prompt=flight.cache_prompt
                    )
                    if not answers:
                        raise TransientError("an answer without a choice", status=200)
                    return answers
                return [
                    await endpoint.provider.complete(
                        flight.request, endpoint.model, timeout_s=timeout_s, cache_prompt=flight.cache_prompt
                    )
                ]
        except TimeoutError as error:
            where = f"{endpoint.provider.name}, {endpoint.model.name}"
            late = TransientError(f"{where}: no complete answer within {limit_s:g} s")
            late.timed_out = True
            raise late from error

    def _on_error(self, endpoint: Endpoint, permit: Permit, error: BaseException) -> None:
        if isinstance(error, RateLimited):
            self.counts.refused += 1
            endpoint.limiter.refused(permit, error, self._retry.max_retry_after_s)
        elif isinstance(error, RequestError) and error.timed_out:
            endpoint.limiter.timed_out(permit)
        elif isinstance(error, TransientError) and error.status is not None and error.status >= 500:
            endpoint.limiter.failed(permit)

    # Money before a request.

    def _refuse_early(self, flight: _InFlight, endpoint: Endpoint) -> None:
        """Avoids a permit and a token count for a request that cannot fit.

        Raises:
            BudgetExceeded: it cannot fit.
        """
        if endpoint.prices is None:
            return
        flight.byte_bound = self.bounds.byte_bound(flight.request, endpoint)
        if not self._budget.may_refuse:
            return
        usd = self._price(flight, endpoint, flight.byte_bound)
        if self._budget.cannot_fit(usd):
            least = self.bounds.lower_estimate(endpoint, flight.byte_bound)
            if self._budget.cannot_fit(self._price(flight, endpoint, least)):
                raise self._budget_exceeded(flight, endpoint, usd)

    async def _reserve(self, flight: _InFlight, endpoint: Endpoint, permit: Permit) -> Reservation:
        """Reserves the worst case of one attempt.

        Raises:
            BudgetExceeded: it does not fit; the permit is refunded.
            Halted: the run is stopping.
        """
        if endpoint.prices is None:
            return await self._budget.reserve(Decimal(0))
        flight.reserved_bound = flight.byte_bound

        async def tighter() -> Decimal:
            counting = self.bounds.tightest(flight.request, endpoint, flight.byte_bound)
            flight.reserved_bound = await self._unless_halted(counting)
            self._refund_unanswered(flight, endpoint, flight.reserved_bound)
            return self._price(flight, endpoint, flight.reserved_bound)

        usd = self._price(flight, endpoint, flight.byte_bound)
        try:
            return await self._budget.reserve(usd, tighter if self.bounds.can_be_tighter(endpoint) else None)
        except BudgetExceeded as error:
            endpoint.limiter.refund(permit)
            raise self._budget_exceeded(flight, endpoint, error.usd) from None

    def _price(self, flight: _InFlight, endpoint: Endpoint, tokens: int) -> Decimal:
        """The most that a request can cost with a prompt of ``tokens`` tokens."""
        return endpoint.worst_case(tokens, flight.output_tokens, cache_write=flight.cache_prompt)

    def _budget_exceeded(self, flight: _InFlight, endpoint: Endpoint, usd: Decimal) -> BudgetExceeded:
        shortest = endpoint.worst_case(1, flight.request.decoding.max_new_tokens, cache_write=False)
        return self._budget.explain_refusal(usd, nothing_fits=self._budget.cannot_fit(shortest))

    async def explain_refusal(self, request: Request) -> BudgetExceeded:
        """The error for a request that does not fit, with its tightest bound."""
        flight, endpoint = _InFlight([request], cache_prompt=False), self._endpoints.pick()
        flight.byte_bound = self.bounds.byte_bound(request, endpoint)
        tokens = await self.bounds.tightest(request, endpoint, flight.byte_bound)
        return self._budget_exceeded(flight, endpoint, self._price(flight, endpoint, tokens))

    async def _unless_halted(self, work: Awaitable[_T]) -> _T:
        """The result of ``work``.

        Raises:
            Halted: the run was halted first, and ``work`` is cancelled.
        """
        task, halted = asyncio.ensure_future(work), asyncio.ensure_future(self._halted.wait())
        try:
            await asyncio.wait({task, halted}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Halted("the run is stopping")
            return task.result()
        finally:
            task.cancel()
            halted.cancel()
            await asyncio.gather(task, halted, return_exceptions=True)

    def _note_samples(self, flight: _InFlight, charged: _Charged) -> None:
        """Notes, once, that a server gives one sample per request only."""
        endpoint = charged.endpoint
        ignored = len(flight.requests) > 1 and len(charged.answers) == 1
        if endpoint.most_samples is None and (ignored or flight.samples_refused):
            endpoint.most_samples = 1
            logger.warning(
                "%s %s n: each further sample is a request of its own (take n out of model.parameters to avoid this "
                "attempt)",
                endpoint.provider.name,
                "ignores" if ignored else "rejects",
            )

    def _checked(self, flight: _InFlight, endpoint: Endpoint, answers: Sequence[Answer]) -> list[Answer]:
        """``answers``, cut at stop strings, and marked if the server has probably truncated the prompt."""
        prompt, usage = flight.request.prompt, answers[0].usage
        answers = [answer.cut_at(flight.request.decoding.stop) for answer in answers]
        if "usage_estimated" in answers[0].details:
            return answers
        is_alike = endpoint.counts_alike(prompt.characters, usage.input_tokens)
        if not is_alike and not _is_truncated(prompt, usage.input_tokens):
            return answers
        if not endpoint.prompts_truncated:
            endpoint.prompts_truncated = True
            logger.warning(
                "%s counts %d tokens for a prompt of %d characters: it probably truncates prompts; raise its context "
                "window (Ollama: OLLAMA_CONTEXT_LENGTH)",
                endpoint.provider.name,
                usage.input_tokens,
                prompt.characters,
            )
        return [replace(answer, details={**answer.details, "prompt_truncated": True}) for answer in answers]

    def _completions(self, flight: _InFlight, charged: _Charged) -> list[Completion]:
        parts = zip(flight.requests, charged.answers, charged.usd, strict=False)  # there may be fewer answers
        return [self._completion(flight, charged.endpoint, request, answer, usd) for request, answer, usd in parts]

    def _completion(
        self, flight: _InFlight, endpoint: Endpoint, request: Request, answer: Answer, usd: Decimal | None
    ) -> Completion:
        details = _details(answer, endpoint)
        if len(flight.requests) > 1:
            details["samples_in_request"] = len(flight.requests)
        if request is flight.request:  # once for all samples of the request
            details |= flight.billing_details
        self.store(request, answer, endpoint)
        self.counts.usage += answer.usage
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            cost_usd=usd,
            latency_s=flight.elapsed_s,
            attempts=flight.attempts,
            details=details,
        )

    async def sleep(self, seconds: float) -> bool:
        """Sleeps; returns False if the run is halted meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._halted.wait()
        except TimeoutError:
            return True
        return False


def _is_truncated(prompt: Prompt, input_tokens: int) -> bool:
    """Whether a server has counted fewer tokens than a prompt can have: a token is no longer than a word."""
    characters = prompt.characters
    if characters < max(_LEAST_TRUNCATED, 7 * input_tokens) or not input_tokens:
        return False
    return input_tokens < max(0.75 * len(prompt.text.split()), characters / 40)


def _with_key(error: RequestError, endpoint: Endpoint) -> RequestError:
    """``error``. If the configuration causes it, the message names the key."""
    if isinstance(error, AuthenticationFailed):
        key = keys_of_the_api_key(endpoint.provider)
    elif isinstance(error, ModelNotFound):
        key = f"model.name={endpoint.model.name} and provider.base_url"
    else:
        return error
    if "; check " not in str(error):
        error.args = (f"{str(error).rstrip('.')}; check {key}",)
    return error


def _details(answer: Answer, endpoint: Endpoint) -> dict[str, Any]:
    details: dict[str, Any] = {
        **answer.details,
        **bill_details(answer.bill),
        "provider": endpoint.provider.name,
        "model": answer.model,
        "request_id": answer.request_id,
    }
    if answer.time_to_first_token_s is not None:
        details["time_to_first_token_s"] = round(answer.time_to_first_token_s, 4)
    return details
