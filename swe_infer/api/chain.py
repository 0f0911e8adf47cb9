"""The life of one request: response cache, limit, budget, provider with retries, price, settlement, outcome.

The limit comes before the budget, although money is scarcer: a reservation is then held only while its request is in
flight, which keeps more of a cap usable, and whatever a killed process held was indeed sent.

Every failure costs that request, never the run. What stops a run leaves :meth:`Chain.ask` as an exception.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from swe_infer.api.budget import CostBudget, Reservation
from swe_infer.api.cache import ResponseCache, cache_keys
from swe_infer.api.coordination import Interrupted
from swe_infer.api.counting import InputBounds
from swe_infer.api.endpoints import Endpoint, Endpoints
from swe_infer.api.limits import Halted, Permit, Rerouted
from swe_infer.api.pricing import caching_pays, worst_case
from swe_infer.api.prompt_cache import prompt_key
from swe_infer.api.reachability import Reachability, Unreachable
from swe_infer.api.retry import Retry, may_have_been_billed, never_connected
from swe_infer.api.tokens import CHARACTERS_PER_TOKEN
from swe_infer.errors import (
    BudgetExceeded,
    ContextOverflow,
    RateLimited,
    RequestError,
    StoreError,
    TransientError,
)
from swe_infer.providers.base import Answer
from swe_infer.types import Completion, Failure, Outcome, Request, Skip, TokenCounter, Usage

_T = TypeVar("_T")

_GRACE_S = 1.0
_CONNECT_S = 17.0
"""A request that has not failed by then has connected."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Counts:
    """What a chain did, for progress and summary."""

    sent: int = 0
    retried: int = 0
    refused: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    usage: Usage = field(default_factory=Usage)


@dataclass(slots=True)
class _InFlight:
    """One request on its way, for one sample of a prompt or for several."""

    requests: Sequence[Request]
    cache_prompt: bool
    attempts: int = 0
    began: float = 0.0
    possibly_billed: Decimal = Decimal(0)
    sure: int = 0
    """Bytes: a bound on the input tokens of the present attempt."""
    used: int = 0
    """The bound that its reservation is made of."""

    @property
    def request(self) -> Request:
        return self.requests[0]

    @property
    def output_tokens(self) -> int:
        """At most so many are written."""
        return len(self.requests) * self.request.decoding.max_new_tokens

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began if self.began else 0.0


@dataclass(frozen=True, slots=True)
class _Charged:
    """Answers, where they came from and what each of them cost."""

    answers: Sequence[Answer]
    endpoint: Endpoint
    usd: Sequence[Decimal | None]


class Chain:
    """Answers requests, any number of them at once, in one event loop.

    Args:
        endpoints: where to ask, in order of preference.
        purse: the caps.
        retry: when to try again.
        counter: counts a prompt's tokens; bounds the price near the end of a budget where it is exact.
        cache: answers of earlier runs.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        purse: CostBudget,
        retry: Retry,
        counter: TokenCounter,
        cache: ResponseCache | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._purse = purse
        self._retry = retry
        self.bounds = InputBounds(counter, self.sleep)
        self._cache = cache
        self._reach = Reachability([endpoint.address for endpoint in endpoints.all])
        self._halted = asyncio.Event()
        self._stop = threading.Event()
        self.in_flight = 0
        self._unsettled = False
        self.counts = Counts()

    def stop_on(self, stop: threading.Event) -> None:
        """Send nothing any more once ``stop`` is set, also before :meth:`halt` is called."""
        self._stop = stop

    def halt(self) -> None:
        """Send nothing from now on. What is in flight is finished; who waits to send gives up at once."""
        self._halted.set()
        self._endpoints.halt()
        self._purse.halt()

    def cached(self, request: Request) -> Completion | None:
        """The answer that an earlier run paid for, if there is one."""
        if self._cache is None:
            return None
        for endpoint in self._endpoints.all:
            key, former = cache_keys(request, endpoint.model, endpoint.provider)
            answer = self._cache.get(key)
            if answer is None and (answer := self._cache.get(former)) is not None:
                self.keep(request, answer, endpoint)  # it is found from then on, wherever the server moves
            if answer is not None:
                self.counts.cache_hits += 1
                details = {**_details(answer, endpoint), "response_cache": True}
                return Completion(answer.text, "stop", Usage(), Decimal(0), 0.0, attempts=0, details=details)
        self.counts.cache_misses += 1
        return None

    def keep(self, request: Request, answer: Answer, endpoint: Endpoint) -> None:
        """Keep an answer for later runs."""
        if self._cache is not None:
            key, _ = cache_keys(request, endpoint.model, endpoint.provider)
            self._cache.put(key, answer, model=endpoint.model.name, provider=endpoint.provider.name)

    def caching_pays(self, request: Request, samples: int) -> bool:
        """Whether so many samples of a prompt cost less where its provider caches it. Shorter prompts than 1,024
        tokens are cached by no provider; where no price is known, the hardware still has less to do."""
        tokens = int(len(request.prompt.text) / CHARACTERS_PER_TOKEN)
        tariff = self._endpoints.all[0].tariff
        return tokens >= 1024 and (tariff is None or caching_pays(tariff, tokens, samples))

    def prompt_key(self, request: Request) -> bytes:
        """What the cache of the provider that is asked first goes by."""
        first = self._endpoints.all[0]
        return prompt_key(request.prompt, first.model, first.provider.name, first.address)

    def most_samples(self, request: Request) -> int:
        """How many samples of a prompt one request may ask for, wherever it is sent."""
        return min(e.provider.most_samples(e.model, request.decoding) for e in self._endpoints.all)

    async def ask(
        self, requests: Sequence[Request], *, cache_prompt: bool = False, urgent: bool = False
    ) -> Sequence[Outcome]:
        """Have a request answered by a provider: one, or several that differ in their sample alone.

        Returns the outcomes of the leading requests: of all of them, or of fewer where the provider gave fewer
        answers, or of none where the run was halted before anything was sent (again).

        Args:
            requests: at most :meth:`most_samples` of them.
            cache_prompt: ask the provider to keep the prompt for the requests that follow.
            urgent: go ahead of other requests that wait.

        Raises:
            BudgetExceeded: the request does not fit under a cap, whatever those in flight come to.
            ProviderFatal: no request of this run can succeed.
        """
        life = _InFlight(requests, cache_prompt)
        while True:
            endpoint = self._endpoints.pick()
            try:
                paid = await self._careful_attempt(life, endpoint, urgent or life.attempts > 0)
            except Halted:
                return []
            except Rerouted:
                continue
            except ContextOverflow as error:
                return [Skip("ContextOverflow", str(error))] * len(requests)
            except Unreachable:  # whichever endpoint was the last to be tried
                raise
            except RequestError as error:
                if self._endpoints.next_after(endpoint, error):
                    continue
                unreached = self._reach.is_doubtful() and never_connected(error)
                delay_s = self._retry.delay_s(error, life.attempts, life.elapsed_s)
                if delay_s is None:
                    failure = Failure(type(error).__name__, str(error), life.attempts, life.elapsed_s)
                    return [failure] * len(requests)
                self.counts.retried += 1
                if unreached:
                    continue
                logger.info("%s, try %d: %s", life.request.instance_id, life.attempts, error)
                if not await self.sleep(delay_s):
                    return []
            else:
                return self._completions(life, paid)

    async def _careful_attempt(self, life: _InFlight, endpoint: Endpoint, urgent: bool) -> _Charged:
        """:meth:`_attempt`. While nothing has ever connected, one request at a time tries, after a pause.

        Raises:
            Unreachable: nothing can be reached.
            Rerouted: another endpoint has become the one to ask.
        """
        if not self._reach.is_doubtful():
            return await self._attempt(life, endpoint, urgent)
        async with self._reach.turn:
            if self._endpoints.pick() is not endpoint:
                raise Rerouted("another endpoint is asked")
            if self._reach.is_doubtful() and not await self.sleep(self._reach.pause_s(endpoint.address)):
                raise Halted("the run is stopping")
            attempt = asyncio.create_task(self._attempt(life, endpoint, urgent, alone=True))
            try:
                if self._reach.is_doubtful():
                    await asyncio.wait([attempt], timeout=_CONNECT_S)
            except asyncio.CancelledError:
                attempt.cancel()
                await asyncio.gather(attempt, return_exceptions=True)
                raise
        return await attempt

    async def _attempt(self, life: _InFlight, endpoint: Endpoint, urgent: bool, *, alone: bool = False) -> _Charged:
        """One try: wait for permission, reserve, send, settle."""
        size = len(life.request.prompt.text)
        self._refuse_early(life, endpoint)
        async with endpoint.limiter.ticket(size, life.output_tokens, urgent=urgent) as ticket:
            reservation = await self._reserve(life, endpoint, ticket)
            if self._halted.is_set() or self._stop.is_set():
                self._settle(reservation, Decimal(0))
                raise Halted("the run is stopping")
            life.attempts += 1
            life.began = life.began or time.monotonic()
            self.counts.sent += 1
            self.in_flight += 1
            try:
                answers = await self._send(life, endpoint)
            except BaseException as error:
                billed = may_have_been_billed(error)
                self._settle(reservation, None if billed else Decimal(0))
                if billed:
                    life.possibly_billed += reservation.usd
                self._note(endpoint, ticket, error)
                tries = 1 + alone * self._reach.tries(endpoint.address)
                self._reach.note(endpoint.address, error, tries=tries)
                raise
            finally:
                self.in_flight -= 1
            self._reach.note(endpoint.address, None)
            usage = sum((answer.usage for answer in answers), Usage())
            try:
                usd = self._pay(reservation, endpoint, answers, usage)
            except Exception:  # a paid answer is never lost over its price or a full disk
                logger.exception(
                    "%s: the answer is kept, its price is not known: %s", life.request.instance_id, usage
                )
                usd = [None] * len(answers)
            if "usage_estimated" not in answers[0].details and life.sure:
                self.bounds.learn(endpoint, usage, life.sure, life.used)
            endpoint.limiter.answered(ticket, answers[0].rate_limits, usage)
            self._endpoints.up(endpoint)
            return _Charged(answers, endpoint, usd)

    def _pay(
        self, reservation: Reservation, endpoint: Endpoint, answers: Sequence[Answer], usage: Usage
    ) -> Sequence[Decimal | None]:
        """Settle at the price of the whole, and part it among the answers. If it cannot be computed, the reservation
        stays, for its full worth."""
        tariff = endpoint.tariff
        if tariff is None:
            return [None] * len(answers)
        usd = tariff.price(usage)
        self._settle(reservation, usd)
        others = [tariff.price(answer.usage) for answer in answers[1:]]
        return [usd - sum(others, Decimal(0)), *others]

    def _settle(self, reservation: Reservation, usd: Decimal | None) -> None:
        """Settle, if the ledger can be written. Where it cannot, the reservation stays, and holding the next one is
        what stops the run: an answer and its price are not lost over it."""
        try:
            self._purse.settle(reservation, usd)
        except StoreError as error:
            if not self._unsettled:
                logger.log(logging.DEBUG if isinstance(error, Interrupted) else logging.WARNING, "%s", error)
            self._unsettled = True

    async def _send(self, life: _InFlight, endpoint: Endpoint) -> Sequence[Answer]:
        timeout_s = self._retry.attempt_timeout_s(life.request.decoding.max_new_tokens, endpoint.provider.timeout_s)
        try:
            async with asyncio.timeout(timeout_s + _GRACE_S):  # should a provider fail to keep to it
                if len(life.requests) > 1:
                    answers = await endpoint.provider.complete_samples(
                        life.requests, endpoint.model, timeout_s=timeout_s, cache_prompt=life.cache_prompt
                    )
                    if not answers:
                        raise TransientError("an answer without a choice", status=200)
                    return answers
                return [
                    await endpoint.provider.complete(
                        life.request, endpoint.model, timeout_s=timeout_s, cache_prompt=life.cache_prompt
                    )
                ]
        except TimeoutError as error:
            raise TransientError(f"no answer within {timeout_s:.0f} s") from error

    def _note(self, endpoint: Endpoint, ticket: Permit, error: BaseException) -> None:
        if isinstance(error, RateLimited):
            self.counts.refused += 1
            endpoint.limiter.refused(ticket, error, self._retry.max_retry_after_s)

    # Money before a request.

    def _refuse_early(self, life: _InFlight, endpoint: Endpoint) -> None:
        """Spend neither permission to send nor a count on a request that cannot fit any more.

        Raises:
            BudgetExceeded: it cannot.
        """
        if endpoint.tariff is None:
            return
        life.sure = self.bounds.sure(life.request, endpoint)
        usd = self._price(life, endpoint, life.sure)
        if self._purse.never(usd):
            least = self.bounds.least(endpoint, life.sure)
            if self._purse.never(self._price(life, endpoint, least)):
                raise self._too_dear(life, endpoint, usd)

    async def _reserve(self, life: _InFlight, endpoint: Endpoint, ticket: Permit) -> Reservation:
        """Hold the worst case of one attempt.

        Raises:
            BudgetExceeded: it does not fit, and the ticket counts as not used.
            Halted: the run is stopping.
        """
        if endpoint.tariff is None:
            return await self._purse.reserve(Decimal(0))
        life.used = life.sure

        async def tighter() -> Decimal:
            life.used = await self._unless_halted(self.bounds.tight(life.request, endpoint, life.sure))
            return self._price(life, endpoint, life.used)

        usd = self._price(life, endpoint, life.sure)
        try:
            can_be = self.bounds.can_be_tighter(endpoint)
            return await self._purse.reserve(usd, tighter if can_be else None)
        except BudgetExceeded as error:
            endpoint.limiter.unused(ticket)
            raise self._too_dear(life, endpoint, error.usd) from None

    def _price(self, life: _InFlight, endpoint: Endpoint, tokens: int) -> Decimal:
        """The most that ``life`` can cost with a prompt of so many tokens."""
        assert endpoint.tariff is not None
        return worst_case(endpoint.tariff, tokens, life.output_tokens, cache_write=life.cache_prompt)

    def _too_dear(self, life: _InFlight, endpoint: Endpoint, usd: Decimal) -> BudgetExceeded:
        assert endpoint.tariff is not None
        shortest = worst_case(endpoint.tariff, 1, life.request.decoding.max_new_tokens, cache_write=False)
        return self._purse.why_not(usd, nothing_fits=self._purse.never(shortest))

    async def why_not(self, request: Request) -> BudgetExceeded:
        """Why a request does not fit, by its tightest bound."""
        life, endpoint = _InFlight([request], cache_prompt=False), self._endpoints.pick()
        life.sure = self.bounds.sure(request, endpoint)
        return self._too_dear(
            life, endpoint, self._price(life, endpoint, await self.bounds.tight(request, endpoint, life.sure))
        )

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

    def _completions(self, life: _InFlight, paid: _Charged) -> list[Completion]:
        parts = zip(life.requests, paid.answers, paid.usd, strict=False)  # the last answers may be missing
        return [self._completion(life, paid.endpoint, request, answer, usd) for request, answer, usd in parts]

    def _completion(
        self, life: _InFlight, endpoint: Endpoint, request: Request, answer: Answer, usd: Decimal | None
    ) -> Completion:
        details = _details(answer, endpoint)
        if len(life.requests) > 1:
            details["samples_in_request"] = len(life.requests)
        if life.possibly_billed:
            details["possibly_billed_usd"] = str(life.possibly_billed)
        self.keep(request, answer, endpoint)
        self.counts.usage += answer.usage
        return Completion(
            text=answer.text,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            cost_usd=usd,
            latency_s=life.elapsed_s,
            attempts=life.attempts,
            details=details,
        )

    async def sleep(self, seconds: float) -> bool:
        """Sleep; False if the run was halted meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._halted.wait()
        except TimeoutError:
            return True
        return False


def _details(answer: Answer, endpoint: Endpoint) -> dict[str, Any]:
    details: dict[str, Any] = {
        **answer.details,
        "provider": endpoint.provider.name,
        "model": answer.model,
        "request_id": answer.request_id,
    }
    if answer.time_to_first_token_s is not None:
        details["time_to_first_token_s"] = round(answer.time_to_first_token_s, 4)
    return details
