"""All layers of a Llama in one call of the compiled kernels.

The result is bit-identical to the layer-by-layer path of :meth:`swe_infer.llama.model.LlamaForCausalLM.decode`. One
call per step: the weights would evict the interpreter's working set between operations. Figures:
``benchmarks/README.md``.

Shape suffixes as in :mod:`swe_infer.llama.model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_float
from dataclasses import dataclass

import torch
from torch import Tensor

from swe_infer.llama.large_pages import zeros
from swe_infer.llama.native.kernels import Kernels, PackedWeight, Units, words


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer.

    Args:
        products: packed weight and bias of ``qkv``, ``o``, ``gate_up`` (gated) and ``down``.
    """

    input_norm_E: Tensor
    post_norm_E: Tensor
    products: Sequence[tuple[PackedWeight, Tensor | None]]

    def members(self) -> list[Tensor | int | None]:
        """``Layer`` of the C++ sources."""
        members: list[Tensor | int | None] = [self.input_norm_E, self.post_norm_E]
        for weight, bias_O in self.products:
            members += weight.members(bias_O)
        return members


class Layers:
    """Runs all layers in one call.

    Args:
        weights: of each layer; their addresses must not change.
        heads: numbers of query heads and of key-value heads.
    """

    def __init__(
        self, kernels: Kernels, weights: Sequence[LayerWeights], heads: tuple[int, int], head_dim: int, eps: float
    ) -> None:
        self._kernels = kernels
        self._weights = weights
        self._layers = words(*[member for layer in weights for member in layer.members()])
        self._shape = len(weights), *heads, head_dim
        self._eps = c_float(eps)
        qkv, o, gate_up, _ = (weight.outputs for weight, _ in weights[0].products)
        # The normed and the attended rows, queries with keys before and after rotation, values, and the inner rows.
        self._scratch_row = o + qkv + sum(heads) * head_dim + heads[0] * head_dim + gate_up // 2
        self._scratch = torch.empty(0, dtype=kernels.dtype)

    def __call__(
        self,
        x_TE: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        places_T: Tensor,
        units: Units,
        k_pools: Sequence[Tensor],
        v_pools: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the residual stream, which overwrites ``x_TE``, and the last block's contribution to add to it.

        Args:
            k_pools, v_pools: of each layer, evenly spaced in memory.
        """
        rows = len(x_TE)
        if len(self._scratch) < rows * self._scratch_row:
            self._scratch = zeros([rows * self._scratch_row], x_TE.dtype)
        delta_TE = torch.empty_like(x_TE)
        following = k_pools[1] if len(k_pools) > 1 else k_pools[0]
        pool = (following.data_ptr() - k_pools[0].data_ptr()) // x_TE.itemsize
        tensors = x_TE, delta_TE, self._scratch, *cos_sin, k_pools[0], v_pools[0], pool, places_T
        step = words(*tensors, rows, len(units.tokens), *units.members(), *self._shape)
        self._kernels.run("run_layers", step, self._layers, self._eps)
        return x_TE, delta_TE
