"""OpenAI's chat completions, and every compatible server (vLLM, llama.cpp, OpenRouter, Together, …).

Format: https://platform.openai.com/docs/api-reference/chat.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.providers.base import Answer, BatchProvider, Bill, InputCount
from swe_infer.providers.checks import check_refused_fields
from swe_infer.providers.faults import PromptFiltered, failed_answer
from swe_infer.providers.file_batches import FileBatches
from swe_infer.providers.finish_reasons import finish_reason_of, is_failure
from swe_infer.providers.framing import DONE, DOUBTFUL_GRACE_S, GRACE_S, joined_text, until_complete
from swe_infer.providers.gemini_batches import GeminiBatches
from swe_infer.providers.image_parts import chat_messages, responses_messages
from swe_infer.providers.knobs import Dialect, chat_dialect, needs_responses
from swe_infer.providers.mistral_batches import MistralBatches
from swe_infer.providers.openai import COUNT_PATH, OpenAIProvider
from swe_infer.providers.openai_batches import OpenAIBatches
from swe_infer.providers.together_batches import TogetherBatches
from swe_infer.providers.unspoken import Unspoken, strings_of
from swe_infer.providers.usage import (
    MAX_USD,
    Implausible,
    checked_usage,
    later_usage,
    optional_count,
    stated_dollars,
    states_lifetimes,
    token_count,
)
from swe_infer.providers.wire import CutShort, StreamChoice, Unreadable, named, size_of, streams_output
from swe_infer.types import ApiModel, Decoding, FinishReason, Prompt, Request, Usage, sample_seed

LimitKey = Literal["max_tokens", "max_completion_tokens"]
BatchForm = Literal["openai", "mistral", "together", "gemini"]

_BATCH_FORMS: Mapping[BatchForm, type[FileBatches]] = {
    "openai": OpenAIBatches,
    "mistral": MistralBatches,
    "together": TogetherBatches,
    "gemini": GeminiBatches,
}

_MAX_CHOICES = 128
_TICKS_PER_USD = 10**10

_OTHER_FRAMING = 16
"""Difference in framing tokens of two messages between the APIs, at most; each has about ten."""


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIChat(OpenAIProvider):
    """Chat completions."""

    counts_input: ClassVar[bool] = True
    responses_address: ClassVar[str] = ""
    """Further overrides with which ``provider=openai_responses`` reaches the same server, for messages."""
    reserved: ClassVar[tuple[str, ...]] = (
        "model",
        "messages",
        "stream",
        "n",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "max_tokens",
        "max_completion_tokens",
    )

    name: str = "openai"
    base_url: Annotated[
        str | None,
        Option("The URL, with /v1; null: OPENAI_BASE_URL, or https://api.openai.com/v1 for name=openai.", "address"),
    ] = None
    api_key_env: str | None = "OPENAI_API_KEY"
    max_concurrency: int = 256
    pricing_id: str | None = "openai"
    stream: StreamChoice = "never"
    send_cache_key: Annotated[
        bool, Option("Send OpenAI's router a key for requests that share a prompt.", "speed")
    ] = True
    store: Annotated[
        bool | None, Option("Let OpenAI store the answers for later retrieval; null: OpenAI's default.", "reporting")
    ] = None
    accepts_prefill: Annotated[
        bool, Option("The server continues an assistant message, as vLLM does; for prompt.prefill.", "address")
    ] = False
    limit_key: Annotated[
        LimitKey | None,
        Option("The only output limit that the server reads; null: model.max_tokens_key.", "address"),
    ] = None
    seed_key: Annotated[str, Option("The server's name of the field seed.", "address")] = "seed"
    refused_fields: Annotated[
        tuple[str, ...],
        Option("Fields of the request that the server refuses or ignores, such as seed or n; never sent.", "address"),
    ] = ()
    lowest_temperature: Annotated[
        float | None, Option("The lowest temperature that the server accepts; null: 0.", "address")
    ] = None
    highest_temperature: Annotated[float, Option("The highest temperature that the server accepts.", "address")] = 2.0
    api_key_optional: Annotated[
        bool, Option("Without a key in the environment, send a placeholder instead of an error.", "address")
    ] = False
    batches: Annotated[
        BatchForm | bool,
        Option(
            "Form of the server's batch API: openai (or true), mistral, together, gemini; false: none.", "address"
        ),
    ] = True

    @property
    def has_batches(self) -> bool:
        return self.batches is not False

    def deferred(self) -> BatchProvider:
        return self._batches()

    def _batches(self) -> FileBatches:
        return _BATCH_FORMS["openai" if isinstance(self.batches, bool) else self.batches](self)

    @property
    def temperature_range(self) -> tuple[float, float]:
        return self.lowest_temperature or 0.0, self.highest_temperature

    @property
    def requires_key(self) -> bool:
        return not self.api_key_optional

    def _is_openai(self) -> bool:
        return self.name == "openai"  # any other name is another server's

    def _serves_openai_models(self) -> bool:
        """Whether the server has OpenAI's endpoints for each model."""
        return self.name in ("openai", "azure_v1")

    def supported_parameters(self) -> tuple[str, ...]:
        return tuple(name for name in self.parameters if name not in self.refused_fields)

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if self.mode == "batch":
            self._batches().check(model, decoding)
        check_refused_fields(model, self.refused_fields, self.name)
        if self.service_tier is not None and "service_tier" in self.refused_fields:
            raise ConfigError(
                f"provider.service_tier={self.service_tier}: provider={self.name} has no service tiers; leave it out"
            )
        if model.max_tokens_key == "max_tokens" and self.limit_key == "max_completion_tokens":
            raise ConfigError(
                f"model.max_tokens_key=max_tokens: provider={self.name} takes max_completion_tokens; leave it out, "
                "or set provider.limit_key=null"
            )
        if self.seed_key in model.extra_body:
            raise ConfigError(f"model.extra_body.{self.seed_key}: is set from decoding.seed; leave it out")
        if self.store is not None and "store" in model.extra_body:
            raise ConfigError("model.extra_body.store: provider.store sets the same field; leave one of them out")
        if self._serves_openai_models() and needs_responses(model):
            raise ConfigError(
                f"model.name={model.name}: OpenAI serves it through the Responses API alone; set "
                f"provider=openai_responses{self.responses_address}"
            )

    def dialect(self) -> Dialect:
        return chat_dialect(self.name)

    def check_prefill(self, model: ApiModel, prefill: str) -> None:
        if not self.accepts_prefill:
            super().check_prefill(model, prefill)

    def check_conversation(self, model: ApiModel) -> None:
        """Every model continues one."""

    def own_address(self) -> str:
        return super().own_address() if self._is_openai() else ""

    def path(self, model: ApiModel) -> str:
        return "/chat/completions"

    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        decoding = request.decoding
        body: dict[str, Any] = {
            "model": model.name,
            "messages": [*_system(request.prompt), *chat_messages(request.prompt)],
            self.limit_key or model.max_tokens_key: decoding.max_new_tokens,
        }
        if request.prompt.prefill is not None:  # fields of vLLM and SGLang; other servers see the last message's role
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        if decoding.temperature is not None:
            body["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            body["top_p"] = decoding.top_p
        if decoding.seed is not None:
            body[self.seed_key] = sample_seed(decoding, request.instance_id, request.sample)
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if self.send_cache_key:
            body |= cache_fields(request.prompt, model, cache_prompt=cache_prompt)
        if self.store is not None:
            body["store"] = self.store
        return {**body, **self._tier_field(model), **self.extra_fields(model)}

    def _cost_fields(self, model: ApiModel) -> dict[str, Any]:
        return {**(unshared_cache_fields(model) if self.send_cache_key else {}), **self._tier_field(model)}

    def read(self, body: dict[str, Any], request: Request | None) -> Answer:
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices:
            raise Unreadable("without a choice")
        text, finish, details = self._choice(choices[0], body)
        usage, estimated = self._usage(body, request, text)
        if estimated:
            details["usage_estimated"] = True
        return Answer(text, finish, usage, model=named(body.get("model")), details=details, bill=openai_bill(body))

    def _usage(
        self, body: Mapping[str, Any], request: Request | None, text: str, choices: int = 1
    ) -> tuple[Usage, bool]:
        is_xai = self.pricing_id == "x-ai"  # the extractor of genai-prices for x-ai adds reasoning
        return openai_usage(body.get("usage"), request, text, choices, reasoning_beside=is_xai)

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        """``n`` works neither with a seed per sample nor with a stream."""
        takes_n = "n" in model.parameters and "n" not in self.refused_fields
        with_n = takes_n and decoding.seed is None and self.stream in ("auto", "never", False)
        return _MAX_CHOICES if with_n else 1

    async def complete_samples(
        self, requests: Sequence[Request], model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> list[Answer]:
        body = {**self.body(requests[0], model, cache_prompt=cache_prompt), "n": len(requests)}
        try:
            answered, headers = await self._send(body, model, timeout_s, {})
        except PromptFiltered as error:
            as_answer = self.as_answer(error, requests[0])
            assert isinstance(as_answer, Answer)
            return [as_answer for _ in requests]
        where = self._where(model.name)
        given = answered.get("choices")
        # Every choice is billed: an unreadable or failed one does not lose the others.
        readable = [choice for choice in given if _is_choice(choice)] if isinstance(given, list) else []
        sound = [choice for choice in readable if not _failure_of(choice)] or readable[:1]
        whole = self.parse_answer({**answered, "choices": sound} if sound else answered, requests[0], where, headers)
        choices = [self._choice(choice, answered) for choice in sound[: len(requests)]]
        texts = [text for text, _, _ in choices]
        usage, estimated = self._usage(answered, requests[0], "".join(texts), len(requests))
        marks = {"usage_estimated": True} if estimated else {}
        answers = [
            self._with_headers(
                Answer(text, finish, share, model=whole.model, details={**details, **marks}, bill=whole.bill), headers
            )
            for (text, finish, details), share in zip(choices, _shares(usage, texts), strict=True)
        ]
        # A stated cost is of the whole request.
        return [answers[0], *(replace(a, bill=replace(a.bill, usd=None)) for a in answers[1:])]

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """The messages as the Responses API counts them. Extra body fields have other names there, so their bytes are
        added."""
        body = {"model": model.name, "input": [*_system(request.prompt), *responses_messages(request.prompt)]}
        tokens = await self._count_tokens(COUNT_PATH, body, model, timeout_s)
        return InputCount(tokens, size_of(model.extra_body) + _OTHER_FRAMING)

    def streams(self, body: Mapping[str, Any]) -> bool:
        limits = (body.get("max_completion_tokens"), body.get("max_tokens"))
        max_tokens = next((limit for limit in limits if isinstance(limit, int)), 0)
        return body.get("n", 1) == 1 and streams_output(self.stream, max_tokens)

    def _streamed_body(self, body: dict[str, Any]) -> dict[str, Any]:
        with_options = "stream_options" not in self.refused_fields
        return {**body, "stream": True, **({"stream_options": {"include_usage": True}} if with_options else {})}

    async def joined(self, events: AsyncIterator[Any], marks: dict[str, float]) -> dict[str, Any]:
        choices: dict[int, _JoinedChoice] = {}
        whole: dict[str, Any] = {}
        is_done = False

        def end() -> tuple[int, float] | None:
            if is_done:
                return 0, GRACE_S
            if not choices or not all(choice.finish for choice in choices.values()):
                return None
            is_certain = all(choice.ended_after_its_parts for choice in choices.values())
            size = sum(choice.size for choice in choices.values())
            return size, GRACE_S if is_certain else DOUBTFUL_GRACE_S

        async for event in until_complete(events, end):
            if event == DONE:
                is_done = True
                if any(choice.finish for choice in choices.values()):
                    break
            if not isinstance(event, dict):
                continue
            whole |= {key: v for key, v in event.items() if key not in ("choices", "usage") and v not in (None, {})}
            for holder in (event.get("x_groq"), *_dicts(event.get("choices")), event):  # Groq, Moonshot, others
                if isinstance(holder, dict):
                    whole["usage"] = later_usage(whole.get("usage"), holder.get("usage"))
            for choice in _dicts(event.get("choices")):
                index = choice.get("index")
                joined = choices.setdefault(index if type(index) is int and index > 0 else 0, _JoinedChoice())
                if joined.add(choice):
                    marks.setdefault("first", time.monotonic())
        complete = [choices[i] for i in sorted(choices) if choices[i].finish or (is_done and choices[i].size)]
        if not complete:
            raise CutShort if choices else Unreadable("a stream without an answer")
        return {**whole, "choices": [choice.body() for choice in complete]}

    def _choice(self, choice: Any, body: Mapping[str, Any]) -> tuple[str, FinishReason, dict[str, Any]]:
        """(text, finish reason, details) of one choice of ``body``.

        Raises:
            Unreadable: it has no message.
            RequestError: the server failed before the end of the answer.
        """
        if isinstance(choice, dict) and (reason := _failure_of(choice)):
            where = self._where(named(body.get("model")) or self.name)
            raise failed_answer(choice.get("error"), reason, where=where, secret=self._key())
        if not _is_choice(choice):
            raise Unreadable("without a message")
        message, raw = _message_of(choice) or {}, named(choice.get("finish_reason"))
        refusal = message.get("refusal")
        finish: FinishReason = finish_reason_of(raw)
        if isinstance(refusal, str) and refusal:
            finish = "refusal"
        text, details = _unspoken(message).text_and_details(_text(message.get("content")), finish)
        return text, finish, {**details, **({"finish_reason": str(raw)} if finish == "other" else {})}


_TEXTS = ("content", "refusal", "reasoning_content", "reasoning")
_PARTS = (*_TEXTS, "reasoning_details", "tool_calls")
_LONG_REPEAT = 64
"""Characters."""


@dataclass(slots=True)
class _JoinedChoice:
    """One choice of a stream, joined from its deltas."""

    parts: dict[str, list[str]] = field(default_factory=lambda: {key: [] for key in _TEXTS})
    details: list[Any] = field(default_factory=list)
    calls: dict[Any, dict[str, str]] = field(default_factory=dict)
    finish: Any = None
    error: Any = None
    size: int = 0
    """Events with a part of the answer."""
    ended_after_its_parts: bool = False
    """The finish reason came in an event of its own, after the answer. Gateways to Gemini state one in each event."""

    def add(self, choice: Mapping[str, Any]) -> bool:
        """Adds a choice of one event. Returns whether it has text."""
        size = self.size
        has_text = self._add_parts(choice)
        if self.size > size:
            self.ended_after_its_parts = False
        elif choice.get("finish_reason") and self.size:
            self.ended_after_its_parts = True
        return has_text

    def _add_parts(self, choice: Mapping[str, Any]) -> bool:
        self.finish = choice.get("finish_reason") or self.finish
        self.error = choice.get("error") or self.error
        delta = choice.get("delta")
        if isinstance(delta, dict) and delta:
            return self._add_delta(delta)
        if isinstance(choice.get("message"), dict):  # a whole answer in one event replaces the parts before it
            self.parts = {key: [] for key in _TEXTS}
            self.details, self.calls = [], {}
        return self._add_delta(_message_of(choice) or {})

    def _add_delta(self, delta: Mapping[str, Any]) -> bool:
        self.size += any(delta.get(key) for key in _PARTS)
        for key, parts in self.parts.items():
            if part := _text(delta.get(key)):
                parts.append(part)
        if isinstance(delta.get("content"), list):  # Mistral's reasoning
            self.parts["reasoning_content"] += strings_of(_dicts(delta["content"]), "thinking")
        if isinstance(delta.get("reasoning_details"), list):
            self.details += delta["reasoning_details"]
        if delta.get("tool_calls"):
            _join_calls(self.calls, delta["tool_calls"])
        return bool(_text(delta.get("content")) or _text(delta.get("refusal")))

    def body(self) -> dict[str, Any]:
        """As a choice of an answer that is not streamed."""
        message: dict[str, Any] = {key: _joined_text(parts) for key, parts in self.parts.items()}
        message |= {
            "tool_calls": [{"function": call} for call in self.calls.values()],
            "reasoning_details": self.details,
        }
        return {"message": message, "finish_reason": self.finish, "error": self.error}


def _joined_text(parts: Sequence[str]) -> str:
    """The text of a stream's parts. Some servers send the whole text so far in each event (DashScope's coding plan);
    no stream of increments repeats that much of itself."""
    repeats = len(parts) > 1 and len(parts[-2]) >= _LONG_REPEAT
    if repeats and all(later.startswith(part) for part, later in pairwise(parts)):
        return parts[-1]
    return joined_text(parts)


def openai_usage(
    usage: Any, request: Request | None, text: str, choices: int = 1, *, reasoning_beside: bool = False
) -> tuple[Usage, bool]:
    """(token counts of a ``usage`` object of either OpenAI API, whether they are estimated).

    Some servers state cached tokens in the object itself, as ``cached_tokens`` (Kimi), ``prompt_cache_hit_tokens``
    (DeepSeek), ``num_cached_tokens`` (Mistral) or ``cache_read_input_tokens`` (gateways to Anthropic). More of them
    than the prompt has are not part of its count (xAI, such gateways). Where reasoning is not part of the output
    (xAI, Gemini), the total includes it. SGLang states reasoning in the object itself.

    Args:
        reasoning_beside: reasoning is not part of the output, where no total shows it.
    """
    try:
        inputs = token_count(usage, "prompt_tokens", "input_tokens")
        outputs = token_count(usage, "completion_tokens", "output_tokens")
        names = ("prompt_tokens_details", "input_tokens_details", "prompt_token_details")
        of_input = next((usage[name] for name in names if usage.get(name)), None)
        of_output = usage.get("completion_tokens_details") or usage.get("output_tokens_details")
        reasoning = optional_count(of_output, "reasoning_tokens") or optional_count(usage, "reasoning_tokens")
        cached = optional_count(of_input, "cached_tokens") or optional_count(
            usage, "cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens", "cache_read_input_tokens"
        )
        written = optional_count(
            of_input, "cache_write_tokens", "cache_creation_input_tokens", "cache_creation_tokens"
        ) or optional_count(usage, "cache_creation_input_tokens")
        hourly = optional_count(_lifetimes(of_input), "ephemeral_1h_input_tokens")
        written = max(written, hourly)
        total = optional_count(usage, "total_tokens")
        if not total and (reasoning_beside or reasoning > outputs):
            outputs += reasoning
        beyond_input = total - inputs if inputs else 0
        if inputs and cached + written > inputs:
            if beyond_input not in (outputs, outputs + reasoning):  # the total includes them
                beyond_input -= cached + written
            inputs += cached + written
    except Implausible:
        return checked_usage(None, request, text)
    stated = Usage(
        input_tokens=inputs,
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(outputs, beyond_input, reasoning),
        reasoning_tokens=reasoning,
        cache_write_1h_tokens=hourly,
    )
    return checked_usage(stated, request, text, choices)


def _lifetimes(of_input: Any) -> Any:
    """The cache writes of each lifetime that LiteLLM's proxy states for Anthropic
    (https://docs.litellm.ai/docs/completion/prompt_caching)."""
    return of_input.get("cache_creation_token_details") if isinstance(of_input, dict) else None


def openai_bill(body: Mapping[str, Any]) -> Bill:
    """What an answer of either OpenAI API states about its price.

    OpenRouter adds ``cost``, and with the user's own key what the vendor charges for it
    (https://openrouter.ai/docs/use-cases/usage-accounting). xAI adds ``cost_in_usd_ticks``
    (https://docs.x.ai/developers/cost-tracking), Perplexity an object with the ``total_cost``
    (https://github.com/vercel/ai/pull/13705), and DeepInfra ``estimated_cost``. LiteLLM's proxy adds what Anthropic
    states.
    """
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    ticks, cost = usage.get("cost_in_usd_ticks"), usage.get("cost")
    usd = stated_dollars(cost.get("total_cost") if isinstance(cost, dict) else cost)
    if usd is None:
        usd = stated_dollars(usage.get("estimated_cost"))
    if usd is None and type(ticks) is int and 0 < ticks <= MAX_USD * _TICKS_PER_USD:
        usd = Decimal(ticks) / _TICKS_PER_USD
    if usage.get("is_byok") is True:
        upstream = _upstream_dollars(usage.get("cost_details"))
        usd = None if upstream is None else (usd or Decimal(0)) + upstream
    details = usage.get("prompt_tokens_details")
    return Bill(
        service_tier=named(body.get("service_tier")),
        speed=named(usage.get("speed")),
        usd=usd,
        states_lifetimes=states_lifetimes(_lifetimes(details)),
        geo=named(usage.get("inference_geo")),
    )


def _upstream_dollars(details: Any) -> Decimal | None:
    """What the vendor charges for a request with the user's own key (``cost_details`` of OpenRouter's SDK); None: it
    is not stated, and the ``cost`` is OpenRouter's fee alone."""
    if not isinstance(details, dict):
        return None
    total = stated_dollars(details.get("upstream_inference_cost"))
    kinds = ("prompt", "completions", "input", "output")
    parts = [stated_dollars(details.get(f"upstream_inference_{kind}_cost")) for kind in kinds]
    return total or sum(filter(None, parts), Decimal(0)) or None


def _is_choice(choice: Any) -> bool:
    """Whether it has a message, or is Gemini's for a prompt that its filter refused, which has none."""
    if not isinstance(choice, dict):
        return False
    filtered = finish_reason_of(named(choice.get("finish_reason"))) == "content_filter"
    return _message_of(choice) is not None or (filtered and choice.get("message") is None)


def _message_of(choice: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message of a choice, or of one in another form: the last event of a stream, or a text completion."""
    message, delta, text = (choice.get(key) for key in ("message", "delta", "text"))
    if isinstance(message, dict):
        return message
    if isinstance(delta, dict) and delta and choice.get("finish_reason"):
        return delta
    return {"content": text} if isinstance(text, str) else None


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _failure_of(choice: Mapping[str, Any]) -> str | None:
    """Why the server failed before the end of this choice; None if it did not."""
    raw = named(choice.get("finish_reason"))
    return (raw or "error") if choice.get("error") or is_failure(raw) else None


def _unspoken(message: dict[str, Any]) -> Unspoken:
    """What a message has beside its content. Servers name the reasoning differently, and some send it twice."""
    content = message.get("content")
    reasoning = strings_of(message.get("reasoning_content"), "text") or strings_of(
        message.get("reasoning"), "text", "content"
    )
    reasoning = reasoning or strings_of(message.get("reasoning_details"), "text", "summary")
    if not reasoning and isinstance(content, list):
        reasoning = strings_of(_dicts(content), "thinking")
    given = message.get("tool_calls")
    calls = [call.get("function") for call in given if isinstance(call, dict)] if isinstance(given, list) else []
    calls.append(message.get("function_call"))
    return Unspoken(
        reasoning,
        [(str(call.get("name")), call.get("arguments")) for call in calls if isinstance(call, dict)],
        strings_of(message.get("refusal")),
    )


def _join_calls(calls: dict[Any, dict[str, str]], deltas: Any) -> None:
    """Add the parts of tool calls in one event of a stream to ``calls``, by their index."""
    for delta in _dicts(deltas):
        function = delta.get("function")
        index = delta.get("index")
        call = calls.setdefault(index if isinstance(index, int) else 0, {"name": "", "arguments": ""})
        for key in call:
            if isinstance(function, dict) and isinstance(part := function.get(key), str):
                call[key] += part


def _shares(usage: Usage, texts: Sequence[str]) -> list[Usage]:
    """``usage`` of a request divided among its choices: the prompt counts for the first one, the output in
    proportion to the length. The parts sum to the whole."""
    total = sum(map(len, texts))
    ends = [sum(map(len, texts[:index])) for index in range(len(texts) + 1)]
    if not total:
        ends, total = list(range(len(texts) + 1)), len(texts)

    def parts(count: int) -> list[int]:
        return [count * end // total - count * start // total for start, end in pairwise(ends)]

    output, reasoning = parts(usage.output_tokens), parts(usage.reasoning_tokens)
    shares = [Usage(output_tokens=o, reasoning_tokens=r) for o, r in zip(output, reasoning, strict=True)]
    shares[0] += replace(usage, output_tokens=0, reasoning_tokens=0)
    return shares


def cache_fields(prompt: Prompt, model: ApiModel, *, cache_prompt: bool) -> dict[str, Any]:
    """The fields for OpenAI's prompt cache: a key of the prompt, or no caching if writes are billed and no other
    request would read them."""
    if cache_prompt:
        return {"prompt_cache_key": hashlib.blake2b(prompt.text.encode(), digest_size=16).hexdigest()}
    return unshared_cache_fields(model)


def unshared_cache_fields(model: ApiModel) -> dict[str, Any]:
    """The fields for a prompt that no other request shares."""
    return {"prompt_cache_options": {"mode": "explicit"}} if model.billed_cache_writes else {}


def _system(prompt: Prompt) -> list[dict[str, Any]]:
    return [] if prompt.system is None else [{"role": "system", "content": prompt.system}]


def _text(content: Any) -> str:
    """A message's text; some compatible servers send it in parts."""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
