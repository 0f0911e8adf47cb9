"""Requests are routed by capacity, and a slow engine delays no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import Worker, choose_worker
    from swe_infer.llama.engine import EngineOptions


class Router:
    """Workers by name, whose commands are sent at once."""

    def __init__(self, *names: str, sequences: int = 8, batch: int = 100) -> None:
        self.options = EngineOptions(max_batch_tokens=batch, max_sequences=sequences)
        self.workers = {name: Worker() for name in names}

    def assign(self, *requests: GenerationRequest) -> list[str | None]:
        """Assign requests in order while a worker has capacity. Returns the worker of each."""
        chosen: list[str | None] = []
        for request in requests:
            worker = choose_worker(list(self.workers.values()), request, self.options)
            chosen.append(next((name for name, each in self.workers.items() if each is worker), None))
            if worker is None:
                break
            worker.assign(request)
            worker.commands.clear()
        return chosen

    def outstanding(self, name: str) -> list[object]:
        return list(self.workers[name].outstanding)


def ask(key: object, tokens: int = 100, prompt: int | None = None) -> GenerationRequest:
    """A request with a prompt of ``tokens`` tokens. ``prompt`` identifies it; by default each is different."""
    first = hash(str(key)) if prompt is None else prompt
    return GenerationRequest(str(key), (first, *range(tokens - 1)), StopParams(10, frozenset(), ()))


def asked(*keys: int) -> Sequence[GenerationRequest]:
    return [ask(key) for key in keys]


def test_no_worker_queues_more_than_its_next_steps_need() -> None:
    assert Router("a", "b").assign(*asked(*range(9))) == ["a", "b", "a", "b", None]


def test_requests_not_assigned_to_a_slow_worker_go_to_a_fast_one() -> None:
    router, done = Router("slow", "quick"), 0
    waiting = list(asked(*range(20)))
    while waiting or router.outstanding("quick"):
        del waiting[: len([name for name in router.assign(*waiting) if name is not None])]
        quick = router.workers["quick"]
        done += len(quick.outstanding)
        quick.outstanding.clear()
        quick.keep_queued(0)
    assert done == 18
    assert router.outstanding("slow") == ["0", "2"], "enough for two steps, one of which may be running"


def test_a_started_prompt_frees_capacity_until_all_slots_are_used() -> None:
    router = Router("a", sequences=3)
    for number in range(3):
        assert router.assign(ask(number)) == ["a"]
        router.workers["a"].keep_queued(0)
    assert router.assign(ask(3)) == [None]
    del router.workers["a"].outstanding["1"]
    assert router.assign(ask(3)) == ["a"]


def test_a_worker_gets_no_request_before_it_has_reported() -> None:
    """It may have more requests by then, so another one has capacity first."""
    router = Router("a", "b")
    router.workers["a"].waits = True
    assert router.assign(*asked(0, 1, 2)) == ["b", "b", None]
    router.workers["a"].waits = False
    assert router.assign(ask(2)) == ["a"]


def test_a_prompt_longer_than_a_step_is_assigned() -> None:
    assert Router("a").assign(ask("long", tokens=10_000)) == ["a"]


def test_samples_of_a_prompt_go_to_one_worker_and_count_as_one_prompt() -> None:
    samples = [ask(f"{prompt}{n}", 200, prompt) for prompt in (1, 2) for n in range(6)]
    assert Router("a", "b").assign(*samples) == ["a"] * 6 + ["b"] * 6


def test_samples_wait_for_their_worker_unless_another_is_idle() -> None:
    router = Router("a", "b", sequences=2)
    router.assign(ask("other", prompt=9), ask("b0", prompt=2), ask("b1", prompt=2))
    assert router.assign(ask("b2", prompt=2)) == [None], "a is busy, and would compute b's prompt a second time"
    router.workers["a"].outstanding.clear()
    assert router.assign(ask("b2", prompt=2)) == ["a"]


def test_the_worker_with_the_fewest_requests_is_chosen() -> None:
    router = Router("a", "b", batch=1000)
    assert router.assign(*[ask(n, prompt=1) for n in range(3)], *asked(3, 4, 5, 6)) == [*"aaabbba"]


def test_a_late_worker_gets_the_next_requests() -> None:
    router = Router("a")
    router.assign(*asked(0, 1, 2))
    router.workers["late"] = Worker()
    assert router.assign(*asked(2, 3, 4)) == ["late", "late", None]


@given(st.lists(st.tuples(st.sampled_from(["begin", "finish", "lose", "hand"]), st.integers(0, 7)), max_size=80))
def test_every_request_is_assigned_to_at_most_one_worker_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    router = Router("a", "b", "c", sequences=3)
    waiting = [ask(n, tokens=60, prompt=n // 3) for n in range(30)]
    keys, answered = {request.key for request in waiting}, set()
    for what, number in steps:
        name = sorted(router.workers)[number % len(router.workers)]
        worker = router.workers[name]
        if what == "hand" and waiting and router.assign(waiting[0]) != [None]:
            del waiting[0]
        elif what == "begin":
            worker.keep_queued(number)
        elif what == "finish" and worker.outstanding:
            key = list(worker.outstanding)[number % len(worker.outstanding)]
            del worker.outstanding[key]
            answered.add(key)
        elif what == "lose" and len(router.workers) > 1:
            waiting += router.workers.pop(name).outstanding.values()
        assert all(len(each.outstanding) <= 3 for each in router.workers.values())
    left = [request.key for request in waiting] + [key for name in router.workers for key in router.outstanding(name)]
    assert len(left) == len(set(left))
    assert set(left) | answered == keys
