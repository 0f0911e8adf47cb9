"""Attention with torch's ``scaled_dot_product_attention`` (SDPA), on any device and in any type.

On a CPU in bfloat16 plain matrix products and a softmax, in memory that is used again, take its place: they were 1.5
to 1.9 times as fast as torch's fused kernel on a Zen 4 (``benchmarks/engine_attention.py``).

What a row computes depends on its own sequence alone, bit for bit, on a CPU in float32: keys are always taken up to
the next multiple of ``TILE`` (what lies beyond the row is masked), and the kernel always gets at least ``MIN_ROWS``
rows, below which the matrix library sums in another order. So it makes no difference how a prompt is cut into chunks,
which part of it came from the cache, or who else is in the batch.

Shape suffixes: T packed tokens, H query heads, K key-value heads, G query heads a key-value head, D head dimension,
N cache blocks, B tokens a block, S sequences of a group, Z = S K, R rows, L keys. Pools are NKBD, so that the keys of
one head come together when they are gathered.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout
from swe_infer.llama.kept_keys import KeptKeys, Members
from swe_infer.llama.shared_prefix import prefix_groups

__all__ = ["Backend", "Plan"]

TILE = 256
"""Keys are padded to a multiple of this; a prefill chunk is cut at these positions."""

MIN_ROWS = 8
"""Fewest rows of a float32 matrix product, and what row counts are rounded up to."""

GATHER_TOKENS = 1 << 16
"""Most keys that are copied out of the cache at once for sequences that decode."""

FEW_ROWS = 64
"""Most rows of a sequence that are computed together with those of others, where products are used: guesses."""

SCORES = 1 << 24
"""Most scores that are held at once where products take the place of the fused kernel."""


_Row = tuple[int, int, list[int], int | None]
"""Of a sequence that decodes: its place in the packed queries, its place in the last tile, the blocks of its keys,
and who holds them."""


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows ``start:stop`` of the packed queries, all in one tile of ``keys`` keys; ``row``: the first one's place."""

    start: int
    stop: int
    row: int
    keys: int


@dataclass(frozen=True, slots=True)
class _Prefill:
    """A chunk of one sequence: where its keys lie (head by head, padded to whole tiles) and its tiles."""

    rows_KN: Tensor
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True, slots=True)
class _Decode:
    """Sequences that bring one row each and have the same number of padded keys. ``mask`` is for the last tile."""

    queries_S: Tensor
    members: Members
    mask_S11L: Tensor


@dataclass(frozen=True, slots=True)
class _Guess:
    """Sequences that bring a few rows each, at most R, all in the last tile of their padded keys, of which all have
    the same number. ``queries_SR`` repeats a sequence's last row up to R; ``own_T`` says which of the S R are no
    repetitions."""

    queries_SR: Tensor
    own_T: Tensor
    rows_SKN: Tensor
    mask_SRL: Tensor


@dataclass(frozen=True, slots=True)
class _Shared:
    """Sequences that bring one row each, have the same number of padded keys, and share the first of them.
    ``rows_KN`` is where these lie, ``filled_KN`` the same with scratch blocks up to all padded keys, ``tails_SKN``
    where each one's own keys lie."""

    queries_S: Tensor
    rows_KN: Tensor
    filled_KN: Tensor
    tails_SKN: Tensor
    mask_S11L: Tensor


@dataclass(frozen=True, slots=True)
class Plan:
    prefills: tuple[_Prefill, ...]
    decodes: tuple[_Decode, ...]
    guesses: tuple[_Guess, ...] = ()
    shared: tuple[_Shared, ...] = ()


class Backend(AttentionBackend[Plan]):
    """SDPA, or plain products, over keys and values gathered from the cache's blocks."""

    block_size = 32

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._products = shape.device.type == "cpu" and shape.dtype == torch.bfloat16
        self._scale = shape.head_dim**-0.5
        self._heads_K = torch.arange(shape.kv_heads, device=shape.device)
        self._scores = torch.empty(0)
        self._gathered = [torch.empty(0), torch.empty(0)]
        self._kept = KeptKeys(
            self.block_size, shape.kv_heads, lambda blocks: self._rows(self._device(blocks)), self._device
        )
        self._mask_RL = torch.empty(0)
        self._grow_mask(4 * TILE)

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
        for pool, x_TKD in ((k_pool, k_TKD), (v_pool, v_TKD)):
            pool.view(-1, self.shape.head_dim).index_copy_(0, slots, x_TKD.flatten(0, 1))

    def plan(self, layout: Layout) -> Plan:
        self._kept.begin()
        prefills, start = [], 0
        decodes: dict[int, list[_Row]] = defaultdict(list)
        guesses: dict[tuple[int, int], list[tuple[int, int, int, list[int]]]] = defaultdict(list)
        holders: Sequence[int | None] = layout.holders or [None] * len(layout.key_lens)
        for query_len, key_len, table, holder in zip(
            layout.query_lens, layout.key_lens, layout.block_tables, holders, strict=True
        ):
            padded = -(-key_len // TILE) * TILE
            if padded > self._mask_RL.shape[1]:
                self._grow_mask(2 * padded)
            blocks = self._blocks(table, padded)
            if query_len == 1:
                decodes[padded].append((start, (key_len - 1) % TILE, blocks, holder))
            elif self._products and query_len <= FEW_ROWS and key_len - query_len >= padded - TILE:
                place, most = (key_len - query_len) % TILE, 1 << (query_len - 1).bit_length()
                guesses[padded, most].append((start, query_len, place, blocks))
            else:
                tiles = _tiles(start, query_len, key_len)
                prefills.append(_Prefill(self._rows(self._device(blocks)[None])[0], tiles))
            start += query_len
        groups, shared = [], []
        for padded, rows in sorted(decodes.items()):
            members, together = self._sharing(rows, padded)
            shared += together
            step = max(1, GATHER_TOKENS // padded)
            groups += [self._group(members[i : i + step]) for i in range(0, len(members), step)]
        few = []
        for (padded, most), guessed in sorted(guesses.items()):
            step = max(1, min(GATHER_TOKENS // padded, SCORES // (self.shape.heads * most * padded)))
            few += [self._few_rows(guessed[i : i + step], most) for i in range(0, len(guessed), step)]
        return Plan(tuple(prefills), tuple(groups), tuple(few), tuple(shared))

    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Plan) -> Tensor:
        out_THD = torch.zeros_like(q_THD)
        tile_of = self._tile_by_products if self._products else self._tile_by_sdpa
        decode_of = self._decode_by_products if self._products else self._decode_by_sdpa
        for prefill in plan.prefills:
            k_KLD, v_KLD = (self._gather(k_pool, prefill.rows_KN, False), self._gather(v_pool, prefill.rows_KN, True))
            for tile in prefill.tiles:
                q_RHD = q_THD[tile.start : tile.stop]
                out_THD[tile.start : tile.stop] = tile_of(q_RHD, k_KLD[:, : tile.keys], v_KLD[:, : tile.keys], tile)
        for group in plan.decodes:
            k_SKLD, v_SKLD = (self._keys(pool, group.members, pool is v_pool) for pool in (k_pool, v_pool))
            q_SKGD = q_THD.index_select(0, group.queries_S).view(
                len(group.queries_S), self.shape.kv_heads, self.shape.group, -1
            )
            out_SKGD = decode_of(q_SKGD, k_SKLD, v_SKLD, group.mask_S11L)
            out_THD.index_copy_(0, group.queries_S, out_SKGD.flatten(1, 2))
        for together in plan.shared:
            out_SHD = self._shared_by_products(q_THD, k_pool, v_pool, together)
            out_THD.index_copy_(0, together.queries_S, out_SHD)
        for guess in plan.guesses:
            out_xHD = self._guess_by_products(q_THD, k_pool, v_pool, guess)
            places = guess.queries_SR.flatten().index_select(0, guess.own_T)
            out_THD.index_copy_(0, places, out_xHD.index_select(0, guess.own_T))
        return out_THD

    def _guess_by_products(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, guess: _Guess) -> Tensor:
        """Rows of several sequences at once; a row for each of ``queries_SR``."""
        kv_heads, group = self.shape.kv_heads, self.shape.group
        sequences, rows = guess.queries_SR.shape
        k_ZLD = self._gather(k_pool, guess.rows_SKN, False).flatten(0, 1)
        v_ZLD = self._gather(v_pool, guess.rows_SKN, True).flatten(0, 1)
        keys = k_ZLD.shape[1]
        q_xHD = q_THD.index_select(0, guess.queries_SR.flatten())
        q_SKGRD = q_xHD.view(sequences, rows, kv_heads, group, -1).permute(0, 2, 3, 1, 4)
        q_ZxD = q_SKGRD.reshape(sequences * kv_heads, group * rows, -1)
        scores_ZxL = self._room_for_scores(len(q_ZxD) * group * rows * keys).view(-1, group * rows, keys)
        torch.baddbmm(scores_ZxL, q_ZxD, k_ZLD.transpose(1, 2), beta=0, alpha=self._scale, out=scores_ZxL)
        scores_SxRL = scores_ZxL.view(sequences, kv_heads * group, rows, keys)
        scores_SxRL[..., -TILE:] += guess.mask_SRL[:, None]
        torch.softmax(scores_ZxL, -1, out=scores_ZxL)
        out_SKGRD = torch.bmm(scores_ZxL, v_ZLD).view(sequences, kv_heads, group, rows, -1)
        return out_SKGRD.permute(0, 3, 1, 2, 4).reshape(sequences * rows, kv_heads * group, -1)

    def _tile_by_sdpa(self, q_RHD: Tensor, k_KLD: Tensor, v_KLD: Tensor, tile: _Tile) -> Tensor:
        rows = len(q_RHD)
        padding = -rows % MIN_ROWS
        if padding:
            q_RHD = functional.pad(q_RHD, (0, 0, 0, 0, 0, padding))
        out_1HRD = functional.scaled_dot_product_attention(
            q_RHD.transpose(0, 1).unsqueeze(0),
            k_KLD.unsqueeze(0),
            v_KLD.unsqueeze(0),
            attn_mask=self._mask_RL[tile.row : tile.row + rows + padding, -tile.keys :],
            enable_gqa=self.shape.group > 1,
        )
        return out_1HRD[0, :, :rows].transpose(0, 1)

    def _tile_by_products(self, q_RHD: Tensor, k_KLD: Tensor, v_KLD: Tensor, tile: _Tile) -> Tensor:
        """The query heads of a key-value head are rows of one product, as many rows at once as memory allows."""
        kv_heads, group = self.shape.kv_heads, self.shape.group
        step = max(1, min(len(q_RHD), SCORES // (self.shape.heads * tile.keys)))
        parts = []
        for start in range(0, len(q_RHD), step):
            q_rHD = q_RHD[start : start + step]
            rows = len(q_rHD)
            q_KRD = q_rHD.view(rows, kv_heads, group, -1).permute(1, 2, 0, 3).reshape(kv_heads, group * rows, -1)
            scores_KRL = self._room_for_scores(self.shape.heads * rows * tile.keys).view(
                kv_heads, group * rows, tile.keys
            )
            torch.baddbmm(scores_KRL, q_KRD, k_KLD.transpose(1, 2), beta=0, alpha=self._scale, out=scores_KRL)
            first = tile.row + start
            scores_KRL.view(kv_heads, group, rows, -1)[..., -TILE:] += self._mask_RL[first : first + rows, -TILE:]
            torch.softmax(scores_KRL, -1, out=scores_KRL)
            out_KRD = torch.bmm(scores_KRL, v_KLD)
            parts.append(out_KRD.view(kv_heads, group, rows, -1).permute(2, 0, 1, 3).flatten(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode_by_sdpa(self, q_SKGD: Tensor, k_SKLD: Tensor, v_SKLD: Tensor, mask_S11L: Tensor) -> Tensor:
        """The query heads of a key-value head become rows, so that keys and values are read once."""
        padding = -self.shape.group % MIN_ROWS
        q_SKRD = functional.pad(q_SKGD, (0, 0, 0, padding))
        mask_S1RL = functional.pad(mask_S11L, (k_SKLD.shape[2] - TILE, 0)).expand(-1, -1, q_SKRD.shape[2], -1)
        out_SKRD = functional.scaled_dot_product_attention(q_SKRD, k_SKLD, v_SKLD, attn_mask=mask_S1RL)
        return out_SKRD[:, :, : self.shape.group]

    def _decode_by_products(self, q_SKGD: Tensor, k_SKLD: Tensor, v_SKLD: Tensor, mask_S11L: Tensor) -> Tensor:
        sequences, kv_heads, group, _ = q_SKGD.shape
        keys = k_SKLD.shape[2]
        k_ZLD, v_ZLD = k_SKLD.flatten(0, 1), v_SKLD.flatten(0, 1)
        scores_ZGL = self._room_for_scores(sequences * kv_heads * group * keys).view(-1, group, keys)
        torch.baddbmm(
            scores_ZGL, q_SKGD.flatten(0, 1), k_ZLD.transpose(1, 2), beta=0, alpha=self._scale, out=scores_ZGL
        )
        scores_ZGL.view(sequences, kv_heads, group, keys)[..., -TILE:] += mask_S11L
        torch.softmax(scores_ZGL, -1, out=scores_ZGL)
        return torch.bmm(scores_ZGL, v_ZLD).view(sequences, kv_heads, group, -1)

    def _shared_by_products(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, shared: _Shared) -> Tensor:
        """Decode rows of sequences that share their first keys: these are read once, and all rows' scores with them
        are one product.

        Values are multiplied for one sequence after the other, whose own ones take their place behind the shared
        ones in the same memory. For the sum over keys has the same bits only if it goes over the same number of them
        in the same order, whereas each score is a sum of its own.
        """
        kv_heads, group, head_dim = self.shape.kv_heads, self.shape.group, self.shape.head_dim
        sequences, keys = len(shared.queries_S), shared.filled_KN.shape[1] * self.block_size
        q_SKGD = q_THD.index_select(0, shared.queries_S).view(sequences, kv_heads, group, head_dim)
        k_KLD = self._gather(k_pool, shared.rows_KN, False)
        q_KxD = q_SKGD.transpose(0, 1).reshape(kv_heads, sequences * group, head_dim)
        own = k_KLD.shape[1]
        scores_KxL = self._scores_of(q_KxD, k_KLD)
        k_ZLD = self._gather(k_pool, shared.tails_SKN, False).flatten(0, 1)
        scores_ZGL = self._scores_of(q_SKGD.flatten(0, 1), k_ZLD)
        tail = own + k_ZLD.shape[1]
        weights_SKGL = self._room_for_scores(sequences * self.shape.heads * keys).view(
            sequences, kv_heads, group, keys
        )
        weights_SKGL[..., :own] = scores_KxL.view(kv_heads, sequences, group, own).transpose(0, 1)
        weights_SKGL[..., own:tail] = scores_ZGL.view(sequences, kv_heads, group, -1)
        weights_SKGL[..., tail:] = 0
        weights_SKGL[..., -TILE:] += shared.mask_S11L
        torch.softmax(weights_SKGL, -1, out=weights_SKGL)
        v_KLD = self._gather(v_pool, shared.filled_KN, True)
        v_SKLD = self._gather(v_pool, shared.tails_SKN, False)
        out_SKGD = torch.empty_like(q_SKGD)
        for weights_KGL, own_KLD, out_KGD in zip(weights_SKGL, v_SKLD, out_SKGD, strict=True):
            v_KLD[:, own:tail] = own_KLD
            torch.bmm(weights_KGL, v_KLD, out=out_KGD)
        return out_SKGD.flatten(1, 2)

    def _scores_of(self, q_ZRD: Tensor, k_ZLD: Tensor) -> Tensor:
        empty_ZRL = q_ZRD.new_empty(q_ZRD.shape[0], q_ZRD.shape[1], k_ZLD.shape[1])
        return torch.baddbmm(empty_ZRL, q_ZRD, k_ZLD.transpose(1, 2), beta=0, alpha=self._scale, out=empty_ZRL)

    def _room_for_scores(self, count: int) -> Tensor:
        """Memory that all products share, so that it is not asked for, and cleared, in each layer."""
        if len(self._scores) < count:
            self._scores = torch.empty(max(SCORES, count), dtype=self.shape.dtype, device=self.shape.device)
        return self._scores[:count]

    def _gather(self, pool: Tensor, rows: Tensor, values: bool) -> Tensor:
        """Blocks head by head: indices of shape ``…KN`` give a contiguous ``…KLD``, in memory that is used again for
        the next keys, or the next ``values``."""
        places = rows.flatten()
        size = len(places) * self.block_size * self.shape.head_dim
        if len(self._gathered[values]) < size:
            self._gathered[values] = torch.empty(size, dtype=self.shape.dtype, device=self.shape.device)
        blocks = self._gathered[values][:size].view(-1, self.block_size, self.shape.head_dim)
        torch.index_select(pool.view(-1, self.block_size, self.shape.head_dim), 0, places, out=blocks)
        return blocks.view(*rows.shape[:-1], -1, self.shape.head_dim)

    def _keys(self, pool: Tensor, members: Members, values: bool) -> Tensor:
        """Keys, or ``values``, of a group that decodes."""
        kept_SKLD = self._kept.read(pool, members)
        if kept_SKLD is not None:
            return kept_SKLD
        return self._gather(pool, self._kept.rows(members), values)

    def _group(self, members: list[_Row]) -> _Decode:
        queries_S, mask_S11L = self._queries(members)
        _, rows, blocks, holders = zip(*members, strict=True)
        tile = len(blocks[0]) * self.block_size - TILE
        lasts = [tile + row for row in rows]
        return _Decode(queries_S, self._kept.follow(Members(blocks, lasts, holders)), mask_S11L)

    def _queries(self, members: Sequence[_Row]) -> tuple[Tensor, Tensor]:
        """Where the rows of sequences that decode lie, and what each sees of its last tile."""
        places_S = self._device([row for _, row, _, _ in members])
        mask_S11L = self._mask_RL[:, -TILE:].index_select(0, places_S)[:, None, None]
        return self._device([start for start, _, _, _ in members]), mask_S11L

    def _sharing(self, rows: list[_Row], padded: int) -> tuple[list[_Row], list[_Shared]]:
        """The rows whose sequences share little with others, and groups of those that share much."""
        if not self._products or len(rows) < 2:
            return rows, []
        size = self.block_size
        counts = [(padded - TILE + row) // size + 1 for _, row, _, _ in rows]
        most = max(2, min(GATHER_TOKENS // padded, SCORES // (self.shape.heads * padded)))
        alone, groups = [], []
        for group in prefix_groups([rows[i][2][: counts[i]] for i in range(len(rows))], most):
            members = [rows[i] for i in group.members]
            if not group.blocks:
                alone += members
                continue
            last = max(counts[i] for i in group.members)
            filled = members[0][2][: group.blocks] + [0] * (padded // size - group.blocks)
            filled_KN = self._rows(self._device([filled]))[0]
            tails_SN = self._device([blocks[group.blocks : last] for _, _, blocks, _ in members])
            queries_S, mask_S11L = self._queries(members)
            rows_KN = filled_KN[:, : group.blocks].contiguous()
            groups.append(_Shared(queries_S, rows_KN, filled_KN, self._rows(tails_SN), mask_S11L))
        return alone, groups

    def _few_rows(self, members: list[tuple[int, int, int, list[int]]], most: int) -> _Guess:
        def repeated(first: int, count: int) -> list[int]:
            return [first + min(row, count - 1) for row in range(most)]

        places_SR = self._device([repeated(place, count) for _, count, place, _ in members])
        own = [s * most + row for s, (_, count, _, _) in enumerate(members) for row in range(count)]
        mask_xL = self._mask_RL[:, -TILE:].index_select(0, places_SR.flatten())
        return _Guess(
            queries_SR=self._device([repeated(start, count) for start, count, _, _ in members]),
            own_T=self._device(own),
            rows_SKN=self._rows(self._device([blocks for *_, blocks in members])),
            mask_SRL=mask_xL.view(len(members), most, TILE),
        )

    def _rows(self, blocks_SN: Tensor) -> Tensor:
        """Where the blocks of each head lie in a pool that is seen as ``(N K) B D``."""
        return blocks_SN[:, None] * self.shape.kv_heads + self._heads_K[:, None]

    def _blocks(self, table: Sequence[int], keys: int) -> list[int]:
        """The blocks of the first ``keys`` places; block 0, whose content is masked, fills up."""
        count = keys // self.block_size
        blocks = list(table[:count])
        return blocks + [0] * (count - len(blocks))

    def _grow_mask(self, keys: int) -> None:
        """The one mask of which all are slices: its last ``TILE`` columns are causal, all before them visible."""
        mask_RL = torch.zeros(TILE + MIN_ROWS, keys, dtype=self.shape.dtype)
        hidden = torch.ones(TILE, TILE, dtype=torch.bool).triu(1)
        mask_RL[:TILE, -TILE:].masked_fill_(hidden, float("-inf"))
        self._mask_RL = mask_RL.to(self.shape.device)

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
