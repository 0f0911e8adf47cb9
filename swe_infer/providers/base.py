"""What a provider is: it translates one request into a wire format and back, and classifies errors. Nothing else.

Retries, limits, budget, prices and caching belong to :mod:`swe_infer.api`; a provider never sleeps and never retries.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeGuard

from swe_infer.errors import RateLimits, RequestError
from swe_infer.types import ApiModel, Decoding, FinishReason, LlamaModel, Request, Usage

__all__ = [
    "Answer",
    "BatchProvider",
    "BatchStatus",
    "CountingProvider",
    "FoundBatch",
    "InputCount",
    "Provider",
    "RateLimits",
    "SampleProvider",
    "ServingProvider",
    "is_counting",
    "is_serving",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """One provider's answer to one request.

    Args:
        model: the model's name as the answer states it (a dated snapshot, often). Never used to look up a price.
        time_to_first_token_s: only where the answer was streamed.
        details: further facts for the record (JSON values).
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    model: str | None = None
    request_id: str | None = None
    rate_limits: RateLimits = field(default_factory=RateLimits)
    time_to_first_token_s: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


class Provider(Protocol):
    """One endpoint. Constructors are cheap, import no SDK and read no key."""

    name: str
    """The group option, such as ``openai``."""

    pricing_id: str
    """genai-prices' ``provider_id``."""

    base_url: str
    """As the vendor's SDK takes it."""

    max_concurrency: int
    """Upper bound on requests in flight."""

    timeout_s: float
    """Seconds that one request may take in all."""

    mode: Literal["live", "batch"]
    """``batch``: answers come through the vendor's batches, see :class:`BatchProvider`."""

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Raise ConfigError where the address is none or the provider cannot honour ``decoding``; asks nobody."""
        ...

    def check_access(self) -> None:
        """Raise ConfigError where something is missing that only sending needs: the key (naming the variable), or an
        address that has no default. A dry run goes without. No model is asked."""
        ...

    async def open(self) -> None:
        """Create the SDK's client, with the SDK's own retries switched off."""
        ...

    async def close(self) -> None: ...

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        """Send one request and translate its answer.

        Args:
            cache_prompt: have the vendor keep the prompt for requests that follow, where that must be asked for.

        Raises:
            RequestError: the subclass says what to do about it. An answer that was billed but cannot be used raises
                ``TransientError`` only if no text can be had from it; an empty text is an answer.
        """
        ...


class SampleProvider(Provider, Protocol):
    """A provider that answers several samples of one prompt in one request, which is billed for the prompt once."""

    def most_samples(self, model: ApiModel, decoding: Decoding) -> int:
        """How many samples one request may ask for; 1 where the model or ``decoding`` allows no more."""
        ...

    async def complete_samples(
        self, requests: Sequence[Request], model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> list[Answer]:
        """Answer ``requests``, which differ in their sample alone, at most :meth:`most_samples` of them.

        The answers are in the order of ``requests``; where the vendor gives fewer, the last ones are missing. Their
        usages add up to what is billed. Raises RequestError as :meth:`Provider.complete` does.
        """
        ...


@dataclass(frozen=True, slots=True)
class InputCount:
    """A vendor's own count of a request's input.

    Args:
        tokens: as the vendor states it, unchecked.
        beyond: tokens at most that may be billed on top: what the count does not cover, or is not exact about.
    """

    tokens: int
    beyond: int


class CountingProvider(Provider, Protocol):
    """A provider whose vendor counts the tokens of a request, free of charge, without answering it."""

    counts_input: bool
    """False where this provider has the method but its vendor or server has no such endpoint."""

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """Have a request's input counted. Raises RequestError as :meth:`Provider.complete` does."""
        ...


def is_counting(provider: Provider) -> TypeGuard[CountingProvider]:
    """Whether ``provider`` can be asked for counts, see :class:`CountingProvider`."""
    return bool(getattr(provider, "counts_input", False))


class ServingProvider(Provider, Protocol):
    """A provider that runs a server of its own: :meth:`open` starts it and waits for it, :meth:`close` ends it."""

    def served(self, model: ApiModel | LlamaModel) -> ApiModel:
        """The model as the server is asked for it, at the price of a model of one's own: none. Called once, first.

        Raises:
            ConfigError: the server cannot run ``model`` as it is configured.
        """
        ...

    def keep_log(self, directory: Path) -> None:
        """Where the server's log is to lie. Called before :meth:`open`."""
        ...


def is_serving(provider: Provider) -> TypeGuard[ServingProvider]:
    """Whether ``provider`` is a :class:`ServingProvider`."""
    return hasattr(provider, "served")


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """Where a batch stands.

    Args:
        state: ``ended`` has results to fetch, perhaps not for all its requests; ``failed`` was refused as a whole.
        total: requests in it; 0 where the vendor has not counted them yet.
        done: those with a good answer.
        error: why it failed, by class: ``RateLimited`` where it may be submitted again later.
    """

    state: Literal["running", "ended", "failed"]
    total: int
    done: int
    error: RequestError | None = None


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch that the vendor has, and that may be the one sought.

    ``certain`` is False where the vendor shows whose batch it is only once it has ended (Anthropic).
    """

    id: str
    certain: bool
    total: int


class BatchProvider(Provider, Protocol):
    """A provider with batches: many requests handed in together, answered within a day, at half the price.

    Every method raises RequestError as :meth:`Provider.complete` does, and never tries again by itself.
    """

    has_batches: bool
    """False where this provider has the methods but its vendor or server has no batches."""

    max_batch_requests: int
    max_batch_bytes: int

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        """One request as it is handed in; the lengths of a batch's items must stay under ``max_batch_bytes``."""
        ...

    async def submit(self, items: Mapping[str, bytes], *, label: str, timeout_s: float) -> str:
        """Hand in a batch, and return its id.

        Args:
            items: what :meth:`batch_item` made, by custom id. An id is of letters, digits, ``-`` and ``_``, begins
                with ``label`` and has at most 64 characters.
            label: names the batch, so that :meth:`find` finds it where this call's answer was lost.
        """
        ...

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        """Batches handed in after ``since`` (Unix time, with some minutes' grace) that bear ``label``, or may."""
        ...

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus: ...

    def results(self, batch_id: str, *, timeout_s: float) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        """The results of an ended batch by custom id, in any order, as they arrive; ``timeout_s`` bounds silence.

        What the vendor leaves out is missing; expired and cancelled requests are ``TransientError``.
        """
        ...

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        """Ask for a batch's end. What is answered by then stays paid for, and is among the results."""
        ...
