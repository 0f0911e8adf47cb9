"""What a provider is: it translates one request into a wire format and back, and classifies errors. Nothing else.

Retries, limits, budget, prices and caching belong to :mod:`swe_infer.api`; a provider never sleeps and never retries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from swe_infer.errors import ConfigError, RateLimits, RequestError
from swe_infer.types import ApiModel, Decoding, FinishReason, LlamaModel, Request, Usage


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


@dataclass(frozen=True, slots=True)
class InputCount:
    """A vendor's own count of a request's input.

    Args:
        tokens: as the vendor states it, unchecked.
        beyond: tokens at most that may be billed on top: what the count does not cover, or is not exact about.
    """

    tokens: int
    beyond: int


class Provider(ABC):
    """One endpoint. Constructors are cheap, import no SDK and read no key.

    The class attributes and the methods with a body state what a provider can do beyond one request and one answer;
    a provider that can do more overrides them.
    """

    name: str
    """The vendor, such as ``openai``; part of a run's identity."""

    pricing_id: str
    """genai-prices' ``provider_id``."""

    address: str
    """Where requests go, as the vendor's SDK takes it; empty where it is still to be named."""

    max_concurrency: int
    """Upper bound on requests in flight."""

    timeout_s: float
    """Timeout of one request in seconds."""

    mode: Literal["live", "batch"]
    """``batch``: answers come through the vendor's batches, see :class:`BatchProvider`."""

    has_batches: ClassVar[bool] = False
    """Whether this is a :class:`BatchProvider` whose vendor has batches."""

    counts_input: ClassVar[bool] = False
    """Whether the vendor counts the tokens of a request, free of charge, without answering it."""

    priced_by_name: ClassVar[bool] = False
    """Whether the price list knows the models under the names that this provider gives them."""

    @abstractmethod
    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Raise ConfigError where the address is malformed or ``decoding`` cannot be honoured; asks nobody."""

    def takes_prefill(self, model: ApiModel) -> bool:
        """Whether the model goes on with the beginning of an answer (:attr:`swe_infer.types.Prompt.prefill`)."""
        return False

    @abstractmethod
    def check_access(self) -> None:
        """Raise ConfigError where something is missing that only sending needs: the key (naming the variable), or an
        address that has no default. A dry run goes without. No model is asked."""

    @abstractmethod
    async def open(self) -> None:
        """Create the SDK's client, with the SDK's own retries switched off. Where the provider runs a server of its
        own, start it and wait for it."""

    @abstractmethod
    async def close(self) -> None:
        """Close the client, and end the server that :meth:`open` started."""

    @abstractmethod
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

    def served(self, model: ApiModel | LlamaModel) -> ApiModel:
        """The model as this provider is asked for it. Called once, before any other method.

        Raises:
            ConfigError: it cannot serve ``model`` as it is configured.
        """
        if isinstance(model, LlamaModel):
            raise ConfigError(
                f"runner=api: {model.label} is a checkpoint, which provider={self.name} does not serve; choose "
                "provider=vllm, or runner=llama"
            )
        return model

    def endpoints(self, model: ApiModel) -> list[tuple[Provider, ApiModel]]:
        """Every provider that can be asked, in order of preference, with the model as it is called there."""
        return [(self, model)]

    def keep_log(self, directory: Path) -> None:  # noqa: B027 - most providers start no server
        """State where the log of a server that :meth:`open` starts is to lie. Called before :meth:`open`."""

    @property
    def variant(self) -> str:
        """What decides answers beside the model's name; part of the response cache's key."""
        return ""

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """Have a request's input counted, where :attr:`counts_input` says so. Raises RequestError as :meth:`complete`
        does."""
        raise NotImplementedError

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        """How many samples of one prompt one live request may ask for."""
        return 1

    async def complete_samples(
        self, requests: Sequence[Request], model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> list[Answer]:
        """Answer ``requests``, which differ in their sample alone, at most :meth:`max_samples` of them.

        The answers are in the order of ``requests``; where the vendor gives fewer, the last ones are missing. Their
        usages add up to what is billed. Raises RequestError as :meth:`complete` does.
        """
        return [await self.complete(requests[0], model, timeout_s=timeout_s, cache_prompt=cache_prompt)]


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


class BatchProvider(Protocol):
    """What a provider with ``has_batches`` has too: many requests handed in together, answered within a day, at half
    the price.

    Every method raises RequestError as :meth:`Provider.complete` does, and never tries again by itself.
    """

    name: str
    address: str
    timeout_s: float

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
