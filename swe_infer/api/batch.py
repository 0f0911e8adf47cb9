"""Runs requests through a provider's batches: at half the price, within a day, in any order.

A batch is recorded in the journal before it is submitted, with a label that the provider returns. So a kill at any
point, even between submission and its response, loses nothing and submits nothing twice: a batch without a known id
is looked up by its label before its requests are submitted again. Requests that expire, fail or have no result go
into a later batch.

If the provider's list or a batch's results cannot be read, the batch stays open and its requests are not submitted
again, because they may be billed. All other batches are collected first, and the run ends with a message.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from math import inf
from typing import Annotated, ClassVar, Literal, TypeVar

from swe_infer.api.batch_journal import Batch, BatchKind, IsRecorded, Item, ItemKey, Journal, unrecorded_usd
from swe_infer.api.budget import CostBudget
from swe_infer.api.counting import InputBounds
from swe_infer.api.dispatch import by_prompt
from swe_infer.api.endpoints import Endpoint
from swe_infer.api.limits import Halted
from swe_infer.api.pricing import bill_details, settled_usd, with_lifetimes
from swe_infer.api.reachability import Reachability, Unreachable
from swe_infer.api.retry import Retry, may_have_been_billed, never_connected
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
from swe_infer.providers.base import Answer, BatchProvider, BatchStatus
from swe_infer.providers.usage import checked_usage
from swe_infer.redaction import without_credentials
from swe_infer.types import ApiModel, Completion, Decoding, Failure, OnOutcome, Outcome, Prompt, Request, Skip

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MEMORY_BYTES = 64_000_000
"""Maximum size of a batch, which is in memory twice during submission."""

_LONGEST_ID = 100
"""Characters of an unknown custom id that are compared."""

_LONGEST_RUN_S = 86_400.0
"""Within which vendors complete a batch."""

_MOST_NAMED = 3
"""Batches that a line names."""
_COUNTS_AT_ONCE = 8
_READ_TOGETHER = 1 << 10
"""Samples of a prompt in one group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """How batches are created and polled."""

    max_requests: Annotated[
        int | None, Option("Maximum requests per batch; null: the provider's limit.", "speed")
    ] = None
    first_poll_s: Annotated[
        float, Option("Seconds before a batch is first polled; each further interval is 1.5 times as long.", "speed")
    ] = 5.0
    max_poll_s: Annotated[float, Option("Maximum seconds between two polls.", "speed")] = 60.0
    settle_s: Annotated[
        float, Option("Seconds after which a batch that the provider does not list counts as not created.", "speed")
    ] = 20.0

    unknown: Annotated[
        Literal["wait", "again"],
        Option(
            "For a batch of an earlier command whose state is unknown: wait, or submit its requests again.", "speed"
        ),
    ] = "wait"

    def __post_init__(self) -> None:
        if self.max_requests is not None and self.max_requests < 1:
            raise ConfigError(f"runner.batches.max_requests={self.max_requests}: must be at least 1")
        for key in ("first_poll_s", "max_poll_s", "settle_s"):
            if not 0 < getattr(self, key) < float("inf"):
                raise ConfigError(f"runner.batches.{key}={getattr(self, key)}: must be a finite number above 0")


class _StatusUnknown(Exception):
    """The state of a batch cannot be read. The message is the provider's error."""


class SubmissionLost(Exception):
    """The answers of a batch cannot be collected any more, and may have been billed. The message says why."""


class Batches:
    """Answers requests through a provider's batches.

    Args:
        endpoint: of ``provider``, with the prices of batches.
        bounds: of prompts' tokens.
        journal: of the run directory.
        decoding: of every request of the run.
        over_budget: collects the instances of which no sample fits under a cap.
        is_recorded: whether the answer to a key, turn and auxiliary request is in the run's records. Other answers of
            open batches are reported, even if this command does not select their requests.
    """

    kind: ClassVar[BatchKind] = "batch"
    noun: ClassVar[str] = "batch"
    nouns: ClassVar[str] = "batches"
    most_submitting: ClassVar[int] = 1
    """Submissions in flight at once."""

    def __init__(
        self,
        provider: BatchProvider,
        model: ApiModel,
        decoding: Decoding,
        endpoint: Endpoint,
        budget: CostBudget,
        bounds: InputBounds,
        retry: Retry,
        settings: BatchSettings,
        journal: Journal,
        cached: Callable[[Request], Completion | None],
        keep: Callable[[Request, Answer], None],
        over_budget: set[str],
        is_recorded: IsRecorded,
    ) -> None:
        self._provider = provider
        self._model = model
        self._decoding = decoding
        self._endpoint = endpoint
        self._prices = endpoint.prices
        self._budget = budget
        self._bounds = bounds
        self._retry = retry
        self._settings = settings
        self._journal = journal
        self._inherited = frozenset(journal.open)
        """Labels of the batches that an earlier process planned."""
        self._cached = cached
        self._keep = keep
        self._over_budget = over_budget
        self._is_recorded = is_recorded
        self._wanted: set[ItemKey] = set()
        self._asked: set[ItemKey] = set()
        """Requests that were read and have no outcome yet."""
        self._in_batches: set[ItemKey] = set()
        """Requests in batches of an earlier process that were not read yet."""
        self._reported_unread: set[ItemKey] = set()
        """Requests of earlier processes whose outcomes were reported before they were read."""
        self._source: Iterator[list[Request]] = iter(())
        self._last_written: tuple[Prompt, int] | None = None
        self._last_prompt: tuple[int, Prompt] | None = None
        self._address = without_credentials(provider.address).rstrip("/")
        self._reachability = Reachability([provider.address])
        self._pending: deque[Item] = deque()
        self._following: set[asyncio.Task[None]] = set()
        """Tasks that poll and collect batches."""
        self._polled: set[str] = set()
        """Labels of the batches that have not ended."""
        self._has_room = True
        """Whether a further batch may fit under the caps and the vendor's limits beside those that have not ended."""
        self._refused_from = inf
        """When the vendor first refused a batch, since one has run, on the monotonic clock; infinite: it has not."""
        self._refused_alone = 0
        """How often it has refused a single request since then."""
        self._limit = min(provider.max_batch_requests, settings.max_requests or provider.max_batch_requests)
        self._most = self._limit
        """Requests in a batch; fewer than the limit while the vendor refuses larger ones."""
        self._possibly_billed = dict(journal.possibly_billed)
        self._unknown: dict[str, str] = {}
        """By label, why the state of a batch is unknown."""
        self._is_blocked = False
        """Whether nothing fits under a cap beside the batches whose state is unknown."""
        self._shortest_refused: tuple[int, Item] | None = None
        """The request with the shortest prompt, in bytes, among those that do not fit under any cap."""
        self._on_outcome: OnOutcome
        self._stop = threading.Event()
        self._stopped: asyncio.Task[None]
        """Ends when ``stop`` is set."""
        self.submitted = 0

    @property
    def open(self) -> int:
        """Batches at the provider."""
        return len(self._journal.open)

    @property
    def possibly_billed_usd(self) -> Decimal:
        """Dollars that may have been billed for requests without an outcome."""
        return unrecorded_usd(self._possibly_billed, self._is_recorded)

    async def process(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        """Answers all requests; see :class:`swe_infer.runners.base.Runner`. One that does not fit under a cap is
        skipped without an outcome.

        Returns at once when ``stop`` is set: batches continue at the provider, and the same command collects them.
        """
        self._on_outcome, self._stop = on_outcome, stop
        if self.kind == "batch":  # the answer to a first request alone may take a day
            self._endpoint.bound_is_certain = True
        self._source = by_prompt(requests, _READ_TOGETHER)
        self._in_batches = {item.key for batch in self._journal.open.values() for item in batch.items.values()}
        self._wanted = {key for key in self._in_batches if not self._is_recorded(key[:2], *key[2:])}
        self._budget.release_other_batches(self._journal.open)
        self._stopped = asyncio.create_task(self._watch())
        self._following = {asyncio.create_task(self._follow(batch)) for batch in self._journal.open.values()}
        try:
            await self._until_done()
            for item in self._pending:
                self._report_unanswered(item)
        finally:
            await _cancel(self._stopped, *self._following)
        if self._unknown and not stop.is_set():
            raise self._still_open()
        if self._shortest_refused is not None and not stop.is_set():
            byte_bound, item = self._shortest_refused
            tokens = await self._bounds.tightest(self._request(item), self._endpoint, byte_bound)
            raise self._budget.explain_refusal(self._price(tokens))
        if self._journal.open:
            logger.info("%s continue at the provider: %d; the same command collects them", self.nouns, self.open)

    async def _until_done(self) -> None:
        """Submits pending requests and follows batches until nothing is left, or until the run is stopped."""
        following, submitting = self._following, set[asyncio.Task[None]]()
        try:
            while (
                (not self._is_blocked and self._read_more()) or following or submitting
            ) and not self._stop.is_set():
                while (
                    self._may_submit(len(following), len(submitting))
                    and (self._has_room or not (self._is_blocked or following or submitting))
                    and self._read_more()
                ):
                    submitting.add(asyncio.create_task(self._submit_pending()))
                    await asyncio.sleep(0)  # it removes its requests from the pending ones
                waiting = {*following, self._stopped, *submitting}
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for tasks in (following, submitting):
                    for task in done & tasks:
                        tasks.discard(task)
                        task.result()
        finally:
            if submitting:
                await self._end_submissions(submitting)

    def _may_submit(self, following: int, submitting: int) -> bool:
        """Whether one more submission may start beside those in flight. Under a cap, a server that may bill more than
        is reserved gets one at a time."""
        if self._budget.has_caps and not self._endpoint.bound_is_certain:
            return following + submitting == 0
        return submitting < self.most_submitting

    async def _end_submissions(self, submitting: set[asyncio.Task[None]]) -> None:
        """Ends submissions in flight. As safe as a kill: a submitted batch is found by its label."""
        await _cancel(*submitting)

    def _read_more(self) -> bool:
        """Whether any request is pending. Reads requests until one is: prompts go to disk, keys stay in memory."""
        while not self._pending and not self._stop.is_set():
            group = next(self._source, None)
            if group is None:
                break
            for request in group:
                item = Item(*request.key, 0, turn=request.turn, auxiliary=request.auxiliary)
                key = item.key
                is_recorded = self._is_recorded(request.key, request.turn, request.auxiliary)
                if key in self._reported_unread or is_recorded:
                    continue  # a batch was collected since the request was made
                if key in self._in_batches:  # its answer is paid for
                    self._in_batches.discard(key)
                elif (hit := self._cached(request)) is not None:
                    self._on_outcome(request, hit)
                    continue
                else:
                    self._pending.append(replace(item, offset=self._offset(request.prompt)))
                self._wanted.add(key)
                self._asked.add(key)
        return bool(self._pending)

    def _offset(self, prompt: Prompt) -> int:
        """The offset of a prompt in the journal, which is written once for consecutive samples."""
        if self._last_written is None or self._last_written[0] != prompt:
            self._last_written = (prompt, self._journal.add_prompt(prompt))
        return self._last_written[1]

    def _still_open(self) -> ProviderFatal:
        """The error for batches whose state is unknown."""
        labels = list(self._unknown)
        count = sum(len(self._journal.open[label].items) for label in labels)
        reserved = ". What is left of the cap is reserved for them, and they" if self._is_blocked else ". They"
        return ProviderFatal(
            f"{len(labels)} {self.nouns} with {count} requests may be billed and cannot be collected ({labels[0]}: "
            f"{self._unknown[labels[0]]}){reserved} are not submitted again: the same command looks for them "
            "again; if they were not accepted, runner.batches.unknown=again submits their requests again"
        )

    # Submission.

    async def _submit_pending(self) -> None:
        """Submits the next batch."""
        if self._stop.is_set():
            return
        label = f"swe-{secrets.token_hex(6)}"
        chosen, encoded = self._choose(label)
        if not chosen:
            return
        with suppress(Halted):  # the run is stopping; the same command submits them
            async with self._permission(label, chosen.values()):
                if self._has_room or not self._following:
                    await self._submit_chosen(label, chosen, encoded)
                else:
                    self._pending.extendleft(reversed(chosen.values()))

    def _permission(self, label: str, items: Iterable[Item]) -> AbstractAsyncContextManager[None]:
        """Waits for permission to submit. Raises Halted if the run is stopping."""
        return nullcontext()

    async def _submit_chosen(self, label: str, chosen: Mapping[str, Item], encoded: Mapping[str, bytes]) -> None:
        amounts, tight = await self._amounts(list(chosen.values()))
        held = {list(chosen)[index]: amounts[index] for index in self._budget.reserve_batch(label, amounts)}
        remaining = self._budget.remaining(wait=True)
        waiting: list[Item] = []
        for index, (key, item) in enumerate(chosen.items()):
            if key not in held and remaining is not None and index in tight and amounts[index] > remaining.unspent:
                self._refuse(item)
            elif key not in held:
                waiting.append(item)
        self._pending.extendleft(reversed(waiting))
        if not held:
            self._has_room = not waiting
            self._is_blocked = bool(waiting and self._unknown) and self._journal.open.keys() <= self._unknown.keys()
            if waiting and not self._following and not self._is_blocked:  # wait for other processes
                self._budget.log_wait()
                await asyncio.sleep(self._settings.first_poll_s)
            return
        items = {key: replace(chosen[key], usd=str(usd)) for key, usd in held.items()}
        batch = Batch(label, time.time(), items, kind=self.kind, address=self._address)
        self._journal.record_planned(batch)  # before anything is awaited: a label without an entry is released
        if await self._submit(batch, {key: encoded[key] for key in held}):
            self._following.add(asyncio.create_task(self._follow(batch)))

    def _refuse(self, item: Item) -> None:
        """Skips a request that does not fit under a cap. If it may have been billed before, it has failed."""
        self._report_unanswered(item)
        self._wanted.discard(item.key)
        self._asked.discard(item.key)
        self._over_budget.add(item.instance_id)
        byte_bound = self._bounds.byte_bound(self._request(item), self._endpoint)
        if self._shortest_refused is None or byte_bound < self._shortest_refused[0]:
            self._shortest_refused = (byte_bound, item)

    async def _amounts(self, items: list[Item]) -> tuple[list[Decimal], set[int]]:
        """The worst case of each request, and the indexes of those that no count can reduce. If the bounds by bytes
        do not fit under the caps together, tokens are counted where that may help."""
        requests = [self._request(item) for item in items]
        byte_bound = [self._bounds.byte_bound(request, self._endpoint) for request in requests]
        amounts = [self._price(tokens) for tokens in byte_bound]
        remaining = self._budget.remaining(wait=True)
        if remaining is None or not self._bounds.can_be_tighter(self._endpoint):
            return amounts, set(range(len(items)))
        done: set[int] = set()
        if sum(amounts) <= remaining.available:
            return amounts, done
        total = Decimal(0)
        for start in range(0, len(items), _COUNTS_AT_ONCE):
            part: list[int] = []
            for index in range(start, min(start + _COUNTS_AT_ONCE, len(items))):
                least = self._price(self._bounds.lower_estimate(self._endpoint, byte_bound[index]))
                if least > remaining.unspent:
                    done.add(index)
                elif least <= remaining.available - total:
                    part.append(index)
            counts = await asyncio.gather(
                *(self._bounds.tightest(requests[i], self._endpoint, byte_bound[i]) for i in part)
            )
            for index, tokens in zip(part, counts, strict=True):
                amounts[index] = self._price(tokens)
                total += amounts[index] if total + amounts[index] <= remaining.available else 0
            done.update(part)
        return amounts, done

    def _choose(self, label: str) -> tuple[dict[str, Item], dict[str, bytes]]:
        """The next requests for one batch and their encoded form, by custom id."""
        most_bytes = min(self._provider.max_batch_bytes, _MEMORY_BYTES)
        chosen: dict[str, Item] = {}
        encoded: dict[str, bytes] = {}
        size = 0
        while len(chosen) < self._most and self._read_more():
            item = self._pending[0]
            request = self._request(item)
            if self._is_too_dear(request):
                self._refuse(self._pending.popleft())
                continue
            key = self._custom_id(label, len(chosen))
            line = self._provider.batch_item(key, request, self._model)
            if chosen and size + len(line) > most_bytes:
                break
            self._pending.popleft()
            if len(line) > most_bytes:
                self._fail(item, "InvalidRequest", f"{len(line)} bytes: a batch has at most {most_bytes}", item.tries)
                continue
            encoded[key] = line
            chosen[key] = item
            size += len(line)
        return chosen, encoded

    def _custom_id(self, label: str, number: int) -> str:
        return f"{label}-{number}"

    async def _submit(self, batch: Batch, encoded: dict[str, bytes]) -> bool:
        """Submits a batch. Returns whether it was accepted."""
        tries, began = 0, time.monotonic()
        while not self._stop.is_set():  # as safe as a kill, see _until_done()
            tries += 1
            try:
                timeout_s = self._provider.timeout_s
                batch_id = await self._provider.submit(encoded, self._model, label=batch.label, timeout_s=timeout_s)
                self._reachability.record(self._provider.address, None)
            except RequestError as error:
                try:
                    if await self._is_unreached(error, tries):
                        continue
                except Unreachable as fatal:
                    self._refused(batch, fatal)
                delay_s = self._retry.delay_s(error, tries, time.monotonic() - began)
                if isinstance(error, TransientError | AnswerTooLarge):  # it may have been accepted anyway
                    logger.warning("a batch was submitted and its response lost: %s", error)
                    try:
                        found = await self._locate(batch)
                    except _StatusUnknown as why:
                        self._note_unknown(batch, why)
                        return False
                    if found is not None:
                        self._record_submitted(batch, found)
                        return True
                if isinstance(error, RateLimited) and not error.is_final:
                    self._note_refusal(error)
                    if delay_s is None:
                        await self._postpone(batch, error, tries)
                        return False
                if isinstance(error, ProviderFatal) or delay_s is None:
                    self._refused(batch, error)
                    return False
                try:
                    await self._pause(delay_s)
                finally:
                    if self._stop.is_set() and isinstance(error, RateLimited):
                        self._close(batch, "stopped")  # the next command need not look for it
            else:
                self._record_submitted(batch, batch_id)
                return True
        return False

    def _record_submitted(self, batch: Batch, batch_id: str) -> None:
        self._journal.record_submitted(batch, batch_id)
        self.submitted += 1
        logger.info("batch %s: %d requests submitted as %s", batch.label, len(batch.items), batch_id)

    def _refused(self, batch: Batch, error: RequestError) -> None:
        """Closes a batch that was refused, and reports its requests as failed.

        Raises:
            ProviderFatal: ``error``, if it is one; the requests have no outcome then.
        """
        self._close(batch, type(error).__name__)
        if isinstance(error, ProviderFatal):
            raise error
        for item in batch.items.values():
            self._fail(item, type(error).__name__, str(error), item.tries + 1)

    def _close(self, batch: Batch, why: str) -> None:
        """Closes a batch, and releases what is still reserved for it."""
        self._journal.record_closed(batch, why)
        self._budget.release_other_batches(self._journal.open)
        self._has_room = True

    # Polling.

    async def _follow(self, batch: Batch) -> None:
        """Polls a batch until it ends or its state is unknown, and collects it."""
        try:
            if batch.id is None:
                found = await self._locate(batch)
                if found is None:
                    if batch.address not in ("", self._address):
                        raise _StatusUnknown(f"it may have been submitted at {batch.address}, and is not in the list")
                    logger.info("batch %s was never accepted; its requests are submitted again", batch.label)
                    self._resubmit(batch, "never taken")
                    return
                self._journal.record_submitted(batch, found)
            assert batch.id is not None
            self._polled.add(batch.label)
            try:
                status = await self._ended(batch.id)
            finally:
                self._polled.discard(batch.label)
            if status.state == "lost":
                raise SubmissionLost(str(status.error))
            if status.state != "failed" or not isinstance(status.error, RateLimited):  # it has run
                self._refused_from, self._refused_alone = inf, 0
            if status.state != "failed":
                self._most = min(self._limit, max(self._most, 2 * len(batch.items)))
                await self._collect(batch, status)
                return
        except SubmissionLost as why:
            self._lose(batch, why)
            return
        except _StatusUnknown as why:
            if self._settings.unknown == "wait" or batch.label not in self._inherited:
                self._note_unknown(batch, why)
            else:
                self._lose(batch, why)
            return
        error = status.error or TransientError("the provider gave no reason")
        if isinstance(error, RateLimited):
            self._note_refusal(error)
            await self._postpone(batch, error, self._refused_alone + 1)
            return
        logger.warning("batch %s failed: %s", batch.label, error)
        if isinstance(error, TransientError):
            await self._back_off(error, 1)
            self._retry_items(batch.items.values())
            self._close(batch, type(error).__name__)
        else:
            self._refused(batch, error)

    def _note_unknown(self, batch: Batch, why: _StatusUnknown) -> None:
        self._unknown[batch.label] = str(why)
        logger.warning("%s %s stays open, its state is unknown: %s", self.noun, batch.id or batch.label, why)

    def _lose(self, batch: Batch, why: Exception) -> None:
        """Closes a batch whose answers cannot be collected. Its requests count as possibly billed, and are submitted
        again."""
        logger.warning("%s %s may be billed and cannot be collected: %s", self.noun, batch.id or batch.label, why)
        for item in batch.items.values():
            if item.key in self._wanted:
                self._charge_unknown(batch, item)
        self._retry_items(batch.items.values())
        self._close(batch, "lost")

    def _resubmit(self, batch: Batch, why: str) -> None:
        """Closes a batch that was never accepted, and moves its requests to a later one."""
        wanted = [item for item in batch.items.values() if self._is_asked(item)]
        self._pending.extend(replace(item, usd=None) for item in wanted)
        self._close(batch, why)

    def _note_refusal(self, error: RateLimited) -> None:
        if self._refused_from == inf:
            self._refused_from = time.monotonic()
            logger.warning(
                "the vendor takes no further batch for now (%s): the requests wait, up to runner.retry.total_s=%g s "
                "if no batch runs",
                error, self._retry.total_s,
            )  # fmt: skip

    async def _postpone(self, batch: Batch, error: RateLimited, tries: int) -> None:
        """Closes a batch that the vendor's limits refuse, such as that of enqueued tokens. Its requests wait until
        another batch ends, or go into smaller ones after a pause.

        Raises:
            ProviderFatal: no batch has run for ``retry.total_s``. The requests have no outcome.
        """
        self._resubmit(batch, type(error).__name__)
        self._has_room = False
        await self._back_off(error, tries)
        if self._polled:
            return
        self._has_room = True
        if time.monotonic() - self._refused_from >= self._retry.total_s:
            raise ProviderFatal(
                f"no batch could run for runner.retry.total_s={self._retry.total_s:g} s: {error}; the same command "
                "submits the remaining requests"
            )
        if len(batch.items) > 1:
            self._most = -(-len(batch.items) // 2)
            logger.warning("the vendor takes fewer requests at once: further batches have at most %d", self._most)
        else:
            self._refused_alone += 1

    async def _ended(self, batch_id: str) -> BatchStatus:
        for wait_s in self._poll_intervals_s():
            status = await self._with_retries(
                lambda: self._provider.status(batch_id, timeout_s=self._provider.timeout_s)
            )
            if status.state != "running":
                break
            await asyncio.sleep(wait_s)
        return status

    def _poll_intervals_s(self) -> Iterator[float]:
        """Endless."""
        wait_s = self._settings.first_poll_s
        while True:
            yield wait_s
            wait_s = min(self._settings.max_poll_s, wait_s * 1.5)

    async def _collect(self, batch: Batch, status: BatchStatus) -> None:
        """Reports every result of an ended batch. Requests without a result go into a later one.

        Raises:
            ProviderFatal: no request of this run can succeed. Other results were reported.
            _StatusUnknown: results cannot be read, or are fewer than ``status`` states. The answers that could be
                read were reported.
        """
        assert batch.id is not None
        left = dict(batch.items)
        errors: dict[str, RequestError] = {}  # settled last: the answer to the same request may follow
        strange: dict[str, bool] = {}  # unknown ids, at most as many as requests: whether the result is an answer

        async def read() -> None:
            results: AsyncGenerator[tuple[str, Answer | RequestError], None]
            results = self._provider.results(batch.id or "", timeout_s=self._provider.timeout_s)
            try:
                async with aclosing(results):
                    async for custom_id, result in results:
                        if custom_id not in batch.items:
                            if len(strange) < len(batch.items):
                                strange[custom_id[:_LONGEST_ID]] = isinstance(result, Answer)
                        elif custom_id not in left:
                            continue
                        elif isinstance(result, Answer):
                            item = left.pop(custom_id)
                            errors.pop(custom_id, None)
                            if item.key in self._wanted:
                                self._settle(batch, item, result)
                        else:
                            errors[custom_id] = result
            except RequestError as error:
                if left:
                    raise
                logger.warning(
                    "every answer of batch %s is read, but not the rest of its results: %s", batch.label, error
                )
            failures = len(errors) + list(strange.values()).count(False)
            found = len(batch.items) - len(left) + len(errors) + len(strange)
            stated = len(batch.items)
            if status.done is not None:  # an error is no sign of an answer, unless the vendor counts it as one
                stated = min(stated, status.done + min(status.failed, failures))
            if found < stated:
                raise TransientError(f"{batch.id} has {stated} results, and {found} can be read", status=200)

        await self._with_retries(read)
        if strange:
            logger.warning("batch %s has results with unknown ids: %d", batch.label, len(strange))
        fatal: ProviderFatal | None = None
        retried: list[Item] = []
        for custom_id, error in errors.items():
            item = left.pop(custom_id)
            if isinstance(error, ProviderFatal):
                fatal = error
            elif item.key in self._wanted and not self._settle(batch, item, error):
                retried.append(item)
        dearest = sorted(left.values(), key=self._reserved, reverse=True)
        for item in dearest[: sum(strange.values())]:  # one of them may have been billed for such an answer
            if item.key in self._wanted:
                self._charge_unknown(batch, item)
        self._retry_items([*retried, *left.values()])
        self._close(batch, "collected")
        if fatal is not None:  # its requests stay unanswered, for a run with another key or model
            raise fatal

    def _settle(self, batch: Batch, item: Item, result: Answer | RequestError) -> bool:
        """Reports one result and charges it. Returns False if the request must be submitted again."""
        reserved = self._reserved(item)
        if isinstance(result, TransientError | RateLimited):
            if _may_be_billed(result):
                self._charge_unknown(batch, item)
            return False
        if isinstance(result, Answer):
            request = self._request(item)
            result = with_lifetimes(_with_checked_usage(result, request), self._prices)
            is_known = "usage_estimated" not in result.details
            byte_bound = self._bounds.byte_bound(request, self._endpoint)
            self._endpoint.observe(
                result.usage if is_known else None,
                result.bill,
                byte_bound,
                self._decoding.max_new_tokens,
                cache_write=False,
                is_last=len(self._journal.open) == 1,
            )
            if is_known:
                self._bounds.observe(self._endpoint, result.usage, byte_bound, byte_bound)
            sent_at = datetime.fromtimestamp(batch.planned_at, tz=UTC)
            usd = settled_usd(self._prices, result.usage, result.bill, sent_at)
            is_bill = self._prices is None or (self._prices.states_bill and result.bill.usd is not None)
            if usd is None or ("usage_estimated" in result.details and not is_bill and usd < reserved):
                self._add_possibly_billed(item, reserved - (usd or Decimal(0)))
                paid = None
            else:
                paid = usd
            self._report(item, self._completion(batch, item, result, usd), result)
            self._budget.charge_batch(batch.label, reserved, paid)
        elif isinstance(result, ContextOverflow):
            self._report(item, Skip("ContextOverflow", str(result)))
        else:
            if _may_be_billed(result):
                self._charge_unknown(batch, item)
            self._fail(item, type(result).__name__, str(result), item.tries + 1)
        return True

    def _charge_unknown(self, batch: Batch, item: Item) -> None:
        """Charges a request that may have been billed, of which no answer is known."""
        usd = self._budget.charge_batch(batch.label, self._reserved(item), None)
        self._journal.record_possibly_billed(item, usd)
        self._add_possibly_billed(item, usd)

    def _add_possibly_billed(self, item: Item, usd: Decimal) -> None:
        self._possibly_billed[item.key] = self._possibly_billed.get(item.key, Decimal(0)) + usd

    def _billing_details(self, item: Item) -> dict[str, str]:
        """For the record: what may have been billed beyond the cost."""
        usd = self._possibly_billed.pop(item.key, None)
        return {"possibly_billed_usd": str(usd)} if usd else {}

    def _completion(self, batch: Batch, item: Item, answer: Answer, usd: Decimal | None) -> Completion:
        answer = answer.cut_at(self._decoding.stop)
        details = {
            **answer.details,
            **bill_details(answer.bill),
            **self._billing_details(item),
            "provider": self._provider.name,
            "model": answer.model,
            "request_id": answer.request_id,
            f"{'response' if self.kind == 'background' else 'batch'}_id": batch.id,
        }
        latency_s = round(max(0.0, time.time() - batch.planned_at), 3)  # the clock may have been set back
        return Completion(
            answer.text, answer.finish_reason, answer.usage, usd, latency_s, attempts=item.tries + 1, details=details
        )

    def _fail(self, item: Item, error_type: str, message: str, tries: int) -> None:
        self._report(item, Failure(error_type, message, tries, details=self._billing_details(item)))

    def _report(self, item: Item, outcome: Outcome, answer: Answer | None = None) -> None:
        if item.key in self._wanted:
            request = self._request(item)
            self._on_outcome(request, outcome)
            if item.key not in self._possibly_billed:
                self._journal.record_reported(item)
            if item.key not in self._asked:
                self._reported_unread.add(item.key)
            for keys in (self._wanted, self._asked, self._in_batches):
                keys.discard(item.key)
            if answer is not None:
                self._keep(request, answer)

    def _retry_items(self, items: Iterable[Item]) -> None:
        """Moves requests without an answer to a later batch, up to ``retry.tries`` batches."""
        for item in items:
            tries = item.tries + 1
            if not self._is_asked(item):
                continue
            if tries < self._retry.tries:
                self._pending.append(replace(item, tries=tries, usd=None))
            else:
                self._fail(item, "TransientError", f"no answer in {tries} {self.nouns}", tries)

    def _report_unanswered(self, item: Item) -> None:
        """Reports a request that may have been billed and is not submitted again by this command."""
        if item.key in self._possibly_billed:
            message = f"the answers of earlier {self.nouns} are lost, and it was not submitted again"
            self._fail(item, "TransientError", message, item.tries)

    def _is_asked(self, item: Item) -> bool:
        """Whether an item without an answer was read and is still requested. If it is read later, it is in no
        batch."""
        self._in_batches.discard(item.key)
        return item.key in self._wanted and item.key in self._asked

    # Batches in the provider's list.

    async def _locate(self, batch: Batch) -> str | None:
        """The id of a batch whose submission had no response, or None if the provider never accepted it.

        Some providers identify a batch only after it has ended (Anthropic); candidates are polled until then.

        Raises:
            _StatusUnknown: the provider's list cannot be read.
        """
        since = batch.planned_at
        if since > time.time():  # the clock was ahead: a vendor would list it as too early
            since = time.time() - _LONGEST_RUN_S
        asked_from, is_logged = time.monotonic(), False
        for wait_s in self._poll_intervals_s():
            found = await self._with_retries(
                lambda: self._provider.find(batch.label, since=since, timeout_s=self._provider.timeout_s),
                is_listing=True,
            )
            known = {other.id for other in self._journal.open.values() if other is not batch}
            new = [f for f in found if f.id not in known]
            candidates = [f for f in new if f.certain or f.total in (0, len(batch.items))]
            certain = [f.id for f in candidates if f.certain]
            if certain:
                for surplus in certain[1:]:
                    logger.warning("batch %s was submitted twice; %s is cancelled", batch.label, surplus)
                    try:
                        await self._provider.cancel(surplus, timeout_s=self._provider.timeout_s)
                    except RequestError as error:
                        logger.warning("batch %s cannot be cancelled: %s", surplus, error)
                return certain[0]
            if not candidates and time.monotonic() - asked_from >= self._settings.settle_s:
                break
            if candidates and not is_logged:
                is_logged = True
                names = ", ".join(candidate.id for candidate in candidates[:_MOST_NAMED])
                logger.warning(
                    "batch %s may be one of %d at the provider (%s), which is known once they have ended",
                    batch.label, len(candidates), names,
                )  # fmt: skip
            await asyncio.sleep(wait_s if candidates else min(wait_s, 1.0))
        return None

    async def _with_retries(self, call: Callable[[], Awaitable[T]], *, is_listing: bool = False) -> T:
        """Retries a call until it succeeds, because a batch of a day outlasts an outage of an hour.

        Args:
            is_listing: the call reads the provider's list, which a key or server may not permit.

        Raises:
            _StatusUnknown: the error is permanent, or ``retry.tries`` attempts gave no list or no readable answer.
            AuthenticationFailed, QuotaExhausted: the account cannot be used.
            Unreachable: no request has connected.
        """
        tries = 0
        while True:
            try:
                done = await call()
                self._reachability.record(self._provider.address, None)
                return done
            except (RateLimited, TransientError) as error:
                tries += 1
                if await self._is_unreached(error, tries):
                    continue
                if tries >= self._retry.tries and (is_listing or error.status == 200):
                    raise _StatusUnknown(str(error)) from None
                logger.info("the provider's batches cannot be read: %s", error)
                await self._back_off(error, tries)
            except (AuthenticationFailed, QuotaExhausted) as error:
                if not is_listing:
                    raise
                raise _StatusUnknown(str(error)) from None
            except RequestError as error:
                raise _StatusUnknown(str(error)) from None

    async def _is_unreached(self, error: RequestError, tries: int) -> bool:
        """Whether no call has connected yet; then it also waits before the next attempt.

        Raises:
            Unreachable: after the last attempt.
        """
        self._reachability.record(self._provider.address, error, tries=tries)
        if not (self._reachability.is_doubtful() and never_connected(error)):
            return False
        await self._pause(self._reachability.pause_s(self._provider.address))
        return True

    # Helpers.

    async def _back_off(self, error: RequestError, tries: int) -> None:
        """Waits before a further attempt, at most until the run is stopped."""
        await self._pause(self._retry.pause_s(error, tries))

    async def _pause(self, seconds: float) -> None:
        """Waits, at most until the run is stopped."""
        await asyncio.wait([self._stopped], timeout=seconds)

    def _request(self, item: Item) -> Request:
        """The request of an item. The journal does not store its files."""
        if self._last_prompt is None or self._last_prompt[0] != item.offset:  # samples of one prompt are consecutive
            self._last_prompt = (item.offset, self._journal.prompt(item.offset))
        return Request(item.instance_id, item.sample, self._last_prompt[1], self._decoding, purpose=item.purpose)

    def _reserved(self, item: Item) -> Decimal:
        """What is reserved for a request of a batch; before that, the price of its bound by bytes."""
        if item.usd is not None:
            return Decimal(item.usd)
        return self._price(self._bounds.byte_bound(self._request(item), self._endpoint))

    def _is_too_dear(self, request: Request) -> bool:
        """Whether a request is known not to fit, without counting tokens or reading the ledgers."""
        byte_bound = self._bounds.byte_bound(request, self._endpoint)
        if not self._budget.cannot_fit(self._price(byte_bound)):
            return False
        return self._budget.cannot_fit(self._price(self._bounds.lower_estimate(self._endpoint, byte_bound)))

    def _price(self, tokens: int) -> Decimal:
        """The most that a request with ``tokens`` input tokens can cost in a batch."""
        if self._prices is None:
            return Decimal(0)
        return self._endpoint.worst_case(tokens, self._decoding.max_new_tokens, cache_write=False)

    async def _watch(self) -> None:
        while not self._stop.is_set():  # noqa: ASYNC110 - set from other threads and signal handlers
            await asyncio.sleep(0.05)


def _with_checked_usage(answer: Answer, request: Request) -> Answer:
    """``answer``, whose token counts were read without the prompt; estimated if the prompt contradicts them."""
    usage, is_estimated = checked_usage(answer.usage, request, answer.text)
    if not is_estimated:
        return answer
    return replace(answer, usage=usage, details={**answer.details, "usage_estimated": True})


def _may_be_billed(error: RequestError) -> bool:
    """Whether the result of a request in a batch may be billed. One without a status, such as an expired one, is
    not."""
    return error.in_answer or (error.status is not None and may_have_been_billed(error))


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
