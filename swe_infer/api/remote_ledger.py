"""Ledgers and rate limiters that a server keeps (:mod:`swe_infer.api.budget_client`).

A reservation whose reply is lost is released with the next call. Changes that would add up have an id, so that the
server makes each once. Calls are numbered, so that a server that was stopped for a while ignores old calls that it
reads after a new one.
"""

from __future__ import annotations

import itertools
import logging
import socket
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any, TypeVar

from swe_infer.api.budget_address import BudgetAddress
from swe_infer.api.budget_client import PAUSE_S, TIMEOUT_S, BudgetClient, Unreachable, one_of
from swe_infer.api.coordination import Busy
from swe_infer.api.ledger import CapLedger, LedgerEntry, Refusal, Remaining, from_pico, new_entry_id, to_pico
from swe_infer.errors import StoreError
from swe_infer.interrupts import INTERRUPTS

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_TIMEOUT_PER_AMOUNT_S = 0.001
"""Added to the timeout for each request of a batch."""

_nothing = one_of(None)


def _remaining(result: Any) -> Remaining:
    available, unspent = map(Decimal, result)
    if not (available.is_finite() and unspent.is_finite()):
        raise ValueError
    return Remaining(available, unspent)


def _dollars(result: Any) -> Decimal:
    usd = Decimal(result)
    if not (usd.is_finite() and usd >= 0):
        raise ValueError
    return usd


def _wait_s(result: Any) -> float:
    wait_s = float(result)
    if not 0 <= wait_s < float("inf"):
        raise ValueError
    return wait_s


def _indexes(count: int) -> Callable[[Any], list[int]]:
    """Checks that a result is a list of different indexes below ``count``, in order."""

    def read(result: Any) -> list[int]:
        indexes = list(map(int, result))
        if indexes != sorted({index for index in indexes if 0 <= index < count}):
            raise ValueError
        return indexes

    return read


def _until_reply(call: Callable[[], _T]) -> _T:
    """Repeats a call until the server replies, for up to a minute. The call must be safe to repeat."""
    while True:
        try:
            return call()
        except Unreachable:
            time.sleep(PAUSE_S)


class RemoteLedger(CapLedger):
    """A ledger that a server keeps.

    Args:
        address: of the server, with the ledger's name.
        run: the name of the run in the ledger.
        key: see :class:`BudgetClient`.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, cap_usd: Decimal, run: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._cap = self._unspent = cap_usd
        self._caller = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "run": run, "cap_usd": str(cap_usd)}
        self._numbers = itertools.count(1)
        self._charged: list[tuple[int, str]] = []
        """Ids of reservations, and the dollars that replace them; the server does not have them yet."""
        self._refunded: list[tuple[str, str]] = []
        """Ids of refunds, and dollars; the server does not have them yet."""
        try:
            self._call_until_reply("beat", _nothing)
        except BaseException:
            self._client.close()
            raise

    @property
    def cap_usd(self) -> Decimal:
        return self._cap

    @property
    def spent_usd(self) -> Decimal:
        """As in the base class; the last known value while the server does not reply."""
        with suppress(Busy):  # the server does not reply
            self.remaining()
        return self._cap - self._unspent

    def reserve(self, usd: Decimal) -> LedgerEntry | Refusal:
        entry = LedgerEntry(new_entry_id(), to_pico(usd))
        answer: Any = False
        calls = self._client.calls
        try:
            answer = self._call(
                "reserve", one_of(True, "wait", "cannot_fit"), id=entry.id, usd=str(from_pico(entry.amount))
            )
        finally:
            if answer is False and self._client.calls > calls:  # it may be reserved
                self._charged.append((entry.id, "0"))
        return entry if answer is True else answer

    def reserve_each(self, amounts: Sequence[Decimal]) -> list[LedgerEntry | Refusal]:
        results: list[LedgerEntry | Refusal] = []
        try:
            for usd in amounts:
                results.append(self.reserve(usd))
        except BaseException:
            for entry in results:
                if isinstance(entry, LedgerEntry):
                    self.charge_later(entry, Decimal(0))
            raise
        return results

    def charge(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = self.charge_later(entry, usd)
        self.write_charges()
        return charged

    def charge_later(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = from_pico(entry.amount if usd is None else to_pico(usd))
        self._charged.append((entry.id, str(charged)))
        return charged

    def write_charges(self) -> None:
        if self._charged or self._refunded:
            self.beat()

    def refund(self, usd: Decimal) -> None:
        self._refunded.append((uuid.uuid4().hex, str(usd)))  # with the next call

    def remaining(self, *, wait: bool = False) -> Remaining:
        call = self._call_until_reply if wait else self._call
        remaining = call("remaining", _remaining)
        self._unspent = remaining.unspent
        return remaining

    def reserve_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        usd = [str(from_pico(to_pico(amount))) for amount in amounts]
        timeout_s = TIMEOUT_S + _TIMEOUT_PER_AMOUNT_S * len(usd)
        return self._call_until_reply("reserve_batch", _indexes(len(usd)), timeout_s=timeout_s, label=label, usd=usd)

    def charge_batch(self, label: str, held: Decimal, paid: Decimal | None) -> Decimal:
        charged = from_pico(to_pico(held if paid is None else paid))
        change = uuid.uuid4().hex
        self._call_until_reply("charge_batch", _nothing, label=label, held=str(held), usd=str(charged), change=change)
        return charged

    def release_other_batches(self, labels: Collection[str]) -> None:
        self._call_until_reply("release_other_batches", _nothing, labels=sorted(labels))

    def other_runs_with_batches(self) -> list[str]:
        return self._call("other_runs_with_batches", lambda names: list(map(str, names)))

    def record_earlier_spending(self, usd: Decimal) -> Decimal:
        return self._call_until_reply("record_earlier_spending", _dollars, usd=str(usd))

    def beat(self) -> None:
        self._call("beat", _nothing)

    def close(self) -> None:
        """As in the base class. A server that does not reply charges the rest when this process counts as dead."""
        try:
            self._call_until_reply("close", _nothing)
        except StoreError as error:
            logger.log(logging.DEBUG if self._client.is_silent else logging.WARNING, "%s", error)
        finally:
            self._client.close()

    def _call_until_reply(self, method: str, read: Callable[[Any], _T], **arguments: Any) -> _T:
        return _until_reply(lambda: self._call(method, read, fail_fast=INTERRUPTS.stopping, **arguments))

    def _call(
        self,
        method: str,
        read: Callable[[Any], _T],
        *,
        timeout_s: float = TIMEOUT_S,
        fail_fast: bool = True,
        **arguments: Any,
    ) -> _T:
        """Calls the server, which first writes what is charged and refunded."""
        charged, refunded = self._charged[:], self._refunded[:]
        body = {
            **self._caller, "number": next(self._numbers), "charged": charged, "refunded": refunded, **arguments,
        }  # fmt: skip
        result = self._client.call("ledgers", method, body, read, timeout_s=timeout_s, fail_fast=fail_fast)
        del self._charged[: len(charged)]
        del self._refunded[: len(refunded)]
        return result


class RemoteRateLimiter:
    """Schedules that a server keeps; see :class:`~swe_infer.api.rate_limits.SharedRateLimiter`. While the server does
    not reply, nothing may be sent.

    Args:
        address: of the server, with the rate limiter's name.
        key: see :class:`BudgetClient`.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._paused_until = 0.0
        """Kept here too, since the server may not reply when a pause begins."""
        try:
            _until_reply(lambda: self._pause(0.0))
        except BaseException:
            self._client.close()
            raise

    def acquire(self, amounts: Sequence[float], rates: Sequence[float | None]) -> float:
        """As :meth:`SharedRateLimiter.acquire`.

        Raises:
            StoreError: the server has not replied for a minute, or refuses the call.
        """
        now = time.monotonic()
        if now < self._paused_until:
            return self._paused_until - now
        arguments = {"amounts": list(amounts), "rates": list(rates)}
        try:
            return self._client.call("limits", "acquire", arguments, _wait_s)
        except Busy:
            return PAUSE_S

    def pause(self, seconds: float) -> None:
        """Lets no run send for ``seconds``."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        with suppress(StoreError):  # the next request reports it
            self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        self._client.call("limits", "pause", {"seconds": seconds}, _nothing)

    def close(self) -> None:
        self._client.close()
