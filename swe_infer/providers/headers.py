"""Reads retry delays and quotas from response headers.

Sources: the vendors' pages on rate limits (OpenAI, Anthropic, Mistral, Cerebras, Fireworks); RFC 9110, section
10.2.3, for ``Retry-After``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
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


def reset_s(text: str | None, headers: Mapping[str, str]) -> float | None:
    """Seconds until a reset, which is a duration as :func:`duration_s` reads it, a time since the epoch, or a date as
    in ISO 8601.

    Args:
        headers: with the server's time.
    """
    if text is None or (seconds := duration_s(text)) is None:
        return None if text is None else _until(text.strip()[:_LONGEST], _server_time(headers))
    if seconds < _EPOCH_S:
        return seconds
    return max(0.0, (seconds if seconds < _EPOCH_MS else seconds / 1000) - _server_time(headers))


def retry_after_s(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds from ``retry-after-ms``, or from ``retry-after`` in seconds, as an HTTP date or since the epoch.

    None if there is no valid header. Never negative.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after")
    if text is None:
        return None
    seconds = _number(text)
    if seconds is not None and seconds < _EPOCH_S:
        return max(0.0, seconds)
    date = _timestamp(text) if seconds is None else seconds if seconds < _EPOCH_MS else seconds / 1000
    if date is None:
        return None
    return max(0.0, date - (_server_time(headers) if now is None else now))


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The vendor's request id, truncated and without control characters."""
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if name in headers), None)
    return None if found is None else "".join(filter(str.isprintable, found[:_LONGEST]))


def rate_limits_of(headers: Mapping[str, str]) -> RateLimits:
    """Quotas in the headers of OpenAI, Anthropic or vendors with variants of OpenAI's headers.

    If input and output have separate limits (Anthropic, Fireworks), ``tokens`` are input tokens. Limits per hour or
    day that have names of their own are not read.
    """
    if "anthropic-ratelimit-requests-limit" in headers or "anthropic-ratelimit-tokens-limit" in headers:
        return _anthropic_limits(headers)
    requests, tokens, output = (_openai_limits(headers, names) for names in (_REQUESTS, _TOKENS, _OUTPUT_TOKENS))
    return RateLimits(*requests, *tokens, *output)


_REQUESTS = ("requests", "requests-minute", "req-minute")
_TOKENS = ("tokens", "tokens-minute", "tokens-prompt")
_OUTPUT_TOKENS = ("tokens-generated",)
"""The ends of OpenAI's header names, in its own form, then of Cerebras and Mistral, and Fireworks."""


def _openai_limits(headers: Mapping[str, str], names: Sequence[str]) -> tuple[int | None, int | None, float | None]:
    """(limit, remaining, seconds until the reset) from the first of ``names`` with a limit."""
    for name in names:
        if (limit := _count(headers.get(f"x-ratelimit-limit-{name}"))) is not None:
            remaining = _count(headers.get(f"x-ratelimit-remaining-{name}"))
            return limit, remaining, reset_s(headers.get(f"x-ratelimit-reset-{name}"), headers)
    if names is _TOKENS:  # Mistral's earlier form
        limit = _count(headers.get("x-ratelimitbysize-limit-minute"))
        remaining = _count(headers.get("x-ratelimitbysize-remaining-minute"))
        return limit, remaining, reset_s(headers.get("ratelimitbysize-reset"), headers)
    remaining = _count(headers.get(f"x-ratelimit-remaining-{names[0]}"))
    return None, remaining, reset_s(headers.get(f"x-ratelimit-reset-{names[0]}"), headers)


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
