"""What the engine does on the processor that the environment limits this process to, as one line of JSON.

    python -m tests.llama.processor_report CHECKPOINT

Every type is loaded, which packs its weights, and answers the same prompts.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch

from swe_infer.llama.native.kernels import find
from tests.llama.helpers import ask, engine_of, generate, random_prompt

PROMPTS = [random_prompt(length, length) for length in (5, 60, 300)]
NEW_TOKENS = 16
LOGITS_OF = 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def answers(directory: Path, dtype: str) -> dict[str, Any]:
    """Greedy tokens of all prompts together and of each alone, and the logits of one prompt's last token."""
    engine = engine_of(directory, dtype=dtype)
    asked = [ask(index, prompt, NEW_TOKENS) for index, prompt in enumerate(PROMPTS)]
    together = generate(engine, asked)
    engine.forget()
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
    directory = Path(sys.argv[1])
    kernels = {_name(dtype): find(dtype) for dtype in (torch.float32, torch.bfloat16)}
    report = {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "no_kernels": {dtype: found for dtype, found in kernels.items() if isinstance(found, str)},
        "answers": {dtype: answers(directory, dtype) for dtype in ("auto", "float32", "bfloat16", "float16")},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
