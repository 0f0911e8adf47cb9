"""Phi-3 and Phi-4 (Abdin et al., 2024): fused projections, longrope, a window, partial rotation."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader, TensorNames


def parts(read: Reader) -> Parts:
    return {
        "rms_norm_eps": read.number("rms_norm_eps", 1e-5),
        "windows": read.windows(),
        "names": TensorNames(qkv="self_attn.qkv_proj", gate_up="mlp.gate_up_proj"),
    }
