"""vLLM's part of ``benchmarks.speculation``. It runs in vLLM's own Python and does not import this project.

    VLLM_PYTHON benchmarks/speculation_vllm.py MODEL_DIR THREADS {plain,ngram}

Reads one JSON line per task from standard input (``prompts``: token ids, ``new``: maximum tokens, ``batch``:
sequences decoded concurrently), computes the prompts into the prefix cache, and prints one line: wall seconds, CPU
seconds, output tokens, drafted and accepted tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

NGRAM = {"method": "ngram", "num_speculative_tokens": 10, "prompt_lookup_max": 3, "prompt_lookup_min": 1}


def drafted_and_accepted(engine: Any) -> tuple[int, int]:
    """Drafted and accepted tokens so far."""
    values = {metric.name: getattr(metric, "value", 0) for metric in engine.get_metrics()}
    return (
        values.get("vllm:spec_decode_num_draft_tokens", 0),
        values.get("vllm:spec_decode_num_accepted_tokens", 0),
    )


def main() -> None:
    model, threads, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that this process's time is vLLM's time
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0" if threads == 1 else f"0-{threads - 1}")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    engine: Any = LLM(
        model,
        dtype="bfloat16",
        max_model_len=2048,
        enable_prefix_caching=True,
        enforce_eager=True,
        disable_log_stats=False,
        speculative_config=NGRAM if how == "ngram" else None,
    )
    # the n-gram search is compiled when first used
    engine.generate(["def add(a, b):\n" * 8], SamplingParams(temperature=0, max_tokens=24), use_tqdm=False)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        prompts = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
        engine.generate(prompts, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
        sampling = SamplingParams(temperature=0, max_tokens=task["new"])
        before = drafted_and_accepted(engine)
        wall, processor, tokens = time.perf_counter(), time.process_time(), 0
        for at in range(0, len(prompts), task["batch"]):
            for answer in engine.generate(prompts[at : at + task["batch"]], sampling, use_tqdm=False):
                tokens += len(answer.outputs[0].token_ids)
        taken = [time.perf_counter() - wall, time.process_time() - processor, tokens]
        counts = [after - earlier for after, earlier in zip(drafted_and_accepted(engine), before, strict=True)]
        print(json.dumps([*taken, *counts]), file=answers, flush=True)


if __name__ == "__main__":
    main()
