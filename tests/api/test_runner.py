"""The API runner from end to end, against a provider in this process."""

from __future__ import annotations

import contextlib
import gc
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.ledger import Ledger
from swe_infer.api.limits import Limits
from swe_infer.api.retry import Retry
from swe_infer.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigError,
    ContextOverflow,
    InvalidRequest,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    SweInferError,
    TransientError,
)
from swe_infer.providers.base import Answer
from swe_infer.runners.api import ApiRunner
from swe_infer.types import (
    ApiModel,
    Budget,
    Completion,
    Decoding,
    Failure,
    Outcome,
    Pricing,
    Request,
    Skip,
    Usage,
)
from tests.api.scripted import ScriptedProvider, context, request, requests

FAST = Retry(backoff_s=0.01, max_backoff_s=0.02)
DOLLAR_A_TOKEN = Pricing(input_per_mtok=Decimal(1_000_000), output_per_mtok=Decimal(1_000_000))


def runner(provider: ScriptedProvider, **arguments: Any) -> ApiRunner:
    model = arguments.pop("model", ApiModel(name="gpt-4o"))
    decoding = arguments.pop("decoding", Decoding(max_new_tokens=100))
    arguments.setdefault("retry", FAST)
    return ApiRunner(model=model, provider=provider, decoding=decoding, **arguments)


class Outcomes(list[tuple[Request, Outcome]]):
    """Collects what a runner hands over."""

    def __call__(self, request: Request, outcome: Outcome) -> None:
        self.append((request, outcome))

    @property
    def by_key(self) -> dict[tuple[str, int], Outcome]:
        assert len({r.key for r, _ in self}) == len(self), "a request was handed over twice"
        return {r.key: outcome for r, outcome in self}


def run(api: ApiRunner, wanted: list[Request], stop: threading.Event | None = None) -> Outcomes:
    outcomes = Outcomes()
    api.generate(wanted, outcomes, stop or threading.Event())
    return outcomes


def test_garbage_collection_is_relaxed_during_a_run_only() -> None:
    gc.unfreeze()  # the collection of the tests has frozen its objects
    before, frozen, seen = gc.get_threshold(), gc.get_freeze_count(), []
    runner(ScriptedProvider()).generate(
        requests(1), lambda *_: seen.append((gc.get_threshold(), gc.get_freeze_count())), threading.Event()
    )
    ((thresholds, out_of_sight),) = seen
    assert thresholds[0] >= before[0], "Python 3.13 begins with as many as we set"
    assert thresholds[2] > before[2]
    assert out_of_sight > frozen
    assert (gc.get_threshold(), gc.get_freeze_count()) == (before, frozen)


def test_every_request_gets_one_outcome_with_its_price_and_its_facts() -> None:
    provider = ScriptedProvider()
    outcomes = run(runner(provider), requests(50)).by_key
    assert len(outcomes) == 50
    one = outcomes["i7", 0]
    assert isinstance(one, Completion)
    assert one.text == "answer to i7/0"
    assert one.cost_usd == Decimal("0.00035")  # gpt-4o: 100 x 2.50 + 10 x 10.00 for a million
    assert one.attempts == 1
    assert one.details["model"] == "scripted-2026-01-01"
    assert one.details["provider"] == "scripted"
    assert one.details["request_id"] == "req_1"
    assert (provider.opened, provider.closed) == (1, 1)


def test_transient_errors_rate_limits_and_overload_are_tried_again() -> None:
    def fate(request: Request, sent_before: int) -> BaseException | None:
        faults = [TransientError("reset"), RateLimited("429", retry_after_s=0.01), Overloaded("529", status=529)]
        return faults[sent_before] if sent_before < 3 else None

    (_, outcome), *_ = run(runner(ScriptedProvider(fate)), [request()])
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 4


@pytest.mark.parametrize("error", [InvalidRequest("no", status=400), TransientError("html", status=502)])
def test_a_failure_costs_its_own_request_and_no_other(error: Exception) -> None:
    provider = ScriptedProvider(lambda r, n: error if r.instance_id == "i3" else None)
    outcomes = run(runner(provider, retry=Retry(tries=3, backoff_s=0.01)), requests(10)).by_key
    failed = outcomes.pop(("i3", 0))
    assert isinstance(failed, Failure)
    assert failed.error_type == type(error).__name__
    assert failed.attempts == (1 if isinstance(error, InvalidRequest) else 3)
    assert failed.cost_usd == 0
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())


def test_a_prompt_that_is_too_long_is_skipped_with_the_reason_and_its_other_samples_are_not_asked() -> None:
    provider = ScriptedProvider(lambda r, n: ContextOverflow("140000 > 128000", status=400))
    long = [request("a", sample, "x" * 10_000) for sample in range(3)]
    outcomes = run(runner(provider), long).by_key
    assert list(outcomes.values()) == [Skip("ContextOverflow", "140000 > 128000")] * 3
    assert len(provider.sent) == 1


@pytest.mark.parametrize(
    "error", [AuthenticationFailed("key refused", status=401), QuotaExhausted("no credit", status=429)]
)
def test_fatal_errors_stop_the_run_and_keep_the_requests_in_flight(error: Exception) -> None:
    provider = ScriptedProvider(lambda r, n: error if r.instance_id == "i20" else None, latency_s=0.05)
    outcomes = Outcomes()
    with pytest.raises(type(error)):
        runner(provider).generate(requests(5000), outcomes, threading.Event())
    assert 20 <= len(provider.sent) < 200
    assert len(outcomes) == len(provider.sent) - 1  # all but the refused one


def test_repeated_bugs_stop_the_run_and_single_ones_cost_one_request() -> None:
    once = ScriptedProvider(lambda r, n: KeyError("choices") if r.instance_id == "i3" else None)
    outcomes = run(runner(once), requests(30)).by_key
    assert outcomes["i3", 0] == Failure("KeyError", "'choices'")
    assert sum(isinstance(outcome, Completion) for outcome in outcomes.values()) == 29

    always = ScriptedProvider(lambda r, n: KeyError("choices"), max_concurrency=4)
    with pytest.raises(SweInferError, match="KeyError"):
        run(runner(always), requests(5000))
    assert len(always.sent) < 50


def test_requests_are_read_lazily() -> None:
    provider = ScriptedProvider(latency_s=0.001, max_concurrency=8)
    read = 0
    done = 0

    def source() -> Iterator[Request]:
        nonlocal read
        for wanted in requests(500):
            read += 1
            assert read - done <= 2 * 8 + 1
            yield wanted

    def on_outcome(request: Request, outcome: Outcome) -> None:
        nonlocal done
        done += 1

    runner(provider).generate(source(), on_outcome, threading.Event())
    assert done == 500


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.005)


def test_a_stop_finishes_what_is_in_flight_starts_nothing_and_interrupts_waits() -> None:
    def fate(request: Request, sent_before: int) -> BaseException | None:
        return TransientError("wait", status=500, retry_after_s=3600) if request.instance_id == "i0" else None

    stop = threading.Event()
    provider = ScriptedProvider(fate, latency_s=0.3, max_concurrency=4)

    def stop_once_some_are_sent() -> None:
        wait_for(lambda: len(provider.sent) > 2)
        stop.set()

    threading.Thread(target=stop_once_some_are_sent, daemon=True).start()
    api = runner(provider, retry=Retry(max_retry_after_s=3600, total_s=10_000))
    outcomes = run(api, requests(100), stop)
    assert {r.key for r, _ in outcomes} == {r.key for r in provider.sent}
    assert 1 <= len(outcomes) < 20
    failed = outcomes.by_key["i0", 0]  # its record says what may have been billed
    assert isinstance(failed, Failure)
    assert Decimal(failed.details["possibly_billed_usd"]) == Decimal(str(api.stats()["possibly_billed_usd"]))


@pytest.mark.parametrize("end", ["budget", "budget, several samples", "key", "bug"])
def test_an_attempt_that_may_have_been_billed_is_recorded_if_no_other_follows(end: str, tmp_path: Path) -> None:
    ends = {"key": AuthenticationFailed("401", status=401), "bug": ValueError("?")}

    def fate(request: Request, sent_before: int) -> BaseException | None:
        return ends.get(end, TransientError("reset")) if sent_before else TransientError("reset")

    class Together(ScriptedProvider):
        def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
            return 4

        async def complete_samples(
            self, requests: Sequence[Request], model: ApiModel, **options: Any
        ) -> list[Answer]:
            return [await self.complete(one, model, **options) for one in requests]

    provider = Together(fate) if "several" in end else ScriptedProvider(fate)
    cap = Decimal("0.004") if "budget" in end else Decimal(5)  # two or three worst cases with one sample
    api = runner(provider, budget=Budget(max_usd=cap), prompt_caching="never")
    api.bind(context(tmp_path))
    outcomes = Outcomes()
    with contextlib.suppress(BudgetExceeded, AuthenticationFailed):
        api.generate(requests(2, samples=4 if "several" in end else 1), outcomes, threading.Event())
    billed = [Decimal(outcome.details.get("possibly_billed_usd", "0")) for outcome in outcomes.by_key.values()]  # type: ignore[union-attr]
    assert max(billed) > 0
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as ledger:
        ((spent,),) = ledger.execute("SELECT sum(amount) FROM spent").fetchall()
    assert sum(billed) == Decimal(spent) / 10**12
    assert float(sum(billed)) == pytest.approx(api.stats()["possibly_billed_usd"])


def test_a_stop_ends_the_wait_for_a_cap_that_other_processes_use(tmp_path: Path) -> None:
    place, cap = context(tmp_path), Decimal(1)
    others = Ledger(place.sweep_ledger, cap, "another run")
    others.reserve(cap)  # for as long as the other run likes
    provider, outcomes, stop = ScriptedProvider(), Outcomes(), threading.Event()
    api = runner(provider, budget=Budget(sweep_max_usd=cap))
    api.bind(place)
    working = threading.Thread(target=api.generate, args=(requests(20), outcomes, stop), daemon=True)
    working.start()
    wait_for(lambda: api.stats().get("concurrency"))
    stop.set()
    working.join(60)
    assert not working.is_alive()
    assert (provider.sent, outcomes) == ([], [])
    others.close()


def test_an_error_in_the_outcome_callback_ends_the_run() -> None:
    def full(request: Request, outcome: Outcome) -> None:
        raise OSError("no space left on device")

    provider = ScriptedProvider(max_concurrency=4)
    with pytest.raises(OSError, match="no space"):
        runner(provider).generate(requests(1000), full, threading.Event())
    assert len(provider.sent) < 20


def test_an_error_while_reading_requests_ends_the_run_after_those_in_flight() -> None:
    def source() -> Iterator[Request]:
        yield from requests(10)
        raise ConfigError("line 11 is no JSON")

    outcomes = Outcomes()
    with pytest.raises(ConfigError, match="line 11"):
        runner(provider := ScriptedProvider(latency_s=0.05)).generate(source(), outcomes, threading.Event())
    assert len(outcomes) == len(provider.sent) >= 8


def test_a_hanging_request_times_out_and_is_retried() -> None:
    class Hanging(ScriptedProvider):
        async def complete(self, request: Request, model: ApiModel, **options: Any) -> Answer:
            if not self.sent:
                self.latency_s = 3600
            answer = super().complete(request, model, **options)
            self.latency_s, latency = self.latency_s, self.latency_s
            try:
                return await answer
            finally:
                self.latency_s = 0.0 if latency else latency

    provider = Hanging(timeout_s=0.1)
    (_, outcome), *_ = run(runner(provider), [request()])
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 2


# Money.


def test_the_price_is_that_of_the_configured_model_not_of_the_one_in_the_answer() -> None:
    provider = ScriptedProvider()
    run_ = runner(provider, model=ApiModel(name="my-deployment", price_as="gpt-4o"))
    run_.check()
    (_, outcome), *_ = run(run_, [request()])
    assert isinstance(outcome, Completion)
    assert outcome.cost_usd == Decimal("0.00035")


def test_a_model_without_a_known_price_is_refused_before_the_first_request() -> None:
    provider = ScriptedProvider()
    with pytest.raises(ConfigError, match=r"model\.pricing"):
        runner(provider, model=ApiModel(name="nobody-knows-me")).check()


def test_an_unknown_price_is_reported_as_unknown_and_allows_no_cap() -> None:
    model = ApiModel(name="nobody-knows-me", pricing="unknown")
    (_, outcome), *_ = run(runner(ScriptedProvider(), model=model), [request()])
    assert isinstance(outcome, Completion)
    assert outcome.cost_usd is None
    with pytest.raises(ConfigError, match=r"budget\.max_usd"):
        runner(ScriptedProvider(), model=model, budget=Budget(max_usd=Decimal(5))).check()


def test_a_cap_of_nothing_pays_nothing() -> None:
    provider = ScriptedProvider()
    with pytest.raises(BudgetExceeded, match=r"budget\.max_usd=0"):
        run(runner(provider, budget=Budget(max_usd=Decimal(0))), requests(10))
    assert provider.sent == []


@pytest.mark.parametrize("concurrency", [pytest.param(1, marks=pytest.mark.full), 7, 64])
def test_a_cap_is_never_passed_and_nearly_used_up_at_any_concurrency(concurrency: int) -> None:
    provider = ScriptedProvider(
        latency_s=0.002,
        max_concurrency=concurrency,
        tokens=lambda r: Usage(input_tokens=len(r.prompt.user) // 3, output_tokens=1 + r.sample % 90),
    )
    # A request comes to about $370 and at most to $1,164.
    cap = Decimal(100_000)
    api = runner(provider, model=ApiModel(name="x", pricing=DOLLAR_A_TOKEN), budget=Budget(max_usd=cap))
    outcomes = Outcomes()
    with pytest.raises(BudgetExceeded):
        api.generate(requests(1000, text="y" * 1000), outcomes, threading.Event())
    spent = sum(o.cost_usd or Decimal(0) for _, o in outcomes if isinstance(o, Completion))
    assert cap * Decimal("0.95") <= spent <= cap
    assert len(outcomes) == len(provider.sent)


def test_what_earlier_tries_spent_counts(tmp_path: Path) -> None:
    provider = ScriptedProvider(max_concurrency=1, tokens=lambda r: Usage(input_tokens=100))
    api = runner(provider, model=ApiModel(name="x", pricing=DOLLAR_A_TOKEN), budget=Budget(max_usd=Decimal(1000)))
    api.bind(context(tmp_path, spent_usd=Decimal(500)))
    with pytest.raises(BudgetExceeded):
        run(api, requests(100))
    assert len(provider.sent) * 100 + 500 <= 1000
    assert len(provider.sent) >= 2


def test_runs_of_a_sweep_share_one_cap(tmp_path: Path) -> None:
    spent = 0
    for number in range(3):
        provider = ScriptedProvider(tokens=lambda r: Usage(input_tokens=100), max_concurrency=8, latency_s=0.001)
        budget = Budget(sweep_max_usd=Decimal(10_000))
        api = runner(provider, model=ApiModel(name="x", pricing=DOLLAR_A_TOKEN), budget=budget)
        api.bind(context(tmp_path, run_id=f"run{number}"))
        if number < 1:
            run(api, requests(60))
        else:
            with pytest.raises(BudgetExceeded, match=r"budget\.sweep_max_usd"):
                run(api, requests(60))
        spent += 100 * len(provider.sent)
    assert 9_500 <= spent <= 10_000


def test_a_sweep_cap_outside_a_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match="sweep"):
        run(runner(ScriptedProvider(), budget=Budget(sweep_max_usd=Decimal(1))), requests(1))


# Samples, prompt caches, the response cache.


def test_the_first_sample_of_a_long_prompt_goes_ahead_and_the_others_follow_together() -> None:
    provider = ScriptedProvider(
        latency_s=0.1, held=lambda p, one: one.sample > 0 and len(p.sent) < 4, pricing_id="anthropic"
    )
    wanted = [request("a", sample, "long " * 2000) for sample in range(4)]
    outcomes = run(runner(provider, model=ApiModel(name="claude-sonnet-4-5")), wanted)
    assert len(outcomes.by_key) == 4
    assert provider.sent[0].sample == 0
    assert provider.ended_before == [0, 1, 1, 1]
    assert provider.asked_to_cache == [True] * 4


def test_short_prompts_single_samples_and_prices_without_a_discount_do_not_wait() -> None:
    short = [request("a", sample, "short") for sample in range(3)]
    single = [request(name, 0, f"long {name}" * 2000) for name in "abc"]
    for wanted, model in ((short, "gpt-4o"), (single, "gpt-4o"), (requests(1, 3, "x" * 9000), "gpt-4")):
        provider = ScriptedProvider(held=lambda p, _: len(p.sent) < 3)
        run(runner(provider, model=ApiModel(name=model)), wanted)
        assert provider.ended_before == [0, 0, 0]
        assert provider.asked_to_cache == [False] * 3


def test_answers_of_an_earlier_run_cost_nothing_and_are_counted(tmp_path: Path) -> None:
    first = ScriptedProvider()
    run(runner(first, response_cache=str(tmp_path)), requests(20, samples=2))
    assert len(first.sent) == 40
    second = ScriptedProvider()
    api = runner(second, response_cache=str(tmp_path))
    outcomes = run(api, requests(25, samples=2))
    assert len(second.sent) == 10
    hits = [o for _, o in outcomes if isinstance(o, Completion) and o.details.get("response_cache")]
    assert len(hits) == 40
    assert all(hit.cost_usd == 0 and hit.attempts == 0 and hit.usage == Usage() for hit in hits)
    assert len({hit.text for hit in hits}) == 40  # samples are not collapsed into one
    assert api.stats()["response_cache_hits"] == 40


def test_batch_mode_is_refused_where_the_provider_has_none() -> None:
    provider = ScriptedProvider(mode="batch")
    with pytest.raises(ConfigError, match=r"provider\.mode"):
        runner(provider).check()


def test_retries_count_as_attempts_and_back_off_only_where_asked() -> None:
    provider = ScriptedProvider(lambda r, n: RateLimited("slow down", retry_after_s=0.2) if n == 0 else None)
    outcomes = run(runner(provider, limits=Limits(start=1)), requests(1))
    (_, outcome), *_ = outcomes
    assert isinstance(outcome, Completion)
    assert outcome.attempts == 2


class Sampling(ScriptedProvider):
    """Takes up to three samples in a request, and gives two answers at most."""

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        return 3

    async def complete_samples(self, requests: Sequence[Request], model: ApiModel, **options: Any) -> list[Answer]:
        return [await self.complete(one, model, **options) for one in requests[:2]]


def test_fewer_answers_than_samples_are_kept_and_the_rest_is_asked_for() -> None:
    provider = Sampling(lambda r, n: TransientError("reset") if r.instance_id == "i2" and n == 0 else None)
    api = runner(provider)
    outcomes = run(api, requests(6, samples=5)).by_key
    assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
    assert len(outcomes) == 30
    assert api.stats()["requests_sent"] == 6 * 3 + 5  # 2, 2 and 1 answers for each; each sample of i2 fails once


def test_the_worst_case_of_several_samples_counts_the_output_of_each() -> None:
    provider = Sampling(tokens=lambda r: Usage(input_tokens=10, output_tokens=100))
    api = runner(provider, model=ApiModel(name="x", pricing=DOLLAR_A_TOKEN), budget=Budget(max_usd=Decimal(350)))
    with pytest.raises(BudgetExceeded):
        run(api, requests(1, samples=3))
    assert len(provider.sent) == 2  # in one request; with the third one it would have been too dear
