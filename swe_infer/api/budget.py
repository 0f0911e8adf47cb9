"""Budgets are hard caps. The worst case of a request is reserved in the budget before it is sent, and replaced by its
cost afterwards. So requests in flight, processes and restarts cannot exceed a cap together.

A request that does not fit beside those in flight waits for them, because they usually cost less than is reserved. Of
the waiting requests, the largest that fits goes first, so that little of a cap is left unused. No request waits
forever: one that was overtaken often enough goes next.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from swe_infer.api.budget_client import Unreachable
from swe_infer.api.coordination import Interrupted
from swe_infer.api.ledger import CapLedger, LedgerEntry, Remaining
from swe_infer.api.limits import Halted
from swe_infer.errors import BudgetExceeded, StoreError

logger = logging.getLogger(__name__)

_WRITE_S = 0.1
"""Charges are written after this time, unless a reservation comes first."""
_POLL_S = 0.1
"""Other processes release reservations without a notification."""
_UNREACHABLE_POLL_S = 1.0
_BEAT_S = 15.0
"""A process that shows other machines no sign of life for much longer counts as dead."""
_MAX_OVERTAKEN = 16
"""How many later requests may overtake a waiting one."""
_MOST_NAMED = 3
"""Runs that a line names."""
_USUAL_SHARE = Decimal("0.25")
"""Assumed cost of a request as a share of its worst case, before the first answers. Used for ordering only."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """The worst case of one request, reserved in every ledger."""

    usd: Decimal
    entries: tuple[LedgerEntry, ...]


@dataclass(eq=False, slots=True)
class _Waiter:
    """A request that waits for its reservation.

    Args:
        is_final: False while a tighter bound than ``usd`` is being computed.
        overtaken: how many later requests went before this one.
    """

    usd: Decimal
    granted: asyncio.Future[Reservation]
    is_final: bool
    overtaken: int = 0


class CostBudget:
    """All caps of one run.

    Args:
        ledgers: one for each cap, with the key that set it, such as ``budget.max_usd``. Empty: no cap.
    """

    def __init__(self, ledgers: Sequence[tuple[str, CapLedger]] = ()) -> None:
        self._ledgers = tuple(ledgers)
        self._arrived: list[tuple[Decimal, asyncio.Future[Reservation | None]]] = []
        """Requests of this turn of the event loop, which are reserved in one transaction."""
        self._waiters: list[_Waiter] = []
        """Oldest first."""
        self._poll: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._write_failed = False
        self._halted = False
        self._in_flight = 0
        self._wait_is_logged = False
        self._unspent: Decimal | None = None
        self._reserved_usd = self._paid_usd = Decimal(0)
        self.exceeded = 0
        """Requests that cost more than was reserved for them. Earlier reservations of others may not fit any more."""

    @property
    def has_caps(self) -> bool:
        return bool(self._ledgers)

    @property
    def waiting(self) -> int:
        """Requests that wait for a reservation."""
        return len(self._waiters)

    async def reserve(self, usd: Decimal, tighter: Callable[[], Awaitable[Decimal]] | None = None) -> Reservation:
        """Reserves ``usd`` in every ledger, and waits for other requests if that may help.

        It may be cancelled at any time; nothing stays reserved then.

        Args:
            usd: an upper bound on the price that is cheap to compute.
            tighter: computes a smaller upper bound; called once, and only if ``usd`` does not fit.

        Raises:
            BudgetExceeded: too much is spent already for this request.
            Halted: see :meth:`halt`.
        """
        if not self._ledgers:
            return Reservation(usd, ())
        if self._beat is None:
            self._show_life()
        try:
            if not self._waiters and (reservation := await self._reserve_at_once(usd)) is not None:
                return reservation
        except Interrupted as error:
            raise Halted("the run is stopping") from error
        except Unreachable:
            pass  # the request waits for the server
        waiter = _Waiter(usd, asyncio.get_running_loop().create_future(), is_final=tighter is None)
        self._waiters.append(waiter)
        try:
            self._admit()
            if tighter is not None:
                if not waiter.granted.done():
                    waiter.usd = min(usd, await tighter())
                waiter.is_final = True
                self._admit()
            reservation = await waiter.granted
        except BaseException:
            self._waiters.remove(waiter)
            self._abandon(waiter)
            raise
        self._waiters.remove(waiter)
        return reservation

    def charge(self, reservation: Reservation, usd: Decimal | None) -> Decimal:
        """Replaces a reservation by what was paid; None: the provider may have billed an unknown amount, so all of it
        counts. Returns what counts under the caps. The ledgers are written with the next reservation, or soon."""
        if usd is not None and usd > reservation.usd and self._ledgers:
            self.exceeded += 1
            logger.warning("a request cost $%s, more than its worst case of $%s", usd, reservation.usd)
        entries = zip(self._ledgers, reservation.entries, strict=True)
        charged = [ledger.charge_later(entry, usd) for (_, ledger), entry in entries]
        if self._ledgers:
            self._in_flight -= 1
            self._write_soon()
        if usd:
            self._reserved_usd += reservation.usd
            self._paid_usd += usd
        self._admit()
        return max(charged, default=reservation.usd if usd is None else usd)

    def refund(self, usd: Decimal) -> None:
        """Subtracts a part of what was charged under every cap, as it turned out not to be billed."""
        for _, ledger in self._ledgers:
            ledger.refund(usd)
        self._admit()

    @property
    def may_refuse(self) -> bool:
        """Whether :meth:`cannot_fit` may be true, as requests have waited for a reservation."""
        return self._unspent is not None

    def cannot_fit(self, usd: Decimal) -> bool:
        """Whether ``usd`` is known never to fit. Does not read the ledgers."""
        return self._unspent is not None and usd > self._unspent

    def halt(self) -> None:
        """All requests that wait, now or later, raise :class:`Halted`."""
        self._halted = True
        self._admit()

    def reserve_batch(self, label: str, usd: Sequence[Decimal]) -> list[int]:
        """Reserves the worst cases of as many requests as fit together under every cap, for the batch ``label``.
        Returns their indexes, in order. The reservation outlives this process; see :meth:`release_other_batches`."""
        fitting = list(range(len(usd)))
        for number, (_, ledger) in enumerate(self._ledgers):
            held = ledger.reserve_batch(label, [usd[index] for index in fitting])
            kept = [fitting[index] for index in held]
            surplus = sum((usd[index] for index in set(fitting) - set(kept)), Decimal(0))
            if surplus:
                for _, earlier in self._ledgers[:number]:
                    earlier.charge_batch(label, surplus, Decimal(0))
            fitting = kept
        return fitting

    def charge_batch(self, label: str, reserved: Decimal, usd: Decimal | None) -> Decimal:
        """Replaces one request's part of a batch's reservation by what was paid for it; None: as in :meth:`charge`.
        Returns the same as :meth:`charge`."""
        charged = [ledger.charge_batch(label, reserved, usd) for _, ledger in self._ledgers]
        return max(charged, default=reserved if usd is None else usd)

    def release_other_batches(self, labels: Collection[str]) -> None:
        """Releases what this run reserved for all batches except ``labels``."""
        for _, ledger in self._ledgers:
            ledger.release_other_batches(labels)

    def remaining(self, *, wait: bool = False) -> Remaining | None:
        """The smallest amount that is left under any cap; None: there is no cap.

        Args:
            wait: until a ledger's server replies. It blocks the event loop.
        """
        if not self._ledgers:
            return None
        caps = [ledger.remaining(wait=wait) for _, ledger in self._ledgers]
        remaining = Remaining(min(cap.available for cap in caps), min(cap.unspent for cap in caps))
        self._unspent = remaining.unspent
        return remaining

    def unspent_usd(self) -> Decimal:
        """The smallest amount that is not spent under a cap. There must be one."""
        return min(ledger.cap_usd - ledger.spent_usd for _, ledger in self._ledgers)

    def explain_refusal(self, usd: Decimal, *, nothing_fits: bool = False) -> BudgetExceeded:
        """The error for a request with this worst case that does not fit."""
        key, ledger = min(self._ledgers, key=lambda entry: entry[1].cap_usd - entry[1].spent_usd)
        message = (
            f"{key}={ledger.cap_usd.normalize():f} is used up: ${_shown(ledger.spent_usd)} is spent, and the next "
            f"request can cost up to ${_shown(usd)}"
        )
        return BudgetExceeded(message, usd=usd, nothing_fits=nothing_fits)

    def log_wait(self) -> None:
        """Logs, once, that requests wait for what is reserved for batches of other runs, which may take a day."""
        for key, ledger in self._ledgers:
            with suppress(StoreError):  # the next reservation reports it
                if not self._wait_is_logged and (runs := ledger.other_runs_with_batches()):
                    self._wait_is_logged = True
                    logger.warning(
                        "%s=%s: requests wait for what is reserved for open batches of other runs (%s), which "
                        "their commands collect, or give up with runner.batches.unknown=again if they are lost",
                        key, f"{ledger.cap_usd.normalize():f}", ", ".join(runs[:_MOST_NAMED]),
                    )  # fmt: skip

    def close(self) -> None:
        self._stop_polling()
        for timer in (self._writing, self._beat):
            if timer is not None:
                timer.cancel()
        for _, ledger in self._ledgers:
            ledger.close()

    async def _reserve_at_once(self, usd: Decimal) -> Reservation | None:
        """Reserves ``usd`` together with the other requests of this turn of the event loop; None if it does not fit.

        It may be cancelled at any time; nothing stays reserved then.
        """
        loop = asyncio.get_running_loop()
        if not self._arrived:
            loop.call_soon(self._reserve_arrived)
        granted: asyncio.Future[Reservation | None] = loop.create_future()
        self._arrived.append((usd, granted))
        try:
            return await granted
        except asyncio.CancelledError:
            is_decided = granted.done() and not granted.cancelled() and granted.exception() is None
            if is_decided and (reservation := granted.result()) is not None:
                self.charge(reservation, Decimal(0))
            raise

    def _reserve_arrived(self) -> None:
        arrived = [(usd, granted) for usd, granted in self._arrived if not granted.done()]
        self._arrived.clear()
        if not arrived:
            return
        try:
            reservations = self._try_reserve([usd for usd, _ in arrived])
        except Exception as error:  # noqa: BLE001 - each request raises it
            for _, granted in arrived:
                granted.set_exception(error)
        else:
            for (_, granted), reservation in zip(arrived, reservations, strict=True):
                granted.set_result(reservation)

    def _try_reserve(self, amounts: Sequence[Decimal]) -> list[Reservation | None]:
        """Reserves each amount in every ledger, or in none (None)."""
        taken: list[list[LedgerEntry]] = [[] for _ in amounts]
        try:
            for number, (_, ledger) in enumerate(self._ledgers):
                fitting = [index for index, entries in enumerate(taken) if len(entries) == number]
                results = ledger.reserve_each([amounts[index] for index in fitting])
                for index, result in zip(fitting, results, strict=True):
                    if isinstance(result, LedgerEntry):
                        taken[index].append(result)
        finally:
            for entries in taken:
                if 0 < len(entries) < len(self._ledgers):
                    for (_, earlier), entry in zip(self._ledgers, entries, strict=False):
                        earlier.charge_later(entry, Decimal(0))
                    self._write_soon()
        reservations = [
            Reservation(usd, tuple(entries)) if len(entries) == len(self._ledgers) else None
            for usd, entries in zip(amounts, taken, strict=True)
        ]
        self._in_flight += len(reservations) - reservations.count(None)
        return reservations

    def _write_soon(self) -> None:
        if self._writing is None:
            self._writing = asyncio.get_running_loop().call_later(_WRITE_S, self._write_charges)

    def _write_charges(self) -> None:
        self._writing = None
        for _, ledger in self._ledgers:
            try:
                ledger.write_charges()
            except StoreError as error:  # the next reservation tries again, and stops the run if that fails too
                is_known = isinstance(error, Interrupted | Unreachable) or self._write_failed
                logger.log(logging.DEBUG if is_known else logging.WARNING, "%s", error)
                self._write_failed = not isinstance(error, Unreachable)

    def _show_life(self) -> None:
        """Shows other machines, every ``_BEAT_S``, that this process is alive, however long its requests take."""
        self._beat = asyncio.get_running_loop().call_later(_BEAT_S, self._show_life)
        for _, ledger in self._ledgers:
            with suppress(StoreError):  # the next reservation reports it
                ledger.beat()

    # Waiting requests.

    def _admit(self) -> None:
        """Grants what fits, refuses what cannot fit, and sets a timer if requests still wait."""
        self._stop_polling()
        poll_s = _POLL_S
        try:
            if self._pending() and not self._halted:
                self._grant()
                if self._pending() and not self._in_flight:
                    self.log_wait()
        except Interrupted:
            self._halted = True
        except Unreachable:
            poll_s = _UNREACHABLE_POLL_S
        except StoreError as error:  # no request can be granted
            for waiter in self._pending():
                waiter.granted.set_exception(error)
        if self._halted:
            for waiter in self._pending():
                waiter.granted.set_exception(Halted("the run is stopping"))
        if self._pending():
            self._poll = asyncio.get_running_loop().call_later(poll_s, self._admit)

    def _pending(self) -> list[_Waiter]:
        return [waiter for waiter in self._waiters if not waiter.granted.done()]

    def _grant(self) -> None:
        while (remaining := self.remaining()) is not None:
            for waiter in self._pending():
                if waiter.is_final and waiter.usd > remaining.unspent:
                    waiter.granted.set_exception(self.explain_refusal(waiter.usd))
            chosen = self._next_waiter(remaining)
            if chosen is None:
                return
            (reservation,) = self._try_reserve([chosen.usd])
            if reservation is None:  # another process reserved it first
                return
            for older in self._waiters[: self._waiters.index(chosen)]:
                older.overtaken += older.is_final
            chosen.granted.set_result(reservation)

    def _next_waiter(self, remaining: Remaining) -> _Waiter | None:
        """The request that goes next, or None.

        The cost of the requests in flight is estimated for the order only: a request that fits now may not use what
        a larger one needs that is likely to fit soon.
        """
        waiting = [waiter for waiter in self._pending() if waiter.usd <= remaining.unspent]
        final = [waiter for waiter in waiting if waiter.is_final]
        if final and final[0].overtaken >= _MAX_OVERTAKEN:
            return final[0] if final[0].usd <= remaining.available else None
        share = self._paid_usd / self._reserved_usd if self._reserved_usd else _USUAL_SHARE
        likely = remaining.unspent - share * (remaining.unspent - remaining.available)
        kept = max((waiter.usd for waiter in final if remaining.available < waiter.usd <= likely), default=Decimal(0))
        most = min(remaining.available, likely - kept) if kept else remaining.available
        fitting = [waiter for waiter in waiting if waiter.usd <= most]
        return max(fitting, key=lambda waiter: waiter.usd, default=None)

    def _abandon(self, waiter: _Waiter) -> None:
        """Releases what was granted to a request that was cancelled, and lets others go."""
        granted = waiter.granted
        if granted.done() and not granted.cancelled() and granted.exception() is None:
            self.charge(granted.result(), Decimal(0))
        else:
            granted.cancel()
            # Once for all requests that end together: there may be thousands.
            self._stop_polling()
            self._poll = asyncio.get_running_loop().call_later(0, self._admit)

    def _stop_polling(self) -> None:
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None


def _shown(usd: Decimal) -> str:
    """Dollars with four decimals, or six if four would show zero."""
    return f"{usd:.4f}" if usd == 0 or usd >= Decimal("0.001") else f"{usd:.6f}"
