"""Attention on a CPU with our own kernel, :mod:`swe_infer.llama.native`.

It reads the cache in place, and reads keys and values that several sequences share once for all of them: samples of a
prompt share all blocks of the prompt but the last (cf. Hydragen, Juravsky et al., 2024; cascade inference in
FlashInfer, Ye et al., 2024).

A row's result depends only on its own sequence, bit for bit.

Shape suffixes as in :mod:`swe_infer.llama.attention.base`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout
from swe_infer.llama.native.kernels import BLOCK, PANEL, ROWS, TILE_DEPTH, Kernels, Units, load_kernels

_LARGEST_HEAD = 256
_PANEL_BLOCKS = PANEL // BLOCK
_MIN_SHARED_FRACTION = 0.5
"""Minimum fraction of its blocks that a sequence must share with its group."""


class Backend(AttentionBackend[Units]):
    """The compiled kernel, over a cache in the kernel's layout."""

    block_size = BLOCK

    def __init__(self, shape: AttentionShape, kernels: Kernels | None = None) -> None:
        super().__init__(shape)
        found = kernels or load_kernels(shape.dtype)
        assert not isinstance(found, str)
        self._kernels = found
        self._max_tokens = max(1, ROWS // shape.group)

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        if shape.device.type != "cpu":
            return f"needs a CPU, and this is {shape.device.type}"
        step = TILE_DEPTH.get(shape.dtype, 1)
        if shape.head_dim % step or shape.head_dim > _LARGEST_HEAD:
            return f"head_dim {shape.head_dim} is not a multiple of {step} up to {_LARGEST_HEAD}"
        kernels = load_kernels(shape.dtype)
        return kernels if isinstance(kernels, str) else None

    def pool_shape(self, blocks: int) -> tuple[int, int, int, int]:
        return (blocks, self.shape.kv_heads, self.block_size, self.shape.head_dim)

    def write(self, k_pool: Tensor, v_pool: Tensor, k_TKD: Tensor, v_TKD: Tensor, slots: Tensor) -> None:
        self._kernels.write_cache(k_pool, v_pool, k_TKD, v_TKD, slots)

    def plan(self, layout: Layout) -> Units:
        units: list[tuple[int, int, int, int]] = []
        segments: list[tuple[int, int, int, int, int]] = []
        tokens: list[int] = []
        visible: list[int] = []
        tables: list[int] = []
        first = 0
        firsts, starts = [], []
        for query_len, table in zip(layout.query_lens, layout.block_tables, strict=True):
            firsts.append(first)
            starts.append(len(tables))
            first += query_len
            tables += table
        singles = [s for s, query_len in enumerate(layout.query_lens) if query_len == 1]
        for sequence, (query_len, key_len) in enumerate(zip(layout.query_lens, layout.key_lens, strict=True)):
            if query_len == 1:
                continue
            for row in range(0, query_len, self._max_tokens):
                count = min(self._max_tokens, query_len - row)
                end = key_len - query_len + row + count
                units.append((len(tokens), count, len(segments), 1))
                segments.append((0, count, starts[sequence], 0, end))
                tokens += range(firsts[sequence] + row, firsts[sequence] + row + count)
                visible += range(end - count + 1, end + 1)
        for members, shared in self._shared_groups(layout, singles):
            units.append((len(tokens), len(members), len(segments), len(members) + (shared > 0)))
            if shared:
                segments.append((0, len(members), starts[members[0]], 0, shared))
            for place, sequence in enumerate(members):
                segments.append((place, 1, starts[sequence], shared, layout.key_lens[sequence]))
                tokens.append(firsts[sequence])
                visible.append(layout.key_lens[sequence])
        lists = units, tokens, visible, segments, tables
        return Units(*(torch.tensor(values, dtype=torch.int32) for values in lists))

    def _shared_groups(self, layout: Layout, singles: list[int]) -> list[tuple[list[int], int]]:
        """Group the sequences with one row by shared prefix, with the number of shared keys; 0 for a sequence
        alone."""
        groups = []
        for group in prefix_groups([layout.block_tables[s] for s in singles], self._max_tokens):
            members = [singles[place] for place in group.members]
            shared = group.blocks // _PANEL_BLOCKS * PANEL
            if shared:
                groups.append((members, shared))
            else:
                groups += [([member], 0) for member in members]
        return groups

    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Units, window: int | None = None) -> Tensor:
        return self._kernels.attend(q_THD, k_pool, v_pool, plan, window)


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Sequences ``members`` (indices) whose first ``blocks`` blocks are the same; 0 for a sequence alone."""

    members: tuple[int, ...]
    blocks: int


def common_blocks(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """Number of leading blocks that two tables have in common, at most ``most``."""
    low, high = 0, min(most, len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def prefix_groups(tables: Sequence[Sequence[int]], most: int) -> list[PrefixGroup]:
    """Group sequences that share a long prefix.

    Args:
        tables: blocks of each sequence's keys. The last block is being written and never counts as shared.
        most: maximum sequences of a group.
    """
    groups: list[PrefixGroup] = []
    members: list[int] = []
    shared = 0
    for place in sorted(range(len(tables)), key=lambda place: list(tables[place])):
        table = tables[place]
        common = common_blocks(tables[members[0]], table, min(shared, len(table) - 1)) if members else 0
        if common and common >= _MIN_SHARED_FRACTION * len(table) and len(members) < most:
            members.append(place)
            shared = common
            continue
        if members:
            groups.append(PrefixGroup(tuple(members), shared if len(members) > 1 else 0))
        members, shared = [place], len(table) - 1
    if members:
        groups.append(PrefixGroup(tuple(members), shared if len(members) > 1 else 0))
    return groups
