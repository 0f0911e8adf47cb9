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
from swe_infer.types import ApiModel, Request

__all__ = ["AnthropicBatches"]

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
        while True:
            page = await self._call("GET", _PATH, timeout_s=timeout_s, options={"params": params})
            batches = [b for b in page.get("data") or [] if _created(b) >= since - _GRACE_S]
            for batch in batches:
                ended = batch.get("processing_status") == "ended"
                if not ended or await self._bears(label, batch["id"], timeout_s):
                    found.append(FoundBatch(batch["id"], certain=ended, total=_total(batch)))
            if not page.get("has_more") or len(batches) < len(page["data"]):  # newest first
                return found
            params["after_id"] = page["last_id"]

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        batch = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s=timeout_s)
        done = int((batch.get("request_counts") or {}).get("succeeded") or 0)
        return BatchStatus("ended" if batch.get("processing_status") == "ended" else "running", _total(batch), done)

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        async with self._translated(self._where(batch_id), None):  # a long read: only silence is bounded
            try:
                entries = await self._client.messages.batches.results(
                    batch_id, timeout=self._timeout(timeout_s), extra_headers=self._headers
                )
                async for entry in entries:
                    plain = entry.to_dict()
                    yield str(plain["custom_id"]), self._result(plain)
            except (ValueError, TypeError, KeyError, AttributeError) as error:  # no JSON, or of another shape
                raise TransientError(f"{self._where(batch_id)}: broken results ({type(error).__name__})") from None

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"{_PATH}/{batch_id}/cancel", timeout_s=timeout_s)

    async def _bears(self, label: str, batch_id: str, timeout_s: float) -> bool:
        """Whether an ended batch's first result has a custom id that begins with ``label``."""
        async with aclosing(self.results(batch_id, timeout_s=timeout_s)) as results:
            async for custom_id, _ in results:
                return custom_id.startswith(label)
        return False

    def _result(self, entry: dict[str, Any]) -> Answer | RequestError:
        where = self._where(str(entry["custom_id"]))
        result = entry.get("result") or {}
        kind = result.get("type")
        if kind == "succeeded":
            try:
                return self.understood(result.get("message") or {}, None, where, {})
            except RequestError as error:
                return error
        if kind == "errored":
            return self.verdict(classify(None, result.get("error") or {}, {}, where=where, secret=self._key()))
        return TransientError(f"{where}: the request {kind or 'came to nothing'} in its batch")


def _created(batch: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(batch["created_at"]).timestamp()
    except (ValueError, TypeError, KeyError):
        return float("inf")  # unknown: better looked at than passed over


def _total(batch: Mapping[str, Any]) -> int:
    return sum(int(count or 0) for count in (batch.get("request_counts") or {}).values())
