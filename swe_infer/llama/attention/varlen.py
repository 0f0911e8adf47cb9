"""Attention with torch's own ``varlen_attn`` (a flash-attention kernel) on CUDA.

Split-KV is disabled (``num_splits=1``), so that a sequence's bits do not depend on its batch.
"""

from __future__ import annotations

import inspect

from torch import Tensor

from swe_infer.llama.attention.base import AttentionShape, PagedBackend, PagedPlan


class Backend(PagedBackend):
    """``torch.nn.attention.varlen.varlen_attn`` with a block table."""

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        reason = super().why_not(shape)
        if reason is None:
            from torch.nn.attention.varlen import varlen_attn

            if "block_table" not in inspect.signature(varlen_attn).parameters:
                return "this version of torch has no varlen_attn that takes a block table"
        return reason

    def kernel(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PagedPlan, window: int | None) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        attended_THD = varlen_attn(
            q_THD,
            k_pool,
            v_pool,
            plan.cumulative_queries_S1,
            None,
            plan.max_queries,
            plan.max_keys,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=self.shape.group > 1,
            seqused_k=plan.key_lens_S,
            block_table=plan.block_table_SP,
            num_splits=1,
        )
        assert isinstance(attended_THD, Tensor)
        return attended_THD
