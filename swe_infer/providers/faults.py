"""Classifies HTTP errors and formats them in one line without secrets.

A code or type in the body has priority over the status, since vendors use one status for several errors: OpenAI's 429
is a rate limit or an empty account, a 400 may be an overflow, a refused prompt or an invalid request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProviderFatal,
    QuotaExhausted,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.providers.headers import duration_s, rate_limits_of, request_id_of, retry_after_s

_LONGEST_MESSAGE = 300
_LONGEST_SEARCHED = 8192
"""Characters of an error's text that are searched for its class."""

_OVERFLOW_CODES = {"context_length_exceeded", "string_above_max_length", "exceed_context_size_error"}
_OVERFLOW = re.compile(
    r"maximum context length|context[_ ](window|limit|length|size)|prompt is too long|input is too long"
    r"|(too many|exceeds?( the)?( maximum)?( number of)?) (input |prompt )?tokens|string too long"
    r"|reduce the length of the (messages|prompt|input)",
    re.IGNORECASE,
)
_QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "access_terminated",
}
_QUOTA = re.compile(r"credit balance is too low|exceeded your current quota|insufficient (credits|balance)", re.I)
_FILTER_CODES = {"content_filter", "content_policy_violation", "invalid_prompt"}
_FILTER = re.compile(r"blocked by content filtering|content management policy", re.IGNORECASE)
_MODEL_CODES = {"model_not_found", "DeploymentNotFound", "not_found_error", "OperationNotSupported"}
_RATE_TYPES = {"rate_limit_error", "rate_limit_exceeded", "token_limit_exceeded"}
_OVERLOAD_TYPES = {"overloaded_error", "slow_down", "engine_overloaded"}
_TRANSIENT_TYPES = {"api_error", "server_error", "timeout_error", "vector_store_timeout"}
_UNKNOWN_MODEL = re.compile(r"model identifier is invalid|model id .{0,200}isn.t supported", re.IGNORECASE)
_CLOUD_KINDS = {  # Amazon's exceptions and Google's status codes, as the error types above
    "throttlingexception": "rate_limit_error",
    "servicequotaexceededexception": "rate_limit_error",
    "serviceunavailableexception": "overloaded_error",
    "modelnotreadyexception": "overloaded_error",
    "internalserverexception": "api_error",
    "modelerrorexception": "api_error",
    "modelstreamerrorexception": "api_error",
    "modeltimeoutexception": "timeout_error",
    "accessdeniedexception": "permission_error",
    "unrecognizedclientexception": "authentication_error",
    "expiredtokenexception": "authentication_error",
    "invalidsignatureexception": "authentication_error",
    "resourcenotfoundexception": "not_found_error",
    "resource_exhausted": "rate_limit_error",
    "unavailable": "overloaded_error",
    "internal": "api_error",
    "deadline_exceeded": "timeout_error",
    "permission_denied": "permission_error",
    "unauthenticated": "authentication_error",
    "not_found": "not_found_error",
}
_TOO_LARGE = re.compile(r"^request too large", re.IGNORECASE)
_TRY_AGAIN = re.compile(r"try again in ((?:\d+(?:\.\d+)?(?:ms|d|h|m|s))+)", re.IGNORECASE)

_SECRETS = (
    # a key that the vendor repeats, in full or with stars; then anything like a key, an organisation or a password
    (re.compile(r"(api key provided: )\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"\S*\*{3,}\S*"), "***"),
    (re.compile(r"\b(sk|key|org|proj|gsk|xai)-[\w-]{8,}"), r"\1-***"),
    (re.compile(r"(bearer\s+)\S+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(://)[^/@\s]+@"), r"\1***@"),
    (re.compile(r"((?:api[-_]?key|token|secret|password)=)[^&\s]+", re.IGNORECASE), r"\1***"),
    (re.compile(r"(x-amz-security-token:\s?|credential=|signature=)[^\s,]+", re.IGNORECASE), r"\1***"),
)


class PromptFiltered(InvalidRequest):
    """The provider's content filter refused the prompt. This counts as an answer, not as a failure."""


def one_line(text: str, secret: str | None = None) -> str:
    """``text`` on one line of at most 300 characters, without control characters, ``secret`` and text like
    secrets."""
    if secret:
        text = text.replace(secret, "***")
    # Truncated before the patterns, some of which are quadratic in the length of a word.
    text = " ".join(text[: 100 * _LONGEST_MESSAGE].split())[: 10 * _LONGEST_MESSAGE]
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 1]}…"


def classify(
    status: int | None, body: Any, headers: Mapping[str, str], *, where: str, secret: str | None = None
) -> RequestError:
    """The error for an HTTP status and a vendor's error body.

    Args:
        status: None for an error inside a stream or a batch, which has no status.
        body: the decoded JSON body, or its text if it is not JSON. Vendors nest the error under ``error``.
        where: host and model, for the message.
        secret: the key, which is removed from the message.
    """
    kinds, message = _read(body)
    kinds |= {name for name in [headers.get("x-amzn-errortype", "").partition(":")[0]] if name}
    kinds |= {_CLOUD_KINDS[name.lower()] for name in kinds if name.lower() in _CLOUD_KINDS}
    text = one_line(f"{where}: {f'HTTP {status}: ' if status else ''}{message}", secret)
    request_id = request_id_of(headers)
    wait = retry_after_s(headers)
    if wait is None and (match := _TRY_AGAIN.search(message)):
        wait = duration_s(match[1])

    def made(kind: type[RequestError], **more: Any) -> RequestError:
        return kind(text, status=status, request_id=request_id, **more)

    if status is not None and 300 <= status < 400:
        text = one_line(f"{where}: HTTP {status}, a redirect to another address, which is not followed", secret)
        return made(ProviderFatal)
    rejected = status in (None, 400, 413, 422)
    if kinds & _QUOTA_CODES or status == 402 or (status in (400, 403, 429) and _QUOTA.search(message)):
        return made(QuotaExhausted)
    if kinds & _OVERFLOW_CODES or (rejected and _OVERFLOW.search(message)):
        return made(ContextOverflow)
    if kinds & _FILTER_CODES or (rejected and _FILTER.search(message)):
        return made(PromptFiltered)
    if status == 429 and _TOO_LARGE.match(message):
        return made(InvalidRequest)  # above the account's tokens per minute: waiting does not help
    if status == 429 or kinds & _RATE_TYPES:
        return made(RateLimited, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    if status in (503, 529) or kinds & _OVERLOAD_TYPES:
        return made(Overloaded, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    if status == 401 or kinds & {"authentication_error", "permission_error", "invalid_api_key"}:
        return made(AuthenticationFailed)
    if status == 403:
        # Without the vendor's error body it is from a firewall, which may object to this prompt only.
        return made(AuthenticationFailed if kinds else InvalidRequest)
    if status == 404 or kinds & _MODEL_CODES or (rejected and _UNKNOWN_MODEL.search(message)):
        return made(ModelNotFound)
    if status in (408, 409, 425) or (status is not None and status >= 500) or kinds & _TRANSIENT_TYPES:
        return made(TransientError, retry_after_s=wait)
    if status is None or 400 <= status < 500:
        return made(InvalidRequest)
    return made(TransientError, retry_after_s=wait)  # an unknown status


def _read(body: Any) -> tuple[set[str], str]:
    """(codes and types, message) of an error body of any vendor or server."""
    if isinstance(body, str):
        return set(), _page(body)
    error = body[0] if isinstance(body, list) and body else body  # Google streams its errors in a list
    while isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return set(), "no explanation" if not body else _cut(body)
    kinds = {error[key] for key in ("code", "type") if isinstance(error.get(key), str)}
    state, inner = error.get("status"), error.get("innererror")
    if isinstance(state, str) and state.lower() in _CLOUD_KINDS:
        kinds.add(state)
    if isinstance(inner, dict) and isinstance(inner.get("code"), str):
        kinds.add(inner["code"])
    message = (
        error.get("message")
        or error.get("Message")
        or error.get("error")
        or error.get("detail")
        or ", ".join(sorted(kinds))
    )
    return kinds, _cut(message) if message else "no explanation"


def _cut(value: Any) -> str:
    """The beginning of a server's text, or of the text of another value."""
    try:
        return (value if isinstance(value, str) else str(value))[:_LONGEST_SEARCHED]
    except (RecursionError, ValueError):  # nested too deeply; an integer with too many digits
        return f"a {type(value).__name__} that cannot be shown"


def _page(text: str) -> str:
    """A description of a body that is not JSON: the title of an HTML page, else its beginning."""
    text = _cut(text)
    title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
    if title:
        return f"an HTML page, {title[1].strip()!r}"
    if re.match(r"\s*<(!doctype|html)", text, re.IGNORECASE):
        return "an HTML page"
    return text.strip() or "no explanation"
