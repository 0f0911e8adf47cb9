"""vLLM's part of ``benchmarks.engine``. It runs in vLLM's own Python and does not import this project.

    VLLM_PYTHON benchmarks/engine_vllm.py MODEL_DIR THREADS [dummy]

``dummy``: random weights in the shape of MODEL_DIR/config.json, on a GPU, with CUDA graphs and longer sequences.
Reads one JSON line per task from standard input (``prompts``: token ids, ``new``, ``temperatures``, ``samples``,
``at_once``: all temperatures in one call), starts with an empty prefix cache, and prints one line: wall seconds, CPU
seconds, output tokens.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    model, threads, dummy = sys.argv[1], int(sys.argv[2]), sys.argv[3:] == ["dummy"]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints goes to standard error
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # so that this process's time is vLLM's time
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0" if threads == 1 else f"0-{threads - 1}")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    options: dict[str, Any] = {"max_model_len": 4096, "enforce_eager": True}
    if dummy:
        options = {"max_model_len": 16384, "load_format": "dummy", "skip_tokenizer_init": True}
    engine: Any = LLM(model, dtype="bfloat16", enable_prefix_caching=True, **options)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        prompts = [{"prompt_token_ids": prompt} for prompt in task["prompts"]]
        engine.reset_prefix_cache()
        wall, processor, tokens = time.perf_counter(), time.process_time(), 0
        samplings = [
            SamplingParams(
                temperature=temperature,
                n=task["samples"],
                max_tokens=task["new"],
                ignore_eos=True,
                detokenize=not dummy,
            )
            for temperature in task["temperatures"]
        ]
        if task["at_once"]:
            calls = [[(prompt, sampling) for prompt in prompts for sampling in samplings]]
        else:
            calls = [[(prompt, sampling) for prompt in prompts] for sampling in samplings]
        for call in calls:
            asked, how = zip(*call, strict=True)
            for answer in engine.generate(list(asked), list(how), use_tqdm=False):
                tokens += sum(len(output.token_ids) for output in answer.outputs)
        taken = [time.perf_counter() - wall, time.process_time() - processor, tokens]
        print(json.dumps(taken), file=answers, flush=True)


if __name__ == "__main__":
    main()
