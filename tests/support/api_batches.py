"""OpenAI's files, batches and background responses, Anthropic's message batches, and the batches of Mistral, Together
and Gemini, of the loopback API server (in memory)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any, Literal

from tests.support.api_batch_forms import FORMS, file_of
from tests.support.api_calls import Call, dialect_of, parse_call
from tests.support.api_faults import ERROR_FAULTS, Fault, HttpError, error_of
from tests.support.api_http import HttpRequest

__all__ = ["BatchDesk", "Route"]

Route = tuple[int, bytes | dict[str, Any] | list[Any]]
"""Status and body."""

AnswerItem = Callable[[Call, str, str], tuple[int, dict[str, Any], Fault | None]]
"""(call, batch id, custom id) to (status, vendor's body, fault); writes the log."""

_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_RUNNING = ("queued", "in_progress")


@dataclass
class _Batch:
    id: str
    vendor: Literal["openai", "anthropic", "mistral", "together", "gemini"]
    items: list[dict[str, Any]]
    created_at: float
    headers: dict[str, str]
    endpoint: str = "/v1/messages"
    model: str = ""
    input_file_id: str | None = None
    metadata: dict[str, str] | None = None
    status: str = "in_progress"
    errors: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    ended_at: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)


class BatchDesk:
    """Accepts batches and background responses, answers them later, returns the results of a batch in shuffled order.

    Args:
        refusal_of: the error of a background response that is refused when it is submitted.
        delay_s: how long a batch or background response takes.
        max_requests: items that one batch may hold.
    """

    def __init__(
        self,
        answer_item: AnswerItem,
        *,
        refusal_of: Callable[[Call], HttpError | None],
        delay_s: float,
        max_requests: int = 50_000,
        seed: int = 0,
    ) -> None:
        self._refusal_of = refusal_of
        self._responses: dict[str, dict[str, Any]] = {}
        self._forgotten: set[str] = set()
        self.response_delay_s = 0.0
        """Seconds between the acceptance of a background response and the answer with its id."""
        self.peak_running = 0
        """The most background responses that were running at once."""
        self.delay_s = delay_s
        self.max_requests = max_requests
        self.drop_next_submissions = 0
        """Number of submissions that are accepted before the connection breaks without a response."""
        self.listing_status: int | None = None
        """The HTTP status of the response to a list request; None: the list."""
        self.miscounted = 0
        """How many requests too many OpenAI's list states for each batch."""
        self.answer_headers: dict[str, str] = {}
        """Headers of the current response."""
        self.rewrite: Callable[[bytes], bytes] = bytes
        """Changes the content of each file of results before it is sent."""
        self.storage: str | None = None
        """The URL to which requests for the content of files are redirected."""
        self.refused: set[str] = set()
        """Ids of background responses that cannot be read (HTTP 400)."""
        self.refuse_once = ""
        """The next background response with this in its prompt is refused (HTTP 429)."""
        self.held = False
        """While set, no batch ends."""
        self.max_running: int | None = None
        """The most requests in running batches. OpenAI fails a batch above it, and Anthropic refuses it."""
        self.expire_next_after: int | None = None
        """The next batch expires after this number of its items were answered."""
        self.fail_next = ""
        """The next batch fails as a whole, with this message."""
        self._answer_item = answer_item
        self._chance = random.Random(seed)
        self._files: dict[str, dict[str, Any]] = {}
        self._batches: dict[str, _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submitted(self) -> list[str]:
        """Ids of all accepted batches and background responses, in order."""
        return [*self._batches, *self._responses]

    def file(self, file_id: str) -> bytes:
        """The content of a file."""
        content: bytes = self._files[file_id]["content"]
        return content

    def forget_responses(self) -> None:
        """Deletes all background responses: their ids are unknown."""
        self._forgotten |= self._responses.keys()

    def route(self, request: HttpRequest, base: str) -> Route | None:
        """Answer a request for files or batches; None for other paths. ``base``: the server's root."""
        if match := re.fullmatch(r"(/upload|/download|)/v1beta/((?:files|models|batches)\b.*)", request.path):
            return self._gemini_route(request, match[1], match[2])
        path = re.sub(r"^(/openai)?(/v1)?", "", request.path)
        parts = path.strip("/").split("/")
        listed = request.method == "GET" and parts[-1] in ("batches", "jobs")
        if listed and self.listing_status is not None:
            return self.listing_status, {"error": {"message": "no list here", "type": "invalid_request_error"}}
        match parts:
            case ["batch", "jobs", *rest]:
                return self._mistral_route(request, rest)
            case ["files", "upload"]:
                fields = _multipart(request)
                if fields["purpose"] != b"batch-api" or not fields["file_name"].endswith(b".jsonl"):
                    return 400, _openai_error("purpose must be batch-api", "invalid_value")
                if any(file["content"] == fields["file"] for file in self._files.values()):
                    return 409, _openai_error("File already exists", "conflict")
                return 200, _file_object(self._store_file(fields["file"], "batch-api", fields["file_name"]))
            case ["files", *rest]:
                return self._file_route(request, rest)
            case ["batches", *rest] if any(file["purpose"] == "batch-api" for file in self._files.values()):
                return self._together_route(request, rest)
            case ["batches", *rest]:
                return self._openai_route(request, rest)
            case ["messages", "batches", *rest]:
                return self._anthropic_route(request, rest, base)
            case ["responses", *rest]:
                return self._response_route(request, rest)
            case _:
                return None

    def _file_route(self, request: HttpRequest, rest: list[str]) -> Route:
        match request.method, rest:
            case "POST", []:
                fields = _multipart(request)
                stored = self._store_file(fields["file"], fields["purpose"].decode(), fields.get("filename", b""))
                return 200, _file_object(stored)
            case "GET", []:
                files = [f for f in self._files.values() if request.query.get("purpose") in (None, f["purpose"])]
                return 200, _page([_file_object(f) for f in reversed(files)], request, "after")
            case _, [file_id, *tail] if file_id in self._files:
                if tail == ["content"] and self.storage is not None:
                    self.answer_headers = {"location": f"{self.storage}/{file_id}?signature=x"}
                    return 302, b""
                if tail == ["content"]:
                    return 200, self.rewrite(self._files[file_id]["content"])
                if request.method == "DELETE":
                    del self._files[file_id]
                    return 200, {"id": file_id, "object": "file", "deleted": True}
                return 200, _file_object(self._files[file_id])
            case _:
                return 404, _openai_error("No such File object", "file_not_found")

    def _store_file(self, content: bytes, purpose: str, filename: bytes = b"") -> dict[str, Any]:
        file_id = f"file-{len(self._files) + 1:06d}"
        name = filename.decode() or f"{file_id}.jsonl"
        created = int(time.time())
        self._files[file_id] = {
            "id": file_id,
            "content": content,
            "purpose": purpose,
            "filename": name,
            "created": created,
        }
        return self._files[file_id]

    def _openai_route(self, request: HttpRequest, rest: list[str]) -> Route:
        match request.method, rest:
            case "POST", []:
                body = json.loads(request.body)
                if body["input_file_id"] not in self._files:
                    return 400, _openai_error("Invalid input_file_id", "invalid_value")
                return 200, _openai_batch(self._open_openai(body, dict(request.headers)))
            case "GET", []:
                found = [_openai_batch(b) for b in reversed(self._batches.values()) if b.vendor == "openai"]
                for shown in found:
                    shown["request_counts"]["total"] += self.miscounted
                return 200, _page(found, request, "after")
            case _, [batch_id, *tail] if batch_id in self._batches:
                if tail == ["cancel"]:
                    self._cancel(self._batches[batch_id], "cancelling")
                return 200, _openai_batch(self._batches[batch_id])
            case _:
                return 404, _openai_error("No batch found with that id", "not_found")

    def _open_openai(self, body: dict[str, Any], headers: dict[str, str]) -> _Batch:
        batch = _Batch(
            id=f"batch_{len(self._batches) + 1:06d}",
            vendor="openai",
            items=[],
            created_at=time.time(),
            headers=headers,
            endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
            metadata=body.get("metadata"),
        )
        self._batches[batch.id] = batch
        lines = self._files[body["input_file_id"]]["content"].splitlines()
        try:
            batch.items = [json.loads(line) for line in lines]
        except ValueError as error:
            batch.errors = [{"code": "invalid_json_line", "message": str(error), "line": 1, "param": None}]
        if len({item["custom_id"] for item in batch.items}) < len(batch.items):
            batch.errors = [{"code": "duplicate_custom_id", "message": "custom ids repeat", "line": 1}]
        if len({item["body"].get("model") for item in batch.items}) > 1:
            batch.errors = [{"code": "mismatched_model", "message": "one model for each batch", "line": 1}]
        if len(batch.items) > self.max_requests:
            batch.errors = [{"code": "too_many_tasks", "message": "too many requests", "line": None}]
        if self._is_full(batch.items, batch):
            message = "Enqueued token limit reached for gpt-4o in organization org-1. Limit: 90,000 enqueued tokens. "
            message += "Please try again once some in_progress batches have been completed."
            batch.errors = [{"code": "token_limit_exceeded", "message": message, "line": None, "param": None}]
        if batch.errors:
            batch.status, batch.ended_at = "failed", time.time()
        else:
            self._work(batch)
        return batch

    def _is_full(self, items: list[dict[str, Any]], batch: _Batch | None = None) -> bool:
        """Whether the requests of ``batch`` are too many beside those of other batches."""
        running = sum(len(b.items) for b in self._batches.values() if b.ended_at is None and b is not batch)
        return self.max_running is not None and running + len(items) > self.max_running

    def _mistral_route(self, request: HttpRequest, rest: list[str]) -> Route:
        match request.method, rest:
            case "POST", []:
                body = json.loads(request.body)
                if set(body) - {"input_files", "model", "endpoint", "metadata", "timeout_hours"}:
                    return 422, {"detail": [{"type": "extra_forbidden", "msg": "Extra inputs are not permitted"}]}
                (file_id,) = body["input_files"]
                batch = self._open_batch("mistral", file_id, body["model"], body["metadata"], request)
                return 200, FORMS["mistral"].job(batch)
            case "GET", []:
                jobs = [FORMS["mistral"].job(b) for b in reversed(self._batches.values())]
                size = int(request.query["page_size"])
                start = int(request.query["page"]) * size
                return 200, {"object": "list", "data": jobs[start : start + size], "total": len(jobs)}
            case _, [batch_id, *tail] if batch_id in self._batches:
                if tail == ["cancel"]:
                    self._cancel(self._batches[batch_id], "cancelling")
                return 200, FORMS["mistral"].job(self._batches[batch_id])
            case _:
                return 404, {"detail": "Job not found"}

    def _together_route(self, request: HttpRequest, rest: list[str]) -> Route:
        match request.method, rest:
            case "POST", []:
                body = json.loads(request.body)
                assert body["endpoint"] == "/v1/chat/completions"
                batch = self._open_batch("together", body["input_file_id"], "", None, request)
                return 201, {"job": FORMS["together"].job(batch), "warning": "no discount for this model"}
            case "GET", []:
                return 200, [FORMS["together"].job(b) for b in self._batches.values()]
            case _, [batch_id, *tail] if batch_id in self._batches:
                if tail == ["cancel"]:
                    self._cancel(self._batches[batch_id], "cancelling")
                return 200, FORMS["together"].job(self._batches[batch_id])
            case _:
                return 404, _openai_error("Batch not found", "not_found")

    def _gemini_route(self, request: HttpRequest, kind: str, path: str) -> Route:
        if not request.headers.get("x-goog-api-key") or "authorization" in request.headers:
            return 401, _google_error(16, "Request had invalid authentication credentials.")
        name, _, verb = path.partition(":")
        match request.method, kind, name.split("/"), verb:
            case "POST", "/upload", ["files"], "":
                return self._gemini_upload(request)
            case "GET", "/download", ["files", _], "download" if name in self._files:
                return 200, self.rewrite(self._files[name]["content"])
            case "POST", "", ["models", model], "batchGenerateContent":
                order = json.loads(request.body)["batch"]
                metadata = {"displayName": order["displayName"]}
                batch = self._open_batch("gemini", order["inputConfig"]["fileName"], model, metadata, request)
                return 200, {"name": batch.id, "metadata": {**metadata, "state": "BATCH_STATE_PENDING"}}
            case "GET", "", ["batches"], "":
                jobs = [FORMS["gemini"].job(b) for b in self._batches.values()]
                start, size = int(request.query.get("pageToken", 0)), int(request.query["pageSize"])
                more = {"nextPageToken": str(start + size)} if start + size < len(jobs) else {}
                return 200, {"operations": jobs[start : start + size], **more}
            case _, "", ["batches", _], "" | "cancel" if name in self._batches:
                if verb == "cancel":
                    self._cancel(self._batches[name], "cancelling")
                    return 200, {}
                return 200, FORMS["gemini"].job(self._batches[name])
            case _:
                return 404, _google_error(5, "Requested entity was not found.")

    def _gemini_upload(self, request: HttpRequest) -> Route:
        """A resumable upload in one piece. The first answer names an address on another host, which must not be
        used."""
        command = request.headers["x-goog-upload-command"]
        if command == "start":
            assert request.headers["x-goog-upload-protocol"] == "resumable"
            file_name = json.loads(request.body)["file"]["displayName"]
            self.answer_headers = {
                "x-goog-upload-url": f"https://uploads.invalid/upload/v1beta/files?upload_id={file_name}"
            }
            return 200, {}
        assert (command, request.headers["x-goog-upload-offset"]) == ("upload, finalize", "0")
        stored = self._store_file(request.body, "batch", request.query["upload_id"].encode())
        name = f"files/{stored['id']}"
        self._files[name] = {**self._files.pop(stored["id"]), "id": name}
        return 200, {"file": {"name": name, "displayName": stored["filename"], "mimeType": "application/jsonl"}}

    def _open_batch(
        self, vendor: str, file_id: str, model: str, metadata: dict[str, str] | None, request: HttpRequest
    ) -> _Batch:
        batch = _Batch(
            id=f"{FORMS[vendor].id_prefix}{len(self._batches) + 1:012d}",
            vendor=vendor,  # type: ignore[arg-type]
            items=[json.loads(line) for line in self._files[file_id]["content"].splitlines()],
            created_at=time.time(),
            headers=dict(request.headers),
            model=model,
            metadata=metadata,
            input_file_id=file_id,
        )
        self._batches[batch.id] = batch
        ids = [item[FORMS[vendor].id_key] for item in batch.items]
        if len(set(ids)) < len(ids):
            batch.errors = [{"message": "custom ids repeat"}]
        if self.fail_next:
            batch.errors, self.fail_next = [{"message": self.fail_next}], ""
        if len(ids) > self.max_requests:
            batch.errors = [{"message": "too many requests"}]
        if batch.errors:
            batch.status, batch.ended_at = "failed", time.time()
        else:
            self._work(batch)
        return batch

    def _response_route(self, request: HttpRequest, rest: list[str]) -> Route:
        match request.method, rest:
            case "POST", []:
                body = json.loads(request.body)
                call = parse_call("openai_responses", request.path, dict(request.headers), body)
                if not body.get("store"):
                    return 400, _openai_error("Background mode requires store=true.", "invalid_value")
                if body.get("background_options") and body.get("service_tier", "auto") not in ("auto", "default"):
                    return 400, _openai_error("Completion windows need the standard service tier.", "invalid_value")
                if (refused := self._refusal_of(call)) is not None:
                    return refused.status, json.loads(refused.body)
                if self.refuse_once and self.refuse_once in call.prompt:
                    self.refuse_once = ""
                    return 429, _openai_error("Slow down", "rate_limit_exceeded")
                return 200, self._open_response(call)
            case _, [response_id, *_] if response_id in self.refused:
                return 400, _openai_error("Invalid id", "invalid_value")
            case _, [response_id, *tail] if response_id in self._responses.keys() - self._forgotten:
                response = self._responses[response_id]
                if tail == ["cancel"] and response["status"] in _RUNNING:
                    response["status"] = "cancelled"
                return 200, response
            case _:
                error = {
                    "message": f"Response with id '{'/'.join(rest)}' not found.",
                    "type": "invalid_request_error",
                }
                return 404, {"error": {**error, "param": None, "code": None}}

    def _open_response(self, call: Call) -> dict[str, Any]:
        response: dict[str, Any] = {
            "id": f"resp_bg_{len(self._responses) + 1:06d}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "queued",
            "background": True,
            "error": None,
            "incomplete_details": None,
            "model": call.model,
            "output": [],
            "usage": None,
        }
        self._responses[response["id"]] = response
        self.peak_running = max(self.peak_running, sum(r["status"] in _RUNNING for r in self._responses.values()))
        task = asyncio.get_running_loop().create_task(self._finish_response(response, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return response

    async def _finish_response(self, response: dict[str, Any], call: Call) -> None:
        await asyncio.sleep(self.delay_s / 2)
        response["status"] = "in_progress" if response["status"] == "queued" else response["status"]
        await asyncio.sleep(self.delay_s / 2)
        while self.held and response["status"] == "in_progress":  # noqa: ASYNC110 - set from the test's thread
            await asyncio.sleep(0.02)
        if response["status"] == "cancelled":
            return
        status, answer, _ = self._answer_item(call, "", response["id"])
        if status == 200:
            response |= {**answer, "id": response["id"]}
        else:
            code = "server_error" if status >= 500 else answer["error"].get("code") or answer["error"].get("type")
            response |= {"status": "failed", "error": {"code": code, "message": answer["error"]["message"]}}

    def _anthropic_route(self, request: HttpRequest, rest: list[str], base: str) -> Route:
        match request.method, rest:
            case "POST", []:
                items = json.loads(request.body)["requests"]
                ids = [item["custom_id"] for item in items]
                if len(set(ids)) < len(ids) or not all(_CUSTOM_ID.fullmatch(i) for i in ids) or not ids:
                    return 400, _anthropic_error("requests: custom_id must be unique and match its pattern")
                if len(items) > self.max_requests:
                    return 413, _anthropic_error("batch too large")
                if self._is_full(items):
                    return 429, _anthropic_error("too many requests in the processing queue", "rate_limit_error")
                batch = _Batch(
                    id=f"msgbatch_{len(self._batches) + 1:06d}",
                    vendor="anthropic",
                    items=items,
                    created_at=time.time(),
                    headers=dict(request.headers),
                )
                self._batches[batch.id] = batch
                self._work(batch)
                return 200, _anthropic_batch(batch, base)
            case "GET", []:
                found = [b for b in reversed(self._batches.values()) if b.vendor == "anthropic"]
                return 200, _page([_anthropic_batch(b, base) for b in found], request, "after_id")
            case _, [batch_id, *tail] if batch_id in self._batches:
                batch = self._batches[batch_id]
                if tail == ["results"]:
                    if batch.ended_at is None:
                        return 404, _anthropic_error("results are not available yet", "not_found_error")
                    return 200, self.rewrite(b"".join(json.dumps(line).encode() + b"\n" for line in batch.results))
                if tail == ["cancel"]:
                    self._cancel(batch, "canceling")
                return 200, _anthropic_batch(batch, base)
            case _:
                return 404, _anthropic_error("batch not found", "not_found_error")

    def _cancel(self, batch: _Batch, status: str) -> None:
        if batch.ended_at is None:
            batch.status = status
            batch.cancelled.set()

    def _work(self, batch: _Batch) -> None:
        task = asyncio.get_running_loop().create_task(self._finish(batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, batch: _Batch) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(batch.cancelled.wait(), self.delay_s)
        while self.held and not batch.cancelled.is_set():  # noqa: ASYNC110 - set from the test's thread
            await asyncio.sleep(0.02)
        results: list[dict[str, Any]] = []
        answered = batch.items
        if batch.vendor in FORMS and self.expire_next_after is not None:
            answered = batch.items[: self.expire_next_after]
        for item in answered:
            await asyncio.sleep(0)
            results += list(self._result(batch, item))
        self._chance.shuffle(results)
        batch.results = results
        if batch.vendor in FORMS:
            is_good = FORMS[batch.vendor].is_good
            good = [line for line in results if batch.vendor == "gemini" or is_good(line)]
            files = {"output_file_id": good, "error_file_id": [line for line in results if line not in good]}
            is_empty = not results and not batch.cancelled.is_set()  # answers were lost
            for name, lines in files.items():
                if lines or (is_empty and name == "output_file_id"):
                    stored = self._store_file(file_of(lines), "batch_output")
                    file_id = f"files/{stored['id']}" if batch.vendor == "gemini" else stored["id"]
                    self._files[file_id] = self._files.pop(stored["id"])
                    setattr(batch, name, file_id)
            batch.ended_at = time.time()
            if len(answered) < len(batch.items):
                batch.status, self.expire_next_after = "expired", None
            else:
                batch.status = "cancelled" if batch.cancelled.is_set() else "completed"
            return
        if batch.vendor == "openai":
            good = [line for line in results if line["response"] and line["response"]["status_code"] == 200]
            bad = [line for line in results if line not in good] if len(good) < len(results) else []
            for name, lines in (("output_file_id", good), ("error_file_id", bad)):
                if lines or (not results and name == "output_file_id" and not batch.cancelled.is_set()):
                    content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
                    setattr(batch, name, self._store_file(content, "batch_output")["id"])
        batch.ended_at = time.time()
        ended = {"openai": "completed", "anthropic": "ended"}[batch.vendor]
        cancelled = batch.cancelled.is_set() and batch.vendor == "openai"
        batch.status = "cancelled" if cancelled else ended

    def _result(self, batch: _Batch, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if batch.vendor in FORMS:
            yield from self._result_in_form(batch, item)
            return
        custom_id = item["custom_id"]
        if batch.cancelled.is_set():
            if batch.vendor == "anthropic":
                yield {"custom_id": custom_id, "result": {"type": "canceled"}}
            return
        path = item["url"] if batch.vendor == "openai" else batch.endpoint
        dialect = dialect_of(path)
        assert dialect is not None
        body = item["body"] if batch.vendor == "openai" else item["params"]
        call = parse_call(dialect, path, batch.headers, body, batch=True)
        status, answer, fault = self._answer_item(call, batch.id, custom_id)
        kind = fault.kind if fault else None
        if kind == "batch_lost":
            return
        if kind == "batch_wrong_id":
            custom_id = f"other-{custom_id}"[:64]
        if batch.vendor == "openai":
            yield _openai_line(custom_id, status, answer, expired=kind == "batch_expired")
        elif kind == "batch_expired":
            yield {"custom_id": custom_id, "result": {"type": "expired"}}
        elif status != 200:
            yield {"custom_id": custom_id, "result": {"type": "errored", "error": answer}}
        else:
            yield {"custom_id": custom_id, "result": {"type": "succeeded", "message": answer}}

    def _result_in_form(self, batch: _Batch, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if batch.cancelled.is_set():
            return
        form = FORMS[batch.vendor]
        custom_id = item[form.id_key]
        try:
            call = form.call(batch, item)
        except (KeyError, TypeError, ValueError) as error:
            refused = {"error": {"message": f"malformed request: {error!r}", "code": "invalid_value"}}
            yield form.line(batch, custom_id, 400, refused, expired=False)
            return
        status, answer, fault = self._answer_item(call, batch.id, custom_id)
        kind = fault.kind if fault else None
        if kind == "batch_wrong_id":
            custom_id = f"other-{custom_id}"[:64]
        if kind != "batch_lost":
            yield form.line(batch, custom_id, status, answer, expired=kind == "batch_expired")


def item_error(fault: Fault | None, call: Call) -> tuple[int, dict[str, Any]] | None:
    """Status and body of a batch item that fails; None if ``fault`` leaves an answer."""
    if fault is None or fault.kind not in ERROR_FAULTS or fault.kind == "bad_gateway_html":
        return None
    error = error_of(fault, call, time.time())
    return error.status, json.loads(error.body)


def _openai_line(custom_id: str, status: int, body: dict[str, Any], *, expired: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"id": f"batch_req_{custom_id}", "custom_id": custom_id, "response": None, "error": None}
    if expired:
        message = "This request could not be executed before the completion window expired."
        return {**line, "error": {"code": "batch_expired", "message": message}}
    return {**line, "response": {"status_code": status, "request_id": f"req_{custom_id}", "body": body}}


def _openai_batch(batch: _Batch) -> dict[str, Any]:
    done = batch.results if batch.ended_at else []
    failed = sum(1 for line in done if not line["response"] or line["response"]["status_code"] != 200)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": "24h",
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at),
        "completed_at": int(batch.ended_at) if batch.ended_at else None,
        "request_counts": {"total": len(batch.items), "completed": len(done) - failed, "failed": failed},
        "metadata": batch.metadata,
    }


def _anthropic_batch(batch: _Batch, base: str) -> dict[str, Any]:
    counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
    for line in batch.results:
        counts[line["result"]["type"]] += 1
    ended = batch.ended_at is not None
    stamp = _rfc3339(batch.created_at)
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": batch.status if not ended else "ended",
        "request_counts": {"processing": 0 if ended else len(batch.items), **counts},
        "created_at": stamp,
        "expires_at": _rfc3339(batch.created_at + 86_400),
        "ended_at": _rfc3339(batch.ended_at) if batch.ended_at else None,
        "archived_at": None,
        "cancel_initiated_at": stamp if batch.cancelled.is_set() else None,
        "results_url": f"{base}/v1/messages/batches/{batch.id}/results" if ended else None,
    }


def _rfc3339(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def _page(items: list[dict[str, Any]], request: HttpRequest, cursor: str) -> dict[str, Any]:
    after = request.query.get(cursor)
    ids = [item["id"] for item in items]
    start = ids.index(after) + 1 if after in ids else 0
    limit = int(request.query.get("limit", 20))
    page = items[start : start + limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": start + limit < len(items), **ends}


def _file_object(stored: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": stored["id"],
        "object": "file",
        "bytes": len(stored["content"]),
        "created_at": stored["created"],
        "filename": stored["filename"],
        "purpose": stored["purpose"],
        "status": "processed",
    }


def _multipart(request: HttpRequest) -> dict[str, bytes]:
    """The fields of a multipart form; the file's name is under ``filename``."""
    head = f"content-type: {request.headers['content-type']}\r\n\r\n".encode()
    fields: dict[str, bytes] = {}
    for part in BytesParser().parsebytes(head + request.body).walk():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            fields[name] = payload
            if filename := part.get_filename():
                fields["filename"] = filename.encode()
    return fields


def _openai_error(message: str, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


def _google_error(code: int, message: str) -> dict[str, Any]:
    return {
        "error": {"code": {16: 401, 5: 404}[code], "message": message, "status": "NOT_FOUND" if code == 5 else ""}
    }


def _anthropic_error(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}
