"""One model in two processes (gloo): same outputs as one process, and clear errors."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.config import read_config
from swe_infer.llama.pool import EnginePool
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.runners.llama import LlamaRunner
from swe_infer.types import Decoding, LlamaModel
from tests.support import commands

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.engine import Engine, EngineOptions
    from swe_infer.llama.model import LlamaForCausalLM
    from swe_infer.llama.tensor_parallel import RankDied
    from swe_infer.llama.tp_rank import TPRank
    from swe_infer.llama.weights import load_weights, pieces
    from tests.llama.helpers import ask, engine_of, generate, load, random_prompt, refuse, with_constant_step_cost
    from tests.support.checkpoints import make_checkpoint, make_family_checkpoint


def options() -> EngineOptions:
    return EngineOptions(max_batch_tokens=100, max_sequences=5, kv_cache_gb=0.004)


def requests() -> list[GenerationRequest]:
    made = []
    for index, length in enumerate((3, 40, 257, 120, 64)):
        prompt = random_prompt(length, index)
        made.append(ask(f"greedy{index}", prompt, 16))
        made.append(ask(f"sampled{index}", prompt, 16, temperature=0.8, top_p=0.9, seed=index))
    return made


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With biases, which only one rank must add."""
    return make_checkpoint(tmp_path_factory.mktemp("biased"), attention_bias=True, mlp_bias=True)


@pytest.fixture(scope="module")
def pool() -> Iterator[EnginePool]:
    """Tests share its engine, as a second rank takes seconds to start."""
    pool = EnginePool()
    yield pool
    pool.close()


@pytest.fixture
def divided(biased: Path, pool: EnginePool) -> Engine:
    return engine_of_pool(pool, biased)


def engine_of_pool(pool: EnginePool, checkpoint: Path) -> Engine:
    engine = pool.get(LlamaModel(path=str(checkpoint), tensor_parallel=2, dtype="float32"), options())
    assert isinstance(engine, Engine)
    return engine


def tokens(engine: Engine, asked: list[GenerationRequest]) -> dict[str, tuple[int, ...]]:
    return {key: answer.token_ids for key, answer in generate(engine, asked).items()}


def test_outputs_equal_those_of_one_process(biased: Path, divided: Engine) -> None:
    """With chunked prompts, continuous batching, shared prefixes, copied blocks and drafts."""
    expected = tokens(engine_of(biased), requests())
    with_constant_step_cost(divided)
    assert tokens(divided, requests()) == expected
    for _ in range(2):
        assert tokens(divided, [replace(request, drafter="suffix") for request in requests()]) == expected
    assert divided.figures()["accepted_tokens"] > 0
    assert divided.figures()["cache_hit_rate"] > 0.4
    whole = engine_of(biased)
    assert divided.cache.keys[0].shape[1] * 2 == whole.cache.keys[0].shape[1], "each rank has half the heads"
    assert divided.cache.nbytes <= 0.5 * 0.004e9 * 1.05


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several parts of the model are in one tensor of the checkpoint."""
    return make_family_checkpoint(tmp_path_factory.mktemp("fused"), "phi3")


def parts(model: LlamaForCausalLM) -> dict[tuple[str, int], torch.Tensor]:
    """The weights by the name of their tensor, and their number in it."""
    seen = Counter[str]()
    found = {}
    for piece in pieces(model):
        found[piece.name, seen[piece.name]] = piece.target
        seen[piece.name] += 1
    return found


@pytest.mark.parametrize(("checkpoint", "count"), [("biased", 1), ("biased", 2), ("fused", 2)])
def test_the_ranks_together_have_every_weight(checkpoint: str, count: int, request: pytest.FixtureRequest) -> None:
    """Every weight is where its rank expects it; only embeddings and norms are replicated."""
    directory: Path = request.getfixturevalue(checkpoint)
    config = read_config(directory)
    whole = parts(load(directory))
    for rank in range(count):
        part = LlamaForCausalLM(config, shard=TPRank(rank, count))
        load_weights(part, directory, allow_pickle=False)
        for name, view in parts(part).items():
            expected = whole[name]
            for axis, size in enumerate(view.shape):
                if size < expected.shape[axis]:
                    expected = expected.narrow(axis, rank * size, size)
            assert view.equal(expected), name
    if checkpoint == "biased":
        second = {piece.name for piece in pieces(LlamaForCausalLM(config, shard=TPRank(1, 2)))}
        assert "model.layers.0.self_attn.o_proj.bias" not in second


@pytest.mark.parametrize("at", ["ModelInput", *(pytest.param(at, marks=pytest.mark.full) for at in ("tuple", None))])
def test_a_dead_rank_is_an_error_and_not_a_hang(biased: Path, pool: EnginePool, at: str | None) -> None:
    """Killed at the message of a step, at that of a copied block, or before."""
    engine = engine_of_pool(pool, biased)
    assert list(engine.generate([ask(i, random_prompt(41, i), 1) for i in range(4)], refuse)), "prefixes to copy"
    assert engine._tp_group is not None
    ((_, process),) = engine._tp_group._ranks
    assert process.pid is not None
    answers = engine.generate([ask(i, random_prompt(40, i), 400) for i in range(4)], refuse)
    if at is not None:
        send = engine._tp_group.send

        def send_and_kill(message: Any) -> None:
            kill = type(message).__name__ == at and process.is_alive()
            if kill:
                commands.pause(process.pid or 0)
            send(message)
            if kill:
                process.kill()
                process.join()

        engine._tp_group.send = send_and_kill  # type: ignore[method-assign]
    else:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with pytest.raises(RankDied, match="rank 1 of the 2 that hold the model ended with exit code -9"):
        list(answers)
    engine.abandon()
    assert not engine.usable
    if at == "ModelInput":
        again = engine_of_pool(pool, biased)
        assert list(again.generate([ask("a", random_prompt(9, 1), 3)], refuse)), "the next run starts a new engine"


def test_a_rank_that_cannot_load_raises_in_the_leader(biased: Path, tmp_path: Path) -> None:
    directory = tmp_path / "cut"
    directory.mkdir()
    for file in biased.iterdir():
        content = file.read_bytes()
        (directory / file.name).write_bytes(content[:-4096] if file.name == "model.safetensors" else content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Engine.load(LlamaModel(path=str(directory), tensor_parallel=2), options())


def test_indivisible_models_arerefused_before_loading(biased: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.tensor_parallel=3: must divide the 4 attention heads"):
        LlamaRunner(model=LlamaModel(path=str(biased), tensor_parallel=3), decoding=Decoding()).check()
    with pytest.raises(ConfigError, match=r"model\.tensor_parallel=0"):
        LlamaRunner(model=LlamaModel(path=str(biased), tensor_parallel=0), decoding=Decoding())
    with pytest.raises(ConfigError, match=r"runner\.workers=2"):
        LlamaRunner(model=LlamaModel(path=str(biased), tensor_parallel=2), decoding=Decoding(), workers=2)
    with pytest.raises(ConfigError, match=r"model\.peft_path"):
        Engine.load(LlamaModel(path=str(biased), tensor_parallel=2, peft_path="x"), options())
