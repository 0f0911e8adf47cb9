"""OLMo 2 (Walsh et al., 2024): norms of outputs, and of queries and keys over all heads."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader, TensorNames


def parts(read: Reader) -> Parts:
    bias = read.flag("attention_bias")
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "rms_norm_eps": read.number("rms_norm_eps", 1e-5),
        "qk_norm": "projection",
        "post_norm": True,
        "names": TensorNames(attention_norm="post_attention_layernorm", mlp_norm="post_feedforward_layernorm"),
    }
