"""Attention with torch's own ``varlen_attn`` (a flash-attention kernel) on CUDA.

Split-KV is switched off (``num_splits=1``), so that a sequence's bits do not depend on the longest one of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout

__all__ = ["Backend", "Plan", "paged_plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What paged flash-attention kernels take. S sequences, P blocks of the longest; all int32 on the device."""

    queries: int
    cumulative_queries_S1: Tensor
    key_lens_S: Tensor
    block_table_SP: Tensor
    max_queries: int
    max_keys: int


def paged_plan(layout: Layout, device: torch.device) -> Plan:
    """Pack the layout into pinned memory and send it without waiting."""
    width = max((len(table) for table in layout.block_tables), default=1)

    def send(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True)

    return Plan(
        queries=sum(layout.query_lens),
        cumulative_queries_S1=send([0, *accumulate(layout.query_lens)]),
        key_lens_S=send(list(layout.key_lens)),
        block_table_SP=send([[*table, *[0] * (width - len(table))] for table in layout.block_tables]),
        max_queries=max(layout.query_lens, default=0),
        max_keys=max(layout.key_lens, default=0),
    )


class Backend(AttentionBackend[Plan]):
    """``torch.nn.attention.varlen.varlen_attn`` with a block table."""

    block_size = 256

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        if shape.device.type != "cuda":
            return f"needs a CUDA device, and this is {shape.device.type}"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            return f"needs bfloat16 or float16, and this is {shape.dtype}"
        if torch.cuda.get_device_capability(shape.device) < (8, 0):
            return "needs compute capability 8.0"
        if shape.head_dim > 256 or shape.head_dim % 8:
            return f"head_dim {shape.head_dim} is not a multiple of 8 up to 256"
        return None

    def plan(self, layout: Layout) -> Plan:
        return paged_plan(layout, self.shape.device)

    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Plan) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out_THD = torch.zeros_like(q_THD)
        attended = varlen_attn(
            q_THD[: plan.queries],
            k_pool,
            v_pool,
            plan.cumulative_queries_S1,
            None,
            plan.max_queries,
            plan.max_keys,
            window_size=(-1, 0),
            enable_gqa=self.shape.group > 1,
            seqused_k=plan.key_lens_S,
            block_table=plan.block_table_SP,
            num_splits=1,
        )
        assert isinstance(attended, Tensor)
        out_THD[: plan.queries] = attended
        return out_THD
