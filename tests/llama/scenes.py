"""Random attention inputs with exact results, and a backend in plain operations."""

from __future__ import annotations

import importlib
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout, PagedBackend, PagedPlan

__all__ = ["DEVICE", "TOLERANCE", "PlainPaged", "Scene", "make_backend", "shared_scene"]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def make_backend(name: str, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int) -> AttentionBackend[Any]:
    shape = AttentionShape(heads, kv_heads, head_dim, DEVICE, dtype)
    backend = importlib.import_module(f"swe_infer.llama.attention.{name}").Backend
    reason = backend.why_not(shape)
    if reason is not None:
        pytest.skip(reason)
    made: AttentionBackend[Any] = backend(shape)
    return made


class Scene:
    """Random queries, and keys and values scattered over a paged cache with large garbage elsewhere."""

    def __init__(self, backend: AttentionBackend[Any], lengths: list[tuple[int, int]], seed: int = 0) -> None:
        shape, size = backend.shape, backend.block_size
        torch.manual_seed(seed)
        counts = [-(-keys // size) for _, keys in lengths]
        numbers = (torch.randperm(sum(counts)) + 1).tolist()
        self.tables = [[numbers.pop() for _ in range(count)] for count in counts]
        pool = backend.pool_shape(1 + sum(counts))
        self.k_pool = torch.full(pool, 1e4, dtype=shape.dtype, device=DEVICE)
        self.v_pool = torch.full(pool, -1e4, dtype=shape.dtype, device=DEVICE)
        self.sequences = []
        rows = []
        for (queries, keys), table in zip(lengths, self.tables, strict=True):
            q_RHD = torch.randn(queries, shape.heads, shape.head_dim)
            k_LKD, v_LKD = torch.randn(2, keys, shape.kv_heads, shape.head_dim).to(shape.dtype).unbind(0)
            slots = backend.slots(torch.tensor([table[p // size] * size + p % size for p in range(keys)]).to(DEVICE))
            backend.write(self.k_pool, self.v_pool, k_LKD.to(DEVICE), v_LKD.to(DEVICE), slots)
            rows.append(q_RHD.to(shape.dtype))
            self.sequences.append((rows[-1], k_LKD, v_LKD))
        self.q_THD = torch.cat(rows).to(DEVICE)
        self.layout = Layout([q for q, _ in lengths], [k for _, k in lengths], self.tables)

    def expected(self, window: int | None = None) -> Tensor:
        return torch.cat([exact_attention(*sequence, window) for sequence in self.sequences])


def exact_attention(q_RHD: Tensor, k_LKD: Tensor, v_LKD: Tensor, window: int | None = None) -> Tensor:
    """The definition of attention, in float64."""
    rows, heads, head_dim = q_RHD.shape
    group = heads // k_LKD.shape[1]
    k_LHD, v_LHD = (x.double().repeat_interleave(group, dim=1) for x in (k_LKD, v_LKD))
    scores_HRL = torch.einsum("rhd,lhd->hrl", q_RHD.double(), k_LHD) / math.sqrt(head_dim)
    keys = len(k_LKD)
    distance_RL = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)[None]
    hidden_RL = (distance_RL < 0) | (distance_RL >= (window or keys))
    weights_HRL = scores_HRL.masked_fill(hidden_RL, -math.inf).softmax(-1)
    return torch.einsum("hrl,lhd->rhd", weights_HRL, v_LHD)


def shared_scene(backend: AttentionBackend[Any], prompts: dict[int, list[int]]) -> tuple[Scene, Layout]:
    """Decoding samples that share the full blocks of their prompts. ``prompts`` maps prompt lengths to output
    lengths."""
    size = backend.block_size
    whole = Scene(backend, [(1, prompt + max(outputs)) for prompt, outputs in prompts.items() for _ in outputs])
    lens, tables, first = [], [], 0
    for prompt, outputs in prompts.items():
        shared = whole.tables[first][: prompt // size]
        for place, output in enumerate(outputs):
            lens.append(prompt + output)
            own = whole.tables[first + place][len(shared) : -(-lens[-1] // size)]
            tables.append(shared + own)
        first += len(outputs)
    return whole, Layout([1] * len(lens), lens, tables)


class PlainPaged(PagedBackend):
    """Attention over block tables in plain operations, on any device."""

    def kernel(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PagedPlan, window: int | None) -> Tensor:
        out_THD = torch.zeros_like(q_THD)
        ends = plan.cumulative_queries_S1.tolist()
        assert len(ends) == len(plan.key_lens_S) + 1 == len(plan.cumulative_keys_S1)
        for sequence, (start, end) in enumerate(pairwise(ends)):
            keys, rows = int(plan.key_lens_S[sequence]), end - start
            assert rows <= plan.max_queries
            assert keys <= plan.max_keys
            assert keys == plan.cumulative_keys_S1[sequence + 1] - plan.cumulative_keys_S1[sequence]
            if not rows:
                continue
            blocks = plan.block_table_SP[sequence, : -(-keys // self.block_size)].long()
            k_HLD, v_HLD = (pool[blocks].flatten(0, 1)[:keys].transpose(0, 1) for pool in (k_pool, v_pool))
            distance_RL = torch.arange(keys - rows, keys)[:, None] - torch.arange(keys)[None]
            seen_RL = (distance_RL >= 0) & (distance_RL < (window or keys))
            attended_HRD = functional.scaled_dot_product_attention(
                q_THD[start:end].transpose(0, 1)[None], k_HLD[None], v_HLD[None], seen_RL, enable_gqa=True
            )[0]
            out_THD[start:end] = attended_HRD.transpose(0, 1)
        return out_THD
