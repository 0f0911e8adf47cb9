"""Requests are routed by capacity, and a slow engine delays no other."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from swe_infer.llama.request_router import RequestRouter
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams


def ask(key: object, tokens: int = 100, prompt: int | None = None, output: int = 10) -> GenerationRequest:
    """A request with a prompt of ``tokens`` tokens. ``prompt`` identifies it; by default each is different."""
    first = hash(str(key)) if prompt is None else prompt
    return GenerationRequest(str(key), (first, *range(tokens - 1)), StopParams(output, frozenset(), ()))


def assign(router: RequestRouter[str], requests: Sequence[GenerationRequest]) -> list[str | None]:
    """Assign requests in order while a worker has capacity. Returns the worker of each."""
    chosen = []
    for request in requests:
        worker = router.choose(request)
        chosen.append(worker)
        if worker is None:
            break
        router.assign(request, worker)
    return chosen


def router_of(*workers: str, sequences: int = 8, batch: int = 100) -> RequestRouter[str]:
    router: RequestRouter[str] = RequestRouter(sequences, batch)
    for worker in workers:
        router.add_worker(worker)
    return router


def test_no_worker_queues_more_than_its_next_steps_need() -> None:
    router = router_of("a", "b")
    assert assign(router, [ask(n) for n in range(9)]) == ["a", "b", "a", "b", None]


def test_requests_not_assigned_to_a_slow_worker_go_to_a_fast_one() -> None:
    router = router_of("slow", "quick")
    waiting = [ask(n) for n in range(20)]
    done: dict[str, int] = {"slow": 0, "quick": 0}
    held: dict[str, list[GenerationRequest]] = {"slow": [], "quick": []}
    while waiting or held["quick"]:
        while waiting and (worker := router.choose(waiting[0])) is not None:
            router.assign(waiting[0], worker)
            held[worker].append(waiting.pop(0))
        for request in held["quick"]:
            router.mark_started("quick", [request.key])
            router.mark_done("quick", request.key)
            done["quick"] += 1
        held["quick"].clear()
    assert done["quick"] == 18
    assert [request.key for request in held["slow"]] == ["0", "2"], (
        "enough for two steps, one of which may be running"
    )


def test_a_started_prompt_frees_capacity_until_all_slots_are_used() -> None:
    router = router_of("a", sequences=3)
    for number in range(3):
        assert assign(router, [ask(number)]) == ["a"]
        router.mark_started("a", [str(number)])
    assert assign(router, [ask(3)]) == [None]
    router.mark_done("a", "1")
    assert assign(router, [ask(3)]) == ["a"]


def test_a_prompt_longer_than_a_step_is_assigned() -> None:
    assert assign(router_of("a"), [ask("long", tokens=10_000)]) == ["a"]


def test_samples_of_a_prompt_go_to_one_worker_and_count_as_one_prompt() -> None:
    router = router_of("a", "b")
    samples = [ask(f"{prompt}{n}", 200, prompt) for prompt in (1, 2) for n in range(6)]
    assert assign(router, samples) == ["a"] * 6 + ["b"] * 6


def test_samples_wait_for_their_worker_unless_another_is_idle() -> None:
    router = router_of("a", "b", sequences=2)
    assign(router, [ask("other", prompt=9), ask("b0", prompt=2), ask("b1", prompt=2)])
    assert assign(router, [ask("b2", prompt=2)]) == [None], "a is busy, and would compute b's prompt a second time"
    router.mark_done("a", "other")
    assert assign(router, [ask("b2", prompt=2)]) == ["a"]


def test_the_least_loaded_worker_is_chosen() -> None:
    router = router_of("a", "b", batch=1000)
    assert assign(router, [ask(0, output=500), ask(1), ask(2), ask(3)]) == ["a", "b", "b", "b"]


def test_requests_of_a_removed_worker_are_returned() -> None:
    router = router_of("a", "b")
    assign(router, [ask(n) for n in range(4)])
    router.mark_done("a", "0")
    assert [request.key for request in router.remove_worker("a")] == ["2"]
    assert router.remove_worker("a") == []
    assert router.busy_workers() == ["b"]


def test_a_late_worker_gets_the_next_requests() -> None:
    router = router_of("a")
    assign(router, [ask(0), ask(1), ask(2)])
    router.add_worker("late")
    assert assign(router, [ask(2), ask(3), ask(4)]) == ["late", "late", None]


@given(st.lists(st.tuples(st.sampled_from(["begin", "finish", "lose", "hand"]), st.integers(0, 7)), max_size=80))
def test_every_request_is_assigned_to_at_most_one_worker_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    router = router_of("a", "b", "c", sequences=3)
    waiting = [ask(n, tokens=60, prompt=n // 3) for n in range(30)]
    asked, answered = {request.key for request in waiting}, set()
    holds: dict[str, list[GenerationRequest]] = {"a": [], "b": [], "c": []}
    for what, number in steps:
        worker = sorted(holds)[number % len(holds)]
        if what == "hand" and waiting and (chosen := router.choose(waiting[0])) is not None:
            router.assign(waiting[0], chosen)
            holds[chosen].append(waiting.pop(0))
        elif what == "begin":
            router.mark_started(worker, [request.key for request in holds[worker][: number + 1]])
        elif what == "finish" and holds[worker]:
            request = holds[worker].pop(number % len(holds[worker]))
            router.mark_done(worker, request.key)
            answered.add(request.key)
        elif what == "lose" and len(holds) > 1:
            returned = router.remove_worker(worker)
            assert {r.key for r in returned} == {r.key for r in holds.pop(worker)}
            waiting += returned
        assert sorted(router.busy_workers()) == [name for name in sorted(holds) if holds[name]]
        assert all(len(held) <= 3 for held in holds.values())
    left = [*(r.key for r in waiting), *(r.key for held in holds.values() for r in held)]
    assert len(left) == len(set(left))
    assert set(left) | answered == asked
