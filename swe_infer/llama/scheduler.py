"""Decides what each forward pass computes.

Sequences enter and leave at every step (continuous batching, Yu et al., 2022). Decoding sequences come first, one
token each. The rest of the token budget goes to prefill: each prompt in chunks (chunked prefill, Agrawal et al.,
2023), in order of arrival. When the cache is full, the sequence that was admitted last is preempted and recomputed
later. Any budget left may carry drafts (speculative decoding, Leviathan et al., 2023).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from swe_infer.llama.kv_cache import BlockPool, block_hashes
from swe_infer.llama.sequence import Sequence

_MIN_COPY_TOKENS = 4
"""Minimum number of shared tokens for which a block is copied."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start : start + count`` of a sequence, to run in this step (a chunk of prefill, or one token to
    decode), and a draft of the following tokens.
    """

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Tokens to run, drafted ones included."""
        return self.count + len(self.draft)

    @property
    def completes(self) -> bool:
        """Whether the next token can be sampled after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    """Owns the queues and the cache's blocks.

    Args:
        pool: blocks of ``block_size`` tokens.
        max_batch_tokens: tokens of a step.
        max_sequences: sequences decoded concurrently.
        draft: ``(sequence, most, running)`` to a draft of at most ``most`` tokens, while ``running`` sequences run.
            Called for a sequence whose tokens all run in this step.
        copy: copies keys and values from one block to another, before the step writes its own.
    """

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        max_batch_tokens: int,
        max_sequences: int,
        draft: Callable[[Sequence, int, int], list[int]] = lambda sequence, most, running: [],
        copy: Callable[[int, int], None] = lambda source, target: None,
    ) -> None:
        self.pool = pool
        self.block_size = block_size
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self._draft = draft
        self._copy = copy
        self._step = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def drop_unstarted(self) -> None:
        """Drop the sequences that never ran. Preempted ones stay."""
        self.waiting = deque(s for s in self.waiting if s.started is not None)

    def finish_sequence(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_blocks(sequence)

    def schedule(self) -> list[Chunk]:
        """Return the chunks of the next step; empty if idle. Their blocks are allocated, and registered where
        full."""
        self._step += 1
        chunks, budget = self._continue_running()
        for chunk in chunks:
            self._register_blocks(chunk)
        place = 0
        while place < len(self.waiting) and budget > 0 and len(self.running) < self.max_sequences:
            sequence = self.waiting[place]
            if self._is_computed_this_step(sequence):
                place += 1
                continue
            if not self._admit(sequence):
                break
            del self.waiting[place]
            self.running.append(sequence)
            chunk = self._schedule_chunk(sequence, min(sequence.remaining, budget), budget, 0)
            self._register_blocks(chunk)
            chunks.append(chunk)
            budget -= chunk.rows
        if not chunks and self.busy:
            raise RuntimeError("no sequence fits the cache, although each was checked against it")
        return chunks

    def _continue_running(self) -> tuple[list[Chunk], int]:
        """Return the chunks of running sequences and the remaining budget."""
        budget = self.max_batch_tokens
        chunks: dict[int, Chunk] = {}
        order = sorted(self.running, key=lambda s: s.remaining > 1)
        for place, sequence in enumerate(order):
            if budget == 0 or sequence not in self.running:
                continue
            count = min(sequence.remaining, budget)
            if self._ensure_free_blocks(sequence, count, chunks):
                chunk = self._schedule_chunk(sequence, count, budget, len(order) - place - 1)
                chunks[id(sequence)] = chunk
                budget -= chunk.rows
        return list(chunks.values()), budget

    def _cached_prefix(self, sequence: Sequence) -> tuple[list[int], bytes, list[int]]:
        """Return the cached blocks of a sequence's prefix, the hash of the last of them, and the tokens that may
        follow in the next block.

        The last token is excluded: it must run in any case to sample the next one.
        """
        hashes = block_hashes(sequence.tokens, self.block_size, sequence.salt, sequence.block_hashes)
        last = len(sequence.tokens) - 1
        found = self.pool.lookup(hashes[: last // self.block_size])
        start = len(found) * self.block_size
        parent = hashes[len(found) - 1] if found else sequence.salt
        return found, parent, sequence.tokens[start : min(start + self.block_size, last)]

    def _is_computed_this_step(self, sequence: Sequence) -> bool:
        """Whether another sample of the prompt computes the rest of this prefix in the current step, so that the next
        step need only copy it."""
        found, parent, tokens = self._cached_prefix(sequence)
        if len(tokens) < _MIN_COPY_TOKENS or len(found) * self.block_size + len(tokens) < len(sequence.tokens) - 1:
            return False
        _, now = self.pool.find_partial(parent, tokens, self._step)
        _, soon = self.pool.find_partial(parent, tokens, self._step + 1)
        return now < soon == len(tokens)

    def _admit(self, sequence: Sequence) -> bool:
        """Admit a sequence with its cached prefix. Returns False if the cache has too few free blocks.

        It must fit completely, with one spare block for each running sequence, so that it is not preempted at once.
        """
        found, parent, tokens = self._cached_prefix(sequence)
        needed = -(-len(sequence.tokens) // self.block_size) - len(found)
        if needed + self.pool.count_unreferenced(found) + len(self.running) > self.pool.free:
            return False
        self.pool.incref(found)
        sequence.blocks = list(found)
        sequence.computed = len(found) * self.block_size + self._copy_partial_block(sequence, parent, tokens)
        if sequence.started is None:
            sequence.started = time.perf_counter()
            sequence.cached_tokens = sequence.computed
        return True

    def _copy_partial_block(self, sequence: Sequence, parent: bytes, tokens: list[int]) -> int:
        """Copy cached ``tokens`` from another block into the sequence's next block. Returns their number."""
        source, count = self.pool.find_partial(parent, tokens, self._step)
        if count < _MIN_COPY_TOKENS or self.pool.free <= self.pool.count_unreferenced([source]):
            return 0
        self.pool.incref([source])
        target = self.pool.allocate()
        self._copy(source, target)
        self.pool.decref([source])
        sequence.blocks.append(target)
        return count

    def _ensure_free_blocks(self, sequence: Sequence, count: int, chunks: dict[int, Chunk]) -> bool:
        """Preempt the last admitted sequences until ``count`` more tokens fit. False if ``sequence`` itself was
        preempted."""
        needed = -(-(sequence.computed + count) // self.block_size) - len(sequence.blocks)
        while needed > self.pool.free:
            victim = self.running[-1]
            chunks.pop(id(victim), None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        sequence.preemptions += 1
        self.preemptions += 1
        self._wait_again(sequence)

    def recompute(self, sequence: Sequence, salt: bytes) -> None:
        """Compute all keys and values of a sequence again, with block hashes of another ``salt``."""
        sequence.salt = salt
        sequence.block_hashes.clear()
        self._wait_again(sequence)

    def _wait_again(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_blocks(sequence)
        sequence.computed = 0
        self.waiting.appendleft(sequence)

    def _schedule_chunk(self, sequence: Sequence, count: int, budget: int, others: int) -> Chunk:
        """Allocate the blocks of a chunk and of a draft, if budget and blocks allow.

        One row and one block are reserved for each of the ``others`` that are still to be scheduled.
        """
        start, end = sequence.computed, sequence.computed + count
        self._allocate(sequence, end)
        sequence.computed = end
        sequence.steps += 1
        draft: list[int] = []
        if end == len(sequence.tokens):
            blocks = len(sequence.blocks) + max(0, self.pool.free - others)
            capacity = min(budget - count - others, blocks * self.block_size - end)
            draft = self._draft(sequence, capacity, len(self.running)) if capacity > 0 else []
            self._allocate(sequence, end + len(draft))
        return Chunk(sequence, start, count, tuple(draft))

    def _allocate(self, sequence: Sequence, end: int) -> None:
        """Allocate blocks for the first ``end`` tokens."""
        while len(sequence.blocks) * self.block_size < end:
            sequence.blocks.append(self.pool.allocate())

    def commit_draft(self, chunk: Chunk) -> None:
        """Keep the accepted part of a verified draft and free the blocks of the rest.

        Keys and values of rejected tokens are beyond ``computed``, where no row reads them, and are overwritten.
        """
        sequence = chunk.sequence
        sequence.computed = len(sequence.tokens) - 1
        kept = -(-sequence.computed // self.block_size)
        self.pool.decref(sequence.blocks[kept:])
        del sequence.blocks[kept:]
        self._register_blocks(Chunk(sequence, chunk.start, sequence.computed - chunk.start))

    def _register_blocks(self, chunk: Chunk) -> None:
        """Register the blocks that a chunk fills, and the block in which a prompt ends.

        Blocks are registered before their keys and values exist. Each layer writes all of them before it reads any,
        so a sequence admitted in the same step can share them.
        """
        sequence, size = chunk.sequence, self.block_size
        end = chunk.start + chunk.count
        first, full = chunk.start // size, end // size
        ends_prompt = chunk.start < len(sequence.request.prompt_ids) <= end and end > full * size
        if full == first and not ends_prompt:
            return
        hashes = block_hashes(sequence.tokens, size, sequence.salt, sequence.block_hashes)
        for index in range(first, full + ends_prompt):
            block = sequence.blocks[index]
            if index < full:
                self.pool.register(block, hashes[index])
            parent = hashes[index - 1] if index else sequence.salt
            self.pool.register_partial(
                block, parent, sequence.tokens[index * size : min(end, (index + 1) * size)], self._step
            )

    def _free_blocks(self, sequence: Sequence) -> None:
        self.pool.decref(sequence.blocks)
        sequence.blocks = []
