"""Reads ``config.json`` of a Hugging Face Llama checkpoint, without torch or transformers.

The format is that of ``transformers.LlamaConfig`` in any release: RoPE parameters are in ``rope_theta`` and
``rope_scaling`` (old) or in ``rope_parameters`` (new).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from swe_infer.errors import CheckpointError, ConfigError

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn"]

_ROPE_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Parameters of the rotary position embedding. Fields that a type does not use keep their defaults.

    Args:
        theta: base of the geometric series of wavelengths.
        type: how the frequencies are scaled.
        factor: scale of the context window.
        original_max_positions: the context window before scaling (llama3, yarn).
        low_freq_factor, high_freq_factor: band limits of llama3.
        beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate: ramp and temperature of yarn.
    """

    theta: float = 10_000.0
    type: RopeType = "default"
    factor: float = 1.0
    original_max_positions: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Architecture of a Llama. Names follow ``transformers.LlamaConfig`` where the meaning is the same."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope: RopeConfig = RopeConfig()
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None

    @property
    def context_window(self) -> int:
        """Largest sequence length in tokens, RoPE scaling included.

        Linear and dynamic scaling keep the unscaled window in ``max_position_embeddings``. llama3 and yarn
        checkpoints state the scaled window, except that yarn may leave the original window out.
        """
        rope = self.rope
        if rope.type in ("linear", "dynamic"):
            return int(self.max_position_embeddings * rope.factor)
        if rope.type == "yarn":
            original = rope.original_max_positions or self.max_position_embeddings
            return max(self.max_position_embeddings, int(original * rope.factor))
        return self.max_position_embeddings

    @property
    def parameters(self) -> int:
        """Number of weights, biases included."""
        heads, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = 2 * hidden * (heads + kv) + self.attention_bias * (heads + 2 * kv + hidden)
        feed_forward = 3 * hidden * inner + self.mlp_bias * (2 * inner + hidden)
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * hidden
        return self.num_hidden_layers * (attention + feed_forward + 2 * hidden) + embeddings + hidden

    def check_division(self, parts: int) -> None:
        """Raises ConfigError if ``parts`` does not divide the attention heads, key-value heads and inner units."""
        for what, size in (
            ("attention heads", self.num_attention_heads),
            ("key-value heads", self.num_key_value_heads),
            ("inner units", self.intermediate_size),
        ):
            if size % parts:
                raise ConfigError(f"model.tensor_parallel={parts}: must divide the {size} {what} of the checkpoint")

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str = "config.json") -> LlamaConfig:
        """Parse the content of a ``config.json``.

        Raises:
            CheckpointError: the architecture is not Llama, a key is missing, or a feature is not supported.
        """
        _refuse_unsupported(raw, source)
        read = _Reader(raw, source)
        hidden, heads = read.positive("hidden_size"), read.positive("num_attention_heads")
        kv_heads = read.positive("num_key_value_heads", heads)
        if heads % kv_heads:
            raise CheckpointError(f"{source}: {heads} attention heads do not divide by {kv_heads} key-value heads")
        head_dim = read.positive("head_dim", hidden // heads)
        if head_dim % 2:
            raise CheckpointError(f"{source}: head_dim={head_dim} is odd, so rotary embeddings cannot be applied")
        positions = read.positive("max_position_embeddings", 2048)
        dtype = raw.get("dtype") or raw.get("torch_dtype")
        return cls(
            vocab_size=read.positive("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.positive("intermediate_size"),
            num_hidden_layers=read.positive("num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=positions,
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            rope=_read_rope(raw, source, positions),
            attention_bias=bool(raw.get("attention_bias", False)),
            mlp_bias=bool(raw.get("mlp_bias", False)),
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            eos_token_ids=_token_ids(raw.get("eos_token_id"), source),
            dtype=str(dtype).removeprefix("torch.") if dtype else None,
        )


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults of a checkpoint, from ``generation_config.json``."""

    temperature: float = 0.0
    top_p: float | None = None
    eos_token_ids: tuple[int, ...] = ()


def read_config(directory: Path) -> LlamaConfig:
    """Read ``config.json`` of a checkpoint directory.

    Raises:
        CheckpointError: the file is missing, is not JSON, or is not a supported Llama.
    """
    path = directory / "config.json"
    if not path.is_file():
        hint = ""
        if (directory / "adapter_config.json").is_file():
            hint = ": this is a LoRA adapter, so give it as model.peft_path and its base model as model.path"
        raise CheckpointError(f"{directory} has no config.json{hint}")
    return LlamaConfig.from_dict(read_json(path), str(path))


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """Read ``generation_config.json`` if it exists. Decoding is greedy without ``do_sample``."""
    path = directory / "generation_config.json"
    if not path.is_file():
        return GenerationDefaults()
    raw = read_json(path)
    eos = _token_ids(raw.get("eos_token_id"), str(path))
    if not raw.get("do_sample"):
        return GenerationDefaults(eos_token_ids=eos)
    read = _Reader(raw, str(path))
    return GenerationDefaults(
        temperature=read.number("temperature", 1.0),
        top_p=None if raw.get("top_p") is None else read.number("top_p"),
        eos_token_ids=eos,
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError, which names the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return raw


def _refuse_unsupported(raw: Mapping[str, Any], source: str) -> None:
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list):
        raise CheckpointError(f"{source}: architectures={architectures!r} is not a list of names")
    known = "LlamaForCausalLM" in architectures if architectures else raw.get("model_type") == "llama"
    if not known:
        named = ", ".join(map(str, architectures)) or raw.get("model_type") or "none named"
        raise CheckpointError(f"{source}: unknown architecture ({named}); this engine runs LlamaForCausalLM")
    if raw.get("quantization_config"):
        raise CheckpointError(f"{source}: quantised weights are not supported; use the unquantised checkpoint")
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"{source}: hidden_act={activation}; this engine runs silu")
    if raw.get("sliding_window"):
        raise CheckpointError(f"{source}: sliding-window attention is not supported")
    if raw.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
        raise CheckpointError(f"{source}: partial_rotary_factor is not supported")


def _read_rope(raw: Mapping[str, Any], source: str, positions: int) -> RopeConfig:
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
    name = merged.get("rope_type", merged.get("type", "default"))
    if name not in get_args(RopeType):
        raise CheckpointError(f"{source}: unknown RoPE type {name}; known are {', '.join(get_args(RopeType))}")
    missing = [key for key in _ROPE_REQUIRED[name] if key not in merged]
    if missing:
        raise CheckpointError(f"{source}: RoPE type {name} needs {', '.join(missing)}")
    read = _Reader(merged, source)
    original = merged.get("original_max_position_embeddings")
    if original is None and name in ("llama3", "yarn"):
        original = positions
    optional = {
        key: None if merged.get(key) is None else read.number(key)
        for key in ("attention_factor", "mscale", "mscale_all_dim")
    }
    return RopeConfig(
        theta=read.number("rope_theta", 10_000.0),
        type=cast(RopeType, name),
        factor=read.number("factor", 1.0),
        original_max_positions=None if original is None else int(original),
        low_freq_factor=read.number("low_freq_factor", 1.0),
        high_freq_factor=read.number("high_freq_factor", 4.0),
        beta_fast=read.number("beta_fast", 32.0),
        beta_slow=read.number("beta_slow", 1.0),
        truncate=bool(merged.get("truncate", True)),
        **optional,
    )


def _token_ids(value: Any, source: str) -> tuple[int, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int) for v in values):
        raise CheckpointError(f"{source}: eos_token_id={value!r} is neither a token id nor a list of them")
    return tuple(values)


class _Reader:
    """Typed access to a raw mapping; errors name the file and the key."""

    def __init__(self, raw: Mapping[str, Any], source: str) -> None:
        self.raw = raw
        self.source = source

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.raw.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.source}: {key}={value!r}: must be a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.raw.get(key)
        if value is None:
            value = default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise CheckpointError(f"{self.source}: {key}={value!r}: must be a positive number")
        return float(value)
