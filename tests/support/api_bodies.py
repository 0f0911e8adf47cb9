"""The vendors' answer bodies, whole and streamed, as the loopback API server writes them.

Formats: OpenAI's chat completions and responses, Anthropic's messages and legacy text completions (November 2026).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from swe_infer.types import Usage
from tests.support.api_calls import Call

__all__ = ["Made", "body_of", "events_of"]

Ending = Literal["stop", "length", "refusal", "content_filter"]

_CHAT_FINISH = {"stop": "stop", "length": "length", "refusal": "stop", "content_filter": "content_filter"}
_ANTHROPIC_STOP = {"stop": "end_turn", "length": "max_tokens", "refusal": "refusal", "content_filter": "refusal"}


@dataclass(frozen=True, slots=True)
class Made:
    """An answer before it is put into a vendor's words. ``texts`` holds one text for each of the ``n`` choices."""

    number: int
    call: Call
    texts: tuple[str, ...]
    endings: tuple[Ending, ...]
    usage: Usage
    created: int
    model: str
    with_usage: bool = True
    stated: Usage | None = None
    """The counts in the answer, if they are not those that are billed."""
    service_tier: str | None = None
    """The tier that served it, if the answer states one; OpenAI's answers do if the request names one."""
    speed: str | None = None
    geo: str | None = None
    """Where it was processed, if the answer states it (Anthropic's ``inference_geo``)."""

    @property
    def id(self) -> str:
        prefix = {
            "openai_chat": "chatcmpl-",
            "openai_responses": "resp_",
            "anthropic_messages": "msg_",
            "anthropic_complete": "compl_",
        }[self.call.dialect]
        return f"{prefix}{self.number:08d}"


def body_of(made: Made) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    made = _as_stated(made)
    match made.call.dialect:
        case "openai_chat":
            return _chat(made)
        case "openai_responses":
            return _response(made, "completed")
        case "anthropic_messages":
            return _message(made)
        case "anthropic_complete":
            return _completion(made)


def events_of(made: Made, pieces: int) -> Iterator[bytes]:
    """Server-sent events, the text in about ``pieces`` parts."""
    made = _as_stated(made)
    match made.call.dialect:
        case "openai_chat":
            yield from _chat_events(made, pieces)
        case "openai_responses":
            yield from _response_events(made, pieces)
        case "anthropic_messages":
            yield from _message_events(made, pieces)
        case "anthropic_complete":
            raise ValueError("streamed text completions are not served here")


def _as_stated(made: Made) -> Made:
    return made if made.stated is None else replace(made, usage=made.stated)


def _parts(text: str, pieces: int) -> Iterator[str]:
    size = max(1, -(-len(text) // max(1, pieces)))
    for start in range(0, len(text), size):
        yield text[start : start + size]


def _chat_usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_input_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens, "audio_tokens": 0},
    }


def _chat(made: Made) -> dict[str, Any]:
    choices = []
    for index, (text, ending) in enumerate(zip(made.texts, made.endings, strict=True)):
        refused = ending == "refusal"
        message = {"role": "assistant", "content": None if refused else text, "refusal": text if refused else None}
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": _CHAT_FINISH[ending]})
    body = {
        "id": made.id,
        "object": "chat.completion",
        "created": made.created,
        "model": made.model,
        "system_fingerprint": "fp_loopback",
        "choices": choices,
        **_tier(made),
    }
    return {**body, "usage": _chat_usage(made.usage)} if made.with_usage else body


def _chat_events(made: Made, pieces: int) -> Iterator[bytes]:
    frame = {
        "id": made.id,
        "object": "chat.completion.chunk",
        "created": made.created,
        "model": made.model,
        **_tier(made),
    }

    def event(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _data({**frame, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]})

    for index, (text, ending) in enumerate(zip(made.texts, made.endings, strict=True)):
        yield event(index, {"role": "assistant", "content": ""})
        for part in _parts(text, pieces):
            yield event(index, {"refusal" if ending == "refusal" else "content": part})
        yield event(index, {}, _CHAT_FINISH[ending])
    options = made.call.body.get("stream_options") or {}
    if options.get("include_usage") and made.with_usage:
        yield _data({**frame, "choices": [], "usage": _chat_usage(made.usage)})
    yield b"data: [DONE]\n\n"


def _response(made: Made, status: str) -> dict[str, Any]:
    text, ending = made.texts[0], made.endings[0]
    part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
    if ending == "refusal":
        part = {"type": "refusal", "refusal": text}
    incomplete = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(ending)
    if status == "completed" and incomplete:
        status = "incomplete"
    output: list[dict[str, Any]] = []
    if made.call.thinking:
        output.append({"type": "reasoning", "id": f"rs_{made.number}", "summary": []})
    if text or not incomplete:
        message = {"type": "message", "id": f"item_{made.number}", "role": "assistant", "status": "completed"}
        output.append({**message, "content": [part] if text else []})
    usage = {
        "input_tokens": made.usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": made.usage.cached_input_tokens,
            "cache_write_tokens": made.usage.cache_write_tokens,
        },
        "output_tokens": made.usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": made.usage.reasoning_tokens},
        "total_tokens": made.usage.input_tokens + made.usage.output_tokens,
    }
    return {
        "id": made.id,
        "object": "response",
        "created_at": made.created,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "instructions": None,
        "model": made.model,
        "output": output if status != "in_progress" else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        **_tier(made),
        "usage": usage if status != "in_progress" and made.with_usage else None,
    }


def _response_events(made: Made, pieces: int) -> Iterator[bytes]:
    final = _response(made, "completed")
    sequence = 0

    def event(kind: str, **fields: Any) -> bytes:
        nonlocal sequence
        sequence += 1
        return _named(kind, {"type": kind, "sequence_number": sequence, **fields})

    yield event("response.created", response=_response(made, "in_progress"))
    for index, item in enumerate(final["output"]):
        yield event("response.output_item.added", output_index=index, item={**item, "content": []})
        for part in item.get("content", ()):
            place = {"item_id": item["id"], "output_index": index, "content_index": 0}
            kind = "refusal" if part["type"] == "refusal" else "output_text"
            blank = {**part, ("refusal" if kind == "refusal" else "text"): ""}
            yield event("response.content_part.added", **place, part=blank)
            for delta in _parts(made.texts[0], pieces):
                yield event(f"response.{kind}.delta", **place, delta=delta, logprobs=[])
            yield event("response.content_part.done", **place, part=part)
        yield event("response.output_item.done", output_index=index, item=item)
    yield event(f"response.{final['status']}", response=final)


def _tier(made: Made) -> dict[str, Any]:
    return {} if made.service_tier is None else {"service_tier": made.service_tier}


def _message_usage(made: Made) -> dict[str, Any]:
    usage = made.usage
    return {
        "input_tokens": usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens,
        "cache_read_input_tokens": usage.cached_input_tokens,
        "cache_creation_input_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens - usage.cache_write_1h_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "service_tier": "batch" if made.call.batch else "standard",
        **({} if made.speed is None else {"speed": made.speed}),
        **({} if made.geo is None else {"inference_geo": made.geo}),
    }


def _blocks(made: Made) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if made.call.thinking:
        blocks.append({"type": "thinking", "thinking": "The file needs one line.", "signature": "c2lnbmVk"})
    if made.texts[0]:
        blocks.append({"type": "text", "text": made.texts[0]})
    return blocks


def _message(made: Made) -> dict[str, Any]:
    ending = made.endings[0]
    stop = made.call.stop[0] if made.call.stop and ending == "stop" and not made.texts[0] else None
    body = {
        "id": made.id,
        "type": "message",
        "role": "assistant",
        "model": made.model,
        "content": _blocks(made),
        "stop_reason": _ANTHROPIC_STOP[ending],
        "stop_sequence": stop,
    }
    return {**body, "usage": _message_usage(made)} if made.with_usage else body


def _message_events(made: Made, pieces: int) -> Iterator[bytes]:
    final = _message(made)
    start = {**final, "content": [], "stop_reason": None, "usage": {**_message_usage(made), "output_tokens": 1}}
    yield _named("message_start", {"type": "message_start", "message": start})
    for index, block in enumerate(final["content"]):
        key = "text" if block["type"] == "text" else "thinking"
        empty = {"type": block["type"], key: "", **({"signature": ""} if key == "thinking" else {})}
        yield _named("content_block_start", {"type": "content_block_start", "index": index, "content_block": empty})
        for part in _parts(block[key], pieces):
            delta = {"type": f"{key}_delta", key: part}
            yield _named("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
        yield _named("content_block_stop", {"type": "content_block_stop", "index": index})
    delta = {"stop_reason": final["stop_reason"], "stop_sequence": final["stop_sequence"]}
    usage = {"output_tokens": made.usage.output_tokens}
    yield _named("message_delta", {"type": "message_delta", "delta": delta, "usage": usage})
    yield _named("message_stop", {"type": "message_stop"})


def _completion(made: Made) -> dict[str, Any]:
    ending = made.endings[0]
    return {
        "type": "completion",
        "id": made.id,
        "completion": f" {made.texts[0]}",
        "stop_reason": "max_tokens" if ending == "length" else "stop_sequence",
        "model": made.model,
        "stop": "\n\nHuman:",
        "log_id": made.id,
    }


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def _named(event: str, body: dict[str, Any]) -> bytes:
    return f"event: {event}\n".encode() + _data(body)
