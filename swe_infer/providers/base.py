"""The provider interface: translates one request into a wire format and back, and classifies errors.

Retries, limits, budget, prices and caching are in :mod:`swe_infer.api`; a provider never sleeps or retries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, cast

from swe_infer.errors import ConfigError, RateLimits, RequestError
from swe_infer.types import ApiModel, Decoding, FinishReason, LlamaModel, Request, Usage


@dataclass(frozen=True, slots=True)
class PriceTerms:
    """What decides the price of a request in addition to its tokens, as it is sent.

    Args:
        service_tier: the vendor's field; None: it is not sent.
        speed: Anthropic's field; None: it is not sent.
        cache_ttl: lifetime of prompts that are written to the vendor's cache.
        caches_unasked: whether the vendor may write its cache although this program does not request it.
        geo: Anthropic's ``inference_geo``; None: it is not sent, so the workspace's default applies.
    """

    service_tier: str | None = None
    speed: str | None = None
    cache_ttl: str = "5m"
    caches_unasked: bool = False
    geo: str | None = None

    def with_lifetimes(self, usage: Usage) -> Usage:
        """``usage`` with cache writes of the lifetime that requests ask for."""
        if self.cache_ttl == "5m" or not usage.cache_write_tokens:
            return usage
        return replace(usage, cache_write_1h_tokens=usage.cache_write_tokens)


@dataclass(frozen=True, slots=True)
class Bill:
    """What an answer states about its price.

    Args:
        service_tier, speed: how the request was processed; None: not stated.
        usd: its cost in dollars; None: not stated.
        states_lifetimes: whether its usage states the lifetimes of cache writes.
        geo: where Anthropic processed the request; None: not stated.
    """

    service_tier: str | None = None
    speed: str | None = None
    usd: Decimal | None = None
    states_lifetimes: bool = False
    geo: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One provider's answer to one request.

    Args:
        model: the model's name in the answer, often a dated snapshot. Never used to look up a price.
        time_to_first_token_s: None unless the answer was streamed.
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
    bill: Bill = Bill()

    def cut_at(self, stop: Sequence[str]) -> Answer:
        """The answer without its text from the first stop string on. Some servers leave that in the text
        (text-generation-inference) or ignore stop strings."""
        places = [place for text in stop if (place := self.text.find(text)) >= 0]
        if not places or "text_from" in self.details:
            return self
        return replace(self, text=self.text[: min(places)], finish_reason="stop")


@dataclass(frozen=True, slots=True)
class InputCount:
    """A vendor's own count of a request's input.

    Args:
        tokens: the vendor's count, unchecked.
        beyond: upper bound on the tokens that may be billed in addition to the count.
    """

    tokens: int
    beyond: int


class Provider(ABC):
    """One endpoint. Constructors are cheap, import no SDK and read no key.

    The class attributes and the methods with a body are defaults; a provider that can do more overrides them.
    """

    name: str
    """The vendor, such as ``openai``; part of a run's identity."""

    pricing_id: str | None
    """genai-prices' ``provider_id``; None: by the address."""

    address: str
    """The base URL for the vendor's SDK; empty if it is not configured yet."""

    max_concurrency: int
    """Upper bound on requests in flight."""

    timeout_s: float
    """Timeout of one request in seconds."""

    mode: Literal["live", "batch"]
    """``batch``: answers come through the vendor's batches, see :class:`BatchProvider`."""

    background: bool | Literal["2h", "8h"] = False
    """Whether answers are computed in the background and polled, see :meth:`deferred`."""

    counts_input: ClassVar[bool] = False
    """Whether the vendor has a free endpoint that counts the tokens of a request."""

    priced_by_name: ClassVar[bool] = False
    """Whether the price list uses this provider's own model names."""

    @property
    def has_batches(self) -> bool:
        """Whether the vendor has batches, which :meth:`deferred` returns."""
        return False

    def deferred(self) -> BatchProvider:
        """The calls that submit requests and collect their answers later, for ``mode="batch"`` or ``background``."""
        return cast(BatchProvider, self)

    @abstractmethod
    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Raises ConfigError if the address is malformed or ``decoding`` is not supported. Sends nothing."""

    def check_prefill(self, model: ApiModel, prefill: str) -> None:
        """Raises ConfigError if the model cannot continue this beginning of an answer
        (:attr:`swe_infer.types.Prompt.prefill`)."""
        raise ConfigError(
            f"prompt.prefill: {model.name} does not continue a given beginning of its answer with this provider; set "
            "prompt.prefill=null"
        )

    def check_conversation(self, model: ApiModel) -> None:
        """Raises ConfigError if the model cannot continue a conversation (:attr:`swe_infer.types.Prompt.turns`)."""
        raise ConfigError(
            f"a further turn needs a chat model; provider={self.name} sends {model.name} a single text; set "
            "feedback=none"
        )

    def image_fault(self, model: ApiModel, images: Sequence[str]) -> str | None:
        """Why images cannot be sent to a model; None if they can.

        Args:
            images: URLs, as in :attr:`swe_infer.types.Prompt.images`.
        """
        return f"provider={self.name} sends text alone; dataset.images=false leaves the images out"

    @abstractmethod
    def check_access(self) -> None:
        """Raises ConfigError if something is missing that only sending requires: the key (the message names the
        variable), or an address without a default. Not called by a dry run. Sends no request to a model."""

    @abstractmethod
    async def open(self) -> None:
        """Creates the SDK's client without the SDK's own retries. If the provider runs a server, starts it and waits
        until it is ready."""

    @abstractmethod
    async def close(self) -> None:
        """Closes the client and stops the server that :meth:`open` started."""

    @abstractmethod
    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        """Sends one request and translates its answer.

        Args:
            cache_prompt: whether the vendor should cache the prompt for later requests, if that must be requested.

        Raises:
            RequestError: the subclass decides how it is handled. A billed answer raises ``TransientError`` only if
                its text cannot be read; an empty text is an answer.
        """

    def served(self, model: ApiModel | LlamaModel) -> ApiModel:
        """The model as this provider serves it. Called once, before any other method.

        Raises:
            ConfigError: it cannot serve ``model`` with this configuration.
        """
        if isinstance(model, LlamaModel):
            raise ConfigError(
                f"runner=api: {model.label} is a checkpoint, which provider={self.name} does not serve; choose "
                "provider=vllm, or runner=llama"
            )
        return model

    def endpoints(self, model: ApiModel) -> list[tuple[Provider, ApiModel]]:
        """All providers in order of preference, each with its name for the model."""
        return [(self, model)]

    def price_terms(self, model: ApiModel) -> PriceTerms:
        """What decides the price of every request for ``model``, as it is sent."""
        return PriceTerms()

    def fix_service_tier(self) -> None:  # noqa: B027 - most vendors have one price
        """Makes every later request name the standard tier if it would name none, so that its price is known before
        it is sent."""

    def keep_log(self, directory: Path) -> None:  # noqa: B027 - most providers start no server
        """Sets the directory for the log of a server that :meth:`open` starts. Called before :meth:`open`."""

    @property
    def variant(self) -> str:
        """Settings that decide answers in addition to the model's name; part of the response cache's key."""
        return ""

    @property
    def credential(self) -> str | None:
        """The environment variable of the credential that is sent, for messages; None: not known, or none is sent."""
        return None

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        """Counts a request's input, if :attr:`counts_input`. Raises RequestError as :meth:`complete` does."""
        raise NotImplementedError

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        """How many samples of one prompt one live request may ask for."""
        return 1

    async def complete_samples(
        self, requests: Sequence[Request], model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> list[Answer]:
        """Answers at most :meth:`max_samples` requests that differ only in their sample.

        The answers are in the order of ``requests``; if the vendor sends fewer, the last ones are missing. Their
        usages sum to what is billed. Raises RequestError as :meth:`complete` does.
        """
        return [await self.complete(requests[0], model, timeout_s=timeout_s, cache_prompt=cache_prompt)]


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """The status of a batch.

    Args:
        state: ``ended``: results, perhaps not for all requests; ``failed``: refused as a whole; ``lost``: the vendor
            does not know the id any more, and the requests may have been billed.
        done: requests with an answer; None: the vendor states no counts, and all have a result.
        failed: requests with another result.
        error: why it failed; ``RateLimited`` if it may be submitted again later.
    """

    state: Literal["running", "ended", "failed", "lost"]
    done: int | None = 0
    failed: int = 0
    error: RequestError | None = None


@dataclass(frozen=True, slots=True)
class FoundBatch:
    """A batch in the vendor's list that may be the one that is looked up.

    ``certain`` is False if the vendor identifies a batch only after it has ended (Anthropic). Until then ``total``
    may rule it out: its number of requests; 0: not known.
    """

    id: str
    certain: bool
    total: int


ONLY_ITEM = "0"
"""The custom id of the request in a background response."""


class BatchProvider(Protocol):
    """Batches in one vendor's form: many requests submitted together, answered within a day, at half the price.
    Background responses are batches of one request, :data:`ONLY_ITEM`.

    Every method raises RequestError as :meth:`Provider.complete` does, and never retries.
    """

    name: str
    address: str
    timeout_s: float

    max_batch_requests: int
    max_batch_bytes: int

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        """The encoded request; the sizes of a batch's items must sum to less than ``max_batch_bytes``."""
        ...

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        """Submits a batch and returns its id.

        Args:
            items: encoded for ``model`` by :meth:`batch_item`, by custom id. An id consists of letters, digits, ``-``
                and ``_``, starts with ``label`` and has at most 64 characters.
            label: names the batch, so that :meth:`find` finds it if the response to this call is lost.
        """
        ...

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        """Batches submitted after ``since`` (Unix time, with some minutes' grace) that have ``label``, or may."""
        ...

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus: ...

    def results(self, batch_id: str, *, timeout_s: float) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        """Yields (custom id, result) of an ended batch in any order; ``timeout_s`` is a read timeout.

        Requests without a result are missing; expired and cancelled ones are ``TransientError``.
        """
        ...

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        """Requests cancellation. Requests answered before are billed and are among the results."""
        ...
