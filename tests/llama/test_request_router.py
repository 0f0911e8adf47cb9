"""Who gets the next request: whoever has room, and the others' slowness holds nobody up."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from swe_infer.llama.request_router import RequestRouter
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.llama.stopping import StopParams


def ask(key: object, tokens: int = 100, prompt: int | None = None, output: int = 10) -> GenerationRequest:
    """A request with a prompt of ``tokens`` tokens; ``prompt`` tells prompts apart, by default each is its own."""
    first = hash(str(key)) if prompt is None else prompt
    return GenerationRequest(str(key), (first, *range(tokens - 1)), StopParams(output, frozenset(), ()))


def hand(out: RequestRouter[str], requests: Sequence[GenerationRequest]) -> list[str | None]:
    """Hand out what there is room for, in order, and say to whom."""
    chosen = []
    for request in requests:
        worker = out.choose(request)
        chosen.append(worker)
        if worker is None:
            break
        out.hand(request, worker)
    return chosen


def of(*workers: str, sequences: int = 8, batch: int = 100) -> RequestRouter[str]:
    out: RequestRouter[str] = RequestRouter(sequences, batch)
    for worker in workers:
        out.join(worker)
    return out


def test_no_engine_is_dealt_more_than_its_next_passes_take() -> None:
    out = of("a", "b")
    assert hand(out, [ask(n) for n in range(9)]) == ["a", "b", "a", "b", None]


def test_what_a_slow_engine_has_not_been_given_goes_to_the_quick_one() -> None:
    out = of("slow", "quick")
    waiting = [ask(n) for n in range(20)]
    done: dict[str, int] = {"slow": 0, "quick": 0}
    held: dict[str, list[GenerationRequest]] = {"slow": [], "quick": []}
    while waiting or held["quick"]:
        while waiting and (worker := out.choose(waiting[0])) is not None:
            out.hand(waiting[0], worker)
            held[worker].append(waiting.pop(0))
        for request in held["quick"]:
            out.begun("quick", [request.key])
            out.done("quick", request.key)
            done["quick"] += 1
        held["quick"].clear()
    assert done["quick"] == 18
    assert [request.key for request in held["slow"]] == ["0", "2"], "two passes' worth, of which one may be running"


def test_a_begun_prompt_makes_room_for_another_until_all_slots_are_taken() -> None:
    out = of("a", sequences=3)
    for number in range(3):
        assert hand(out, [ask(number)]) == ["a"]
        out.begun("a", [str(number)])
    assert hand(out, [ask(3)]) == [None]
    out.done("a", "1")
    assert hand(out, [ask(3)]) == ["a"]


def test_a_prompt_longer_than_a_pass_still_finds_an_engine() -> None:
    assert hand(of("a"), [ask("long", tokens=10_000)]) == ["a"]


def test_samples_of_a_prompt_go_where_the_first_went_and_count_as_one_prompt() -> None:
    out = of("a", "b")
    samples = [ask(f"{prompt}{n}", 200, prompt) for prompt in (1, 2) for n in range(6)]
    assert hand(out, samples) == ["a"] * 6 + ["b"] * 6


def test_samples_wait_for_their_engine_unless_another_has_nothing_to_do() -> None:
    out = of("a", "b", sequences=2)
    hand(out, [ask("other", prompt=9), ask("b0", prompt=2), ask("b1", prompt=2)])
    assert hand(out, [ask("b2", prompt=2)]) == [None], "a is at work: its share of b's prompt would be computed twice"
    out.done("a", "other")
    assert hand(out, [ask("b2", prompt=2)]) == ["a"]


def test_the_engine_with_the_least_to_do_is_first() -> None:
    out = of("a", "b", batch=1000)
    assert hand(out, [ask(0, output=500), ask(1), ask(2), ask(3)]) == ["a", "b", "b", "b"]


def test_what_an_engine_had_comes_back_when_it_is_lost() -> None:
    out = of("a", "b")
    hand(out, [ask(n) for n in range(4)])
    out.done("a", "0")
    assert [request.key for request in out.leave("a")] == ["2"]
    assert out.leave("a") == []
    assert out.busy() == ["b"]


def test_one_that_joins_late_is_handed_the_next() -> None:
    out = of("a")
    hand(out, [ask(0), ask(1), ask(2)])
    out.join("late")
    assert hand(out, [ask(2), ask(3), ask(4)]) == ["late", "late", None]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["begin", "finish", "lose", "hand"]), st.integers(0, 7)), max_size=80))
def test_every_request_is_with_one_engine_at_most_and_none_is_forgotten(steps: list[tuple[str, int]]) -> None:
    out = of("a", "b", "c", sequences=3)
    waiting = [ask(n, tokens=60, prompt=n // 3) for n in range(30)]
    asked, answered = {request.key for request in waiting}, set()
    holds: dict[str, list[GenerationRequest]] = {"a": [], "b": [], "c": []}
    for what, number in steps:
        worker = sorted(holds)[number % len(holds)]
        if what == "hand" and waiting and (chosen := out.choose(waiting[0])) is not None:
            out.hand(waiting[0], chosen)
            holds[chosen].append(waiting.pop(0))
        elif what == "begin":
            out.begun(worker, [request.key for request in holds[worker][: number + 1]])
        elif what == "finish" and holds[worker]:
            request = holds[worker].pop(number % len(holds[worker]))
            out.done(worker, request.key)
            answered.add(request.key)
        elif what == "lose" and len(holds) > 1:
            returned = out.leave(worker)
            assert {r.key for r in returned} == {r.key for r in holds.pop(worker)}
            waiting += returned
        assert sorted(out.busy()) == [name for name in sorted(holds) if holds[name]]
        assert all(len(held) <= 3 for held in holds.values())
    left = [*(r.key for r in waiting), *(r.key for held in holds.values() for r in held)]
    assert len(left) == len(set(left))
    assert set(left) | answered == asked
