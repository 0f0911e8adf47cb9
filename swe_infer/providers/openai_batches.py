"""OpenAI's batches. Format and limits: https://platform.openai.com/docs/guides/batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swe_infer.errors import RequestError, TransientError
from swe_infer.providers.base import BatchStatus, FoundBatch
from swe_infer.providers.faults import classify, one_line
from swe_infer.providers.file_batches import GRACE_S, LABEL, FileBatches, json_line
from swe_infer.providers.usage import whole_number
from swe_infer.providers.wire import MAX_PAGES, WireProvider, named
from swe_infer.types import ApiModel, Request

_FILES = ("output_file_id", "error_file_id")
_ENDED = ("completed", "expired", "cancelled")


class OpenAIBatches(FileBatches):
    """Batches of an OpenAI API.

    Args:
        endpoint: the endpoint of the requests.
    """

    max_batch_requests = 50_000
    max_batch_bytes = 200_000_000
    running_states = ("validating", "in_progress", "finalizing", "cancelling")

    def __init__(self, provider: WireProvider, endpoint: str = "/v1/chat/completions") -> None:
        super().__init__(provider)
        self._endpoint = endpoint

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        body = {**self._provider.body(request, model), "stream": False}
        return json_line({"custom_id": custom_id, "method": "POST", "url": self._endpoint, "body": body})

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        order = {
            "input_file_id": await self._upload(items, label, {"purpose": "batch"}, timeout_s=timeout_s),
            "endpoint": self._endpoint,
            "completion_window": "24h",
            "metadata": {LABEL: label},
        }
        batch = await self._call("POST", "/batches", timeout_s, body=order)
        return self._provider._id(batch, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        provider = self._provider
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"limit": 100}
        for _ in range(MAX_PAGES):
            page = await self._call("GET", "/batches", timeout_s, options={"params": params})
            with provider._shape_errors("batches"):
                batches = page.get("data") or []
                for batch in batches:
                    if (batch.get("metadata") or {}).get(LABEL) == label:
                        batch_id = provider._id(batch, "batches")
                        found.append(FoundBatch(batch_id, certain=True, total=_counts(batch)[0]))
                # Newest first: entries before ``since`` are not needed.
                if not page.get("has_more") or not batches or batches[-1]["created_at"] < since - GRACE_S:
                    return found
                params["after"] = provider._id(batches[-1], "batches")
        raise provider._unreadable("an endless list", provider._where("batches"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        provider = self._provider
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s)
        with provider._shape_errors(batch_id):
            _, done, failed = _counts(batch)
            state = self._state(batch_id, batch.get("status"))
            if state in _ENDED or (state == "failed" and (done or any(map(batch.get, _FILES)))):
                return BatchStatus("ended", done, failed)
            if state != "failed":
                return self._unended(batch_id, state, batch.get("completed_at"), done, failed)
            causes = (batch.get("errors") or {}).get("data") or [{}]
            where = provider._where(batch_id)
            error = classify(None, {"error": causes[0]}, {}, where=where, secret=provider._key())
            return BatchStatus("failed", error=error)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"/batches/{batch_id}/cancel", timeout_s)

    async def _result_files(self, batch_id: str, timeout_s: float) -> Sequence[str]:
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s)
        with self._provider._shape_errors(batch_id):
            has_answers = _counts(batch)[1] > 0
        ids = [batch[key] for key in _FILES if batch.get(key)]
        if (has_answers and not batch.get("output_file_id")) or (batch.get("status") == "completed" and not ids):
            raise self._missing_answers(batch_id)
        return [f"/files/{self._provider._id({'id': file_id}, batch_id)}/content" for file_id in ids]

    def _error_without_response(self, error: Any, where: str) -> RequestError:
        """OpenAI states no response if a request was not executed, such as ``batch_expired``."""
        words = [named(error.get(key)) for key in ("code", "message")] if isinstance(error, dict) else [error]
        return TransientError(one_line(f"{where}: {': '.join(map(str, words))}", self._provider._key()))


def _counts(batch: Mapping[str, Any]) -> tuple[int, int, int]:
    """(requests, answers, errors) of a batch."""
    counts = batch.get("request_counts") or {}
    total, done, failed = (whole_number(counts.get(key)) for key in ("total", "completed", "failed"))
    return total, done, failed
