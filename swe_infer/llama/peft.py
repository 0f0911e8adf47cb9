"""Merges LoRA adapters (Hu et al., 2021) in the format of the ``peft`` package into the weights at load.

``W += scale * B A``, where ``scale`` is ``alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilised LoRA. The
product is computed in float32.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from swe_infer.errors import CheckpointError
from swe_infer.llama.adapter import check_adapter
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.weights import Piece, StoredTensor, open_tensors, pieces

_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@torch.inference_mode()
def merge_adapter(model: LlamaForCausalLM, directory: Path, *, allow_pickle: bool) -> None:
    """Merge an adapter into ``model``, whose weights are loaded. Every tensor of the adapter must match a base
    weight.

    Raises:
        CheckpointError: see :func:`check_adapter`; or a tensor matches no base weight, has no partner, or has another
            shape than its base weight.
    """
    config = check_adapter(directory)
    tensors = open_tensors(directory, "adapter_model.safetensors", "adapter_model.bin", allow_pickle=allow_pickle)
    weights: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces(model):
        weights[piece.name].append(piece)
    if not tensors:
        raise CheckpointError(f"{directory}: the adapter has no tensors")
    for name, tensor in sorted(tensors.items()):
        match = _FACTOR.fullmatch(name)
        if match is None:
            _replace(tensor, weights, model, directory)
            continue
        module = match["module"].removeprefix(_PREFIX)
        weight = weights.get(f"{module}.weight", [])
        if not weight or len(weight[0].shape) < 2:
            raise CheckpointError(
                f"{directory}: tensor {name} belongs to {module}, which the base model does not have as a matrix"
            )
        partner = tensors.get(f"{match['module']}.lora_{'B' if match['side'] == 'A' else 'A'}.weight")
        if partner is None:
            raise CheckpointError(f"{directory}: tensor {name} lacks its partner")
        if match["side"] == "A":
            _add(tensor, partner, weight, config, module)


def _add(a: StoredTensor, b: StoredTensor, weight: Sequence[Piece], config: Mapping[str, Any], module: str) -> None:
    """Add ``scale * B A`` to the base weight."""
    outputs, inputs = weight[0].shape
    rank = a.shape[0] if a.shape else 0
    a.check_shape((rank, inputs))  # before memory is allocated
    b.check_shape((outputs, rank))
    a_RI, b_OR = torch.empty(rank, inputs), torch.empty(outputs, rank)
    a.read(a_RI)
    b.read(b_OR)
    device = weight[0].target.device
    delta_OI = (b_OR.to(device) @ a_RI.to(device)).mul_(_scale(config, module, rank))
    for piece in weight:
        piece.target.copy_(delta_OI[piece.part].add_(piece.target))
        if not piece.target.isfinite().all():
            raise CheckpointError(f"{a.path}: tensor {a.name} makes the weight of {module} overflow")


def _replace(
    tensor: StoredTensor, weights: Mapping[str, Sequence[Piece]], model: LlamaForCausalLM, directory: Path
) -> None:
    """Replace the base weight of a fully trained module (``modules_to_save``)."""
    parameter = tensor.name.removeprefix(_PREFIX).replace(".modules_to_save.", ".")
    tied = model.config.tie_word_embeddings and parameter == f"{model.config.names.embeddings}.weight"
    if parameter not in weights or tied:
        reason = "is tied to lm_head" if tied else "is not a part of the base model"
        module = parameter.removesuffix(".weight")
        raise CheckpointError(f"{directory}: tensor {tensor.name} would replace {module}, which {reason}")
    for piece in weights[parameter]:
        tensor.read(piece.target, piece.shape, piece.part)


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of ``B A``. Patterns match the end of the module's name, as in peft."""
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config["lora_alpha"]))
    stated = int(_by_pattern(config.get("rank_pattern"), module, config["r"]))
    if stated != rank:
        raise CheckpointError(f"adapter_config.json states rank {stated} for {module}, its tensors have rank {rank}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
