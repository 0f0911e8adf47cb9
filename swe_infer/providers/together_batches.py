"""Together's batches.

Format: ``together.types`` (BatchCreateParams, BatchCreateResponse, BatchJob, BatchListResponse, FileList) of its SDK;
https://docs.together.ai/reference/upload-file. Limits and files: https://docs.together.ai/docs/inference/batch/overview
and https://docs.together.ai/docs/inference/batch/manage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from swe_infer.errors import TransientError
from swe_infer.providers.base import BatchStatus, FoundBatch
from swe_infer.providers.faults import one_line
from swe_infer.providers.file_batches import FileBatches, file_name, json_line
from swe_infer.types import ApiModel, Request

logger = logging.getLogger(__name__)

_PATH = "/batches"
_FILES = ("output_file_id", "error_file_id")
_ENDED = ("COMPLETED", "EXPIRED", "CANCELLED")


class TogetherBatches(FileBatches):
    """Batches of chat completions.

    They have neither metadata nor counts. A batch is identified by the name of its file of requests.
    """

    max_batch_requests = 50_000
    max_batch_bytes = 100_000_000
    running_states = ("VALIDATING", "IN_PROGRESS")

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        return json_line({"custom_id": custom_id, "body": self._provider.body(request, model)})

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        fields = {"purpose": "batch-api", "file_name": file_name(label), "file_type": "jsonl"}
        try:
            file_id = await self._upload(items, label, fields, path="/files/upload", timeout_s=timeout_s)
        except TransientError as error:
            # An earlier attempt uploaded it (together.lib.resources.files.FileAlreadyExistsError).
            if error.status != 409 or not (uploaded := await self._request_files(label, timeout_s)):
                raise
            file_id = uploaded[0]
        order = {
            "input_file_id": file_id,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        created = await self._call("POST", _PATH, timeout_s, body=order)
        if isinstance(warning := created.get("warning"), str) and warning:
            logger.warning("batch %s: %s", label, one_line(warning, self._provider._key()))
        job = created.get("job")
        return self._provider._id(job if isinstance(job, dict) else {}, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        provider = self._provider
        if not (files := await self._request_files(label, timeout_s)):
            return []
        jobs = await self._call("GET", _PATH, timeout_s, describes_failures=True)
        with provider._shape_errors("batches"):
            mine = [job for job in jobs["data"] or [] if job.get("input_file_id") in files]
            return [FoundBatch(provider._id(job, "batches"), certain=True, total=0) for job in mine]

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        job = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s, describes_failures=True)
        state = self._state(batch_id, job.get("status"))
        if state in _ENDED or (state == "FAILED" and (job.get("progress") or any(map(job.get, _FILES)))):
            is_whole = state == "COMPLETED" and job.get("progress") in (None, 100)
            return BatchStatus("ended", None if is_whole else 0)
        if state != "FAILED":
            return self._unended(batch_id, state, job.get("completed_at"))
        error = self._error_without_response(job.get("error"), self._provider._where(batch_id))
        return BatchStatus("failed", error=error)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"{_PATH}/{batch_id}/cancel", timeout_s, describes_failures=True)

    async def _request_files(self, label: str, timeout_s: float) -> list[str]:
        """The ids of the files with the requests of a batch; several if its submission was repeated."""
        files = await self._call("GET", "/files", timeout_s)
        with self._provider._shape_errors("files"):
            mine = [file for file in files["data"] if file.get("filename") == file_name(label)]
            return [self._provider._id(file, "files") for file in mine]

    async def _result_files(self, batch_id: str, timeout_s: float) -> Sequence[str]:
        job = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s, describes_failures=True)
        ids = [job[key] for key in _FILES if job.get(key)]
        if not ids and (job.get("status") == "COMPLETED" or job.get("progress")):
            raise self._missing_answers(batch_id)
        return [f"/files/{self._provider._id({'id': file_id}, batch_id)}/content" for file_id in ids]
