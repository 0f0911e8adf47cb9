"""Attention with the flash-attn package (Dao, 2023): ``flash_attn_varlen_func`` for chunks of prompts,
``flash_attn_with_kvcache`` for steps in which every sequence brings one row. A cache block holds 256 tokens, as its
paged kernels want.
"""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout
from swe_infer.llama.attention.varlen import Plan, paged_plan

__all__ = ["Backend"]


class Backend(AttentionBackend[Plan]):
    """flash-attn over a paged cache."""

    block_size = 256

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._kernels = importlib.import_module("flash_attn")

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        if shape.device.type != "cuda":
            return f"needs a CUDA device, and this is {shape.device.type}"
        if shape.dtype not in (torch.bfloat16, torch.float16):
            return f"needs bfloat16 or float16, and this is {shape.dtype}"
        if shape.head_dim > 256 or shape.head_dim % 8:
            return f"head_dim {shape.head_dim} is not a multiple of 8 up to 256"
        try:
            importlib.import_module("flash_attn")
        except ImportError as error:
            return f"the package flash-attn cannot be imported ({error})"
        return None

    def plan(self, layout: Layout) -> Plan:
        return paged_plan(layout, self.shape.device)

    def attend(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: Plan) -> Tensor:
        out_THD = torch.zeros_like(q_THD)
        rows_THD = q_THD[: plan.queries]
        if plan.max_queries == 1:
            attended_S1HD = self._kernels.flash_attn_with_kvcache(
                rows_THD.unsqueeze(1),
                k_pool,
                v_pool,
                cache_seqlens=plan.key_lens_S,
                block_table=plan.block_table_SP,
                causal=True,
                num_splits=1,
            )
            out_THD[: plan.queries] = attended_S1HD.squeeze(1)
            return out_THD
        cumulative_keys_S1 = torch.nn.functional.pad(plan.key_lens_S.cumsum(0, dtype=torch.int32), (1, 0))
        out_THD[: plan.queries] = self._kernels.flash_attn_varlen_func(
            rows_THD,
            k_pool,
            v_pool,
            plan.cumulative_queries_S1,
            cumulative_keys_S1,
            plan.max_queries,
            plan.max_keys,
            causal=True,
            block_table=plan.block_table_SP,
        )
        return out_THD
