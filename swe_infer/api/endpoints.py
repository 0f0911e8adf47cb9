"""Where requests for a model can be sent: one endpoint, or several in order of preference. Never another model."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field
from decimal import Decimal

from swe_infer.api.first_answers import FirstAnswers
from swe_infer.api.limits import Limiter
from swe_infer.api.pricing import PriceTable, worst_case
from swe_infer.errors import Overloaded, ProviderFatal, RateLimited, RequestError, TransientError
from swe_infer.providers.base import Bill, Provider
from swe_infer.types import ApiModel, Usage

logger = logging.getLogger(__name__)

_DOWN_S = 15.0
"""An endpoint that is down is tried again after this time, unless it sent a Retry-After."""
_FAULTS = 3
"""After this many consecutive errors an endpoint counts as down."""


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
    markup: Decimal = Decimal(1)
    """How many times the listed price the server charges, at most, by the costs that its answers state."""
    overrun: Decimal = Decimal(1)
    """How many times the longest requested output the server has billed, at most."""
    has_billed: bool = False
    """An answer has come, which shows whether the server charges the listed price."""
    first_bill_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by the only request in flight until then."""

    @property
    def address(self) -> str:
        """The provider's address."""
        return self.provider.address

    @property
    def price_is_certain(self) -> bool:
        """Whether the most that a request costs is known before the first answer."""
        return self.prices is None or not self.prices.states_bill or self.has_billed

    def worst_case(self, input_tokens: int, output_tokens: int, *, cache_write: bool) -> Decimal:
        """The most that a request costs, see :func:`swe_infer.api.pricing.worst_case`."""
        assert self.prices is not None
        longest = math.ceil(self.overrun * output_tokens)
        return self.markup * worst_case(self.prices, input_tokens, longest, cache_write=cache_write)

    def observe_output(self, output_tokens: int, requested: int) -> None:
        """Raises the overrun if an answer has more tokens than were requested at most. Servers ignore limits, or do
        not count reasoning."""
        if output_tokens > self.overrun * requested:
            if self.overrun == 1 and self.prices is not None:
                logger.warning(
                    "%s bills %d tokens of output where at most %d were requested: reservations are higher now",
                    self.provider.name, output_tokens, requested,
                )  # fmt: skip
            self.overrun = Decimal(output_tokens) / requested

    def observe_bill(self, usage: Usage, bill: Bill, *, cache_write: bool) -> None:
        """Raises the markup if an answer with known token counts states a cost above the list."""
        if self.prices is None or not self.prices.states_bill or bill.usd is None:
            return
        listed = worst_case(self.prices, usage.input_tokens, usage.output_tokens, cache_write=cache_write)
        if listed and bill.usd > self.markup * listed:
            if self.markup == 1:
                logger.warning(
                    "%s charges $%.6f for what costs at most $%.6f by the list: reservations are as much higher now",
                    self.provider.name, bill.usd, listed,
                )  # fmt: skip
            self.markup = bill.usd / listed


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
