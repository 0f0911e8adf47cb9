"""Draft lengths follow their gain, and losses are bounded."""

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
    """Simulate steps. Returns the draft lengths and the total cost in steps. ``accepted`` maps step and length to
    accepted tokens."""
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


def test_losses_after_gains_are_bounded() -> None:
    """The balance earned by good drafts is spent once drafts fail."""
    acceptance, budget = AcceptanceModel(32), DraftBudget()
    budget.batch = 8
    for _ in range(5):
        follow(new(acceptance, budget), whole, 100)
    spent = [follow(new(acceptance, budget), none, 200, row=0.1)[1] for _ in range(20)]
    assert sum(spent) <= 16 * 8 + 0.01 * 20 * 200
    assert sum(spent[10:]) / (10 * 200) <= 0.03


def test_accepted_drafts_grow_to_the_maximum_length() -> None:
    limits, _ = follow(new(), whole, 30, row=0.01)
    assert limits[-5:] == [32] * 5


def test_a_row_that_costs_a_step_is_not_drafted() -> None:
    limits, _ = follow(new(), none, 200, row=1.0, draft_cost=0.0)
    assert sum(limits) <= 6


def test_expensive_rows_make_shorter_drafts() -> None:
    def drafted(row: float) -> int:
        length = new()
        limits, _ = follow(length, lambda step, limit: min(limit, (0, 2, 5, 12)[step % 4]), 200, row=row)
        return sum(limits[100:])

    assert drafted(0.3) < drafted(0.02)


def test_drafting_resumes_when_drafts_are_accepted() -> None:
    length = new()
    follow(length, none, 500)
    limits, _ = follow(length, whole, 200)
    assert sum(limits) > 200


def test_situations_are_learned_separately() -> None:
    """One sequence drafts long where drafts are accepted, and little elsewhere."""
    length = new()
    good: list[int] = []
    bad: list[int] = []
    for _ in range(100):
        good += follow(length, whole, 1, situation="copied")[0]
        bad += follow(length, none, 1, situation="new")[0]
    assert good[-20:] == [32] * 20
    assert sum(bad[-50:]) / 50 < 1


def test_a_new_sequence_uses_the_acceptance_of_others() -> None:
    acceptance = AcceptanceModel(32)
    alone, _ = follow(new(), whole, 3, row=0.1)
    follow(new(acceptance), whole, 100, row=0.1)
    later, _ = follow(new(acceptance), whole, 3, row=0.1)
    assert later[0] > 2 * alone[0]


def test_positions_after_a_rejection_or_a_short_draft_are_censored() -> None:
    """A short draft is no evidence that a longer one would fail."""
    acceptance = AcceptanceModel(32)
    for _ in range(200):
        acceptance.record("any", 32, 4, 4)
    assert acceptance.best_length("any", 0.1, 0.0) >= 4
    for _ in range(200):
        acceptance.record("any", 32, 32, 6)
    assert acceptance.best_length("any", 0.1, 0.0) == 6


@pytest.mark.parametrize("cost", [0.1, 1.0, 3.9])
def test_spending_is_limited_to_interest_and_initial_balance(cost: float) -> None:
    budget, spent, steps = DraftBudget(), 0.0, 20_000
    budget.batch = 8
    for _ in range(steps // 10):  # each prompt is answered in 10 steps
        if budget.can_afford(cost):
            budget.spend(cost)
            spent += cost
        budget.earn(10.0)
    assert 4.0 < spent <= 0.01 * steps + 4.0


def test_accepted_tokens_and_long_prompts_fill_the_budget() -> None:
    budget = DraftBudget(steps=0.0)
    budget.batch = 8
    budget.earn(1.0, accepted=5)
    assert budget.can_afford(4.9)
    budget = DraftBudget(steps=0.0)
    budget.batch = 8
    budget.earn(2000.0)
    assert budget.can_afford(9.9)


def test_the_budget_starts_with_four_steps_of_the_largest_batch() -> None:
    budget = DraftBudget()
    assert budget.can_afford(3.9)
    assert not budget.can_afford(4.1)
    for batch in (8, 1, 8, 3):
        budget.batch = batch
    assert budget.can_afford(31.9)
    assert not budget.can_afford(32.1)


def test_the_budget_is_capped() -> None:
    budget = DraftBudget()
    budget.batch = 2
    for _ in range(10_000):
        budget.earn(1.0, accepted=20)
    assert not budget.can_afford(32.1)
    assert budget.can_afford(31.9)


def test_a_sequence_without_drafts_is_inspected_less_often() -> None:
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


def test_drafting_is_promising_until_it_fails_and_again_once_accepted() -> None:
    acceptance = AcceptanceModel(32)
    seen = [acceptance.promising]
    for accepted, steps in ((0, 200), (2, 3)):
        for _ in range(steps):
            acceptance.record_step(accepted)
        seen.append(acceptance.promising)
    assert seen == [True, False, True]


def test_the_cost_of_a_row_is_learned_from_steps() -> None:
    cost = StepCostModel()
    for step in range(200):
        rows = step % 40
        cost.record(rows, 0.010 + 0.0005 * rows)
    assert cost.row_seconds == pytest.approx(0.0005, rel=0.02)
    assert cost.base_seconds == pytest.approx(0.010, rel=0.02)
    row, draft_cost = cost.relative_costs(0.001)
    assert row == pytest.approx(0.05, rel=0.03)
    assert draft_cost == pytest.approx(0.1, rel=0.03)


def test_steps_of_one_size_keep_the_prior_row_cost() -> None:
    cost = StepCostModel(row_share=0.03)
    assert cost.relative_costs(0.1) == (0.03, 0.0)
    for _ in range(50):
        cost.record(8, 0.02)
    assert cost.row_seconds == pytest.approx(0.03 * 0.02)


def test_timing_noise_is_not_taken_for_row_cost() -> None:
    """Steps with few drafted rows and noisy times, some with long delays: a row stays cheap."""
    for seed in range(20):
        dice = random.Random(seed)
        cost = StepCostModel()
        for _ in range(60):
            held_up = 20.0 if dice.random() < 0.03 else 1.0
            cost.record(dice.choice((0, 0, 0, 1, 2)), 0.010 * dice.lognormvariate(0.0, 0.5) * held_up)
        assert cost.relative_costs(0.0)[0] < 0.12, seed
