"""Triton kernels for the operations between matrix products, on CUDA: one launch instead of three to six.

Each rounds where the operations of :mod:`swe_infer.llama.model` round, so results are bit-identical except for the
order of summation in a norm. Triton comes with torch's CUDA builds; without it the plain operations run.

Shape suffixes as in :mod:`swe_infer.llama.model`; F is half of the head dimension D.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_HEADS = 8
"""Heads per program of ``rotate``."""
_COLUMNS = 1024
"""Columns per program of ``silu_mul``."""


@triton.jit
def _add_rms_norm(x, delta, weight, total, out, size, eps, ADD: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < size
    value = tl.load(x + row * size + column, inside, 0.0)
    if ADD:
        value = (value.to(tl.float32) + tl.load(delta + row * size + column, inside, 0.0).to(tl.float32)).to(
            value.dtype
        )
        tl.store(total + row * size + column, value, inside)
    wide = value.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / size + eps)
    normed = (wide * scale).to(value.dtype).to(tl.float32)
    scaled = tl.load(weight + column, inside, 0.0).to(tl.float32) * normed
    tl.store(out + row * size + column, scaled.to(value.dtype), inside)


@triton.jit
def _rotate(x, cos, sin, out, x_stride, heads, HALF: tl.constexpr, BLOCK: tl.constexpr, HEADS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    place = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (place < HALF)
    source = x + token * x_stride + head * (2 * HALF) + place
    target = out + (token * heads + head) * (2 * HALF) + place
    angle = token * (2 * HALF) + place
    first, second = tl.load(source, inside, 0.0), tl.load(source + HALF, inside, 0.0)
    known = place < HALF
    for half in tl.static_range(2):
        own, other = (first, second) if half == 0 else (second, first)
        c = tl.load(cos + angle + half * HALF, known, 0.0).to(tl.float32)
        s = tl.load(sin + angle + half * HALF, known, 0.0).to(tl.float32)
        turned = (own.to(tl.float32) * c).to(first.dtype).to(tl.float32) + other.to(tl.float32) * s
        tl.store(target + half * HALF, turned.to(first.dtype), inside)


@triton.jit
def _silu_mul(gate_up, out, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up + row * 2 * size + column, inside, 0.0)
    up = tl.load(gate_up + row * 2 * size + size + column, inside, 0.0)
    wide = gate.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype).to(tl.float32)
    tl.store(out + row * size + column, (activated * up.to(tl.float32)).to(gate.dtype), inside)


def add_rms_norm(x_TE: Tensor, delta_TE: Tensor | None, weight_E: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``x + delta`` (``x`` without a delta) and its root mean square norm times ``weight``."""
    tokens, size = x_TE.shape
    out_TE = torch.empty_like(x_TE)
    total_TE = x_TE if delta_TE is None else torch.empty_like(x_TE)
    other_TE = x_TE if delta_TE is None else delta_TE
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    _add_rms_norm[(tokens,)](
        x_TE, other_TE, weight_E, total_TE, out_TE, size, eps, delta_TE is not None, block, num_warps=warps
    )
    return total_TE, out_TE


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """:func:`swe_infer.llama.rope.rotate`. The heads of a token must be contiguous."""
    tokens, heads, head_dim = x_THD.shape
    out_THD = torch.empty((tokens, heads, head_dim), dtype=x_THD.dtype, device=x_THD.device)
    half = head_dim // 2
    _rotate[(tokens, triton.cdiv(heads, _HEADS))](
        x_THD, cos_T1D, sin_T1D, out_THD, x_THD.stride(0), heads, half, triton.next_power_of_2(half), _HEADS
    )
    return out_THD


def silu_mul(gate_up_TI: Tensor) -> Tensor:
    """Return ``silu`` of the first half of the columns times the second half."""
    tokens, size = len(gate_up_TI), gate_up_TI.shape[1] // 2
    out_TI = torch.empty((tokens, size), dtype=gate_up_TI.dtype, device=gate_up_TI.device)
    _silu_mul[(tokens, triton.cdiv(size, _COLUMNS))](gate_up_TI, out_TI, size, _COLUMNS)
    return out_TI
