"""OpenAI's Responses API. Format: https://platform.openai.com/docs/api-reference/responses."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.errors import ConfigError, ModelNotFound, RequestError
from swe_infer.options import Option
from swe_infer.providers.base import ONLY_ITEM, Answer, BatchProvider, BatchStatus, FoundBatch, InputCount
from swe_infer.providers.faults import classify, failed_answer
from swe_infer.providers.finish_reasons import finish_reason_of, is_failure
from swe_infer.providers.framing import CLOSED, DONE, GRACE_S, joined_text, until_complete
from swe_infer.providers.image_parts import responses_messages
from swe_infer.providers.knobs import RESPONSES, Dialect
from swe_infer.providers.openai import COUNT_PATH, OpenAIProvider
from swe_infer.providers.openai_batches import OpenAIBatches
from swe_infer.providers.openai_chat import cache_fields, openai_bill, openai_usage, unshared_cache_fields
from swe_infer.providers.unspoken import Unspoken, strings_of
from swe_infer.providers.wire import CutShort, StreamChoice, Unreadable, named, size_of, streams_output
from swe_infer.types import ApiModel, Decoding, FinishReason, Request

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
_LAST_EVENTS = ("completed", "incomplete", "failed")
_SPOKEN = {"output_text": "text", "refusal": "refusal"}
"""The parts of a message, and the fields with their content."""


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIResponses(OpenAIProvider):
    """Responses. The API has neither ``stop`` nor ``seed``."""

    parameters: ClassVar[tuple[str, ...]] = ("temperature", "top_p")
    counts_input: ClassVar[bool] = True
    service_tiers: ClassVar[tuple[str, ...]] = (*OpenAIProvider.service_tiers, "ultrafast")
    reserved: ClassVar[tuple[str, ...]] = (
        "model",
        "input",
        "instructions",
        "stream",
        "store",
        "background",
        "background_options",
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
    store: Annotated[
        bool | None,
        Option("Let OpenAI store the answers for later retrieval; null: only with provider.background.", "reporting"),
    ] = None
    background: Annotated[
        bool | Literal["2h", "8h"],
        Option(
            "Submit each request as a background response and poll it; 2h, 8h: in OpenAI's discounted windows.",
            "speed",
        ),
    ] = False

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if self.background is False:
            return
        key = f"provider.background={str(self.background).lower()}"
        if self.mode == "batch":
            raise ConfigError(f"{key}: a batch is computed in the background already; set provider.mode=live")
        if self.stream in (True, "always"):
            raise ConfigError(f"{key}: a background response is polled, not streamed; set provider.stream=never")
        if self.store is False:
            raise ConfigError(
                f"{key}: OpenAI deletes a response that it does not store after about ten minutes, also one that is "
                "not collected yet; leave provider.store out"
            )
        if self.background is not True and self._tier() not in (None, "auto", "default"):
            raise ConfigError(
                f"provider.service_tier={self.service_tier}: background windows such as {self.background} have the "
                "standard tier; leave provider.service_tier out"
            )

    @property
    def has_batches(self) -> bool:
        return True

    def deferred(self) -> BatchProvider:
        return _BackgroundCalls(self) if self.background else OpenAIBatches(self, "/v1/responses")

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
            "input": responses_messages(prompt) if prompt.turns or prompt.images else prompt.user,
            "max_output_tokens": decoding.max_new_tokens,
            "store": bool(self.background) if self.store is None else self.store,
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
        texts, unspoken = _parts(output) if isinstance(output, list) else ([], Unspoken())
        is_over = status in ("completed", "incomplete") or (status is None and texts)  # OpenAI's type: optional
        if not is_over or not isinstance(output, list):
            raise Unreadable(f"a response with the status {named(status)!r}")
        incomplete = body.get("incomplete_details")
        reason = named(incomplete.get("reason")) if isinstance(incomplete, dict) else None
        if status == "incomplete" and is_failure(reason):
            raise failed_answer(body.get("error"), str(reason), where=where, secret=self._key())
        if status == "completed" and not any(isinstance(item, dict) for item in output):
            raise Unreadable("a completed response without a message")
        finish: FinishReason = "stop" if status == "completed" else finish_reason_of(reason)
        if unspoken.refusals:
            finish = "refusal"
        text, details = unspoken.text_and_details("\n\n".join(texts), finish)
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
        deltas: dict[str, list[str]] = {kind: [] for kind in _SPOKEN}
        wholes: dict[str, list[str]] = {kind: [] for kind in _SPOKEN}
        whole: dict[str, Any] = {}
        is_done = has_begun = is_item_open = False

        def end() -> tuple[int, float] | None:
            return (0, GRACE_S) if is_done else None

        async for event in until_complete(events, end):
            # OpenRouter may close a stream after its last item.
            is_done |= event == DONE or (event == CLOSED and _is_complete(items))
            if not isinstance(event, dict):
                continue
            if event.get("object") == "response" and event.get("output"):  # a whole answer in one event
                return event
            kind = str(event.get("type")).removeprefix("response.")
            part, _, step = kind.partition(".")
            has_begun |= kind != event.get("type")
            if isinstance(event.get("response"), dict):
                whole = event["response"]
            is_item_open |= kind == "output_item.added"
            if part in _SPOKEN and step == "delta":
                marks.setdefault("first", time.monotonic())
                deltas[part] += strings_of(event.get("delta"))
            elif part in _SPOKEN and step == "done":
                wholes[part] += strings_of(event.get(_SPOKEN[part]))
            elif kind == "output_item.done":
                items.append(event.get("item"))
                is_item_open = False
            elif kind in _LAST_EVENTS:
                whole = whole if whole.get("status") in _LAST_EVENTS else {**whole, "status": kind}
                break
        else:
            if not is_done or not items or is_item_open:
                raise CutShort if has_begun else Unreadable("a stream without an answer")
            whole = {**whole, "status": None}  # some servers leave out the last event
        # Some servers send the items, or their content, in their own events alone.
        output = whole.get("output") or items
        content = [
            {"type": part, key: joined_text(deltas[part]) or "".join(wholes[part])}
            for part, key in _SPOKEN.items()
            if deltas[part] or wholes[part]
        ]
        if content and isinstance(output, list):
            texts, unspoken = _parts(output)
            if not texts and not unspoken.refusals:
                output = [*output, {"type": "message", "content": content}]
        return {**whole, "output": output}


def _is_complete(items: Sequence[Any]) -> bool:
    """Whether the last item states that it is complete."""
    return bool(items) and isinstance(items[-1], dict) and items[-1].get("status") == "completed"


_RUNNING = ("queued", "in_progress")


class _BackgroundCalls:
    """Background responses as batches of one request; implements :class:`~swe_infer.providers.base.BatchProvider`.

    Format: https://developers.openai.com/api/docs/guides/background.
    """

    max_batch_requests = 1
    max_batch_bytes = 512 << 20

    def __init__(self, provider: OpenAIResponses) -> None:
        self._provider = provider
        self.name, self.address, self.timeout_s = provider.name, provider.address, provider.timeout_s

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        body = {**self._provider.body(request, model), "background": True}
        if self._provider.background is not True:
            body["background_options"] = {"completion_window": self._provider.background}
        return json.dumps(body).encode()

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        body = json.loads(items[ONLY_ITEM])
        created = await self._provider._call("POST", "/responses", timeout_s=timeout_s, body=body)
        return self._provider._id(created, "responses")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        """OpenAI has no list of responses."""
        return []

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        try:
            response = await self._response(batch_id, timeout_s)
        except ModelNotFound as error:  # HTTP 404: it was deleted
            return BatchStatus("lost", error=error)
        is_running = response.get("status") in _RUNNING
        return BatchStatus("running" if is_running else "ended", int(not is_running))

    async def _response(self, batch_id: str, timeout_s: float) -> dict[str, Any]:
        """Raises TransientError with status 200 if the body is no response: the answer may still come."""
        response = await self._provider._call("GET", f"/responses/{batch_id}", timeout_s=timeout_s)
        if not isinstance(response.get("status"), str) and not response.get("output"):
            raise self._provider._unreadable("without a status", self._provider._where(batch_id), {})
        return response

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        response = await self._response(batch_id, timeout_s)
        if response.get("status") in _RUNNING:  # from another server of a gateway
            raise self._provider._unreadable("not complete yet", self._provider._where(batch_id), {})
        try:
            yield ONLY_ITEM, self._provider.parse_answer(response, None, self._provider._where(batch_id), {})
        except RequestError as error:
            yield ONLY_ITEM, self._provider.as_answer(error)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._provider._call("POST", f"/responses/{batch_id}/cancel", timeout_s=timeout_s)


def _parts(output: list[Any]) -> tuple[list[str], Unspoken]:
    """The texts of the messages in ``output``, in order, and what it has beside them. A text that repeats another is
    left out, as models repeat a commentary as the final answer (openai.types.responses.ResponseOutputMessage.phase).
    """
    texts: list[str] = []
    unspoken = Unspoken()
    for item in output:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "message" or (kind is None and isinstance(item, dict) and "role" in item):
            content = item.get("content")
            parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
            text = content if isinstance(content, str) else "".join(strings_of(parts, "text"))
            if text and text not in texts:
                texts.append(text)
            unspoken.refusals += strings_of(parts, "refusal")
        elif kind == "reasoning":
            unspoken.reasoning += strings_of(item.get("content"), "text") or strings_of(item.get("summary"), "text")
        elif isinstance(kind, str) and kind.endswith("_call"):
            arguments = next(
                (item[key] for key in ("arguments", "input", "operation", "action") if key in item), None
            )
            unspoken.calls.append((str(item.get("name") or kind), arguments))
    return texts, unspoken
