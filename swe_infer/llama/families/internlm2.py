"""InternLM2 (Cai et al., 2024): a Llama with other names, and projections fused by key-value head."""

from __future__ import annotations

from swe_infer.llama.families.base import Parts, Reader, TensorNames


def parts(read: Reader) -> Parts:
    bias = read.flag("bias")
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "names": TensorNames(
            embeddings="model.tok_embeddings",
            lm_head="output",
            attention_norm="attention_norm",
            mlp_norm="ffn_norm",
            qkv="attention.wqkv",
            grouped_qkv=True,
            o="attention.wo",
            gate="feed_forward.w1",
            up="feed_forward.w3",
            down="feed_forward.w2",
        ),
    }
