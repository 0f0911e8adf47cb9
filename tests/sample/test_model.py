"""The shipped weights: a plain Llama, the same in transformers and in our engine, that resolves what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.llama.sequence import RequestOutput
from swe_infer.patches.apply import apply_patch
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompt_format import split_prompt
from swe_infer.sample.sandbox import why_unavailable
from swe_infer.sample.testing import run_test
from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from swe_infer.llama.engine import Engine, EngineOptions
    from tests.llama.helpers import ask, generate
    from tests.support.threads import single_threaded

DIRECTORY = Path(str(files("swe_infer.sample"))) / "tiny_llama"
INSTANCES: list[dict[str, Any]] = [
    json.loads(line) for line in (files("swe_infer.sample") / "instances.jsonl").read_text().splitlines()
]
LEAST_RESOLVED = 32
MAX_NEW_TOKENS = 256


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="module")
def answers() -> dict[str, RequestOutput]:
    """Our engine's greedy answer to every bundled instance, many at once."""
    model = LlamaModel(path="package://swe_infer.sample/tiny_llama", dtype="float32", device="cpu")
    engine = Engine.load(model, EngineOptions(max_batch_tokens=1024, max_sequences=40, kv_cache_gb=0.5))
    requests = [
        ask(
            row["instance_id"],
            engine.tokenizer.encode(split_prompt(row["text"])),
            MAX_NEW_TOKENS,
            end=engine.end_tokens,
        )
        for row in INSTANCES
    ]
    found = generate(engine, requests)
    engine.close()
    return found


def resolved(row: dict[str, Any], answer: str) -> bool:
    """Whether the patch of an answer applies and the instance's test passes."""
    made = make_patch(answer, row["files"])
    if made.status not in ("applies", "repaired"):
        return False
    after = {**row["files"], **apply_patch(made.patch, row["files"]).files}
    kept = {path: content for path, content in after.items() if content is not None}
    return run_test(kept, row["test"], contained=why_unavailable() is None).resolved


def test_the_weights_are_a_plain_llama_of_the_stated_size() -> None:
    model = AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype="auto")
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    assert model.config.max_position_embeddings >= 1024
    assert 2e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6
    assert sum(path.stat().st_size for path in DIRECTORY.iterdir()) <= 20e6
    assert json.loads((DIRECTORY / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_every_prompt_leaves_room_for_the_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    for row in INSTANCES:
        prompt, patch = (len(tokenizer(row[column])["input_ids"]) for column in ("text", "patch"))
        assert prompt <= 768
        assert patch <= MAX_NEW_TOKENS


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoModelForCausalLM.from_pretrained(DIRECTORY, dtype=torch.float32)


def test_greedy_answers_equal_those_of_transformers(
    answers: dict[str, RequestOutput], reference: Any, request: pytest.FixtureRequest
) -> None:
    """Each token of each answer is the one that transformers holds to be the likeliest after all before it, which is
    what makes an answer greedy; one pass over prompt and answer shows it for all of them."""
    tokenizer = AutoTokenizer.from_pretrained(DIRECTORY)
    for row in INSTANCES[:: 4 if request.config.getoption("full") else 8]:
        answer = answers[row["instance_id"]]
        assert answer.request.prompt_ids == tuple(tokenizer(row["text"])["input_ids"])
        said = answer.token_ids
        assert len(said) == MAX_NEW_TOKENS or said[-1] == reference.config.eos_token_id
        ids = torch.tensor([[*answer.request.prompt_ids, *said[:-1]]])
        with torch.no_grad():
            logits = reference(ids, logits_to_keep=len(said)).logits[0]
        assert said == tuple(logits.argmax(-1).tolist())


def test_answers_equal_what_transformers_generates(
    answers: dict[str, RequestOutput], reference: Any, request: pytest.FixtureRequest
) -> None:
    """Step by step, with its own cache and its own idea of where an answer ends."""
    for row in INSTANCES[:: 20 if request.config.getoption("full") else 40]:
        answer = answers[row["instance_id"]]
        ids = torch.tensor([answer.request.prompt_ids])
        with torch.no_grad():
            output = reference.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=False
            )
        assert answer.token_ids == tuple(output[0, ids.shape[1] :].tolist())


def test_the_model_resolves_the_stated_number_of_bundled_instances(answers: dict[str, RequestOutput]) -> None:
    count = sum(resolved(row, answers[row["instance_id"]].text) for row in INSTANCES)
    assert count >= LEAST_RESOLVED
