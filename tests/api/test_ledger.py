"""The ledger on disk: many processes, kills, and sums that are right to the last picodollar."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest

from benchmarks.torture.shortages import mounted
from swe_infer.api.budget import CostBudget
from swe_infer.api.coordination import SharedDatabase
from swe_infer.api.ledger import Ledger, LedgerEntry
from swe_infer.errors import BudgetExceeded, StoreError
from tests.support import commands
from tests.support.steps import lines_executed

SPENDER = """
import sys, time
from decimal import Decimal
from pathlib import Path
from swe_infer.api.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), Decimal(1), sys.argv[2])
paid = 0
while True:
    hold = ledger.reserve(Decimal("0.04"))
    if hold == "cannot_fit":
        break
    if hold == "wait":
        time.sleep(0.001)
    else:
        ledger.charge(hold, Decimal("0.01"))
        paid += 1
print(paid)
"""

HOLDER = """
import sys, time
from decimal import Decimal
from pathlib import Path
from swe_infer.api.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]), Decimal(10), "killed")
ledger.charge(ledger.reserve(Decimal(1)), Decimal("0.25"))
for _ in range(4):
    ledger.reserve(Decimal(2))
print("holding", flush=True)
time.sleep(600)
"""


def process(code: str, *arguments: str) -> commands.Command:
    return commands.start("-c", code, *arguments, cwd=Path.cwd(), env=os.environ)


def test_reservations_count_against_the_cap_until_they_are_charged() -> None:
    ledger = Ledger(None, Decimal(1), "run")
    first = ledger.reserve(Decimal("0.7"))
    assert isinstance(first, LedgerEntry)
    assert ledger.reserve(Decimal("0.4")) == "wait"
    ledger.charge(first, Decimal("0.1"))
    assert isinstance(ledger.reserve(Decimal("0.9")), LedgerEntry)
    assert ledger.reserve(Decimal("0.95")) == "cannot_fit"
    assert ledger.spent_usd == Decimal("0.1")


def test_processes_together_never_exceed_the_cap_and_nearly_use_it_up(tmp_path: Path) -> None:
    spenders = [process(SPENDER, str(tmp_path / "ledger"), f"run{n}") for n in range(4)]
    paid = [int(spender.communicate(timeout=60)[0]) for spender in spenders]
    assert Decimal("0.95") <= sum(paid) * Decimal("0.01") <= 1
    assert Ledger(tmp_path / "ledger", Decimal(1), "look").spent_usd == sum(paid) * Decimal("0.01")


def test_reservations_of_a_killed_process_are_charged_in_full(tmp_path: Path) -> None:
    holder = process(HOLDER, str(tmp_path / "ledger"))
    assert holder.stdout.readline() == "holding\n"
    living = Ledger(tmp_path / "ledger", Decimal(11), "living")
    assert living.reserve(Decimal(3)) == "wait"
    holder.kill()
    holder.communicate()
    # A provider may bill the four requests in flight in full.
    assert living.reserve(Decimal(3)) == "cannot_fit"
    assert living.spent_usd == Decimal("8.25")


def test_the_same_run_goes_on_with_what_it_spent_before(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", Decimal(1), "run")
    hold = ledger.reserve(Decimal("0.5"))
    assert isinstance(hold, LedgerEntry)
    ledger.charge(hold, Decimal("0.4"))
    ledger.close()
    again = Ledger(tmp_path / "ledger", Decimal(1), "run")
    assert again.record_earlier_spending(Decimal("0.3")) == Decimal("0.4"), "the records know of less"
    assert again.spent_usd == Decimal("0.4")
    assert again.record_earlier_spending(Decimal("0.6")) == Decimal("0.6"), "or of more"
    assert again.spent_usd == Decimal("0.6")


def test_who_was_taken_for_dead_charges_nothing_of_others(tmp_path: Path) -> None:
    """Ids are unique: the reservations of the dead are deleted, and others are made."""
    silent, living = (Ledger(tmp_path / "ledger", Decimal(10), run) for run in ("silent", "living"))
    before = silent.reserve(Decimal(6))
    assert isinstance(before, LedgerEntry)
    with sqlite3.connect(tmp_path / "ledger") as database:
        database.execute("UPDATE owners SET host = 'another', beat = beat - 1000")
    assert living.reserve(Decimal(5)) == "cannot_fit"  # 6 are charged
    assert isinstance(living.reserve(Decimal(2)), LedgerEntry)
    after = silent.reserve(Decimal(1))
    assert isinstance(after, LedgerEntry)
    silent.charge(before, Decimal("0.5"))
    remaining = living.remaining()
    assert (remaining.unspent, remaining.available) == (Decimal(4), Decimal(1))
    silent.charge(after, Decimal("0.5"))
    assert (living.spent_usd, living.remaining().available) == (Decimal("6.5"), Decimal("1.5"))


def test_a_process_stays_registered_after_a_transaction_that_failed(tmp_path: Path) -> None:
    """Otherwise nobody releases what it has reserved when it dies."""
    database = SharedDatabase(tmp_path / "shared", "shared", "CREATE TABLE IF NOT EXISTS t (a TEXT NOT NULL)")
    for failure in (RuntimeError, None):
        with contextlib.suppress(RuntimeError), database.transaction():
            database.beat()
            if failure is not None:
                raise failure
    assert database.execute("SELECT id FROM owners") == [(database.owner,)]
    database.close()


def test_absurd_amounts_that_a_server_states_are_bounded(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", Decimal(1), "run")
    for _ in range(2):
        entry = ledger.reserve(Decimal(0))
        if isinstance(entry, LedgerEntry):
            ledger.charge(entry, Decimal("1e30"))
    assert ledger.reserve(Decimal(0)) == "cannot_fit"
    assert Ledger(tmp_path / "ledger", Decimal(1), "look").spent_usd == 1_000_000


def test_a_cap_may_be_raised_between_tries(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", Decimal(1), "run")
    assert ledger.reserve(Decimal(2)) == "cannot_fit"
    ledger.close()
    assert isinstance(Ledger(tmp_path / "ledger", Decimal(3), "run").reserve(Decimal(2)), LedgerEntry)


def test_small_amounts_add_up_exactly() -> None:
    ledger = Ledger(None, Decimal(1), "run")
    for _ in range(1000):
        hold = ledger.reserve(Decimal("0.0000003"))
        assert isinstance(hold, LedgerEntry)
        ledger.charge(hold, Decimal("0.000000075"))  # one token of gpt-4o-mini in a batch
    assert ledger.spent_usd == Decimal("0.000075")


def test_a_file_that_is_not_a_ledger_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("something else entirely, and long enough to be looked at" * 20)
    with pytest.raises(StoreError, match="ledger"):
        Ledger(tmp_path / "ledger", Decimal(1), "run")


def test_a_charge_is_written_with_the_next_reservation_or_soon(tmp_path: Path) -> None:
    """Until then the whole reservation counts, so a kill in between loses nothing of it."""

    def on_disk() -> tuple[int, int]:
        with sqlite3.connect(tmp_path / "ledger") as db:
            query = "SELECT (SELECT total(amount) FROM spent), (SELECT total(amount) FROM held)"
            spent, held = db.execute(query).fetchone()
        return int(spent / 10**10), int(held / 10**10)

    async def scenario() -> None:
        cost_budget = CostBudget([("budget.max_usd", Ledger(tmp_path / "ledger", Decimal(10), "run"))])
        first = await cost_budget.reserve(Decimal(1))
        assert cost_budget.charge(first, Decimal("0.25")) == Decimal("0.25")
        assert on_disk() == (0, 100)
        second = await cost_budget.reserve(Decimal(2))
        assert on_disk() == (25, 200)
        cost_budget.charge(second, Decimal("0.5"))
        async with asyncio.timeout(60):
            while on_disk() != (75, 0):  # noqa: ASYNC110 - another connection reads it
                await asyncio.sleep(0.01)
        cost_budget.close()

    asyncio.run(scenario())


def test_a_full_disk_prevents_no_charge(tmp_path: Path) -> None:
    """Answers in flight come when the disk is full already."""
    with mounted(tmp_path / "disk", 600) as is_mounted:
        if not is_mounted:
            pytest.skip("may not mount a file system")
        path = tmp_path / "disk" / "ledger"
        ledger = Ledger(path, Decimal(1000), "run")
        entries = [ledger.reserve(Decimal(1)) for _ in range(256)]
        with (tmp_path / "disk" / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                filler.write(bytes(1024))
        for entry in entries[:16]:
            assert isinstance(entry, LedgerEntry)
            ledger.charge(entry, Decimal("0.25"))
        for entry in entries[16:]:
            assert isinstance(entry, LedgerEntry)
            ledger.charge_later(entry, Decimal("0.25"))
        ledger.close()
        again = Ledger(path, Decimal(1000), "run")
        assert again.record_earlier_spending(Decimal(0)) == Decimal(64)
        again.close()


def test_requests_of_one_turn_share_a_transaction_and_pass_no_cap(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = Ledger(None, Decimal(10), "run")
        sweep = Ledger(tmp_path / "ledger", Decimal(7), "run")
        cost_budget = CostBudget([("budget.max_usd", run), ("budget.sweep_max_usd", sweep)])

        def transactions() -> int:
            """SQLite's file change counter."""
            return int.from_bytes((tmp_path / "ledger").read_bytes()[24:28], "big")

        before = transactions()
        tasks = [asyncio.create_task(cost_budget.reserve(usd)) for usd in map(Decimal, (3, 3, 3, 1))]
        done, waiting = await asyncio.wait(tasks, timeout=0.05)
        assert transactions() == before + 1
        assert {task.result().usd for task in done} == {Decimal(1), Decimal(3)}
        assert waiting == {tasks[2]}
        assert run.remaining().available == Decimal(3), "the one that waits holds nothing in the run's ledger"
        for task in done:
            cost_budget.charge(task.result(), Decimal(1))
        assert (await tasks[2]).usd == Decimal(3)
        cost_budget.close()

    asyncio.run(scenario())


def test_a_request_that_is_cancelled_in_its_turn_reserves_nothing() -> None:
    async def scenario() -> None:
        ledger = Ledger(None, Decimal(10), "run")
        cost_budget = CostBudget([("budget.max_usd", ledger)])
        for turns in range(4):
            task = asyncio.create_task(cost_budget.reserve(Decimal(6)))
            for _ in range(turns):
                await asyncio.sleep(0)
            if not task.done():
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                cost_budget.charge(await task, Decimal(0))
            assert ledger.remaining().available == Decimal(10)
        cost_budget.close()

    asyncio.run(scenario())


def test_the_tighter_bound_is_computed_only_if_the_cheap_one_does_not_fit() -> None:
    async def scenario() -> None:
        cost_budget = CostBudget([("budget.max_usd", Ledger(None, Decimal(10), "run"))])
        asked: list[int] = []

        async def tighter() -> Decimal:
            asked.append(1)
            return Decimal(3)

        async def still_too_dear() -> Decimal:
            return Decimal("10.5")

        await cost_budget.reserve(Decimal(7), tighter)
        assert asked == []
        reservation = await cost_budget.reserve(Decimal(7), tighter)
        assert (asked, reservation.usd) == ([1], Decimal(3))
        with pytest.raises(BudgetExceeded, match=r"budget\.max_usd=10 "):
            await cost_budget.reserve(Decimal(11), still_too_dear)

    asyncio.run(scenario())


def test_a_reservation_that_one_cap_refuses_leaves_the_other_untouched(tmp_path: Path) -> None:
    async def scenario() -> None:
        run = Ledger(None, Decimal(10), "run")
        sweep = Ledger(tmp_path / "ledger", Decimal(4), "run")
        cost_budget = CostBudget([("budget.max_usd", run), ("budget.sweep_max_usd", sweep)])
        with pytest.raises(BudgetExceeded, match="sweep"):
            await cost_budget.reserve(Decimal(5))
        assert isinstance(run.reserve(Decimal(10)), LedgerEntry)

    asyncio.run(scenario())


def test_the_cost_of_a_reservation_does_not_grow_with_their_number(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", Decimal(1000), "run")

    def hold_and_settle() -> None:
        hold = ledger.reserve(Decimal("0.04"))
        assert isinstance(hold, LedgerEntry)
        ledger.charge(hold, Decimal("0.01"))

    hold_and_settle()
    first = lines_executed(hold_and_settle)
    for _ in range(300):
        hold_and_settle()
    assert lines_executed(hold_and_settle) <= first < 200
