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
from swe_infer.llama.weights import Piece, TensorSource, open_tensors, pieces

_PREFIX = "base_model.model."


@torch.inference_mode()
def merge_adapter(model: LlamaForCausalLM, directory: Path, *, allow_pickle: bool) -> None:
    """Merge an adapter into ``model``, whose weights are loaded. Every tensor of the adapter must match a base
    weight.

    Raises:
        CheckpointError: see :func:`check_adapter`; or a tensor matches no base weight, has no partner, or has another
            shape than its base weight.
    """
    config = check_adapter(directory)
    source = open_tensors(directory, "adapter_model.safetensors", "adapter_model.bin", allow_pickle=allow_pickle)
    parts: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces(model):
        parts[piece.name].append(piece)
    remaining = source.names()
    if not remaining:
        raise CheckpointError(f"{directory}: the adapter has no tensors")
    for name in sorted(remaining):
        if name not in remaining:
            continue
        module, kind = _split(name)
        if kind == "full":
            _replace(source, name, parts.get(module), module, model, directory)
            remaining.discard(name)
            continue
        a_name, b_name = (_PREFIX + module + f".lora_{side}.weight" for side in "AB")
        weight = parts.get(f"{module}.weight")
        if weight is None:
            raise CheckpointError(
                f"{directory}: tensor {name} belongs to {module}, which the base model does not have"
            )
        if a_name not in remaining or b_name not in remaining:
            raise CheckpointError(f"{directory}: tensor {name} lacks its partner")
        _add(source, a_name, b_name, weight, _scale(config, module, source.shape(a_name)[0]), directory)
        remaining -= {a_name, b_name}


def _split(name: str) -> tuple[str, str]:
    """The base module of a low-rank factor (``factor``), or the base parameter that a tensor replaces (``full``)."""
    module = name.removeprefix(_PREFIX)
    match = re.fullmatch(r"(?P<module>.+)\.lora_[AB]\.weight", module)
    if match:
        return match["module"], "factor"
    return module.replace(".modules_to_save.", "."), "full"


def _add(
    source: TensorSource, a_name: str, b_name: str, weight: Sequence[Piece], scale: float, directory: Path
) -> None:
    rank = source.shape(a_name)[0]
    outputs, inputs = weight[0].shape
    if source.shape(a_name) != (rank, inputs) or source.shape(b_name) != (outputs, rank):
        raise CheckpointError(
            f"{directory}: {a_name} {list(source.shape(a_name))} and {b_name} {list(source.shape(b_name))} do not "
            f"fit the base weight {[outputs, inputs]}"
        )
    a_RI, b_OR = torch.empty(rank, inputs), torch.empty(outputs, rank)
    source.read(a_name, a_RI)
    source.read(b_name, b_OR)
    device = weight[0].target.device
    delta_OI = (b_OR.to(device) @ a_RI.to(device)).mul_(scale)
    for piece in weight:
        piece.target.copy_(delta_OI[piece.rows, piece.columns].add_(piece.target))


def _replace(
    source: TensorSource,
    name: str,
    parameter: Sequence[Piece] | None,
    module: str,
    model: LlamaForCausalLM,
    directory: Path,
) -> None:
    """Replace the base weight of a fully trained module (``modules_to_save``)."""
    tied = model.config.tie_word_embeddings and module == f"{model.config.names.embeddings}.weight"
    if parameter is None or tied:
        reason = "is tied to lm_head" if tied else "is not a part of the base model"
        module = module.removesuffix(".weight")
        raise CheckpointError(f"{directory}: tensor {name} would replace {module}, which {reason}")
    for piece in parameter:
        piece.read(source, name, directory)


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
