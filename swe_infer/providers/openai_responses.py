"""OpenAI's Responses API. Format: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swe_infer.options import Option
from swe_infer.providers.base import Answer, InputCount
from swe_infer.providers.faults import classify, failed_answer
from swe_infer.providers.finish_reasons import finish_reason_of, is_failure
from swe_infer.providers.knobs import RESPONSES, Dialect
from swe_infer.providers.openai import COUNT_PATH, OpenAIBatches
from swe_infer.providers.openai_chat import cache_fields, openai_bill, openai_usage, unshared_cache_fields
from swe_infer.providers.unspoken import Unspoken, strings_of
from swe_infer.providers.wire import StreamChoice, Unreadable, named, size_of, streams_output
from swe_infer.types import ApiModel, FinishReason, Request

_COUNTED = (
    "model",
    "conversation",
    "input",
    "instructions",
    "parallel_tool_calls",
    "personality",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
)
"""Fields that the counting endpoint accepts (openai.types.responses.InputTokenCountParams)."""
_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIResponses(OpenAIBatches):
    """Responses. The API has neither ``stop`` nor ``seed``."""

    parameters: ClassVar[tuple[str, ...]] = ("temperature", "top_p")
    batch_endpoint: ClassVar[str] = "/v1/responses"
    counts_input: ClassVar[bool] = True
    service_tiers: ClassVar[tuple[str, ...]] = (*OpenAIBatches.service_tiers, "ultrafast")
    reserved: ClassVar[tuple[str, ...]] = (
        "model",
        "input",
        "instructions",
        "stream",
        "store",
        "background",
        "temperature",
        "top_p",
        "max_output_tokens",
    )

    name: str = "openai_responses"
    base_url: Annotated[
        str | None,
        Option("The URL, with /v1; null: OPENAI_BASE_URL, or https://api.openai.com/v1.", "address"),
    ] = None
    api_key_env: str | None = "OPENAI_API_KEY"
    max_concurrency: int = 256
    pricing_id: str | None = "openai"
    stream: StreamChoice = "never"
    store: Annotated[bool, Option("Let OpenAI store the answers for later retrieval.", "reporting")] = False

    def dialect(self) -> Dialect:
        return RESPONSES

    def path(self, model: ApiModel) -> str:
        return "/responses"

    def check_conversation(self, model: ApiModel) -> None:
        """Every model continues one."""

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        decoding, prompt = request.decoding, request.prompt
        body: dict[str, Any] = {
            "model": model.name,
            "input": prompt.messages if prompt.turns else prompt.user,
            "max_output_tokens": decoding.max_new_tokens,
            "store": self.store,
        }
        if prompt.system is not None:
            body["instructions"] = prompt.system
        if decoding.temperature is not None:
            body["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            body["top_p"] = decoding.top_p
        body |= cache_fields(prompt, model, cache_prompt=cache_prompt)
        return {**body, **self._tier_field(model), **self.extra_fields(model)}

    def _cost_fields(self, model: ApiModel) -> dict[str, Any]:
        return {**unshared_cache_fields(model), **self._tier_field(model)}

    def read(self, body: dict[str, Any], request: Request | None) -> Answer:
        status, output = body.get("status"), body.get("output")
        where = self._where(named(body.get("model")) or self.name)
        if status == "failed":
            raise classify(
                None, {"error": body.get("error") or {}}, {}, where=where, secret=self._key(), in_answer=True
            )
        if status not in ("completed", "incomplete") or not isinstance(output, list):
            raise Unreadable(f"a response with the status {named(status)!r}")
        parts, unspoken = _parts(output)
        incomplete = body.get("incomplete_details")
        reason = named(incomplete.get("reason")) if isinstance(incomplete, dict) else None
        if status == "incomplete" and is_failure(reason):
            raise failed_answer(body.get("error"), str(reason), where=where, secret=self._key())
        if status == "completed" and not parts and not unspoken and not any(_is_message(item) for item in output):
            raise Unreadable("a completed response without a message")
        finish: FinishReason = "stop" if status == "completed" else finish_reason_of(reason)
        if unspoken.refusals:
            finish = "refusal"
        text, details = unspoken.text_and_details("".join(parts), finish)
        usage, estimated = openai_usage(body.get("usage"), request, text)
        if finish == "other":
            details["finish_reason"] = str(reason)
        if estimated:
            details["usage_estimated"] = True
        return Answer(text, finish, usage, model=named(body.get("model")), details=details, bill=openai_bill(body))

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """OpenAI calls it the exact count that the model receives
        (https://developers.openai.com/api/docs/guides/token-counting)."""
        body = {key: value for key, value in self.body(request, model).items() if key in _COUNTED}
        tokens = await self._count_tokens(COUNT_PATH, body, model, timeout_s)
        return InputCount(tokens, size_of({k: v for k, v in model.extra_body.items() if k not in _COUNTED}))

    def streams(self, body: Mapping[str, Any]) -> bool:
        return streams_output(self.stream, body["max_output_tokens"])

    async def joined(self, events: AsyncIterator[Any], marks: dict[str, float]) -> dict[str, Any]:
        items: list[Any] = []
        async for event in events:
            kind = event.get("type") if isinstance(event, dict) else None
            if kind in ("response.output_text.delta", "response.refusal.delta"):
                marks.setdefault("first", time.monotonic())
            elif kind == "response.output_item.done":
                items.append(event.get("item"))
            elif kind in _LAST_EVENTS and isinstance(whole := event.get("response"), dict):
                # Some gateways send the items in their own events alone.
                return whole if whole.get("output") or not items else {**whole, "output": items}
        raise Unreadable("a stream that ends before its answer")


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "message"


def _parts(output: list[Any]) -> tuple[list[str], Unspoken]:
    """The texts of the messages in ``output``, in order, and what it has beside them."""
    contents = [item.get("content") for item in output if _is_message(item)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    written = [
        part["text"] for part in parts if part.get("type") == "output_text" and isinstance(part.get("text"), str)
    ]
    unspoken = Unspoken(
        refusals=[text for part in parts if part.get("type") == "refusal" for text in strings_of(part, "refusal")]
    )
    for item in output:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "reasoning":
            unspoken.reasoning += strings_of(item.get("content"), "text") or strings_of(item.get("summary"), "text")
        elif isinstance(kind, str) and kind.endswith("_call"):
            arguments = next(
                (item[key] for key in ("arguments", "input", "operation", "action") if key in item), None
            )
            unspoken.calls.append((str(item.get("name") or kind), arguments))
    return written, unspoken
