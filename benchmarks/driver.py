"""What the process that drives a run spends on an answer, and how many engines it can keep busy:
``python -m benchmarks.driver``.

*Measured*: the real runner and main loop (prompts, patches, records, progress, tracker) over instances with prompts
of 40 kB and answers of 4 kB with a patch, from engines that answer at once; a prompt is pickled as for the engine
that it is sent to. Processor time of the process for each answer: with one and with 8 samples of a prompt, with
patches made here and by the engines, and with W&B offline. With ``--ray`` instead: from eight simulated engines in
actors, which give the answers after a second, one sample of a prompt; also answers a minute.

*Simulated*: engines of 16 sequences, each sequence 160 s on average, so that an engine gives an answer in 10 s. Each
answer, and the prompt that replaces it, wait for one driver, which handles one after the other. The driver's time for
an answer (``--driver-ms``) is by default the measured one plus ``--router-ms``.
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import os
import pickle
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar, cast

from benchmarks.handout import SimulatedEngine, engines_on_ray
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.llama.config import GenerationDefaults
from swe_infer.llama.data_parallel import DataParallelEngine
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.process_worker import serve_engine
from swe_infer.llama.sequence import GenerationRequest, OnRejected, RequestOutput
from swe_infer.patches.pipeline import make_patch
from swe_infer.prompt_format import files_in_prompt
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.store import RunStore
from swe_infer.runners.base import Order, ProcessResources, RunContext
from swe_infer.runners.instances import select_instances
from swe_infer.runners.llama import LlamaRunner
from swe_infer.runners.llama_requests import origin
from swe_infer.runners.run import Run
from swe_infer.tracking.base import NoTracker, RunInfo, Tracker
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.types import DataShard, Decoding, LlamaModel, PatchResult

_MODEL = LlamaModel(path="package://swe_infer.sample/tiny_llama")
_LINES = 700
_SLOTS, _SEQUENCE_S = 16, 160.0
_ENGINES = (8, 16, 64, 256, 1024)


class InstantEngines(DataParallelEngine):
    """Engines that answer every request at once.

    Args:
        answers, patches: by the number of the instance. Without patches, the driver makes them.
    """

    def __init__(self, answers: Sequence[str], patches: Sequence[PatchResult] | None) -> None:
        self._answers, self._patches = answers, patches
        self.defaults, self.end_tokens, self.context_window = GenerationDefaults(), frozenset(), 131_072

    def generate(
        self, requests: Iterable[GenerationRequest], on_rejected: OnRejected, stop: threading.Event | None = None
    ) -> Iterator[RequestOutput]:
        sent, ids = NO_SOURCE, tuple(range(1000))
        for request in requests:
            if request.source is not sent:
                sent = request.source
                pickle.dumps(sent)
            number = int(origin(request)[1][0].rpartition("-")[2])
            patch = None if self._patches is None else self._patches[number]
            yield RequestOutput(
                request, ids, self._answers[number], "stop", 12_000, 0, 1000, 0, 0, 0, 0.1, 10.0, patch
            )

    def figures(self) -> dict[str, float]:
        return {}

    reset_stats = abandon = close = lambda self: None


class PatchingEngine(SimulatedEngine):
    """Gives the same answer and patch to all requests."""

    def __init__(self) -> None:
        super().__init__()
        self._text = answer(0)
        self._patch = make_patch(self._text, files_in_prompt(prompt(0)))

    def step(self) -> Iterator[RequestOutput]:
        for output in super().step():
            yield replace(output, text=self._text, patch=self._patch)


def patching_server(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    serve_engine(pipe, cast(Engine, PatchingEngine()))


class GivenRunner(LlamaRunner):
    """A local model on the given engines."""

    order: ClassVar[Order] = "dataset"
    engines: DataParallelEngine

    def _load_engine(self) -> DataParallelEngine:
        return self.engines


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


def answer(number: int) -> str:
    """Reasoning, and a diff of three hunks."""
    reasoning = "The transformation uses the wrong module, so the values of later steps differ. " * 40
    hunks = []
    for at in (100, 300, 600):
        before = source(number)[at : at + 7]
        changed = before[3].replace("transform", "convert")
        lines = [*(f" {line}" for line in before[:3]), f"-{before[3]}", f"+{changed}"]
        hunks.append("\n".join([f"@@ -{at + 1},7 +{at + 1},7 @@", *lines, *(f" {line}" for line in before[4:])]))
    body = "\n".join(hunks)
    return f"{reasoning}\n<patch>\n--- a/package/module.py\n+++ b/package/module.py\n{body}\n</patch>\n"


def milliseconds(
    folder: Path, data: Path, answers: int, samples: int, tracker: Tracker, engines: DataParallelEngine
) -> tuple[float, float]:
    """Processor time and wall time for each answer, including the end of the run."""
    runner = GivenRunner(model=_MODEL, decoding=Decoding(n=samples, max_new_tokens=1024, temperature=1.0, seed=0))
    runner.engines = engines
    folder.mkdir()
    with RunStore(folder, runner.label) as store, redirect_stderr(io.StringIO()):
        runner.bind(RunContext(folder, "driver", Decimal(0), folder / "ledger", ProcessResources()))
        info = RunInfo("driver", "driver", {}, folder, store.resumed)
        dataset = JsonlDataset(path=str(data), limit=answers // samples)
        run = Run(runner, select_instances(runner, dataset, DataShard()), store, tracker, info)
        began = time.process_time(), time.monotonic()
        status = run.execute()
        spent = time.process_time() - began[0], time.monotonic() - began[1]
    statuses = {record["patch_status"] for record in read_records(folder / "records.jsonl")}
    if status or statuses != {"applies"}:
        raise SystemExit(f"the run ended with {status}, and patches {statuses}")
    return round(1000 * spent[0] / answers, 3), round(1000 * spent[1] / answers, 3)


def instances(folder: Path, count: int) -> Path:
    data = folder / "instances.jsonl"
    with data.open("w") as file:
        for number in range(count):
            file.write(json.dumps({"instance_id": f"owner__name-{number}", "text": prompt(number)}) + "\n")
    return data


def on_ray(folder: Path, answers: int) -> dict[str, float]:
    engines = engines_on_ray(patching_server)
    cpu, wall = milliseconds(folder / "run", instances(folder, answers), answers, 1, NoTracker(), engines)
    engines.close()
    return {"ms_per_answer": cpu, "answers_per_minute": round(60_000 / wall)}


def measured(folder: Path, answers: int) -> dict[str, float]:
    data, found = instances(folder, answers), {}
    texts = [answer(number) for number in range(answers)]
    made = [make_patch(text, files_in_prompt(prompt(number))) for number, text in enumerate(texts)]
    for samples in (1, 8):
        cases: dict[str, tuple[Tracker, bool]] = {
            "patches_here": (NoTracker(), True),
            "patches_in_engines": (NoTracker(), False),
            "patches_in_engines_wandb_offline": (WandbTracker(mode="offline"), False),
        }
        for name, (tracker, made_here) in cases.items():
            key = f"ms_per_answer_{samples}_samples_{name}"
            engines = InstantEngines(texts, None if made_here else made)
            found[key], _ = milliseconds(folder / key, data, answers, samples, tracker, engines)
    return found


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
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--driver-ms", type=float, nargs="*", help="simulate these alone, without measuring")
    options = parser.parse_args()
    if options.driver_ms:
        print(json.dumps({f"{ms} ms": knee(ms) for ms in options.driver_ms}, indent=2))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = (on_ray if options.ray else measured)(Path(folder), options.answers)
    if options.ray:
        print(json.dumps({"load": os.getloadavg()[0], **found}, indent=2))
        return
    result: dict[str, object] = {"load": os.getloadavg()[0], "measured": found}
    for samples in (1, 8):
        for made in ("patches_here", "patches_in_engines"):
            total = found[f"ms_per_answer_{samples}_samples_{made}"] + options.router_ms
            result[f"simulated: {samples} samples, {made}, {total:.2f} ms"] = knee(total)
    json.dump(result, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
