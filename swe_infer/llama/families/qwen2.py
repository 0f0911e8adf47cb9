"""Qwen2 and Qwen2.5 (Yang et al., 2024): biases of queries, keys and values."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    return {
        "qkv_bias": True,
        "windows": read.windows(
            enabled=read.flag("use_sliding_window"),
            first=read.positive("max_window_layers", 28, least=0),
            default=4096,
        ),
    }
