"""A ledger of dollars that many processes share: what was spent, and what is held for requests in flight.

File format: one SQLite database, written by short immediate transactions, so that any number of processes can hold
parts of one cap together and a killed one leaves a state that the next opener understands. Amounts are whole
picodollars (10^-12), which holds every listed price exactly; what must be rounded is rounded up.

* ``spent(run, amount)``: settled dollars of each run.
* ``held(id, run, owner, amount)``: the worst case of each request that may be in flight.
  A hold for a provider's batch belongs to the batch, which lives on when its process does not.
* ``learnt(id, share)``: the highest share of its worst case that any settled request cost, in millionths.

A dead owner (see :mod:`swe_infer.api.coordination`) loses its holds. Its requests were in flight, so a provider may
bill them: they are charged at that highest share, and the rest is free again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Literal

from swe_infer.api.coordination import Interrupted, SharedDatabase
from swe_infer.errors import StoreError
from swe_infer.locks import Locks

log = logging.getLogger(__name__)

_PICO = Decimal(10) ** 12
_SHARE = 1_000_000  # the learnt share is kept in millionths
_MARGIN = 1.1  # on top of the highest share seen
_BATCH = "batch:"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, amount INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, owner TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS learnt (id INTEGER PRIMARY KEY CHECK (id = 1), share INTEGER NOT NULL);
"""

Refused = Literal["wait", "never"]
"""``wait``: it may fit once others have settled. ``never``: what is spent already leaves no room for it."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """A part of the cap, set aside until :meth:`Ledger.settle`."""

    id: int
    amount: int


@dataclass(frozen=True, slots=True)
class Left:
    """Dollars of a cap that are not spent. ``now``: beside everything held; ``ever``: if all of that comes back."""

    now: Decimal
    ever: Decimal


class Ledger:
    """One cap over everything that is paid through one file.

    Args:
        path: the database, made where it does not exist; None keeps it in memory, for one process.
        cap_usd: the most that all runs of the ledger may spend together.
        run: under which name this process's spending is kept.
        locks: how other processes are kept from writing at the same time.
    """

    def __init__(self, path: Path | None, cap_usd: Decimal, run: str, locks: Locks = "os") -> None:
        self._cap = int((cap_usd * _PICO).to_integral_value(rounding=ROUND_FLOOR))
        self._run = run
        self._unsettled: list[tuple[LedgerEntry, Decimal | None]] = []
        self._db = SharedDatabase(path, f"{path} (the budget's ledger)", _SCHEMA, locks=locks)
        try:
            with self._db.transaction():
                self._db.beat()
                self._release_dead()
        except BaseException:
            self._db.close()
            raise

    def hold(self, usd: Decimal) -> LedgerEntry | Refused:
        """Set ``usd`` aside, if the cap has room for it beside everything spent and held."""
        amount = to_pico(usd)
        with self._db.transaction():
            self._db.beat()
            spent, held = self._sums()
            if spent + held + amount > self._cap and self._release_dead():
                spent, held = self._sums()
            if spent + amount > self._cap:
                return "never"
            if spent + held + amount > self._cap:
                return "wait"
            self._hold(self._db.owner, amount)
            return LedgerEntry(self._value("SELECT last_insert_rowid()"), amount)

    def settle(self, hold: LedgerEntry, usd: Decimal | None) -> None:
        """Replace a hold by what was paid; None: it is not known whether and how much (see :meth:`likely`).

        Raises:
            Interrupted: it will be tried once more by :meth:`close`.
        """
        try:
            with self._db.transaction():
                self._replace(hold, usd)
        except Interrupted:
            self._unsettled.append((hold, usd))
            raise

    def _replace(self, hold: LedgerEntry, usd: Decimal | None) -> None:
        amount = self._likely(hold.amount) if usd is None else to_pico(usd)
        self._db.execute("DELETE FROM held WHERE id = ?", (hold.id,))
        self._spend(self._run, amount)
        if usd is not None and hold.amount > 0 and amount > 0:
            share = -(-amount * _SHARE // hold.amount)
            self._db.execute(
                "INSERT INTO learnt VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET share = max(share, ?)",
                (share, share),
            )

    def left(self) -> Left:
        """What is left of the cap. What processes that are gone held is settled first."""
        with self._db.transaction():
            self._db.beat()
            self._release_dead()
            spent, held = self._sums()
        return Left(Decimal(self._cap - spent - held) / _PICO, Decimal(self._cap - spent) / _PICO)

    def hold_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        """Set aside those of ``amounts`` that fit beside each other, under the name of a provider's batch. One that
        does not fit is passed over. Returns their indexes, in order.

        The hold belongs to the batch, not to this process: a batch outlives who submitted it.
        """
        with self._db.transaction():
            spent, held = self._sums()
            free, total = self._cap - spent - held, 0
            fitting: list[int] = []
            for index, amount in enumerate(map(to_pico, amounts)):
                if total + amount <= free:
                    total += amount
                    fitting.append(index)
            if fitting:
                self._hold(_BATCH + label, total)
            return fitting

    def settle_batch(self, label: str, held: Decimal, paid: Decimal | None) -> None:
        """Replace ``held``, a part of a batch's hold, by what was paid for it; None: see :meth:`settle`."""
        with self._db.transaction():
            part = to_pico(held)
            self._db.execute(
                "UPDATE held SET amount = max(0, amount - ?) WHERE run = ? AND owner = ?",
                (part, self._run, _BATCH + label),
            )
            self._spend(self._run, self._likely(part) if paid is None else to_pico(paid))

    def keep_batches(self, labels: Collection[str]) -> None:
        """Give back what this run holds for any batch but these."""
        keep = {_BATCH + label for label in labels}
        with self._db.transaction():
            rows = self._db.execute("SELECT id, owner FROM held WHERE run = ?", (self._run,))
            for row, owner in rows:
                if owner.startswith(_BATCH) and owner not in keep:
                    self._db.execute("DELETE FROM held WHERE id = ?", (row,))

    def count_earlier(self, usd: Decimal) -> None:
        """What this run spent before is at least ``usd``: raise the ledger's figure to it where it knows less."""
        with self._db.transaction():
            known = self._value("SELECT amount FROM spent WHERE run = ?", (self._run,))
            self._spend(self._run, max(0, to_pico(usd) - known))

    @property
    def spent_usd(self) -> Decimal:
        """Settled dollars of all runs."""
        return Decimal(self._sums()[0]) / _PICO

    @property
    def cap_usd(self) -> Decimal:
        return Decimal(self._cap) / _PICO

    def likely(self, usd: Decimal) -> Decimal:
        """What a request with the worst case ``usd`` comes to at most, by all that this ledger has seen; ``usd``
        itself before the first answer."""
        return Decimal(self._likely(to_pico(usd))) / _PICO

    def close(self) -> None:
        """Leave the ledger. Holds that were not settled are charged as those of a dead process are; where the disk
        takes nothing more, the next opener does that."""
        try:
            with self._db.transaction():
                for hold, usd in self._unsettled:
                    self._replace(hold, usd)
                self._release(self._db.owner)
        except StoreError as error:
            log.log(logging.DEBUG if isinstance(error, Interrupted) else logging.WARNING, "%s", error)
        finally:
            self._db.close()

    def _value(self, query: str, arguments: tuple[str, ...] = ()) -> int:
        rows = self._db.execute(query, arguments)
        return int(rows[0][0] or 0) if rows else 0

    def _sums(self) -> tuple[int, int]:
        return self._value("SELECT sum(amount) FROM spent"), self._value("SELECT sum(amount) FROM held")

    def _spend(self, run: str, amount: int) -> None:
        if amount:
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET amount = amount + ?",
                (run, amount, amount),
            )

    def _hold(self, owner: str, amount: int) -> None:
        self._db.execute("INSERT INTO held (run, owner, amount) VALUES (?, ?, ?)", (self._run, owner, amount))

    def _likely(self, amount: int) -> int:
        share = self._value("SELECT share FROM learnt")
        return amount if share == 0 else min(amount, int(amount * share * _MARGIN) // _SHARE + 1)

    def _release_dead(self) -> bool:
        """Settle the holds of processes that are gone; whether there was any."""
        dead = self._db.dead_owners()
        for owner in dead:
            self._release(owner)
        return bool(dead)

    def _release(self, owner: str) -> None:
        for run, amount in self._db.execute("SELECT run, amount FROM held WHERE owner = ?", (owner,)):
            self._spend(run, self._likely(amount))
        self._db.execute("DELETE FROM held WHERE owner = ?", (owner,))
        self._db.remove_owner(owner)


def to_pico(usd: Decimal) -> int:
    """Whole picodollars, rounded up."""
    return int((usd * _PICO).to_integral_value(rounding=ROUND_CEILING))
