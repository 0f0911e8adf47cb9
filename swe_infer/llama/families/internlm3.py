"""InternLM3 (2025): a Llama whose biases have other keys."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    bias = read.flag("bias", default=read.flag("mlp_bias"))
    return {
        "qkv_bias": read.flag("qkv_bias", default=read.flag("attention_bias")),
        "output_bias": bias,
        "mlp_bias": bias,
        "rms_norm_eps": read.number("rms_norm_eps", 1e-5),
    }
