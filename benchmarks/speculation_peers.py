"""The other engines of ``benchmarks.speculation``: transformers' prompt lookup, vLLM's and llama.cpp's n-grams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine import ChildProcess

STEER = 1e4
LOOKUP = 10
"""Tokens of a draft, as in the documentation of transformers and vLLM."""
NGRAM_SIMPLE = (2, 8)
"""Tokens looked up and drafted. With llama.cpp's defaults, 12 and 48, hardly any draft is found."""


@dataclass
class Times:
    """Sums over all answers."""

    wall: float = 0.0
    processor: float = 0.0
    steps: int = 0
    tokens: int = 0


def report(name: str, plain: Times, drafted: Times, accepted: str) -> None:
    print(
        f"{name}: plain {plain.wall:.2f} s ({plain.processor:.2f} of processor), drafting {drafted.wall:.2f} s"
        f" ({drafted.processor:.2f}): {plain.wall / drafted.wall:.2f} x, of processor time"
        f" {plain.processor / drafted.processor:.2f} x; {accepted}",
        flush=True,
    )


class Steering:
    """A logits processor that makes one answer stand out."""

    def __init__(self, start: int, answer: Sequence[int]) -> None:
        self._start, self._answer = start, answer

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        at = min(input_ids.shape[1] - self._start, len(self._answer) - 1)
        steered = scores.clone()
        steered[:, self._answer[at]] += STEER
        return steered


def with_transformers(checkpoint: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
    """Generate the same answers by the same steering, one at a time, with and without prompt lookup. The prompt's own
    time is subtracted."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(str(checkpoint), dtype="auto")
    steps = 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_hook(count)

    def run(ids: Tensor, answer: Sequence[int], lookup: int) -> Times:
        nonlocal steps
        steps = 0
        options = {"prompt_lookup_num_tokens": lookup} if lookup else {}
        wall, processor = time.perf_counter(), time.process_time()
        said = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(answer),
            do_sample=False,
            logits_processor=[Steering(ids.shape[1], answer)],
            eos_token_id=None,
            **options,
        )
        taken = Times(time.perf_counter() - wall, time.process_time() - processor, steps, len(answer))
        if said[0, ids.shape[1] :].tolist() != list(answer):
            raise RuntimeError("transformers did not generate the steered answer")
        return taken

    totals = {0: Times(), LOOKUP: Times()}
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([list(prompt)])
        prefill = run(ids, answer[:1], 0)
        for lookup, total in totals.items():
            taken = run(ids, answer, lookup)
            total.wall += max(0.0, taken.wall - prefill.wall)
            total.processor += max(0.0, taken.processor - prefill.processor)
            total.steps += taken.steps - prefill.steps
            total.tokens += taken.tokens - prefill.tokens
    plain, drafted = totals.values()
    report(
        "transformers, prompt lookup, one at a time",
        plain,
        drafted,
        f"{drafted.tokens / drafted.steps:.2f} tokens a step",
    )


def _ask_vllm(python: Path, checkpoint: Path, how: str, tasks: Sequence[dict[str, Any]]) -> list[list[float]]:
    script = Path(__file__).with_name("speculation_vllm.py")
    done = subprocess.run(
        [str(python), str(script), str(checkpoint), str(torch.get_num_threads()), how],
        input="".join(json.dumps(task) + "\n" for task in tasks),
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    if done.returncode != 0:
        sys.exit(f"vLLM ({how}) ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]


def llama_cpp_replays(
    python: str, checkpoint: Path, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> dict[str, Callable[[int], Times]]:
    """Generate the same answers with llama.cpp, for a number of sequences at once."""
    child = ChildProcess(python, "engine_llama_cpp.py", str(checkpoint), torch.get_num_threads())

    def replay(draft: tuple[int, int] | None, batch: int) -> Times:
        task = {"prompts": prompts, "answers": answers, "draft": draft, "batch": batch}
        wall, processor, tokens, passes = child.ask(task)
        return Times(wall, processor, passes, tokens)

    replay(None, len(prompts))  # computes the prompts
    return {"llama.cpp": partial(replay, None), "llama.cpp n-gram": partial(replay, NGRAM_SIMPLE)}


def with_vllm(
    python: Path, checkpoint: Path, prompts: Sequence[Sequence[int]], new: int, batches: Sequence[int], repeat: int
) -> None:
    """Generate greedily with vLLM, which refuses logits processors with speculation and so cannot be steered. Reports
    the run with the median CPU time of ``repeat``."""
    tasks = [
        {"prompts": [list(prompt) for prompt in prompts], "new": new, "batch": batch}
        for batch in batches
        for _ in range(repeat)
    ]
    found = {how: _ask_vllm(python, checkpoint, how, tasks) for how in ("plain", "ngram")}
    for place, batch in enumerate(batches):
        here = slice(place * repeat, (place + 1) * repeat)
        plain, drafted = (sorted(rows[here], key=lambda row: row[1])[repeat // 2] for rows in found.values())
        drafts, accepted = int(drafted[3]), int(drafted[4])
        report(
            f"vLLM, n-gram, {batch} at once",
            Times(plain[0], plain[1], tokens=int(plain[2])),
            Times(drafted[0], drafted[1], tokens=int(drafted[2])),
            f"{accepted} of {int(drafted[2])} tokens accepted from {drafts} drafted; plain: {int(plain[2])} tokens",
        )
