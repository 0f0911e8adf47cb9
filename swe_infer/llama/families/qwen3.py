"""Qwen3, the dense models (Yang et al., 2025): norms of the heads of queries and keys."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    bias = read.flag("attention_bias")
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": "head",
        "head_dim": read.positive("head_dim", 128),
        "windows": read.windows(
            enabled=read.flag("use_sliding_window"),
            first=read.positive("max_window_layers", 28, least=0),
            default=4096,
        ),
    }
