"""The batches of Mistral, Together and Gemini in each vendor's form, for the loopback API server.

Sources: ``mistralai.client.models`` (BatchJob, CreateBatchJobRequest), ``mistralai.extra.batch`` and
https://docs.mistral.ai/capabilities/batch; ``together.types`` (BatchJob, BatchCreateResponse, FileResponse) and
https://docs.together.ai/docs/inference/batch/manage; ``google.genai.batches``, ``google.genai.files`` and
https://ai.google.dev/gemini-api/docs/batch-api.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tests.support.api_calls import Call, parse_call

__all__ = ["FORMS", "BatchForm", "BatchRecord"]

Line = dict[str, Any]


class BatchRecord(Protocol):
    """What a form reads of a batch."""

    id: str
    items: list[dict[str, Any]]
    created_at: float
    headers: dict[str, str]
    model: str
    status: str
    metadata: dict[str, str] | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    errors: list[dict[str, Any]]
    results: list[dict[str, Any]]
    ended_at: float | None


class BatchForm(Protocol):
    """One vendor's form: its states by OpenAI's, its jobs, requests and results."""

    id_prefix: str
    id_key: str
    states: Mapping[str, str]

    def call(self, batch: BatchRecord, item: Mapping[str, Any]) -> Call:
        """The call of an item. Raises KeyError, TypeError or ValueError if the vendor refuses its form."""
        ...

    def line(self, batch: BatchRecord, custom_id: str, status: int, answer: Line, *, expired: bool) -> Line: ...

    def is_good(self, line: Line) -> bool: ...

    def job(self, batch: BatchRecord) -> dict[str, Any]: ...


class _Mistral(BatchForm):
    id_prefix = "00000000-0000-4000-8000-"
    id_key = "custom_id"
    states: Mapping[str, str] = {
        "in_progress": "RUNNING",
        "cancelling": "CANCELLATION_REQUESTED",
        "completed": "SUCCESS",
        "cancelled": "CANCELLED",
        "expired": "TIMEOUT_EXCEEDED",
        "failed": "FAILED",
    }

    def call(self, batch: BatchRecord, item: Mapping[str, Any]) -> Call:
        if set(item) != {"custom_id", "body"} or "model" in item["body"]:
            raise ValueError("a line has custom_id and body, and the model is the job's")
        return parse_call(
            "openai_chat", "/v1/chat/completions", batch.headers, {**item["body"], "model": batch.model}, batch=True
        )

    def line(self, batch: BatchRecord, custom_id: str, status: int, answer: Line, *, expired: bool) -> Line:
        line = {"id": f"{batch.id}-{custom_id}", "custom_id": custom_id}
        if expired:
            return {**line, "response": None, "error": "Request timed out"}
        if status != 200:
            return {**line, "response": {"status_code": status, "body": None}, "error": answer["error"]}
        return {**line, "response": {"status_code": 200, "body": answer}, "error": None}

    def is_good(self, line: Line) -> bool:
        return not line["error"]

    def job(self, batch: BatchRecord) -> dict[str, Any]:
        good = sum(map(self.is_good, batch.results))
        return {
            "id": batch.id,
            "object": "batch",
            "input_files": [batch.input_file_id],
            "endpoint": "/v1/chat/completions",
            "model": batch.model,
            "metadata": batch.metadata,
            "errors": batch.errors,
            "status": self.states[batch.status],
            "created_at": int(batch.created_at),
            "completed_at": None if batch.ended_at is None else int(batch.ended_at),
            "total_requests": len(batch.items),
            "completed_requests": len(batch.results),
            "succeeded_requests": good,
            "failed_requests": len(batch.results) - good,
            "output_file": batch.output_file_id,
            "error_file": batch.error_file_id,
        }


class _Together(BatchForm):
    id_prefix = "01234567-8901-2345-6789-"
    id_key = "custom_id"
    states: Mapping[str, str] = {
        "in_progress": "IN_PROGRESS",
        "cancelling": "IN_PROGRESS",
        "completed": "COMPLETED",
        "cancelled": "CANCELLED",
        "expired": "EXPIRED",
        "failed": "FAILED",
    }

    def call(self, batch: BatchRecord, item: Mapping[str, Any]) -> Call:
        if set(item) != {"custom_id", "body"}:
            raise ValueError("a line has custom_id and body")
        return parse_call("openai_chat", "/v1/chat/completions", batch.headers, item["body"], batch=True)

    def line(self, batch: BatchRecord, custom_id: str, status: int, answer: Line, *, expired: bool) -> Line:
        if expired:
            return {"custom_id": custom_id, "error": {"message": "Request timeout", "code": "timeout"}}
        if status != 200:
            return {"custom_id": custom_id, "error": {**answer["error"], "code": answer["error"]["code"] or status}}
        return {"custom_id": custom_id, "response": {"status_code": 200, "body": answer}}

    def is_good(self, line: Line) -> bool:
        return "error" not in line

    def job(self, batch: BatchRecord) -> dict[str, Any]:
        return {
            "id": batch.id,
            "user_id": "user_loopback",
            "input_file_id": batch.input_file_id,
            "file_size_bytes": 1,
            "status": self.states[batch.status],
            "created_at": _rfc3339(batch.created_at),
            "completed_at": None if batch.ended_at is None else _rfc3339(batch.ended_at),
            "endpoint": "/v1/chat/completions",
            "progress": 100.0 * len(batch.results) / max(1, len(batch.items)),
            "model_id": batch.model,
            "output_file_id": batch.output_file_id,
            "error_file_id": batch.error_file_id,
            **({"error": batch.errors[0]["message"]} if batch.errors else {}),
        }


_GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 409: 10, 413: 3, 429: 8, 500: 13, 503: 14}
_CONFIG = {
    "maxOutputTokens",
    "temperature",
    "topP",
    "stopSequences",
    "seed",
    "presencePenalty",
    "frequencyPenalty",
    "thinkingConfig",
}


class _Gemini(BatchForm):
    id_prefix = "batches/loopback"
    id_key = "key"
    states: Mapping[str, str] = {
        "in_progress": "BATCH_STATE_RUNNING",
        "cancelling": "BATCH_STATE_RUNNING",
        "completed": "BATCH_STATE_SUCCEEDED",
        "cancelled": "BATCH_STATE_CANCELLED",
        "expired": "BATCH_STATE_EXPIRED",
        "failed": "BATCH_STATE_FAILED",
    }

    def call(self, batch: BatchRecord, item: Mapping[str, Any]) -> Call:
        request = item["request"]
        config = request["generationConfig"]
        unknown = [
            *(set(request) - {"contents", "systemInstruction", "generationConfig"}),
            *(set(config) - _CONFIG),
        ]
        if set(item) != {"key", "request"} or unknown:
            raise ValueError(f'Invalid JSON payload received. Unknown name "{unknown}"')
        roles = {"user": "user", "model": "assistant"}
        messages = [
            {"role": roles[content["role"]], "content": _chat_content(content)} for content in request["contents"]
        ]
        if system := request.get("systemInstruction"):
            messages.insert(0, {"role": "system", "content": "".join(part["text"] for part in system["parts"])})
        chat = {
            "model": batch.model,
            "messages": messages,
            "max_tokens": config["maxOutputTokens"],
            "stop": config.get("stopSequences"),
            "seed": config.get("seed"),
        }
        call = parse_call("openai_chat", "/v1/chat/completions", batch.headers, chat, batch=True)
        return replace(call, body=request, thinking="thinkingConfig" in config)

    def line(self, batch: BatchRecord, custom_id: str, status: int, answer: Line, *, expired: bool) -> Line:
        if expired:
            return {"key": custom_id, "error": {"code": 4, "message": "The batch expired."}}
        if status == 400 and answer["error"].get("code") == "content_filter":
            usage = {"promptTokenCount": 7, "totalTokenCount": 7}
            blocked = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}
            return {"key": custom_id, "response": blocked}
        if status != 200:
            message = answer["error"]["message"]
            if answer["error"].get("code") == "context_length_exceeded":
                message = "The input token count (9) exceeds the maximum number of tokens allowed (8)."
            return {"key": custom_id, "error": {"code": _GRPC[status], "message": message}}
        return {"key": custom_id, "response": _native_answer(answer)}

    def is_good(self, line: Line) -> bool:
        return "response" in line

    def job(self, batch: BatchRecord) -> dict[str, Any]:
        good = sum(map(self.is_good, batch.results))
        counts = {
            "requestCount": len(batch.items),
            "successfulRequestCount": good,
            "failedRequestCount": len(batch.results) - good,
            "pendingRequestCount": len(batch.items) - len(batch.results),
        }
        facts = {
            "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
            "model": f"models/{batch.model}",
            "displayName": (batch.metadata or {}).get("displayName"),
            "inputConfig": {"fileName": batch.input_file_id},
            "createTime": _rfc3339(batch.created_at),
            "batchStats": {name: str(count) for name, count in counts.items()},
            "state": self.states[batch.status],
            "name": batch.id,
        }
        job: dict[str, Any] = {"name": batch.id, "metadata": facts}
        if batch.errors:
            message = batch.errors[0]["message"]
            return {**job, "done": True, "error": {"code": 13 if "internal" in message else 3, "message": message}}
        if batch.output_file_id:
            output = {"responsesFile": batch.output_file_id}
            job |= {"done": True, "response": {"@type": "…GenerateContentBatchOutput", **output}}
            facts["output"] = output
        return job


def _chat_content(content: Mapping[str, Any]) -> Any:
    parts = [_chat_part(part) for part in content["parts"]]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _chat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    match part:
        case {"text": str(text)}:
            return {"type": "text", "text": text}
        case {"inlineData": {"mimeType": str(kind), "data": str(data)}}:
            url = f"data:{kind};base64,{data}"
        case {"fileData": {"fileUri": str(url)}}:
            pass
        case _:
            raise ValueError(f"Unknown part: {sorted(part)}")
    return {"type": "image_url", "image_url": {"url": url}}


_FINISH = {"stop": "STOP", "length": "MAX_TOKENS", "content_filter": "SAFETY"}


def _native_answer(answer: Line) -> Line:
    """A body of chat completions as a ``GenerateContentResponse``."""
    candidates = []
    usage = answer.get("usage")
    thoughts = usage["completion_tokens_details"]["reasoning_tokens"] if usage else 0
    for choice in answer["choices"]:
        text = choice["message"]["content"] or choice["message"].get("refusal") or ""
        parts = [{"text": "The file needs one line.", "thought": True}] if thoughts else []
        parts += [{"text": text[:9]}, {"text": text[9:]}] if text else []
        candidates.append(
            {
                "content": {"parts": parts, "role": "model"} if parts else {"role": "model"},
                "finishReason": _FINISH[choice["finish_reason"]],
                "index": choice["index"],
            }
        )
    native: Line = {"candidates": candidates, "modelVersion": answer["model"], "responseId": answer["id"]}
    if usage:
        native["usageMetadata"] = {
            "promptTokenCount": usage["prompt_tokens"],
            "candidatesTokenCount": usage["completion_tokens"] - thoughts,
            "thoughtsTokenCount": thoughts,
            "cachedContentTokenCount": usage["prompt_tokens_details"]["cached_tokens"],
            "totalTokenCount": usage["total_tokens"],
        }
    return native


def _rfc3339(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def file_of(lines: Sequence[Line]) -> bytes:
    """The bytes of a file of results."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


FORMS: Mapping[str, BatchForm] = {"mistral": _Mistral(), "together": _Together(), "gemini": _Gemini()}
"""By vendor."""
