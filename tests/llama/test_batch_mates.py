"""An output depends only on its own request, not on batch, chunks, sharing or preemption."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.engine import Engine
    from tests.llama.helpers import ask, engine_of, generate, random_prompt


@pytest.fixture(scope="module")
def requests(request: pytest.FixtureRequest) -> list[GenerationRequest]:
    """Greedy and sampled, long and short, with shared prefixes. Without ``--all``, every second of them."""
    made, shared = [], random_prompt(300, 99)
    for index, length in enumerate((3, 40, 257, 120, 511, 64)):
        prompt = random_prompt(length, index)
        made.append(ask(f"greedy{index}", prompt, 20))
        made.append(ask(f"sampled{index}", prompt, 20, temperature=0.8, top_p=0.9, seed=index))
        made.append(ask(f"shared{index}", shared + prompt, 12, temperature=1.0, seed=index))
    return made if request.config.getoption("full") else made[::2]


def answers(engine: Engine, asked: list[GenerationRequest]) -> dict[str, tuple[int, ...]]:
    return {key: answer.token_ids for key, answer in generate(engine, asked).items()}


@pytest.fixture(scope="module")
def alone(directory: Path, requests: list[GenerationRequest]) -> dict[str, tuple[int, ...]]:
    """Each request alone in a new engine, with its prompt in one chunk."""
    found = {}
    for request in requests:
        engine = engine_of(directory, max_sequences=1, max_batch_tokens=4096)
        found.update(answers(engine, [request]))
    return found


def test_in_one_batch(directory: Path, alone: dict[str, tuple[int, ...]], requests: list[GenerationRequest]) -> None:
    assert answers(engine_of(directory, max_sequences=64, max_batch_tokens=4096), requests) == alone


@pytest.mark.parametrize("budget", [1, 17, 333])
def test_with_prompts_in_chunks(
    directory: Path, alone: dict[str, tuple[int, ...]], requests: list[GenerationRequest], budget: int
) -> None:
    some = requests[:4] if budget == 1 else requests
    expected = {request.key: alone[str(request.key)] for request in some}
    assert answers(engine_of(directory, max_sequences=5, max_batch_tokens=budget), some) == expected


def test_in_reverse_order(
    directory: Path, alone: dict[str, tuple[int, ...]], requests: list[GenerationRequest]
) -> None:
    assert answers(engine_of(directory, max_sequences=3), requests[::-1]) == alone


def test_with_every_prompt_in_the_cache_already(
    directory: Path, alone: dict[str, tuple[int, ...]], requests: list[GenerationRequest]
) -> None:
    engine = engine_of(directory)
    answers(engine, requests)
    engine.reset_stats()
    assert answers(engine, requests) == alone
    assert engine.figures()["cache_hit_rate"] > 0.8


def test_with_preemption(directory: Path) -> None:
    """Five outputs in a cache that has space for two."""
    asked = [ask(i, random_prompt(40, i), 80, temperature=0.7, seed=i) for i in range(5)]
    expected = answers(engine_of(directory), asked)
    engine = engine_of(directory, cache_tokens=256)
    assert answers(engine, asked) == expected
    assert engine.figures()["preemptions"] > 0
    assert engine.scheduler.pool.used == 0


def test_logits_of_a_row_have_the_same_bits_in_every_batch(directory: Path) -> None:
    engine = engine_of(directory)
    seen: list[torch.Tensor] = []
    sampler = engine.sampler

    def record(logits_RV: torch.Tensor, params: Any) -> list[int]:
        seen.append(logits_RV[[d.seed == 5 for d in params]].clone())
        return sampler(logits_RV, params)

    engine.sampler = record  # type: ignore[assignment]
    target = ask("target", random_prompt(200, 1), 8, seed=5)
    generate(engine, [target])
    first, seen[:] = [s for s in seen if len(s)], []
    others = [ask(i, random_prompt(30 * i + 2, i), 30) for i in range(9)]
    generate(engine, [*others, target])
    second = [s for s in seen if len(s)]
    assert len(first) == len(second) == 8
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_of_one_prompt_differ_and_share_its_keys(directory: Path) -> None:
    engine = engine_of(directory, max_batch_tokens=2048)
    prompt = random_prompt(400, 5)
    found = generate(engine, [ask(i, prompt, 30, temperature=1.5, seed=i) for i in range(4)])
    assert len({answer.token_ids for answer in found.values()}) == 4
    assert [found[str(i)].cached_tokens for i in range(4)] == [0, 399, 399, 399]


def test_no_sequence_uses_the_stop_params_of_another(directory: Path) -> None:
    engine = engine_of(directory)
    prompt = random_prompt(40, 8)
    long = generate(engine, [ask("a", prompt, 30)])["a"]
    stop_params = StopParams(30, frozenset({long.token_ids[10]}), closed_patch=False, repetition=False)
    both = generate(engine, [GenerationRequest("short", tuple(prompt), stop_params), ask("long", prompt, 30)])
    assert both["long"].token_ids == long.token_ids
    assert both["short"].finish_reason == "stop"
    assert both["short"].token_ids == long.token_ids[: long.token_ids.index(long.token_ids[10]) + 1]
