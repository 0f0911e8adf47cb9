"""Loads checkpoints and runs requests in one line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from swe_infer.llama.config import read_config
from swe_infer.llama.drafting.gain import StepCost
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stopping import StopParams
from swe_infer.llama.weights import load_weights
from swe_infer.types import Failure, LlamaModel, Skip

__all__ = ["ask", "engine_of", "generate", "load", "random_prompt", "refuse", "with_constant_step_cost"]


def load(directory: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """Load the checkpoint into our model."""
    model = LlamaForCausalLM(read_config(directory), dtype=dtype)
    load_weights(model, directory, allow_pickle=False)
    return model


def engine_of(
    directory: Path,
    *,
    max_batch_tokens: int = 512,
    max_sequences: int = 16,
    cache_tokens: int = 16384,
    **model: Any,
) -> Engine:
    """Load an engine with a small cache."""
    config = read_config(directory)
    token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    options = EngineOptions(max_batch_tokens, max_sequences, cache_tokens * token_bytes / 1e9)
    return Engine.load(LlamaModel(path=str(directory), **model), options)


class _ConstantStepCost(StepCost):
    """Step costs that never change."""

    def record(self, rows: int, seconds: float) -> None:
        return


def with_constant_step_cost(engine: Engine) -> Engine:
    """Make drafting independent of measured step times, so that tests do not depend on the load of the machine."""
    engine.speculation.gain.cost = _ConstantStepCost()
    return engine


def ask(
    key: object,
    prompt: Iterable[int],
    tokens: int = 24,
    *,
    temperature: float = 0.0,
    top_p: float | None = None,
    seed: int = 0,
    end: Iterable[int] = (),
    stop: tuple[str, ...] = (),
    loops: bool = False,
) -> GenerationRequest:
    """A request that ends by length unless other stop parameters are given."""
    stop_params = StopParams(tokens, frozenset(end), stop, closed_patch=False, repetition=loops)
    return GenerationRequest(str(key), tuple(prompt), stop_params, temperature, top_p, seed)


def generate(engine: Engine, requests: Iterable[GenerationRequest]) -> dict[str, RequestOutput]:
    """Generate all outputs, by key."""
    return {str(answer.request.key): answer for answer in engine.generate(requests, refuse)}


def refuse(request: GenerationRequest, why: Failure | Skip) -> None:
    """For requests that must not be rejected."""
    raise AssertionError(f"{request.key}: {why}")


def random_prompt(length: int, seed: int, vocabulary: int = 400) -> list[int]:
    """Random token ids without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [int(i) for i in torch.randint(3, vocabulary, (length,), generator=generator)]
