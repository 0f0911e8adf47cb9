"""Attention with the flash-attn package (Dao, 2023): ``flash_attn_varlen_func`` for prompt chunks,
``flash_attn_with_kvcache`` for steps with one row per sequence. Its paged kernels require cache blocks of 256 tokens.

Split-KV is disabled (``num_splits=1``), so that a sequence's bits do not depend on its batch. Cost:
``benchmarks/README.md``.
"""

from __future__ import annotations

import importlib

from torch import Tensor

from swe_infer.llama.attention.base import AttentionShape, PagedBackend, PagedPlan


class Backend(PagedBackend):
    """flash-attn over a paged cache."""

    def __init__(self, shape: AttentionShape) -> None:
        super().__init__(shape)
        self._kernels = importlib.import_module("flash_attn")

    @classmethod
    def why_not(cls, shape: AttentionShape) -> str | None:
        reason = super().why_not(shape)
        if reason is None:
            try:
                importlib.import_module("flash_attn")
            except ImportError as error:
                return f"the package flash-attn cannot be imported ({error})"
        return reason

    def kernel(self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, plan: PagedPlan, window: int | None) -> Tensor:
        window_size = (-1 if window is None else window - 1, -1 if window is None else 0)
        if plan.max_queries == 1:
            attended_S1HD: Tensor = self._kernels.flash_attn_with_kvcache(
                q_THD.unsqueeze(1),
                k_pool,
                v_pool,
                cache_seqlens=plan.key_lens_S,
                block_table=plan.block_table_SP,
                causal=True,
                window_size=window_size,
                num_splits=1,
            )
            return attended_S1HD.squeeze(1)
        attended_THD: Tensor = self._kernels.flash_attn_varlen_func(
            q_THD,
            k_pool,
            v_pool,
            plan.cumulative_queries_S1,
            plan.cumulative_keys_S1,
            plan.max_queries,
            plan.max_keys,
            causal=True,
            window_size=window_size,
            block_table=plan.block_table_SP,
        )
        return attended_THD
