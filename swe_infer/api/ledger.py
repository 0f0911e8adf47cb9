"""A ledger of dollars that many processes share: what was spent, and what is reserved for requests in flight.

File format: a :class:`~swe_infer.api.coordination.SharedDatabase` with two more tables. Amounts are whole
picodollars (10^-12), which represent every listed price exactly; other amounts are rounded up.

* ``spent(run, amount)``: what each run was charged.
* ``held(id, run, owner, amount)``: what is reserved for each request that may be in flight. Ids are random: an id
  that is used again would let a process charge another's reservation. The reservation for a provider's batch belongs
  to the batch, which outlives the process.
* ``applied(id, at)``: changes that a client may send again, as it did not see the reply, and when they were made.

The reservations of a dead owner are charged in full: its requests were in flight, so a provider may bill them.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from typing import Literal, Protocol

from swe_infer.api.coordination import Interrupted, RemoteOwner, SharedDatabase
from swe_infer.errors import StoreError
from swe_infer.locks import Locks

log = logging.getLogger(__name__)

_PICO = Decimal(10) ** 12
_MOST = 10**18
"""Larger amounts, which a server may state, count as this one: the file's integers have 63 bits."""
_BATCH = "batch:"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, amount INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS held (
    id INTEGER PRIMARY KEY, run TEXT NOT NULL, owner TEXT NOT NULL, amount INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS applied (id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
"""
_APPLIED_S = 3600.0
"""How long ``applied`` remembers a change; clients give up after a minute."""

Refusal = Literal["wait", "cannot_fit"]
"""``wait``: it may fit once other requests are charged. ``cannot_fit``: too much is spent already."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An amount that is reserved until :meth:`Ledger.charge`."""

    id: int
    amount: int


@dataclass(frozen=True, slots=True)
class Remaining:
    """Dollars of a cap that are left. ``available``: neither spent nor reserved. ``unspent``: reserved ones
    included."""

    available: Decimal
    unspent: Decimal


class CapLedger(Protocol):
    """One cap over everything that is paid through one ledger: a :class:`Ledger`, or
    :class:`~swe_infer.api.remote_ledger.RemoteLedger`.

    All methods raise StoreError if the ledger cannot be used."""

    @property
    def cap_usd(self) -> Decimal: ...

    @property
    def spent_usd(self) -> Decimal:
        """What all runs were charged, in dollars."""

    def reserve(self, usd: Decimal) -> LedgerEntry | Refusal:
        """Reserves ``usd`` if it fits under the cap with everything that is spent and reserved."""

    def reserve_each(self, amounts: Sequence[Decimal]) -> list[LedgerEntry | Refusal]:
        """:meth:`reserve` for each amount, in order. If it raises, nothing is reserved."""

    def charge(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        """Replaces a reservation by what was paid; None: unknown, so all of it is charged. Returns what was charged.
        If it raises, it is not written yet: the next transaction tries again."""

    def charge_later(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        """:meth:`charge` with the next transaction, which costs less than one of its own. If the process is killed
        before, the whole reservation is charged."""

    def write_charges(self) -> None:
        """Writes what :meth:`charge_later` has not written yet."""

    def refund(self, usd: Decimal) -> None:
        """Subtracts what this run was charged but not billed."""

    def remaining(self, *, wait: bool = False) -> Remaining:
        """What is left of the cap, after the reservations of dead processes are released.

        Args:
            wait: until the ledger's server replies, instead of raising an error.
        """

    def reserve_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        """Reserves as many of ``amounts`` as fit together, for the provider's batch ``label``, which is new. Returns
        their indexes, in order.

        The reservation belongs to the batch, not to this process: a batch outlives the process that submitted it.
        """

    def charge_batch(self, label: str, held: Decimal, paid: Decimal | None) -> Decimal:
        """Replaces ``held``, a part of a batch's reservation, by what was paid for it; None: as in :meth:`charge`.
        Returns what was charged."""

    def release_other_batches(self, labels: Collection[str]) -> None:
        """Releases what this run reserved for all batches except ``labels``."""

    def other_runs_with_batches(self) -> list[str]:
        """The names of other runs for whose batches something is reserved."""

    def record_earlier_spending(self, usd: Decimal) -> Decimal:
        """Raises what this run has spent to ``usd``, if the ledger has less. Returns what it has spent.

        A run has one process at a time: what earlier ones have reserved is charged first, so that it does not count
        again when they are found dead.
        """

    def beat(self) -> None:
        """Shows other machines that this process is alive."""

    def close(self) -> None:
        """Closes the ledger. What is still reserved is charged as for a dead process."""


class Ledger(CapLedger):
    """A ledger in one file.

    Args:
        path: the database, created if missing; None keeps it in memory, for one process.
        cap_usd: the most that all runs of the ledger may spend together.
        run: the name of the run in ``spent`` and ``held``.
        locks: how processes exclude each other.
        owner: whose reservations they are; None: this process.
    """

    def __init__(
        self, path: Path | None, cap_usd: Decimal, run: str, locks: Locks = "os", owner: RemoteOwner | None = None
    ) -> None:
        self._cap = int((cap_usd * _PICO).to_integral_value(rounding=ROUND_FLOOR))
        self._run = run
        self._uncharged: list[tuple[int, int]] = []
        """Ids of reservations, and the amounts that replace them."""
        self._db = SharedDatabase(path, f"{path} (the budget's ledger)", _SCHEMA, locks=locks, owner=owner)
        try:
            with self._db.transaction():
                self._db.beat()
                if owner is None:  # a server may have been stopped, see renew_owners()
                    self._release_dead()
        except BaseException:
            self._db.close()
            raise

    def reserve(self, usd: Decimal, entry_id: int | None = None) -> LedgerEntry | Refusal:
        (result,) = self._reserve([(usd, entry_id)])
        return result

    def reserve_each(self, amounts: Sequence[Decimal]) -> list[LedgerEntry | Refusal]:
        return self._reserve([(usd, None) for usd in amounts])

    def _reserve(self, amounts: Sequence[tuple[Decimal, int | None]]) -> list[LedgerEntry | Refusal]:
        """Reserves each amount that fits, in one transaction. Ids are new where they are None."""
        results: list[LedgerEntry | Refusal] = []
        with self._transaction():
            self._db.beat()
            spent, held = self._sums()
            for usd, entry_id in amounts:
                amount = to_pico(usd)
                if spent + held + amount > self._cap and self._release_dead():
                    spent, held = self._sums()
                if spent + amount > self._cap:
                    results.append("cannot_fit")
                elif spent + held + amount > self._cap:
                    results.append("wait")
                else:
                    results.append(LedgerEntry(self._add_entry(self._db.owner, amount, entry_id), amount))
                    held += amount
        return results

    def charge(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = self.charge_later(entry, usd)
        self.write_charges()
        return charged

    def charge_later(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        amount = entry.amount if usd is None else to_pico(usd)
        self._uncharged.append((entry.id, amount))
        return from_pico(amount)

    def write_charges(self) -> None:
        if self._uncharged:
            with self._transaction():
                pass  # its beginning writes them

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """A transaction that first writes what is charged."""
        with self._db.transaction():
            charged = 0
            for entry, amount in self._uncharged:
                # It is gone if another machine took this process for dead, and charged all of it.
                if self._db.execute(
                    "DELETE FROM held WHERE id = ? AND owner = ? RETURNING 1", (entry, self._db.owner)
                ):
                    charged += amount
            self._spend(self._run, min(_MOST, charged))
            yield
        self._uncharged.clear()

    def refund(self, usd: Decimal, change_id: str | None = None) -> None:
        with self._transaction():
            if self._is_applied(change_id):
                return
            amount = int((usd * _PICO).to_integral_value(rounding=ROUND_FLOOR))
            self._db.execute("UPDATE spent SET amount = max(0, amount - ?) WHERE run = ?", (amount, self._run))

    def remaining(self, *, wait: bool = False) -> Remaining:
        with self._transaction():
            self._db.beat()
            self._release_dead()
            spent, held = self._sums()
        return Remaining(from_pico(self._cap - spent - held), from_pico(self._cap - spent))

    def reserve_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        with self._transaction():
            self._db.execute("DELETE FROM held WHERE run = ? AND owner = ?", (self._run, _BATCH + label))
            spent, held = self._sums()
            free, total = self._cap - spent - held, 0
            fitting: list[int] = []
            for index, amount in enumerate(map(to_pico, amounts)):
                if total + amount <= free:
                    total += amount
                    fitting.append(index)
            if fitting:
                self._add_entry(_BATCH + label, total)
            return fitting

    def charge_batch(self, label: str, held: Decimal, paid: Decimal | None, change_id: str | None = None) -> Decimal:
        part = to_pico(held)
        amount = part if paid is None else to_pico(paid)
        with self._transaction():
            if not self._is_applied(change_id):
                self._db.execute(
                    "UPDATE held SET amount = max(0, amount - ?) WHERE run = ? AND owner = ?",
                    (part, self._run, _BATCH + label),
                )
                self._spend(self._run, amount)
        return from_pico(amount)

    def release_other_batches(self, labels: Collection[str]) -> None:
        keep = {_BATCH + label for label in labels}
        with self._transaction():
            rows = self._db.execute("SELECT id, owner FROM held WHERE run = ?", (self._run,))
            for row, owner in rows:
                if owner.startswith(_BATCH) and owner not in keep:
                    self._db.execute("DELETE FROM held WHERE id = ?", (row,))

    def other_runs_with_batches(self) -> list[str]:
        rows = self._db.execute(
            "SELECT run, owner FROM held WHERE run != ? AND amount > 0 ORDER BY run", (self._run,)
        )
        return list(dict.fromkeys(run for run, owner in rows if owner.startswith(_BATCH)))

    def record_earlier_spending(self, usd: Decimal) -> Decimal:
        with self._transaction():
            for (owner,) in self._db.execute("SELECT DISTINCT owner FROM held WHERE run = ?", (self._run,)):
                if owner != self._db.owner and not owner.startswith(_BATCH):
                    self._release(owner)
            known, recorded = self._value("SELECT amount FROM spent WHERE run = ?", (self._run,)), to_pico(usd)
            self._spend(self._run, max(0, recorded - known))
        return from_pico(max(known, recorded))

    @property
    def spent_usd(self) -> Decimal:
        self.write_charges()
        return from_pico(self._sums()[0])

    @property
    def cap_usd(self) -> Decimal:
        return from_pico(self._cap)

    def beat(self) -> None:
        with self._transaction():
            self._db.beat()

    def renew_owners(self) -> None:
        """Treats all processes as alive now, after a time in which they could not show it."""
        with self._transaction():
            self._db.renew_owners()

    def release(self) -> None:
        """Charges what is still reserved, as for a dead process."""
        with self._transaction():
            self._release(self._db.owner)

    def detach(self) -> None:
        """Closes the file. What is reserved stays reserved."""
        self._db.close()

    def close(self) -> None:
        """As in the base class. If the file cannot be written, the next process that opens it charges the rest."""
        try:
            self.release()
        except StoreError as error:
            log.log(logging.DEBUG if isinstance(error, Interrupted) else logging.WARNING, "%s", error)
        finally:
            self._db.close()

    def _value(self, query: str, arguments: tuple[str, ...] = ()) -> int:
        rows = self._db.execute(query, arguments)
        return int(rows[0][0] or 0) if rows else 0

    def _sums(self) -> tuple[int, int]:
        (row,) = self._db.execute("SELECT (SELECT sum(amount) FROM spent), (SELECT sum(amount) FROM held)")
        return int(row[0] or 0), int(row[1] or 0)

    def _spend(self, run: str, amount: int) -> None:
        if amount:
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET amount = min(?, amount + ?)",
                (run, amount, _MOST, amount),
            )

    def _add_entry(self, owner: str, amount: int, entry_id: int | None = None) -> int:
        """Reserves an amount. Returns the id."""
        entry_id = new_entry_id() if entry_id is None else entry_id
        self._db.execute("INSERT INTO held VALUES (?, ?, ?, ?)", (entry_id, self._run, owner, amount))
        return entry_id

    def _is_applied(self, change_id: str | None) -> bool:
        """Whether a change was made before; records that it is being made."""
        if change_id is None:
            return False
        self._db.execute("DELETE FROM applied WHERE at < ?", (time.time() - _APPLIED_S,))
        return not self._db.execute(
            "INSERT INTO applied VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1", (change_id, time.time())
        )

    def _release_dead(self) -> bool:
        """Charges and releases the reservations of dead processes. Returns whether there were any."""
        dead = self._db.dead_owners()
        for owner in dead:
            self._release(owner)
        return bool(dead)

    def _release(self, owner: str) -> None:
        for run, amount in self._db.execute("SELECT run, amount FROM held WHERE owner = ?", (owner,)):
            self._spend(run, amount)
        self._db.execute("DELETE FROM held WHERE owner = ?", (owner,))
        self._db.remove_owner(owner)


def new_entry_id() -> int:
    """A random id for a reservation."""
    return secrets.randbits(59)


def from_pico(amount: int) -> Decimal:
    """Picodollars in dollars."""
    return Decimal(amount) / _PICO


def to_pico(usd: Decimal) -> int:
    """Whole picodollars, rounded up, and a million dollars at most."""
    return min(_MOST, int((usd * _PICO).to_integral_value(rounding=ROUND_CEILING)))
