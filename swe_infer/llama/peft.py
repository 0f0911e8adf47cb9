"""Merges LoRA adapters (Hu et al., 2021) in the format of the ``peft`` package into the weights at load.

``W += scale * B A``, where ``scale`` is ``alpha / rank``, or ``alpha / sqrt(rank)`` for rank-stabilised LoRA. The
product is computed in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from swe_infer.errors import CheckpointError
from swe_infer.llama.adapter import check_adapter
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.weights import TensorSource, open_tensors, parameter_views

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
    views = parameter_views(model)
    remaining = source.names()
    if not remaining:
        raise CheckpointError(f"{directory}: the adapter has no tensors")
    for name in sorted(remaining):
        if name not in remaining:
            continue
        module, kind = _split(name)
        if kind == "full":
            _replace(source, name, views, module, model, directory)
            remaining.discard(name)
            continue
        a_name, b_name = (_PREFIX + module + f".lora_{side}.weight" for side in "AB")
        weight = views.get(f"{module}.weight")
        if weight is None:
            raise CheckpointError(
                f"{directory}: tensor {name} belongs to {module}, which the base model does not have"
            )
        if a_name not in remaining or b_name not in remaining:
            raise CheckpointError(f"{directory}: tensor {name} lacks its partner")
        _add(source, a_name, b_name, weight, _scale(config, module, source.shape(a_name)[0]), directory)
        remaining -= {a_name, b_name}


def _split(name: str) -> tuple[str, str]:
    """The base module of an adapter's tensor, and whether the tensor is a low-rank factor or a full replacement."""
    module = name.removeprefix(_PREFIX)
    match = re.fullmatch(r"(?P<module>.+)\.lora_[AB]\.weight", module)
    if match:
        return match["module"], "factor"
    return module.replace(".modules_to_save.", ".").removesuffix(".weight"), "full"


def _add(source: TensorSource, a_name: str, b_name: str, weight: Tensor, scale: float, directory: Path) -> None:
    rank = source.shape(a_name)[0]
    outputs, inputs = weight.shape
    if source.shape(a_name) != (rank, inputs) or source.shape(b_name) != (outputs, rank):
        raise CheckpointError(
            f"{directory}: {a_name} {list(source.shape(a_name))} and {b_name} {list(source.shape(b_name))} do not "
            f"fit the base weight {list(weight.shape)}"
        )
    a_RI, b_OR = torch.empty(rank, inputs), torch.empty(outputs, rank)
    source.read_into(a_name, a_RI)
    source.read_into(b_name, b_OR)
    delta_OI = (b_OR.to(weight.device) @ a_RI.to(weight.device)).mul_(scale)
    weight.copy_(delta_OI.add_(weight))


def _replace(
    source: TensorSource,
    name: str,
    views: Mapping[str, Tensor],
    module: str,
    model: LlamaForCausalLM,
    directory: Path,
) -> None:
    """Replace the base weight of a fully trained module (``modules_to_save``)."""
    target = views.get(f"{module}.weight")
    if target is None or (model.config.tie_word_embeddings and module == "model.embed_tokens"):
        reason = "is tied to lm_head" if target is not None else "is not a part of the base model"
        raise CheckpointError(f"{directory}: tensor {name} would replace {module}, which {reason}")
    source.read_into(name, target)


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
