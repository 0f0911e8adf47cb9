"""Hard caps. The worst case of a request is held before it is sent and settled after it, so that no number of
requests in flight, processes or restarts can pass a cap together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

from swe_infer.api.ledger import Hold, Ledger
from swe_infer.errors import BudgetExceeded

__all__ = ["Purse", "Reservation"]

logger = logging.getLogger(__name__)

_POLL_S = 0.1  # other processes settle without telling us


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst case of one request, held in every ledger."""

    usd: Decimal
    holds: tuple[Hold, ...]


class Purse:
    """Every cap that one run is under.

    Args:
        ledgers: one for each cap, with the key that set it, such as ``budget.max_usd``. None at all: no cap.
    """

    def __init__(self, ledgers: Sequence[tuple[str, Ledger]] = ()) -> None:
        self._ledgers = tuple(ledgers)
        self._turn = asyncio.Lock()
        self._settled = asyncio.Event()
        self.waiting = 0

    async def reserve(self, usd: Decimal, tighter: Callable[[], Decimal] | None = None) -> Reservation:
        """Hold ``usd`` in every ledger, in the order of asking, waiting for others to settle where that may help.

        Args:
            usd: a sure bound on the price that is cheap to have.
            tighter: a smaller sure bound that costs work, asked for only where ``usd`` does not fit.

        Raises:
            BudgetExceeded: what is spent already leaves no room for this request.
        """
        if not self._ledgers:
            return Reservation(usd, ())
        self.waiting += 1
        try:
            async with self._turn:  # first come, first served: small requests do not starve a large one
                while True:
                    self._settled.clear()
                    refused = self._try(usd)
                    if isinstance(refused, Reservation):
                        return refused
                    if tighter is not None:
                        usd, tighter = min(usd, tighter()), None
                        continue
                    if refused.final:
                        raise BudgetExceeded(refused.message)
                    try:
                        async with asyncio.timeout(_POLL_S):
                            await self._settled.wait()
                    except TimeoutError:
                        pass
        finally:
            self.waiting -= 1

    def settle(self, reservation: Reservation, usd: Decimal | None) -> None:
        """Replace a reservation by what was paid; None: the provider may have billed it, how much is not known."""
        if usd is not None and usd > reservation.usd and self._ledgers:
            logger.warning("a request cost $%s, more than its worst case of $%s", usd, reservation.usd)
        for (_, ledger), hold in zip(self._ledgers, reservation.holds, strict=True):
            ledger.settle(hold, usd)
        self._settled.set()

    def reserve_batch(self, label: str, usd: Sequence[Decimal]) -> int:
        """Hold as many of the leading requests' worst cases as fit under every cap, for the batch ``label``; how
        many. What is held outlives this process, see :meth:`keep_batches`."""
        count = len(usd)
        for number, (_, ledger) in enumerate(self._ledgers):
            fits = ledger.hold_batch(label, usd[:count])
            if fits < count:
                surplus = sum(usd[fits:count], Decimal(0))
                for _, earlier in self._ledgers[:number]:
                    earlier.settle_batch(label, surplus, Decimal(0))
                count = fits
        return count

    def settle_batch(self, label: str, reserved: Decimal, usd: Decimal | None) -> None:
        """Replace one request's part of a batch's reservation by what was paid for it; None as in :meth:`settle`."""
        for _, ledger in self._ledgers:
            ledger.settle_batch(label, reserved, usd)

    def keep_batches(self, labels: Collection[str]) -> None:
        """Give back what this run holds for any batch but these."""
        for _, ledger in self._ledgers:
            ledger.keep_batches(labels)

    def why_not(self, usd: Decimal) -> BudgetExceeded:
        """The error that says why a request with this worst case does not fit."""
        key, ledger = min(self._ledgers, key=lambda entry: entry[1].cap_usd - entry[1].spent_usd)
        return BudgetExceeded(_refusal(key, ledger, usd))

    def close(self) -> None:
        for _, ledger in self._ledgers:
            ledger.close()

    def _try(self, usd: Decimal) -> Reservation | _Refusal:
        holds: list[Hold] = []
        for key, ledger in self._ledgers:
            hold = ledger.hold(usd)
            if isinstance(hold, Hold):
                holds.append(hold)
                continue
            for (_, earlier), taken in zip(self._ledgers, holds, strict=False):
                earlier.settle(taken, Decimal(0))
            return _Refusal(hold == "never", _refusal(key, ledger, usd))
        return Reservation(usd, tuple(holds))


@dataclass(frozen=True, slots=True)
class _Refusal:
    final: bool
    message: str


def _refusal(key: str, ledger: Ledger, usd: Decimal) -> str:
    return (
        f"{key}={ledger.cap_usd.normalize():f} is used up: ${ledger.spent_usd:.4f} is spent, and the next request "
        f"can cost up to ${usd:.4f}"
    )
