"""Waiting times and quotas, as vendors write them into headers."""

from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.errors import RateLimits
from swe_infer.providers.headers import duration_s, rate_limits_of, request_id_of, retry_after_s

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6m0s", 360.0),
        ("1s", 1.0),
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1h2m3.5s", 3723.5),
        ("1d", 86_400.0),
        ("12", 12.0),
        ("0.25", 0.25),
        ("", None),
        ("soon", None),
        ("1x", None),
        ("nan", None),
        ("inf", None),
        (None, None),
    ],
)
def test_durations_are_read_in_each_form(text: str | None, seconds: float | None) -> None:
    assert duration_s(text) == (pytest.approx(seconds) if seconds is not None else None)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": f"{NOW + 20:.0f}"}, 20.0),
        ({"retry-after": f"{(NOW + 20) * 1000:.0f}"}, 20.0),
        # gateways: a duration as in Go, a date as in ISO 8601; azure.core.pipeline.policies reads x-ms-retry-after-ms
        ({"retry-after": "1m30s"}, 90.0),
        ({"retry-after": "30s"}, 30.0),
        ({"retry-after": "2027-01-15T08:00:30Z"}, 30.0),
        ({"x-ms-retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after": "later"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "many", "retry-after": "2"}, 2.0),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_each_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=NOW) == seconds


def test_a_wrong_local_clock_does_not_stretch_a_wait() -> None:
    headers = {"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT", "date": "Fri, 15 Jan 2027 08:00:00 GMT"}
    assert retry_after_s(headers) == 30.0


def test_openai_quotas() -> None:
    headers = {
        "x-ratelimit-limit-requests": "10000",
        "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms",
        "x-ratelimit-limit-tokens": "30000000",
        "x-ratelimit-remaining-tokens": "29999000",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert rate_limits_of(headers) == RateLimits(10_000, 9_999, 0.006, 30_000_000, 29_999_000, 360.0)


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        # not only a duration, as OpenAI's: gateways state a time in seconds, milliseconds (OpenRouter) or as a date
        ("1800000030", 30.0),
        ("1800000030.5", 30.5),
        ("1800000030000", 30.0),
        ("1799999990", 0.0),
        ("2027-01-15T08:00:30Z", 30.0),
        ("2027-01-15T08:00:30.500000+00:00", 30.5),
        ("2027-01-15T08:00:30", 30.0),
        ("999999999", 999_999_999.0),
        ("tomorrow", None),
    ],
)
def test_a_reset_may_be_a_time(reset: str, seconds: float | None) -> None:
    limits = {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9000"}
    resets = {"x-ratelimit-reset-requests": reset, "x-ratelimit-reset-tokens": reset}
    stated = rate_limits_of({"date": formatdate(NOW, usegmt=True), **limits, **resets})
    assert stated.reset_requests_s == stated.reset_tokens_s == seconds


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        (  # docs.mistral.ai, and tidyllm for the earlier names
            {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-remaining-req-minute": "59",
             "x-ratelimit-limit-tokens-minute": "500000", "x-ratelimit-remaining-tokens-minute": "499000"},
            RateLimits(60, 59, None, 500_000, 499_000, None),
        ),
        (
            {"x-ratelimitbysize-limit-minute": "500000", "x-ratelimitbysize-remaining-minute": "499000",
             "ratelimitbysize-reset": "20"},
            RateLimits(limit_tokens=500_000, remaining_tokens=499_000, reset_tokens_s=20.0),
        ),
        (  # inference-docs.cerebras.ai/support/rate-limits
            {"x-ratelimit-limit-requests-day": "14400", "x-ratelimit-limit-tokens-minute": "60000",
             "x-ratelimit-remaining-tokens-minute": "59000", "x-ratelimit-reset-tokens-minute": "11.38"},
            RateLimits(limit_tokens=60_000, remaining_tokens=59_000, reset_tokens_s=11.38),
        ),
        (  # docs.fireworks.ai
            {"x-ratelimit-limit-requests": "600", "x-ratelimit-limit-tokens-prompt": "60000",
             "x-ratelimit-remaining-tokens-prompt": "50000", "x-ratelimit-limit-tokens-generated": "6000",
             "x-ratelimit-remaining-tokens-generated": "5000"},
            RateLimits(600, None, None, 60_000, 50_000, None, 6_000, 5_000, None),
        ),
        (  # docs.konghq.com/hub/kong-inc/rate-limiting
            {"x-ratelimit-limit-minute": "60", "x-ratelimit-remaining-minute": "58"},
            RateLimits(60, 58, None),
        ),
        (  # draft-ietf-httpapi-ratelimit-headers-10, section 4
            {"ratelimit-policy": '"burst";q=100;w=60,"daily";q=1000;w=86400', "ratelimit": '"daily";r=50;t=36000'},
            RateLimits(1, 50, None),
        ),
        (
            {"ratelimit-policy": '"second";q=10;w=1, "bytes";q=1;w=60;qu="content-bytes"',
             "ratelimit": '"second";r=9;t=1'},
            RateLimits(600, 9, 1.0),
        ),
        # huggingface.co/docs/hub/rate-limits
        ({"ratelimit-policy": '"fixed window";"api";q=500;w=300', "ratelimit": '"api";r=489;t=189'},
         RateLimits(100, 489, None)),
        # draft 03: the window is part of the limit, or unknown
        ({"ratelimit-limit": "100, 100;w=60", "ratelimit-remaining": "99", "ratelimit-reset": "7"},
         RateLimits(100, 99, 7.0)),
        ({"ratelimit-limit": "100", "ratelimit-remaining": "99", "ratelimit-reset": "7"}, RateLimits(None, 99, 7.0)),
        ({"ratelimit-policy": '"daily";q=1000;w=86400'}, RateLimits()),
        ({"ratelimit-policy": '"x";q=0;w=0', "ratelimit": '"x";r=-1;t=nan'}, RateLimits()),
    ],
    ids=["mistral", "mistral-earlier", "cerebras", "fireworks", "kong", "draft", "draft-second", "hub", "draft-03",
         "draft-no-window", "draft-day", "draft-absurd"],
)  # fmt: skip
def test_quotas_of_other_vendors(headers: dict[str, str], limits: RateLimits) -> None:
    assert rate_limits_of(headers) == limits


def test_anthropic_quotas_keep_input_and_output_apart() -> None:
    headers = {
        "date": "Fri, 15 Jan 2027 08:00:00 GMT",
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
        "anthropic-ratelimit-tokens-limit": "48000",
        "anthropic-ratelimit-tokens-remaining": "40000",
        "anthropic-ratelimit-tokens-reset": "2027-01-15T08:00:09Z",
        "anthropic-ratelimit-input-tokens-limit": "40000",
        "anthropic-ratelimit-input-tokens-remaining": "39000",
        "anthropic-ratelimit-input-tokens-reset": "2027-01-15T08:00:02Z",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "7000",
        "anthropic-ratelimit-output-tokens-reset": "2027-01-15T08:00:03+00:00",
    }
    assert rate_limits_of(headers) == RateLimits(50, 49, 1.0, 40_000, 39_000, 2.0, 8_000, 7_000, 3.0)
    alone = {key: value for key, value in headers.items() if "input-tokens" in key or key == "date"}
    assert rate_limits_of(alone) == RateLimits(None, None, None, 40_000, 39_000, 2.0)
    without = {key: value for key, value in headers.items() if "put-tokens" not in key}
    assert rate_limits_of(without) == RateLimits(50, 49, 1.0, 48_000, 40_000, 9.0)


def test_the_request_id_is_found_under_each_vendor_s_name() -> None:
    assert request_id_of({"x-request-id": "a"}) == "a"
    assert request_id_of({"request-id": "b"}) == "b"
    assert request_id_of({"apim-request-id": "c"}) == "c"
    assert request_id_of({}) is None


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()))
def test_no_header_can_break_the_reading_of_a_wait(headers: dict[str, str]) -> None:
    wait = retry_after_s(headers)
    assert wait is None or wait >= 0


@given(st.text(), st.text(), st.text())
def test_no_header_can_break_the_reading_of_quotas(a: str, b: str, c: str) -> None:
    rate_limits_of({"x-ratelimit-limit-requests": a, "x-ratelimit-reset-requests": b, "date": c})
    rate_limits_of({"ratelimit-policy": a, "ratelimit": b, "ratelimit-limit": c})
    rate_limits_of({"anthropic-ratelimit-requests-limit": a, "anthropic-ratelimit-requests-reset": b, "date": c})
