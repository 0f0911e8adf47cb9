"""How much of a cap is used: counted prompts, smaller requests that pass one that waits, and what is passed over."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.budget import CostBudget, Reservation
from swe_infer.api.ledger import Ledger, LedgerEntry
from swe_infer.api.limits import Halted
from swe_infer.errors import BudgetExceeded
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import InputCount, Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Outcome, Request
from tests.api.scripted import context, request, requests
from tests.api.test_runner import Outcomes
from tests.support.api_server import ApiServer, Exchange, Rates

VENDORS = ("openai", "openai_responses", "anthropic")
RATES = {
    "gpt-4o": Rates(Decimal("2.5"), Decimal(10), Decimal("1.25")),
    "claude-sonnet-4-5": Rates(Decimal(3), Decimal(15), Decimal("0.3"), Decimal("3.75")),
}
OUTPUT = 200


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-loopback-0123456789")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))


class ImpatientCounts(AnthropicMessages):
    """Waits a second for a count, and longer for an answer."""

    async def count_input(self, request: Request, model: ApiModel, *, timeout_s: float) -> InputCount:
        return await super().count_input(request, model, timeout_s=1.0)


def runner(
    server: ApiServer,
    vendor: str,
    cap: Decimal,
    directory: Path,
    *,
    concurrency: int = 64,
    mode: str = "live",
    timeout_s: float = 60.0,
) -> ApiRunner:
    settings = {"max_concurrency": concurrency, "mode": mode, "timeout_s": timeout_s}
    provider: Provider
    if vendor == "anthropic":
        provider = AnthropicMessages(base_url=server.anthropic_url, **settings)  # type: ignore[arg-type]
        model = ApiModel(name="claude-sonnet-4-5")
    elif vendor == "openai_responses":
        provider = OpenAIResponses(base_url=server.openai_url, **settings)  # type: ignore[arg-type]
        model = ApiModel(name="gpt-4o", parameters=("temperature", "top_p"))
    else:
        provider, model = OpenAIChat(base_url=server.openai_url, **settings), ApiModel(name="gpt-4o")  # type: ignore[arg-type]
    api = ApiRunner(
        model=model, provider=provider, decoding=Decoding(max_new_tokens=OUTPUT), budget=Budget(max_usd=cap)
    )
    api.check()
    api.bind(context(directory))
    return api


def spend(api: ApiRunner, wanted: list[Request]) -> tuple[dict[tuple[str, int], Outcome], BudgetExceeded | None]:
    outcomes = Outcomes()
    try:
        api.generate(wanted, outcomes, threading.Event())
    except BudgetExceeded as error:
        return outcomes.by_key, error
    return outcomes.by_key, None


def price(tokens: int, output: int = OUTPUT, model: str = "gpt-4o") -> Decimal:
    rates = RATES[model]
    return (tokens * rates.input + output * rates.output) / 1_000_000


def counts(server: ApiServer) -> list[Exchange]:
    return [e for e in server.log.exchanges if e.path.endswith(("/input_tokens", "/count_tokens"))]


def sized(characters: int, name: str = "a") -> Request:
    return request(name, 0, (f"{name} " + "word " * characters)[:characters], Decoding(max_new_tokens=OUTPUT))


# How much of a cap is spent.


@pytest.mark.parametrize(
    "vendor", [pytest.param(vendor, marks=[pytest.mark.full] * (vendor != "openai")) for vendor in VENDORS]
)
def test_a_cap_that_ten_worst_cases_fit_into_is_spent_to_nine_tenths_and_never_passed(
    vendor: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chance = random.Random(vendor)
    for turn in range(3 if request.config.getoption("full") else 1):
        answers: dict[str, str] = {}

        def answer(prompt: str, chance: random.Random = chance, answers: dict[str, str] = answers) -> str:
            return answers.setdefault(prompt, "x" * chance.randrange(1, 4 * OUTPUT))

        with ApiServer(latency_s=(0.0, 0.02), answer=answer, prompt_cache=False) as server:
            sizes = [int(chance.lognormvariate(9, 1)) + 20 for _ in range(120)]
            model = "claude-sonnet-4-5" if vendor == "anthropic" else "gpt-4o"
            worst = [price(size // 4 + 4, model=model) for size in sizes]
            cap = max(10 * max(worst), sum(worst, Decimal(0)) / 20)
            api = runner(server, vendor, cap, tmp_path / str(turn), concurrency=chance.choice([1, 5, 64]))
            outcomes, error = spend(api, [sized(size, f"i{n}") for n, size in enumerate(sizes)])
            bill = server.log.cost_usd()
            assert bill == sum(o.cost_usd or 0 for o in outcomes.values() if isinstance(o, Completion))
            assert bill <= cap
            assert error is None or bill >= Decimal("0.9") * cap
            assert (error is None) == (len(outcomes) == len(sizes))


def test_a_request_that_cannot_fit_is_skipped_and_sent_once_the_budget_is_raised(
    tmp_path: Path,
) -> None:
    wanted = [sized(400_000, "huge"), *(sized(2000, f"i{n}") for n in range(6)), sized(300_000, "large")]
    with ApiServer(latency_s=0.01) as server:
        outcomes, error = spend(runner(server, "openai", Decimal("0.05"), tmp_path), wanted)
        assert outcomes.keys() == {(f"i{n}", 0) for n in range(6)}
        assert error is not None
        assert error.exit_status == 3
        bill = server.log.cost_usd()
        # The smallest worst case of those that are left, by the vendor's count with its allowance.
        assert f"${bill:.4f} is spent, and the next request can cost up to ${price(75_003 + 16):.4f}" in str(error)
        left = [r for r in wanted if r.key not in outcomes]
        outcomes, error = spend(runner(server, "openai", Decimal(1), tmp_path), left)
        assert error is None
        assert outcomes.keys() == {("huge", 0), ("large", 0)}
        assert set(server.log.answers_by_prompt().values()) == {1}


def test_a_run_ends_at_once_if_the_shortest_prompt_does_not_fit(tmp_path: Path) -> None:
    read = 0

    def many() -> Iterator[Request]:
        nonlocal read
        for read in range(100_000):
            yield sized(100, f"i{read}")

    with ApiServer() as server:
        api = runner(server, "openai", price(0), tmp_path, concurrency=4)
        with pytest.raises(BudgetExceeded):
            api.generate(many(), Outcomes(), threading.Event())
        assert server.log.asked() == []
        assert read < 100


def test_fewer_samples_share_a_request_if_all_do_not_fit(tmp_path: Path) -> None:
    decoding = Decoding(max_new_tokens=OUTPUT, temperature=1.0)
    with ApiServer(answer=lambda _: "x" * 4 * OUTPUT) as server:
        model = ApiModel(name="gpt-4o", parameters=("temperature", "n"))
        cap = 5 * price(20)
        api = ApiRunner(
            model=model,
            provider=OpenAIChat(base_url=server.openai_url),
            decoding=decoding,
            budget=Budget(max_usd=cap),
        )
        api.bind(context(tmp_path))
        outcomes, error = spend(api, requests(1, samples=8, decoding=decoding))
        assert error is not None
        assert Decimal("0.8") * cap <= server.log.cost_usd() <= cap
        assert len(outcomes) >= 4
        assert server.log.asked()[0].body["n"] == 4


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_a_batch_skips_requests_that_do_not_fit_and_includes_smaller_ones(vendor: str, tmp_path: Path) -> None:
    model = "claude-sonnet-4-5" if vendor == "anthropic" else "gpt-4o"
    cap = 12 * price(1000, model=model) / 2
    with ApiServer(batch_delay_s=0.01) as server:
        api = runner(server, vendor, cap, tmp_path, mode="batch")
        api.batches = type(api.batches)(first_poll_s=0.02, max_poll_s=0.05, settle_s=0.3)
        wanted = [sized(400_000, "huge"), *(sized(3900, f"i{n}") for n in range(40))]
        outcomes, error = spend(api, wanted)
        assert error is not None
        assert ("huge", 0) not in outcomes
        bill = server.log.cost_usd()
        assert Decimal("0.9") * cap <= bill <= cap
        assert bill == sum(o.cost_usd or 0 for o in outcomes.values() if isinstance(o, Completion))
        # With the bounds by bytes three would fit into the first batch.
        (first, *_) = [e.batch_id for e in server.log.asked()]
        assert sum(e.batch_id == first for e in server.log.asked()) >= 11
        assert set(Counter(e.prompt for e in counts(server)).values()) <= {1}


# Counting endpoints.


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_prompt_is_counted_once_and_only_if_its_bytes_do_not_fit(vendor: str, tmp_path: Path) -> None:
    wanted = [r for n in range(5) for r in requests(1, samples=3, text=f"{n} " + "word " * 700)]
    wanted = [
        Request(f"i{n // 3}", r.sample, r.prompt, Decoding(max_new_tokens=OUTPUT)) for n, r in enumerate(wanted)
    ]
    with ApiServer(latency_s=0.01, prompt_cache=False) as server:
        outcomes, error = spend(runner(server, vendor, Decimal(5), tmp_path / "ample"), wanted)
        assert (len(outcomes), error) == (15, None)
        assert counts(server) == []
        outcomes, error = spend(runner(server, vendor, Decimal("0.03"), tmp_path / "tight"), wanted)
        asked = Counter(e.prompt for e in counts(server))
        assert set(asked.values()) == {1}
        assert len(asked) <= 5


@pytest.mark.parametrize("stated", [None, 0, -5, True, "12", 1.5, 10**12, [], 3])
def test_an_implausible_count_is_not_used_and_not_requested_again(
    stated: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with ApiServer(count=None if stated is None else lambda _: stated) as server:
        cap = price(4100)  # the bytes of one prompt fit, those of the other two never do
        wanted = [sized(9000, "b"), sized(4000, "a"), sized(9000, "c")]
        outcomes, error = spend(runner(server, "openai", cap, tmp_path, concurrency=1), wanted)
        assert outcomes.keys() == {("a", 0)}
        assert error is not None
        assert server.log.cost_usd() <= cap
        assert len(counts(server)) == 1
        assert sum("token counts are not used" in r.message for r in caplog.records) == 1
        assert not any(r.levelno >= logging.WARNING for r in caplog.records)


@pytest.mark.parametrize("fault", ["hang", "reset", "html_page", "server_error", "auth", "cut"])
def test_a_counting_endpoint_that_fails_costs_no_request(fault: str, tmp_path: Path) -> None:
    with ApiServer() as server:
        server.script_elsewhere(fault)  # type: ignore[arg-type]
        api = runner(server, "anthropic", price(4100, model="claude-sonnet-4-5"), tmp_path)
        api.provider = ImpatientCounts(base_url=server.anthropic_url) if fault == "hang" else api.provider
        outcomes, error = spend(api, [sized(9000, "b"), sized(4000, "a")])
        assert outcomes.keys() == {("a", 0)}
        assert error is not None
        assert len(counts(server)) == 1 or (fault == "hang" and not counts(server))  # it did not arrive in time


def test_a_counting_endpoint_that_is_busy_is_asked_again(tmp_path: Path) -> None:
    with ApiServer() as server:
        server.script_elsewhere("rate_limit_ms", "overloaded")
        outcomes, error = spend(runner(server, "openai", price(4100), tmp_path), [sized(9000, "b")])
        assert (len(outcomes), error) == (1, None)
        assert len(counts(server)) == 3


def test_counts_below_the_billed_input_are_not_used_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cap = price(5000)
    with ApiServer(count=lambda tokens: tokens - 100, answer=lambda _: "x") as server:
        wanted = [sized(6000, f"i{n}") for n in range(8)]
        outcomes, error = spend(runner(server, "openai", cap, tmp_path, concurrency=1), wanted)
        assert error is not None
        assert "bytes bound the price instead" in caplog.text
        assert server.log.cost_usd() <= cap
        assert len(counts(server)) < len(outcomes) + 2


def test_a_stop_reaches_a_run_that_waits_for_a_count(tmp_path: Path) -> None:
    stop = threading.Event()
    with ApiServer() as server:
        for _ in range(20):
            server.script_elsewhere("hang")

        def stop_once_asked() -> None:
            while not counts(server):
                time.sleep(0.01)
            stop.set()

        threading.Thread(target=stop_once_asked, daemon=True).start()
        outcomes = Outcomes()
        api = runner(server, "openai", price(4100), tmp_path, timeout_s=600)
        api.generate([sized(9000, f"i{n}") for n in range(20)], outcomes, stop)
        assert outcomes == []
        assert server.log.asked() == []


def test_a_stop_reaches_a_run_that_waits_for_a_cap_that_another_process_holds(tmp_path: Path) -> None:
    stop = threading.Event()
    cap = price(4100)
    with ApiServer() as server:
        api = runner(server, "openai", cap, tmp_path)
        other = Ledger(tmp_path / "ledger.sqlite", cap, "other")
        assert isinstance(other.reserve(cap), LedgerEntry)
        threading.Timer(0.5, stop.set).start()
        outcomes = Outcomes()
        api.generate([sized(2000, f"i{n}") for n in range(20)], outcomes, stop)
        assert outcomes == []
        assert server.log.asked() == []
        # Nothing is left held or charged by the run that was stopped.
        other.close()
        assert Ledger(tmp_path / "ledger.sqlite", 2 * cap, "look").spent_usd == cap


# The queue.


def purse_of(cap: int) -> CostBudget:
    return CostBudget([("budget.max_usd", Ledger(None, Decimal(cap), "run"))])


async def settled() -> None:
    """Let every task go as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_smaller_request_overtakes_a_waiting_one_without_using_its_share() -> None:
    async def scenario() -> None:
        cost_budget = purse_of(10)
        first = await cost_budget.reserve(Decimal(8))
        large = asyncio.create_task(cost_budget.reserve(Decimal(6)))
        await settled()
        small = asyncio.create_task(cost_budget.reserve(Decimal(1)))
        await settled()
        assert small.done()
        cost_budget.charge(small.result(), Decimal(1))
        assert not large.done()
        # Both fit once the first one has settled; the older and larger one goes first, and the other has to wait.
        second = asyncio.create_task(cost_budget.reserve(Decimal("2.5")))
        await settled()
        cost_budget.charge(first, Decimal(2))
        await settled()
        assert large.done()
        assert not second.done()
        cost_budget.charge(await large, Decimal(3))
        await second

    asyncio.run(scenario())


def test_small_requests_do_not_starve_a_large_one() -> None:
    async def scenario() -> int:
        cost_budget = purse_of(1000)
        held = [await cost_budget.reserve(Decimal(10)) for _ in range(99)]
        large = asyncio.create_task(cost_budget.reserve(Decimal(100)))
        await settled()
        passed = 0
        while not large.done():
            small = asyncio.create_task(cost_budget.reserve(Decimal(10)))
            await settled()
            passed += small.done()
            cost_budget.charge(held.pop(0), Decimal("0.01"))
            await settled()
            if small.done():
                held.append(small.result())
            else:
                small.cancel()
                await asyncio.gather(small, return_exceptions=True)
        return passed

    assert 1 <= asyncio.run(scenario()) <= 16


def test_a_request_that_cannot_fit_is_refused_while_others_wait() -> None:
    async def scenario() -> None:
        cost_budget = purse_of(10)
        first = await cost_budget.reserve(Decimal(8))
        waits = asyncio.create_task(cost_budget.reserve(Decimal(5)))
        await settled()
        with pytest.raises(BudgetExceeded) as refused:
            await cost_budget.reserve(Decimal(11))
        assert refused.value.usd == 11
        cost_budget.charge(first, Decimal(6))
        with pytest.raises(BudgetExceeded):
            await waits
        assert isinstance(await cost_budget.reserve(Decimal(4)), Reservation)

    asyncio.run(scenario())


@pytest.mark.parametrize("before", ["", "c", "c.", "s", "s.", "c.s", "c.s.", "s.c"])
def test_cancelling_a_waiting_request_leaves_nothing_reserved(before: str) -> None:
    """``c``: its count comes; ``s``: the request in flight settles; ``.``: every task goes as far as it can."""

    async def scenario() -> None:
        ledger = Ledger(None, Decimal(10), "run")
        cost_budget = CostBudget([("budget.max_usd", ledger)])
        first = await cost_budget.reserve(Decimal(8))
        counted = asyncio.Event()

        async def tighter() -> Decimal:
            await counted.wait()
            return Decimal(5)

        cancelled = asyncio.create_task(cost_budget.reserve(Decimal(9), tighter))
        behind = asyncio.create_task(cost_budget.reserve(Decimal("4.5")))
        await settled()
        for step in before:
            if step == "c":
                counted.set()
            elif step == "s":
                cost_budget.charge(first, Decimal(1))
            else:
                await settled()
        cancelled.cancel()
        (outcome,) = await asyncio.gather(cancelled, return_exceptions=True)
        if isinstance(outcome, Reservation):  # it was faster
            cost_budget.charge(outcome, Decimal(0))
        if "s" not in before:
            cost_budget.charge(first, Decimal(1))
        await behind
        remaining = ledger.remaining()
        assert (cost_budget.waiting, remaining.unspent - remaining.available) == (0, Decimal("4.5"))

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_halt_ends_every_wait() -> None:
    async def scenario() -> None:
        cost_budget = purse_of(10)
        first = await cost_budget.reserve(Decimal(8))
        waiting = [asyncio.create_task(cost_budget.reserve(Decimal(5))) for _ in range(3)]
        await settled()
        cost_budget.halt()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [Halted] * 3
        cost_budget.charge(first, Decimal(1))
        assert cost_budget.waiting == 0

    asyncio.run(scenario())
