"""All layers of a Llama in one call of the compiled kernels.

The result is bit-identical to the layer-by-layer path of :meth:`swe_infer.llama.model.LlamaForCausalLM.decode`. One
call per step: the weights would evict the interpreter's working set between operations. Figures:
``benchmarks/README.md``.

Shape suffixes as in :mod:`swe_infer.llama.model`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from swe_infer.llama.large_pages import zeros
from swe_infer.llama.native.kernels import Kernels, PackedWeight, Units


class LayersShape(ctypes.Structure):
    """Dimensions shared by all layers; see ``layers.cpp``."""

    _fields_ = (
        ("layers", c_int32),
        ("hidden", c_int32),
        ("inner", c_int32),
        ("heads", c_int32),
        ("kv_heads", c_int32),
        ("head_dim", c_int32),
        ("eps", c_float),
    )


class _Weight(ctypes.Structure):
    _fields_ = (("packed", c_void_p), ("bias", c_void_p), ("type", c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("input_norm", c_void_p),
        ("post_norm", c_void_p),
        ("qkv", _Weight),
        ("o", _Weight),
        ("gate_up", _Weight),
        ("down", _Weight),
    )


class _StepArgs(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "delta", "scratch", "cos", "sin", "keys", "values")),
        ("pool", c_int64),
        *((name, c_void_p) for name in ("places", "units", "tokens", "visible", "segments", "tables")),
        *((name, c_int32) for name in ("rows", "attended_rows", "count", "threads")),
    )


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one layer: norms, and packed weight and bias of each product. ``gate_up`` is gated and has no
    bias."""

    input_norm_E: Tensor
    post_norm_E: Tensor
    qkv: tuple[PackedWeight, Tensor | None]
    o: tuple[PackedWeight, Tensor | None]
    gate_up: PackedWeight
    down: tuple[PackedWeight, Tensor | None]


class Layers:
    """Runs all layers in one call.

    Args:
        weights: of each layer; their addresses must not change.
    """

    def __init__(self, kernels: Kernels, shape: LayersShape, weights: Sequence[LayerWeights]) -> None:
        self._compiled = kernels.compiled
        self._shape = shape
        self._weights = weights
        self._layers = (_Layer * len(weights))(*map(_layer, weights))
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
        delta_TE = torch.empty_like(x_TE)
        needed = self._compiled.layers_scratch_size(ctypes.byref(self._shape), rows)
        if len(self._scratch) < needed:
            self._scratch = zeros([needed], x_TE.dtype)
        cos_T1D, sin_T1D = cos_sin
        following = k_pools[1] if len(k_pools) > 1 else k_pools[0]
        step = _StepArgs(
            x=x_TE.data_ptr(),
            delta=delta_TE.data_ptr(),
            scratch=self._scratch.data_ptr(),
            cos=cos_T1D.data_ptr(),
            sin=sin_T1D.data_ptr(),
            keys=k_pools[0].data_ptr(),
            values=v_pools[0].data_ptr(),
            pool=(following.data_ptr() - k_pools[0].data_ptr()) // x_TE.itemsize,
            places=places_T.data_ptr(),
            units=units.units.data_ptr(),
            tokens=units.tokens.data_ptr(),
            visible=units.visible.data_ptr(),
            segments=units.segments.data_ptr(),
            tables=units.tables.data_ptr(),
            rows=rows,
            attended_rows=len(units.tokens),
            count=len(units.units),
            threads=torch.get_num_threads(),
        )
        self._compiled.run_layers(ctypes.byref(self._shape), self._layers, ctypes.byref(step))
        return x_TE, delta_TE


def _layer(weights: LayerWeights) -> _Layer:
    return _Layer(
        weights.input_norm_E.data_ptr(),
        weights.post_norm_E.data_ptr(),
        _weight(*weights.qkv),
        _weight(*weights.o),
        _weight(weights.gate_up, None),
        _weight(*weights.down),
    )


def _weight(packed: PackedWeight, bias: Tensor | None) -> _Weight:
    return _Weight(packed.data.data_ptr(), None if bias is None else bias.data_ptr(), packed.code)
