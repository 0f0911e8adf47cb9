"""The families related to Llama: one contract for all, against transformers' own models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError
from swe_infer.llama.config import LlamaConfig, read_config
from swe_infer.llama.families import FAMILIES
from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig as HFConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from swe_infer.llama.engine import Engine, EngineOptions
    from swe_infer.llama.model import LlamaForCausalLM, RMSNorm
    from swe_infer.llama.peft import merge_adapter
    from swe_infer.llama.rope import RotaryEmbedding
    from swe_infer.llama.weights import load_weights
    from tests.llama.helpers import ask, engine_of, generate, load, random_prompt, with_constant_step_cost
    from tests.support.checkpoints import greedy_tokens, make_checkpoint, make_family_checkpoint, reference

_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0, 6.0],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {"use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 32, "attention_bias": True}),
    "mistral": ("mistral", {"sliding_window": 300}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.1,
            "logits_scaling": 4.0,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": (
        "phi3",
        {
            "sliding_window": 200,
            "original_max_position_embeddings": 128,
            "rope_parameters": {**_LONGROPE, "partial_rotary_factor": 0.75, "original_max_position_embeddings": 128},
        },
    ),
    "olmo2": ("olmo2", {"attention_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": 20}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each family."""
    return {
        family: make_family_checkpoint(tmp_path_factory.mktemp(family), kind, **config)
        for family, (kind, config) in CASES.items()
    }


@pytest.mark.parametrize("family", CASES)
def test_logits_and_greedy_tokens_equal_those_of_transformers(
    family: str, checkpoints: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    """Prompts are shorter and longer than the windows, and prefilled in chunks beside another sequence. Outputs begin
    before position 128, where the angles of longrope change, and end after it."""
    directory = checkpoints[family]
    ours, model = load(directory), reference(directory)
    for length in (1, 7, 100, 700):
        ids = torch.tensor([random_prompt(length, 1), random_prompt(length, 2)])
        with torch.no_grad():
            expected = model(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)

    engine = engine_of(directory, context_window=512, max_batch_tokens=64)
    for length, count in ((90, 200 if request.config.getoption("full") else 44), (300, 12)):
        prompt = random_prompt(length, 3)
        answers = generate(engine, [ask("a", prompt, count), ask("b", random_prompt(50, 4), 24), ask("c", prompt, 8)])
        assert list(answers["a"].token_ids) == greedy_tokens(model, prompt, count), (length, count)
        assert answers["c"].token_ids == answers["a"].token_ids[:8]


@pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[pytest.mark.full] * (family not in ("qwen2", "phi3"))) for family in CASES]
)
def test_drafts_and_shared_prefixes_change_no_output(family: str, checkpoints: dict[str, Path]) -> None:
    """Drafts that cross the length at which longrope changes are cut off there."""
    asked = [
        ask(f"{n}", random_prompt(100, 5) + random_prompt(n, n), 60, temperature=n % 2, seed=n) for n in range(4)
    ]
    expected = {key: one.token_ids for key, one in generate(engine_of(checkpoints[family]), asked).items()}
    engine = with_constant_step_cost(engine_of(checkpoints[family]))
    for _ in range(2):  # the second time drafts come from the first outputs
        found = generate(engine, [replace(request, drafter="suffix") for request in asked])
        assert {key: one.token_ids for key, one in found.items()} == expected
    assert engine.figures()["accepted_tokens"] > 0
    assert engine.figures()["cache_hit_rate"] > 0.5


@pytest.mark.full
@pytest.mark.parametrize("family", ["phi3", "qwen3", "olmo2"])
def test_two_ranks_generate_what_one_process_does(family: str, checkpoints: dict[str, Path]) -> None:
    asked = [ask(f"{n}", random_prompt(30 + 40 * n, n), 40) for n in range(4)]
    expected = {key: one.token_ids for key, one in generate(engine_of(checkpoints[family]), asked).items()}
    options = EngineOptions(max_batch_tokens=100, max_sequences=3, kv_cache_gb=0.004)
    model = LlamaModel(path=str(checkpoints[family]), tensor_parallel=2, dtype="float32")
    engine = with_constant_step_cost(Engine.load(model, options))
    try:
        for _ in range(2):
            found = generate(engine, [replace(request, drafter="suffix") for request in asked])
            assert {key: one.token_ids for key, one in found.items()} == expected
    finally:
        engine.close()


def test_shards_in_bfloat16_give_the_logits_of_transformers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """In float32 over weights that stay in bfloat16."""
    ids = torch.tensor([random_prompt(40, 0)])
    for family, directory in checkpoints.items():
        stored = tmp_path / family
        stored.mkdir()
        (stored / "config.json").write_text((directory / "config.json").read_text())
        tensors = {name: value.bfloat16() for name, value in load_file(directory / "model.safetensors").items()}
        shards = {name: f"model-{index % 2}.safetensors" for index, name in enumerate(tensors)}
        for shard in set(shards.values()):
            save_file(
                {name: tensors[name] for name in tensors if shards[name] == shard}, stored / shard, {"format": "pt"}
            )
        (stored / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        ours = LlamaForCausalLM(read_config(stored), weights=torch.bfloat16)
        load_weights(ours, stored, allow_pickle=False)
        with torch.no_grad():
            expected = reference(stored)(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["phi3", "qwen2"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_is_merged_as_peft_does(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    ids = torch.tensor([random_prompt(40, 0)])
    full, factors = {"phi3": ("lm_head", "all-linear"), "qwen2": ("q_proj", ["k_proj", "up_proj"])}[family]
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=factors, modules_to_save=[full])
    model = get_peft_model(reference(checkpoints[family]), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter.data, std=0.2)
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        expected = model.eval()(ids).logits
    ours = load(checkpoints[family])
    merge_adapter(ours, tmp_path, allow_pickle=False)
    torch.testing.assert_close(ours(ids), expected, atol=2e-4, rtol=0)


def test_a_window_of_4096_tokens(tmp_path: Path) -> None:
    directory = make_family_checkpoint(
        tmp_path, "mistral", sliding_window=4096, num_hidden_layers=1, max_position_embeddings=8192
    )
    ids = torch.tensor([random_prompt(4500, 8)])
    with torch.no_grad():
        expected = reference(directory)(ids).logits
    torch.testing.assert_close(load(directory)(ids), expected, atol=1e-4, rtol=0)


def test_renamed_llamas_have_the_logits_of_the_llama(tmp_path: Path) -> None:
    """InternLM2 fuses queries, keys and values by key-value head; transformers has no model of it."""
    llama = make_checkpoint(tmp_path / "llama")
    ids = torch.tensor([random_prompt(50, 9)])
    expected, tensors = load(llama)(ids), load_file(llama / "model.safetensors")
    raw = json.loads((llama / "config.json").read_text())
    renamed = {
        "model.tok_embeddings.weight": tensors["model.embed_tokens.weight"],
        "model.norm.weight": tensors["model.norm.weight"],
        "output.weight": tensors["lm_head.weight"],
    }
    for layer in range(3):
        old, new = f"model.layers.{layer}", f"model.layers.{layer}"
        q, k, v = (tensors[f"{old}.self_attn.{name}_proj.weight"].view(2, -1, 16, 64) for name in "qkv")
        renamed[f"{new}.attention.wqkv.weight"] = torch.cat((q, k, v), dim=1).reshape(-1, 64)
        renamed[f"{new}.attention.wo.weight"] = tensors[f"{old}.self_attn.o_proj.weight"]
        for ours, theirs in (("w1", "gate"), ("w3", "up"), ("w2", "down")):
            renamed[f"{new}.feed_forward.{ours}.weight"] = tensors[f"{old}.mlp.{theirs}_proj.weight"]
        renamed[f"{new}.attention_norm.weight"] = tensors[f"{old}.input_layernorm.weight"]
        renamed[f"{new}.ffn_norm.weight"] = tensors[f"{old}.post_attention_layernorm.weight"]
    for name, content in (("InternLM2ForCausalLM", renamed), ("InternLM3ForCausalLM", tensors)):
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({**raw, "architectures": [name], "bias": False}))
        save_file(content, directory / "model.safetensors")
        assert torch.equal(load(directory)(ids), expected)

    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    wqkv, a_RI, b_OR = "model.layers.1.attention.wqkv", torch.randn(2, 64), torch.randn(128, 2)
    factors = {f"base_model.model.{wqkv}.lora_{side}.weight": factor for side, factor in (("A", a_RI), ("B", b_OR))}
    save_file(factors, adapter / "adapter_model.safetensors")
    adapted = load(tmp_path / "InternLM2ForCausalLM")
    merge_adapter(adapted, adapter, allow_pickle=False)
    renamed[f"{wqkv}.weight"] += b_OR @ a_RI
    save_file(renamed, tmp_path / "InternLM2ForCausalLM" / "model.safetensors")
    assert torch.equal(adapted(ids), load(tmp_path / "InternLM2ForCausalLM")(ids))


def test_other_architectures_are_refused_with_the_way_to_serve_them(tmp_path: Path) -> None:
    known = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    for values, message in (
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "unknown architecture (Qwen3MoeForCausalLM)"),
        ({"architectures": ["Gemma3ForCausalLM"]}, "provider=vllm runner=api"),
        ({"architectures": ["MistralForCausalLM"], "quantization_config": {"bits": 4}}, "provider=vllm runner=api"),
        ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 2}, "partial_rotary_factor=2.0: must be at"),
        ({"architectures": ["Phi3ForCausalLM"], "rope_scaling": {"type": "su"}}, "longrope needs short_factor"),
        ({"architectures": ["SmolLM3ForCausalLM"], "no_rope_layers": [1]}, "no_rope_layers must have"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": -1}, "sliding_window=-1: must be a positive"),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 4, "layer_types": [["a"], "b"]},
            "layer_types must be sliding_attention or full_attention",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**known, "num_attention_heads": 2, **values}))
        with pytest.raises(CheckpointError) as error:
            read_config(tmp_path)
        assert message in str(error.value)


def test_invalid_values_of_any_kind_cost_one_line(tmp_path: Path) -> None:
    known = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    yarn = {"rope_type": "yarn", "factor": 2}
    for values, message in (
        ({"architectures": [["a"]]}, "is not a list of names"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000: must be a positive integer up to 10000"),
        ({"vocab_size": 10**30}, "vocab_size=1000"),
        ({"rms_norm_eps": 10**400}, "must be a positive number"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false': must be true or false"),
        ({"original_max_position_embeddings": ["x"], "rope_scaling": yarn}, "embeddings=['x']: must be an integer"),
        ({"rope_scaling": {**yarn, "rope_theta": 1}}, "rope_theta must be above 1"),
        ({"rope_scaling": {**yarn, "rope_type": ["a"]}}, "unknown RoPE type ['a']"),
        ({"hidden_size": 4, "rope_scaling": {"type": "dynamic", "factor": 2}}, "must be an even number above 2"),
        ({"layer_types": [{"a": 1}] * 2}, "layer_types must be"),
    ):
        raw = {**known, "architectures": ["MistralForCausalLM"], "num_attention_heads": 2, **values}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(CheckpointError) as error:
            read_config(tmp_path)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_windows_of_a_configuration_that_lacks_keys(tmp_path: Path) -> None:
    """As in transformers: a missing window is the family's default, null is none."""
    known = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    qwen = {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": 0}
    for values, windows in (
        ({"architectures": ["MistralForCausalLM"]}, (4096, 4096)),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, ()),
        ({**qwen, "sliding_window": 7}, (7, 7)),
        ({**qwen, "max_window_layers": 1}, (None, 4096)),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**known, "num_attention_heads": 2, **values}))
        assert read_config(tmp_path).windows == windows


def test_norms_get_contiguous_inputs(checkpoints: dict[str, Path]) -> None:
    """The kernels of GPUs and of CPUs with AVX-512 read them without strides."""
    contiguous: list[bool] = []
    for directory in checkpoints.values():
        model = load(directory)
        for module in model.modules():
            if isinstance(module, RMSNorm):
                module.register_forward_pre_hook(lambda _, inputs: contiguous.append(inputs[0].is_contiguous()))
        model(torch.tensor([random_prompt(9, 1)]))
    assert len(contiguous) >= 7 * len(checkpoints)
    assert all(contiguous)


@pytest.mark.parametrize(
    "kind", ["yarn", "longrope", *(pytest.param(kind, marks=pytest.mark.full) for kind in ("llama3", "linear"))]
)
def test_frequencies_equal_those_of_transformers_bit_for_bit(kind: str) -> None:
    """At position 100,000 the error of one bit is a hundredth of a radian."""
    raw: dict[str, Any] = {"vocab_size": 8, "hidden_size": 256, "intermediate_size": 8, "num_hidden_layers": 1}
    raw |= {"num_attention_heads": 2, "max_position_embeddings": 131072}
    rope = {"rope_type": kind, "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {
        f"{side}_factor": [1 + base * index for index in range(64)]
        for side, base in (("short", 0.013), ("long", 0.7))
    }
    raw["rope_parameters"] = rope
    config = LlamaConfig.from_dict({**raw, "architectures": ["LlamaForCausalLM"]})
    found = RotaryEmbedding(config, torch.device("cpu"), torch.float32)
    theirs = HFConfig(**raw)
    position = 100_000
    for length in (30_000, 100_000):
        freqs_F, scaling = ROPE_INIT_FUNCTIONS[kind](theirs, torch.device("cpu"), seq_len=length)
        cos_T1D, _ = found(torch.tensor([position]), position, torch.tensor([length]))
        assert torch.equal(cos_T1D[0, 0, :64], (position * freqs_F).cos() * scaling)


def test_every_family_has_a_module() -> None:
    folder = Path(read_config.__code__.co_filename).parent / "families"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "base"} == set(FAMILIES.values())
