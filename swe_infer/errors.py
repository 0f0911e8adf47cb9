"""The exception tree. A class determines how an error is handled and the exit status of the run.

* ``SweInferError``
    * ``ConfigError``: the user's configuration or input; one line, exit 2, before anything is loaded or paid for
        * ``DataError``: a dataset that cannot be read, or lacks a column
        * ``CheckpointError``: a model directory that cannot be loaded
        * ``StoreError``: a run directory of another configuration, locked by another process, or not writable
            * ``RemoteStoreError``: an object store refuses access or cannot be reached
    * ``RepositoryError``: a repository, commit or file is not available; affects that instance, not the run
        * ``RepositoryInterrupted``: Ctrl-C ended a fetch; the same command repeats it
        * ``ObjectTooLarge``: a file or folder is too large to read
    * ``UploadIncomplete``: files are on this machine, and not all of them in the object store; exit 1
    * ``BudgetExceeded``: a request does not fit under the cap; exit 3, all answers are kept
    * ``RequestError``: one request to a provider failed; affects that instance, not the run
        * ``RateLimited``: 429; retried, after ``retry_after_s`` if stated
        * ``Overloaded``: 503 or 529; retried at a lower rate
        * ``TransientError``: timeouts, connection errors, 408, 409, other 5xx, answers that cannot be parsed
        * ``ContextOverflow``: the prompt does not fit the context window; the instance is skipped
        * ``AnswerTooLarge``: the answer exceeds a size limit; not retried by the same command
        * ``InvalidRequest``: the provider rejects this request; not retried
        * ``ProviderFatal``: no request of this run can succeed; stops the run at once
            * ``AuthenticationFailed``: the API key is rejected or lacks a permission; exit 2
            * ``ModelNotFound``: the provider does not know the model; exit 2
            * ``QuotaExhausted``: the account has no credit; exit 1
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

UNDECODED_BYTES = "\udc80-\udcff"
"""In a regular expression's class of characters: bytes that are not UTF-8, such as of a path (PEP 383)."""
UNDECODED = re.compile(f"[{UNDECODED_BYTES}]")

INFRASTRUCTURE_ERRORS = frozenset(
    [
        "RateLimited",
        "Overloaded",
        "TransientError",
        "ProviderFatal",
        "AuthenticationFailed",
        "ModelNotFound",
        "QuotaExhausted",
        "Unreachable",
        "RepositoryNotAvailable",
    ]
)
"""Class names of errors, and reasons to skip, that say nothing about the model: the network, the provider, the
account or a repository failed. ``docs/faults.md`` lists them."""


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Rate limits from response headers; None if not stated. Resets are seconds from now.

    ``tokens`` are input and output tokens together, or input tokens if output has its own limit (Anthropic).
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


def printable(text: str, replacement: str, keep: str = "") -> str:
    """Replaces each character, except those in ``keep``, that would break a line or control a terminal. Bytes that
    are not UTF-8 stay: what prints the text escapes them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or UNDECODED.match(c) else replacement for c in text)


class SweInferError(Exception):
    """Base class of this package's errors.

    ``str(error)`` is one line for the user, without secrets.
    """

    exit_status: int = 1

    def __str__(self) -> str:
        return printable(super().__str__(), " ").rstrip()  # messages quote foreign text


class ConfigError(SweInferError):
    """The configuration or an input file is invalid; the message names the key or file and what is valid."""

    exit_status = 2


class DataError(ConfigError):
    """A dataset cannot be read or lacks a column."""


class CheckpointError(ConfigError):
    """A model directory is missing, unreadable, of an unknown architecture, or unsafe to load."""


class StoreError(ConfigError):
    """A run directory or another file of ours is in use, damaged, not writable, or of another configuration."""


class RemoteStoreError(StoreError):
    """An object store refuses access, or cannot be reached.

    Args:
        place: a URL, or a key with its URL.
        reason: without secrets.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(f"{place}: {reason}")
        self.reason = reason


class UploadIncomplete(SweInferError):
    """The files of a run are on this machine, and not all of them are in the object store."""


class RepositoryError(SweInferError):
    """A repository, or a commit or file in it, is not available."""


class ObjectTooLarge(RepositoryError):
    """A file or folder of a repository is too large to read, or several of them are together."""


class RepositoryInterrupted(RepositoryError):
    """Ctrl-C ended a fetch or prevented it: whether the repository or commit is available is unknown."""


class BudgetExceeded(SweInferError):
    """A request does not fit under ``budget.max_usd`` or ``budget.sweep_max_usd``, even if requests in flight are
    free.

    Args:
        usd: the maximal cost of the request.
        nothing_fits: no request of the run fits, not even one with an empty prompt.
    """

    exit_status = 3

    def __init__(self, message: str, *, usd: Decimal = Decimal(0), nothing_fits: bool = False) -> None:
        super().__init__(message)
        self.usd = usd
        self.nothing_fits = nothing_fits


class RequestError(SweInferError):
    """One request failed. ``status`` is the HTTP status, if any, or the status that an error in an answer states."""

    in_answer: bool = False
    """The error is part of an answer with HTTP status 200, which may be billed."""

    is_final: bool = False
    """A retry would end in the same way, although the class of the error is retried."""

    retry_after_s: float | None = None
    """The seconds after which the server accepts a retry, if it stated them."""

    timed_out: bool = False
    """No answer came in time. The server may have more requests than it can answer."""

    def __init__(self, message: str, *, status: int | None = None, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.request_id = request_id


class RateLimited(RequestError):
    """HTTP 429. ``rate_limits`` are the limits in its headers."""

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
    """HTTP 503 or 529: the provider lacks capacity."""


class TransientError(RequestError):
    """A fault that is likely temporary: timeouts, connection errors, 408, 409, 5xx, unreadable answers."""

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
    """Prompt and output together exceed the model's context window."""


class AnswerTooLarge(RequestError):
    """The answer exceeds a size limit and was not read to its end. It may be billed, and so may a retry."""


class InvalidRequest(RequestError):
    """The provider rejects this request (HTTP 400, 413, 422); a retry cannot succeed."""


class ProviderFatal(RequestError):
    """No request of this run can succeed."""


class AuthenticationFailed(ProviderFatal):
    """HTTP 401 or 403."""

    exit_status = 2


class ModelNotFound(ProviderFatal):
    """The provider does not know the model (HTTP 404)."""

    exit_status = 2


class QuotaExhausted(ProviderFatal):
    """The account has no credit (OpenAI's ``insufficient_quota``, Anthropic's billing errors)."""
