"""Anthropic's legacy Text Completions (Claude 2, Claude Instant). The SDK no longer has methods for them.

Format: https://docs.anthropic.com/en/api/complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

from swe_infer.providers.anthropic import AnthropicProvider
from swe_infer.providers.base import Answer
from swe_infer.providers.finish_reasons import finish_reason_of
from swe_infer.providers.framing import joined_text
from swe_infer.providers.usage import estimated_tokens
from swe_infer.providers.wire import CutShort, Unreadable, named
from swe_infer.types import ApiModel, Prompt, Request, Usage

_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


def _prompt(prompt: Prompt) -> str:
    begun = "" if prompt.prefill is None else f" {prompt.prefill}"
    return f"{_HUMAN} {prompt.question}{_ASSISTANT}{begun}"


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicText(AnthropicProvider):
    """Text Completions. Answers have no usage: tokens are estimated, and the record says so."""

    parameters: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "stop")
    reserved: ClassVar[tuple[str, ...]] = (
        "model",
        "prompt",
        "stream",
        "max_tokens_to_sample",
        "temperature",
        "top_p",
        "stop_sequences",
    )

    name: str = "anthropic_text"
    max_concurrency: int = 16
    timeout_s: float = 600.0

    def path(self, model: ApiModel) -> str:
        return "/v1/complete"

    def check_prefill(self, model: ApiModel, prefill: str) -> None:
        """Every model continues one."""

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        decoding = request.decoding
        body: dict[str, Any] = {
            "model": model.name,
            "prompt": _prompt(request.prompt),
            "max_tokens_to_sample": decoding.max_new_tokens,
        }
        if decoding.temperature is not None:
            body["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            body["top_p"] = decoding.top_p
        if decoding.stop:
            body["stop_sequences"] = [_HUMAN, *decoding.stop]
        return {**body, **model.extra_body}

    async def joined(self, events: AsyncIterator[Any], marks: dict[str, float]) -> dict[str, Any]:
        """None are requested, but some server may send them."""
        parts: list[str] = []
        async for event in events:
            if isinstance(event, dict) and isinstance(part := event.get("completion"), str):
                parts.append(part)
                if event.get("stop_reason"):
                    return {**event, "completion": joined_text(parts)}
        raise CutShort if parts else Unreadable("a stream without an answer")

    def read(self, body: dict[str, Any], request: Request | None) -> Answer:
        text = body.get("completion")
        if not isinstance(text, str):
            raise Unreadable("without a completion")
        if body.get("stop_reason", "") is None:  # an event of a stream
            raise Unreadable("without a stop reason")
        if request is None or request.prompt.prefill is None:
            text = text.removeprefix(" ")  # the blank after "Assistant:"
        prompt = "" if request is None else _prompt(request.prompt)
        usage = Usage(input_tokens=estimated_tokens(prompt), output_tokens=estimated_tokens(text))
        return Answer(
            text,
            "length" if finish_reason_of(named(body.get("stop_reason"))) == "length" else "stop",
            usage,
            model=named(body.get("model")),
            details={"usage_estimated": True},
        )
