"""Invariants of the scheduler and the block pool over random loads, without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.llama.sequence import GenerationRequest, Sequence
from swe_infer.llama.stopping import StopCriteria, StopParams
from swe_infer.llama.tokenizer import LlamaTokenizer

if TYPE_CHECKING:
    from swe_infer.llama.kv_cache import BlockPool, block_hashes
    from swe_infer.llama.scheduler import Chunk, Scheduler
    from tests.support.checkpoints import make_tokenizer

SIZE = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> LlamaTokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(directory)
    return LlamaTokenizer(directory)


def sequence(tokenizer: LlamaTokenizer, prompt: list[int], new: int, limit: int = 10**6) -> Sequence:
    stop_params = StopParams(new, closed_patch=False, repetition=False)
    request = GenerationRequest(len(prompt), tuple(prompt), stop_params)
    return Sequence(request, StopCriteria(stop_params, tokenizer, prompt), limit, b"")


class Memory:
    """A model of the cache: at each slot, the tokens up to the one whose key and value it has."""

    def __init__(self) -> None:
        self.places: dict[tuple[int, int], tuple[int, ...]] = {}

    def copy(self, source: int, target: int) -> None:
        for offset in range(SIZE):
            self.places[target, offset] = self.places.get((source, offset), ())

    def run(self, chunks: list[Chunk]) -> None:
        """Write what a step computes, then check what it reads."""
        for chunk in chunks:
            self._each(chunk, chunk.start, self.places.__setitem__)
        for chunk in chunks:
            self._each(chunk, 0, self._expect)

    def _each(self, chunk: Chunk, start: int, what: Callable[[tuple[int, int], tuple[int, ...]], None]) -> None:
        tokens, blocks = chunk.sequence.tokens, chunk.sequence.blocks
        for place in range(start, chunk.start + chunk.count):
            what((blocks[place // SIZE], place % SIZE), tuple(tokens[: place + 1]))

    def _expect(self, place: tuple[int, int], tokens: tuple[int, ...]) -> None:
        assert self.places.get(place) == tokens


@given(data=st.data())
def test_every_sequence_ends_and_no_block_is_lost_or_allocated_twice(
    tokenizer: LlamaTokenizer, data: st.DataObject
) -> None:
    blocks = data.draw(st.integers(6, 30), label="blocks")
    budget = data.draw(st.integers(1, 40), label="budget")
    pool = BlockPool(blocks + 1)
    memory = Memory()
    scheduler = Scheduler(pool, SIZE, budget, data.draw(st.integers(1, 8), label="max_sequences"), copy=memory.copy)
    waiting = []
    for _ in range(data.draw(st.integers(1, 10), label="sequences")):
        stem = data.draw(st.sampled_from([[], [7] * 9, [8] * 14]))
        prompt = stem + data.draw(st.lists(st.integers(3, 5), min_size=1, max_size=8))
        new = data.draw(st.integers(1, blocks * SIZE - len(prompt)))
        waiting.append(sequence(tokenizer, prompt, new, blocks * SIZE))
    for item in waiting:
        scheduler.add(item)
    done = 0
    for _ in range(20_000):
        chunks = scheduler.schedule()
        if not chunks:
            break
        assert sum(chunk.count for chunk in chunks) <= budget
        for chunk in chunks:
            running = chunk.sequence
            assert running in scheduler.running
            assert chunk.start + chunk.count == running.computed <= len(running.blocks) * SIZE
            assert len(running.blocks) == -(-running.computed // SIZE)
            assert len(set(running.blocks)) == len(running.blocks)
        memory.run(chunks)
        owners = Counter(block for s in scheduler.running for block in s.blocks)
        assert len(owners) == pool.used
        assert 0 not in owners
        for chunk in [c for c in chunks if c.completes]:
            if chunk.sequence.append(9) is not None:
                scheduler.finish_sequence(chunk.sequence)
                done += 1
    assert done == len(waiting)
    assert pool.used == 0
    assert pool.free == blocks


def test_blocks_are_shared_by_content_and_place(tokenizer: LlamaTokenizer) -> None:
    a = block_hashes([1, 2, 3, 4, 5, 6, 7, 8, 9], 4, b"", [])
    assert len(a) == 2
    assert block_hashes([1, 2, 3, 4, 9, 9, 9, 9], 4, b"", [])[0] == a[0]
    assert block_hashes([5, 6, 7, 8], 4, b"", [])[0] not in a
    assert block_hashes([1, 2, 3, 4], 4, b"salt", [])[0] != a[0]


def test_the_least_recently_used_content_is_evicted_first() -> None:
    pool = BlockPool(4)
    first, second = [pool.allocate()], [pool.allocate()]
    pool.register(first[0], b"first")
    pool.register(second[0], b"second")
    pool.decref(first)
    pool.decref(second)
    pool.incref(pool.lookup([b"first"]))
    pool.decref(first)
    taken = [pool.allocate(), pool.allocate()]
    assert pool.lookup([b"first"]) == first
    assert pool.lookup([b"second"]) == []
    assert first[0] not in taken


def test_a_shared_part_of_a_block_is_computed_once(tokenizer: LlamaTokenizer) -> None:
    """Two samples of a prompt that ends within a block: the second waits one step, then computes one token."""
    scheduler = Scheduler(BlockPool(50), 16, 100, 8, copy=lambda source, target: copied.append((source, target)))
    copied: list[tuple[int, int]] = []
    first, second = sequence(tokenizer, [5] * 28, 50), sequence(tokenizer, [5] * 28, 50)
    other = sequence(tokenizer, [6] * 9, 50)
    for item in (first, second, other):
        scheduler.add(item)
    chunks = scheduler.schedule()
    assert [(c.sequence, c.count) for c in chunks] == [(first, 28), (other, 9)]
    first.append(9)
    other.append(9)
    chunks = scheduler.schedule()
    assert {(c.sequence, c.start, c.count) for c in chunks} == {(first, 28, 1), (other, 9, 1), (second, 27, 1)}
    assert copied == [(first.blocks[1], second.blocks[1])]
    assert second.cached_tokens == 27


def test_a_reallocated_block_is_not_copied() -> None:
    pool = BlockPool(3)
    old = pool.allocate()
    pool.register_partial(old, b"parent", [1, 2, 3, 4], step=1)
    assert pool.find_partial(b"parent", [1, 2, 9], before=1) == (0, 0)
    assert pool.find_partial(b"parent", [1, 2, 9], before=2) == (old, 2)
    pool.decref([old])
    assert pool.find_partial(b"parent", [1, 2, 9], before=2) == (old, 2)
    while old != pool.allocate():
        pass
    assert pool.find_partial(b"parent", [1, 2, 9], before=2) == (0, 0)


def test_an_empty_pool_raises() -> None:
    pool = BlockPool(2)
    pool.allocate()
    assert pool.free == 0
    with pytest.raises(IndexError, match="no cache block is free"):
        pool.allocate()


def test_decoding_continues_during_a_long_prefill(tokenizer: LlamaTokenizer) -> None:
    scheduler = Scheduler(BlockPool(1000), SIZE, 16, 8)
    short, long = sequence(tokenizer, [5] * 8, 50), sequence(tokenizer, [6] * 200, 5)
    scheduler.add(short)
    scheduler.add(long)
    for step in range(10):
        chunks = scheduler.schedule()
        assert {c.sequence for c in chunks} == {short, long}
        assert sum(c.count for c in chunks) == 16
        if step:
            assert next(c.count for c in chunks if c.sequence is short) == 1
        short.append(9)


def test_unstarted_sequences_are_dropped_and_started_ones_kept(tokenizer: LlamaTokenizer) -> None:
    scheduler = Scheduler(BlockPool(10), SIZE, 100, 1)
    begun, fresh = sequence(tokenizer, [5] * 8, 5), sequence(tokenizer, [6] * 8, 5)
    scheduler.add(begun)
    scheduler.add(fresh)
    scheduler.schedule()
    scheduler.drop_unstarted()
    assert scheduler.running == [begun]
    assert not scheduler.waiting
