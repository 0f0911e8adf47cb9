"""Which errors are tried again, and when."""

from __future__ import annotations

import pytest

from swe_infer.api.retry import Retry, may_have_been_billed
from swe_infer.errors import (
    AuthenticationFailed,
    ConfigError,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    RequestError,
    TransientError,
)


@pytest.mark.parametrize(
    "error", [InvalidRequest, ContextOverflow, AuthenticationFailed, ModelNotFound, QuotaExhausted]
)
def test_permanent_errors_are_not_retried(error: type[RequestError]) -> None:
    assert Retry().delay_s(error("no"), 1, 0.0) is None


def test_the_wait_grows_exponentially_with_full_jitter_up_to_its_bound() -> None:
    retry = Retry(backoff_s=1, max_backoff_s=20, tries=100)
    for attempts, ceiling in ((1, 1), (2, 2), (3, 4), (5, 16), (6, 20), (60, 20)):
        waits = [retry.delay_s(TransientError("x"), attempts, 0.0) or 0.0 for _ in range(400)]
        assert max(waits) <= ceiling
        assert max(waits) > 0.9 * ceiling
        assert min(waits) < 0.1 * ceiling


@pytest.mark.parametrize("error", [RateLimited, Overloaded, TransientError])
def test_retry_after_is_honoured_with_a_bound(error: type[RateLimited]) -> None:
    retry = Retry(max_retry_after_s=30)
    for asked, expected in ((5.0, 5.0), (0.0, 0.0), (86_400.0, 30.0), (-3.0, 0.0)):
        wait = retry.delay_s(error("slow", retry_after_s=asked), 1, 0.0)
        assert wait is not None
        assert expected <= wait <= expected + 1.0


def test_tries_and_total_time_are_bounded() -> None:
    retry = Retry(tries=3, total_s=100, backoff_s=0.001)
    assert retry.delay_s(TransientError("x"), 2, 10.0) is not None
    assert retry.delay_s(TransientError("x"), 3, 10.0) is None
    assert retry.delay_s(TransientError("x"), 2, 100.1) is None
    assert retry.delay_s(RateLimited("x", retry_after_s=60), 1, 50.0) is None


def test_a_pause_before_an_attempt_that_is_made_anyway_is_bounded_by_nothing_else() -> None:
    retry = Retry(tries=1, total_s=1.0, max_retry_after_s=30)
    assert retry.delay_s(RateLimited("x", retry_after_s=20), 50, 100.0) is None
    assert 20 <= retry.pause_s(RateLimited("x", retry_after_s=20), 50) <= 22
    assert 0 < retry.pause_s(TransientError("x"), 50) <= 60


def test_the_timeout_of_an_attempt_depends_on_the_output_length() -> None:
    assert Retry().attempt_timeout_s(100, 900) == 70
    assert Retry().attempt_timeout_s(100_000, 900) == 900
    assert Retry(slowest_tokens_per_s=None).attempt_timeout_s(100, 900) == 900


@pytest.mark.parametrize(
    "key", ["total_s", "backoff_s", "max_backoff_s", "max_retry_after_s", "slowest_tokens_per_s"]
)
def test_bad_values_are_refused_by_name(key: str) -> None:
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=key):
            Retry(**{key: value})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tries"):
        Retry(tries=0)


def test_only_what_reached_the_provider_may_have_been_billed() -> None:
    assert not may_have_been_billed(RateLimited("429"))
    assert not may_have_been_billed(TransientError("425", status=425))
    assert may_have_been_billed(TransientError("500", status=500))
    assert may_have_been_billed(TransientError("broken JSON"))
    assert may_have_been_billed(TransientError("broken JSON", status=200))

    class ConnectError(Exception):
        """Named as the HTTP clients name it."""

    refused = TransientError("connection refused")
    refused.__cause__ = ConnectError()
    assert not may_have_been_billed(refused)
