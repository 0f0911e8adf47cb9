"""The exception tree. What a class means decides who handles it and with which exit status the run ends.

* ``SweInferError``
    * ``ConfigError``: the user's configuration or input; one line, exit 2, before anything is loaded or paid for
        * ``DataError``: a dataset that cannot be read, or lacks a column
        * ``CheckpointError``: a model directory that cannot be loaded
        * ``StoreError``: a run directory that belongs to another configuration, or that another process writes
    * ``RepositoryError``: a repository, commit or file cannot be had; costs that instance, never the run
        * ``RepositoryInterrupted``: Ctrl-C ended a fetch; the same command asks again
    * ``BudgetExceeded``: a request does not fit under the cap; exit 3, what was paid for is kept
    * ``RequestError``: one request to a provider failed; costs that instance (or less), never the run
        * ``RateLimited``: 429; try again, after ``retry_after_s`` if stated
        * ``Overloaded``: 503 or 529; try again, and go slower
        * ``TransientError``: timeouts, connection errors, 408, 409, other 5xx, answers that cannot be parsed
        * ``ContextOverflow``: the prompt does not fit the model's window; the instance is skipped
        * ``AnswerTooLarge``: the answer passes a bound on its bytes; never tried again by the same command
        * ``InvalidRequest``: the provider rejects this request; never tried again
        * ``ProviderFatal``: no request of this run can succeed; stops the run at once
            * ``AuthenticationFailed``: the key is refused or lacks a permission; exit 2
            * ``ModelNotFound``: the provider does not know the model; exit 2
            * ``QuotaExhausted``: the account has no credit left; exit 1
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Quotas as the headers of an answer or a refusal state them; None where they are silent. Resets are seconds from
    now.

    ``tokens`` are what the vendor counts together, or input tokens where it limits output apart (Anthropic).
    """

    limit_requests: int | None = None
    remaining_requests: int | None = None
    reset_requests_s: float | None = None
    limit_tokens: int | None = None
    remaining_tokens: int | None = None
    reset_tokens_s: float | None = None
    limit_output_tokens: int | None = None
    remaining_output_tokens: int | None = None
    reset_output_tokens_s: float | None = None


class SweInferError(Exception):
    """Base of every error that this package raises on purpose.

    ``str(error)`` is one line, fit to be shown to a user, and holds no secret.
    """

    exit_status: int = 1

    def __str__(self) -> str:
        # Names and texts of others are quoted in messages; none of them shall break the line or steer a terminal.
        return "".join(c if c.isprintable() else " " for c in super().__str__()).rstrip()


class ConfigError(SweInferError):
    """The configuration or an input file is wrong; the message names the key or file and what would be right."""

    exit_status = 2


class DataError(ConfigError):
    """A dataset cannot be read or lacks a column."""


class CheckpointError(ConfigError):
    """A model directory is missing, unreadable, of an unknown architecture, or unsafe to load."""


class StoreError(ConfigError):
    """The run directory belongs to another configuration, is being written by another process, or is damaged."""


class RepositoryError(SweInferError):
    """A repository, a commit or a file of it cannot be had."""


class RepositoryInterrupted(RepositoryError):
    """A fetch was ended, or not begun, because of Ctrl-C: nothing is known about what was asked for."""


class BudgetExceeded(SweInferError):
    """A request does not fit under ``budget.max_usd`` or ``budget.sweep_max_usd``, whatever those in flight come to.

    Args:
        usd: the most that the request can cost.
        nothing_fits: no request of the run fits any more, however short its prompt.
    """

    exit_status = 3

    def __init__(self, message: str, *, usd: Decimal = Decimal(0), nothing_fits: bool = False) -> None:
        super().__init__(message)
        self.usd = usd
        self.nothing_fits = nothing_fits


class RequestError(SweInferError):
    """One request failed. ``status`` is the HTTP status where there was one."""

    def __init__(self, message: str, *, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id


class RateLimited(RequestError):
    """HTTP 429. ``retry_after_s`` is what the server asked for, in seconds, or None; ``rate_limits`` are the quotas
    that it stated with its refusal."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = 429,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        rate_limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message, status=status, request_id=request_id)
        self.retry_after_s = retry_after_s
        self.rate_limits = rate_limits or RateLimits()


class Overloaded(RateLimited):
    """HTTP 503 or 529: the provider as a whole is short of capacity."""


class TransientError(RequestError):
    """A fault that is likely to pass: timeouts, connection errors, 408, 409, 5xx, unreadable answers.

    ``retry_after_s`` is what the server asked for, in seconds, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, status=status, request_id=request_id)
        self.retry_after_s = retry_after_s


class ContextOverflow(RequestError):
    """Prompt and room for the output exceed the model's context window."""


class AnswerTooLarge(RequestError):
    """The answer passes a bound on its bytes and was not read to its end. It may be billed, and so would be the next
    one, which is likely to be as long."""


class InvalidRequest(RequestError):
    """The provider rejects this one request (HTTP 400, 413, 422); trying it again cannot help."""


class ProviderFatal(RequestError):
    """No request of this run can succeed."""


class AuthenticationFailed(ProviderFatal):
    """HTTP 401 or 403."""

    exit_status = 2


class ModelNotFound(ProviderFatal):
    """The provider does not know the model (HTTP 404)."""

    exit_status = 2


class QuotaExhausted(ProviderFatal):
    """The account has no credit left (OpenAI's ``insufficient_quota``, Anthropic's billing errors)."""
