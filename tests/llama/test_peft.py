"""LoRA adapters written by the peft package, merged at load, against peft's own model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError
from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    from swe_infer.llama.peft import merge_adapter
    from tests.llama.helpers import load, random_prompt
    from tests.support.checkpoints import reference

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks


def ids() -> torch.Tensor:
    return torch.tensor([random_prompt(40, 0)])


VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all_linear": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear"},
    "regular_expression": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": r".*\.(0|2)\.(mlp|self_attn)\.(up|down|o)_proj",
    },
    "rank_stabilised": {"r": 16, "lora_alpha": 8, "target_modules": ["k_proj", "gate_proj"], "use_rslora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "o_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {r"layers\.[02]\.self_attn\.o_proj": 32},
    },
    "whole_modules": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


def make_adapter(base: Path, directory: Path, *, pickled: bool = False, **config: Any) -> torch.Tensor:
    """Write an adapter with random factors; returns the logits of peft's own model."""
    torch.manual_seed(1)
    model = get_peft_model(reference(base), LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(str(directory), safe_serialization=not pickled)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(ids()).logits
    return logits


def merged(base: Path, adapter: Path, *, allow_pickle: bool = False) -> torch.Tensor:
    model = load(base)
    merge_adapter(model, adapter, allow_pickle=allow_pickle)
    logits: torch.Tensor = model(ids())
    return logits


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_merged_adapter_equals_pefts_model(checkpoint: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    expected = make_adapter(checkpoint, tmp_path, **config)
    assert (load(checkpoint)(ids()) - expected).abs().max() > 0.1
    torch.testing.assert_close(merged(checkpoint, tmp_path), expected, atol=1e-4, rtol=0)


def test_a_pickled_adapter_is_refused_unless_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    expected = make_adapter(checkpoint, tmp_path, **VARIANTS["attention"])
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_model.safetensors").unlink()
    torch.save(tensors, tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"only pickled weights \(adapter_model\.bin\)"):
        merged(checkpoint, tmp_path)
    torch.testing.assert_close(merged(checkpoint, tmp_path, allow_pickle=True), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type=IA3; only LORA"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias=all is not supported"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is not supported"),
        ({"r": 0}, "r=0: must be a positive number"),
        ({"r": 5}, "states rank 5"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf: must be a positive number"),
        ({"lora_alpha": 1e60}, r"tensor .*lora_A\.weight makes the weight of .* overflow"),
        ({"rank_pattern": ["q_proj"]}, "must be an object with a number for each pattern"),
        ({"rank_pattern": {"(": 3}}, r"rank_pattern: '\(' is not a regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern\.q_proj='x': must be a positive number"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(
    checkpoint: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    make_adapter(checkpoint, tmp_path, **VARIANTS["attention"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    with pytest.raises(CheckpointError, match=message):
        merged(checkpoint, tmp_path)


def test_a_factor_without_its_partner_is_named(checkpoint: Path, tmp_path: Path) -> None:
    make_adapter(checkpoint, tmp_path, **VARIANTS["attention"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj\.lora_A\.weight lacks its partner"):
        merged(checkpoint, tmp_path)


def test_an_adapter_of_a_larger_model_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    make_adapter(checkpoint, tmp_path, **VARIANTS["attention"])
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name.replace("layers.2.", "layers.7."): tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"layers\.7\.self_attn\.q_proj, which the base model does not have"):
        merged(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        ("layers.1.input_layernorm", (4, 64), "which the base model does not have as a matrix"),
        ("layers.1.self_attn.q_proj", (), r"has shape \[\], expected"),
        ("layers.1.self_attn.q_proj", (10**15, 0), r"has shape \[1000000000000000, 0\], expected"),
        ("layers.1.self_attn.q_proj", (4, 65), r"lora_A\.weight has shape \[4, 65\], expected \[4, 64\]"),
    ],
)
def test_a_factor_of_another_shape_is_named(
    checkpoint: Path, tmp_path: Path, module: str, shape: tuple[int, ...], message: str
) -> None:
    make_adapter(checkpoint, tmp_path, **VARIANTS["attention"])
    path = tmp_path / "adapter_model.safetensors"
    name = f"base_model.model.model.{module}.lora_"
    factors = {f"{name}A.weight": torch.ones(shape), f"{name}B.weight": torch.ones(64, 4)}
    save_file({**load_file(path), **factors}, path)
    with pytest.raises(CheckpointError, match=message):
        merged(checkpoint, tmp_path)


def test_a_directory_that_is_no_adapter_is_refused(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json"):
        merged(checkpoint, checkpoint)


def test_the_name_of_a_model_with_an_adapter_does_not_change_with_use(checkpoint: Path) -> None:
    model = LlamaModel(path="org/CodeLlama-7b", peft_path="org/SWE-Llama-peft/")
    assert [model.label for _ in range(3)] == ["CodeLlama-7b+SWE-Llama-peft"] * 3
