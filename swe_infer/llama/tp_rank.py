"""Which part of a model a process holds where several hold it together (tensor parallel; Shoeybi et al., 2019).

Query, key, value, gate and up projections are divided by rows, so that each rank has whole heads and whole inner
units; output and down projections by columns, after which the ranks' partial sums are added up, twice a layer.
Embeddings are held by every rank, the language-model head by the first alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from swe_infer.llama.config import LlamaConfig


@dataclass(frozen=True, slots=True)
class TPRank:
    """Part ``rank`` of ``count``."""

    rank: int
    count: int

    def divide(self, size: int) -> int:
        """This part of ``size`` rows or columns."""
        return size // self.count

    def parameters(self, config: LlamaConfig) -> int:
        """Weights of the first part, which is the largest."""
        embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size
        return embeddings + -(-(config.parameters - embeddings) // self.count)

    def all_reduce(self, x_TE: Tensor) -> Tensor:
        """The sum over all ranks, the same bits on each. On a CPU it is taken in float32."""
        if self.count == 1:
            return x_TE
        total_TE = x_TE.float() if x_TE.device.type == "cpu" and x_TE.dtype != torch.float32 else x_TE.contiguous()
        distributed.all_reduce(total_TE)
        return total_TE.to(x_TE.dtype)


SINGLE_RANK = TPRank(0, 1)
