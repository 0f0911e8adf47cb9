"""Draft lengths follow their gain, and losses are bounded."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from swe_infer.llama.drafting.gain import DraftGain, DraftState, StepCost

ROW, DRAFT = 0.02, 0.01


def follow(
    gain: DraftGain,
    accepted: Callable[[int, int], int],
    steps: int,
    *,
    state: DraftState | None = None,
    row: float = ROW,
    draft_cost: float = DRAFT,
    situation: str = "any",
) -> tuple[list[int], float]:
    """Simulate steps of a sequence. Returns the draft lengths and the total cost in steps. ``accepted`` maps step and
    length to accepted tokens; ``row`` is the cost of a row in the whole batch."""
    state = state or DraftState("diff")
    gain.cost.row = row / gain.batch
    limits: list[int] = []
    spent = 0.0
    for step in range(steps):
        limit = 0
        if not state.should_skip():
            if gain.can_afford(draft_cost):
                limit = gain.next_length(state, situation, draft_cost, 32)
            else:
                state.back_off()
        cost = draft_cost + row * limit if limit else 0.0
        right = accepted(step, limit)
        gain.spend(cost, state)
        gain.record(state, limit, right, 1 + right)
        limits.append(limit)
        spent += cost
    return limits, spent


def none(step: int, limit: int) -> int:
    return 0


def whole(step: int, limit: int) -> int:
    return limit


@pytest.mark.parametrize("row", [0.001, 0.01, 0.1, 1.0])
@pytest.mark.parametrize("draft_cost", [0.0, 0.02, 0.2])
@pytest.mark.parametrize("steps", [200, 2000])
def test_drafts_that_all_fail_cost_at_most_3_percent(row: float, draft_cost: float, steps: int) -> None:
    _, spent = follow(DraftGain(), none, steps, row=row, draft_cost=draft_cost)
    assert spent / steps <= 0.03


def test_losses_after_gains_are_bounded() -> None:
    """The balance earned by good drafts is spent once drafts fail."""
    gain = DraftGain()
    gain.batch = 8
    for _ in range(5):
        follow(gain, whole, 100)
    spent = [follow(gain, none, 200, row=0.1)[1] for _ in range(20)]
    assert sum(spent) <= 16 * 8 + 0.01 * 20 * 200
    assert sum(spent[10:]) / (10 * 200) <= 0.03


def test_accepted_drafts_grow_to_the_maximum_length() -> None:
    limits, _ = follow(DraftGain(), whole, 30, row=0.01)
    assert limits[-5:] == [32] * 5


def test_a_row_that_costs_a_step_is_not_drafted() -> None:
    limits, _ = follow(DraftGain(), none, 200, row=1.0, draft_cost=0.0)
    assert sum(limits) <= 6


def test_expensive_rows_make_shorter_drafts() -> None:
    def drafted(row: float) -> int:
        limits, _ = follow(DraftGain(), lambda step, limit: min(limit, (0, 2, 5, 12)[step % 4]), 200, row=row)
        return sum(limits[100:])

    assert drafted(0.3) < drafted(0.02)


def test_drafting_resumes_when_drafts_are_accepted() -> None:
    gain, state = DraftGain(), DraftState("diff")
    follow(gain, none, 500, state=state)
    limits, _ = follow(gain, whole, 200, state=state)
    assert sum(limits) > 200


def test_situations_are_learned_separately() -> None:
    """One sequence drafts long where drafts are accepted, and little elsewhere."""
    gain, state = DraftGain(), DraftState("diff")
    good: list[int] = []
    bad: list[int] = []
    for _ in range(100):
        good += follow(gain, whole, 1, state=state, situation="copied")[0]
        bad += follow(gain, none, 1, state=state, situation="new")[0]
    assert good[-20:] == [32] * 20
    assert sum(bad[-50:]) / 50 < 1


def test_a_new_sequence_uses_the_acceptance_of_others() -> None:
    gain = DraftGain()
    alone, _ = follow(DraftGain(), whole, 3, row=0.1)
    follow(gain, whole, 100, row=0.1)
    later, _ = follow(gain, whole, 3, row=0.1)
    assert later[0] > 2 * alone[0]


def test_positions_after_a_rejection_or_a_short_draft_are_censored() -> None:
    """A short draft is no evidence that a longer one would fail."""
    gain, state = DraftGain(), DraftState("diff")
    gain.cost.row = 0.1
    gain.next_length(state, "any", 0.0, 32)
    for drafted, accepted, least, most in ((4, 4, 4, 32), (32, 6, 6, 6)):
        for _ in range(200):
            state.requested = 32
            gain.record(state, drafted, accepted, 1)
        assert least <= gain.next_length(state, "any", 0.0, 32) <= most


@pytest.mark.parametrize("cost", [0.1, 1.0, 3.9])
def test_spending_is_limited_to_interest_and_initial_balance(cost: float) -> None:
    gain, spent, steps = DraftGain(), 0.0, 20_000
    for _ in range(steps // 10):  # each prompt is answered in 10 steps
        if gain.can_afford(cost):
            gain.spend(cost)
            spent += cost
        gain.earn(10.0)
    assert 4.0 < spent <= 0.01 * steps + 4.0


def test_accepted_tokens_and_long_prompts_fill_the_budget() -> None:
    for steps, accepted in ((1.0, 5), (1000.0, 0)):
        gain = DraftGain()
        gain.batch = 8
        gain.spend(32.0)
        assert not gain.can_afford(0.0)
        gain.earn(steps, accepted)
        assert gain.can_afford(4.9)


def test_the_budget_starts_with_four_steps_of_the_largest_batch() -> None:
    gain = DraftGain()
    assert gain.can_afford(3.9)
    assert not gain.can_afford(4.1)
    for batch in (8, 1, 8, 3):
        gain.batch = batch
    assert gain.can_afford(31.9)
    assert not gain.can_afford(32.1)


def test_the_budget_is_capped() -> None:
    gain = DraftGain()
    gain.batch = 2
    for _ in range(10_000):
        gain.earn(1.0, accepted=20)
    assert not gain.can_afford(32.1)
    assert gain.can_afford(31.9)


def test_a_sequence_without_drafts_is_inspected_less_often() -> None:
    gain, state = DraftGain(), DraftState("diff")
    gain.cost.row = 1.0
    looks = 0
    for _ in range(400):
        if not state.should_skip():
            looks += gain.can_afford(0.0)
            gain.next_length(state, "any", 1.0, 32)
        gain.record(state, 0, 0, 1)
    assert looks < 100
    for _ in range(20):
        state.should_skip()
    gain.record(state, 4, 4, 5)
    assert not state.should_skip()


def test_drafting_is_promising_until_it_fails_and_again_once_accepted() -> None:
    gain = DraftGain()
    seen = [gain.promising("diff")]
    for accepted, steps in ((0, 200), (2, 3)):
        for _ in range(steps):
            gain.record(DraftState("diff"), accepted, accepted, 1 + accepted)
        seen.append(gain.promising("diff"))
    assert seen == [True, False, True]
    assert gain.promising("suffix")


def test_the_cost_of_a_row_is_learned_from_steps() -> None:
    gain = DraftGain()
    gain.batch = 4
    assert (gain.row_cost, gain.steps(0.1)) == (0.04, 0.0)
    for step in range(200):
        rows = step % 40
        gain.cost.record(rows, 0.010 + 0.0005 * rows)
    assert gain.row_cost == pytest.approx(4 * 0.05, rel=0.03)
    assert gain.steps(0.001) == pytest.approx(4 * 0.1, rel=0.03)


def test_steps_of_one_size_keep_the_prior_row_cost() -> None:
    cost = StepCost()
    for _ in range(50):
        cost.record(8, 0.02)
    assert cost.row == pytest.approx(0.01 / (1 - 8 * 0.01))


def test_timing_noise_is_not_taken_for_row_cost() -> None:
    """Steps with few drafted rows and noisy times, some with long delays: a row stays cheap."""
    for seed in range(20):
        dice = random.Random(seed)
        cost = StepCost()
        for _ in range(60):
            held_up = 20.0 if dice.random() < 0.03 else 1.0
            cost.record(dice.choice((0, 0, 0, 1, 2)), 0.010 * dice.lognormvariate(0.0, 0.5) * held_up)
        assert cost.row < 0.12, seed
