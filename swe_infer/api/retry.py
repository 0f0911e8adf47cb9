"""Whether to retry, and after how long. The class of the error decides; see :mod:`swe_infer.errors`."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from swe_infer.errors import ConfigError, RateLimited, RequestError, TransientError
from swe_infer.options import Option

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How a request is retried.

    Rate limits, overload and transient errors are retried; a rejected key, an unknown model, an invalid request or a
    prompt that is too long is not. The delay grows exponentially with full jitter (Brooker, "Exponential Backoff And
    Jitter", 2015). A server's Retry-After replaces it, up to a bound, so that no server can stall a run.
    """

    tries: Annotated[int, Option("Maximum number of attempts per answer.", "speed")] = 12
    total_s: Annotated[
        float, Option("Seconds after the first attempt, after which no further one starts.", "speed")
    ] = 3600.0
    backoff_s: Annotated[
        float, Option("Maximum seconds before the first retry; doubles with each further one.", "speed")
    ] = 1.0
    max_backoff_s: Annotated[float, Option("Maximum seconds before a retry.", "speed")] = 60.0
    max_retry_after_s: Annotated[float, Option("Maximum seconds to wait for a server's Retry-After.", "speed")] = (
        120.0
    )
    slowest_tokens_per_s: Annotated[
        float | None,
        Option("Abort an attempt a minute after max_new_tokens at this speed; null: at provider.timeout_s.", "speed"),
    ] = 10.0

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ConfigError(f"runner.retry.tries={self.tries}: must be at least 1")
        for key in ("total_s", "backoff_s", "max_backoff_s", "max_retry_after_s", "slowest_tokens_per_s"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"runner.retry.{key}={value}: must be a finite number above 0")

    def attempt_timeout_s(self, max_new_tokens: int, provider_timeout_s: float) -> float:
        """Timeout of one attempt, in seconds."""
        if self.slowest_tokens_per_s is None:
            return provider_timeout_s
        return min(provider_timeout_s, _PATIENCE_S + max_new_tokens / self.slowest_tokens_per_s)

    def delay_s(self, error: RequestError, attempts: int, elapsed_s: float) -> float | None:
        """Seconds to wait before the next attempt; None: no retry.

        Args:
            attempts: attempts so far, including the failed one.
            elapsed_s: seconds since the start of the first attempt.
        """
        if not isinstance(error, RateLimited | TransientError) or error.is_final or attempts >= self.tries:
            return None
        wait = self.pause_s(error, attempts)
        return wait if elapsed_s + wait <= self.total_s else None

    def pause_s(self, error: RequestError, attempts: int) -> float:
        """:meth:`delay_s` for an attempt that is made in any case."""
        ceiling = min(self.max_backoff_s, self.backoff_s * 2.0 ** min(attempts - 1, 30))
        if error.retry_after_s is None:
            return random.uniform(0.0, ceiling)
        # Jitter keeps requests that were refused together from being retried together.
        requested = min(max(error.retry_after_s, 0.0), self.max_retry_after_s)
        return requested + random.uniform(0.0, min(self.backoff_s, 0.1 * requested + 0.05))


_NOT_CONNECTED = ("ConnectError", "ConnectTimeout", "ProxyError", "ConnectionRefusedError", "gaierror")
_NOT_SENT = (*_NOT_CONNECTED, "PoolTimeout")


def may_have_been_billed(error: BaseException) -> bool:
    """Whether the provider may charge for a request that ended in ``error``.

    A refusal or a redirect is not billed. A server that fails, times out or gives up (408, 460, 499, 500, 502, 504)
    may have answered before, or its upstream server may have. A broken connection, a timeout, an unreadable answer or
    one in which the server failed may be billed too, unless no connection was made, which the chain of causes shows.
    """
    if isinstance(error, RequestError) and not error.in_answer and error.status is not None and error.status >= 300:
        return isinstance(error, TransientError) and (error.status >= 500 or error.status in (408, 460, 499))
    return not _caused_by(error, _NOT_SENT)


def never_connected(error: BaseException) -> bool:
    """Whether no connection to the server was made (DNS, TCP, TLS, proxy)."""
    return isinstance(error, RequestError) and error.status is None and _caused_by(error, _NOT_CONNECTED)


def _caused_by(error: BaseException, names: Collection[str]) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if type(cause).__name__ in names:
            return True
        cause = cause.__cause__ or cause.__context__
    return False
