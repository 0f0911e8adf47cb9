"""Drafts are as long as they pay, and what they can lose is bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from swe_infer.llama.drafting import AcceptanceModel, DraftBudget, DraftLength, StepCostModel

ROW, DRAFT = 0.02, 0.01


def follow(
    length: DraftLength,
    accepted: Callable[[int, int], int],
    steps: int,
    *,
    row: float = ROW,
    draft_cost: float = DRAFT,
    situation: str = "any",
) -> tuple[list[int], float]:
    """The lengths of drafts, and what they took in steps. ``accepted`` is asked for each step and length."""
    limits: list[int] = []
    spent = 0.0
    for step in range(steps):
        looked = not length.should_skip() and length.can_afford(draft_cost)
        limit = length.next_length(situation, row, draft_cost, 32) if looked else 0
        cost = draft_cost + row * limit if limit else 0.0
        right = accepted(step, limit)
        length.spend(cost)
        length.record(limit, right, 1 + right)
        limits.append(limit)
        spent += cost
    return limits, spent


def none(step: int, limit: int) -> int:
    return 0


def whole(step: int, limit: int) -> int:
    return limit


def new(acceptance: AcceptanceModel | None = None, budget: DraftBudget | None = None) -> DraftLength:
    return DraftLength(acceptance or AcceptanceModel(32), budget or DraftBudget())


@pytest.mark.parametrize("row", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("draft_cost", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("steps", [200, 2000])
def test_drafts_that_all_fail_cost_at_most_3_percent(row: float, draft_cost: float, steps: int) -> None:
    _, spent = follow(new(), none, steps, row=row, draft_cost=draft_cost)
    assert spent / steps <= 0.03


def test_what_sequences_lose_after_others_that_gained_is_bounded_as_well() -> None:
    """What good drafts earned for those that come after is gone once nothing is accepted any more."""
    acceptance, budget = AcceptanceModel(32), DraftBudget()
    budget.batch = 8
    for _ in range(5):
        follow(new(acceptance, budget), whole, 100)
    spent = [follow(new(acceptance, budget), none, 200, row=0.1)[1] for _ in range(20)]
    assert sum(spent) <= 16 * 8 + 0.01 * 20 * 200
    assert sum(spent[10:]) / (10 * 200) <= 0.03


def test_where_all_is_accepted_drafts_reach_their_greatest_length_and_stay() -> None:
    limits, _ = follow(new(), whole, 30, row=0.01)
    assert limits[-5:] == [32] * 5


def test_a_row_that_costs_a_pass_is_not_drafted() -> None:
    limits, _ = follow(new(), none, 200, row=1.0, draft_cost=0.0)
    assert sum(limits) <= 6


def test_dearer_rows_make_shorter_drafts() -> None:
    def drafted(row: float) -> int:
        length = new()
        limits, _ = follow(length, lambda step, limit: min(limit, (0, 2, 5, 12)[step % 4]), 200, row=row)
        return sum(limits[100:])

    assert drafted(0.3) < drafted(0.02)


def test_drafting_comes_back_when_drafts_become_good() -> None:
    length = new()
    follow(length, none, 500)
    limits, _ = follow(length, whole, 200)
    assert sum(limits) > 200


def test_a_situation_in_which_drafts_fail_takes_nothing_from_one_in_which_they_are_right() -> None:
    """Long drafts where they are right, short ones or none where they are not, of one and the same sequence."""
    length = new()
    good: list[int] = []
    bad: list[int] = []
    for _ in range(100):
        good += follow(length, whole, 1, situation="copied")[0]
        bad += follow(length, none, 1, situation="new")[0]
    assert good[-20:] == [32] * 20
    assert sum(bad[-50:]) / 50 < 1


def test_a_new_sequence_knows_what_became_of_the_drafts_of_others() -> None:
    acceptance = AcceptanceModel(32)
    alone, _ = follow(new(), whole, 3, row=0.1)
    follow(new(acceptance), whole, 100, row=0.1)
    later, _ = follow(new(acceptance), whole, 3, row=0.1)
    assert later[0] > 2 * alone[0]


def test_places_after_a_wrong_token_and_beyond_a_short_draft_say_nothing() -> None:
    """Drafts that were short because the drafter had no more to say are no sign that longer ones would fail."""
    acceptance = AcceptanceModel(32)
    for _ in range(200):
        acceptance.record("any", 32, 4, 4)
    assert acceptance.best_length("any", 0.1, 0.0) >= 4
    for _ in range(200):
        acceptance.record("any", 32, 32, 6)
    assert acceptance.best_length("any", 0.1, 0.0) == 6


@pytest.mark.parametrize("cost", [0.1, 1.0, 3.9])
def test_what_is_paid_from_an_account_is_a_hundredth_of_the_time_and_what_it_began_with(cost: float) -> None:
    budget, spent, steps = DraftBudget(), 0.0, 20_000
    budget.batch = 8
    for _ in range(steps // 10):  # each prompt is answered in 10 steps
        if budget.can_afford(cost):
            budget.spend(cost)
            spent += cost
        budget.earn(10.0)
    assert 4.0 < spent <= 0.01 * steps + 4.0


def test_accepted_tokens_and_long_prompts_fill_an_account() -> None:
    budget = DraftBudget(steps=0.0)
    budget.batch = 8
    budget.earn(1.0, accepted=5)
    assert budget.can_afford(4.9)
    budget = DraftBudget(steps=0.0)
    budget.batch = 8
    budget.earn(2000.0)
    assert budget.can_afford(9.9)


def test_an_account_begins_with_four_passes_of_the_largest_batch_and_gets_them_once() -> None:
    budget = DraftBudget()
    assert budget.can_afford(3.9)
    assert not budget.can_afford(4.1)
    for batch in (8, 1, 8, 3):
        budget.batch = batch
    assert budget.can_afford(31.9)
    assert not budget.can_afford(32.1)


def test_an_account_does_not_grow_for_ever() -> None:
    budget = DraftBudget()
    budget.batch = 2
    for _ in range(10_000):
        budget.earn(1.0, accepted=20)
    assert not budget.can_afford(32.1)
    assert budget.can_afford(31.9)


def test_a_sequence_whose_looks_are_in_vain_is_looked_at_less_often() -> None:
    length = new()
    looks = 0
    for _ in range(400):
        if not length.should_skip():
            looks += length.can_afford(0.0)
            length.next_length("any", 1.0, 1.0, 32)
        length.record(0, 0, 1)
    assert looks < 100
    for _ in range(20):
        length.should_skip()
    length.record(4, 4, 5)
    assert not length.should_skip()


def test_drafts_promise_something_until_they_fail_for_long_and_again_once_some_are_right() -> None:
    acceptance = AcceptanceModel(32)
    seen = [acceptance.promising]
    for accepted, steps in ((0, 200), (2, 3)):
        for _ in range(steps):
            acceptance.record_step(accepted)
        seen.append(acceptance.promising)
    assert seen == [True, False, True]


def test_the_cost_of_a_row_is_learned_from_passes() -> None:
    cost = StepCostModel()
    for step in range(200):
        rows = step % 40
        cost.record(rows, 0.010 + 0.0005 * rows)
    assert cost.row_seconds == pytest.approx(0.0005, rel=0.02)
    assert cost.base_seconds == pytest.approx(0.010, rel=0.02)
    row, draft_cost = cost.relative_costs(0.001)
    assert row == pytest.approx(0.05, rel=0.03)
    assert draft_cost == pytest.approx(0.1, rel=0.03)


def test_passes_of_one_size_say_nothing_about_a_row() -> None:
    cost = StepCostModel(row_share=0.03)
    assert cost.relative_costs(0.1) == (0.03, 0.0)
    for _ in range(50):
        cost.record(8, 0.02)
    assert cost.row_seconds == pytest.approx(0.03 * 0.02)


def test_the_scatter_of_a_busy_machine_is_not_taken_for_the_cost_of_rows() -> None:
    """Passes with hardly a draft whose times are far apart, a few held up for long: a row stays cheap."""
    for seed in range(20):
        dice = random.Random(seed)
        cost = StepCostModel()
        for _ in range(60):
            held_up = 20.0 if dice.random() < 0.03 else 1.0
            cost.record(dice.choice((0, 0, 0, 1, 2)), 0.010 * dice.lognormvariate(0.0, 0.5) * held_up)
        assert cost.relative_costs(0.0)[0] < 0.12, seed
