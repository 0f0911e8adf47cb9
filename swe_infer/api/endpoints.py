"""Where a model can be asked: one endpoint, or several in order of preference. Never another model."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from swe_infer.api.limits import Limiter
from swe_infer.api.pricing import PriceTable
from swe_infer.errors import Overloaded, ProviderFatal, RateLimited, RequestError, TransientError
from swe_infer.providers.base import Provider
from swe_infer.types import ApiModel

logger = logging.getLogger(__name__)

_REST_S = 15.0
"""An endpoint that is down is tried again after so many seconds, if it named no time itself."""
_FAULTS = 3
"""So many faults in a row, with no answer between them, mean that an endpoint is down."""


@dataclass(slots=True)
class Endpoint:
    """A provider, the model's name there, its price there and the limits there."""

    provider: Provider
    model: ApiModel
    tariff: PriceTable | None
    limiter: Limiter
    resting_until: float = 0.0
    faults: int = 0
    fatal: ProviderFatal | None = None

    @property
    def address(self) -> str:
        """The provider's address."""
        return self.provider.address


class Endpoints:
    """Picks where the next request goes: the first endpoint that is neither down nor out of quota."""

    def __init__(self, endpoints: list[Endpoint]) -> None:
        self.all = tuple(endpoints)

    def pick(self) -> Endpoint:
        """The endpoint to ask now.

        Raises:
            ProviderFatal: every endpoint is of no use any more.
        """
        usable = [endpoint for endpoint in self.all if endpoint.fatal is None]
        if not usable:
            fatal = self.all[0].fatal
            assert fatal is not None
            raise fatal
        now = time.monotonic()
        return next((e for e in usable if e.resting_until <= now), min(usable, key=lambda e: e.resting_until))

    def next_after(self, endpoint: Endpoint, error: RequestError) -> bool:
        """Note an error; whether another endpoint can take the request at once.

        Raises:
            ProviderFatal: ``error`` itself, where no other endpoint is left.
        """
        if isinstance(error, ProviderFatal):
            if endpoint.fatal is None and len(self.all) > 1:
                logger.warning("%s is of no use: %s", endpoint.provider.name, error)
            endpoint.fatal = error
            if all(other.fatal is not None for other in self.all):
                raise error
            endpoint.limiter.send_away()
            return True
        if len(self.all) == 1 or not isinstance(error, RateLimited | TransientError):
            return False
        endpoint.faults += 1
        out_of_quota = isinstance(error, RateLimited) and not isinstance(error, Overloaded)
        if out_of_quota or endpoint.faults >= _FAULTS:
            rest_s = _REST_S if error.retry_after_s is None else max(error.retry_after_s, 1.0)
            endpoint.resting_until = time.monotonic() + rest_s
        now = time.monotonic()
        moves = endpoint.resting_until > now and any(
            other.fatal is None and other.resting_until <= now for other in self.all
        )
        if moves:
            endpoint.limiter.send_away()
        return moves

    def up(self, endpoint: Endpoint) -> None:
        """An answer came."""
        endpoint.faults = 0

    def halt(self) -> None:
        """Let no endpoint send any more."""
        for endpoint in self.all:
            endpoint.limiter.halt()
