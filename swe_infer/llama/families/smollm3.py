"""SmolLM3 (Bakouch et al., 2025): layers without rotary embedding."""

from __future__ import annotations

from swe_infer.errors import CheckpointError
from swe_infer.llama.families.base import Parts, Reader


def parts(read: Reader) -> Parts:
    bias, layers = read.flag("attention_bias"), read.layers
    stated, interval = read.raw.get("no_rope_layers"), read.positive("no_rope_layer_interval", 4)
    if stated is None:
        stated = [(index + 1) % interval != 0 for index in range(layers)]
    if not isinstance(stated, list) or len(stated) != layers:
        raise CheckpointError(f"{read.source}: no_rope_layers must have a number for each of {layers} layers")
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": read.flag("mlp_bias"),
        "tie_word_embeddings": read.flag("tie_word_embeddings", default=True),
        "uses_rope": tuple(map(bool, stated)),
        "windows": read.windows(enabled=read.flag("use_sliding_window")),
    }
