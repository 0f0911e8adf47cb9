"""Keys and values of decoding sequences, gathered into contiguous copies that are reused from step to step.

Sequences that decode together usually do so again in the next step, each with one more token. From the second such
step on, a copy is kept and only new tokens are added to it, which avoids gathering the KV blocks again. The copy has
the same content, so results are bit-identical. Figures: ``benchmarks/README.md``.

Shape suffixes as in :mod:`swe_infer.llama.attention.sdpa`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

MAX_BYTES = 1 << 29
"""Limit on all copies together. Layers beyond it are gathered in every step."""

MAX_IDLE_STEPS = 32
"""Steps for which the copies of a group are kept while it does not decode together, for example because one of its
sequences has a draft to verify."""


@dataclass(slots=True)
class DecodeGroup:
    """The sequences of one decode group in one step.

    Args:
        blocks: cache blocks of each sequence's keys, the same number for each.
        last_positions: position of each sequence's last token.
        allocation_ids: owner of each sequence's blocks, see :class:`swe_infer.llama.attention.base.Layout`; None:
            unknown.
        copies: by address of the pool; None: no copies, because the group did not decode together in the previous
            step.
        changed: rows of the pool ``(N K B) D`` written since the last step, and their rows in a copy.
    """

    blocks: Sequence[list[int]]
    last_positions: Sequence[int]
    allocation_ids: Sequence[int | None]
    copies: dict[int, Tensor] | None = None
    changed: tuple[Tensor, Tensor] | None = None
    last_step: int = 0
    """Number of the step."""
    rows_SKN: Tensor | None = None
    """Computed by :meth:`GatheredKV.pool_rows`."""


class GatheredKV:
    """The copies of one attention backend.

    A copy holds a sequence's tokens up to the last one computed in its group. Their keys are never overwritten while
    the sequence keeps its ``allocation_id``: rejected drafts are beyond them.

    Args:
        block_size, kv_heads: of a block.
        rows_of: maps blocks to rows of a pool viewed as ``(N K) B D``, head by head.
        send: copies indices to the device.
    """

    def __init__(
        self,
        block_size: int,
        kv_heads: int,
        rows_of: Callable[[Sequence[Sequence[int]]], Tensor],
        send: Callable[[Sequence[int]], Tensor],
    ) -> None:
        self._block_size = block_size
        self._kv_heads = kv_heads
        self._rows_of = rows_of
        self._send = send
        self._groups: dict[Hashable, DecodeGroup] = {}
        self._step = 0

    def begin_step(self) -> None:
        """Start planning a new step."""
        self._step += 1
        self._evict(MAX_IDLE_STEPS)

    def attach(self, group: DecodeGroup) -> DecodeGroup:
        """Attach the copies of ``group``. A group that decoded together in the previous step gets copies."""
        if None in group.allocation_ids:
            return group
        group.last_step = self._step
        key = (tuple(group.allocation_ids), len(group.blocks[0]))
        before = self._groups.get(key)
        if before is not None and (before.copies or before.last_step == self._step - 1):
            group.copies = before.copies or {}
            group.changed = self._changed(before.last_positions, group)
        self._groups[key] = group
        return group

    def pool_rows(self, group: DecodeGroup) -> Tensor:
        """Rows of a group's blocks in the pools. Computed on first use."""
        if group.rows_SKN is None:
            group.rows_SKN = self._rows_of(group.blocks)
        return group.rows_SKN

    def gather(self, pool: Tensor, group: DecodeGroup) -> Tensor | None:
        """Return the keys (or values) SKLD of a group from ``pool`` (NKBD); None if no copy is kept."""
        copies = group.copies
        if copies is None or group.changed is None:
            return None
        copy_xD = copies.get(pool.data_ptr())
        if copy_xD is None:
            rows_SKN, pool_xBD = self.pool_rows(group), pool.flatten(0, 1)
            needed = rows_SKN.numel() * pool_xBD[0].nbytes
            if self._bytes() + needed > MAX_BYTES:
                self._evict(1)
            if self._bytes() + needed > MAX_BYTES:
                return None
            copy_xD = pool_xBD.index_select(0, rows_SKN.flatten()).flatten(0, 1)
            copies[pool.data_ptr()] = copy_xD
        else:
            sources, targets = group.changed
            copy_xD.index_copy_(0, targets, pool.flatten(0, 2).index_select(0, sources))
        return copy_xD.view(len(group.blocks), self._kv_heads, -1, pool.shape[-1])

    def _changed(self, before: Sequence[int], group: DecodeGroup) -> tuple[Tensor, Tensor]:
        sources: list[int] = []
        targets: list[int] = []
        size, heads = self._block_size, self._kv_heads
        keys = len(group.blocks[0]) * size
        tokens = zip(before, group.last_positions, group.blocks, strict=True)
        for sequence, (known, last, blocks) in enumerate(tokens):
            for place in range(known + 1, last + 1):
                first, offset = blocks[place // size] * heads, place % size
                sources += [(first + head) * size + offset for head in range(heads)]
                targets += [(sequence * heads + head) * keys + place for head in range(heads)]
        return self._send(sources), self._send(targets)

    def _evict(self, steps: int) -> None:
        """Drop groups that have not decoded together for ``steps`` steps."""
        self._groups = {key: group for key, group in self._groups.items() if self._step - group.last_step < steps}

    def _bytes(self) -> int:
        groups = self._groups.values()
        return sum(copy.nbytes for group in groups for copy in (group.copies or {}).values())
