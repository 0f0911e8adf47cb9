"""Loading of weights, and errors that name file and tensor."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.config import LlamaConfig, read_config
from swe_infer.llama.hub import snapshot_directory
from swe_infer.types import LlamaModel
from tests.support import commands
from tests.support.selection import combinations

if TYPE_CHECKING:
    import torch
    from safetensors.torch import load_file, save_file

    from swe_infer.llama.engine import Engine, EngineOptions
    from swe_infer.llama.model import Linear, LlamaForCausalLM
    from swe_infer.llama.placement import check_memory, choose_device, choose_dtype
    from swe_infer.llama.weights import load_weights, stored_dtype
    from tests.llama.helpers import load, random_prompt
    from tests.support.checkpoints import make_checkpoint, reference

THREADS = """
import os
import torch
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.types import LlamaModel

torch.set_num_threads(3)
before = len(os.listdir("/proc/self/task"))
Engine.load(LlamaModel(path="package://swe_infer.sample/tiny_llama", device="cpu"), EngineOptions(kv_cache_gb=0.05))
print(len(os.listdir("/proc/self/task")) - before)
"""

PEAK_MEMORY = """
import sys
from pathlib import Path
import torch
from swe_infer.llama.config import read_config
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.weights import load_weights

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

def load(directory):
    model = LlamaForCausalLM(read_config(Path(directory)))
    load_weights(model, Path(directory), allow_pickle=False)
    return model

torch.set_num_threads(1)
load(sys.argv[1])  # the libraries take memory at their first use
before = peak()
model = load(sys.argv[2])
print((peak() - before) / sum(p.numel() * p.itemsize for p in model.parameters()))
"""


def ids() -> torch.Tensor:
    return torch.tensor([random_prompt(12, 0)])


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(directory: Path, **values: torch.Tensor | None) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    for name, value in values.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, r"unknown architecture \(GemmaForCausalLM\)"),
        ({"architectures": None, "model_type": "gpt2"}, r"unknown architecture \(gpt2\)"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}}, "unknown RoPE type proportional"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "RoPE type yarn needs factor"),
        ({"num_key_value_heads": 3}, "4 attention heads do not divide by 3"),
        ({"hidden_size": "64"}, "hidden_size='64': must be a positive integer"),
        ({"head_dim": 15}, "15 dimensions of a head would be rotated: must be an even"),
        ({"rms_norm_eps": 0}, "rms_norm_eps=0: must be a positive number"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
    ],
)
def test_an_unsupported_configuration_is_refused(copy: Path, values: dict[str, Any], message: str) -> None:
    change_config(copy, **values)
    with pytest.raises(CheckpointError, match=message):
        read_config(copy)


def test_a_directory_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_config(tmp_path)


def test_an_adapter_given_as_a_model_has_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"LoRA adapter, so give it as model\.peft_path"):
        read_config(tmp_path)


def test_a_configuration_that_is_not_json_is_refused(copy: Path) -> None:
    (copy / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        read_config(copy)


def test_a_missing_tensor_is_named(copy: Path) -> None:
    change_tensors(copy, **{"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        load(copy)


def test_a_tensor_of_another_shape_is_named(copy: Path) -> None:
    change_tensors(copy, **{"model.norm.weight": torch.ones(63)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[63\], expected \[64\]"):
        load(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_values_that_are_not_finite_are_refused(copy: Path, value: float) -> None:
    """A float64 may exceed float32."""
    weight = torch.zeros(64, dtype=torch.float64)
    weight[17] = value
    change_tensors(copy, **{"model.norm.weight": weight})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has values that are not finite"):
        load(copy)


@pytest.mark.parametrize("kept", [4, 100, 3000, 0.5, 0.999])
def test_a_truncated_file_is_refused(copy: Path, kept: float) -> None:
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors.*cut short"):
        load(copy)


def test_a_file_of_another_format_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\x00" * 4000)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a safetensors file"):
        load(copy)


def test_a_file_that_the_index_names_and_that_is_missing_is_named(copy: Path) -> None:
    index: dict[str, dict[str, Any]] = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00001-of-00002\.safetensors named by .* is missing"):
        load(copy)
    index["weight_map"]["model.norm.weight"] = ["model.safetensors"]
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"named by .* is missing"):
        load(copy)


def test_pickled_weights_are_refused_unless_asked_for(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    expected = load(copy)(ids())
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.allow_pickle=true"):
        load(copy)
    torch.save(tensors, copy / "pytorch_model.bin")
    with pytest.raises(
        CheckpointError, match=r"only pickled weights \(pytorch_model\.bin\).*model\.allow_pickle=true"
    ):
        load(copy)
    model = LlamaForCausalLM(read_config(copy))
    load_weights(model, copy, allow_pickle=True)
    assert torch.equal(model(ids()), expected)


def test_code_in_a_pickle_does_not_run_even_when_pickles_are_allowed(copy: Path, tmp_path: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save(_WritesAFile(tmp_path / "ran"), copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read"):
        load_weights(LlamaForCausalLM(read_config(copy)), copy, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


class _WritesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "ran")


def test_safetensors_are_preferred_to_pickles(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    model = LlamaForCausalLM(read_config(copy))
    load_weights(model, copy, allow_pickle=True)
    assert torch.equal(model(ids()), load(copy)(ids()))


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64"], indirect=True)
def test_weights_of_another_type_are_converted(copy: Path, stored: torch.dtype) -> None:
    tensors = {name: tensor.to(stored) for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors")
    with torch.no_grad():
        expected = reference(copy)(ids()).logits
    torch.testing.assert_close(load(copy)(ids()), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "packed", "stored"),
    combinations(
        [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mlp_bias": True}],
        [False, True],
        ["float16", "bfloat16"],
    ),
)
def test_weights_that_stay_in_16_bits_give_the_same_logits(
    shape: dict[str, Any], packed: bool, stored: str, tmp_path: Path
) -> None:
    dtype: torch.dtype = getattr(torch, stored)
    directory = make_checkpoint(tmp_path, dtype=dtype, tokenizer=False, **shape)
    assert stored_dtype(directory, allow_pickle=False) == dtype
    model = LlamaForCausalLM(read_config(directory), weights=dtype)
    load_weights(model, directory, allow_pickle=False)
    assert {linear.weight.dtype for linear in model.modules() if isinstance(linear, Linear)} == {dtype}
    if packed:
        model.pack()
    torch.testing.assert_close(model(ids()), load(directory)(ids()), atol=1e-4, rtol=0)


def test_stored_dtype_is_none_for_mixed_matrices(copy: Path) -> None:
    change_tensors(copy, **{"model.norm.weight": torch.ones(64, dtype=torch.float16)})
    assert stored_dtype(copy, allow_pickle=False) == torch.float32, "vectors do not count"
    change_tensors(copy, **{"lm_head.weight": torch.ones(400, 64, dtype=torch.bfloat16)})
    assert stored_dtype(copy, allow_pickle=False) is None


def test_a_missing_path_is_refused_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such directory"):
        snapshot_directory(str(tmp_path / "nowhere"), "config.json", allow_pickle=False)


def test_a_file_given_as_a_checkpoint_is_refused(copy: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file; give the directory that contains config\.json"):
        snapshot_directory(str(copy / "config.json"), "config.json", allow_pickle=False)


@pytest.mark.parametrize(
    ("asked", "checkpoint_type", "device", "expected"),
    [
        ("auto", "bfloat16", "cuda", "bfloat16"),
        ("auto", "float32", "cpu", "float32"),
        ("auto", "float16", "cpu", "float32"),
        ("auto", None, "cpu", "float32"),
        ("auto", "float32", "cuda", "bfloat16"),
        ("float16", "bfloat16", "cuda", "float16"),
        ("float32", "bfloat16", "cpu", "float32"),
    ],
)
def test_the_type_follows_device_and_checkpoint(
    asked: str, checkpoint_type: str | None, device: str, expected: str
) -> None:
    assert choose_dtype(asked, torch.device(device), checkpoint_type) == getattr(torch, expected)


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "mps", "meta"])
def test_a_missing_device_is_a_configuration_error(name: str) -> None:
    with pytest.raises(ConfigError, match=f"model.device={name}"):
        choose_device(name)


def test_the_context_window_includes_the_scaling_of_positions() -> None:
    base: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 4096,
    }

    def window(**rope: Any) -> int:
        return LlamaConfig.from_dict({**base, "rope_scaling": rope or None}).context_window

    assert window() == 4096
    assert window(type="linear", factor=4.0) == 16384
    assert window(type="dynamic", factor=2.0) == 8192
    assert window(rope_type="yarn", factor=4.0, original_max_position_embeddings=1024) == 4096
    assert window(rope_type="yarn", factor=4.0) == 16384
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    assert window(rope_type="llama3", factor=8.0, **llama3) == 4096


def test_loading_makes_no_second_copy_of_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    """Peak memory of a separate process above its memory before loading, in units of the weights."""
    directory = make_checkpoint(
        tmp_path, hidden_size=1024, intermediate_size=4096, num_hidden_layers=3, vocab_size=8000
    )
    arguments = (str(checkpoint), str(directory))
    done = commands.run("-c", PEAK_MEMORY, *arguments, cwd=tmp_path, env=os.environ, packages=commands.LOCAL)
    assert 0.95 < float(done.stdout) < 1.5, done.stderr


def test_a_cache_too_small_for_one_block_is_a_configuration_error(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"runner\.kv_cache_gb: 0\.000 GB is less than one cache block"):
        Engine.load(LlamaModel(path=str(checkpoint)), EngineOptions(kv_cache_gb=1e-6))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"tie_word_embeddings": True},
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32, "num_key_value_heads": 1},
    ],
)
def test_the_number_of_parameters_is_known_from_the_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = make_checkpoint(tmp_path, tokenizer=False, **config)
    assert read_config(directory).parameters == sum(p.numel() for p in load(directory).parameters())


def test_weights_that_do_not_fit_are_refused_before_they_are_read() -> None:
    check_memory(10**9, 10**9, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"the weights take 140\.0 GB and cuda:0 has 80\.0 GB free"):
        check_memory(140 * 10**9, 80 * 10**9, torch.device("cuda:0"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts the threads in /proc")
def test_a_small_model_is_loaded_on_one_thread(tmp_path: Path) -> None:
    done = commands.run("-c", THREADS, cwd=tmp_path, env=os.environ, packages=commands.LOCAL)
    assert done.stdout == "0\n", done.stderr
