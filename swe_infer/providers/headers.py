"""Reads retry delays and quotas from response headers.

Sources: the vendors' pages on rate limits (OpenAI, Anthropic, Mistral, Cerebras, Fireworks); RFC 9110, section
10.2.3, for ``Retry-After``; draft-ietf-httpapi-ratelimit-headers for ``RateLimit``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from swe_infer.errors import RateLimits

_UNITS_S = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|d|h|m|s))+")
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|d|h|m|s)")
_LONGEST = 200
"""Characters of a header that are read."""
_LARGEST = 1e15
"""Larger numbers are ignored: no quota and no delay is as large."""
_EPOCH_S, _EPOCH_MS = 1e9, 1e12
"""A number of this size or more is a time since the epoch, in seconds or in milliseconds (gateways, OpenRouter)."""
_REQUEST_ID_HEADERS = ("x-request-id", "request-id", "apim-request-id", "x-amzn-requestid", "x-litellm-call-id")


def duration_s(text: str | None) -> float | None:
    """Seconds of a duration in Go's format (``6m0s``, ``1.5s``, ``20ms``) or a plain number; None for other text."""
    if text is None:
        return None
    text = text.strip()
    if len(text) <= _LONGEST and _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
        return seconds if seconds <= _LARGEST else None
    return _not_negative(text)


def reset_s(text: str | None, now: float) -> float | None:
    """Seconds until a reset, which is a duration as :func:`duration_s` reads it, a time since the epoch, or a date as
    in ISO 8601.

    Args:
        now: the server's time.
    """
    if text is None or (seconds := duration_s(text)) is None:
        return None if text is None else _until(text.strip()[:_LONGEST], now)
    if seconds < _EPOCH_S:
        return seconds
    return max(0.0, (seconds if seconds < _EPOCH_MS else seconds / 1000) - now)


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds from ``retry-after-ms``, or from ``retry-after`` as an HTTP date or in a form of :func:`reset_s`.

    None if there is no valid header. Never negative.
    """
    milliseconds = _number(headers.get("retry-after-ms") or headers.get("x-ms-retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    if text is None:
        return None
    if (number := _number(text)) is not None and number < 0:
        return 0.0
    now = _server_time(headers) if now is None else now
    date = _timestamp(text)
    return reset_s(text, now) if date is None else max(0.0, date - now)


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The vendor's request id, truncated and without control characters."""
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if name in headers), None)
    return None if found is None else "".join(filter(str.isprintable, found[:_LONGEST]))


def rate_limits_of(headers: Mapping[str, str]) -> RateLimits:
    """Quotas in the headers of OpenAI, Anthropic or vendors with variants of OpenAI's headers.

    If input and output have separate limits (Anthropic, Fireworks), ``tokens`` are input tokens. Limits per hour or
    day that have names of their own are not read.
    """
    if not any("ratelimit" in name for name in headers):  # header names are in lower case
        return RateLimits()
    if any(f"anthropic-ratelimit-{kind}-limit" in headers for kind in _ANTHROPIC):
        return _anthropic_limits(headers)
    now = _server_time(headers)
    requests, tokens, output = (_openai_limits(headers, names, now) for names in (_REQUESTS, _TOKENS, _OUTPUT_TOKENS))
    if requests[0] is None and any(name in headers for name in _DRAFT):
        requests = _draft_limits(headers, now)
    return RateLimits(*requests, *tokens, *output)


_ANTHROPIC = ("requests", "tokens", "input-tokens", "output-tokens")
_DRAFT = ("ratelimit", "ratelimit-policy", "ratelimit-limit")
_REQUESTS = ("requests", "requests-minute", "req-minute", "minute")
_TOKENS = ("tokens", "tokens-minute", "tokens-prompt")
_OUTPUT_TOKENS = ("tokens-generated",)
"""The ends of OpenAI's header names, in its own form, then of Cerebras and Mistral, and Fireworks; ``minute`` is
Kong's."""


def _openai_limits(
    headers: Mapping[str, str], names: Sequence[str], now: float
) -> tuple[int | None, int | None, float | None]:
    """(limit, remaining, seconds until the reset) from the first of ``names`` with a limit."""
    for name in names:
        if (limit := _count(headers.get(f"x-ratelimit-limit-{name}"))) is not None:
            remaining = _count(headers.get(f"x-ratelimit-remaining-{name}"))
            return limit, remaining, reset_s(headers.get(f"x-ratelimit-reset-{name}"), now)
    if names is _TOKENS:  # Mistral's earlier form
        limit = _count(headers.get("x-ratelimitbysize-limit-minute"))
        remaining = _count(headers.get("x-ratelimitbysize-remaining-minute"))
        return limit, remaining, reset_s(headers.get("ratelimitbysize-reset"), now)
    remaining = _count(headers.get(f"x-ratelimit-remaining-{names[0]}"))
    return None, remaining, reset_s(headers.get(f"x-ratelimit-reset-{names[0]}"), now)


def _draft_limits(headers: Mapping[str, str], now: float) -> tuple[int | None, int | None, float | None]:
    """(limit per minute, remaining, seconds until the reset) of the strictest policy for requests in the fields of
    draft-ietf-httpapi-ratelimit-headers. A policy without its window says nothing, and nor does one for longer than a
    minute without what remains of it. Its reset is left out, because the limit is one per minute.

    Earlier drafts have ``ratelimit-limit: 100, 100;w=60`` and fields of their own for the rest.
    """
    policies: dict[str, tuple[float, float]] = {}
    text = headers.get("ratelimit-policy") or headers.get("ratelimit-limit", "")
    for name, parameters in _items(text):
        quota, window_s = _not_negative(parameters.get("q", name)), _not_negative(parameters.get("w"))
        if quota and window_s and parameters.get("qu", "requests") == "requests":
            policies[name] = (quota * 60 / window_s, window_s)
    strictest = min(policies, key=lambda name: policies[name], default="")
    states = dict(_items(headers.get("ratelimit", "")))
    state = states.get(strictest) or (next(iter(states.values())) if len(states) == 1 else {})
    remaining = _count(state.get("r") or headers.get("ratelimit-remaining"))
    reset = reset_s(state.get("t") or headers.get("ratelimit-reset"), now)
    per_minute, window_s = policies.get(strictest, (0.0, 0.0))
    if not per_minute or (window_s > 60 and remaining is None):
        return None, remaining, reset
    return max(1, round(per_minute)), remaining, reset if window_s <= 60 else None


def _items(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(name, parameters) of each item of a structured field, as in ``"burst";q=100;w=60, "daily";q=1000;w=86400``."""
    for item in text[:_LONGEST].split(","):
        name, *parameters = (part.strip().strip('"') for part in item.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        yield name, {key.strip(): value.strip().strip('"') for key, _, value in pairs}


def _anthropic_limits(headers: Mapping[str, str]) -> RateLimits:
    prefix = "anthropic-ratelimit"
    now = _server_time(headers)
    tokens = "input-tokens" if f"{prefix}-input-tokens-limit" in headers else "tokens"
    return RateLimits(
        limit_requests=_count(headers.get(f"{prefix}-requests-limit")),
        remaining_requests=_count(headers.get(f"{prefix}-requests-remaining")),
        reset_requests_s=_until(headers.get(f"{prefix}-requests-reset"), now),
        limit_tokens=_count(headers.get(f"{prefix}-{tokens}-limit")),
        remaining_tokens=_count(headers.get(f"{prefix}-{tokens}-remaining")),
        reset_tokens_s=_until(headers.get(f"{prefix}-{tokens}-reset"), now),
        limit_output_tokens=_count(headers.get(f"{prefix}-output-tokens-limit")),
        remaining_output_tokens=_count(headers.get(f"{prefix}-output-tokens-remaining")),
        reset_output_tokens_s=_until(headers.get(f"{prefix}-output-tokens-reset"), now),
    )


def _server_time(headers: Mapping[str, str]) -> float:
    """The server's time from its headers, else the local time, which may be wrong."""
    stated = _timestamp(headers.get("date", ""))
    return time.time() if stated is None else stated


def _timestamp(date: str) -> float | None:
    """Seconds since the epoch of an HTTP date; None if it is invalid."""
    try:
        return parsedate_to_datetime(date[:_LONGEST]).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None


def _until(rfc3339: str | None, now: float) -> float | None:
    if rfc3339 is None:
        return None
    try:
        date = datetime.fromisoformat(rfc3339)
        return max(0.0, (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str | None) -> float | None:
    if not text:
        return None
    try:
        value = float(text[: _LONGEST + 1])
    except ValueError:
        return None
    return value if abs(value) <= _LARGEST else None


def _not_negative(text: str | None) -> float | None:
    number = _number(text)
    return number if number is not None and number >= 0 else None


def _count(text: str | None) -> int | None:
    number = _not_negative(text)
    return int(number) if number is not None else None
