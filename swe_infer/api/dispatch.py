"""Sends many requests through one chain. Requests are read lazily, samples of a prompt are ordered for the provider's
prompt cache, outcomes are reported at once, and every run ends the same way.

The event loop stays responsive under a thousand requests: little garbage collection, little work per turn.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import selectors
import threading
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

from swe_infer.api.chain import Chain
from swe_infer.api.prompt_cache import PromptCacheIndex
from swe_infer.errors import BudgetExceeded, ProviderFatal, SweInferError
from swe_infer.types import Completion, Failure, OnOutcome, Outcome, Request, Skip

logger = logging.getLogger(__name__)

T = TypeVar("T")

PromptCaching = Literal["auto", "always", "never"]

_WATCH_S = 0.05
_ASK_AGAIN_S = 0.2
_MAX_CAPACITY = 1 << 12
"""Requests in memory at once, at most."""
_GROUP_SIZE = 1 << 10
"""Samples of a prompt in one group; a multiple of what a provider accepts in one request."""
_MAX_BUGS = 5
"""A run stops after this many consecutive unexpected exceptions."""
_COLLECT_AFTER = (20_000, 5, 100)
"""For :func:`gc.set_threshold`: few objects outlive a young collection, and a full one comes after ten million."""
_EVENTS_AT_ONCE = 8
_TURNS_BETWEEN = 4
"""Turns of the event loop from an answer until the request that waited for its place is sent."""


class Dispatcher:
    """Sends requests through ``chain``.

    Args:
        capacity: how many requests may be in memory at once.
        prompt_caching: see :class:`swe_infer.runners.api.ApiRunner`.
        prompt_cache: shared by concurrent runs; None: this run is the only one.
        over_budget: collects the instances of which no sample fits under a cap.
    """

    def __init__(
        self,
        chain: Chain,
        capacity: int,
        prompt_caching: PromptCaching,
        prompt_cache: PromptCacheIndex | None = None,
        over_budget: set[str] | None = None,
    ) -> None:
        self._chain = chain
        self._capacity = max(1, min(capacity, _MAX_CAPACITY))
        self._prompt_caching = prompt_caching
        self._prompt_cache = prompt_cache
        self._over_budget: set[str] = set() if over_budget is None else over_budget
        self._in_memory = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._error: BaseException | None = None
        self._refused: tuple[Request, BudgetExceeded] | None = None
        """The request with the shortest prompt among those that do not fit under a cap."""
        self._halted = False
        self._bugs = 0
        self._stop = threading.Event()

    async def dispatch(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answers all requests. One that does not fit under a cap is skipped without an outcome, because a later one
        may be smaller.

        Raises:
            BudgetExceeded: a request was skipped, and all others that fit have outcomes.
            ProviderFatal: no request can succeed; requests in flight have outcomes.
            SweInferError: too many consecutive unexpected exceptions.
            Exception: ``requests`` or ``on_outcome`` raised it.
        """
        self._stop = stop
        self._chain.stop_on(stop)
        watcher = asyncio.create_task(self._watch(stop))
        try:
            await self._read(requests, on_outcome)
            while self._tasks:
                await asyncio.wait(self._tasks)
            if self._error is None and self._refused is not None and not stop.is_set():
                self._error = await self._explain_refusal(*self._refused)
        finally:
            watcher.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(watcher, *self._tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _read(self, requests: Iterable[Request], on_outcome: OnOutcome) -> None:
        # Samples of a prompt stay together, so that they find it in the provider's cache.
        groups = by_prompt(requests, -(-self._capacity // _GROUP_SIZE) * _GROUP_SIZE)
        while not self._is_over:
            while self._in_memory >= self._capacity and not self._halted:
                self._freed.clear()
                await self._freed.wait()
            try:
                group = next(groups, None)
            except Exception as error:  # noqa: BLE001 - raised again after the requests in flight
                self._halt(error)
                return
            if group is None or self._is_over:
                return
            if group[0].instance_id in self._over_budget:
                continue
            self._in_memory += len(group)
            task = asyncio.create_task(self._group(group, on_outcome))
            self._tasks.add(task)
            task.add_done_callback(self._task_done)
            await asyncio.sleep(0)  # it is sent before the next one is read

    async def _group(self, group: list[Request], on_outcome: OnOutcome) -> None:
        try:
            missing = [request for request in group if not self._from_response_cache(request, on_outcome)]
            if missing:
                await self._answer_samples(missing, on_outcome)
        finally:
            self._in_memory -= len(group)

    async def _answer_samples(self, missing: list[Request], on_outcome: OnOutcome) -> None:
        """Answers the missing samples of one prompt, or conversations that begin with it."""
        # Several samples in one request are cheaper than a cache: the prompt is charged once.
        one_prompt = len(missing) > 1 and not missing[0].turn  # conversations differ after their first prompt
        most = self._chain.max_samples(missing[0]) if one_prompt else 1
        cached = (most == 1 or self._prompt_caching == "always") and self._caches(missing[0], len(missing))
        followers = cached and await self._must_lead(missing)
        if followers:
            missing, fits = await self._lead(missing, most, on_outcome)
            if not fits:
                cached = followers = False
        while most > 1 and missing and not self._halted:
            outcomes = await self._complete(missing[:most], on_outcome, cache_prompt=cached, urgent=followers)
            if outcomes:
                missing = missing[len(outcomes) :]
                most = min(most, self._chain.max_samples(missing[0])) if missing else most
            else:
                most = min(most, len(missing)) // 2  # fewer samples may fit under the cap
        if most == 0 or not missing or self._halted:
            return
        if len(missing) == 1:  # in this task: a thousand additional tasks would slow the event loop
            await self._complete(missing, on_outcome, cache_prompt=cached, urgent=followers)
            return
        await asyncio.gather(
            *(self._complete([r], on_outcome, cache_prompt=cached, urgent=followers) for r in missing)
        )

    async def _must_lead(self, missing: list[Request]) -> bool:
        """Whether one request of this run must go first, so that the provider caches the prompt. Waits while another
        run's request does so."""
        if self._prompt_cache is None:
            return len(missing) > 1
        while not self._halted:
            claim = self._prompt_cache.claim(self._chain.prompt_key(missing[0]))
            if claim != "wait":
                return claim == "lead"
            await self._chain.sleep(_ASK_AGAIN_S)
        return False

    async def _lead(self, missing: list[Request], most: int, on_outcome: OnOutcome) -> tuple[list[Request], bool]:
        """Sends one request at a time until one is answered.

        Returns the remaining samples, and False if the leading request does not fit under a cap.
        """
        key, cached, led = self._chain.prompt_key(missing[0]), False, False
        try:
            while missing and not cached and not self._halted:
                outcomes = await self._complete(missing[:most], on_outcome, cache_prompt=True, urgent=led)
                led, missing = True, missing[len(outcomes) :]
                if not outcomes:
                    return missing, False
                if isinstance(outcomes[0], Skip) and not (missing and missing[0].turn):
                    for request in missing:
                        self._report(request, outcomes[0], on_outcome)
                    return [], True
                cached = isinstance(outcomes[0], Completion)
        finally:
            if self._prompt_cache is not None:
                self._prompt_cache.release(key, cached=cached)
        return missing, True

    def _caches(self, request: Request, samples: int) -> bool:
        """Whether the provider should cache a prompt for this number of samples."""
        if self._prompt_caching == "never" or (samples == 1 and self._prompt_caching == "auto"):
            return False
        return self._chain.caching_pays(request, max(samples, 2))

    def _from_response_cache(self, request: Request, on_outcome: OnOutcome) -> bool:
        hit = self._chain.cached_completion(request)
        if hit is not None:
            self._report(request, hit, on_outcome)
        return hit is not None

    async def _complete(
        self, requests: list[Request], on_outcome: OnOutcome, *, cache_prompt: bool, urgent: bool
    ) -> Sequence[Outcome]:
        """Sends requests and reports the outcomes. Returns the outcomes of the leading requests."""
        outcomes: Sequence[Outcome] = []
        if requests[0].instance_id in self._over_budget:
            return outcomes
        try:
            outcomes = await self._chain.complete(requests, cache_prompt=cache_prompt, urgent=urgent)
        except BudgetExceeded as error:
            if cache_prompt and not error.nothing_fits:  # without the cache-write price it may fit
                return await self._complete(requests, on_outcome, cache_prompt=False, urgent=urgent)
            last = len(requests) == 1 or error.nothing_fits  # several samples are retried as fewer
            if last:
                self._over_budget.add(requests[0].instance_id)
            if last and (self._refused is None or _size(requests[0]) < _size(self._refused[0])):
                self._refused = (requests[0], error)
            if last and (failed := self._chain.failure_of(requests[0])) is not None:
                outcomes = [failed]
            if error.nothing_fits:
                self._halt(None)
        except SweInferError as error:
            if (failed := self._chain.failure_of(requests[0])) is not None:
                outcomes = [failed]
            self._halt(error)
        except Exception as error:
            logger.exception("%s, sample %d: unexpected error", *requests[0].key)
            failure = Failure(type(error).__name__, " ".join(str(error).split())[:500])
            outcomes = [failure] * len(requests)
            if (failed := self._chain.failure_of(requests[0])) is not None:
                outcomes[0] = replace(failure, details=failed.details)
            self._bugs += 1
            if self._bugs >= _MAX_BUGS:
                self._halt(
                    SweInferError(
                        f"stopped after {self._bugs} consecutive unexpected errors, the last one "
                        f"{failure.error_type}: {failure.message}"
                    )
                )
        else:
            if any(isinstance(outcome, Completion) for outcome in outcomes):
                self._bugs = 0
        for request, outcome in zip(requests, outcomes, strict=False):
            self._report(request, outcome, on_outcome)
        return outcomes

    async def _explain_refusal(self, request: Request, error: BudgetExceeded) -> BudgetExceeded:
        """``error`` with the tightest bound, or as it is if the run is stopped first."""
        finding = asyncio.create_task(self._chain.explain_refusal(request))
        try:
            while not finding.done() and not self._stop.is_set():
                await asyncio.wait([finding], timeout=_WATCH_S)
            return finding.result() if finding.done() else error
        finally:
            finding.cancel()

    def _report(self, request: Request, outcome: Outcome, on_outcome: OnOutcome) -> None:
        try:
            on_outcome(request, self._chain.with_earlier_bills(outcome))
        except Exception as error:  # noqa: BLE001 - raised again after the requests in flight
            self._halt(error)
        if self._stop.is_set():  # the callback may have stopped the run: send nothing more
            self._halt(None)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._halt(error)
        self._freed.set()

    @property
    def _is_over(self) -> bool:
        """Whether to start nothing new. A signal handler may set the event at any time."""
        return self._halted or self._stop.is_set()

    def _halt(self, error: BaseException | None) -> None:
        """Starts nothing new. The first error is kept, unless a later one is fatal."""
        if error is not None and (self._error is None or (_fatal(error) and not _fatal(self._error))):
            self._error = error
        self._halted = True
        self._freed.set()
        self._chain.halt()

    async def _watch(self, stop: threading.Event) -> None:
        while not stop.is_set():  # noqa: ASYNC110 - set from other threads and signal handlers
            await asyncio.sleep(_WATCH_S)
        self._halt(None)


def _size(request: Request) -> int:
    return request.prompt.characters


def _fatal(error: BaseException) -> bool:
    return isinstance(error, ProviderFatal)


def by_prompt(requests: Iterable[Request], most: int | None = None) -> Iterator[list[Request]]:
    """Groups consecutive requests for samples of the same prompt, or for the same turn of conversations that begin
    with it, at most ``most`` per list."""
    for _, group in itertools.groupby(
        requests, key=lambda request: (request.instance_id, request.decoding, request.turn)
    ):
        while part := list(itertools.islice(group, most)):
            yield part


def run_fairly(main: Coroutine[Any, Any, T]) -> T:
    """As :func:`asyncio.run`, but timers run between answers that arrive together."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_FairSelector())) as runner:
        return runner.run(main)


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Makes full garbage collections rare, because each blocks the event loop.

    Existing objects are frozen. Objects of a request are freed by reference counting, except those in reference
    cycles of exceptions, which young collections free.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class _FairSelector(selectors.DefaultSelector):
    """Reports few ready files at once, in turn; the others are still ready at a later call.

    After a pause of the process, hundreds of answers may be ready, and handling them in one turn would delay timers.
    The requests that wait for the places of some answers are sent before further answers are read.
    """

    _passed = _first = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout == 0 and self._passed < _TURNS_BETWEEN:  # callbacks are waiting
            self._passed += 1
            return []
        self._passed = 0
        ready = super().select(timeout)
        if len(ready) <= _EVENTS_AT_ONCE:
            return ready
        # Those that are always ready, such as large downloads, are reported first by the system every time.
        self._first = (self._first + _EVENTS_AT_ONCE) % len(ready)
        return (ready[self._first :] + ready[: self._first])[:_EVENTS_AT_ONCE]
