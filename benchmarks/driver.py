"""What the process that drives a run spends on an answer, and how many engines it can keep busy:
``python -m benchmarks.driver``.

*Measured*: the real main loop (prompts, patches, records, progress, tracker) over instances with prompts of 40 kB and
answers of 4 kB with a patch, from a runner that answers at once. Processor time of this process for each answer: with
one and with 8 samples of a prompt, without a tracker and with W&B offline, and with answers without a patch. Then the
bundled tokenizer, which encodes such prompts.

*Simulated*: engines of 16 sequences, each sequence 160 s on average, so that an engine gives an answer in 10 s. Each
answer, and the prompt that replaces it, wait for one driver, which handles one after the other. The driver's time for
an answer (``--driver-ms``) is by default what was measured, plus ``--router-ms`` and the encoding.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from decimal import Decimal
from pathlib import Path
from typing import ClassVar

from swe_infer.data.jsonl import JsonlDataset
from swe_infer.llama.tokenizer import LlamaTokenizer
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.store import RunStore
from swe_infer.runners.base import Order, ProcessResources, RunContext
from swe_infer.runners.llama import LlamaRunner
from swe_infer.runners.run import Run, select_instances
from swe_infer.tracking.base import NoTracker, RunInfo, Tracker
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.types import Completion, DataShard, Decoding, LlamaModel, OnOutcome, Request, Usage

_MODEL = LlamaModel(path="package://swe_infer.sample/tiny_llama")
ROOT = Path(__file__).resolve().parent.parent
_LINES = 700
_SLOTS, _SEQUENCE_S = 16, 160.0
_ENGINES = (8, 16, 64, 256, 1024)


class InstantRunner(LlamaRunner):
    """Answers every request at once, without an engine."""

    order: ClassVar[Order] = "dataset"
    answers: Sequence[str] = ()
    """By the number of the instance."""

    def generate(self, requests: Iterable[Request], on_outcome: OnOutcome, stop: threading.Event) -> None:
        usage = Usage(12_000, output_tokens=1000)
        for request in requests:
            text = self.answers[int(request.instance_id.rpartition("-")[2])]
            on_outcome(request, Completion(text, "stop", usage, Decimal(0), 10.0))


def source(number: int) -> list[str]:
    return [f"    value_{n} = transform(value_{n - 1}, {number})  # step" for n in range(1, _LINES + 1)]


def prompt(number: int) -> str:
    """A SWE-bench prompt of about 40 kB: an issue, and a file with line numbers."""
    numbered = "\n".join(f"{n} {line}" for n, line in enumerate(source(number), 1))
    return (
        "You will be provided with a partial code base and an issue statement explaining a problem to resolve.\n"
        f"<issue>\nThe values of module {number} are wrong.\n</issue>\n\n<code>\n[start of package/module.py]\n"
        f"{numbered}\n[end of package/module.py]\n</code>\n\nRespond with a single patch file.\n"
    )


def answer(number: int, *, with_patch: bool) -> str:
    """Reasoning, and a diff of three hunks."""
    reasoning = "The transformation uses the wrong module, so the values of later steps differ. " * 40
    if not with_patch:
        return reasoning
    hunks = []
    for at in (100, 300, 600):
        before = source(number)[at : at + 7]
        changed = before[3].replace("transform", "convert")
        lines = [*(f" {line}" for line in before[:3]), f"-{before[3]}", f"+{changed}"]
        hunks.append("\n".join([f"@@ -{at + 1},7 +{at + 1},7 @@", *lines, *(f" {line}" for line in before[4:])]))
    body = "\n".join(hunks)
    return f"{reasoning}\n<patch>\n--- a/package/module.py\n+++ b/package/module.py\n{body}\n</patch>\n"


def milliseconds(folder: Path, data: Path, answers: int, samples: int, tracker: Tracker, with_patch: bool) -> float:
    """Processor time of this process for each answer, including the end of the run."""
    runner = InstantRunner(model=_MODEL, decoding=Decoding(n=samples, max_new_tokens=1024, temperature=1.0, seed=0))
    runner.answers = [answer(number, with_patch=with_patch) for number in range(answers // samples)]
    folder.mkdir()
    with RunStore(folder, runner.label) as store, redirect_stderr(io.StringIO()):
        runner.bind(RunContext(folder, "driver", Decimal(0), folder / "ledger", ProcessResources()))
        info = RunInfo("driver", "driver", {}, folder, store.resumed)
        dataset = JsonlDataset(path=str(data), limit=answers // samples)
        run = Run(runner, select_instances(runner, dataset, DataShard()), store, tracker, info)
        began = time.process_time()
        status = run.execute()
        spent = time.process_time() - began
    statuses = {record["patch_status"] for record in read_records(folder / "records.jsonl")}
    if status or statuses != {"applies" if with_patch else "none"}:
        raise SystemExit(f"the run ended with {status}, and patches {statuses}")
    return 1000 * spent / answers


def measured(folder: Path, answers: int) -> dict[str, float]:
    data = folder / "instances.jsonl"
    with data.open("w") as file:
        for number in range(answers):
            file.write(json.dumps({"instance_id": f"owner__name-{number}", "text": prompt(number)}) + "\n")
    found = {"load": os.getloadavg()[0]}
    for samples in (1, 8):
        for name, tracker, with_patch in (
            ("no_tracker", NoTracker(), True),
            ("wandb_offline", WandbTracker(mode="offline"), True),
            ("no_tracker_no_patch", NoTracker(), False),
        ):
            key = f"ms_per_answer_{samples}_samples_{name}"
            found[key] = milliseconds(folder / key, data, answers, samples, tracker, with_patch)
    tokenizer = LlamaTokenizer(ROOT / "swe_infer" / "sample" / "tiny_llama")
    began = time.process_time()
    for number in range(20):
        tokenizer.encode_text(prompt(number))
    found["ms_to_encode_a_prompt"] = 1000 * (time.process_time() - began) / 20
    return {name: round(value, 2) for name, value in found.items()}


def knee(driver_ms: float) -> list[dict[str, float]]:
    """Answers a second, the driver's load, and the share of their time that sequences of the engines wait for it."""
    rows = []
    for engines in _ENGINES:
        chance = random.Random(0)
        sequences, driver_s = engines * _SLOTS, driver_ms / 1000
        ends = [chance.uniform(0, _SEQUENCE_S) for _ in range(sequences)]
        heapq.heapify(ends)
        count, free_at, waited = 40 * sequences, 0.0, 0.0
        for _ in range(count):
            end = heapq.heappop(ends)
            free_at = max(free_at, end) + driver_s
            waited += free_at - end
            heapq.heappush(ends, free_at + chance.lognormvariate(-0.32, 0.8) * _SEQUENCE_S)  # mean: 1
        rows.append(
            {
                "engines": engines,
                "answers_per_s": round(count / free_at, 1),
                "driver_load": round(count * driver_s / free_at, 3),
                "engines_wait": round(waited / (sequences * free_at), 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--router-ms", type=float, default=0.0, help="the router's time for an answer")
    parser.add_argument("--driver-ms", type=float, nargs="*", help="simulate these alone, without measuring")
    options = parser.parse_args()
    if options.driver_ms:
        print(json.dumps({f"{ms} ms": knee(ms) for ms in options.driver_ms}, indent=2))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder), options.answers)
    encode = found["ms_to_encode_a_prompt"]
    result: dict[str, object] = {"measured": found}
    for samples in (1, 8):
        total = found[f"ms_per_answer_{samples}_samples_no_tracker"] + options.router_ms + encode / samples
        result[f"simulated: {samples} samples, {total:.2f} ms"] = knee(total)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
