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
from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from swe_infer.llama.large_pages import Arena
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
_PACKED_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_NO_WINDOW = 2**31 - 1

_log = logging.getLogger(__name__)

_ARGUMENTS = {
    "add_rms_norm": [*[c_void_p] * 5, c_float, c_int64, c_int, c_int],
    "rotate": [c_void_p, c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_int, c_int, c_int],
    "silu_mul": [c_void_p, c_void_p, c_int64, c_int, c_int],
    "pack": [c_void_p, c_void_p, *[c_int] * 5],
    "unpack": [c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int, c_int],
    "linear": [*[c_void_p] * 4, c_int64, *[c_int] * 5],
    "attend": [c_void_p, c_void_p, c_int64, *[c_void_p] * 2, *[c_int] * 4, c_void_p, c_int, *[c_void_p] * 4, c_int],
    "run_layers": [c_void_p] * 3,
    "write_cache": [c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_void_p, *[c_int] * 4],
}


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

    @property
    def code(self) -> int:
        """The type of ``data`` under float32 activations, as in ``linear.cpp``."""
        return _PACKED_TYPES.index(self.data.dtype)


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

    @classmethod
    def from_lists(
        cls,
        units: Sequence[tuple[int, int, int, int]],
        tokens: Sequence[int],
        visible: Sequence[int],
        segments: Sequence[tuple[int, int, int, int, int]],
        tables: Sequence[int],
    ) -> Units:
        made = [torch.tensor(values, dtype=torch.int32) for values in (units, tokens, visible, segments, tables)]
        return cls(*made)


class Kernels:
    """The kernels for tensors of one type; see :func:`load_kernels`."""

    def __init__(self, compiled: ctypes.CDLL, dtype: torch.dtype) -> None:
        self.dtype = dtype
        for name, arguments in _ARGUMENTS.items():
            function = getattr(compiled, name)
            function.argtypes, function.restype = arguments, None
        compiled.layers_scratch_size.argtypes, compiled.layers_scratch_size.restype = [c_void_p, c_int], c_int64
        compiled.packed_size.argtypes, compiled.packed_size.restype = [c_int, c_int], c_int64
        compiled.packed_type.argtypes, compiled.packed_type.restype = [c_void_p, c_int64, c_int], c_int
        self.compiled = compiled

    def _run(self, name: str, *arguments: Tensor | float | None) -> None:
        """Call a kernel with the addresses of tensors and torch's number of threads."""
        values = [value.data_ptr() if isinstance(value, Tensor) else value for value in arguments]
        getattr(self.compiled, name)(*values, torch.get_num_threads())

    def add_rms_norm(
        self, x_TE: Tensor, delta_TE: Tensor | None, weight_E: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return ``x + delta`` (``x`` without a delta) and its root mean square norm times ``weight``."""
        tokens, size = x_TE.shape
        out_TE = torch.empty_like(x_TE)
        total_TE = x_TE if delta_TE is None else torch.empty_like(x_TE)
        self._run("add_rms_norm", total_TE, out_TE, x_TE, delta_TE, weight_E, eps, tokens, size)
        return total_TE, out_TE

    def rotate(self, x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
        """:func:`swe_infer.llama.rope.rotate`. The heads of a token must be contiguous."""
        tokens, heads, head_dim = x_THD.shape
        out_THD = torch.empty((tokens, heads, head_dim), dtype=x_THD.dtype)
        self._run("rotate", out_THD, x_THD, x_THD.stride(0), cos_T1D, sin_T1D, tokens, heads, head_dim)
        return out_THD

    def silu_mul(self, gate_up_TI: Tensor) -> Tensor:
        """Return ``silu`` of the first half of the columns times the second half."""
        tokens, size = len(gate_up_TI), gate_up_TI.shape[1] // 2
        out_TI = torch.empty((tokens, size), dtype=gate_up_TI.dtype)
        self._run("silu_mul", out_TI, gate_up_TI, tokens, size)
        return out_TI

    def can_pack(self, outputs: int, inputs: int, gated: bool = False) -> bool:
        """Whether :meth:`pack` supports a weight of this shape."""
        return inputs % TILE_DEPTH[self.dtype] == 0 and not (gated and outputs % (2 * _TILE_WIDTH))

    def pack(self, weight_OI: Tensor, gated: bool = False, arena: Arena | None = None) -> PackedWeight:
        """Return a packed copy of a weight, allocated from ``arena`` if given."""
        outputs, inputs = weight_OI.shape
        found = self.compiled.packed_type(weight_OI.data_ptr(), weight_OI.numel(), torch.get_num_threads())
        dtype = _PACKED_TYPES[found] if self.dtype == torch.float32 else self.dtype
        if inputs % TILE_DEPTH[dtype]:
            dtype = self.dtype
        data = (arena or Arena()).empty(self.compiled.packed_size(outputs, inputs), dtype)
        packed = PackedWeight(data, outputs, inputs, gated)
        self._run("pack", data, weight_OI, outputs, inputs, int(gated), packed.code)
        return packed

    def unpack(self, weight: PackedWeight, rows_T: Tensor) -> Tensor:
        """Return rows of a weight that is not gated, unpacked: an embedding lookup. ``rows_T`` is int64."""
        rows_T = rows_T.contiguous()
        out_TI = torch.empty((len(rows_T), weight.inputs), dtype=self.dtype)
        self._run("unpack", out_TI, weight.data, rows_T, len(rows_T), weight.inputs, weight.code)
        return out_TI

    def linear(self, x: Tensor, weight: PackedWeight, bias_O: Tensor | None) -> Tensor:
        """Return ``x W^T + b`` over the last dimension, or half as many gated values."""
        x = x.contiguous()
        columns = weight.outputs // 2 if weight.gated else weight.outputs
        out = torch.empty((*x.shape[:-1], columns), dtype=x.dtype)
        rows, shape = math.prod(x.shape[:-1]), (weight.outputs, weight.inputs, int(weight.gated), weight.code)
        self._run("linear", out, x, weight.data, bias_O, rows, *shape)
        return out

    def write_cache(self, k_pool: Tensor, v_pool: Tensor, k_TKD: Tensor, v_TKD: Tensor, places_T: Tensor) -> None:
        """Write keys and values into pools (NKBD; the order within a block and head is private to the kernels).

        Args:
            places_T: ``block * BLOCK + offset`` of each token, int64.
        """
        tokens, kv_heads, head_dim = k_TKD.shape
        k, v = (k_TKD, k_TKD.stride(0)), (v_TKD, v_TKD.stride(0))
        self._run("write_cache", k_pool, v_pool, *k, *v, places_T, tokens, kv_heads, head_dim)

    def attend(
        self, q_THD: Tensor, k_pool: Tensor, v_pool: Tensor, units: Units, window: int | None = None
    ) -> Tensor:
        """Return the attention output of the rows in ``units``; other rows are zero.

        Args:
            window: number of keys that each row sees, its own included; None: all.
        """
        tokens, heads, head_dim = q_THD.shape
        out_THD = torch.empty((tokens, heads, head_dim), dtype=q_THD.dtype)
        if len(units.tokens) < tokens:
            out_THD[len(units.tokens) :] = 0
        window = _NO_WINDOW if window is None else min(window, _NO_WINDOW)
        shape = heads, k_pool.shape[1], head_dim, window
        work = units.units, len(units.units), units.tokens, units.visible, units.segments, units.tables
        self._run("attend", out_THD, q_THD, q_THD.stride(0), k_pool, v_pool, *shape, *work)
        return out_THD


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
