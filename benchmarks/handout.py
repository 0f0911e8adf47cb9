"""Dynamic request routing compared with equal shards, and the cost of the router.

    python -m benchmarks.handout                # simulated engines in simulated time
    python -m benchmarks.handout ray            # simulated engines in actors of Ray, real time and processor time
    python -m benchmarks.handout engines 1024   # as many simulated engines in threads, processor time

Eight engines run 400 instances. *Shards*: each engine gets an eighth of them in advance, balanced by prompt tokens.
*Routed*: all engines draw on one list, through :func:`choose_worker`. Time is simulated, so results do not depend on
the machine: a step takes 20 ms, plus 0.1 ms per prompt token (at most 2,048) and 0.2 ms per decoding sequence. The
routing is real.

Four cases: equal engines; one at half the speed; one output of 20,000 tokens; one engine lost halfway, whose shard
the others cannot take over. Idle is the share of the engines' time without work until the last output; a lost engine
counts until it is lost.

``ray`` starts a cluster of this machine alone. It answers 10,000 prompts of 40 kB with 1,000 tokens each, as
fast as the driver allows, and prints the driver's processor time for an answer. It requires the extra ``ray``.

``engines`` shows what the driver's thread spends on many engines: each runs 16 sequences of 160 s on average, so that
it gives an answer in 10 s, and reports twice a second. From 10 s after the first answer on, for 20 s.
"""

from __future__ import annotations

import heapq
import itertools
import json
import os
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, cast

from swe_infer.llama.cluster import RayCluster
from swe_infer.llama.data_parallel import DataParallelEngine, Report, Worker, choose_worker
from swe_infer.llama.drafting import DraftSource
from swe_infer.llama.engine import Engine, EngineOptions
from swe_infer.llama.process_worker import serve_engine
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.stats import EngineStats
from swe_infer.llama.stopping import StopParams
from swe_infer.types import Failure, LlamaModel, Prompt, Skip

_ENGINES, _INSTANCES, _SEQUENCES, _BATCH = 8, 400, 16, 2048
_OPTIONS = EngineOptions(max_batch_tokens=_BATCH, max_sequences=_SEQUENCES)
_STEP_S, _PROMPT_TOKEN_S, _ANSWER_S = 0.02, 0.0001, 0.0002


@dataclass(eq=False)
class TimedEngine:
    """An engine in simulated time. ``queue``: (request, prompt tokens left, whether new); ``running``: output tokens
    left."""

    slowness: float = 1.0
    lost_at: float = float("inf")
    now: float = 0.0
    busy_s: float = 0.0
    queue: deque[tuple[int, int, bool]] = field(default_factory=deque)
    running: dict[int, int] = field(default_factory=dict)
    worker: Worker = field(default_factory=Worker)

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self.running)

    def step(self, lengths: Sequence[int]) -> list[int]:
        """Run one step. Returns the requests that it finished."""
        finished = []
        for number in list(self.running):
            self.running[number] -= 1
            if not self.running[number]:
                del self.running[number]
                finished.append(number)
        answered, budget = len(self.running) + len(finished), _BATCH
        while self.queue and budget and len(self.running) < _SEQUENCES:
            number, left, _ = self.queue.popleft()
            run = min(left, budget)
            budget -= run
            if left > run:
                self.queue.appendleft((number, left - run, False))
            else:
                self.running[number] = lengths[number]
        spent = self.slowness * (_STEP_S + (_BATCH - budget) * _PROMPT_TOKEN_S + answered * _ANSWER_S)
        self.now += spent
        self.busy_s += spent
        return finished


def main() -> None:
    chance = random.Random(0)
    prompts = sorted((min(30_000, int(chance.lognormvariate(9, 0.7))) for _ in range(_INSTANCES)), reverse=True)
    requests = [
        GenerationRequest(str(number), (number, *range(size)), StopParams(2048))
        for number, size in enumerate(prompts)
    ]
    lengths = [min(2048, int(chance.lognormvariate(6, 0.8)) + 1) for _ in requests]
    long = [*lengths]
    long[_INSTANCES // 2] = 20_000
    half = run(requests, lengths, [TimedEngine() for _ in range(_ENGINES)], None)["wall_s"] / 2
    cases = {
        "all_alike": (lengths, TimedEngine()),
        "one_half_as_fast": (lengths, TimedEngine(slowness=2.0)),
        "one_long_answer": (long, TimedEngine()),
        "one_lost_halfway": (lengths, TimedEngine(lost_at=half)),
    }
    found = {}
    for name, (outputs, first) in cases.items():
        both = {}
        for way, shard_lists in (("shards", shards(requests)), ("handed_out", None)):
            engines = [TimedEngine(first.slowness, first.lost_at), *(TimedEngine() for _ in range(_ENGINES - 1))]
            both[way] = run(requests, outputs, engines, shard_lists)
        found[name] = both
    print(json.dumps(found, indent=2))


def shards(requests: Sequence[GenerationRequest]) -> list[deque[GenerationRequest]]:
    """Shards balanced by tokens, longest requests first."""
    parts: list[deque[GenerationRequest]] = [deque() for _ in range(_ENGINES)]
    sizes = [0] * _ENGINES
    for request in requests:
        least = sizes.index(min(sizes))
        parts[least].append(request)
        sizes[least] += len(request.prompt_ids)
    return parts


def run(
    requests: Sequence[GenerationRequest],
    lengths: Sequence[int],
    engines: list[TimedEngine],
    shard_lists: list[deque[GenerationRequest]] | None,
) -> dict[str, float]:
    """Run all requests. ``shard_lists``: the engines' shards; None: one list for all."""
    groups = [(deque(requests), list(engines))]
    if shard_lists is not None:
        groups = [(shard, [engine]) for shard, engine in zip(shard_lists, engines, strict=True)]
    ends, answered = 0.0, 0
    while True:
        for waiting, group in groups:
            assign(waiting, group)
        working = [(engine, *each) for each in groups for engine in each[1] if engine.has_work]
        if not working:
            break
        engine, waiting, group = min(working, key=lambda each: each[0].now)
        if engine.now >= engine.lost_at:
            group.remove(engine)
            waiting.extendleft(engine.worker.outstanding.values())
            continue
        finished = engine.step(lengths)
        engine.worker.keep_queued(sum(is_new for _, _, is_new in engine.queue))
        for number in finished:
            del engine.worker.outstanding[str(number)]
        answered += len(finished)
        ends = max(ends, engine.now if finished else 0.0)
    available = sum(min(ends, engine.lost_at) for engine in engines)
    busy = sum(min(engine.busy_s, engine.lost_at) for engine in engines)
    return {"wall_s": round(ends, 1), "idle": round(max(0.0, 1 - busy / available), 3), "answered": answered}


def assign(waiting: deque[GenerationRequest], engines: Sequence[TimedEngine]) -> None:
    """Assign requests while engines have capacity. An idle engine resumes at the time of the others."""
    now = min((engine.now for engine in engines if engine.has_work), default=0.0)
    workers = [engine.worker for engine in engines]
    while waiting and (worker := choose_worker(workers, waiting[0], _OPTIONS)) is not None:
        request, engine = waiting.popleft(), engines[workers.index(worker)]
        worker.assign(request)
        worker.commands.clear()  # they are sent at once
        if not engine.has_work:
            engine.now = max(engine.now, now)
        engine.queue.append((int(str(request.key)), len(request.prompt_ids), True))


def simulated_server(pipe: Connection, model: LlamaModel, options: EngineOptions, threads: int) -> None:
    """Answers each request after half a second to a second and a half, in steps of 20 ms."""
    serve_engine(pipe, cast(Engine, SimulatedEngine()))


class SimulatedEngine:
    """What :func:`serve_engine` needs of an engine."""

    def __init__(self) -> None:
        self.unstarted: list[GenerationRequest] = []
        self._due: list[tuple[float, int, GenerationRequest]] = []
        self._count = itertools.count()

    @property
    def busy(self) -> bool:
        return bool(self._due)

    def add_request(self, request: GenerationRequest) -> None:
        heapq.heappush(self._due, (time.monotonic() + random.uniform(0.5, 1.5), next(self._count), request))

    def step(self) -> Iterator[RequestOutput]:
        time.sleep(_STEP_S)
        while self._due and self._due[0][0] <= time.monotonic():
            request, ids = heapq.heappop(self._due)[2], tuple(range(1000, 2000))
            yield RequestOutput(request, ids, "x" * 4000, "stop", 12_000, 0, 1000, 0, 0, 0, 0.1, 1.0)

    def take_rejected(self) -> list[tuple[GenerationRequest, Failure | Skip]]:
        return []

    def figures(self) -> dict[str, float]:
        return {"running": 0.0, "forward_passes": 0.0}


def engines_on_ray(server: Callable[..., None], engines: int = 8) -> DataParallelEngine:
    """Simulated engines in actors, all of which are ready."""
    from swe_infer.llama.ray_worker import ray_engines

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ADDRESS"] = "local"
    model = LlamaModel(path="package://swe_infer.sample/tiny_llama", device="cpu")
    options = EngineOptions(max_batch_tokens=65_536, max_sequences=128, workers=engines)
    group = ray_engines(RayCluster(cpus=0.1), model, options, server)
    while len(group.workers) < engines:
        list(group.generate([GenerationRequest("first", (1,), StopParams(1))], lambda request, why: None))
    return group


def measure_driver(count: int = 10_000) -> None:
    group = engines_on_ray(simulated_server)
    sources = [DraftSource(Prompt(None, f"{number} {'prompt ' * 5714}")) for number in range(200)]
    requests = (GenerationRequest(n, (), StopParams(1000), source=sources[n % 200]) for n in range(count))
    started, processor = time.monotonic(), time.process_time()
    answers = {answer.request.key for answer in group.generate(requests, lambda request, error: None)}
    wall = time.monotonic() - started
    found = {
        "answers": len(answers),
        "answers_per_minute": round(60 * count / wall),
        "driver_cpu_ms_per_answer": round(1000 * (time.process_time() - processor) / count, 2),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(found, indent=2))
    group.close()


class ReportingWorker(Worker):
    """An engine of 16 sequences that takes no processor time."""

    def start(self) -> str:
        self._due: list[tuple[float, int, GenerationRequest]] = []
        self._count = itertools.count()
        return "a simulated engine"

    def call(self, commands: bytes) -> bytes:
        for _, (request, _) in pickle.loads(commands):
            number = next(self._count)
            spread = random.uniform(0, 1) if number < _SEQUENCES else random.uniform(0.5, 1.5)
            heapq.heappush(self._due, (time.monotonic() + 160 * spread, number, request))
        time.sleep(max(0.0, min(0.5, self._due[0][0] - time.monotonic())) if self._due else 0.0)
        results: list[Any] = []
        while self._due and self._due[0][0] <= time.monotonic():
            request, ids = heapq.heappop(self._due)[2], tuple(range(1000, 2000))
            output = RequestOutput(request, ids, "x" * 4000, "stop", 12_000, 0, 1000, 0, 0, 0, 0.1, 1.0)
            results.append((request.key, output))
        return pickle.dumps(Report(results, 0, bool(self._due), EngineStats().figures()))

    def kill(self, restarts: bool) -> None:
        return


def measure_engines(count: int) -> None:
    model = LlamaModel(path="package://swe_infer.sample/tiny_llama", device="cpu")
    options = EngineOptions(max_batch_tokens=65_536, max_sequences=_SEQUENCES)
    group = DataParallelEngine(model, options, iter([[ReportingWorker() for _ in range(count)]]))
    requests = (
        GenerationRequest(number, (), StopParams(1000), source=DraftSource(Prompt(None, f"{number} {'x' * 400}")))
        for number in itertools.count()
    )
    began, answers, spent = float("inf"), 0, 0.0
    for _ in group.generate(requests, lambda request, why: None):
        group.figures()  # as for each record
        began = min(began, time.monotonic())
        if time.monotonic() < began + 10:
            answers, spent = 0, -time.thread_time()
        answers += 1
        if time.monotonic() > began + 30:
            break
    load = round((spent + time.thread_time()) / 20, 3)
    found = {"engines": count, "answers_per_s": answers / 20, "load_of_the_driver's_thread": load}
    print(json.dumps(found), flush=True)
    os._exit(0)  # engines may sleep


if __name__ == "__main__":
    if sys.argv[1:] == ["ray"]:
        measure_driver()
    elif sys.argv[1:2] == ["engines"]:
        measure_engines(int(sys.argv[2]))
    else:
        main()
