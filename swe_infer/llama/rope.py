"""Rotary position embeddings (Su et al., 2021) and their scaled variants.

linear: position interpolation (Chen et al., 2023). dynamic: NTK-aware scaling by sequence length. yarn: Peng et al.,
2023. llama3: the banded scaling of Llama 3.1. longrope: Ding et al., 2024. Values equal those of
``transformers.modeling_rope_utils``.

Shape suffixes: T tokens, F frequencies (half of D), D rotated dimensions of a head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from swe_infer.llama.config import LlamaConfig, RopeConfig


def rotate(x_THD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotate each pair ``(i, i + D/2)`` of every head. ``sin`` carries the sign of the first half."""
    half = x_THD.shape[-1] // 2
    swapped = torch.cat((x_THD[..., half:], x_THD[..., :half]), dim=-1)
    return torch.addcmul(x_THD * cos_T1D, swapped, sin_T1D)


class RotaryEmbedding:
    """Cosines and sines for packed tokens.

    For most types a token's angle depends only on its position and comes from a table. Beyond the original window it
    also depends on the length of the sequence: with ``dynamic``, of prompt tokens on the prompt's length and of
    generated tokens on their own position, as in a cached generation with transformers; with ``longrope``, a sequence
    has one of two tables and changes to the other once, see :attr:`switch`.
    """

    def __init__(self, config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config = config
        self.device = device
        self.dtype = dtype
        freqs, self.attention_scaling = _frequencies(config)
        self._freqs_F = [freqs_F.to(device) for freqs_F in freqs]
        self._tables_PD: list[tuple[Tensor, Tensor]] = []
        self._grow(min(config.context_window, 4096))

    @property
    def switch(self) -> int | None:
        """The longest sequence whose angles are those of a short one; a longer one has other angles for all its
        tokens. None: there is no such length."""
        return self.config.rope.original_max_positions if self.config.rope.type == "longrope" else None

    def salt(self, length: int) -> bytes:
        """Separates the cached keys of a prompt of ``length`` tokens from those of prompts with other angles."""
        if self.config.rope.type == "dynamic" and length > self.config.max_position_embeddings:
            return length.to_bytes(8, "big")
        return b"long" if self.switch is not None and length > self.switch else b""

    def __call__(
        self, positions_T: Tensor, max_position: int, lengths_T: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return ``(cos, sin)`` of shape T1D, in the model's dtype.

        Args:
            positions_T: position of each token, int64.
            max_position: the largest of them, on the host to avoid a device synchronisation.
            lengths_T: for types that depend on it: the length of each token's sequence.
        """
        if lengths_T is not None and self.config.rope.type == "dynamic":
            return self._dynamic(positions_T, lengths_T)
        if max_position >= len(self._tables_PD[0][0]):
            self._grow(2 * max_position)
        cos_TD, sin_TD = (table_PD[positions_T] for table_PD in self._tables_PD[0])
        if lengths_T is not None and self.switch is not None:
            is_long_T1 = (lengths_T > self.switch)[:, None]
            cos_TD, sin_TD = (
                torch.where(is_long_T1, table_PD[positions_T], short_TD)
                for table_PD, short_TD in zip(self._tables_PD[1], (cos_TD, sin_TD), strict=True)
            )
        return cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)

    def reserve(self, positions: int) -> None:
        """Grow the table to ``positions``, so that its address stays the same afterwards."""
        if positions > len(self._tables_PD[0][0]):
            self._grow(positions)

    def _grow(self, positions: int) -> None:
        positions_P1 = torch.arange(positions, device=self.device).float()[:, None]
        self._tables_PD = [self._cos_sin(positions_P1 * freqs_F) for freqs_F in self._freqs_F]

    def _cos_sin(self, angles_PF: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = angles_PF.cos() * self.attention_scaling, angles_PF.sin() * self.attention_scaling
        return torch.cat((cos, cos), dim=-1).to(self.dtype), torch.cat((-sin, sin), dim=-1).to(self.dtype)

    def _dynamic(self, positions_T: Tensor, lengths_T: Tensor) -> tuple[Tensor, Tensor]:
        rope, dim, window = self.config.rope, self.config.rotary_dim, self.config.max_position_embeddings
        length_T = lengths_T.clamp(min=window).double()  # transformers computes the base in double precision
        base_T = rope.theta * ((rope.factor * length_T / window) - (rope.factor - 1)) ** (dim / (dim - 2))
        exponents_F = torch.arange(0, dim, 2, device=self.device).float() / dim
        freqs_TF = 1.0 / (base_T.float()[:, None] ** exponents_F)
        cos_TD, sin_TD = self._cos_sin(positions_T[:, None].float() * freqs_TF)
        return cos_TD.unsqueeze(1), sin_TD.unsqueeze(1)


def _frequencies(config: LlamaConfig) -> tuple[list[Tensor], float]:
    """Inverse frequencies (F, float32), for longrope those of short and of long sequences, and the factor on cosines
    and sines. Bit-identical to transformers: positions multiply every rounding error."""
    rope, dim = config.rope, config.rotary_dim
    powers_F = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)
    freqs_F = 1.0 / powers_F
    if rope.type == "linear":
        return [freqs_F / rope.factor], 1.0
    if rope.type == "llama3":
        return [_llama3(freqs_F, rope)], 1.0
    if rope.type == "yarn":
        scaled_F, scaling = _yarn(rope, powers_F)
        return [scaled_F], scaling
    if rope.type == "longrope":
        sides = (rope.short_factors, rope.long_factors)
        return [1.0 / (torch.tensor(factors) * powers_F) for factors in sides], _scaling(rope)
    return [freqs_F], 1.0


def _scaling(rope: RopeConfig) -> float:
    """The factor on cosines and sines of longrope."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    original = float(rope.original_max_positions or 0)
    return math.sqrt(1 + math.log(rope.factor) / math.log(original)) if rope.factor > 1 else 1.0


def _llama3(freqs_F: Tensor, rope: RopeConfig) -> Tensor:
    original = float(rope.original_max_positions or 0)
    wavelengths_F = 2 * math.pi / freqs_F
    smooth_F = (original / wavelengths_F - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended_F = (1 - smooth_F) * freqs_F / rope.factor + smooth_F * freqs_F
    scaled_F = torch.where(wavelengths_F > original / rope.low_freq_factor, freqs_F / rope.factor, blended_F)
    return torch.where(wavelengths_F < original / rope.high_freq_factor, freqs_F, scaled_F)


def _yarn(rope: RopeConfig, powers_F: Tensor) -> tuple[Tensor, float]:
    dim = 2 * len(powers_F)

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    def dimension(rotations: float) -> float:
        """The dimension whose wavelength makes ``rotations`` turns within the original window."""
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    original = float(rope.original_max_positions or 0)
    low, high = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high = high + 0.001 if low == high else high
    kept_F = 1 - ((torch.arange(dim // 2, dtype=torch.float) - low) / (high - low)).clamp(0, 1)
    freqs_F = 1.0 / (rope.factor * powers_F) * (1 - kept_F) + 1.0 / powers_F * kept_F
    if rope.attention_factor is not None:
        return freqs_F, rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return freqs_F, mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return freqs_F, mscale(1.0)
