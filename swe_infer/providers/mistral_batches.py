"""Mistral's batches.

Format: ``mistralai.client.models`` (CreateBatchJobRequest, BatchJob, BatchJobStatus) and ``mistralai.extra.batch`` of
its SDK; https://docs.mistral.ai/capabilities/batch. Limits: https://docs.mistral.ai/resources/known-limitations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from swe_infer.providers.base import BatchStatus, FoundBatch
from swe_infer.providers.file_batches import GRACE_S, LABEL, FileBatches, json_line
from swe_infer.providers.usage import whole_number
from swe_infer.providers.wire import MAX_PAGES
from swe_infer.types import ApiModel, Request

_PATH = "/batch/jobs"
_FILES = ("output_file", "error_file")
_ENDED = ("SUCCESS", "TIMEOUT_EXCEEDED", "CANCELLED")


class MistralBatches(FileBatches):
    """Batches of chat completions. The model belongs to the batch, not to its requests."""

    max_batch_requests = 100_000
    max_batch_bytes = 512_000_000
    running_states = ("QUEUED", "RUNNING", "CANCELLATION_REQUESTED")

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        body = self._provider.body(request, model)
        return json_line({"custom_id": custom_id, "body": {k: v for k, v in body.items() if k != "model"}})

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        order = {
            "input_files": [await self._upload(items, label, {"purpose": "batch"}, timeout_s=timeout_s)],
            "model": model.name,
            "endpoint": "/v1/chat/completions",
            "metadata": {LABEL: label},
            "timeout_hours": 24,
        }
        return self._provider._id(await self._call("POST", _PATH, timeout_s, body=order), "jobs")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        provider = self._provider
        found: dict[str, FoundBatch] = {}  # a new job moves others to the next page
        for page in range(MAX_PAGES):
            params = {"page": page, "page_size": 100, "order_by": "-created"}
            listed = await self._call("GET", _PATH, timeout_s, options={"params": params})
            with provider._shape_errors("jobs"):
                jobs = listed.get("data") or []
                for job in jobs:
                    if (job.get("metadata") or {}).get(LABEL) == label:
                        batch_id = provider._id(job, "jobs")
                        total = whole_number(job.get("total_requests"))
                        found[batch_id] = FoundBatch(batch_id, certain=True, total=total)
                # Newest first: jobs before ``since`` are not needed.
                if not jobs or jobs[-1]["created_at"] < since - GRACE_S:
                    return list(found.values())
        raise provider._unreadable("an endless list", provider._where("jobs"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        job = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s)
        done, failed = (whole_number(job.get(f"{which}_requests")) for which in ("succeeded", "failed"))
        state = self._state(batch_id, job.get("status"))
        if state in _ENDED or (state == "FAILED" and (done or any(map(job.get, _FILES)))):
            return BatchStatus("ended", done, failed)
        if state != "FAILED":
            return self._unended(batch_id, state, job.get("completed_at"), done, failed)
        with self._provider._shape_errors(batch_id):
            causes = job.get("errors") or [{}]
            error = self._error_without_response(causes[0].get("message"), self._provider._where(batch_id))
            return BatchStatus("failed", error=error)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"{_PATH}/{batch_id}/cancel", timeout_s)

    async def _result_files(self, batch_id: str, timeout_s: float) -> Sequence[str]:
        job = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s)
        ids = [job[key] for key in _FILES if job.get(key)]
        has_answers = whole_number(job.get("succeeded_requests")) > 0
        if (has_answers and not job.get("output_file")) or (job.get("status") == "SUCCESS" and not ids):
            raise self._missing_answers(batch_id)
        return [f"/files/{self._provider._id({'id': file_id}, batch_id)}/content" for file_id in ids]
