"""The part of a model that one tensor-parallel rank computes (Shoeybi et al., 2019).

Query, key, value, gate and up projections are divided by rows, so that each rank has whole heads and inner units.
Output and down projections are divided by columns; an all-reduce sums the ranks' partial results, twice per layer.
Every rank has the embeddings; only rank 0 has the language-model head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from swe_infer.llama.config import LlamaConfig


@dataclass(frozen=True, slots=True)
class TPRank:
    """Rank ``rank`` of ``count``."""

    rank: int
    count: int

    def divide(self, size: int) -> int:
        """Number of rows or columns of this rank, out of ``size``."""
        return size // self.count

    def parameters(self, config: LlamaConfig) -> int:
        """Number of weights of rank 0, which has the most."""
        embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        return embeddings + -(-(config.parameters - embeddings) // self.count)

    def all_reduce(self, x_TE: Tensor) -> Tensor:
        """Sum over all ranks, bit-identical on each. On a CPU the sum is computed in float32."""
        if self.count == 1:
            return x_TE
        total_TE = x_TE.float() if x_TE.device.type == "cpu" and x_TE.dtype != torch.float32 else x_TE.contiguous()
        distributed.all_reduce(total_TE)
        return total_TE.to(x_TE.dtype)


SINGLE_RANK = TPRank(0, 1)
