"""Wall time with and without drafting, when a model generates the gold patch: real steps, steered logits.

    python -m benchmarks.speculation CHECKPOINT INSTANCES.jsonl [--batch 1 8] [--count 8] [--repeat 3] [--new TOKENS]
                                     [--dtype TYPE] [--drafters none diff] [--nonsense | --own] [--transformers]
                                     [--vllm PYTHON] [--llama-cpp PYTHON]

Every token costs what the checkpoint's steps cost; only the choice of tokens is steered. ``--nonsense`` steers to
random tokens, which no drafter can predict: the cost of useless drafting. ``--own`` does not steer: the model
generates greedily. ``--new`` limits outputs. ``--transformers`` runs transformers with the same steering, with and
without prompt lookup. ``--vllm`` runs vLLM, which cannot be steered, on the same prompts without steering, with and
without n-gram speculation. ``--llama-cpp`` runs llama.cpp, steered and in turn with ours, with and
without its ``ngram-simple`` drafts; its model is in float16. Prompts are computed before the clock starts, so times
are of generation only. Variants take turns; ratios are medians over the turns, of wall time and of CPU time, which is
more reliable on a busy machine. Earlier outputs are forgotten between runs; acceptance statistics are kept, as in a
run of many instances.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from torch import Tensor

from benchmarks.drafting import read_rows, source_of
from benchmarks.speculation_peers import STEER, Times, llama_cpp_replays, with_transformers, with_vllm
from swe_infer.llama.drafting import DraftSource, SharedPrompts
from swe_infer.llama.engine import Engine, EngineOptions, threads_for
from swe_infer.llama.sampler import Sampler, SamplingParams
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams
from swe_infer.prompt_format import split_prompt
from swe_infer.text import report_errors
from swe_infer.types import DrafterKind, LlamaModel


class SteeredSampler(Sampler):
    """Samples from logits in which the wanted tokens stand out. A request's seed is its instance's number."""

    def __init__(self, answers: Sequence[Sequence[int]]) -> None:
        self._answers = answers

    def __call__(self, logits: Tensor, params: Sequence[SamplingParams]) -> list[int]:
        wanted = [self._answers[d.seed][min(d.index, len(self._answers[d.seed]) - 1)] for d in params]
        steered = logits.clone()
        steered[range(len(params)), wanted] += STEER
        return super().__call__(steered, params)


def one_run(engine: Engine, requests: Sequence[GenerationRequest], batch: int) -> Times:
    """Run with ``batch`` sequences at once."""
    engine.speculation.prompts = SharedPrompts()
    engine.reset_stats()
    started, processor = time.perf_counter(), time.process_time()
    for at in range(0, len(requests), batch):
        for request in requests[at : at + batch]:
            engine.add_request(request)
        while engine.scheduler.busy:
            engine.step()
    taken = time.perf_counter() - started, time.process_time() - processor
    return Times(*taken, engine.stats.steps, engine.stats.output_tokens)


def requests_for(
    prompts: Sequence[Sequence[int]],
    most: Sequence[int],
    kind: DrafterKind,
    sources: Sequence[DraftSource],
    end: frozenset[int] = frozenset(),
) -> list[GenerationRequest]:
    """One request per prompt, with its number of new tokens."""
    return [
        GenerationRequest(
            n,
            tuple(p),
            StopParams(new, end, closed_patch=False, repetition=False),
            seed=n,
            drafter=kind,
            source=source,
        )
        for n, (p, new, source) in enumerate(zip(prompts, most, sources, strict=True))
    ]


def compare(variants: dict[str, Callable[[int], Times]], batch: int, repeat: int) -> None:
    """Run the variants in turns, in rotating order."""
    runs: dict[str, list[Times]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(repeat):
        for name in order:
            runs[name].append(variants[name](batch))
        order = [*order[1:], order[0]]
    bases = [name for name in runs if name == "none" or name.startswith("llama.cpp")]
    for name, done in runs.items():
        wall = statistics.median(run.wall for run in done)
        processor = statistics.median(run.processor for run in done)
        steps, tokens = sum(run.steps for run in done), sum(run.tokens for run in done)
        line = f"batch {batch}: {name}: {wall:.2f} s, {processor:.2f} processor s, {tokens / steps:.2f} tokens a step"
        for base in bases:
            if base != name:
                pairs = list(zip(runs[base], done, strict=True))
                faster = statistics.median(other.wall / run.wall for other, run in pairs)
                cheaper = statistics.median(other.processor / run.processor for other, run in pairs)
                line += f"; {faster:.3f} x {base}, {cheaper:.3f} x in processor time"
        print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("instances", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--count", type=int, default=8, help="the shortest prompts of the file")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kv-cache-gb", type=float, default=4.0)
    parser.add_argument("--dtype", default="auto", help="as model.dtype; runs of the bundled model take float32")
    parser.add_argument("--new", type=int, default=512, help="tokens of an answer at the most")
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--nonsense", action="store_true")
    words.add_argument("--own", action="store_true")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    parser.add_argument("--llama-cpp", metavar="PYTHON")
    kinds: tuple[DrafterKind, ...] = get_args(DrafterKind)
    parser.add_argument("--drafters", nargs="+", default=kinds, choices=kinds)
    asked = parser.parse_args(arguments)
    if (asked.vllm and not asked.own) or ((asked.transformers or asked.llama_cpp) and asked.own):
        parser.error("vLLM generates its own words (--own), transformers and llama.cpp what they are steered to")
    rows = read_rows(asked.instances)
    model = LlamaModel(path=str(asked.checkpoint), dtype=asked.dtype)
    engine = Engine.load(model, EngineOptions(kv_cache_gb=asked.kv_cache_gb))
    rows = sorted(rows, key=lambda row: len(row["text"]))[: asked.count]
    sources = [source_of(row["text"]) for row in rows]
    prompts = [engine.tokenizer.encode_text(row["text"]) for row in rows]
    answers = [engine.tokenizer.encode_text(row["patch"].strip() + "\n")[: asked.new] for row in rows]
    if asked.nonsense:
        dice = random.Random(0)
        answers = [[dice.randrange(300, engine.model.config.vocab_size) for _ in answer] for answer in answers]
    if asked.own:
        prompts = [engine.tokenizer.encode(split_prompt(row["text"])) for row in rows]
    else:
        engine.sampler = SteeredSampler(answers)
    most = [asked.new] * len(rows) if asked.own else [len(answer) for answer in answers]
    end = engine.end_tokens if asked.own else frozenset()
    with threads_for(engine.model.config, engine.model.device):
        one_run(engine, requests_for(prompts, [1] * len(rows), "none", sources), len(rows))
        variants: dict[str, Callable[[int], Times]] = {
            kind: partial(one_run, engine, requests_for(prompts, most, kind, sources, end)) for kind in asked.drafters
        }
        if asked.llama_cpp:
            variants |= llama_cpp_replays(asked.llama_cpp, asked.checkpoint, prompts, answers)
        for batch in asked.batch:
            compare(variants, batch, asked.repeat)
        if asked.transformers:
            with_transformers(asked.checkpoint, prompts, answers)
        if asked.vllm:
            with_vllm(asked.vllm, asked.checkpoint, prompts, asked.new, asked.batch, asked.repeat)


if __name__ == "__main__":
    sys.exit(report_errors(main))
