"""The compiled kernels as functions of CPU tensors, with torch's number of threads.

A row's result depends only on its own sequence, bit for bit: the order of every sum is independent of the number of
rows, of chunking and of prefix caching.

Shape suffixes: T tokens, E any size, H query heads, K key-value heads, D head dimension, I inputs, O outputs, N cache
blocks, B tokens per block.
"""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Sequence
from ctypes import c_float, c_int64
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from swe_infer.llama.large_pages import Arena, zeros
from swe_infer.llama.native.build import Unavailable, library

BLOCK = 32
"""Tokens of a cache block. This and the next two must match the C++ sources."""

PANEL = 128
"""Keys whose softmax weights are computed together; segments begin at multiples of it."""

ROWS = 32
"""Maximum rows of a unit: its tokens times the query heads per key-value head, or one token."""

TILE_DEPTH = {torch.float32: 16, torch.bfloat16: 32, torch.float16: 16}
"""The inputs of a packed weight, and the head dimension, must be a multiple of this."""

_TILE_WIDTH = 16
_PACKED_TYPES = tuple(TILE_DEPTH)
_CHECKED_ELEMENTS = 1 << 20
_NO_WINDOW = 2**31 - 1

_log = logging.getLogger(__name__)


def _word(value: Tensor | int | None) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value or 0


def _words(*values: Tensor | int | None) -> ctypes.Array[c_int64]:
    """A struct of the C++ sources, whose members are addresses and integers of 64 bits."""
    return (c_int64 * len(values))(*map(_word, values))


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight in the layout of the kernels.

    Args:
        data: also bfloat16 or float16 for a float32 weight that the type represents exactly.
        gated: the first half of the outputs are gates of the second half, and a product returns the gated values.
    """

    data: Tensor
    outputs: int
    inputs: int
    gated: bool

    def members(self, bias_O: Tensor | None) -> tuple[Tensor | int | None, ...]:
        """``Weight`` of the C++ sources. The type of ``data`` matters under float32 activations alone."""
        kind = _PACKED_TYPES.index(self.data.dtype)
        return self.data, bias_O, self.outputs, self.inputs, int(self.gated), kind


@dataclass(frozen=True, slots=True)
class Units:
    """The work of attention, as int32 tensors. A unit is a group of tokens, at most :data:`ROWS` rows, and the
    segments of keys that they see, in order. A segment applies to some of its unit's tokens.

    Args:
        units: for each ``first token, tokens, first segment, segments``.
        tokens: rows of the queries; those of a unit are consecutive.
        visible: number of keys that each of them sees.
        segments: for each ``first token of the unit, tokens, start of its block table, first key, end of keys``.
        tables: cache blocks.
    """

    units: Tensor
    tokens: Tensor
    visible: Tensor
    segments: Tensor
    tables: Tensor

    def members(self) -> tuple[Tensor | int, ...]:
        """``Work`` of the C++ sources."""
        return self.units, len(self.units), self.tokens, self.visible, self.segments, self.tables


class Kernels:
    """The kernels for tensors of one type; see :func:`load_kernels`."""

    def __init__(self, compiled: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.compiled = compiled
        self.dtype = dtype

    def run(self, name: str, *arguments: Tensor | ctypes.Array[c_int64] | c_float | int | None) -> None:
        """Call a kernel with addresses, integers of 64 bits, and torch's number of threads."""
        values = [each if isinstance(each, ctypes.Array | c_float) else c_int64(_word(each)) for each in arguments]
        getattr(self.compiled, name)(*values, c_int64(torch.get_num_threads()))

    def add_rms_norm(
        self, x_TE: Tensor, delta_TE: Tensor | None, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + delta`` (``x`` without a delta) and its root mean square norm times ``weight``."""
        tokens, size = x_TE.shape
        out_TE = torch.empty_like(x_TE)
        total_TE = x_TE if delta_TE is None else torch.empty_like(x_TE)
        self.run("add_rms_norm", total_TE, out_TE, x_TE, delta_TE, weight_E, c_float(eps), tokens, size)
        return total_TE, out_TE

    def rotate(self, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """:func:`swe_infer.llama.rope.rotate`. The heads of a token must be contiguous."""
        tokens, heads, head_dim = x_THD.shape
        out_THD = torch.empty((tokens, heads, head_dim), dtype=x_THD.dtype)
        self.run("rotate", out_THD, x_THD, x_THD.stride(0), cos_T1D, sin_T1D, tokens, heads, head_dim)
        return out_THD

    def can_pack(self, outputs: int, inputs: int, gated: bool = False) -> bool:
        """Whether :meth:`pack` supports a weight of this shape."""
        return inputs % TILE_DEPTH[self.dtype] == 0 and not (gated and outputs % (2 * _TILE_WIDTH))

    def pack(self, weight_OI: Tensor, gated: bool = False, arena: Arena | None = None) -> PackedWeight:
        """Return a packed copy of a weight, allocated from ``arena`` if given; ``tiles.h`` and ``linear.h`` describe
        the layout."""
        outputs, inputs = weight_OI.shape
        narrower = _PACKED_TYPES[1:] if self.dtype == torch.float32 else ()
        fitting = (dtype for dtype in narrower if inputs % TILE_DEPTH[dtype] == 0 and _fits(weight_OI, dtype))
        dtype = next(fitting, self.dtype)
        padding = -outputs % (2 * _TILE_WIDTH)
        if padding:
            weight_OI = functional.pad(weight_OI, (0, 0, 0, padding))
        tiles = (outputs + padding) // _TILE_WIDTH
        packed = PackedWeight((arena or Arena()).empty(tiles * _TILE_WIDTH * inputs, dtype), outputs, inputs, gated)
        halves, pairs = (2, tiles // 2) if gated else (1, tiles)  # tiles of gates alternate with those of values
        whole = torch.int32 if dtype == torch.bfloat16 else dtype  # adjacent inputs of bfloat16 stay together
        from_OL = weight_OI.to(dtype).contiguous().view(whole)
        lines = from_OL.shape[1]
        from_PHLO = from_OL.view(halves, pairs, _TILE_WIDTH, lines).permute(1, 0, 3, 2)
        packed.data.view(whole).view(pairs, halves, lines, _TILE_WIDTH).copy_(from_PHLO)
        return packed

    def unpack(self, weight: PackedWeight, rows_T: Tensor) -> Tensor:
        """Return rows of a weight that is not gated, unpacked: an embedding lookup."""
        grain = TILE_DEPTH[weight.data.dtype] // _TILE_WIDTH
        tiles = weight.data.view(-1, weight.inputs // grain, _TILE_WIDTH, grain)
        return tiles[rows_T // _TILE_WIDTH, :, rows_T % _TILE_WIDTH].to(self.dtype).view(len(rows_T), weight.inputs)

    def linear(self, x: Tensor, weight: PackedWeight, bias_O: Tensor | None) -> Tensor:
        """Return ``x W^T + b`` over the last dimension, or half as many gated values."""
        x = x.contiguous()
        columns = weight.outputs // 2 if weight.gated else weight.outputs
        out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype)
        self.run("linear", out, x, math.prod(x.shape[:-1]), _words(*weight.members(bias_O)))
        return out

    def write_cache(self, k_pool: Tensor, v_pool: Tensor, k_TKD: Tensor, v_TKD: Tensor, places_T: Tensor) -> None:
        """Write keys and values into pools (NKBD; the order within a block and head is private to the kernels).

        Args:
            places_T: ``block * BLOCK + offset`` of each token, int64.
        """
        tokens, kv_heads, head_dim = k_TKD.shape
        given = k_TKD, k_TKD.stride(0), v_TKD, v_TKD.stride(0), places_T
        self.run("write_cache", k_pool, v_pool, *given, tokens, kv_heads, head_dim)

    def attend(
        self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, units: Units, window: int | None = None
    ) -> Tensor:
        """Return the attention output of the rows in ``units``; other rows are zero.

        Args:
            window: number of keys that each row sees, its own included; None: all.
        """
        tokens, heads, head_dim = q_THD.shape
        out_THD = torch.empty((tokens, heads, head_dim), dtype=q_THD.dtype)
        out_THD[len(units.tokens) :] = 0
        window = _NO_WINDOW if window is None else min(window, _NO_WINDOW)
        shape = heads, k_pool.shape[1], head_dim, window
        self.run("attend", _words(out_THD, q_THD, q_THD.stride(0), k_pool, v_pool, *shape, *units.members()))
        return out_THD


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
    """Runs all layers in one call per step: the weights would evict the interpreter's working set between operations.
    The result is bit-identical to the layer-by-layer path of
    :meth:`swe_infer.llama.model.LlamaForCausalLM.decode`. Figures: ``benchmarks/README.md``.

    Args:
        weights: of each layer; their addresses must not change.
        heads: numbers of query heads and of key-value heads.
    """

    def __init__(
        self, kernels: Kernels, weights: Sequence[LayerWeights], heads: tuple[int, int], head_dim: int, eps: float
    ) -> None:
        self._kernels = kernels
        self._weights = weights
        self._layers = _words(*[member for layer in weights for member in layer.members()])
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
        step = _words(*tensors, rows, len(units.tokens), *units.members(), *self._shape)
        self._kernels.run("run_layers", step, self._layers, self._eps)
        return x_TE, delta_TE


def _fits(weight_OI: Tensor, dtype: torch.dtype) -> bool:
    """Whether ``dtype`` represents each element exactly."""
    step = max(1, _CHECKED_ELEMENTS // weight_OI.shape[1])
    chunks = (weight_OI[start : start + step] for start in range(0, len(weight_OI), step))
    return all(torch.equal(chunk_OI.to(dtype).to(chunk_OI.dtype), chunk_OI) for chunk_OI in chunks)


@cache
def load_kernels(dtype: torch.dtype, limit: str = "amx") -> Kernels | str:
    """Return the kernels for a type, compiled on first use, or the reason why they are not available.

    Args:
        limit: see :func:`swe_infer.llama.native.build.library`.
    """
    try:
        if dtype not in (torch.float32, torch.bfloat16):
            raise Unavailable(f"there are kernels for float32 and bfloat16, and this is {dtype}")
        return Kernels(library(dtype == torch.bfloat16, limit), dtype)
    except Unavailable as error:
        _log.warning("no compiled kernels, so torch's slower operations run: %s", error)
        return str(error)
