"""Answers requests through background responses, each journaled as a batch of one request.

OpenAI has no list of responses. So a response whose id never arrived cannot be looked up: if its submission may have
been accepted, it counts as possibly billed and its request is submitted again, as after a live request without an
answer. A response with an id is polled again by the next process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from swe_infer.api.batch import Batches, SubmissionLost
from swe_infer.api.batch_journal import Batch, BatchKind, Item, ItemKey
from swe_infer.api.limits import Permit
from swe_infer.api.reachability import Unreachable
from swe_infer.api.retry import may_have_been_billed
from swe_infer.errors import ProviderFatal, RateLimited, RateLimits, RequestError, TransientError
from swe_infer.providers.base import ONLY_ITEM
from swe_infer.types import Usage


class BackgroundResponses(Batches):
    """Submits up to ``provider.max_concurrency`` responses, within the rate limits, and polls each until it ends."""

    kind: ClassVar[BatchKind] = "background"
    noun: ClassVar[str] = "background response"
    nouns: ClassVar[str] = "background responses"
    most_submitting: ClassVar[int] = 16

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._permits: dict[str, Permit] = {}
        self._refusals: dict[ItemKey, tuple[int, float]] = {}
        """By request, how often its submission has failed, and when it was first tried."""

    def _custom_id(self, label: str, number: int) -> str:
        return ONLY_ITEM

    def _may_submit(self, following: int, submitting: int) -> bool:
        is_full = following + submitting >= self._endpoint.provider.max_concurrency
        return not is_full and super()._may_submit(following, submitting)

    async def _end_submissions(self, submitting: set[asyncio.Task[None]]) -> None:
        """Waits for the ids of submissions in flight. Submissions that wait for a permit give up."""
        self._endpoint.limiter.halt()
        await asyncio.gather(*submitting, return_exceptions=True)

    @asynccontextmanager
    async def _permission(self, label: str, items: Iterable[Item]) -> AsyncIterator[None]:
        (item,) = items
        size = self._request(item).prompt.characters
        urgent = item.key in self._refusals
        async with self._endpoint.limiter.permit(size, self._decoding.max_new_tokens, urgent=urgent) as permit:
            self._permits[label] = permit
            try:
                yield
            finally:
                del self._permits[label]

    async def _submit(self, batch: Batch, encoded: dict[str, bytes]) -> bool:
        """Submits a response. A request that was refused for now is pending again."""
        (item,) = batch.items.values()
        tries, began = self._refusals.get(item.key, (0, time.monotonic()))
        self._refusals[item.key] = tries + 1, began
        if self._stop.is_set():
            self._close(batch, "stopped")
            return False
        limiter, permit = self._endpoint.limiter, self._permits[batch.label]
        try:
            timeout_s = self._provider.timeout_s
            response_id = await self._provider.submit(encoded, self._model, label=batch.label, timeout_s=timeout_s)
        except RequestError as error:
            if isinstance(error, RateLimited):
                limiter.refused(permit, error, self._retry.max_retry_after_s)
            elif error.timed_out:
                limiter.timed_out(permit)
            await self._submission_failed(batch, item, error)
            return False
        self._journal.record_submitted(batch, response_id)
        self._refusals.pop(item.key, None)
        self.submitted += 1
        self._reachability.record(self._provider.address, None)
        limiter.answered(permit, RateLimits(), Usage())
        return True

    async def _submission_failed(self, batch: Batch, item: Item, error: RequestError) -> None:
        """Reports a failed submission, or makes its request pending again.

        Raises:
            ProviderFatal: no request of this run can succeed.
        """
        tries, began = self._refusals[item.key]
        if may_have_been_billed(error):
            self._lose(batch, error)
            await self._back_off(error, 1)
            return
        try:
            is_unreached = isinstance(error, TransientError) and await self._is_unreached(error, tries)
        except Unreachable as fatal:
            self._refused(batch, fatal)
            return
        delay_s = 0.0 if is_unreached else self._retry.delay_s(error, tries, time.monotonic() - began)
        if isinstance(error, ProviderFatal) or delay_s is None:
            self._refusals.pop(item.key, None)
            self._refused(batch, error)
            return
        self._close(batch, "refused")
        await self._pause(delay_s)
        self._pending.appendleft(item)

    async def _locate(self, batch: Batch) -> str | None:
        raise SubmissionLost("the command ended before its id arrived")
