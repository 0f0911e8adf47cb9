"""Reads ``config.json`` of a Hugging Face checkpoint of a Llama or a related family, without torch or transformers.

The format is that of ``transformers`` in any release: RoPE parameters are in ``rope_theta`` and ``rope_scaling``
(old) or in ``rope_parameters`` (new). :mod:`swe_infer.llama.families` states in what the families differ from Llama.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.families import FAMILIES
from swe_infer.llama.families.base import LLAMA_NAMES, Parts, Reader, TensorNames, rope_parameters

RopeType = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]

_ROPE_OPTIONAL = (
    *("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim"),
)
_ROPE_REQUIRED: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Parameters of the rotary position embedding. Fields that a type does not use keep their defaults.

    Args:
        theta: base of the geometric series of wavelengths.
        type: how the frequencies are scaled.
        factor: scale of the context window.
        original_max_positions: the context window before scaling (llama3, yarn, longrope).
        low_freq_factor, high_freq_factor: band limits of llama3.
        beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate: ramp and temperature of yarn.
        short_factors, long_factors: divisors of the frequencies of sequences within and beyond the original window
            (longrope).
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
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether a token's angles depend on the length of its sequence."""
        return self.type in ("dynamic", "longrope")


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Architecture of a Llama or a related model. Names follow ``transformers.LlamaConfig`` where the meaning is the
    same.

    Args:
        rotary_fraction: of the dimensions of a head, the leading ones that are rotated.
        qkv_bias, output_bias, mlp_bias: of the projections to queries, keys and values; of attention's output; of the
            feed-forward block.
        qk_norm: RMS norm of queries and keys: of each head, or of the whole projection.
        post_norm: norms of the outputs of attention and feed-forward block, instead of their inputs.
        windows: of each layer the number of keys that a token sees, its own included; None: all. Empty: all layers.
        uses_rope: whether each layer rotates queries and keys. Empty: all do.
        embedding_multiplier, residual_multiplier: factors of the embeddings, and of each block's contribution.
        attention_multiplier: factor of the scores; None: one over the square root of ``head_dim``.
        logits_divisor: of the logits.
        names: of the checkpoint's tensors.
    """

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
    rotary_fraction: float = 1.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None
    qk_norm: Literal["head", "projection"] | None = None
    post_norm: bool = False
    windows: tuple[int | None, ...] = ()
    uses_rope: tuple[bool, ...] = ()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    attention_multiplier: float | None = None
    logits_divisor: float = 1.0
    names: TensorNames = LLAMA_NAMES

    @property
    def rotary_dim(self) -> int:
        """Leading dimensions of a head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def is_llama(self) -> bool:
        """Whether the layers have no part that Llama lacks, so that the compiled layers compute them."""
        return (
            self.qk_norm is None
            and not self.post_norm
            and not any(self.windows)
            and all(self.uses_rope)
            and self.rotary_dim == self.head_dim
            and self.residual_multiplier == 1.0
            and self.attention_multiplier is None
        )

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
        attention = 2 * hidden * (heads + kv) + self.qkv_bias * (heads + 2 * kv) + self.output_bias * hidden
        attention += {"head": 2 * self.head_dim, "projection": heads + kv, None: 0}[self.qk_norm]
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
            CheckpointError: the architecture is unknown, a key is missing, or a feature is not supported.
        """
        family = _family(raw, source)
        _refuse_unsupported(raw, source)
        read = Reader(raw, source)
        parts: Parts = importlib.import_module(f"swe_infer.llama.families.{family}").parts(read)
        hidden, heads = read.positive("hidden_size"), read.positive("num_attention_heads")
        kv_heads = read.positive("num_key_value_heads", heads)
        if heads % kv_heads:
            raise CheckpointError(f"{source}: {heads} attention heads do not divide by {kv_heads} key-value heads")
        head_dim = parts.get("head_dim") or read.positive("head_dim", hidden // heads)
        fraction = read.rotary_fraction()
        rotary_dim = int(head_dim * fraction)
        if rotary_dim % 2 or rotary_dim < 4:
            raise CheckpointError(
                f"{source}: {rotary_dim} dimensions of a head would be rotated: must be an even number above 2"
            )
        positions = read.positive("max_position_embeddings", 2048)
        dtype = raw.get("dtype") or raw.get("torch_dtype")
        fields: dict[str, Any] = {
            "rms_norm_eps": read.number("rms_norm_eps", 1e-6),
            "tie_word_embeddings": read.flag("tie_word_embeddings"),
            **parts,
            "head_dim": head_dim,
        }
        return cls(
            vocab_size=read.positive("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.positive("intermediate_size"),
            num_hidden_layers=read.layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            rotary_fraction=fraction,
            max_position_embeddings=positions,
            rope=_read_rope(raw, source, positions, rotary_dim),
            eos_token_ids=_token_ids(raw.get("eos_token_id"), source),
            dtype=str(dtype).removeprefix("torch.") if dtype else None,
            **fields,
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
        CheckpointError: the file is missing, is not JSON, or its architecture is not supported.
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
    read = Reader(raw, str(path))
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


def _family(raw: Mapping[str, Any], source: str) -> str:
    """The module of :mod:`swe_infer.llama.families` that describes the architecture."""
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{source}: architectures={architectures!r} is not a list of names")
    if not architectures and raw.get("model_type") == "llama":
        return "llama"
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name]
    named = ", ".join(architectures) or raw.get("model_type") or "none named"
    raise CheckpointError(
        f"{source}: unknown architecture ({named}); this engine runs {', '.join(FAMILIES)}. "
        "vLLM serves others: add provider=vllm runner=api"
    )


def _refuse_unsupported(raw: Mapping[str, Any], source: str) -> None:
    if raw.get("quantization_config"):
        raise CheckpointError(
            f"{source}: quantised weights are not supported; use the unquantised checkpoint, or vLLM: "
            "provider=vllm runner=api"
        )
    if (activation := raw.get("hidden_act", "silu")) != "silu":
        raise CheckpointError(f"{source}: hidden_act={activation}; this engine runs silu")


def _read_rope(raw: Mapping[str, Any], source: str, positions: int, rotary_dim: int) -> RopeConfig:
    merged = rope_parameters(raw, source)
    name = merged.get("rope_type", merged.get("type", "default"))
    name = "longrope" if name == "su" else name
    if name not in get_args(RopeType):
        raise CheckpointError(f"{source}: unknown RoPE type {name}; known are {', '.join(get_args(RopeType))}")
    missing = [key for key in _ROPE_REQUIRED[name] if key not in merged]
    if missing:
        raise CheckpointError(f"{source}: RoPE type {name} needs {', '.join(missing)}")
    read = Reader(merged, source)
    fields: dict[str, Any] = {key: read.number(key) for key in _ROPE_OPTIONAL if key in merged}
    if name in ("llama3", "yarn", "longrope"):
        original = read.positive("original_max_position_embeddings", positions, least=2)
        fields = {"factor": positions / original, **fields, "original_max_positions": original}
    if name == "longrope":
        for side in ("short", "long"):
            fields[f"{side}_factors"] = read.numbers(f"{side}_factor", rotary_dim // 2)
    rope = RopeConfig(
        theta=read.number("rope_theta", 10_000.0),
        type=cast(RopeType, name),
        truncate=read.flag("truncate", default=True),
        **fields,
    )
    if rope.theta <= 1 or rope.low_freq_factor >= rope.high_freq_factor:
        raise CheckpointError(
            f"{source}: rope_theta must be above 1, and high_freq_factor of RoPE above low_freq_factor"
        )
    return rope


def _token_ids(value: Any, source: str) -> tuple[int, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, int) for v in values):
        raise CheckpointError(f"{source}: eos_token_id={value!r} is neither a token id nor a list of them")
    return tuple(values)
