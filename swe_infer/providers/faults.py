"""Classifies HTTP errors and formats them in one line without secrets.

A code or type in the body has priority over the status, since vendors use one status for several errors: OpenAI's 429
is a rate limit or an empty account, a 400 may be an overflow, a refused prompt or an invalid request.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
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
from swe_infer.providers.headers import duration_s, rate_limits_of, request_id_of, reset_s, retry_after_s

_LONGEST_MESSAGE = 300
_DEEPEST = 8
_LONGEST_SEARCHED = 8192
"""Characters of an error's text that are searched for its class."""
_MESSAGES = ("message", "Message", "error", "detail", "errors", "msg", "error_msg", "title")
"""Keys of the words of an error; from ``errors`` on Cloudflare's, Z.ai's, Baidu's and NVIDIA's."""

_OVERFLOW_CODES = {
    "context_length_exceeded",
    "string_above_max_length",
    "exceed_context_size_error",
    "tokens_limit_reached",
    "model_max_prompt_tokens_exceeded",
}
"""The last two are GitHub's."""
_OVERFLOW = re.compile(
    r"context (window|limit|length|size)|context_(window|limit|length|size)_exceeded"
    r"|exceed.{0,60}context_(window|limit|length|size)|prompt is too long|input is too long"
    r"|(too many|exceeds?( the)?( maximum)?( number of)?) (input |prompt )?tokens|string too long"
    r"|reduce the length of the (messages|prompt|input)|maximum prompt length|exceeded model token limit"
    r"|\binputs. (tokens (\+|and) .max_new_tokens. must|must have less than)|prompt exceeds max length"
    r"|range of input length should be|exceeded limit on max bytes|token count\b.{0,40}\bexceeds"
    r"|tokens in the prompt (exceeds|cannot exceed)|longer than the maximum model length|token length too long"
    r"|number of input tokens .{0,40}cannot exceed|prompt length .{0,80}(exceeds? |greater than )max_",
    re.IGNORECASE,
)
"""The words of many servers, but no names of parameters; from ``maximum prompt length`` on of xAI, Kimi,
text-generation-inference, Z.ai, DashScope, GitHub, Cohere, vLLM, Kimi, watsonx, TensorRT-LLM and TabbyAPI."""
_OVERFLOW_WITH_500 = re.compile(r"context size has been exceeded|input is too large to process", re.IGNORECASE)
"""llama.cpp states both with status 500."""
_THROTTLED = re.compile(r"too many (tokens|requests)( per day)?, please wait", re.IGNORECASE)
"""Bedrock's rate limit, whose words are close to those of an overflow."""
_QUOTA_CODES = {
    "insufficient_quota",
    "billing_hard_limit_reached",
    "billing_not_active",
    "billing_error",
    "access_terminated",
    "budget_exceeded",
    "project_budget_exceeded",
    "insufficient_user_quota",
    "token_quota_reached",
}
"""``budget_exceeded`` is LiteLLM's, for its own budgets; the last two are One API's and watsonx's."""
_QUOTA = re.compile(
    r"credit balance is too low|exceeded your current quota|insufficient (credits|balance)"
    r"|specified( workspace)? API usage limits|used all available credits|monthly spending limit|free-models-per-day"
    r"|too many tokens per day|(tokens|requests) per day limit exceeded|key limit exceeded|budget has been exceeded"
    r"|crossed budget|prepayment credits are depleted|monthly spending cap|have any credits|balance is insufficient"
    r"|not enough balance|free tier of the model has been exhausted|per 86400s exceeded|API calls / month"
    r"|daily free allocation|(daily|weekly|monthly) usage limit|call volume quota|token quota is exceeded"
    r"|spend limit reached|\bTPD rate limit|\busage limit exceeded",
    re.IGNORECASE,
)
"""The words of many vendors; from ``specified API usage limits`` on of Anthropic's limits of a month, xAI, Fireworks,
the limits of a day of OpenRouter, Bedrock and Cerebras, OpenRouter's limit of a key, LiteLLM's budgets, Gemini, xAI,
SiliconFlow, Novita, DashScope, GitHub, Cohere, Cloudflare, Ollama, Azure's API Management, Groq, Kimi and MiniMax."""
_QUOTA_STATUSES = (None, 400, 403, 412, 429, 500)
"""412 is Fireworks', 500 MiniMax's. None: with status 200."""
_TOKENS_PER_MINUTE = "error-code#token-limit"
"""In DashScope's ``insufficient_quota``, which is a rate limit (alibabacloud.com/help/en/model-studio/rate-limit)."""
_GOOGLE_EXHAUSTED = "resource_exhausted"
_NOT_PER_MINUTE = re.compile(
    r"per[_ ]?day|\blimit: 0\b|prepayment credits are depleted|monthly spending cap", re.IGNORECASE
)
"""In Google's RESOURCE_EXHAUSTED: the quota of a day or the credit is used up, or the account has none for the
model."""
_FILTER_CODES = {"content_filter", "content_policy_violation", "invalid_prompt"}
_FILTER = re.compile(
    r"blocked by content filtering|content management policy|content exists risk|content violates usage guidelines",
    re.IGNORECASE,
)
"""The words of Anthropic, Azure, DeepSeek and xAI."""
_MODEL_CODES = {
    "model_not_found",
    "DeploymentNotFound",
    "not_found_error",
    "OperationNotSupported",
    "model_not_supported",
    "model_not_available",
    "model_decommissioned",
    "model_terms_required",
    "unknown_model",
    "unavailable_model",
    "invalid_model",
}
"""From ``model_not_supported`` on of Hugging Face's router, Together, Groq, GitHub Models and Mistral."""
_RATE_TYPES = {"rate_limit_error", "rate_limit_exceeded", "token_limit_exceeded"}
_OVERLOAD_TYPES = {"overloaded_error", "slow_down", "engine_overloaded", "capacity_exceeded"}
_TRANSIENT_TYPES = {"api_error", "server_error", "timeout_error", "vector_store_timeout"}
_ACCESS_TYPES = {"authentication_error", "permission_error", "invalid_api_key"}
_REJECTION_TYPES = {"invalid_request_error", "request_too_large", "invalid_value", "unsupported_parameter"}
_UNKNOWN_MODEL = re.compile(
    r"model identifier is invalid|model id .{0,200}isn.t supported|invalid model name passed in"
    r"|\bmodel (does )?not exist|is not a valid model id|\bno such model\b|model not found in the model list",
    re.IGNORECASE,
)
"""Bedrock, LiteLLM, DeepSeek and SiliconFlow, OpenRouter, Cloudflare, Xinference."""
_INVALID_KEY = re.compile(r"\bAPI key (?:not valid|expired)\b|\bincorrect API key provided\b", re.IGNORECASE)
"""Google (``API_KEY_INVALID``) and xAI refuse a key with status 400."""
_NO_KEY_DATABASE = re.compile(r"\bno connected db\b", re.IGNORECASE)
"""LiteLLM's proxy without a database refuses every key but its master key in these words."""
_VENDORS_KINDS = {  # codes of other vendors, in lower case, as the codes and types above
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
    "exceeded_current_quota_error": "insufficient_quota",  # Kimi
    "arrearage": "insufficient_quota",  # DashScope
    "allocationquota.freetieronly": "insufficient_quota",
    "prepaidbilloverdue": "insufficient_quota",
    "postpaidbilloverdue": "insufficient_quota",
    "accountoverdueerror": "insufficient_quota",  # Volcano Engine
    "setlimitexceeded": "insufficient_quota",
    "account_overdue": "insufficient_quota",  # Baidu
    "blocked_api_access": "insufficient_quota",  # https://console.groq.com/docs/spend-limits
    "organization_restricted": "permission_error",
    "data_inspection_failed": "content_filter",
    "datainspectionfailed": "content_filter",
    "bio_policy": "content_filter",  # openai.types.responses.ResponseError
    "misalignment_policy_violation": "content_filter",
    "image_content_policy_violation": "content_filter",
    "z.ai 1113": "insufficient_quota",  # https://docs.z.ai/api-reference/api-code
    "z.ai 1211": "model_not_found",
    "z.ai 1261": "context_length_exceeded",
    "z.ai 1301": "content_filter",
    "z.ai 1304": "insufficient_quota",
    "z.ai 1308": "insufficient_quota",
    "z.ai 1310": "insufficient_quota",
    "minimax 1000": "api_error",  # https://platform.minimax.io/docs/api-reference/errorcode
    "minimax 1001": "timeout_error",
    "minimax 1002": "rate_limit_error",
    "minimax 1004": "authentication_error",
    "minimax 1008": "insufficient_quota",
    "minimax 1024": "api_error",
    "minimax 1026": "content_filter",
    "minimax 1027": "content_filter",
    "minimax 1033": "api_error",
    "minimax 1039": "rate_limit_error",
    "minimax 1041": "rate_limit_error",
    "minimax 2045": "rate_limit_error",
    "minimax 2056": "insufficient_quota",
    "minimax 2049": "authentication_error",
}
_BUSINESS_CODE = re.compile(r"1\d{3}", re.ASCII)
"""Z.ai's codes, in errors without a type. Mistral has such codes too, in errors with one."""
_TIMEOUTS = (408, 504, 524)
_TRANSIENT = (408, 409, 424, 425, 460, 499)
"""HTTP statuses below 500. 424: text-generation-inference failed while it generated. 460 and 499: a load balancer or
server gave the request up (AWS; nginx, Google's CANCELLED, SGLang)."""
_UNLOADED = re.compile(r"\bmodel (has )?unloaded", re.IGNORECASE)
"""LM Studio, with status 400; it loads the model with the next request."""
_TOO_LARGE = re.compile(r"\brequest too large\b", re.IGNORECASE)
_TRY_AGAIN = re.compile(
    r"\b(?:(?:try again|retry) (?:in|after)|please wait|available in) "
    r"((?:\d+(?:\.\d+)?(?:ms|d|h|m|s)(?![a-z]))+|\d+(?:\.\d+)? ?(?:second|minute|hour|day)(?=s?\b))",
    re.IGNORECASE,
)
_UNIT = re.compile(r" ?(second|minute|hour|day)", re.IGNORECASE)

_LONGEST_FIELD_S = 86_400
"""A larger ``retry_after`` is not in seconds."""
_EVENTS = re.compile(r"\s*(?:data|event|id|retry)?:")
_EVENT = re.compile(r"^data: ?(\{.*)$", re.MULTILINE)

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
    status: int | None,
    body: Any,
    headers: Mapping[str, str],
    *,
    where: str,
    secret: str | None = None,
    in_answer: bool = False,
) -> RequestError:
    """The error for an HTTP status and a vendor's error body.

    Args:
        status: None for an error inside an answer, a stream or a batch. Then the body's ``code`` counts, if it is an
            HTTP status.
        body: the decoded JSON body, or its text if it is not JSON. Vendors nest the error under ``error``.
        where: host and model, for the message.
        secret: the key, which is removed from the message.
        in_answer: the error ends or replaces a part of an answer, which may be billed. The request was valid, so an
            error without a known code is transient.
    """
    body = _without_framing(body)
    if status is None:
        status = _stated_status(body)
    kinds, message = _read(body)
    kinds |= {name for name in [headers.get("x-amzn-errortype", "").partition(":")[0]] if name}
    kinds |= {_VENDORS_KINDS[name.lower()] for name in kinds if name.lower() in _VENDORS_KINDS}
    label = "error" if in_answer else "HTTP"
    text = one_line(f"{where}: {f'{label} {status}: ' if status else ''}{message}", secret)
    request_id = request_id_of(headers)
    wait = retry_after_s(headers)
    if wait is None:
        wait = max(_waits_s(body, message), default=None)
    if wait is None and (stated := rate_limits_of(headers)).remaining_requests == 0 and stated.limit_requests is None:
        wait = stated.reset_requests_s  # without the limit, it sets no pace

    should_retry = headers.get("x-should-retry")  # OpenAI's and Anthropic's SDKs obey it

    def made(kind: type[RequestError], **more: Any) -> RequestError:
        if kind is InvalidRequest and should_retry == "true":
            kind, more = TransientError, {"retry_after_s": wait}
        error = kind(text, status=status, request_id=request_id, **more)
        error.is_final = should_retry == "false"
        error.in_answer = in_answer
        error.timed_out = status in _TIMEOUTS
        return error

    if status is not None and 300 <= status < 400:
        unfollowed = f"HTTP {status}, a redirect to another address, which is not followed; check provider.base_url"
        text = one_line(f"{where}: {unfollowed}", secret)
        return made(ProviderFatal)
    rejected = status in (None, 400, 413, 422)
    # xAI refuses a prompt with 403, and Together one that is too long.
    of_prompt = rejected or (status == 403 and not kinds & _ACCESS_TYPES)
    if any(kind.lower() == _GOOGLE_EXHAUSTED for kind in kinds):
        if _NOT_PER_MINUTE.search(f"{message} {_cut(_details(body))}"):
            return made(QuotaExhausted)
        return made(RateLimited, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    if (status in (401, 402) or _QUOTA.search(message)) and _is_upstream(body):
        return made(TransientError)
    is_rate = _TOKENS_PER_MINUTE in message
    if not is_rate and (
        kinds & _QUOTA_CODES or status == 402 or (status in _QUOTA_STATUSES and _QUOTA.search(message))
    ):
        return made(QuotaExhausted)
    if is_rate or (rejected and _THROTTLED.search(message)):
        return made(RateLimited, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    overflow = _OVERFLOW_WITH_500 if status == 500 else _OVERFLOW if of_prompt else None
    if kinds & _OVERFLOW_CODES or (overflow is not None and overflow.search(message)):
        return made(ContextOverflow)
    if kinds & _FILTER_CODES or (of_prompt and _FILTER.search(message)):
        return made(PromptFiltered)
    if status == 413 or (status == 429 and _TOO_LARGE.search(message)):
        return made(InvalidRequest)  # such as above the account's tokens per minute: waiting does not help
    if status == 429 or kinds & _RATE_TYPES:
        return made(RateLimited, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    if status in (498, 503, 529) or kinds & _OVERLOAD_TYPES:  # 498: no capacity in Groq's flex tier
        return made(Overloaded, retry_after_s=wait, rate_limits=rate_limits_of(headers))
    if status == 401 or kinds & _ACCESS_TYPES:
        return made(AuthenticationFailed)
    if status == 403:
        # Without the vendor's error body it is from a firewall, which may object to this prompt only.
        return made(ModelNotFound if kinds & _MODEL_CODES else AuthenticationFailed if kinds else InvalidRequest)
    if rejected and (_NO_KEY_DATABASE.search(message) or _INVALID_KEY.search(message)):
        return made(AuthenticationFailed)
    if status in (404, 410) or kinds & _MODEL_CODES or (rejected and _UNKNOWN_MODEL.search(message)):
        return made(ModelNotFound)  # 410: retired, at Hugging Face's router
    if status in (501, 505):
        return made(InvalidRequest)  # not implemented
    if rejected and _UNLOADED.search(message):
        return made(TransientError, retry_after_s=wait)
    if status in _TRANSIENT or (status is not None and status >= 500) or kinds & _TRANSIENT_TYPES:
        return made(TransientError, retry_after_s=wait)
    if in_answer and status is None and not kinds & _REJECTION_TYPES:
        return made(TransientError, retry_after_s=wait)
    if status is None or 400 <= status < 500:
        return made(InvalidRequest)
    return made(TransientError, retry_after_s=wait)  # an unknown status


def failed_answer(error: Any, reason: str, *, where: str, secret: str | None = None) -> RequestError:
    """The error for an answer in which the server failed before its end.

    Args:
        error: the server's error object in the answer, if there is one.
        reason: the finish reason.
    """
    stated = _error_of(error if isinstance(error, dict) else {"message": error} if isinstance(error, str) else {})
    body = {"message": f"the answer ended with {reason!r}", **{k: v for k, v in stated.items() if v is not None}}
    return classify(None, body, {}, where=where, secret=secret, in_answer=True)


def words_of(body: Any) -> str | None:
    """The message of an error body; None if it has none."""
    return _message_of(_error_of(body))


def _without_framing(body: Any) -> Any:
    """The first JSON object in ``body`` if it is the text of server-sent events, as which LiteLLM's proxy sends an
    error before the first event, with the error's HTTP status."""
    if isinstance(body, str) and _EVENTS.match(body) and (event := _EVENT.search(body[: 4 * _LONGEST_SEARCHED])):
        with suppress(ValueError, RecursionError):  # the text itself is quoted then
            return json.loads(event[1])
    return body


def _error_of(body: Any) -> Any:
    """The innermost error object of a body. Gateways send another server's error as text in theirs."""
    error = body[0] if isinstance(body, list) and body else body  # Google streams its errors in a list
    for _ in range(_DEEPEST):
        if not isinstance(error, dict):
            break
        inner, metadata = error.get("error"), error.get("metadata")
        if not isinstance(inner, dict):
            # Of the errors of OpenRouter's vendors, those of their own accounts do not concern the user.
            is_refusal = error.get("code") in (400, 413, 422)
            upstream = metadata.get("raw") if is_refusal and isinstance(metadata, dict) else None
            inner = (
                _minimax_error(error)
                or _quoted_error(error.get("message"))
                or _quoted_error(upstream)
                or _nested_error(error)
            )
        if inner is None:
            break
        error = inner
    return error


def _nested_error(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first of ``errors`` (watsonx, Cloudflare), or an object in ``detail`` (DeepInfra, KoboldCpp)."""
    listed, detail = body.get("errors"), body.get("detail")
    first = listed[0] if isinstance(listed, list) and listed else detail
    return first if isinstance(first, dict) and any(first.get(key) for key in _MESSAGES) else None


def _minimax_error(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error in ``base_resp``, which MiniMax also sends with status 200."""
    stated = body.get("base_resp")
    stated = stated if isinstance(stated, dict) else {}
    code = stated.get("status_code")
    if type(code) is not int or code == 0:
        return None
    return {"message": stated.get("status_msg"), "code": f"minimax {code}"}


def states_error(body: Mapping[str, Any]) -> bool:
    """Whether a body with status 200 is an error, or has one beside a part of the answer."""
    return bool(body.get("error")) or _minimax_error(body) is not None


def _quoted_error(message: Any) -> dict[str, Any] | None:
    """The error object in a message that is JSON."""
    if not isinstance(message, str) or not message.lstrip().startswith("{") or len(message) > _LONGEST_SEARCHED:
        return None
    try:
        quoted = json.loads(message)
    except (ValueError, RecursionError):
        return None
    return quoted if isinstance(quoted, dict) and isinstance(quoted.get("error"), dict) else None


def _message_of(error: Any) -> str | None:
    if not isinstance(error, dict):
        return None
    message = next((error[key] for key in _MESSAGES if error.get(key)), None)
    return None if message is None else _cut(message)


def _is_upstream(body: Any) -> bool:
    """Whether OpenRouter states the error of a vendor, which concerns OpenRouter's account there. The next request
    may go to another vendor."""
    error = body.get("error") if isinstance(body, dict) else None
    metadata = error.get("metadata") if isinstance(error, dict) else None
    return isinstance(metadata, dict) and bool(metadata.get("provider_name")) and metadata.get("is_byok") is not True


def _stated_status(body: Any) -> int | None:
    """The HTTP status in an error body, if there is one."""
    error = _error_of(body)
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str) and code.isascii() and code.isdecimal() and len(code) == 3:
        code = int(code)
    return code if type(code) is int and 400 <= code < 600 else None


def _details(body: Any) -> list[Any]:
    """The ``details`` of Google's error bodies (``google.rpc.Status``)."""
    error = _error_of(body)
    details = error.get("details") if isinstance(error, dict) else None
    return details if isinstance(details, list) else []


def _waits_s(body: Any, message: str) -> Iterator[float]:
    """The waits in seconds that an error body states: Google's RetryInfo, the message, a field of gateways, and
    OpenRouter's copy of headers."""
    error = _error_of(body)
    error = error if isinstance(error, dict) else {}
    field = error.get("retry_after")
    if isinstance(field, int | float) and not isinstance(field, bool) and 0 <= field < _LONGEST_FIELD_S:
        yield float(field)
    metadata = error.get("metadata")
    copied = metadata.get("headers") if isinstance(metadata, dict) else None
    reset = copied.get("X-RateLimit-Reset") if isinstance(copied, dict) else None
    if isinstance(reset, str) and (wait := reset_s(reset, time.time())) is not None:
        yield wait
    stated = [detail.get("retryDelay") for detail in _details(body) if isinstance(detail, dict)]
    match = _TRY_AGAIN.search(message)
    for text in (*stated, match and _UNIT.sub(lambda unit: unit[1][0].lower(), match[1])):
        if isinstance(text, str) and (wait := duration_s(text)) is not None:
            yield wait


def _read(body: Any) -> tuple[set[str], str]:
    """(codes and types, message) of an error body of any vendor or server."""
    if isinstance(body, str):
        return set(), _page(body)
    error = _error_of(body)
    if not isinstance(error, dict):
        return set(), "no explanation" if not body else _cut(body)
    names = [error[key] for key in ("code", "type", "error_code", "__type") if isinstance(error.get(key), str)]
    kinds = {name.rpartition("#")[2] for name in names}  # Smithy: the shape's namespace and name
    kinds |= {f"z.ai {code}" for code in kinds if "type" not in error and _BUSINESS_CODE.fullmatch(code)}
    state, inner = error.get("status"), error.get("innererror")
    if isinstance(state, str) and state.lower() in _VENDORS_KINDS:
        kinds.add(state)
    if isinstance(inner, dict) and isinstance(inner.get("code"), str):
        kinds.add(inner["code"])
    if isinstance(metadata := error.get("metadata"), dict) and "flagged_input" in metadata:  # OpenRouter
        kinds.add("content_filter")
    return kinds, _message_of(error) or ", ".join(sorted(kinds)) or (_cut(error) if error else "no explanation")


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
