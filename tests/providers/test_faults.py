"""Errors by class: the wordings of vendors and of compatible servers, and what is never shown."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProviderFatal,
    QuotaExhausted,
    RateLimited,
    RateLimits,
    RequestError,
    TransientError,
)
from swe_infer.providers.faults import PromptFiltered, classify, one_line


def of(status: int | None, body: Any, headers: dict[str, str] | None = None) -> RequestError:
    return classify(status, body, headers or {}, where="host, model")


def openai(message: str, code: str | None = None, kind: str = "invalid_request_error") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4000 in it).",
        "Your input exceeds the context window of this model. Please adjust your input and try again.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "input length and `max_tokens` exceed context limit: 198000 + 8192 > 200000, decrease input length",
        "the request exceeds the available context size, try increasing it",
        "Input is too long for requested model.",
        "Requested token count exceeds the model's maximum context length of 131072 tokens.",
        "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
        "Please reduce the length of the messages or completion.",
    ],
)
def test_every_server_s_wording_of_an_overflow_is_known(message: str) -> None:
    assert type(of(400, openai(message))) is ContextOverflow
    assert type(of(413, {"error": message})) is ContextOverflow


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, openai("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), QuotaExhausted),
        (429, openai("Billing hard limit has been reached", "billing_hard_limit_reached"), QuotaExhausted),
        (402, {"error": {"message": "Insufficient credits"}}, QuotaExhausted),
        (400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}, QuotaExhausted),  # noqa: E501
        (403, {"type": "error", "error": {"type": "billing_error", "message": "pay"}}, QuotaExhausted),
        (429, openai("Rate limit reached", "rate_limit_exceeded", "tokens"), RateLimited),
        (429, openai("Request too large for gpt-4o: Limit 30000, Requested 60000.", "rate_limit_exceeded", "tokens"), InvalidRequest),  # noqa: E501
        (429, "slow down", RateLimited),
        (503, openai("overloaded", None, "server_error"), Overloaded),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Overloaded),
        (None, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, Overloaded),
        (None, {"type": "error", "error": {"type": "api_error", "message": "Internal"}}, TransientError),
        (None, openai("broke", "server_error"), TransientError),
        (None, openai("try later", "rate_limit_exceeded"), RateLimited),
        (500, "<html><title>Internal Server Error</title></html>", TransientError),
        (502, "", TransientError),
        (504, None, TransientError),
        (520, "", TransientError),
        (408, None, TransientError),
        (409, None, TransientError),
        (301, "", ProviderFatal),
        (401, openai("Incorrect API key", "invalid_api_key"), AuthenticationFailed),
        (401, "", AuthenticationFailed),
        (403, openai("Country not supported", None, "request_forbidden"), AuthenticationFailed),
        (403, "<html><title>Attention Required!</title></html>", InvalidRequest),
        (404, openai("The model does not exist", "model_not_found"), ModelNotFound),
        (404, {"error": {"code": "DeploymentNotFound", "message": "no such deployment"}}, ModelNotFound),
        (404, {"detail": "Not Found"}, ModelNotFound),
        (400, openai("Unsupported parameter", "unsupported_parameter"), InvalidRequest),
        (400, {"message": "bad", "object": "error", "type": "BadRequestError", "code": 400}, InvalidRequest),
        (422, {"detail": [{"msg": "field required"}]}, InvalidRequest),
        (413, "", InvalidRequest),
        (400, openai("The response was filtered", "content_filter"), PromptFiltered),
        (400, openai("flagged", "invalid_prompt"), PromptFiltered),
    ],
)  # fmt: skip
def test_each_error_has_its_class(status: int | None, body: Any, kind: type[RequestError]) -> None:
    error = of(status, body)
    assert type(error) is kind
    assert error.status == status


def test_a_wait_in_the_message_counts_where_the_headers_are_silent() -> None:
    body = openai("Rate limit reached for gpt-4o. Please try again in 1m2.5s. Visit the page.", "rate_limit_exceeded")
    error = of(429, body)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 62.5
    told = of(429, body, {"retry-after-ms": "20"})
    assert isinstance(told, RateLimited)
    assert told.retry_after_s == 0.02


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-proj-abcd****************wxyz. Find it at https://platform.openai.com.",
        "key sk-ant-api03-abcdwxyz0123 refused",
        "Authorization: Bearer abcd-wxyz",
        "organization org-abcdwxyz0123",
        "proxy http://user:abcdwxyz@proxy.corp:3128 failed",
        "https://name.openai.azure.com/?api-key=abcdwxyz&x=1",
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text: str) -> None:
    shown = one_line(text)
    assert "abcd" not in shown
    assert "wxyz" not in shown
    assert "***" in shown


def test_the_key_itself_is_not_shown_whatever_it_looks_like() -> None:
    assert one_line("token my odd key was refused", "my odd key") == "token *** was refused"


@given(st.text(), st.text(min_size=1))
def test_a_message_is_one_short_line(text: str, secret: str) -> None:
    line = one_line(text, secret)
    assert len(line) <= 300
    assert line.isprintable()


@given(
    st.sampled_from([None, 200, 400, 401, 403, 404, 429, 500]),
    st.recursive(
        st.none() | st.text() | st.integers() | st.booleans(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["error", "message", "code", "type", "innererror", "detail"]), inner)
        ),
    ),
)
def test_no_body_can_break_the_classification(status: int | None, body: Any) -> None:
    assert isinstance(of(status, body), RequestError)


@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (503, Overloaded), (529, Overloaded)])
def test_a_refusal_keeps_the_quotas_that_its_headers_state(status: int, kind: type[RateLimited]) -> None:
    stated = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "100ms",
    }
    error = of(status, openai("slow down"), stated)
    assert type(error) is kind
    assert error.rate_limits == RateLimits(limit_requests=600, remaining_requests=0, reset_requests_s=0.1)
    silent = of(status, openai("slow down"))
    assert isinstance(silent, RateLimited)
    assert silent.rate_limits == RateLimits()
