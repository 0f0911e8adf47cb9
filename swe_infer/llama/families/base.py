"""How a family describes itself: what it adds to Llama, the names of its tensors, and typed access to its
``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from swe_infer.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The names of a checkpoint's tensors, without ``.weight`` and ``.bias``.

    Args:
        layer: prefix of a layer, with its index as ``{}``.
        qkv, gate_up: fused projections in place of ``q``, ``k`` and ``v``, and of ``gate`` and ``up``. Their rows are
            those of the parts, one after the other.
        grouped_qkv: the rows of ``qkv`` are ordered by key-value head instead: its queries, its key, its value.
    """

    embeddings: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    lm_head: str = "lm_head"
    layer: str = "model.layers.{}."
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"
    gate: str = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    qkv: str | None = None
    gate_up: str | None = None
    grouped_qkv: bool = False


LLAMA_NAMES = TensorNames()


class Parts(TypedDict, total=False):
    """In what a family differs from Llama: fields of :class:`swe_infer.llama.config.LlamaConfig`."""

    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    rms_norm_eps: float
    head_dim: int
    qk_norm: Literal["head", "projection"]
    post_norm: bool
    windows: tuple[int | None, ...]
    uses_rope: tuple[bool, ...]
    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_divisor: float
    names: TensorNames


class Reader:
    """Typed access to a ``config.json``; errors name the file and the key."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    @property
    def layers(self) -> int:
        """The number of layers."""
        return self.positive("num_hidden_layers", most=10_000)

    def positive(self, key: str, default: int | None = None, *, least: int = 1, most: int = 1 << 31) -> int:
        value = self.raw.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
            raise CheckpointError(f"{self.source}: {key}={_short(value)}: must be {kind} up to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-30 <= value <= 1e30:
            raise CheckpointError(f"{self.source}: {key}={_short(value)}: must be a positive number up to 1e30")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.raw.get(key)
        if value not in (None, False, True):
            raise CheckpointError(f"{self.source}: {key}={_short(value)}: must be true or false")
        return default if value is None else bool(value)

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """``count`` positive numbers."""
        values = self.raw.get(key)
        if not isinstance(values, list) or len(values) != count:
            raise CheckpointError(f"{self.source}: {key} must be a list of {count} numbers")
        return tuple(Reader({key: value}, self.source).number(key) for value in values)

    def rotary_fraction(self) -> float:
        """The fraction of each head's dimensions that is rotated."""
        stated = rope_parameters(self.raw, self.source).get(
            "partial_rotary_factor", self.raw.get("partial_rotary_factor")
        )
        fraction = Reader({"partial_rotary_factor": stated}, self.source).number("partial_rotary_factor", 1.0)
        if fraction > 1:
            raise CheckpointError(f"{self.source}: partial_rotary_factor={fraction}: must be at most 1")
        return fraction

    def windows(self, *, enabled: bool = True, first: int = 0, default: int | None = None) -> tuple[int | None, ...]:
        """The attention window of each layer, from ``sliding_window`` and ``layer_types``.

        Args:
            enabled: False: no layer has a window.
            first: without ``layer_types``, the first layer that has one.
            default: the window where ``sliding_window`` is missing; where it is null, there is none.
        """
        if not enabled or self.raw.get("sliding_window", default) is None:
            return ()
        window, layers = self.positive("sliding_window", default), self.layers
        types, known = self.raw.get("layer_types"), ("sliding_attention", "full_attention")
        if types is None:
            return tuple(window if index >= first else None for index in range(layers))
        if not isinstance(types, list) or len(types) != layers or not all(kind in known for kind in types):
            raise CheckpointError(f"{self.source}: layer_types must be {' or '.join(known)} for each layer")
        return tuple(window if kind == "sliding_attention" else None for kind in types)


def _short(value: object) -> str:
    """``value``, cut so that an error fits a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def rope_parameters(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The RoPE parameters from all places where a ``config.json`` may state them."""
    merged: dict[str, Any] = {}
    if raw.get("rope_theta") is not None:
        merged["rope_theta"] = raw["rope_theta"]
    if raw.get("original_max_position_embeddings") is not None:
        merged["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    for place in ("rope_parameters", "rope_scaling"):
        if raw.get(place) is None:
            continue
        if not isinstance(raw[place], Mapping):
            raise CheckpointError(f"{source}: {place} is not a mapping")
        merged.update({key: value for key, value in raw[place].items() if value is not None})
    return merged
