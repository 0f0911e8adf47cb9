"""Granite 3 (IBM, 2024): multipliers of embeddings, residual, attention and logits."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    bias = read.flag("attention_bias")
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": read.flag("mlp_bias"),
        "embedding_multiplier": read.number("embedding_multiplier", 1.0),
        "residual_multiplier": read.number("residual_multiplier", 1.0),
        "attention_multiplier": read.number("attention_multiplier", 1.0),
        "logits_divisor": read.number("logits_scaling", 1.0),
    }
