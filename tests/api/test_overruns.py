"""Caps on servers that bill more output than was requested, from their first or a later answer on."""

from __future__ import annotations

import asyncio
import os
import threading
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.counting import InputBounds
from swe_infer.api.endpoints import Endpoint
from swe_infer.api.limits import Limiter, Limits
from swe_infer.errors import BudgetExceeded
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Pricing, Prompt, Request, SamplingParameter, Usage
from tests.api.scripted import ScriptedProvider, context, requests
from tests.api.test_batches import FAST, QUICK
from tests.api.test_runner import Outcomes
from tests.support import commands
from tests.support.api_log import Exchange
from tests.support.api_server import ApiServer

OUTPUT = 200
IN_FLIGHT = 8
REQUEST = Decimal("0.00201")
"""Dollars for a request with the longest requested output, rounded up."""
PLAIN = Decoding(temperature=None, max_new_tokens=OUTPUT)


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback-0123456789")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))


def overruns(server: ApiServer, samples: int = 1) -> list[Exchange]:
    return [e for e in server.log.billed() if e.usage is not None and e.usage.output_tokens > OUTPUT * samples]


def runner(provider: OpenAIChat | OpenAIResponses, cap: Decimal, directory: Path) -> ApiRunner:
    parameters: tuple[SamplingParameter, ...] = ("n",) if isinstance(provider, OpenAIChat) else ()
    api = ApiRunner(
        model=ApiModel(name="gpt-4o", parameters=parameters),
        provider=provider,
        decoding=PLAIN,
        budget=Budget(max_usd=cap),
        retry=FAST,
        batches=QUICK,
        limits=Limits(start=provider.max_concurrency),
    )
    api.check()
    api.bind(context(directory))
    return api


def spend(
    provider: OpenAIChat | OpenAIResponses,
    cap: Decimal,
    directory: Path,
    *,
    count: int,
    samples: int = 1,
) -> bool:
    """Whether a run was refused a request under the cap."""
    api = runner(provider, cap, directory)
    try:
        api.generate(requests(count, samples=samples, decoding=PLAIN), Outcomes(), threading.Event())
    except BudgetExceeded:
        return True
    return False


def provider_of(mode: str, server: ApiServer, in_flight: int = IN_FLIGHT) -> OpenAIChat | OpenAIResponses:
    if mode == "background":
        return OpenAIResponses(base_url=server.openai_url, background=True, max_concurrency=in_flight)
    return OpenAIChat(base_url=server.openai_url, max_concurrency=in_flight)


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.full), 20])
@pytest.mark.parametrize(("mode", "samples"), [("live", 1), ("live", 3), ("background", 1)])
def test_a_cap_that_covers_what_is_in_flight_at_the_first_overrun_is_not_passed(
    mode: str, samples: int, first: int, tmp_path: Path
) -> None:
    cap = 100 * samples * REQUEST  # what is in flight at the first overrun costs 80 requests
    with ApiServer(latency_s=0.02, batch_delay_s=0.02, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.overruns_from = first
        assert spend(provider_of(mode, server), cap, tmp_path, count=150, samples=samples)
        assert Decimal("0.8") * cap <= server.log.cost_usd() <= cap


@pytest.mark.parametrize("in_flight", [1, IN_FLIGHT])
@pytest.mark.parametrize(
    ("mode", "added"),
    [("live", 2_000), pytest.param("live", 50_000, marks=pytest.mark.full), ("background", 20_000)],
)
def test_a_cap_holds_if_the_server_bills_input_of_its_own(
    mode: str, added: int, in_flight: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cap = 10 * (REQUEST + added * Decimal("0.0000025"))
    with ApiServer(latency_s=0.02, batch_delay_s=0.02, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.added_input = added
        assert spend(provider_of(mode, server, in_flight), cap, tmp_path, count=150)
        assert Decimal("0.7") * cap <= server.log.cost_usd() <= cap
    assert sum("tokens of input for a prompt of at most" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("count", [1, IN_FLIGHT])
def test_a_cap_holds_if_a_gateway_writes_to_the_cache_unasked(count: int, tmp_path: Path) -> None:
    # docs.litellm.ai/docs/tutorials/prompt_caching: cache_control_injection_points
    price = Pricing(input_per_mtok=Decimal(1), output_per_mtok=Decimal(1), cache_write_per_mtok=Decimal(2))
    written = Usage(60, cache_write_tokens=60, output_tokens=1)
    provider = ScriptedProvider(tokens=lambda one: written, latency_s=0.005, max_concurrency=count)
    cap = 30 * Decimal("0.000121")
    api = ApiRunner(
        model=ApiModel(name="m", pricing=price, max_output_tokens=1),
        provider=provider,
        decoding=Decoding(max_new_tokens=1),
        budget=Budget(max_usd=cap),
        retry=FAST,
        limits=Limits(start=count),
    )
    api.bind(context(tmp_path))
    outcomes = Outcomes()
    with pytest.raises(BudgetExceeded):
        api.generate(requests(60, decoding=Decoding(max_new_tokens=1)), outcomes, threading.Event())
    assert Decimal("0.8") * cap <= sum(o.cost_usd or 0 for _, o in outcomes if isinstance(o, Completion)) <= cap


def test_a_tokenizer_that_counts_less_than_is_billed_does_not_bound_prices() -> None:
    class Exact:
        name, exact = "by hand", True

        def __call__(self, prompt: Prompt) -> int:
            return 10

    async def pause(seconds: float) -> bool:
        return True

    async def scenario() -> None:
        endpoint = Endpoint(ScriptedProvider(), ApiModel(name="gpt-4o"), None, Limiter(Limits(), 1))
        bounds, one = InputBounds(Exact(), pause), requests(1, text="fix " * 500)[0]
        in_bytes = bounds.byte_bound(one, endpoint)
        tight = await bounds.tightest(one, endpoint, in_bytes)
        assert tight < 200 < in_bytes
        bounds.observe(endpoint, Usage(tight), in_bytes, tight)
        assert bounds.can_be_tighter(endpoint)
        bounds.observe(endpoint, Usage(tight + 1), in_bytes, tight)
        assert not bounds.can_be_tighter(endpoint)
        assert await bounds.tightest(one, endpoint, in_bytes) == in_bytes

    asyncio.run(scenario())


def test_a_request_that_waits_for_the_budget_is_not_sent_at_an_outdated_bound(tmp_path: Path) -> None:
    # Twelve requests fit together, after the first one. The first of them to be answered is billed ten times its
    # bound. The request that has waited for all of them would be, too.
    def held(provider: ScriptedProvider, one: Request) -> bool:
        ended = len(provider.sent) - provider.in_flight
        return {"i0": False, "i1": len(provider.sent) < 13}.get(one.instance_id, ended < 2)

    provider = ScriptedProvider(
        held=held,
        tokens=lambda one: Usage(1, output_tokens=1000 if one.instance_id in ("i1", "i13") else 10),
    )
    dollar = Pricing(input_per_mtok=Decimal(0), output_per_mtok=Decimal(1_000_000))
    model = ApiModel(name="m", pricing=dollar, max_output_tokens=100)
    api = ApiRunner(
        model=model,
        provider=provider,
        decoding=Decoding(max_new_tokens=100),
        budget=Budget(max_usd=Decimal(1250)),
        retry=FAST,
        limits=Limits(start=64),
    )
    api.bind(context(tmp_path))
    outcomes = Outcomes()
    with pytest.raises(BudgetExceeded):
        api.generate(requests(14), outcomes, threading.Event())
    assert sum(o.cost_usd or 0 for _, o in outcomes if isinstance(o, Completion)) == 10 + 1000 + 11 * 10
    assert "i13" not in [one.instance_id for one in provider.sent]


@pytest.mark.parametrize("mode", ["live", "background"])
def test_after_an_answer_within_its_bound_requests_go_together(mode: str, tmp_path: Path) -> None:
    many = 12
    with ApiServer(latency_s=0.3, batch_delay_s=0.3, answer=lambda _: "x" * 4 * 10) as server:
        assert not spend(provider_of(mode, server, many), 500 * REQUEST, tmp_path, count=2 * many + 1)
        peak = server.batches.peak_running if mode == "background" else server.peak_in_flight
        assert many // 2 <= peak <= many


@pytest.mark.parametrize("mode", ["live", "background"])
def test_nothing_is_sent_after_an_overrun_that_uses_up_a_cap(mode: str, tmp_path: Path) -> None:
    cap = 20 * REQUEST
    with ApiServer(latency_s=0.02, batch_delay_s=0.02, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.overruns_from = 20
        assert spend(provider_of(mode, server), cap, tmp_path, count=150)
        late = overruns(server)
        assert 1 <= len(late) <= IN_FLIGHT
        assert server.log.cost_usd() <= cap + 9 * REQUEST * len(late)


@pytest.mark.parametrize("first", [1, 4])
def test_a_cap_holds_for_batches_that_are_submitted_after_an_overrun(first: int, tmp_path: Path) -> None:
    cap = 50 * REQUEST  # a request in a batch costs half
    with ApiServer(batch_delay_s=0.02, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.overruns_from = first
        provider = OpenAIChat(base_url=server.openai_url, mode="batch")
        api = runner(provider, cap, tmp_path)
        early, late = requests(5, decoding=PLAIN), requests(100, text="mend", decoding=PLAIN)
        outcomes = Outcomes()
        with pytest.raises(BudgetExceeded):
            api.generate_rounds([early, late], outcomes, threading.Event())
        assert len(overruns(server)) == len(server.log.billed()) - first + 1
        assert Decimal("0.8") * cap <= server.log.cost_usd() <= cap
        assert sum(o.cost_usd or 0 for _, o in outcomes if isinstance(o, Completion)) == server.log.cost_usd()


def test_a_batch_that_was_submitted_before_an_overrun_is_all_that_can_pass_a_cap(tmp_path: Path) -> None:
    cap = 20 * REQUEST
    with ApiServer(batch_delay_s=0.02, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.overruns_from = 1
        for _ in "12":  # the second command finds the cap used up
            api = runner(OpenAIChat(base_url=server.openai_url, mode="batch"), cap, tmp_path)
            with pytest.raises(BudgetExceeded):
                api.generate(requests(150, decoding=PLAIN), Outcomes(), threading.Event())
        assert len(server.batches.submitted()) == 1
        assert cap < server.log.cost_usd() <= 10 * cap


POINT = """
import sys, threading
from decimal import Decimal
from pathlib import Path
from swe_infer.errors import BudgetExceeded
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget
from tests.api.scripted import ScriptedProvider, context, requests
from tests.api.test_overruns import IN_FLIGHT, PLAIN
url, directory, name, cap = sys.argv[1:]
provider = OpenAIChat(base_url=url, max_concurrency=IN_FLIGHT)
api = ApiRunner(
    model=ApiModel(name="gpt-4o"), provider=provider, decoding=PLAIN, budget=Budget(sweep_max_usd=Decimal(cap))
)
api.check()
api.bind(context(Path(directory), run_id=name))
try:
    api.generate(requests(300, decoding=PLAIN), lambda request, outcome: None, threading.Event())
except BudgetExceeded as error:
    print(error)
"""


@pytest.mark.parametrize(
    "first", [pytest.param(1, marks=pytest.mark.full), 2, pytest.param(20, marks=pytest.mark.full)]
)
def test_two_processes_under_one_cap_pass_it_by_what_they_have_in_flight_at_most(first: int, tmp_path: Path) -> None:
    cap = 200 * REQUEST
    with ApiServer(latency_s=0.05, answer=lambda _: "x" * 4 * 10, prompt_cache=False) as server:
        server.maker.overruns_from = first
        points = [
            commands.start(
                "-c", POINT, server.openai_url, str(tmp_path), name, str(cap), cwd=Path.cwd(), env=os.environ
            )
            for name in ("a", "b")
        ]
        said = [point.communicate(timeout=90)[0] for point in points]
        assert all("budget.sweep_max_usd" in text for text in said)
        assert Decimal("0.8") * cap <= server.log.cost_usd() <= cap + 9 * REQUEST * IN_FLIGHT
