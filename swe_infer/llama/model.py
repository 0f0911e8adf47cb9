"""Llama (Touvron et al., 2023) and related models over packed tokens and a paged KV cache.

Projections of the same input are fused: ``qkv_proj`` and ``gate_up_proj``. :mod:`swe_infer.llama.weights` maps the
names of Hugging Face checkpoints to them.

Shape suffixes: B sequences of equal length, L their length, T packed tokens, E hidden size, H query heads, K
key-value heads, D head dimension, I intermediate size, V vocabulary, R rows whose logits are computed.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swe_infer.llama.attention.base import AttentionBackend, AttentionShape, Layout, choose_backend
from swe_infer.llama.attention.native import Backend as NativeAttention
from swe_infer.llama.config import LlamaConfig
from swe_infer.llama.kv_cache import KVCache
from swe_infer.llama.large_pages import Arena
from swe_infer.llama.native.kernels import Kernels, Layers, LayerWeights, PackedWeight, load_kernels
from swe_infer.llama.placement import onednn_multiplies, product_dtype
from swe_infer.llama.rope import RotaryEmbedding, rotate
from swe_infer.llama.tp_rank import SINGLE_RANK, TPRank
from swe_infer.types import AttentionChoice

_log = logging.getLogger(__name__)

MIN_ROWS = 8
"""Minimum rows of a library matrix product. With fewer, libraries sum in another order, so that a row's bits would
depend on the batch size; and it costs no less. Our own kernels accept any number."""

CONVERTED_ELEMENTS = 1 << 19
"""Elements of a weight that are converted at a time: 2 MB in float32. Independent of the number of rows, so that a
row's bits are too."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """A forward pass as the scheduler states it: of sequence ``s`` the tokens
    ``starts[s] : starts[s] + query_lens[s]``.

    Args:
        ids: the tokens of all sequences, one after the other.
        block_tables: each sequence's cache blocks, enough for its tokens.
        rows: tokens whose logits are computed.
        rope_lengths: for each token, if RoPE depends on the length of its sequence.
    """

    ids: list[int]
    starts: Sequence[int]
    query_lens: Sequence[int]
    block_tables: Sequence[Sequence[int]]
    rows: Sequence[int]
    rope_lengths: Sequence[int] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """A :class:`ModelInput` prepared for the model, with tensors on its device. Padding rows follow the tokens.

    Args:
        ids_T: of the tokens.
        positions_T: position of each token in its sequence.
        max_position: the largest of them.
        slots: cache slots of each token's key and value, as computed by the backend.
        rows_R: tokens whose logits are computed.
        plan: the attention backend's plan.
        rope_lengths_T: lengths for RoPE that depends on them, see :class:`RotaryEmbedding`.
    """

    ids_T: Tensor
    positions_T: Tensor
    max_position: int
    slots: Tensor
    rows_R: Tensor
    plan: Any
    rope_lengths_T: Tensor | None = None


def fused_kernels(device: torch.device, dtype: torch.dtype) -> Any:
    """The module or object with one fused kernel for each operation between matrix products:
    :mod:`swe_infer.llama.kernels` on a GPU, :mod:`swe_infer.llama.native` on a CPU. None if neither is available."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        return importlib.import_module("swe_infer.llama.kernels")
    return native_kernels(device, dtype)


def native_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    if device.type != "cpu":
        return None
    kernels = load_kernels(dtype)
    return None if isinstance(kernels, str) else kernels


class RMSNorm(nn.Module):
    """Root mean square norm (Zhang and Sennrich, 2019) of the residual stream, computed in float32.

    Args:
        shard: the ranks among which the normalised dimension is divided.
    """

    def __init__(
        self, size: int, eps: float, device: torch.device, dtype: torch.dtype, shard: TPRank = SINGLE_RANK
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, device=device, dtype=dtype), requires_grad=False)
        self.eps = eps
        self.shard = shard
        self._kernels = fused_kernels(device, dtype) if shard.count == 1 else None

    def forward(self, x_TE: Tensor, delta_TE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``x + delta`` and its norm. Both must be contiguous, which the kernels do not check."""
        if self._kernels is not None:
            total_TE, normed_TE = self._kernels.add_rms_norm(x_TE, delta_TE, self.weight, self.eps)
            return total_TE, normed_TE
        if delta_TE is not None:
            x_TE = x_TE + delta_TE
        wide_TE = x_TE.float()
        square_T1 = self.shard.all_reduce(wide_TE.square().mean(-1, keepdim=True)) / self.shard.count
        return x_TE, self.weight * (wide_TE * torch.rsqrt(square_T1 + self.eps)).to(x_TE.dtype)


class Linear(nn.Module):
    """``x W^T + b`` without initialisation: weights are always loaded.

    Args:
        dtype: of ``x``, the bias and the output.
        weights: type of the stored weight.
    """

    packed: Tensor | PackedWeight | None = None
    """The packed weight, after :meth:`pack`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        device: torch.device,
        dtype: torch.dtype,
        weights: torch.dtype,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, device=device, dtype=weights), requires_grad=False)
        self.bias = (
            nn.Parameter(torch.empty(outputs, device=device, dtype=dtype), requires_grad=False) if bias else None
        )
        self.dtype = dtype
        self._product_dtype = product_dtype(device, dtype)
        self._kernels = native_kernels(device, dtype)

    def pack(self, arena: Arena, gated: bool = False, embeds: bool = False) -> None:
        """Store the weight in the layout of our kernels, or else of oneDNN, which would otherwise reorder it in each
        product.

        Args:
            arena: allocates the layout of our kernels.
            gated: the first half of the outputs are gates of the second half, so our kernels may apply them.
            embeds: :meth:`rows` is used as well, which oneDNN's layout does not support.
        """
        if self._kernels is not None and self._kernels.can_pack(*self.weight.shape):
            outputs, inputs = self.weight.shape
            gated = gated and self._kernels.can_pack(outputs, inputs, gated=True)
            self.packed = self._kernels.pack(self.weight.data, gated, arena)
        elif self.weight.dtype == self.dtype == torch.bfloat16 and onednn_multiplies(self.dtype) and not embeds:
            try:
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data, MIN_ROWS)
            except RuntimeError as error:
                _log.debug("oneDNN does not pack a weight of %s: %s", self.dtype, error)
        if self.packed is not None:
            self.weight.data = self.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.packed, PackedWeight):
            assert self._kernels is not None
            return self._kernels.linear(x, self.packed, self.bias)
        if isinstance(self.packed, Tensor):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
            return product
        if self.weight.dtype != self._product_dtype:
            return _converting_linear(x, self.weight, self.bias, self._product_dtype)
        return functional.linear(x, self.weight, self.bias)

    def rows(self, ids_T: Tensor) -> Tensor:
        """Rows of the weight, for tied embeddings."""
        if isinstance(self.packed, PackedWeight):
            assert self._kernels is not None
            return self._kernels.unpack(self.packed, ids_T)
        return functional.embedding(ids_T, self.weight).to(self.dtype)


def _converting_linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, dtype: torch.dtype) -> Tensor:
    """``x W^T + b`` computed in ``dtype``, in chunks of outputs, so that the converted weight stays in the CPU cache.
    The result has the type of ``x``."""
    outputs, inputs = weight_OI.shape
    x_RI = x.reshape(-1, inputs).to(dtype)
    out_RO = x_RI.new_empty(len(x_RI), outputs)
    step = max(1, CONVERTED_ELEMENTS // inputs)
    for start in range(0, outputs, step):
        chunk_OI = weight_OI[start : start + step].to(dtype)
        torch.mm(x_RI, chunk_OI.t(), out=out_RO[:, start : start + step])
    if bias_O is not None:
        out_RO += bias_O
    return out_RO.to(x.dtype).view(*x.shape[:-1], outputs)


@dataclass(frozen=True, slots=True)
class _Build:
    """What all modules of a model are built with.

    Args:
        dtype: of activations and arithmetic.
        weights: type of the stored projection weights.
    """

    config: LlamaConfig
    device: torch.device
    dtype: torch.dtype
    weights: torch.dtype
    shard: TPRank

    def linear(self, inputs: int, outputs: int, bias: bool) -> Linear:
        return Linear(inputs, outputs, bias, self.device, self.dtype, self.weights)

    def norm(self, size: int, shard: TPRank = SINGLE_RANK) -> RMSNorm:
        return RMSNorm(size, self.config.rms_norm_eps, self.device, self.dtype, shard)


class Attention(nn.Module):
    def __init__(self, build: _Build, layer: int) -> None:
        super().__init__()
        config, shard = build.config, build.shard
        self.shard = shard
        self.layer = layer
        kernels = fused_kernels(build.device, build.dtype)
        self._rotate = rotate if kernels is None else kernels.rotate
        self.heads, self.kv_heads, self.head_dim = (
            shard.divide(config.num_attention_heads),
            shard.divide(config.num_key_value_heads),
            config.head_dim,
        )
        self._rotary_dim = config.rotary_dim if not config.uses_rope or config.uses_rope[layer] else 0
        self._window = config.windows[layer] if config.windows else None
        self._query_factor = 1.0
        if config.attention_multiplier is not None:  # backends divide by the square root of the head dimension
            self._query_factor = config.attention_multiplier * math.sqrt(config.head_dim)
        outputs = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = build.linear(config.hidden_size, outputs, config.qkv_bias)
        output_bias = config.output_bias and shard.rank == 0  # only one rank adds the bias
        self.o_proj = build.linear(self.heads * self.head_dim, config.hidden_size, output_bias)
        self.q_norm, self.k_norm = None, None
        if config.qk_norm is not None:
            per_head = config.qk_norm == "head"
            self.q_norm, self.k_norm = (
                build.norm(self.head_dim) if per_head else build.norm(self.head_dim * heads, shard)
                for heads in (self.heads, self.kv_heads)
            )

    def forward(
        self,
        x_TE: Tensor,
        cos_sin: tuple[Tensor, Tensor],
        step: Step,
        cache: KVCache,
        backend: AttentionBackend[Any],
    ) -> Tensor:
        qkv_THD: Tensor = self.qkv_proj(x_TE).view(len(x_TE), -1, self.head_dim)
        qk_THD, v_THD = qkv_THD[:, : self.heads + self.kv_heads], qkv_THD[:, self.heads + self.kv_heads :]
        if self.q_norm is not None and self.k_norm is not None:
            q_THD, k_THD = qk_THD[:, : self.heads], qk_THD[:, self.heads :]
            qk_THD = torch.cat((_normed(self.q_norm, q_THD), _normed(self.k_norm, k_THD)), dim=1)
        if self._rotary_dim == self.head_dim:
            qk_THD = self._rotate(qk_THD, *cos_sin)
        elif self._rotary_dim:
            turned_THR = self._rotate(qk_THD[..., : self._rotary_dim].contiguous(), *cos_sin)
            qk_THD = torch.cat((turned_THR, qk_THD[..., self._rotary_dim :]), dim=-1)
        q_THD = qk_THD[:, : self.heads]
        if self._query_factor != 1.0:
            q_THD = q_THD * self._query_factor
        k_pool, v_pool = cache.keys[self.layer], cache.values[self.layer]
        backend.write(k_pool, v_pool, qk_THD[:, self.heads :], v_THD, step.slots)
        out_THD = backend.attend(q_THD, k_pool, v_pool, step.plan, self._window)
        return self.shard.all_reduce(self.o_proj(out_THD.flatten(1)))


def _normed(norm: RMSNorm, x_THD: Tensor) -> Tensor:
    """The norm of each head, or of all heads together, by the size of ``norm``."""
    normed: Tensor = norm(x_THD.reshape(-1, len(norm.weight)).contiguous())[1]
    return normed.view(x_THD.shape)


class FeedForward(nn.Module):
    def __init__(self, build: _Build) -> None:
        super().__init__()
        config, shard = build.config, build.shard
        self.shard = shard
        # On a CPU packed products are gated.
        self._kernels = None if build.device.type == "cpu" else fused_kernels(build.device, build.dtype)
        hidden, inner = config.hidden_size, shard.divide(config.intermediate_size)
        self.gate_up_proj = build.linear(hidden, 2 * inner, config.mlp_bias)
        self.down_proj = build.linear(inner, hidden, config.mlp_bias and shard.rank == 0)

    def forward(self, x_TE: Tensor) -> Tensor:
        both_TI = self.gate_up_proj(x_TE)
        if isinstance(self.gate_up_proj.packed, PackedWeight) and self.gate_up_proj.packed.gated:
            inner_TI = both_TI
        elif self._kernels is not None:
            inner_TI = self._kernels.silu_mul(both_TI)
        else:
            gate_TI, up_TI = both_TI.chunk(2, dim=-1)
            inner_TI = functional.silu(gate_TI).mul_(up_TI)
        return self.shard.all_reduce(self.down_proj(inner_TI))


class Layer(nn.Module):
    def __init__(self, build: _Build, layer: int) -> None:
        super().__init__()
        config = build.config
        self.attention_norm = build.norm(config.hidden_size)
        self.self_attn = Attention(build, layer)
        self.mlp_norm = build.norm(config.hidden_size)
        self.mlp = FeedForward(build)
        self._post_norm = config.post_norm
        self._multiplier = config.residual_multiplier

    def forward(self, x_TE: Tensor, delta_TE: Tensor | None, *attention: Any) -> tuple[Tensor, Tensor]:
        """Return the residual stream, and the last block's contribution to add to it.

        Args:
            delta_TE: the previous layer's last contribution.
            attention: the remaining arguments of :class:`Attention`.
        """
        if self._post_norm:
            x_TE = x_TE if delta_TE is None else x_TE + delta_TE
            x_TE = x_TE + self.attention_norm(self.self_attn(x_TE, *attention))[1]
            return x_TE, self.mlp_norm(self.mlp(x_TE))[1]
        x_TE, normed_TE = self.attention_norm(x_TE, delta_TE)
        x_TE, normed_TE = self.mlp_norm(x_TE, self._scaled(self.self_attn(normed_TE, *attention)))
        return x_TE, self._scaled(self.mlp(normed_TE))

    def _scaled(self, delta_TE: Tensor) -> Tensor:
        return delta_TE if self._multiplier == 1.0 else delta_TE * self._multiplier


class LlamaForCausalLM(nn.Module):
    """A Llama or related model with its language-model head.

    ``model(input_ids)`` computes the logits of whole sequences; the engine calls :meth:`decode` with its own cache.

    Args:
        config: see :func:`swe_infer.llama.config.read_config`.
        device: of the parameters, whose memory is not initialised.
        dtype: of activations, cache and arithmetic.
        weights: type of embeddings and projection weights; None: ``dtype``. On a CPU it may be narrower; weights are
            then converted as they are read.
        attention: backends in order of preference.
        shard: this rank's part of the model; all ranks run the same steps at the same time.
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        weights: torch.dtype | None = None,
        attention: AttentionChoice | None = None,
        shard: TPRank = SINGLE_RANK,
    ) -> None:
        super().__init__()
        config.check_division(shard.count)
        self.shard = shard
        device = torch.device(device)
        self.config = config
        self.device = device
        self.dtype = dtype
        self.weight_dtype = weights = weights or dtype
        heads, kv_heads = shard.divide(config.num_attention_heads), shard.divide(config.num_key_value_heads)
        shape = AttentionShape(heads, kv_heads, config.head_dim, device, dtype)
        self.backend = choose_backend(attention or AttentionChoice(), shape)
        self.rope = RotaryEmbedding(config, device, dtype)
        self.embed_tokens = nn.Parameter(
            torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=weights), requires_grad=False
        )
        build = _Build(config, device, dtype, weights, shard)
        self.layers = nn.ModuleList(Layer(build, index) for index in range(config.num_hidden_layers))
        self.norm = build.norm(config.hidden_size)
        vocabulary = 0 if shard.rank else config.vocab_size
        self.lm_head = build.linear(config.hidden_size, vocabulary, False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens
        self._compiled_layers: Layers | None = None
        self._min_rows = MIN_ROWS

    def pack(self) -> None:
        """Pack all weights for fast products, after loading. They can no longer be read or changed. Does nothing on a
        GPU."""
        if self.device.type != "cpu":
            return
        arena = Arena()
        products = {name: module for name, module in self.named_modules() if isinstance(module, Linear)}
        for name, product in products.items():
            embeds = product is self.lm_head and self.config.tie_word_embeddings
            product.pack(arena, gated=name.endswith("gate_up_proj"), embeds=embeds)
        self._compiled_layers = self._compile_layers(native_kernels(self.device, self.dtype))
        if all(isinstance(product.packed, PackedWeight) for product in products.values()):
            self._min_rows = 1

    def _compile_layers(self, kernels: Kernels | None) -> Layers | None:
        """Return all layers as one call, if the native kernels support all weights and attention is native."""
        if kernels is None or self.shard.count > 1 or not isinstance(self.backend, NativeAttention):
            return None
        if not self.config.is_llama:
            return None
        weights = []
        for layer in self.layers:
            assert isinstance(layer, Layer)
            products = (layer.self_attn.qkv_proj, layer.self_attn.o_proj, layer.mlp.gate_up_proj, layer.mlp.down_proj)
            packed = [(each.packed, each.bias) for each in products if isinstance(each.packed, PackedWeight)]
            if len(packed) < len(products) or not packed[2][0].gated:
                return None
            weights.append(LayerWeights(layer.attention_norm.weight, layer.mlp_norm.weight, packed))
        config = self.config
        heads = config.num_attention_heads, config.num_key_value_heads
        return Layers(kernels, weights, heads, config.head_dim, config.rms_norm_eps)

    @torch.inference_mode()
    def forward(self, input_ids_BL: Tensor) -> Tensor:
        """Return logits (BLV, float32) of whole sequences of equal length, without padding.

        Raises:
            ValueError: a token id is outside the vocabulary.
        """
        (sequences, length), vocabulary = input_ids_BL.shape, self.config.vocab_size
        ids = input_ids_BL.flatten().tolist()
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ValueError(f"a token id is outside the vocabulary of {vocabulary}")
        blocks = -(-length // self.backend.block_size)
        tables = [range(1 + index * blocks, 1 + (index + 1) * blocks) for index in range(sequences)]
        lengths = [length] * len(ids) if self.config.rope.depends_on_length else None
        model_input = ModelInput(ids, [0] * sequences, [length] * sequences, tables, range(len(ids)), lengths)
        logits_TV: Tensor = self.run(model_input, self.new_cache(1 + sequences * blocks))
        return logits_TV.view(sequences, length, -1)

    def run(self, model_input: ModelInput, cache: KVCache) -> Tensor:
        """:meth:`decode` for an input on the host."""
        return self.decode(self.step(model_input), cache)

    @torch.inference_mode()
    def decode(self, step: Step, cache: KVCache, out_RV: Tensor | None = None) -> Tensor:
        """Run packed tokens and write their keys and values into ``cache``. Returns the logits of ``step.rows_R``
        (RV, float32), empty on a rank without the language-model head.

        Args:
            out_RV: has at least R rows, of which the first receive the logits.
        """
        logit_rows = len(step.rows_R)
        x_TE = self._embed(step.ids_T)
        cos_sin = self.rope(step.positions_T, step.max_position, step.rope_lengths_T)
        delta_TE = None
        if self._compiled_layers is not None:
            x_TE, delta_TE = self._compiled_layers(x_TE, cos_sin, step.slots, step.plan, cache.keys, cache.values)
        else:
            for layer in self.layers:
                x_TE, delta_TE = layer(x_TE, delta_TE, cos_sin, step, cache, self.backend)
        if self.shard.rank:
            return x_TE.new_empty(0, dtype=torch.float32)
        x_RE = x_TE.index_select(0, step.rows_R)
        if delta_TE is not None:
            x_RE = x_RE + delta_TE.index_select(0, step.rows_R)
        if logit_rows < self._min_rows:
            x_RE = functional.pad(x_RE, (0, 0, 0, self._min_rows - logit_rows))
        logits_RV: Tensor = self.lm_head(self.norm(x_RE)[1])[:logit_rows]
        logits_RV = logits_RV.float() if out_RV is None else out_RV[:logit_rows].copy_(logits_RV)
        return logits_RV if self.config.logits_divisor == 1.0 else logits_RV.div_(self.config.logits_divisor)

    def _embed(self, ids_T: Tensor) -> Tensor:
        if self.config.tie_word_embeddings:
            x_TE = self.lm_head.rows(ids_T)
        else:
            x_TE = functional.embedding(ids_T, self.embed_tokens).to(self.dtype)
        return x_TE if self.config.embedding_multiplier == 1.0 else x_TE * self.config.embedding_multiplier

    def step(self, model_input: ModelInput) -> Step:
        """Prepare a forward pass, with padding rows where the library's products need them."""
        starts, query_lens, tables = model_input.starts, model_input.query_lens, model_input.block_tables
        positions, slots = positions_and_slots(starts, query_lens, tables, self.backend.block_size)
        padding = [0] * max(0, self._min_rows - len(positions))
        key_lens = [start + count for start, count in zip(starts, query_lens, strict=True)]
        layout = Layout(query_lens, key_lens, tables)
        lengths = model_input.rope_lengths
        return Step(
            ids_T=self._send(model_input.ids + padding),
            positions_T=self._send(positions + padding),
            max_position=max(positions, default=0),
            slots=self.backend.slots(self._send(slots + padding)),
            rows_R=self._send(model_input.rows),
            plan=self.backend.plan(layout),
            rope_lengths_T=None if lengths is None else self._send([*lengths, *padding]),
        )

    def new_cache(self, blocks: int) -> KVCache:
        """Return a cache of ``blocks`` blocks in the model's dtype and on its device. The first block is scratch."""
        return KVCache(
            self.config.num_hidden_layers,
            self.backend.pool_shape(blocks),
            self.backend.block_size,
            self.device,
            self.dtype,
        )

    def _send(self, values: Sequence[int]) -> Tensor:
        tensor = torch.tensor(values, dtype=torch.int64, pin_memory=self.device.type == "cuda")
        return tensor.to(self.device, non_blocking=True)


def positions_and_slots(
    starts: Sequence[int], query_lens: Sequence[int], block_tables: Sequence[Sequence[int]], size: int
) -> tuple[list[int], list[int]]:
    """Return each packed token's position in its sequence and its slot in a cache with blocks of ``size`` tokens."""
    positions: list[int] = []
    slots: list[int] = []
    for start, count, table in zip(starts, query_lens, block_tables, strict=True):
        positions += range(start, start + count)
        if count == 1:
            slots.append(table[start // size] * size + start % size)
        else:
            slots += [table[p // size] * size + p % size for p in range(start, start + count)]
    return positions, slots
