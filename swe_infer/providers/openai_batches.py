"""OpenAI's batches: a file of requests, one JSON line each, and a file of answers.

Format and limits: https://platform.openai.com/docs/guides/batch.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any, ClassVar

from swe_infer.errors import RequestError, TransientError
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch
from swe_infer.providers.faults import classify
from swe_infer.providers.openai_client import OpenAIProvider
from swe_infer.types import ApiModel, Request

__all__ = ["OpenAIBatches"]

_LABEL = "swe_infer"
_GRACE_S = 600.0
_STATES = {"completed": "ended", "expired": "ended", "cancelled": "ended", "failed": "failed"}


class OpenAIBatches(OpenAIProvider):
    """The batch side of an OpenAI interface; implements :class:`~swe_infer.providers.base.BatchProvider`."""

    has_batches: ClassVar[bool] = True
    max_batch_requests: int = 50_000
    max_batch_bytes: int = 200_000_000
    batch_endpoint: ClassVar[str]
    """The address that the batch's requests are meant for."""

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        body = self.body(request, model)
        line = {"custom_id": custom_id, "method": "POST", "url": self.batch_endpoint, "body": body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    async def submit(self, items: Mapping[str, bytes], *, label: str, timeout_s: float) -> str:
        file = (f"{label}.jsonl", b"".join(items.values()), "application/jsonl")
        multipart = {"headers": {"Content-Type": "multipart/form-data"}}
        uploaded = await self._call(
            "POST",
            "/files",
            timeout_s=timeout_s,
            body={"purpose": "batch"},
            files=[("file", file)],
            options=multipart,
        )
        order = {
            "input_file_id": uploaded.get("id"),
            "endpoint": self.batch_endpoint,
            "completion_window": "24h",
            "metadata": {_LABEL: label},
        }
        batch = await self._call("POST", "/batches", timeout_s=timeout_s, body=order)
        return self._id(batch, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"limit": 100}
        while True:
            page = await self._call("GET", "/batches", timeout_s=timeout_s, options={"params": params})
            batches = page.get("data") or []
            for batch in batches:
                if (batch.get("metadata") or {}).get(_LABEL) == label:
                    found.append(FoundBatch(batch["id"], certain=True, total=_counts(batch)[0]))
            # Newest first; a listing that goes on past ``since`` holds nothing more of interest.
            if not page.get("has_more") or not batches or batches[-1]["created_at"] < since - _GRACE_S:
                return found
            params["after"] = batches[-1]["id"]

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s=timeout_s)
        total, done = _counts(batch)
        error = None
        if batch.get("status") == "failed":
            causes = (batch.get("errors") or {}).get("data") or [{}]
            error = classify(None, {"error": causes[0]}, {}, where=self._where(batch_id), secret=self._key())
        state: Any = _STATES.get(str(batch.get("status")), "running")
        return BatchStatus(state, total, done, error)

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s=timeout_s)
        for key in ("output_file_id", "error_file_id"):
            if not batch.get(key):
                continue
            async with (
                self._translated(self._where(batch_id), None),  # a long read: only silence is bounded
                self._client.files.with_streaming_response.content(
                    batch[key], timeout=self._timeout(timeout_s), extra_headers=self._headers
                ) as response,
            ):
                async for line in response.iter_lines():
                    if (result := self._result(line)) is not None:
                        yield result

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"/batches/{batch_id}/cancel", timeout_s=timeout_s)

    def _result(self, line: str) -> tuple[str, Answer | RequestError] | None:
        """One line of an output or error file; None where it cannot be told whose it is."""
        try:
            entry = json.loads(line)
            custom_id = str(entry["custom_id"])
        except (ValueError, TypeError, KeyError):
            return None
        where = self._where(custom_id)
        response = entry.get("response")
        if not response:
            error = entry.get("error") or {}
            return custom_id, TransientError(f"{where}: {error.get('code')}: {error.get('message')}")
        headers = {"x-request-id": response.get("request_id") or ""}
        body = response.get("body")
        if response.get("status_code") != 200 or not isinstance(body, dict):
            failed = classify(response.get("status_code"), body, headers, where=where, secret=self._key())
            return custom_id, self.verdict(failed)
        try:
            return custom_id, self.understood(body, None, where, headers)
        except RequestError as error:
            return custom_id, error


def _counts(batch: Mapping[str, Any]) -> tuple[int, int]:
    counts = batch.get("request_counts") or {}
    return int(counts.get("total") or 0), int(counts.get("completed") or 0)
