"""Llama (Touvron et al., 2023; Grattafiori et al., 2024), and models that are published as Llama."""

from __future__ import annotations

from swe_infer.errors import CheckpointError
from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    if read.raw.get("sliding_window"):
        raise CheckpointError(f"{read.source}: a Llama with sliding_window is not supported")
    bias = read.flag("attention_bias")
    return {"qkv_bias": bias, "output_bias": bias, "mlp_bias": read.flag("mlp_bias")}
