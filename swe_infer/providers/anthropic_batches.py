"""Anthropic's Message Batches. Format and limits: https://docs.anthropic.com/en/api/creating-message-batches."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Any, ClassVar

from swe_infer.errors import RequestError, TransientError
from swe_infer.providers.anthropic_client import AnthropicProvider
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch
from swe_infer.providers.faults import classify
from swe_infer.providers.wire import MOST_PAGES, named, whole_number
from swe_infer.types import ApiModel, Request

_PATH = "/v1/messages/batches"
_GRACE_S = 600.0


class AnthropicBatches(AnthropicProvider):
    """The batch side of Messages; implements :class:`~swe_infer.providers.base.BatchProvider`.

    A batch carries no name of its own here: its items' custom ids do, and those show once it has ended.
    """

    has_batches: ClassVar[bool] = True
    max_batch_requests: int = 100_000
    max_batch_bytes: int = 256_000_000

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        item = {"custom_id": custom_id, "params": self.body(request, model)}
        return json.dumps(item, separators=(",", ":")).encode()

    async def submit(self, items: Mapping[str, bytes], *, label: str, timeout_s: float) -> str:
        order = b'{"requests":[' + b",".join(items.values()) + b"]}"
        headers = {"content-type": "application/json"}
        batch = await self._call("POST", _PATH, timeout_s=timeout_s, content=order, options={"headers": headers})
        return self._id(batch, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"limit": 100}
        for _ in range(MOST_PAGES):
            page = await self._call("GET", _PATH, timeout_s=timeout_s, options={"params": params})
            with self._shaped("batches"):
                listed = page.get("data") or []
                batches = [b for b in listed if _created(b) >= since - _GRACE_S]
                named_ids = [self._id(batch, "batches") for batch in batches]
            for batch, batch_id in zip(batches, named_ids, strict=True):
                ended = batch.get("processing_status") == "ended"
                if not ended or await self._bears(label, batch_id, timeout_s):
                    found.append(FoundBatch(batch_id, certain=ended, total=_total(batch)))
            if not page.get("has_more") or not listed or len(batches) < len(listed):  # newest first
                return found
            params["after_id"] = self._id({"id": page.get("last_id")}, "batches")
        raise self._unreadable("a list without an end", self._where("batches"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        batch = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s=timeout_s)
        with self._shaped(batch_id):
            done = whole_number((batch.get("request_counts") or {}).get("succeeded"))
            state: Any = "ended" if batch.get("processing_status") == "ended" else "running"
            return BatchStatus(state, _total(batch), done)

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        # Not at the address that the batch states as its results_url, which may be another host's.
        path = f"{_PATH}/{batch_id}/results"
        async with aclosing(self._results(path, batch_id, timeout_s=timeout_s)) as entries:
            async for custom_id, entry in entries:
                yield custom_id, self._result(custom_id, entry)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"{_PATH}/{batch_id}/cancel", timeout_s=timeout_s)

    async def _bears(self, label: str, batch_id: str, timeout_s: float) -> bool:
        """Whether an ended batch's first result has a custom id that begins with ``label``."""
        async with aclosing(self.results(batch_id, timeout_s=timeout_s)) as results:
            async for custom_id, _ in results:
                return custom_id.startswith(label)
        return False

    def _result(self, custom_id: str, entry: dict[str, Any] | RequestError) -> Answer | RequestError:
        if isinstance(entry, RequestError):
            return entry
        where = self._where(custom_id)
        result = entry["result"] if isinstance(entry.get("result"), dict) else {}
        kind = result.get("type")
        if kind == "succeeded":
            message = result.get("message")
            try:
                return self.understood(message if isinstance(message, dict) else {}, None, where, {})
            except RequestError as error:
                return error
        if kind == "errored":
            return self.verdict(classify(None, result.get("error") or {}, {}, where=where, secret=self._key()))
        return TransientError(f"{where}: the request {named(kind) or 'came to nothing'} in its batch")


def _created(batch: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(batch["created_at"]).timestamp()
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return float("inf")  # unknown: better looked at than passed over


def _total(batch: Mapping[str, Any]) -> int:
    counts = batch.get("request_counts")
    return sum(map(whole_number, counts.values())) if isinstance(counts, dict) else 0
