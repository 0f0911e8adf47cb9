"""What handing out is worth beside equal shards: ``python -m benchmarks.handout``.

Eight engines answer 400 instances. *Shards*: each engine has an eighth of them, balanced by the prompts, before
anything begins. *Handed out*: all draw on one list, through the class that serves processes and Ray's actors. Time is
simulated, so nothing hangs on this machine: a pass takes 20 ms, 0.1 ms for each token of a prompt (2,048 at most) and
0.2 ms for each answer that it adds a token to. What is real is who gets which request, and when.

Four cases: all engines alike; one at half the speed; one answer of 20,000 tokens; one engine that is lost halfway
through, whose shard the others cannot take. Idle is the share of the engines' time, until the last answer, in which
they had nothing to do; a lost engine counts until it is lost.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from swe_infer.llama.request_router import RequestRouter
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams

_ENGINES, _INSTANCES, _SEQUENCES, _BATCH = 8, 400, 16, 2048
_PASS_S, _PROMPT_TOKEN_S, _ANSWER_S = 0.02, 0.0001, 0.0002


@dataclass(eq=False)
class Engine:
    """One in simulated time. ``queue`` holds what it has not read to the end (which, how much is left, whether
    it is untouched), ``running`` how many tokens each answer still has to get."""

    slowness: float = 1.0
    lost_at: float = float("inf")
    now: float = 0.0
    busy_s: float = 0.0
    queue: deque[tuple[int, int, bool]] = field(default_factory=deque)
    running: dict[int, int] = field(default_factory=dict)

    @property
    def has_work(self) -> bool:
        return bool(self.queue or self.running)

    def step(self, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
        """One pass; which requests it began and which it finished."""
        finished = []
        for number in list(self.running):
            self.running[number] -= 1
            if not self.running[number]:
                del self.running[number]
                finished.append(number)
        answered, budget, begun = len(self.running) + len(finished), _BATCH, []
        while self.queue and budget and len(self.running) < _SEQUENCES:
            number, left, is_new = self.queue.popleft()
            if is_new:
                begun.append(number)
            run = min(left, budget)
            budget -= run
            if left > run:
                self.queue.appendleft((number, left - run, False))
            else:
                self.running[number] = lengths[number]
        spent = self.slowness * (_PASS_S + (_BATCH - budget) * _PROMPT_TOKEN_S + answered * _ANSWER_S)
        self.now += spent
        self.busy_s += spent
        return begun, finished


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
    half = run(requests, lengths, [Engine() for _ in range(_ENGINES)], None)["wall_s"] / 2
    cases = {
        "all_alike": (lengths, Engine()),
        "one_half_as_fast": (lengths, Engine(slowness=2.0)),
        "one_long_answer": (long, Engine()),
        "one_lost_halfway": (lengths, Engine(lost_at=half)),
    }
    found = {}
    for name, (outputs, first) in cases.items():
        both = {}
        for way, dealt in (("shards", shards(requests)), ("handed_out", None)):
            engines = [Engine(first.slowness, first.lost_at), *(Engine() for _ in range(_ENGINES - 1))]
            both[way] = run(requests, outputs, engines, dealt)
        found[name] = both
    print(json.dumps(found, indent=2))


def shards(requests: Sequence[GenerationRequest]) -> list[deque[GenerationRequest]]:
    """Balanced by tokens, the longest first."""
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
    engines: list[Engine],
    dealt: list[deque[GenerationRequest]] | None,
) -> dict[str, float]:
    """Answer all; ``dealt`` are the engines' own shards, None: one list for all of them."""
    lists = dealt if dealt is not None else [deque(requests)] * len(engines)
    outs = [RequestRouter[int](_SEQUENCES, _BATCH) for _ in engines] if dealt is not None else []
    one: RequestRouter[int] = RequestRouter(_SEQUENCES, _BATCH)
    out_of = outs if dealt is not None else [one] * len(engines)
    for place, out in enumerate(out_of):
        out.add_worker(place)
    alive, ends, finished = list(range(len(engines))), 0.0, 0
    while alive:
        for place in alive:
            hand(lists[place], out_of[place], engines)
        working = [place for place in alive if engines[place].has_work]
        if not working:
            break
        place = min(working, key=lambda n: engines[n].now)
        engine, out = engines[place], out_of[place]
        if engine.now >= engine.lost_at:
            alive.remove(place)
            lists[place].extendleft(out.remove_worker(place))
            continue
        begun, done = engine.step(lengths)
        out.mark_started(place, map(str, begun))
        for number in done:
            out.mark_done(place, str(number))
        finished += len(done)
        ends = max(ends, engine.now if done else 0.0)
    available = sum(min(ends, engine.lost_at) for engine in engines)
    busy = sum(min(engine.busy_s, engine.lost_at) for engine in engines)
    return {"wall_s": round(ends, 1), "idle": round(max(0.0, 1 - busy / available), 3), "answered": finished}


def hand(waiting: deque[GenerationRequest], out: RequestRouter[int], engines: list[Engine]) -> None:
    """Hand out what there is room for. An engine that had nothing to do goes on from now, the time of the others."""
    now = min((engine.now for engine in engines if engine.has_work), default=0.0)
    while waiting and (place := out.choose(waiting[0])) is not None:
        request = waiting.popleft()
        out.assign(request, place)
        if not engines[place].has_work:
            engines[place].now = max(engines[place].now, now)
        engines[place].queue.append((int(str(request.key)), len(request.prompt_ids), True))


if __name__ == "__main__":
    main()
