"""Hard caps. The worst case of a request is held before it is sent and settled after it, so that no number of
requests in flight, processes or restarts can pass a cap together.

What does not fit beside the requests in flight waits for them to settle, because they usually cost less than what is
held for them. Of those that wait the largest that fits goes first, so that little of a cap is left in the end. Nobody
waits for ever: one that others have passed often enough goes next, and others stay behind it until it has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal

from swe_infer.api.coordination import Interrupted
from swe_infer.api.ledger import Ledger, LedgerEntry, Left
from swe_infer.api.limits import Halted
from swe_infer.errors import BudgetExceeded, StoreError

logger = logging.getLogger(__name__)

_POLL_S = 0.1
"""Other processes settle without telling us."""
_MOST_PASSES = 16
"""So many later requests may go before one that waits."""
_USUAL_SHARE = Decimal("0.25")
"""Of its worst case a request comes to about this much, until answers have shown more. Used for order alone."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst case of one request, held in every ledger."""

    usd: Decimal
    holds: tuple[LedgerEntry, ...]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request that waits for its reservation.

    Args:
        firm: ``usd`` is the tightest bound there is; False while that is being found.
        passed: how many later requests went before this one.
    """

    usd: Decimal
    granted: asyncio.Future[Reservation]
    firm: bool
    passed: int = 0


class CostBudget:
    """Every cap that one run is under.

    Args:
        ledgers: one for each cap, with the key that set it, such as ``budget.max_usd``. None at all: no cap.
    """

    def __init__(self, ledgers: Sequence[tuple[str, Ledger]] = ()) -> None:
        self._ledgers = tuple(ledgers)
        self._waiters: list[_Waiter] = []
        """In the order of asking."""
        self._poll: asyncio.TimerHandle | None = None
        self._halted = False
        self._ever: Decimal | None = None
        self._held_usd = self._paid_usd = Decimal(0)

    @property
    def waiting(self) -> int:
        """Requests that wait for a reservation."""
        return len(self._waiters)

    async def reserve(self, usd: Decimal, tighter: Callable[[], Awaitable[Decimal]] | None = None) -> Reservation:
        """Hold ``usd`` in every ledger, waiting for others to settle where that may help.

        Cancelling it is safe at any moment: nothing stays held.

        Args:
            usd: a sure bound on the price that is cheap to have.
            tighter: a smaller sure bound that costs work, asked for once and only where ``usd`` does not fit.

        Raises:
            BudgetExceeded: what is spent already leaves no room for this request.
            Halted: see :meth:`halt`.
        """
        if not self._ledgers:
            return Reservation(usd, ())
        try:
            if not self._waiters and (reservation := self._hold(usd)) is not None:
                return reservation
        except Interrupted as error:
            raise Halted("the run is stopping") from error
        waiter = _Waiter(usd, asyncio.get_running_loop().create_future(), firm=tighter is None)
        self._waiters.append(waiter)
        try:
            self._admit()
            if tighter is not None:
                if not waiter.granted.done():
                    waiter.usd = min(usd, await tighter())
                waiter.firm = True
                self._admit()
            reservation = await waiter.granted
        except BaseException:
            self._waiters.remove(waiter)
            self._abandon(waiter)
            raise
        self._waiters.remove(waiter)
        return reservation

    def settle(self, reservation: Reservation, usd: Decimal | None) -> None:
        """Replace a reservation by what was paid; None: the provider may have billed it, how much is not known."""
        if usd is not None and usd > reservation.usd and self._ledgers:
            logger.warning("a request cost $%s, more than its worst case of $%s", usd, reservation.usd)
        failed: StoreError | None = None
        for (_, ledger), hold in zip(self._ledgers, reservation.holds, strict=True):
            try:
                ledger.settle(hold, usd)
            except StoreError as error:  # the others are settled all the same
                failed = error
        if failed is not None:
            raise failed
        if usd:
            self._held_usd += reservation.usd
            self._paid_usd += usd
        self._admit()

    def never(self, usd: Decimal) -> bool:
        """Whether it is known already that ``usd`` does not fit, whatever comes back. Asks no ledger."""
        return self._ever is not None and usd > self._ever

    def halt(self) -> None:
        """Whoever waits, now or later, gets :class:`Halted`."""
        self._halted = True
        self._admit()

    def reserve_batch(self, label: str, usd: Sequence[Decimal]) -> list[int]:
        """Hold those of the requests' worst cases that fit beside each other under every cap, for the batch
        ``label``. Returns their indexes, in order. What is held outlives this process, see :meth:`keep_batches`."""
        fitting = list(range(len(usd)))
        for number, (_, ledger) in enumerate(self._ledgers):
            held = ledger.hold_batch(label, [usd[index] for index in fitting])
            kept = [fitting[index] for index in held]
            surplus = sum((usd[index] for index in set(fitting) - set(kept)), Decimal(0))
            if surplus:
                for _, earlier in self._ledgers[:number]:
                    earlier.settle_batch(label, surplus, Decimal(0))
            fitting = kept
        return fitting

    def settle_batch(self, label: str, reserved: Decimal, usd: Decimal | None) -> None:
        """Replace one request's part of a batch's reservation by what was paid for it; None as in :meth:`settle`."""
        for _, ledger in self._ledgers:
            ledger.settle_batch(label, reserved, usd)

    def keep_batches(self, labels: Collection[str]) -> None:
        """Give back what this run holds for any batch but these."""
        for _, ledger in self._ledgers:
            ledger.keep_batches(labels)

    def left(self) -> Left | None:
        """What is left under every cap; None: there is no cap."""
        if not self._ledgers:
            return None
        lefts = [ledger.left() for _, ledger in self._ledgers]
        left = Left(min(each.now for each in lefts), min(each.ever for each in lefts))
        self._ever = left.ever
        return left

    def why_not(self, usd: Decimal, *, nothing_fits: bool = False) -> BudgetExceeded:
        """The error that says why a request with this worst case does not fit."""
        key, ledger = min(self._ledgers, key=lambda entry: entry[1].cap_usd - entry[1].spent_usd)
        message = (
            f"{key}={ledger.cap_usd.normalize():f} is used up: ${_shown(ledger.spent_usd)} is spent, and the next "
            f"request can cost up to ${_shown(usd)}"
        )
        return BudgetExceeded(message, usd=usd, nothing_fits=nothing_fits)

    def close(self) -> None:
        self._stop_polling()
        for _, ledger in self._ledgers:
            ledger.close()

    def _hold(self, usd: Decimal) -> Reservation | None:
        """Hold ``usd`` in every ledger, or in none of them."""
        holds: list[LedgerEntry] = []
        for _, ledger in self._ledgers:
            hold = ledger.hold(usd)
            if not isinstance(hold, LedgerEntry):
                for (_, earlier), taken in zip(self._ledgers, holds, strict=False):
                    earlier.settle(taken, Decimal(0))
                return None
            holds.append(hold)
        return Reservation(usd, tuple(holds))

    # Those who wait.

    def _admit(self) -> None:
        """Grant what can be granted to those who wait, refuse what never can, and look again in a moment."""
        self._stop_polling()
        try:
            if self._open() and not self._halted:
                self._grant()
        except Interrupted:
            self._halted = True
        except StoreError as error:  # nobody can be granted anything
            for waiter in self._open():
                waiter.granted.set_exception(error)
        if self._halted:
            for waiter in self._open():
                waiter.granted.set_exception(Halted("the run is stopping"))
        if self._open():
            self._poll = asyncio.get_running_loop().call_later(_POLL_S, self._admit)

    def _open(self) -> list[_Waiter]:
        return [waiter for waiter in self._waiters if not waiter.granted.done()]

    def _grant(self) -> None:
        while (left := self.left()) is not None:
            for waiter in self._open():
                if waiter.firm and waiter.usd > left.ever:
                    waiter.granted.set_exception(self.why_not(waiter.usd))
            chosen = self._chosen(left)
            if chosen is None:
                return
            reservation = self._hold(chosen.usd)
            if reservation is None:  # another process was quicker
                return
            for older in self._waiters[: self._waiters.index(chosen)]:
                older.passed += older.firm
            chosen.granted.set_result(reservation)

    def _chosen(self, left: Left) -> _Waiter | None:
        """Who goes next; None: nobody yet.

        What the requests in flight will come to is estimated for the order alone: one that fits now may not take
        what a larger one needs that is likely to fit once they have settled.
        """
        waiting = [waiter for waiter in self._open() if waiter.usd <= left.ever]
        firm = [waiter for waiter in waiting if waiter.firm]
        if firm and firm[0].passed >= _MOST_PASSES:
            return firm[0] if firm[0].usd <= left.now else None
        share = self._paid_usd / self._held_usd if self._held_usd else _USUAL_SHARE
        likely = left.ever - share * (left.ever - left.now)
        kept = max((waiter.usd for waiter in firm if left.now < waiter.usd <= likely), default=Decimal(0))
        most = min(left.now, likely - kept) if kept else left.now
        fitting = [waiter for waiter in waiting if waiter.usd <= most]
        return max(fitting, key=lambda waiter: waiter.usd, default=None)

    def _abandon(self, waiter: _Waiter) -> None:
        """Give back what a request was granted that no longer waits for it, and let others go before its turn."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            try:
                self.settle(granted.result(), Decimal(0))
            except StoreError as error:  # it stays held, and is settled when the ledger is left
                logger.warning("%s", error)
        else:
            granted.cancel()
            self._admit()

    def _stop_polling(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None


def _shown(usd: Decimal) -> str:
    """Dollars with four decimals, or six where four would show nothing."""
    return f"{usd:.4f}" if usd == 0 or usd >= Decimal("0.001") else f"{usd:.6f}"
