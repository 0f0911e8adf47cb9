"""The life of a run whose answers come through a provider's batches: at half the price, within a day, in any order.

A batch is written down before it is handed in and named by a label that the provider gives back, so that a kill at
any point, also between submission and its answer, loses nothing and submits nothing twice: a batch whose id is not
known is looked for by its label before its requests are handed in again. What expires, breaks or is left out goes
into a later batch.

Where the provider's list or a batch's results cannot be had, the batch stays open and its requests are not handed in
again, as they may be paid for. All others are collected first, and the run ends with a message that says so.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from swe_infer.api.batch_journal import Batch, Item, Journal
from swe_infer.api.budget import CostBudget
from swe_infer.api.counting import InputBounds
from swe_infer.api.dispatch import by_prompt
from swe_infer.api.endpoints import Endpoint
from swe_infer.api.pricing import worst_case
from swe_infer.api.reachability import Reachability, Unreachable
from swe_infer.api.retry import Retry, never_connected
from swe_infer.errors import (
    AnswerTooLarge,
    AuthenticationFailed,
    ConfigError,
    ContextOverflow,
    ProviderFatal,
    QuotaExhausted,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.options import Option
from swe_infer.prompt_format import PromptFiles
from swe_infer.providers.base import Answer, BatchProvider, BatchStatus
from swe_infer.providers.wire import estimated_tokens
from swe_infer.types import ApiModel, Completion, Decoding, Failure, OnOutcome, Outcome, Prompt, Request, Skip, Usage

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MEMORY_BYTES = 64_000_000
"""A batch is in memory, twice, while it is handed in."""

_COUNTS_AT_ONCE = 8
_READ_TOGETHER = 1 << 10
"""Samples of a prompt that are read at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How batches are made and followed."""

    max_requests: Annotated[
        int | None, Option("Requests in one batch, at most; null: as many as the provider takes.", "speed")
    ] = None
    first_poll_s: Annotated[
        float, Option("Seconds until a batch is first polled; each further wait is half as long again.", "speed")
    ] = 5.0
    max_poll_s: Annotated[float, Option("Upper bound of the seconds between two polls.", "speed")] = 60.0
    settle_s: Annotated[
        float, Option("A batch that is not in the provider's list after this many seconds was not taken.", "speed")
    ] = 20.0

    unknown: Annotated[
        Literal["wait", "again"],
        Option(
            "Where a batch's fate cannot be learnt: wait for another try, or hand in its requests again.", "speed"
        ),
    ] = "wait"

    def __post_init__(self) -> None:
        if self.max_requests is not None and self.max_requests < 1:
            raise ConfigError(f"runner.batches.max_requests={self.max_requests}: must be at least 1")
        for key in ("first_poll_s", "max_poll_s", "settle_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"runner.batches.{key}={getattr(self, key)}: must be a finite number above 0")


class _Unanswered(Exception):
    """The provider does not tell what became of a batch. The message is its error."""


class Batches:
    """Runs requests through a provider's batches.

    Args:
        endpoint: where ``provider`` is asked; its tariff are the prices in a batch.
        bounds: of prompts' tokens.
        journal: of the run directory.
        decoding: of every request of the run.
        passed_over: takes the instances of which no sample fits under a cap any more.
        is_recorded: whether an answer is in the run's records. An open batch may hold requests that this command does
            not ask for; their answers are kept all the same. None: such answers are passed over.
    """

    def __init__(
        self,
        provider: BatchProvider,
        model: ApiModel,
        decoding: Decoding,
        endpoint: Endpoint,
        purse: CostBudget,
        bounds: InputBounds,
        retry: Retry,
        settings: BatchSettings,
        journal: Journal,
        cached: Callable[[Request], Completion | None],
        keep: Callable[[Request, Answer], None],
        passed_over: set[str],
        is_recorded: Callable[[tuple[str, int]], bool] | None = None,
    ) -> None:
        self._provider = provider
        self._model = model
        self._decoding = decoding
        self._endpoint = endpoint
        self._tariff = endpoint.tariff
        self._purse = purse
        self._bounds = bounds
        self._retry = retry
        self._settings = settings
        self._journal = journal
        self._cached = cached
        self._keep = keep
        self._passed_over = passed_over
        self._is_recorded = is_recorded
        self._wanted: set[tuple[str, int]] = set()
        self._asked: set[tuple[str, int]] = set()
        """What was read of the requests and has no outcome yet."""
        self._in_batches: set[tuple[str, int]] = set()
        """What batches of an earlier process hold, and was not read yet."""
        self._source: Iterator[list[Request]] = iter(())
        self._prompt: tuple[Prompt, int] | None = None
        self._read: tuple[int, Prompt, PromptFiles] | None = None
        self._reach = Reachability([provider.address])
        self._pending: deque[Item] = deque()
        self._unanswered: dict[str, str] = {}
        """By label, why it is not known what became of a batch."""
        self._shortest_refused: tuple[int, Item] | None = None
        """Of the requests that no cap has room for, the one with the shortest prompt, in bytes."""
        self._stop = threading.Event()
        self.submitted = 0
        self.usage = Usage()

    @property
    def open(self) -> int:
        """Batches at the provider."""
        return len(self._journal.open)

    async def run(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answer all requests; see :class:`swe_infer.runners.base.Runner`. One that does not fit under a cap is
        passed over, and has no outcome.

        Once ``stop`` is set it returns at once: batches go on at the provider, and the same command collects them.
        """
        self._stop = stop
        self._source = by_prompt(requests, _READ_TOGETHER)
        self._in_batches = {item.key for batch in self._journal.open.values() for item in batch.items.values()}
        if self._is_recorded is not None:
            self._wanted = {key for key in self._in_batches if not self._is_recorded(key)}
        self._purse.keep_batches(self._journal.open)
        watcher = asyncio.create_task(self._watch())
        following = {asyncio.create_task(self._follow(batch, on_outcome)) for batch in self._journal.open.values()}
        try:
            await self._until_done(following, watcher, on_outcome)
        finally:
            for task in (watcher, *following):
                task.cancel()
            await asyncio.gather(watcher, *following, return_exceptions=True)
        if self._unanswered and not stop.is_set():
            raise self._left_open()
        if self._shortest_refused is not None and not stop.is_set():
            sure, item = self._shortest_refused
            tokens = await self._bounds.tight(self._request(item), self._endpoint, sure)
            raise self._purse.why_not(self._price(tokens))
        if self._journal.open:
            logger.info("%d batches go on at the provider; the same command collects them", self.open)

    async def _until_done(
        self, following: set[asyncio.Task[None]], stopped: asyncio.Task[None], on_outcome: OnOutcome
    ) -> None:
        """Hand in what is pending and follow what is handed in, until nothing is left or the run is stopped, of which
        ``stopped`` tells by its end."""
        submitting: asyncio.Task[bool] | None = None
        has_room = True
        try:
            while (self._more(on_outcome) or following or submitting) and not self._stop.is_set():
                if self._pending and submitting is None and (has_room or not following):
                    submitting = asyncio.create_task(self._submit_pending(following, on_outcome))
                waiting: set[asyncio.Task[Any]] = {*following, stopped, *({submitting} if submitting else ())}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in done & following:
                    following.discard(task)
                    has_room = True
                    task.result()
                if submitting is not None and submitting.done():
                    has_room = submitting.result()
                    submitting = None
        finally:
            if submitting is not None:
                # As safe as a kill: what the provider took of it is found by its label.
                submitting.cancel()
                await asyncio.gather(submitting, return_exceptions=True)

    def _more(self, on_outcome: OnOutcome) -> bool:
        """Whether anything is to be handed in. Reads requests until there is: prompts go to disk, and keys stay in
        memory of what is in batches or goes into the next one."""
        while not self._pending and not self._stop.is_set():
            group = next(self._source, None)
            if group is None:
                break
            for request in group:
                if self._is_recorded is not None and self._is_recorded(request.key):
                    continue  # a batch was collected since the request was made
                if (hit := self._cached(request)) is not None:
                    on_outcome(request, hit)
                    continue
                self._wanted.add(request.key)
                self._asked.add(request.key)
                if request.key in self._in_batches:
                    self._in_batches.discard(request.key)
                else:
                    self._pending.append(Item(request.instance_id, request.sample, self._offset(request.prompt)))
        return bool(self._pending)

    def _offset(self, prompt: Prompt) -> int:
        """Where the journal keeps a prompt; the samples of one come one after the other."""
        if self._prompt is None or self._prompt[0] != prompt:
            self._prompt = (prompt, self._journal.add_prompt(prompt))
        return self._prompt[1]

    def _left_open(self) -> ProviderFatal:
        """The error that says which batches could not be found out about, and what can be done."""
        labels = list(self._unanswered)
        count = sum(len(self._journal.open[label].items) for label in labels)
        return ProviderFatal(
            f"{len(labels)} batches, with {count} requests, may be paid for and cannot be collected ({labels[0]}: "
            f"{self._unanswered[labels[0]]}). Nothing of them is handed in again: the same command looks for them "
            "again; if they were not taken, runner.batches.unknown=again hands their requests in again"
        )

    # Handing in.

    async def _submit_pending(self, following: set[asyncio.Task[None]], on_outcome: OnOutcome) -> bool:
        """Hand in the next batch; False where the caps have no room for it before others settle."""
        if self._stop.is_set():
            return True
        label = f"swe-{secrets.token_hex(6)}"
        chosen, encoded = self._choose(label, on_outcome)
        if not chosen:
            return True
        amounts, tight = await self._amounts(list(chosen.values()))
        held = {list(chosen)[index]: amounts[index] for index in self._purse.reserve_batch(label, amounts)}
        left = self._purse.left()
        waiting: list[Item] = []
        for index, (key, item) in enumerate(chosen.items()):
            if key not in held and left is not None and index in tight and amounts[index] > left.ever:
                self._refuse(item)
            elif key not in held:
                waiting.append(item)
        self._pending.extendleft(reversed(waiting))
        if not held:
            if waiting and not following:  # other processes have to settle
                await asyncio.sleep(self._settings.first_poll_s)
            return not waiting
        batch = Batch(label, time.time(), {key: replace(chosen[key], usd=str(usd)) for key, usd in held.items()})
        self._journal.plan(batch)
        if await self._submit(batch, {key: encoded[key] for key in held}, on_outcome):
            following.add(asyncio.create_task(self._follow(batch, on_outcome)))
        return True

    def _refuse(self, item: Item) -> None:
        """Pass over a request that no cap has room for."""
        self._wanted.discard(item.key)
        self._asked.discard(item.key)
        self._passed_over.add(item.instance_id)
        sure = self._bounds.sure(self._request(item), self._endpoint)
        if self._shortest_refused is None or sure < self._shortest_refused[0]:
            self._shortest_refused = (sure, item)

    async def _amounts(self, items: list[Item]) -> tuple[list[Decimal], set[int]]:
        """The worst case of each request, and which of them no count can make smaller. Where the bounds by bytes do
        not fit under the caps together, tighter ones are asked for, as far as they may be of use: a batch takes
        hours, and what it has no room for takes more."""
        requests = [self._request(item) for item in items]
        sure = [self._bounds.sure(request, self._endpoint) for request in requests]
        amounts = [self._price(tokens) for tokens in sure]
        left = self._purse.left()
        if left is None or not self._bounds.can_be_tighter(self._endpoint):
            return amounts, set(range(len(items)))
        done: set[int] = set()
        if sum(amounts) <= left.now:
            return amounts, done
        total = Decimal(0)
        for start in range(0, len(items), _COUNTS_AT_ONCE):
            part: list[int] = []
            for index in range(start, min(start + _COUNTS_AT_ONCE, len(items))):
                least = self._price(self._bounds.least(self._endpoint, sure[index]))
                if least > left.ever:
                    done.add(index)
                elif least <= left.now - total:
                    part.append(index)
            counts = await asyncio.gather(*(self._bounds.tight(requests[i], self._endpoint, sure[i]) for i in part))
            for index, tokens in zip(part, counts, strict=True):
                amounts[index] = self._price(tokens)
                total += amounts[index] if total + amounts[index] <= left.now else 0
            done.update(part)
        return amounts, done

    def _choose(self, label: str, on_outcome: OnOutcome) -> tuple[dict[str, Item], dict[str, bytes]]:
        """The next requests that one batch may hold, and their wire form, by custom id."""
        most = min(
            self._provider.max_batch_requests, self._settings.max_requests or self._provider.max_batch_requests
        )
        most_bytes = min(self._provider.max_batch_bytes, _MEMORY_BYTES)
        chosen: dict[str, Item] = {}
        encoded: dict[str, bytes] = {}
        size = 0
        while len(chosen) < most and self._more(on_outcome):
            item = self._pending[0]
            request = self._request(item)
            if self._is_too_dear(request):
                self._refuse(self._pending.popleft())
                continue
            key = f"{label}-{len(chosen)}"
            line = self._provider.batch_item(key, request, self._model)
            if chosen and size + len(line) > most_bytes:
                break
            self._pending.popleft()
            if len(line) > most_bytes:
                self._wanted.discard(item.key)
                self._asked.discard(item.key)
                message = f"{len(line)} bytes: a batch holds at most {most_bytes}"
                on_outcome(request, Failure("InvalidRequest", message))
                continue
            encoded[key] = line
            chosen[key] = item
            size += len(line)
        return chosen, encoded

    async def _submit(self, batch: Batch, encoded: dict[str, bytes], on_outcome: OnOutcome) -> bool:
        """Hand a batch in, until it is known to be taken (True) or refused."""
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            if self._stop.is_set():  # as safe as a kill, see _until_done()
                return False
            try:
                timeout_s = self._provider.timeout_s
                batch_id = await self._provider.submit(encoded, label=batch.label, timeout_s=timeout_s)
                self._reach.note(self._provider.address, None)
            except RequestError as error:
                try:
                    if await self._unreached(error, tries):
                        continue
                except Unreachable as fatal:
                    self._refused(batch, fatal, on_outcome)
                delay_s = self._retry.delay_s(error, tries, time.monotonic() - began)
                if isinstance(error, TransientError | AnswerTooLarge):  # it may have been taken all the same
                    logger.warning("a batch was handed in and its answer lost: %s", error)
                    try:
                        found = await self._locate(batch)
                    except _Unanswered as why:
                        self._note_unanswered(batch, why)
                        return False
                    if found is not None:
                        batch_id = found
                        break
                if isinstance(error, ProviderFatal) or delay_s is None:
                    self._refused(batch, error, on_outcome)
                    return False
                await asyncio.sleep(delay_s)
            else:
                break
        self._journal.submitted(batch, batch_id)
        self.submitted += 1
        logger.info("batch %s: %d requests handed in as %s", batch.label, len(batch.items), batch_id)
        return True

    def _refused(self, batch: Batch, error: RequestError, on_outcome: OnOutcome) -> None:
        """Close a batch that came to nothing, and hand over its requests as failed.

        Raises:
            ProviderFatal: ``error``, where it is one; the requests are left as they were.
        """
        self._journal.closed(batch, type(error).__name__)
        self._purse.keep_batches(self._journal.open)
        if isinstance(error, ProviderFatal):
            raise error
        for item in batch.items.values():
            self._hand_over(item, Failure(type(error).__name__, str(error), item.tries + 1), on_outcome)

    # Following.

    async def _follow(self, batch: Batch, on_outcome: OnOutcome) -> None:
        """See a batch to its end, or to where the provider does not tell of it."""
        try:
            if batch.id is None:
                found = await self._locate(batch)
                if found is None:
                    logger.info("batch %s was never taken; its requests are handed in again", batch.label)
                    self._hand_in_again(batch, "never taken")
                    return
                self._journal.submitted(batch, found)
            assert batch.id is not None
            status = await self._ended(batch.id)
            if status.state != "failed":
                await self._collect(batch, on_outcome)
                return
        except _Unanswered as why:
            if self._settings.unknown == "wait":
                self._note_unanswered(batch, why)
                return
            logger.warning("batch %s may be paid for; its requests are handed in again: %s", batch.label, why)
            for item in batch.items.values():
                if item.key in self._wanted:
                    self._purse.settle_batch(batch.label, self._reserve(item), None)
            self._hand_in_again(batch, "unknown")
            return
        error = status.error or TransientError("the provider gave no reason")
        logger.warning("batch %s failed: %s", batch.label, error)
        if isinstance(error, RateLimited | TransientError):
            await asyncio.sleep(self._retry.delay_s(error, 1, 0.0) or 0.0)
            self._again(batch.items.values(), on_outcome)
            self._journal.closed(batch, type(error).__name__)
            self._purse.keep_batches(self._journal.open)
        else:
            self._refused(batch, error, on_outcome)

    def _note_unanswered(self, batch: Batch, why: _Unanswered) -> None:
        self._unanswered[batch.label] = str(why)
        logger.warning("batch %s stays open, what became of it is not known: %s", batch.label, why)

    def _hand_in_again(self, batch: Batch, why: str) -> None:
        """Close a batch and put its requests without an answer into a later one."""
        wanted = [item for item in batch.items.values() if self._is_asked(item)]
        self._pending.extend(replace(item, usd=None) for item in wanted)
        self._journal.closed(batch, why)
        self._purse.keep_batches(self._journal.open)

    async def _ended(self, batch_id: str) -> BatchStatus:
        wait_s = self._settings.first_poll_s
        while True:
            status = await self._patiently(
                lambda: self._provider.status(batch_id, timeout_s=self._provider.timeout_s)
            )
            if status.state != "running":
                return status
            await asyncio.sleep(wait_s)
            wait_s = min(self._settings.max_poll_s, wait_s * 1.5)

    async def _collect(self, batch: Batch, on_outcome: OnOutcome) -> None:
        """Hand over every result of an ended batch; what has none goes into a later one.

        Raises:
            ProviderFatal: a result says that no request of this run can succeed. The others were handed over.
            _Unanswered: results cannot be read. The others were handed over.
        """
        assert batch.id is not None
        left = dict(batch.items)
        again: list[Item] = []
        fatal: ProviderFatal | None = None
        strange = 0

        async def read() -> None:
            nonlocal fatal, strange
            strange = 0
            results: AsyncGenerator[tuple[str, Answer | RequestError], None]
            results = self._provider.results(batch.id or "", timeout_s=self._provider.timeout_s)
            async with aclosing(results):
                async for custom_id, result in results:
                    item = left.pop(custom_id, None)
                    if item is None:
                        strange += custom_id not in batch.items
                    elif isinstance(result, ProviderFatal):
                        fatal = result
                    elif item.key in self._wanted and not self._settle(batch, item, result, on_outcome):
                        again.append(item)

        await self._patiently(read)
        if strange:
            logger.warning("batch %s holds results under ids that are none of it: %d", batch.label, strange)
        self._again([*again, *left.values()], on_outcome)
        self._journal.closed(batch, "collected")
        self._purse.keep_batches(self._journal.open)
        if fatal is not None:  # its requests stay unanswered, for a try with a better key or model
            raise fatal

    def _settle(self, batch: Batch, item: Item, result: Answer | RequestError, on_outcome: OnOutcome) -> bool:
        """Hand over one result and pay for it; False where the request is to be handed in again."""
        reserved = self._reserve(item)
        if isinstance(result, TransientError | RateLimited):
            if result.status == 200:  # it was answered, and so billed, but cannot be read
                self._purse.settle_batch(batch.label, reserved, None)
            return False
        if isinstance(result, Answer):
            if "usage_estimated" not in result.details:
                sure = self._bounds.sure(self._request(item), self._endpoint)
                self._bounds.learn(self._endpoint, result.usage, sure, sure)
            elif not result.usage.input_tokens:  # estimated without the prompt
                tokens = estimated_tokens(self._request(item).prompt.text)
                result = replace(result, usage=replace(result.usage, input_tokens=tokens))
            usd = None if self._tariff is None else self._tariff.price(result.usage)
            self._hand_over(item, self._completion(batch, item, result, usd), on_outcome, result)
            self._purse.settle_batch(batch.label, reserved, usd)
        elif isinstance(result, ContextOverflow):
            self._hand_over(item, Skip("ContextOverflow", str(result)), on_outcome)
        else:
            self._hand_over(item, Failure(type(result).__name__, str(result), item.tries + 1), on_outcome)
            if result.status == 200:  # it was answered, and so billed
                self._purse.settle_batch(batch.label, reserved, None)
        return True

    def _completion(self, batch: Batch, item: Item, answer: Answer, usd: Decimal | None) -> Completion:
        self.usage += answer.usage
        details = {
            **answer.details,
            "provider": self._provider.name,
            "model": answer.model,
            "request_id": answer.request_id,
            "batch_id": batch.id,
        }
        latency_s = round(time.time() - batch.planned_at, 3)
        return Completion(
            answer.text, answer.finish_reason, answer.usage, usd, latency_s, attempts=item.tries + 1, details=details
        )

    def _hand_over(self, item: Item, outcome: Outcome, on_outcome: OnOutcome, answer: Answer | None = None) -> None:
        if item.key in self._wanted:
            request = self._request(item)
            on_outcome(request, outcome)
            for keys in (self._wanted, self._asked, self._in_batches):
                keys.discard(item.key)
            if answer is not None:
                self._keep(request, answer)

    def _again(self, items: Iterable[Item], on_outcome: OnOutcome) -> None:
        """Requests without an answer go into a later batch, unless they were in as many as they may."""
        for item in items:
            tries = item.tries + 1
            if not self._is_asked(item):
                continue
            if tries < self._retry.tries:
                self._pending.append(replace(item, tries=tries, usd=None))
            else:
                failure = Failure("TransientError", f"no answer in {tries} batches", tries)
                self._hand_over(item, failure, on_outcome)

    def _is_asked(self, item: Item) -> bool:
        """Whether an item without an answer was asked for and still is. One that was not read yet is in no batch from
        now on, so that it is handed in should it be read."""
        self._in_batches.discard(item.key)
        return item.key in self._wanted and item.key in self._asked

    # The provider's list.

    async def _locate(self, batch: Batch) -> str | None:
        """The id of a batch whose submission was not answered, or None where the provider never took it.

        Some providers do not say whose a running batch is (Anthropic); a candidate is then waited for.

        Raises:
            _Unanswered: the provider's list cannot be had.
        """
        asked_from = time.monotonic()
        wait_s = self._settings.first_poll_s
        while True:
            found = await self._patiently(
                lambda: self._provider.find(batch.label, since=batch.planned_at, timeout_s=self._provider.timeout_s),
                is_listing=True,
            )
            known = {other.id for other in self._journal.open.values() if other is not batch}
            candidates = [f for f in found if f.id not in known and f.total in (0, len(batch.items))]
            certain = [f.id for f in candidates if f.certain]
            if certain:
                for surplus in certain[1:]:
                    logger.warning("batch %s was taken twice; %s is cancelled", batch.label, surplus)
                    try:
                        await self._provider.cancel(surplus, timeout_s=self._provider.timeout_s)
                    except RequestError as error:
                        logger.warning("batch %s cannot be cancelled: %s", surplus, error)
                return certain[0]
            if not candidates and time.monotonic() - asked_from >= self._settings.settle_s:
                return None
            await asyncio.sleep(wait_s if candidates else min(wait_s, 1.0))
            wait_s = min(self._settings.max_poll_s, wait_s * 1.5)

    async def _patiently(self, call: Callable[[], Awaitable[T]], *, is_listing: bool = False) -> T:
        """A call that is tried again until it works: a batch of a day is not given up over an hour's outage.

        Args:
            is_listing: it asks for the provider's list, which a key or a server may not give at all.

        Raises:
            _Unanswered: another try does not change what the provider says, or it was tried as often as a request
                may be and the list, or an answer that can be read, did not come.
            AuthenticationFailed, QuotaExhausted: the account cannot be used.
            Unreachable: nothing has ever connected.
        """
        tries = 0
        while True:
            try:
                done = await call()
                self._reach.note(self._provider.address, None)
                return done
            except (RateLimited, TransientError) as error:
                tries += 1
                if await self._unreached(error, tries):
                    continue
                if tries >= self._retry.tries and (is_listing or error.status == 200):
                    raise _Unanswered(str(error)) from None
                logger.info("the provider's batches cannot be read: %s", error)
                await asyncio.sleep(self._retry.delay_s(error, min(tries, self._retry.tries - 1), 0.0) or 1.0)
            except (AuthenticationFailed, QuotaExhausted) as error:
                if not is_listing:
                    raise
                raise _Unanswered(str(error)) from None
            except RequestError as error:
                raise _Unanswered(str(error)) from None

    async def _unreached(self, error: RequestError, tries: int) -> bool:
        """Whether a call did not connect, and none ever has; waits a moment before the next try.

        Raises:
            Unreachable: further tries are of no use.
        """
        self._reach.note(self._provider.address, error, tries=tries)
        if not (self._reach.is_doubtful() and never_connected(error)):
            return False
        await asyncio.sleep(self._reach.pause_s(self._provider.address))
        return True

    # Small things.

    def _request(self, item: Item) -> Request:
        if self._read is None or self._read[0] != item.offset:  # samples of one prompt come together
            prompt = self._journal.prompt(item.offset)
            self._read = (item.offset, prompt, PromptFiles(prompt))
        return Request(item.instance_id, item.sample, self._read[1], self._decoding, self._read[2])

    def _reserve(self, item: Item) -> Decimal:
        """What is held for a request of a batch; where none is yet, the bound by its bytes."""
        if item.usd is not None:
            return Decimal(item.usd)
        return self._price(self._bounds.sure(self._request(item), self._endpoint))

    def _is_too_dear(self, request: Request) -> bool:
        """Whether a request is known not to fit, without a count and without looking at the ledgers."""
        sure = self._bounds.sure(request, self._endpoint)
        if not self._purse.never(self._price(sure)):
            return False
        return self._purse.never(self._price(self._bounds.least(self._endpoint, sure)))

    def _price(self, tokens: int) -> Decimal:
        """The most that a request with so many input tokens can cost in a batch."""
        if self._tariff is None:
            return Decimal(0)
        return worst_case(self._tariff, tokens, self._decoding.max_new_tokens, cache_write=False)

    async def _watch(self) -> None:
        while not self._stop.is_set():  # noqa: ASYNC110 - set from other threads and signal handlers
            await asyncio.sleep(0.05)
