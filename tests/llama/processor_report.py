"""Prints how the engine behaves on the CPU that the environment imitates, as one line of JSON.

    python -m tests.llama.processor_report CHECKPOINT

Engines of every type, with packed weights, generate for the same prompts.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from swe_infer.llama.config import read_config
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.model import LlamaForCausalLM
from swe_infer.llama.native.kernels import load_kernels
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.llama.weights import load_weights
from tests.llama.helpers import ask, engine_of, generate, random_prompt

PROMPTS = [random_prompt(length, length) for length in (5, 60, 300)]
NEW_TOKENS = 16
LOGITS_OF = 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def engines(directory: Path) -> Iterator[tuple[str, Engine]]:
    """One engine of each type, and one with bfloat16 weights and float32 arithmetic, like a large model."""
    for dtype in ("auto", "float32", "bfloat16", "float16"):
        yield dtype, engine_of(directory, dtype=dtype)
    model = LlamaForCausalLM(read_config(directory), weights=torch.bfloat16)
    load_weights(model, directory, allow_pickle=False)
    model.pack()
    yield "float32_over_bfloat16", Engine(model, LlamaTokenizer(directory, "raw"), EngineOptions(512, 16, 0.02))


def answers(engine: Engine) -> dict[str, Any]:
    """Greedy tokens of all prompts together and of each alone, and the logits of one prompt's last token."""
    asked = [ask(index, prompt, NEW_TOKENS) for index, prompt in enumerate(PROMPTS)]
    together = generate(engine, asked)
    engine.clear_prefix_cache()
    alone = {key: answer for request in asked for key, answer in generate(engine, [request]).items()}
    return {
        "dtype": _name(engine.model.dtype),
        "weights": _name(engine.model.weight_dtype),
        "attention": type(engine.model.backend).__module__.rsplit(".", 1)[-1],
        "together": [together[str(index)].token_ids for index in range(len(PROMPTS))],
        "alone": [alone[str(index)].token_ids for index in range(len(PROMPTS))],
        "logits": engine.model(torch.tensor([PROMPTS[LOGITS_OF]]))[0, -1].tolist(),
    }


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(1)
    kernels = {_name(dtype): load_kernels(dtype) for dtype in (torch.float32, torch.bfloat16)}
    report = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "no_kernels": {dtype: found for dtype, found in kernels.items() if isinstance(found, str)},
        "answers": {name: answers(engine) for name, engine in engines(Path(sys.argv[1]))},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
