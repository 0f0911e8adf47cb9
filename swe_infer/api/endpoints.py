"""Where requests for a model can be sent: one endpoint, or several in order of preference. Never another model."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from urllib.parse import urlsplit

from swe_infer.api.first_answers import FirstAnswers
from swe_infer.api.limits import Limiter
from swe_infer.api.pricing import PriceTable, settled_usd, worst_case
from swe_infer.errors import Overloaded, ProviderFatal, RateLimited, RequestError, TransientError
from swe_infer.providers.base import Bill, Provider
from swe_infer.types import ApiModel, Usage

logger = logging.getLogger(__name__)

_DOWN_S = 15.0
"""An endpoint that is down is tried again after this time, unless it sent a Retry-After."""
_FAULTS = 3
"""After this many consecutive errors an endpoint counts as down."""
_KEEP_LIMITS = re.compile(
    r"(\w+\.)?api\.openai\.com|[\w-]+\.openai\.azure\.com|api\.anthropic\.com"
    r"|bedrock-runtime\.[\w-]+\.amazonaws\.com|([\w-]+-)?aiplatform\.googleapis\.com"
)
"""Hosts of OpenAI's and Anthropic's models: the requested limit bounds all output that is billed, with reasoning
(platform.openai.com/docs/api-reference/chat/create, docs.claude.com/en/docs/build-with-claude/extended-thinking)."""
_LONGEST_OUTPUT = 128_000
"""Tokens of the longest answer of a model whose ``max_output_tokens`` is unknown."""
_LEAST_WINDOW = 1_000
"""Tokens of the smallest context window for which equal counts are compared."""
_ALIKE = 3
"""Prompts with the same count of tokens that may be due to chance."""
_MOST_COUNTS = 10_000
"""Different counts, after which a server is known not to count all long prompts alike."""
_STEP = 1.25
"""Bounds rise in powers of this factor, so that they rise a few times only."""


@dataclass(slots=True)
class Endpoint:
    """A provider with its name for the model, its prices and its limits."""

    provider: Provider
    model: ApiModel
    prices: PriceTable | None
    limiter: Limiter
    down_until: float = 0.0
    faults: int = 0
    fatal: ProviderFatal | None = None
    first_answers: FirstAnswers = field(default_factory=FirstAnswers)
    most_samples: int | None = None
    """How many samples of a prompt one request may ask for; None: as many as the provider says."""
    prompts_truncated: bool = False
    """The server has truncated a prompt, and a warning was logged."""
    sizes_by_count: dict[int, set[int]] = field(default_factory=dict)
    """The characters of prompts, by the tokens that the server counted."""
    markup: Decimal = Decimal(1)
    """How many times the listed price the server charges, at most, by the costs that its answers state."""
    overrun: Decimal = Decimal(1)
    """How many times the longest requested output the server has billed, at most."""
    added_input: int = 0
    """Tokens of input that the server has billed beyond the bound of a prompt, at most: its own, such as a system
    prompt or what it has searched."""
    bound_is_certain: bool = field(init=False)
    """Whether no answer will cost more than :meth:`worst_case`, as far as is known: by the vendor's documentation, or
    by the bill of an answer. False: under a cap, one request at a time may be sent, see :meth:`must_go_alone`."""
    trial_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the only request in flight while the bound is not certain."""
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while no request is in flight."""
    _in_flight: int = 0

    def __post_init__(self) -> None:
        keeps_limit = _KEEP_LIMITS.fullmatch(urlsplit(self.address).hostname or "") is not None
        self.bound_is_certain = self.prices is None or (keeps_limit and not self.prices.states_bill)
        self.idle.set()

    @property
    def address(self) -> str:
        """The provider's address."""
        return self.provider.address

    def counts_alike(self, characters: int, tokens: int) -> bool:
        """Whether the server counts the same tokens for prompts of very different lengths, as one that truncates them
        to its context window, or to half of it (ollama/ollama #17427). Records the prompt."""
        if tokens < _LEAST_WINDOW or len(self.sizes_by_count) >= _MOST_COUNTS:
            return False
        sizes = self.sizes_by_count.setdefault(tokens, set())
        sizes.add(characters)
        return len(sizes) >= _ALIKE and max(sizes) >= max(1.5 * min(sizes), 5 * tokens)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """While a request is in flight."""
        self._in_flight += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle.set()

    def worst_case(self, input_tokens: int, output_tokens: int, *, cache_write: bool) -> Decimal:
        """The most that a request costs, see :func:`swe_infer.api.pricing.worst_case`."""
        assert self.prices is not None
        longest = math.ceil(self.overrun * output_tokens)
        inputs = input_tokens + self.added_input
        return self.markup * worst_case(self.prices, inputs, longest, cache_write=cache_write)

    @property
    def has_passed_bound(self) -> bool:
        """Whether an answer has cost more than :meth:`worst_case` was before it."""
        return self.markup > 1 or self.overrun > 1 or self.added_input > 0

    def must_go_alone(self, input_tokens: int, samples: int, unspent: Decimal) -> bool:
        """Whether a request must be the only one in flight under a cap: the server charges its own price, has passed
        the bound, or might pass the cap with all that may be in flight before an answer shows its output's length.

        Args:
            samples: of the request.
            unspent: dollars that are left under the cap.
        """
        if self.bound_is_certain or self.prices is None:
            return False
        if self.prices.states_bill or self.has_passed_bound:
            return True
        longest = samples * (self.model.max_output_tokens or _LONGEST_OUTPUT)
        in_flight = self.provider.max_concurrency * worst_case(self.prices, input_tokens, longest, cache_write=True)
        return in_flight > unspent

    def observe(
        self, usage: Usage | None, bill: Bill, input_bound: int, requested: int, *, cache_write: bool, is_last: bool
    ) -> None:
        """Raises :meth:`worst_case` to what an answer was billed.

        Args:
            usage: None: the token counts are unknown. No answer may ever show them, so that this one counts as within
                the bound.
            input_bound: tokens of the prompt, at most.
            requested: tokens of output, at most.
            is_last: whether nothing else is in flight, which was reserved by a lower bound.
        """
        before = self.markup, self.overrun, self.added_input
        if usage is not None:
            self._observe_bill(usage, bill, cache_write=cache_write)
            self._observe_output(usage.output_tokens, requested)
            self._observe_input(usage.input_tokens, input_bound)
        if before != (self.markup, self.overrun, self.added_input):
            self.bound_is_certain = self.prices is None
        else:
            self.bound_is_certain |= is_last or not self.has_passed_bound

    def _observe_output(self, output_tokens: int, requested: int) -> None:
        """Raises the overrun if an answer has more tokens than were requested at most. Servers ignore limits, or do
        not count reasoning."""
        if output_tokens > self.overrun * requested:
            if self.overrun == 1 and self.prices is not None:
                logger.warning(
                    "%s bills %d tokens of output where at most %d were requested: reservations are higher now",
                    self.provider.name, output_tokens, requested,
                )  # fmt: skip
            self.overrun = _rounded_up(Decimal(output_tokens) / requested)

    def _observe_input(self, input_tokens: int, bound: int) -> None:
        """Raises the added input if an answer has more tokens of input than its prompt can have."""
        if self.prices is not None and input_tokens > bound + self.added_input:
            if not self.added_input:
                logger.warning(
                    "%s bills %d tokens of input for a prompt of at most %d: reservations are higher now",
                    self.provider.name, input_tokens, bound,
                )  # fmt: skip
            self.added_input = math.ceil(_rounded_up(Decimal(input_tokens - bound)))

    def _observe_bill(self, usage: Usage, bill: Bill, *, cache_write: bool) -> None:
        """Raises the markup if an answer with known token counts states a cost above the list, or has cache writes
        that were not asked for."""
        if self.prices is None:
            return
        usd = bill.usd if self.prices.states_bill else None
        if usd is None and usage.cache_write_tokens and not cache_write:
            usd = settled_usd(self.prices, usage, bill)
        if usd is None:
            return
        listed = worst_case(self.prices, usage.input_tokens, usage.output_tokens, cache_write=cache_write)
        if listed and usd > self.markup * listed:
            if self.markup == 1:
                logger.warning(
                    "%s charges $%.6f for what costs at most $%.6f by the list: reservations are higher now",
                    self.provider.name, usd, listed,
                )  # fmt: skip
            self.markup = _rounded_up(usd / listed)


def _rounded_up(factor: Decimal) -> Decimal:
    """The next power of ``_STEP``."""
    return max(factor, Decimal(_STEP) ** math.ceil(math.log(factor, _STEP)))


class Endpoints:
    """Picks the first endpoint that is neither down nor out of quota."""

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self.all = tuple(endpoints)

    def pick(self) -> Endpoint:
        """The endpoint for the next request.

        Raises:
            ProviderFatal: all endpoints have failed for good.
        """
        usable = [endpoint for endpoint in self.all if endpoint.fatal is None]
        if not usable:
            fatal = self.all[0].fatal
            assert fatal is not None
            raise fatal
        now = time.monotonic()
        return next((e for e in usable if e.down_until <= now), min(usable, key=lambda e: e.down_until))

    def fail_over(self, endpoint: Endpoint, error: RequestError) -> bool:
        """Records an error. Returns whether another endpoint can take the request at once.

        Raises:
            ProviderFatal: ``error`` itself, if no endpoint is left.
        """
        if isinstance(error, ProviderFatal):
            if endpoint.fatal is None and len(self.all) > 1:
                logger.warning("%s is not used any more: %s", endpoint.provider.name, error)
            endpoint.fatal = error
            if all(other.fatal is not None for other in self.all):
                raise error
            endpoint.limiter.reroute_waiters(self)
            return True
        if len(self.all) == 1 or not isinstance(error, RateLimited | TransientError):
            return False
        endpoint.faults += 1
        out_of_quota = isinstance(error, RateLimited) and not isinstance(error, Overloaded)
        if out_of_quota or endpoint.faults >= _FAULTS:
            down_s = _DOWN_S if error.retry_after_s is None else max(error.retry_after_s, 1.0)
            endpoint.down_until = time.monotonic() + down_s
        now = time.monotonic()
        can_move = endpoint.down_until > now and any(
            other.fatal is None and other.down_until <= now for other in self.all
        )
        if can_move:
            endpoint.limiter.reroute_waiters(self)
        return can_move

    def mark_up(self, endpoint: Endpoint) -> None:
        """Records an answer."""
        endpoint.faults = 0
        endpoint.first_answers.answered = True

    def halt(self) -> None:
        """Stops this run from sending. Other runs may share the limiters."""
        for endpoint in self.all:
            endpoint.limiter.halt(self)
