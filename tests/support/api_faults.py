"""Faults of the loopback API server, in each vendor's format, and the rules for when they occur.

The wordings follow what the vendors' servers send (November 2026), so that classification is tested on real messages.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Literal, get_args

from tests.support.api_calls import Call
from tests.support.api_clouds import in_words_of

__all__ = ["ERROR_FAULTS", "Fault", "FaultKind", "FaultPlan", "HttpError", "error_of"]

FaultKind = Literal[
    # an error instead of an answer
    "rate_limit",
    "rate_limit_bare",
    "rate_limit_ms",
    "rate_limit_date",
    "server_error",
    "bad_gateway_html",
    "unavailable",
    "overloaded",
    "timeout_408",
    "conflict_409",
    "context_overflow",
    "context_overflow_output",
    "insufficient_quota",
    "auth",
    "forbidden",
    "model_not_found",
    "bad_request",
    "too_large",
    "prompt_filtered",
    # a connection or a body that breaks
    "reset",
    "close",
    "hang",
    "cut",
    "stream_error",
    "broken_json",
    "html_page",
    "wrong_type",
    "wrong_shape",
    "no_choices",
    # an unusual answer
    "slow_body",
    "missing_usage",
    "absurd_usage",
    "empty",
    "refusal",
    "content_filter",
    "huge",
    # items of batches only
    "batch_expired",
    "batch_wrong_id",
    "batch_lost",
]
"""``cut``: half of the body, or half of the stream, then an orderly close. ``stream_error``: an error event in
mid-stream. ``wrong_type``: a good body under ``text/plain``. ``huge``: 8 MB of text. ``absurd_usage``: an answer
that states 90 million tokens of output. ``context_overflow_output``: prompt and output together do not fit."""

ERROR_FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)[:19]


@dataclass(slots=True)
class Fault:
    """When a fault occurs.

    Args:
        fraction: the share of matching requests that it strikes.
        times: how often it strikes in all; None: without end.
        per_prompt: how often it strikes any one prompt; None: without end. With 1, a second try goes well.
        contains: only prompts that hold this text.
        retry_after_s: what the server asks for, where the kind states it.
        batched: whether it strikes the items of batches too.
    """

    kind: FaultKind
    fraction: float = 1.0
    times: int | None = None
    per_prompt: int | None = None
    contains: str | None = None
    retry_after_s: float = 1.0
    batched: bool = True
    _struck: Counter[str] = field(default_factory=Counter, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in get_args(FaultKind):
            raise ValueError(f"unknown fault {self.kind!r}")

    def strikes(self, call: Call, chance: random.Random) -> bool:
        if self.kind.startswith("batch_") if not call.batch else not self.batched:
            return False
        if self.contains is not None and self.contains not in call.prompt:
            return False
        if self.times is not None and self._struck.total() >= self.times:
            return False
        if self.per_prompt is not None and self._struck[call.prompt] >= self.per_prompt:
            return False
        if chance.random() >= self.fraction:
            return False
        self._struck[call.prompt if self.per_prompt is not None else ""] += 1
        return True


class FaultPlan:
    """A script for the next requests, then rules for the rest; the first rule that applies decides."""

    def __init__(self, rules: list[Fault], seed: int) -> None:
        self._rules = rules
        self._script: deque[FaultKind | None] = deque()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()

    def replace(self, rules: list[Fault]) -> None:
        with self._lock:
            self._rules = rules

    def clear(self) -> None:
        with self._lock:
            self._rules = []
            self._script.clear()

    def script(self, *kinds: FaultKind | None) -> None:
        """Faults of the next requests, one each; None: a good answer."""
        with self._lock:
            self._script.extend(kinds)

    def draw(self, call: Call) -> Fault | None:
        with self._lock:
            if self._script and not call.batch:
                kind = self._script.popleft()
                return Fault(kind) if kind is not None else None
            return next((rule for rule in self._rules if rule.strikes(call, self._chance)), None)


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error answer as it goes over the wire."""

    status: int
    body: bytes
    headers: dict[str, str]


def error_of(fault: Fault, call: Call, now: float, window: int | None = None) -> HttpError:
    """The error for ``fault`` in the format of the vendor of ``call``."""
    headers: dict[str, str] = {}
    wait = fault.retry_after_s
    match fault.kind:
        case "rate_limit":
            headers["retry-after"] = f"{wait:g}"
        case "rate_limit_ms":
            headers["retry-after-ms"] = f"{wait * 1000:.0f}"
        case "rate_limit_date":
            headers["retry-after"] = formatdate(now + wait, usegmt=True)
        case "bad_gateway_html":
            page = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
            return HttpError(502, page, {"content-type": "text/html"})
        case _:
            pass
    build = _openai_error if call.vendor == "openai" else _anthropic_error
    status, error = build(fault.kind, call, window or 128_000)
    raw = json.dumps(error).encode()
    if call.cloud is not None:
        status, raw, more = in_words_of(call.cloud, status, raw)
        headers |= more
    return HttpError(status, raw, {"content-type": "application/json", **headers})


def _openai_error(kind: FaultKind, call: Call, window: int) -> tuple[int, dict[str, object]]:
    used = max(call.input_tokens, window + 1)
    overflow = (
        f"This model's maximum context length is {window} tokens. However, your messages resulted in {used} tokens. "
        "Please reduce the length of the messages."
    )
    overflow_output = (
        f"This model's maximum context length is {window} tokens. However, you requested {used} tokens "
        f"({call.input_tokens} in the messages, {call.max_tokens} in the completion). Please reduce the length of "
        "the messages or completion."
    )
    if call.dialect == "openai_responses":
        overflow = "Your input exceeds the context window of this model. Please adjust your input and try again."
    rate = f"Rate limit reached for {call.model} in organization org-loopback on requests per min (RPM)."
    quota = "You exceeded your current quota, please check your plan and billing details."
    filtered = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    if kind.startswith("rate_limit"):
        return 429, _openai_body(rate, "requests", "rate_limit_exceeded")
    table: dict[str, tuple[int, str, str, str | None]] = {
        "server_error": (500, "The server had an error while processing your request.", "server_error", None),
        "unavailable": (503, "The engine is currently overloaded, please try again later.", "server_error", None),
        "overloaded": (503, "Slow down: the engine is overloaded.", "server_error", "slow_down"),
        "timeout_408": (408, "Request timed out.", "timeout", None),
        "conflict_409": (409, "The resource was changed by another request.", "conflict", None),
        "context_overflow": (400, overflow, "invalid_request_error", "context_length_exceeded"),
        "context_overflow_output": (400, overflow_output, "invalid_request_error", "context_length_exceeded"),
        "insufficient_quota": (429, quota, "insufficient_quota", "insufficient_quota"),
        "auth": (401, _refused_key(call), "invalid_request_error", "invalid_api_key"),
        "forbidden": (403, "Country, region, or territory not supported.", "request_forbidden", None),
        "model_not_found": (
            404,
            f"The model `{call.model}` does not exist or you do not have access to it.",
            "invalid_request_error",
            "DeploymentNotFound" if call.azure else "model_not_found",
        ),
        "bad_request": (400, "Invalid value for 'messages[0]'.", "invalid_request_error", "invalid_value"),
        "too_large": (413, "Request too large.", "invalid_request_error", None),
        "prompt_filtered": (400, filtered, "invalid_request_error", "content_filter"),
    }
    status, message, error_type, code = table[kind]
    return status, _openai_body(message, error_type, code)


def _openai_body(message: str, error_type: str, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": error_type, "param": None, "code": code}}


def _refused_key(call: Call) -> str:
    key = call.headers.get("api-key") or call.headers.get("authorization", "").removeprefix("Bearer ")
    shown = f"{key[:8]}{'*' * 20}{key[-4:]}"
    return f"Incorrect API key provided: {shown}. You can find your API key at https://platform.openai.com."


def _anthropic_error(kind: FaultKind, call: Call, window: int) -> tuple[int, dict[str, object]]:
    used = max(call.input_tokens, window + 1)
    together = (
        f"input length and `max_tokens` exceed context limit: {call.input_tokens} + {call.max_tokens} > {window}, "
        "decrease input length or `max_tokens` and try again"
    )
    credit = (
        "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or "
        "purchase credits."
    )
    rate = "This request would exceed your organization's rate limit of 50 requests per minute."
    if kind.startswith("rate_limit"):
        return 429, _anthropic_body(rate, "rate_limit_error")
    invalid = "invalid_request_error"
    table: dict[str, tuple[int, str, str]] = {
        "server_error": (500, "Internal server error", "api_error"),
        "unavailable": (503, "Service temporarily unavailable", "api_error"),
        "overloaded": (529, "Overloaded", "overloaded_error"),
        "timeout_408": (408, "Request timed out", "timeout_error"),
        "conflict_409": (409, "Conflict", invalid),
        "context_overflow": (400, f"prompt is too long: {used} tokens > {window} maximum", invalid),
        "context_overflow_output": (400, together, invalid),
        "insufficient_quota": (400, credit, invalid),
        "auth": (401, "invalid x-api-key", "authentication_error"),
        "forbidden": (403, "Your API key does not have permission to use the resource", "permission_error"),
        "model_not_found": (404, f"model: {call.model}", "not_found_error"),
        "bad_request": (400, "messages.0.content: Field required", invalid),
        "too_large": (413, "Request exceeds the maximum size", "request_too_large"),
        "prompt_filtered": (400, "Output blocked by content filtering policy", invalid),
    }
    status, message, error_type = table[kind]
    return status, _anthropic_body(message, error_type)


def _anthropic_body(message: str, error_type: str) -> dict[str, object]:
    return {"type": "error", "error": {"type": error_type, "message": message}, "request_id": "req_loopback"}
