"""Our Llama against transformers' own, for every variant of the configuration."""

from __future__ import annotations

import itertools
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.tokenizer import LlamaTokenizer
    from tests.llama.helpers import ask, engine_of, generate, load, random_prompt
    from tests.support.checkpoints import first_difference, greedy_tokens, make_checkpoint, reference

SAMPLE = Path(str(files("swe_infer.sample")))

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped_query": {},
    "multi_head": {"num_key_value_heads": 4},
    "multi_query": {"num_key_value_heads": 1},
    "explicit_head_dim": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied_embeddings": {"tie_word_embeddings": True},
    "large_theta": {"rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 128},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "max_position_embeddings": 128},
    "llama3": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "yarn_with_all_its_options": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.5,
            "truncate": False,
        }
    },
}
MORE = ("grouped_query", "multi_head", "explicit_head_dim", "biases", "tied_embeddings", "large_theta", "yarn")
"""Families and other variants have these, too."""


@pytest.mark.parametrize(
    "variant", [pytest.param(variant, marks=[pytest.mark.full] * (variant in MORE)) for variant in VARIANTS]
)
def test_logits_and_greedy_tokens_equal_those_of_transformers(variant: str, tmp_path: Path) -> None:
    """The prompts and outputs begin before, at and after position 128, where the scaled variants change."""
    directory = make_checkpoint(tmp_path, **VARIANTS[variant])
    ours, model = load(directory), reference(directory)
    for length in (1, 7, 100, 300):
        ids = torch.tensor([random_prompt(length, 1), random_prompt(length, 2)])
        with torch.no_grad():
            expected = model(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)

    engine = engine_of(directory, context_window=512, max_batch_tokens=64)
    for length, count in ((30, 16), (112, 48), (180, 32)):
        prompt = random_prompt(length, 3)
        answer = generate(engine, [ask("a", prompt, count), ask("b", random_prompt(50, 4), 24)])["a"]
        assert list(answer.token_ids) == greedy_tokens(model, prompt, count), (length, count)


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling_with_type", "rope_scaling_with_rope_type"])
def test_rope_is_found_under_its_old_and_new_places(tmp_path: Path, place: str) -> None:
    directory = make_checkpoint(
        tmp_path, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0}
    )
    expected = load(directory)(torch.tensor([random_prompt(60, 5)]))
    path = directory / "config.json"
    raw = json.loads(path.read_text())
    assert raw.pop("rope_parameters") == {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0}
    if place == "rope_parameters":
        raw["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 50_000.0}
    else:
        raw["rope_theta"] = 50_000.0
        raw["rope_scaling"] = {place.removeprefix("rope_scaling_with_"): "linear", "factor": 4.0}
    path.write_text(json.dumps(raw))
    assert torch.equal(load(directory)(torch.tensor([random_prompt(60, 5)])), expected)


def test_a_checkpoint_of_many_files_is_the_same_model(tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one")
    many = make_checkpoint(tmp_path / "many", shard_size="100KB")
    assert len(list(many.glob("*.safetensors"))) > 2
    ids = torch.tensor([random_prompt(20, 6)])
    assert torch.equal(load(one)(ids), load(many)(ids))


@pytest.fixture(params=["bundled", pytest.param("random", marks=pytest.mark.full)])
def bfloat16_model(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """A model and prompts: the bundled model with bundled instances, or random ones."""
    if request.param == "random":
        directory = make_checkpoint(tmp_path, dtype=torch.bfloat16)
        return directory, [random_prompt(length, length) for length in (5, 60, 300, 411)]
    with (SAMPLE / "instances.jsonl").open(encoding="utf-8") as lines:
        count = 8 if request.config.getoption("full") else 3
        texts = [json.loads(line)["text"] for line in itertools.islice(lines, count)]
    tokenizer = LlamaTokenizer(SAMPLE / "tiny_llama", "raw")
    return SAMPLE / "tiny_llama", [tokenizer.encode_text(text) for text in texts]


def test_bfloat16_is_as_near_to_float32_as_transformers(bfloat16_model: tuple[Path, list[list[int]]]) -> None:
    """The error of the logits is that of transformers, and greedy answers differ only where it explains that."""
    directory, prompts = bfloat16_model
    engine = engine_of(directory, dtype="bfloat16")
    model, exact = reference(directory, torch.bfloat16), reference(directory)
    answers = generate(engine, [ask(index, prompt, 24) for index, prompt in enumerate(prompts)])
    errors: list[tuple[torch.Tensor, torch.Tensor]] = []
    for index, prompt in enumerate(prompts):
        tokens = greedy_tokens(model, prompt, 24)
        found = first_difference(prompt, answers[str(index)].token_ids, tokens, model, exact)
        assert found is None or found.near_tie, f"prompt {index}: {found}"
        ids = torch.tensor([[*prompt, *tokens]])
        with torch.no_grad():
            exact_BLV, rounded_BLV = exact(ids).logits, model(ids).logits
        errors.append((engine.model(ids) - exact_BLV, rounded_BLV - exact_BLV))
    ours, theirs = (torch.cat([error_BLV.flatten() for error_BLV in each]) for each in zip(*errors, strict=True))
    assert ours.square().mean().sqrt() < 1.25 * theirs.square().mean().sqrt()
