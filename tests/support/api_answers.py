"""How the loopback API server answers one call: checks as strict as the vendors', text, usage, faults."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, replace
from typing import Any

from swe_infer.types import Usage
from tests.support.api_bodies import Ending, Made
from tests.support.api_calls import AnswerFunction, Call, small_patch, tokens
from tests.support.api_clouds import in_words_of
from tests.support.api_faults import Fault, HttpError, error_of
from tests.support.api_limits import PromptCache
from tests.support.api_vendors import Vendor

__all__ = ["Maker"]

_FIXED_SAMPLING = re.compile(r"(o\d|gpt-5)")
_NEW_API = "2026-"
_NO_PREFILL = re.compile(r"claude-(opus|sonnet)-4-[6-9]|claude-[a-z]+-5")


@dataclass
class Maker:
    """Makes answers. The same call gets the same text and the same token counts, except for cached tokens."""

    cache: PromptCache
    answer: AnswerFunction | None = None
    context_window: int | None = None
    models: frozenset[str] | None = None
    api_key: str | None = None
    prompt_cache: bool = True
    strict: bool = True
    """Refuse, as the vendors do, parameters that the model does not accept."""
    project_tier: str = "default"
    """OpenAI's tier of requests that name none, or ``auto``."""
    workspace_geo: str | None = None
    """Anthropic's ``inference_geo`` of requests that name none; None: answers state none."""
    vendor: Vendor | None = None
    """Refuse and ignore what this vendor of OpenAI's chat API does."""
    downgraded: bool = False
    """Serve every request in the standard tier and at the standard speed."""
    overruns_from: int | None = None
    """The answer from which on ten times the requested output is billed."""
    added_input: int = 0
    """Tokens of input of the server's own, such as a system prompt, that are billed with each request."""
    made: int = 0
    """Answers so far."""

    def refusal_of(self, call: Call) -> HttpError | None:
        """The error of a request that the vendor rejects at once."""
        if (refused := self.wrong_key(call)) is not None:
            return refused
        if self.vendor is not None and (complaint := self.vendor.complaint(call.body, call.headers)) is not None:
            return HttpError(*complaint, {"content-type": "application/json"})
        if self.models is not None and call.model not in self.models:
            return error_of(Fault("model_not_found"), call, time.time())
        if self.strict and (words := _complaint(call)):
            kind = "anthropic" if call.vendor == "anthropic" else "openai"
            error: dict[str, Any] = {"message": words, "type": "invalid_request_error"}
            if kind == "openai":
                body: dict[str, Any] = {"error": {**error, "param": None, "code": "unsupported_value"}}
            else:
                body = {"type": "error", "error": error, "request_id": "req_loopback"}
            raw, more = json.dumps(body).encode(), {"content-type": "application/json"}
            if call.cloud is not None:
                _, raw, headers = in_words_of(call.cloud, 400, raw)
                more |= headers
            return HttpError(400, raw, more)
        window = self.context_window
        if window is not None and call.input_tokens > window:
            return error_of(Fault("context_overflow"), call, time.time(), window)
        if window is not None and call.input_tokens + (call.max_tokens or 0) > window:
            return error_of(Fault("context_overflow_output"), call, time.time(), window)
        return None

    def wrong_key(self, call: Call) -> HttpError | None:
        if self.api_key is None or _key_of(call) == self.api_key:
            return None
        if "x-goog-api-key" in call.headers:
            words = {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
            }
            return HttpError(400, json.dumps({"error": words}).encode(), {"content-type": "application/json"})
        return error_of(Fault("auth"), call, time.time())

    def make(self, call: Call, number: int, fault: Fault | None) -> Made:
        """Text and usage; ``fault`` may change the answer."""
        texts, endings = zip(*(self._choice(call, index, fault) for index in range(call.n)), strict=True)
        reasoning = 64 if call.thinking else 0
        read, written = self.cache.look_up(call) if self.prompt_cache else (0, 0)
        usage = Usage(
            input_tokens=call.input_tokens + self.added_input,
            cached_input_tokens=read,
            cache_write_tokens=written,
            output_tokens=sum(tokens(text) for text in texts) + reasoning * call.n,
            reasoning_tokens=reasoning * call.n if call.vendor == "openai" else 0,
            cache_write_1h_tokens=written if call.cached_for_an_hour else 0,
        )
        self.made += 1
        if self.overruns_from is not None and self.made >= self.overruns_from:
            usage = replace(usage, output_tokens=10 * call.n * (call.max_tokens or 0))
        tier, speed = self._processing(call)
        made = Made(
            number=number,
            call=call,
            texts=texts,
            endings=endings,
            usage=usage,
            created=int(time.time()),
            model=_snapshot(call.model),
            service_tier=tier,
            speed=speed,
            geo=call.body.get("inference_geo", self.workspace_geo) if call.vendor == "anthropic" else None,
        )
        if fault and fault.kind == "absurd_usage":
            made = replace(made, stated=replace(usage, output_tokens=90_000_000))
        return replace(made, with_usage=False) if fault and fault.kind == "missing_usage" else made

    def _processing(self, call: Call) -> tuple[str | None, str | None]:
        """(OpenAI's service tier, Anthropic's speed) of an answer; None: it states none."""
        if call.vendor == "anthropic":
            speed = call.body.get("speed")
            return None, "standard" if speed and self.downgraded else speed
        asked = call.body.get("service_tier")
        tier = self.project_tier if asked in (None, "auto") else {"fast": "priority"}.get(asked, asked)
        return (None if asked is None and tier == "default" else "default" if self.downgraded else tier), None

    def _choice(self, call: Call, index: int, fault: Fault | None) -> tuple[str, Ending]:
        kind = fault.kind if fault else None
        if kind == "empty":
            return "", "stop"
        if kind == "refusal":
            return "I cannot help with that.", "refusal"
        if kind == "content_filter":
            return "", "content_filter"
        if kind == "huge":
            return "x" * 8_000_000, "stop"
        text = self.answer(call.prompt) if self.answer is not None else small_patch(call, index)
        cuts = [position for stop in call.stop if (position := text.find(stop)) >= 0]
        if cuts:
            text = text[: min(cuts)]
        limit = call.max_tokens if self.vendor is None else self.vendor.max_tokens(call.body)
        if limit is not None and tokens(text) > limit:
            return text[: limit * 4], "length"
        return text, "stop"


_SAMPLES_WITHOUT_EFFORT = re.compile(r"gpt-5\.[1-4](?!-pro|-codex)")


def _complaint(call: Call) -> str | None:
    body = call.body
    sampling = [key for key in ("temperature", "top_p", "top_k") if key in body]
    if call.vendor == "anthropic":
        version = body.get("anthropic_version") if call.cloud else call.headers.get("anthropic-version")
        if version is None:
            return "anthropic-version: header is required"
        if version.startswith(_NEW_API) and sampling:
            return f"{sampling[0]}: Extra inputs are not permitted"
        last = (body.get("messages") or [{}])[-1]
        if last.get("role") == "assistant":
            if _NO_PREFILL.search(call.model):
                return "This model does not support assistant message prefill."
            if last["content"] != last["content"].rstrip():
                return "messages: final assistant content cannot end with trailing whitespace"
        unknown = [key for key in ("n", "seed", "messages_extra") if key in body]
        return f"{unknown[0]}: Extra inputs are not permitted" if unknown else None
    if _FIXED_SAMPLING.match(call.model):
        effort = body.get("reasoning_effort") or (body.get("reasoning") or {}).get("effort")
        samples = effort == "none" and _SAMPLES_WITHOUT_EFFORT.match(call.model)
        if sampling and not samples:
            return f"Unsupported parameter: '{sampling[0]}' is not supported with this model."
        if "max_tokens" in body:
            return (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
            )
    return None


def _key_of(call: Call) -> str | None:
    headers = call.headers
    bearer = headers.get("authorization", "").removeprefix("Bearer ")
    named = (headers.get(name) for name in ("x-api-key", "api-key", "x-goog-api-key"))
    return next(filter(None, named), bearer or None)


def _snapshot(model: str) -> str:
    """The dated name of an alias, as in the vendors' answers."""
    return model if re.search(r"\d{4}-?\d{2}-?\d{2}$", model) else f"{model}-2026-01-01"
