"""Many requests through one chain: read lazily, the samples of a prompt in the order that its cache wants, every
outcome handed over the moment it exists, and one orderly end whatever the cause.

The event loop stays on time under a thousand requests: little garbage collection, little work in one turn.
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
from typing import Any, Literal

from swe_infer.api.chain import Chain
from swe_infer.api.prompt_cache import PromptCacheIndex
from swe_infer.errors import BudgetExceeded, ProviderFatal, SweInferError
from swe_infer.types import Completion, Failure, OnOutcome, Outcome, Request, Skip

logger = logging.getLogger(__name__)

PromptCaching = Literal["auto", "always", "never"]

_WATCH_S = 0.05
_ASK_AGAIN_S = 0.2
_MOST_ROOM = 1 << 12
"""Requests in memory at once, however many a provider may be sent."""
_TOGETHER = 1 << 10
"""Samples of a prompt that are handled together, at least; a multiple of what a provider takes in one request."""
_BUGS = 5
"""So many unforeseen exceptions with no answer between them stop a run before it pays for more of them."""
_COLLECT_AFTER = (2_000, 5, 1_000)
"""Thresholds of :func:`gc.set_threshold`: few objects at a time, and all of them after ten million new ones."""
_EVENTS_IN_A_TURN = 8


class Dispatcher:
    """Runs requests through ``chain``.

    Args:
        room: how many requests may be in memory at once.
        prompt_caching: see :class:`swe_infer.runners.api.ApiRunner`.
        warm: the prompts that runs at the same time share; None: this one is by itself.
        passed_over: takes the instances of which no sample fits under a cap any more.
    """

    def __init__(
        self,
        chain: Chain,
        room: int,
        prompt_caching: PromptCaching,
        warm: PromptCacheIndex | None = None,
        passed_over: set[str] | None = None,
    ) -> None:
        self._chain = chain
        self._room = max(1, min(room, _MOST_ROOM))
        self._prompt_caching = prompt_caching
        self._warm = warm
        self._passed_over: set[str] = set() if passed_over is None else passed_over
        self._alive = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._error: BaseException | None = None
        self._refused: tuple[Request, BudgetExceeded] | None = None
        """Of the requests that no cap has room for, the one with the shortest prompt."""
        self._halted = False
        self._bugs = 0
        self._stop = threading.Event()

    async def run(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answer all requests, or as many as can be. One that does not fit under a cap is passed over, and has no
        outcome: a later one may be smaller.

        Raises:
            BudgetExceeded: a request was passed over, and every other one that fits has its outcome.
            ProviderFatal: after what was in flight has settled and was handed over.
            SweInferError: unforeseen exceptions came one after the other.
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
                self._error = await self._why_not(*self._refused)
        finally:
            watcher.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(watcher, *self._tasks, return_exceptions=True)
        if self._error is not None:
            raise self._error

    async def _read(self, requests: Iterable[Request], on_outcome: OnOutcome) -> None:
        # As many as there is room for, so that the next samples of a prompt find it in the provider's cache.
        groups = by_prompt(requests, -(-self._room // _TOGETHER) * _TOGETHER)
        while not self._over:
            while self._alive >= self._room and not self._halted:
                self._freed.clear()
                await self._freed.wait()
            try:
                group = next(groups, None)
            except Exception as error:  # noqa: BLE001 - raised again once what is in flight was handed over
                self._halt(error)
                return
            if group is None or self._over:
                return
            if group[0].instance_id in self._passed_over:
                continue
            self._alive += len(group)
            task = asyncio.create_task(self._group(group, on_outcome))
            self._tasks.add(task)
            task.add_done_callback(self._done)
            await asyncio.sleep(0)  # let it be sent before the next one is read

    async def _group(self, group: list[Request], on_outcome: OnOutcome) -> None:
        try:
            missing = [request for request in group if not self._from_cache(request, on_outcome)]
            if missing:
                await self._samples(missing, on_outcome)
        finally:
            self._alive -= len(group)

    async def _samples(self, missing: list[Request], on_outcome: OnOutcome) -> None:
        """The wanted samples of one prompt."""
        # Several in one request are cheaper than any cache: the prompt is paid for once.
        most = self._chain.most_samples(missing[0]) if len(missing) > 1 else 1
        cached = (most == 1 or self._prompt_caching == "always") and self._caches(missing[0], len(missing))
        followers = cached and await self._goes_ahead(missing)
        if followers:
            missing, fits = await self._lead(missing, most, on_outcome)
            if not fits:
                cached = followers = False
        while most > 1 and missing and not self._halted:
            outcomes = await self._some(missing[:most], on_outcome, cache_prompt=cached, urgent=followers)
            if outcomes:
                missing = missing[len(outcomes) :]
            else:
                most = min(most, len(missing)) // 2  # fewer samples cost less, and may fit under the cap
        if most == 0 or not missing or self._halted:
            return
        if len(missing) == 1:  # no task beside this one: a thousand of them are a load by themselves
            await self._some(missing, on_outcome, cache_prompt=cached, urgent=followers)
            return
        await asyncio.gather(*(self._some([r], on_outcome, cache_prompt=cached, urgent=followers) for r in missing))

    async def _goes_ahead(self, missing: list[Request]) -> bool:
        """Whether one request of this run has to put the prompt into the provider's cache before others read it.
        Waits while another run's request is about to."""
        if self._warm is None:
            return len(missing) > 1
        while not self._halted:
            verdict = self._warm.claim(self._chain.prompt_key(missing[0]))
            if verdict is not None:
                return verdict
            await self._chain.sleep(_ASK_AGAIN_S)
        return False

    async def _lead(self, missing: list[Request], most: int, on_outcome: OnOutcome) -> tuple[list[Request], bool]:
        """Send one request after the other until one is answered.

        Returns the samples that may follow, and False where those that were to go ahead fit under no cap.
        """
        key, warm, led = self._chain.prompt_key(missing[0]), False, False
        try:
            while missing and not warm and not self._halted:
                outcomes = await self._some(missing[:most], on_outcome, cache_prompt=True, urgent=led)
                led, missing = True, missing[len(outcomes) :]
                if not outcomes:
                    return missing, False
                if isinstance(outcomes[0], Skip):
                    for request in missing:
                        self._hand_over(request, outcomes[0], on_outcome)
                    return [], True
                warm = isinstance(outcomes[0], Completion)
        finally:
            if self._warm is not None:
                self._warm.done(key, warm=warm)
        return missing, True

    def _caches(self, request: Request, samples: int) -> bool:
        """Whether the provider should cache a prompt that so many samples share."""
        if self._prompt_caching == "never" or (samples == 1 and self._prompt_caching == "auto"):
            return False
        return self._chain.caching_pays(request, max(samples, 2))

    def _from_cache(self, request: Request, on_outcome: OnOutcome) -> bool:
        hit = self._chain.cached(request)
        if hit is not None:
            self._hand_over(request, hit, on_outcome)
        return hit is not None

    async def _some(
        self, requests: list[Request], on_outcome: OnOutcome, *, cache_prompt: bool, urgent: bool
    ) -> Sequence[Outcome]:
        """Ask, and hand over what comes of it: the outcomes of the leading requests."""
        outcomes: Sequence[Outcome] = []
        if requests[0].instance_id in self._passed_over:
            return outcomes
        try:
            outcomes = await self._chain.ask(requests, cache_prompt=cache_prompt, urgent=urgent)
        except BudgetExceeded as error:
            if cache_prompt and not error.nothing_fits:  # without the price of writing to the cache it may fit
                return await self._some(requests, on_outcome, cache_prompt=False, urgent=urgent)
            last = len(requests) == 1 or error.nothing_fits  # several samples are tried again as fewer
            if last:
                self._passed_over.add(requests[0].instance_id)
            if last and (self._refused is None or _size(requests[0]) < _size(self._refused[0])):
                self._refused = (requests[0], error)
            if error.nothing_fits:
                self._halt(None)
        except SweInferError as error:
            self._halt(error)
        except Exception as error:
            logger.exception("%s, sample %d: an unforeseen error", *requests[0].key)
            failure = Failure(type(error).__name__, " ".join(str(error).split())[:500])
            outcomes = [failure] * len(requests)
            self._bugs += 1
            if self._bugs >= _BUGS:
                self._halt(
                    SweInferError(
                        f"stopped after {self._bugs} unforeseen errors with no answer between them, the last one "
                        f"{failure.error_type}: {failure.message}"
                    )
                )
        else:
            if any(isinstance(outcome, Completion) for outcome in outcomes):
                self._bugs = 0
        for request, outcome in zip(requests, outcomes, strict=False):
            self._hand_over(request, outcome, on_outcome)
        return outcomes

    async def _why_not(self, request: Request, error: BudgetExceeded) -> BudgetExceeded:
        """``error`` as of now, by the tightest bound where that can be had before the run is stopped."""
        finding = asyncio.create_task(self._chain.why_not(request))
        try:
            while not finding.done() and not self._stop.is_set():
                await asyncio.wait([finding], timeout=_WATCH_S)
            return finding.result() if finding.done() else error
        finally:
            finding.cancel()

    def _hand_over(self, request: Request, outcome: Outcome, on_outcome: OnOutcome) -> None:
        try:
            on_outcome(request, outcome)
        except Exception as error:  # noqa: BLE001 - raised again once what is in flight was handed over
            self._halt(error)
        if self._stop.is_set():  # whoever took the outcome can take no more: not one request until the next look
            self._halt(None)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._halt(error)
        self._freed.set()

    @property
    def _over(self) -> bool:
        """Whether nothing new is to be begun. The signal's handler sets the event, between any two steps."""
        return self._halted or self._stop.is_set()

    def _halt(self, error: BaseException | None) -> None:
        """Start nothing new. The first error stands, but a provider's word that nothing can succeed says more."""
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
    return len(request.prompt.text)


def _fatal(error: BaseException) -> bool:
    return isinstance(error, ProviderFatal)


def by_prompt(requests: Iterable[Request], most: int | None = None) -> Iterator[list[Request]]:
    """Neighbours that ask for samples of the same prompt, at most ``most`` of them in one list."""
    for _, group in itertools.groupby(requests, key=lambda request: (request.instance_id, request.decoding)):
        while part := list(itertools.islice(group, most)):
            yield part


def run_fairly(main: Coroutine[Any, Any, None]) -> None:
    """As :func:`asyncio.run`. Where many answers have come at once, timers get their turn between them."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(_FairSelector())) as runner:
        runner.run(main)


@contextmanager
def relaxed_gc() -> Iterator[None]:
    """Keep the garbage collector from going through everything while answers wait.

    A full collection holds the event loop for a quarter of a second where a thousand requests are in flight, and came
    every few hundred answers. What was imported and made so far is taken out of its sight. What a request makes is
    freed by its reference counts, but for what hangs on an error: that dies young.
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
    """Tells of few files at a time. What is left out is still ready at the next look, and ahead of what comes later.

    A process that was given no processor for a while finds hundreds of answers; in one turn of the loop they would
    keep it from its timers for a second.
    """

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(timeout)[:_EVENTS_IN_A_TURN]
