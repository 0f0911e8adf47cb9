"""Attention with torch's ``scaled_dot_product_attention`` (SDPA), on any device and in any type.

On a CPU in float32 a row's result depends only on its own sequence, bit for bit: keys are padded to a multiple of
``TILE`` and masked beyond the row, and the kernel always gets at least ``MIN_ROWS`` rows, below which the matrix
library sums in another order. So chunking of prompts, prefix caching and batch composition do not change results.

Shape suffixes: T packed tokens, H query heads, K key-value heads, G query heads per key-value head, D head dimension,
N cache blocks, B tokens per block, S sequences of a group, Z = S K, R rows, L keys. Pools are NKBD, so that gathering
a block copies the keys of one head contiguously.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout

TILE = 256
"""Keys are padded to a multiple of this. Prefill chunks are split at these positions."""

MIN_ROWS = 8
"""Minimum rows of a float32 matrix product. Row counts are rounded up to a multiple of it."""

GATHER_TOKENS = 1 << 16
"""Maximum keys gathered from the cache at once for decoding sequences."""

_Row = tuple[int, int, list[int]]
"""A decoding sequence: its row in the packed queries, its position in the last tile, and its blocks."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows ``start:stop`` of the packed queries within one tile of ``keys`` keys. ``row``: position of the first row
    in the tile."""

    start: int
    stop: int
    row: int
    keys: int


@dataclass(frozen=True, slots=True)
class _Prefill:
    """A prompt chunk of one sequence: pool rows of its keys (head by head, padded to whole tiles) and its tiles."""

    rows_KN: Tensor
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True, slots=True)
class _Decode:
    """Decoding sequences with the same number of padded keys: pool rows of their keys, and positions in the last
    tile."""

    queries_S: Tensor
    pool_SKN: Tensor
    rows_S: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    prefills: tuple[_Prefill, ...]
    decodes: tuple[_Decode, ...]


class Backend(AttentionBackend[Plan]):
    """SDPA over keys and values gathered from cache blocks."""

    block_size = 32

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._heads_K = torch.arange(shape.kv_heads, device=shape.device)
        self._buffers = [torch.empty(0), torch.empty(0)]
        self._masks_RL: dict[int | None, Tensor] = {}

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        return None

    def pool_shape(self, blocks: int) -> tuple[int, int, int, int]:
        return (blocks, self.shape.kv_heads, self.block_size, self.shape.head_dim)

    def slots(self, places_T: Tensor) -> Tensor:
        block_T, offset_T = places_T // self.block_size, places_T % self.block_size
        rows_TK = (block_T[:, None] * self.shape.kv_heads + self._heads_K) * self.block_size + offset_T[:, None]
        return rows_TK.flatten()

    def write(self, k_pool: Tensor, v_pool: Tensor, k_TKD: Tensor, v_TKD: Tensor, slots: Tensor) -> None:
        """Numbers that are not finite become 0: masks would pass NaN on to sequences that get the block later."""
        for pool, x_TKD in ((k_pool, k_TKD), (v_pool, v_TKD)):
            finite_TKD = x_TKD.nan_to_num(0.0, 0.0, 0.0)
            pool.view(-1, self.shape.head_dim).index_copy_(0, slots, finite_TKD.flatten(0, 1))

    def plan(self, layout: Layout) -> Plan:
        prefills, start = [], 0
        decodes: dict[int, list[_Row]] = defaultdict(list)
        for query_len, key_len, table in zip(layout.query_lens, layout.key_lens, layout.block_tables, strict=True):
            padded = -(-key_len // TILE) * TILE
            blocks = self._blocks(table, padded)
            if query_len == 1:
                decodes[padded].append((start, (key_len - 1) % TILE, blocks))
            else:
                tiles = _tiles(start, query_len, key_len)
                prefills.append(_Prefill(self._rows(self._device(blocks)[None])[0], tiles))
            start += query_len
        groups = []
        for padded, rows in sorted(decodes.items()):
            step = max(1, GATHER_TOKENS // padded)
            groups += [self._group(rows[i : i + step]) for i in range(0, len(rows), step)]
        return Plan(tuple(prefills), tuple(groups))

    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Plan, window: int | None = None) -> Tensor:
        out_THD = torch.zeros_like(q_THD)
        for prefill in plan.prefills:
            k_KLD, v_KLD = (self._gather(k_pool, prefill.rows_KN, False), self._gather(v_pool, prefill.rows_KN, True))
            for tile in prefill.tiles:
                q_RHD = q_THD[tile.start : tile.stop]
                mask_RL = self._mask(tile.keys, window)
                visible = slice(tile.keys - mask_RL.shape[1], tile.keys)
                out_THD[tile.start : tile.stop] = self._tile(
                    q_RHD, k_KLD[:, visible], v_KLD[:, visible], mask_RL[tile.row :]
                )
        for group in plan.decodes:
            k_SKLD, v_SKLD = (self._gather(pool, group.pool_SKN, pool is v_pool) for pool in (k_pool, v_pool))
            q_SKGD = q_THD.index_select(0, group.queries_S).view(
                len(group.queries_S), self.shape.kv_heads, self.shape.group, -1
            )
            mask_SL = self._mask(k_SKLD.shape[2], window).index_select(0, group.rows_S)
            visible = slice(k_SKLD.shape[2] - mask_SL.shape[1], None)
            out_SKGD = self._decode(q_SKGD, k_SKLD[:, :, visible], v_SKLD[:, :, visible], mask_SL)
            out_THD.index_copy_(0, group.queries_S, out_SKGD.flatten(1, 2))
        return out_THD

    def _tile(self, q_RHD: Tensor, k_KLD: Tensor, v_KLD: Tensor, mask_RL: Tensor) -> Tensor:
        rows = len(q_RHD)
        padding = -rows % MIN_ROWS
        if padding:
            q_RHD = functional.pad(q_RHD, (0, 0, 0, 0, 0, padding))
        out_1HRD = functional.scaled_dot_product_attention(
            q_RHD.transpose(0, 1).unsqueeze(0),
            k_KLD.unsqueeze(0),
            v_KLD.unsqueeze(0),
            attn_mask=mask_RL[: rows + padding],
            enable_gqa=self.shape.group > 1,
        )
        return out_1HRD[0, :, :rows].transpose(0, 1)

    def _decode(self, q_SKGD: Tensor, k_SKLD: Tensor, v_SKLD: Tensor, mask_SL: Tensor) -> Tensor:
        """Attend with the query heads of a key-value head as rows, so that keys and values are read once."""
        padding = -self.shape.group % MIN_ROWS
        q_SKRD = functional.pad(q_SKGD, (0, 0, 0, padding))
        mask_S1RL = mask_SL[:, None, None].expand(-1, -1, q_SKRD.shape[2], -1)
        out_SKRD = functional.scaled_dot_product_attention(q_SKRD, k_SKLD, v_SKLD, attn_mask=mask_S1RL)
        return out_SKRD[:, :, : self.shape.group]

    def _gather(self, pool: Tensor, rows: Tensor, values: bool) -> Tensor:
        """Gather blocks head by head: indices ``…KN`` give a contiguous ``…KLD``, in a buffer that the next keys (or
        ``values``) overwrite."""
        places = rows.flatten()
        size = len(places) * self.block_size * self.shape.head_dim
        if len(self._buffers[values]) < size:
            self._buffers[values] = torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)
        blocks = self._buffers[values][:size].view(-1, self.block_size, self.shape.head_dim)
        torch.index_select(pool.view(-1, self.block_size, self.shape.head_dim), 0, places, out=blocks)
        return blocks.view(*rows.shape[:-1], -1, self.shape.head_dim)

    def _group(self, members: list[_Row]) -> _Decode:
        starts, rows, blocks = zip(*members, strict=True)
        return _Decode(self._device(starts), self._rows(self._device(blocks)), self._device(rows))

    def _rows(self, blocks_SN: Tensor) -> Tensor:
        """Rows of each head's blocks in a pool viewed as ``(N K) B D``."""
        return blocks_SN[:, None] * self.shape.kv_heads + self._heads_K[:, None]

    def _blocks(self, table: Sequence[int], keys: int) -> list[int]:
        """The blocks of the first ``keys`` positions, padded with block 0, which is masked."""
        count = keys // self.block_size
        blocks = list(table[:count])
        return blocks + [0] * (count - len(blocks))

    def _mask(self, keys: int, window: int | None) -> Tensor:
        """The mask of the rows of the tile that ends with key ``keys``, over the keys that any of them sees, rounded
        up to whole tiles: the last ``TILE`` columns are causal."""
        reach = keys if window is None else min(keys, TILE * (1 + -(-(window - 1) // TILE)))
        mask_RL = self._masks_RL.get(window)
        if mask_RL is None or reach > mask_RL.shape[1]:
            width = max(4 * TILE, 2 * reach) if window is None else TILE * (1 + -(-(window - 1) // TILE))
            distance_RL = torch.arange(TILE)[:, None] + width - TILE - torch.arange(width)
            hidden_RL = distance_RL < 0 if window is None else (distance_RL < 0) | (distance_RL >= window)
            mask_RL = torch.zeros(TILE + MIN_ROWS, width, dtype=self.shape.dtype)  # the last rows are padding
            mask_RL[:TILE].masked_fill_(hidden_RL, float("-inf"))
            self._masks_RL[window] = mask_RL = mask_RL.to(self.shape.device)
        return mask_RL[:, mask_RL.shape[1] - reach :]

    def _device(self, values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64).to(self.shape.device, non_blocking=True)


def _tiles(start: int, query_len: int, key_len: int) -> tuple[_Tile, ...]:
    tiles, position = [], key_len - query_len
    while position < key_len:
        end = min(key_len, (position // TILE + 1) * TILE)
        rows = end - position
        tiles.append(_Tile(start, start + rows, position % TILE, (position // TILE + 1) * TILE))
        start, position = start + rows, end
    return tuple(tiles)
