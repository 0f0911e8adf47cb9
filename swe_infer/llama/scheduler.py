"""Decides what each forward pass computes.

Sequences enter and leave at every step (continuous batching, Yu et al., 2022). Those that decode come first, one
token each; what is left of the step's token budget goes to prompts, in chunks (chunked prefill, Agrawal et al.,
2023), in the order of arrival. When the cache is full the sequence that came last makes room and is computed again
later. What is left over may carry drafts of the next tokens (speculative decoding, Leviathan et al., 2023).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from swe_infer.llama.kv_cache import BlockPool, block_hashes
from swe_infer.llama.sequence import Sequence

_MIN_COPY_TOKENS = 4
"""Fewest tokens for which a block is copied."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start : start + count`` of a sequence, to be run in this step, and a draft of those that follow."""

    sequence: Sequence
    start: int
    count: int
    draft: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Tokens that are run, drafted ones included."""
        return self.count + len(self.draft)

    @property
    def completes(self) -> bool:
        """Whether the next token can be chosen after this chunk."""
        return self.start + self.count == len(self.sequence.tokens)


class Scheduler:
    """Owns the queues and the cache's blocks.

    Args:
        pool: blocks of ``block_size`` tokens.
        max_batch_tokens: tokens of a step.
        max_sequences: sequences that are in the making at once.
        draft: drafts the next tokens of a sequence, at most so many, while so many sequences run; asked when all its
            tokens are run in the step.
        copy: copies keys and values from one block to another, before the step's own are written.
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
        self._admissions = 0
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def drop_unstarted(self) -> None:
        """Forget what has not been begun. What made room for others has been."""
        self.waiting = deque(s for s in self.waiting if s.started is not None)

    def finish_sequence(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_blocks(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step's chunks; empty when there is nothing to do. Their blocks are held, and named where full."""
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
        """Chunks of the sequences that run already, and what they leave of the budget."""
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
        """The blocks of its known beginning, the name of the last of them, and the tokens that may follow there.

        The last token is not among them: it is run in any case, for the choice of the next one.
        """
        hashes = block_hashes(sequence.tokens, self.block_size, sequence.salt, sequence.block_hashes)
        last = len(sequence.tokens) - 1
        found = self.pool.lookup(hashes[: last // self.block_size])
        start = len(found) * self.block_size
        parent = hashes[len(found) - 1] if found else sequence.salt
        return found, parent, sequence.tokens[start : min(start + self.block_size, last)]

    def _is_computed_this_step(self, sequence: Sequence) -> bool:
        """Whether all that is left of it is computed in this very step, by another sample of its prompt: in the next
        step it need only be copied."""
        found, parent, tokens = self._cached_prefix(sequence)
        if len(tokens) < _MIN_COPY_TOKENS or len(found) * self.block_size + len(tokens) < len(sequence.tokens) - 1:
            return False
        _, now = self.pool.find_partial(parent, tokens, self._step)
        _, soon = self.pool.find_partial(parent, tokens, self._step + 1)
        return now < soon == len(tokens)

    def _admit(self, sequence: Sequence) -> bool:
        """Take the known beginning of a sequence from the cache, if what is left of it has room as well.

        Room for the whole sequence and a block for each one that is running is asked for, so that the newcomer is not
        sent away again at once.
        """
        found, parent, tokens = self._cached_prefix(sequence)
        needed = -(-len(sequence.tokens) // self.block_size) - len(found)
        if needed + self.pool.count_unreferenced(found) + len(self.running) > self.pool.free:
            return False
        self.pool.incref(found)
        sequence.blocks = list(found)
        self._admissions += 1
        sequence.allocation_id = self._admissions
        sequence.computed = len(found) * self.block_size + self._copy_partial_block(sequence, parent, tokens)
        if sequence.started is None:
            sequence.started = time.perf_counter()
            sequence.cached_tokens = sequence.computed
        return True

    def _copy_partial_block(self, sequence: Sequence, parent: bytes, tokens: list[int]) -> int:
        """Begin the sequence's next block with what another one holds of ``tokens``. Returns how many that are."""
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
        """Have blocks for ``count`` more tokens, at the cost of those that came last. False: it went itself."""
        needed = -(-(sequence.computed + count) // self.block_size) - len(sequence.blocks)
        while needed > self.pool.free:
            victim = self.running[-1]
            chunks.pop(id(victim), None)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_blocks(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        self.waiting.appendleft(sequence)

    def _schedule_chunk(self, sequence: Sequence, count: int, budget: int, others: int) -> Chunk:
        """Take the blocks of a chunk, and of a draft where there is room for it.

        A draft takes nothing from the ``others`` that are still to be scheduled: a row and a block stay for each.
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
        """Have blocks for the first ``end`` tokens."""
        while len(sequence.blocks) * self.block_size < end:
            sequence.blocks.append(self.pool.allocate())

    def commit_draft(self, chunk: Chunk) -> None:
        """After a step in which a sequence got its next tokens: keep the accepted part of its draft, drop the rest.

        Keys and values of rejected tokens lie beyond ``computed``, where no row looks, and are written over.
        """
        sequence = chunk.sequence
        sequence.computed = len(sequence.tokens) - 1
        kept = -(-sequence.computed // self.block_size)
        self.pool.decref(sequence.blocks[kept:])
        del sequence.blocks[kept:]
        self._register_blocks(Chunk(sequence, chunk.start, sequence.computed - chunk.start))

    def _register_blocks(self, chunk: Chunk) -> None:
        """Make the blocks that a chunk fills findable, and the one in which a prompt ends.

        Names are given before the keys and values exist: all are written before any is read in each layer, so a
        sequence that enters in the same step may already share them.
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
