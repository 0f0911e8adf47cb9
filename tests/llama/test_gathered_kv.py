"""Gathered KV copies are bit-identical to gathering again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch

    from swe_infer.llama import gathered_kv
    from swe_infer.llama.attention.base import AttentionShape, Layout
    from swe_infer.llama.attention.sdpa import Backend

LAYERS = 2


class Decoding:
    """Sequences that decode over the pools of two layers, in blocks that are reused at once.

    Every step is computed twice: by a backend with history, and by a new one.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.shape = AttentionShape(6, 2, 32, torch.device("cpu"), dtype)
        self.backend = Backend(self.shape)
        self.free = list(range(1, 80))
        pool = self.backend.pool_shape(80)
        self.pools = [torch.zeros(pool, dtype=dtype) for _ in range(2 * LAYERS)]
        self.lengths: list[int] = []
        self.tables: list[list[int]] = []
        self.allocation_ids: list[int] = []
        self.entered = 0
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.shape.dtype)

    def write(self, table: list[int], start: int, count: int) -> None:
        size = self.backend.block_size
        places = torch.tensor([table[p // size] * size + p % size for p in range(start, start + count)])
        size_TKD = (count, self.shape.kv_heads, self.shape.head_dim)
        for keys, values in zip(self.pools[::2], self.pools[1::2], strict=True):
            k_TKD, v_TKD = self.random(*size_TKD), self.random(*size_TKD)
            self.backend.write(keys, values, k_TKD, v_TKD, self.backend.slots(places))

    def enter(self, length: int) -> None:
        table = [self.free.pop() for _ in range(-(-length // self.backend.block_size))]
        self.write(table, 0, length)
        self.lengths.append(length)
        self.tables.append(table)
        self.entered += 1
        self.allocation_ids.append(self.entered)

    def leave(self, place: int) -> None:
        self.free += reversed(self.tables.pop(place))
        del self.lengths[place], self.allocation_ids[place]

    def step(self, tokens: int = 1) -> int:
        """Run one step in which each sequence adds ``tokens`` tokens and attends with the last. Returns how many
        pools were read from copies."""
        for place, table in enumerate(self.tables):
            self.lengths[place] += tokens
            while len(table) * self.backend.block_size < self.lengths[place]:
                table.append(self.free.pop())
            self.write(table, self.lengths[place] - tokens, tokens)
        tables = [list(table) for table in self.tables]
        layout = Layout([1] * len(self.lengths), list(self.lengths), tables, list(self.allocation_ids))
        q_THD = self.random(len(self.lengths), self.shape.heads, self.shape.head_dim)
        plan = self.backend.plan(layout)
        fresh = Backend(self.shape)
        for keys, values in zip(self.pools[::2], self.pools[1::2], strict=True):
            found = self.backend.attend(q_THD, keys, values, plan)
            assert torch.equal(found, fresh.attend(q_THD, keys, values, fresh.plan(layout)))
        return sum(len(group.members.copies or {}) for group in plan.decodes)


@pytest.fixture(params=["float32", "bfloat16"])
def decoding(request: pytest.FixtureRequest) -> Decoding:
    return Decoding(getattr(torch, request.param))


def test_a_group_that_stays_together_uses_copies(decoding: Decoding) -> None:
    for length in (40, 150, 90):
        decoding.enter(length)
    assert decoding.step() == 0, "a new group has no copies"
    for _ in range(40):
        assert decoding.step() == 2 * LAYERS
    assert decoding.step(tokens=33) == 2 * LAYERS, "several tokens were added, over two blocks"
    assert decoding.step() == 2 * LAYERS


def test_a_group_that_separates_for_a_step_reuses_its_copies(decoding: Decoding) -> None:
    for length in (40, 60, 90):
        decoding.enter(length)
    for _ in range(3):
        decoding.step()
    away = (decoding.lengths.pop(), decoding.tables.pop(), decoding.allocation_ids.pop())
    assert decoding.step() == 0
    decoding.lengths.append(away[0])
    decoding.tables.append(away[1])
    decoding.allocation_ids.append(away[2])
    assert decoding.step() == 2 * LAYERS
    for _ in range(gathered_kv.MAX_IDLE_STEPS):
        decoding.backend.plan(Layout([], [], [], []))
    assert decoding.step() == 0, "the copies were dropped"


def test_a_sequence_that_outgrows_its_tile_changes_groups(decoding: Decoding) -> None:
    decoding.enter(250)
    decoding.enter(100)
    counts = [decoding.step() for _ in range(20)]
    assert counts[4] == 2 * LAYERS
    assert counts[-1] == 4 * LAYERS, "two groups, each with copies"


def test_reallocated_blocks_are_gathered_again(decoding: Decoding) -> None:
    decoding.enter(100)
    decoding.enter(120)
    for _ in range(3):
        decoding.step()
    length, table = decoding.lengths[1], list(decoding.tables[1])
    decoding.leave(1)
    decoding.enter(length)
    assert decoding.tables[1] == table, "the same blocks in the same order"
    assert decoding.step() == 0
    assert decoding.step() == 2 * LAYERS


def test_sequences_enter_and_leave_at_random(decoding: Decoding) -> None:
    dice = random.Random(1)
    read = 0
    for _ in range(150):
        if len(decoding.lengths) < 5 and dice.random() < 0.15:
            decoding.enter(dice.randrange(1, 260))
        if decoding.lengths and dice.random() < 0.1:
            decoding.leave(dice.randrange(len(decoding.lengths)))
        if decoding.lengths:
            read += decoding.step(dice.choice((1, 1, 1, 2, 5)))
    assert read > 0


def test_copies_are_limited_to_max_bytes(decoding: Decoding, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding.enter(100)
    one = 2 * 256 * 32 * decoding.shape.dtype.itemsize  # heads, keys, dimensions
    monkeypatch.setattr(gathered_kv, "MAX_BYTES", 3 * one)
    decoding.step()
    for _ in range(3):
        assert decoding.step() == 3
