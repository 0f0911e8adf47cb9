"""Samples next tokens from logits.

Randomness is a pure function of the sequence's seed and the token's index: a hash, mapped to a number in [0, 1) at
which the cumulative distribution is inverted. There is no generator state that batch composition, preemption or order
could change.

Shape suffixes: R rows, V vocabulary, C candidates.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_CANDIDATES = 256

_CHUNK = 1 << 22
"""Maximum logits that are sampled at once, each in up to ten tensors of 8 bytes."""

_MIN_TEMPERATURE = 1e-200
"""Greedy in effect; logits divided by less would be infinite."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters of one row. ``temperature`` 0 is greedy; ``index`` counts the sequence's output tokens."""

    temperature: float
    top_p: float | None
    seed: int
    index: int


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) with 53 random bits."""
    digest = hashlib.blake2b(struct.pack("<Qq", seed & (2**64 - 1), index), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> 11) * 2.0**-53)


class Sampler:
    """Temperature and nucleus sampling (Holtzman et al., 2020). One device synchronisation per call."""

    def __call__(self, logits_RV: Tensor, params: Sequence[SamplingParams]) -> list[int]:
        """Return the token of each row. ``logits_RV`` is float32."""
        chosen_R = logits_RV.argmax(-1)
        whole = [i for i, d in enumerate(params) if d.temperature > 0 and (d.top_p is None or d.top_p >= 1)]
        nucleus = [i for i, d in enumerate(params) if d.temperature > 0 and d.top_p is not None and d.top_p < 1]
        most = max(1, _CHUNK // logits_RV.shape[1])
        for method, rows in ((_whole, whole), (_nucleus, nucleus)):
            for start in range(0, len(rows), most):
                part = rows[start : start + most]
                rows_R = _send(part, logits_RV)
                chosen_R[rows_R] = method(logits_RV, rows_R, [params[i] for i in part])
        return list(map(int, chosen_R.tolist()))


def _distribution(logits_RV: Tensor, rows_R: Tensor, params: Sequence[SamplingParams]) -> tuple[Tensor, Tensor]:
    temperatures_R1 = _send([max(d.temperature, _MIN_TEMPERATURE) for d in params], logits_RV)[:, None]
    uniforms_R1 = _send([uniform(d.seed, d.index) for d in params], logits_RV)[:, None]
    scaled_RV = logits_RV.index_select(0, rows_R).double() / temperatures_R1
    return torch.softmax(scaled_RV, -1), uniforms_R1


def _invert(probabilities_RC: Tensor, uniforms_R1: Tensor) -> Tensor:
    """The first index at which the cumulative mass exceeds ``u`` times the total."""
    mass_RC = probabilities_RC.cumsum(-1)
    place_R1 = torch.searchsorted(mass_RC, uniforms_R1 * mass_RC[:, -1:], right=True)
    return place_R1.clamp_(max=mass_RC.shape[-1] - 1).squeeze(1)


def _whole(logits_RV: Tensor, rows_R: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    return _invert(*_distribution(logits_RV, rows_R, params))


def _nucleus(logits_RV: Tensor, rows_R: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Sample from the smallest set of most likely tokens whose mass reaches ``top_p``.

    The set is searched among the ``_CANDIDATES`` most likely tokens first; rows that need more use all tokens, with
    the same result. On a GPU all rows use all tokens, since testing which rows need it would synchronise.
    """
    probabilities_RV, uniforms_R1 = _distribution(logits_RV, rows_R, params)
    top_p_R1 = _send([d.top_p for d in params], logits_RV)[:, None]
    if probabilities_RV.device.type == "cuda":
        best_RV, ids_RV = probabilities_RV.sort(stable=True, dim=-1, descending=True)
        return _sample_nucleus(best_RV, ids_RV, top_p_R1, uniforms_R1)
    best_RC, ids_RC = probabilities_RV.topk(min(_CANDIDATES, probabilities_RV.shape[-1]), dim=-1)
    chosen_R = _sample_nucleus(best_RC, ids_RC, top_p_R1, uniforms_R1)
    wide = (best_RC.sum(-1) < top_p_R1[:, 0]).nonzero()[:, 0]
    if len(wide):
        best_RV, ids_RV = probabilities_RV[wide].sort(stable=True, dim=-1, descending=True)
        chosen_R[wide] = _sample_nucleus(best_RV, ids_RV, top_p_R1[wide], uniforms_R1[wide])
    return chosen_R


def _sample_nucleus(best_RC: Tensor, ids_RC: Tensor, top_p_R1: Tensor, uniforms_R1: Tensor) -> Tensor:
    before_RC = best_RC.cumsum(-1) - best_RC
    kept_RC = best_RC.masked_fill(before_RC >= top_p_R1, 0.0)
    return ids_RC.gather(1, _invert(kept_RC, uniforms_R1)[:, None]).squeeze(1)


def _send(values: Sequence[float | int | None], like: Tensor) -> Tensor:
    dtype = torch.int64 if isinstance(values[0], int) else torch.float64
    tensor = torch.tensor(values, dtype=dtype, pin_memory=like.device.type == "cuda")
    return tensor.to(like.device, non_blocking=True)
