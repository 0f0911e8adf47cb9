"""Anthropic's Messages. Format: https://docs.anthropic.com/en/api/messages."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.providers.anthropic import AnthropicBatches
from swe_infer.providers.base import Answer, Bill, InputCount, PriceTerms
from swe_infer.providers.checks import check_service_tier
from swe_infer.providers.faults import failed_answer
from swe_infer.providers.finish_reasons import finish_reason_of, is_failure
from swe_infer.providers.framing import DOUBTFUL_GRACE_S, GRACE_S, joined_text, until_complete
from swe_infer.providers.image_parts import anthropic_images, image_fault, with_content
from swe_infer.providers.knobs import MESSAGES, Dialect
from swe_infer.providers.unspoken import Unspoken, strings_of
from swe_infer.providers.usage import (
    Implausible,
    checked_usage,
    later_usage,
    optional_count,
    stated_dollars,
    states_lifetimes,
    token_count,
)
from swe_infer.providers.wire import (
    CutShort,
    StreamChoice,
    Unreadable,
    named,
    price_terms_of,
    size_of,
    streams_output,
)
from swe_infer.types import ApiModel, Decoding, FinishReason, Prompt, Request, Usage

_TIER_FIELDS = {
    "auto": ("service_tier", "auto"),
    "standard": ("service_tier", "standard_only"),
    "default": ("service_tier", "standard_only"),
    "fast": ("speed", "fast"),
}
"""The field for each service tier (anthropic.types.MessageCreateParams)."""
_FAST_MODE = "fast-mode-2026-02-01"
"""The beta header that some models need for ``speed``."""

_NO_PREFILL = re.compile(r"claude-[a-z]+-(?:4-[6-9]|[5-9])(?!\d)")
"""Models that refuse the beginning of an answer: Claude 4.6 and later."""

_STOP_DETAILS = ("type", "category", "explanation")
"""Fields of ``stop_details`` in records (anthropic.types.RefusalStopDetails)."""

_COUNTED = (
    "model",
    "messages",
    "cache_control",
    "output_config",
    "speed",
    "system",
    "thinking",
    "tool_choice",
    "tools",
)
"""Fields that the counting endpoint accepts (anthropic.types.MessageCountTokensParams)."""


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicMessages(AnthropicBatches):
    """Messages."""

    counts_input: ClassVar[bool] = True
    parameters: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "stop")
    reserved: ClassVar[tuple[str, ...]] = (
        "model",
        "messages",
        "system",
        "stream",
        "max_tokens",
        "temperature",
        "top_p",
        "stop_sequences",
    )

    name: str = "anthropic"
    timeout_s: float = 1200.0
    stream: StreamChoice = "auto"
    cache_ttl: Annotated[
        Literal["5m", "1h"],
        Option("Lifetime of cached prompts; a write costs 1.25 times the input price for 5m, twice for 1h.", "speed"),
    ] = "5m"
    service_tier: Annotated[
        str | None,
        Option("fast (fast mode), standard (no priority capacity) or auto; null: not sent.", "speed"),
    ] = None

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        if self.service_tier is not None:
            check_service_tier(self.service_tier, _TIER_FIELDS)
        super().check(model, decoding)
        if (key := self._thinking_key(model)) is None:
            return
        if decoding.temperature not in (None, 1.0):
            raise ConfigError(
                f"decoding.temperature={decoding.temperature}: {model.name} thinks ({key}), and "
                "then accepts only temperature 1; set decoding.temperature=null"
            )
        thinking = model.extra_body.get("thinking", {})
        budget = thinking.get("budget_tokens") if isinstance(thinking, Mapping) else None
        if isinstance(budget, int) and budget >= decoding.max_new_tokens:
            raise ConfigError(
                f"model.extra_body.thinking.budget_tokens={budget}: must be below decoding.max_new_tokens="
                f"{decoding.max_new_tokens}, which counts thinking too"
            )

    def _thinking_key(self, model: ApiModel) -> str | None:
        """The key that switches thinking on; None: no key does."""
        thinking = self.extra_fields(model).get("thinking")
        if not isinstance(thinking, Mapping) or thinking.get("type") not in ("enabled", "adaptive"):
            return None
        return "model.extra_body.thinking" if "thinking" in model.extra_body else "model.thinking"

    def dialect(self) -> Dialect:
        return MESSAGES

    def image_fault(self, model: ApiModel, images: Sequence[str]) -> str | None:
        return image_fault(model)

    def path(self, model: ApiModel) -> str:
        return "/v1/messages"

    def check_prefill(self, model: ApiModel, prefill: str) -> None:
        if _NO_PREFILL.search(model.name):
            super().check_prefill(model, prefill)
        if (key := self._thinking_key(model)) is not None:
            raise ConfigError(
                f"prompt.prefill: {model.name} thinks ({key}), and then does not continue a "
                "given beginning of an answer; set one of them to null"
            )
        if prefill != prefill.rstrip():
            raise ConfigError("prompt.prefill: ends in white space, which Anthropic refuses; remove it from the end")

    def check_conversation(self, model: ApiModel) -> None:
        """Every model continues one."""

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        decoding = request.decoding
        body: dict[str, Any] = {
            "model": model.name,
            "max_tokens": decoding.max_new_tokens,
            **self._prompt_fields(request.prompt, cache_prompt=cache_prompt),
        }
        if decoding.temperature is not None:
            body["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            body["top_p"] = decoding.top_p
        if decoding.stop:
            body["stop_sequences"] = list(decoding.stop)
        return {**body, **self._tier_field(), **self.extra_fields(model)}

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        options = super().request_options(model)
        if self.service_tier != "fast":
            return options
        return {**options, "headers": {**options.get("headers", {}), "anthropic-beta": _FAST_MODE}}

    def price_terms(self, model: ApiModel) -> PriceTerms:
        sent = {**self._header_tier(), **self._tier_field(), **model.extra_body}
        return price_terms_of(sent, cache_ttl=self.cache_ttl)

    def _tier_field(self) -> dict[str, str]:
        return {} if self.service_tier is None else dict([_TIER_FIELDS[self.service_tier]])

    def _prompt_fields(self, prompt: Prompt, *, cache_prompt: bool) -> dict[str, Any]:
        messages: list[dict[str, Any]] = list(prompt.messages)
        text: dict[str, Any] = {"type": "text", "text": prompt.user}
        if cache_prompt:
            mark = {"type": "ephemeral"} if self.cache_ttl == "5m" else {"type": "ephemeral", "ttl": self.cache_ttl}
            text["cache_control"] = mark
        if cache_prompt or prompt.images:
            # Anthropic recommends images before text, and the cached prefix ends with the text.
            messages = with_content(prompt, [*anthropic_images(prompt.images), text])
        fields: dict[str, Any] = {"messages": messages}
        return fields if prompt.system is None else {"system": prompt.system, **fields}

    def read(self, body: dict[str, Any], request: Request | None) -> Answer:
        content = body.get("content")
        if isinstance(content, str):  # as in anthropic.types.MessageParam
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list):
            raise Unreadable("without content")
        blocks = [block for block in content if isinstance(block, dict) and block.get("type") in ("text", None)]
        text = "".join(block["text"] for block in blocks if isinstance(block.get("text"), str))
        if body.get("stop_reason") is None and not text:
            raise Unreadable("without a stop reason")
        raw = named(body.get("stop_reason"))
        if is_failure(raw):
            where = self._where(named(body.get("model")) or self.name)
            raise failed_answer(body.get("error"), str(raw), where=where, secret=self._key())
        finish: FinishReason = finish_reason_of(raw)
        text, details = _unspoken(content).text_and_details(text, finish)
        if finish == "other":
            details["finish_reason"] = str(raw)
        if finish == "refusal" and isinstance(body.get("stop_details"), dict):
            details["stop_details"] = {key: named(body["stop_details"].get(key)) for key in _STOP_DETAILS}
        usage, estimated = _usage(body.get("usage"), request, text)
        if estimated:
            details["usage_estimated"] = True
        return Answer(text, finish, usage, model=named(body.get("model")), details=details, bill=_bill(body))

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """Anthropic calls it an estimate that may differ from the billed input by a small amount
        (https://docs.claude.com/en/docs/build-with-claude/token-counting); one percent is added for that."""
        body = {key: value for key, value in self.body(request, model).items() if key in _COUNTED}
        tokens = await self._count_tokens("/v1/messages/count_tokens", body, model, timeout_s)
        uncounted = size_of({k: v for k, v in model.extra_body.items() if k not in _COUNTED})
        return InputCount(tokens, uncounted + 16 + tokens // 100)

    def streams(self, body: Mapping[str, Any]) -> bool:
        return streams_output(self.stream, body["max_tokens"])

    async def joined(self, events: AsyncIterator[Any], marks: dict[str, float]) -> dict[str, Any]:
        whole: dict[str, Any] = {}
        is_done = is_counted = has_begun = False
        stated_early: Any = None
        """The stop reason in the first event, where gateways repeat the last one."""
        parts: list[str] = []
        thoughts: list[str] = []
        calls: dict[Any, dict[str, Any]] = {}
        inputs: dict[Any, Any] = {}  # in the beginning of the calls' blocks, where gateways state them whole

        def end() -> tuple[int, float] | None:
            if is_done:
                return 0, GRACE_S
            if not whole.get("stop_reason"):
                return None
            size = len(parts) + len(thoughts) + len(calls)
            return size, GRACE_S if size else DOUBTFUL_GRACE_S

        async for event in until_complete(events, end):
            match event:
                case {"type": "message", "content": list() | str()}:  # a whole answer in one event
                    return dict(event)
                case {"type": "message_start", "message": dict(message)}:
                    if has_begun and message.get("id") != whole.get("id"):  # a gateway asks another server
                        for found in (parts, thoughts, calls, inputs):
                            found.clear()
                    whole, has_begun = {**message, "stop_reason": None}, True
                    stated_early = message.get("stop_reason")
                case {"type": "content_block_start", "content_block": {"type": "text", "text": str(text)}}:
                    if text:  # gateways begin an answer there, and the SDK reads it
                        marks.setdefault("first", time.monotonic())
                        parts.append(text)
                case {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": str(text)}}:
                    thoughts.append(text)
                case {"type": "content_block_delta", "delta": {"text": str(text)}}:
                    marks.setdefault("first", time.monotonic())
                    parts.append(text)
                case {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": str(text)}}:
                    thoughts.append(text)
                case {
                    "type": "content_block_start",
                    "index": int(index),
                    "content_block": {"type": "tool_use", **block},
                }:
                    calls[index] = {"type": "tool_use", "name": block.get("name"), "input": ""}
                    inputs[index] = block.get("input")
                case {
                    "type": "content_block_delta",
                    "index": int(index),
                    "delta": {"type": "input_json_delta", "partial_json": str(text)},
                } if index in calls:
                    calls[index]["input"] += text
                case {"type": "message_delta", "delta": dict(delta)}:
                    whole |= {key: value for key, value in delta.items() if value is not None}
                    stated = event.get("usage")
                    is_counted |= isinstance(stated, dict) and bool(stated.get("output_tokens"))
                    whole["usage"] = later_usage(whole.get("usage"), stated)
                case {"type": "message_stop"}:
                    is_done = True
                    whole["stop_reason"] = whole.get("stop_reason") or stated_early
                    if whole["stop_reason"]:
                        break
                case {"type": "content_block_delta", "delta": delta} if not _is_ignored(delta):
                    raise Unreadable("a stream with an unknown event")
        if whole.get("stop_reason") is None and not (is_done and parts):
            raise CutShort if has_begun or parts else Unreadable("a stream without an answer")
        if not is_counted and isinstance(usage := whole.get("usage"), dict):
            # The first event counts the output up to there, such as one token.
            whole["usage"] = {key: count for key, count in usage.items() if key != "output_tokens"}
        thinking = [{"type": "thinking", "thinking": "".join(thoughts)}] if "".join(thoughts) else []
        used = [{**call, "input": call["input"] or inputs[index]} for index, call in calls.items()]
        return {**whole, "content": [*thinking, {"type": "text", "text": joined_text(parts)}, *used]}


def _unspoken(content: list[Any]) -> Unspoken:
    """The thinking and the tool calls in the content of a message."""
    blocks = [block for block in content if isinstance(block, dict)]
    return Unspoken(
        [text for block in blocks if block.get("type") == "thinking" for text in strings_of(block, "thinking")],
        [(str(block.get("name")), block.get("input")) for block in blocks if block.get("type") == "tool_use"],
    )


def _is_ignored(delta: Any) -> bool:
    """Whether a delta has no text, such as an empty one or one of a signature."""
    if not isinstance(delta, dict):
        return delta is None
    is_other = isinstance(delta.get("type"), str) and delta["type"] != "text_delta"
    return is_other or delta.get("text") is None


def _usage(usage: Any, request: Request | None, text: str) -> tuple[Usage, bool]:
    """(token counts, whether they are estimated). Anthropic's ``input_tokens`` do not include cached and written
    tokens."""
    try:
        plain = token_count(usage, "input_tokens")
        outputs = token_count(usage, "output_tokens")
        cached = optional_count(usage, "cache_read_input_tokens")
        by_lifetime = usage.get("cache_creation")
        hourly = optional_count(by_lifetime, "ephemeral_1h_input_tokens")
        brief = optional_count(by_lifetime, "ephemeral_5m_input_tokens")
        written = max(optional_count(usage, "cache_creation_input_tokens"), hourly + brief)
        reasoning = optional_count(usage.get("output_tokens_details"), "thinking_tokens")
    except Implausible:
        return checked_usage(None, request, text)
    stated = Usage(
        input_tokens=plain + cached + written,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(outputs, reasoning),
        reasoning_tokens=reasoning,
        cache_write_1h_tokens=hourly,
    )
    return checked_usage(stated, request, text)


def _bill(body: Mapping[str, Any]) -> Bill:
    """What an answer states about its price (anthropic.types.Usage)."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Bill()
    return Bill(
        service_tier=named(usage.get("service_tier")),
        speed=named(usage.get("speed")),
        usd=stated_dollars(usage.get("cost")),
        states_lifetimes=states_lifetimes(usage.get("cache_creation")),
        geo=named(usage.get("inference_geo")),
    )
