"""A dry run's figures: by hand, and against what the same run then costs."""

from __future__ import annotations

import threading
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.estimate import Planned, estimate
from swe_infer.api.limits import Limits
from swe_infer.api.pricing import price_table_for
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.runners.base import PendingSamples
from swe_infer.types import ApiModel, Completion, Decoding, Estimate, Range
from tests.api.scripted import ScriptedProvider, counted, request, requests
from tests.api.test_runner import Outcomes
from tests.support.api_server import ApiServer


def simple(planned: list[Planned], limits: Limits | None = None, *, exact: bool = True) -> Estimate:
    return estimate(
        planned,
        tokens="by hand",
        exact=exact,
        max_new_tokens=1000,
        prices=price_table_for(ApiModel(name="claude-sonnet-4-5"), "anthropic"),
        batch_prices=price_table_for(ApiModel(name="claude-sonnet-4-5"), "anthropic", batch=True),
        max_concurrency=10,
        limits=limits or Limits(),
        prompt_caching="auto",
    )


def test_dollars_are_live_with_caching_and_in_batch_from_the_shortest_output_to_the_longest() -> None:
    found = simple([Planned(10_000, 3), Planned(500, 1)])
    assert (found.instances, found.requests) == (2, 4)
    assert found.input_tokens == Range(Decimal(30_500), Decimal(30_500))
    output = Decimal("0.000015") * 4
    assert found.live_usd == Range(Decimal("0.0915") + output, Decimal("0.0915") + 1000 * output)
    cached = Decimal("0.0375") + 2 * Decimal("0.003") + Decimal("0.0015")
    assert found.cached_usd == Range(cached + output, cached + 1000 * output)
    assert found.batch_usd == Range((Decimal("0.0915") + output) / 2, (Decimal("0.0915") + 1000 * output) / 2)


def test_writes_for_an_hour_are_estimated_at_their_own_price() -> None:
    for ttl, factor in (("5m", Decimal("1.25")), ("1h", Decimal(2))):
        provider = AnthropicMessages(cache_ttl="1h" if ttl == "1h" else "5m")
        decoding = Decoding(max_new_tokens=10)
        api = ApiRunner(model=ApiModel(name="claude-sonnet-4-5"), provider=provider, decoding=decoding)
        found = api.estimate(counted(request("a", s, "x" * 33_000, decoding) for s in range(4)))
        assert found.cached_usd is not None
        tokens = found.input_tokens.high / 4
        assert found.cached_usd.high * 10**6 == tokens * 3 * (factor + 3 * Decimal("0.1")) + 4 * 10 * 15


def test_an_estimated_count_widens_the_bounds_by_its_error() -> None:
    found = simple([Planned(10_000, 1)], exact=False)
    assert found.input_tokens == Range(Decimal(8_500), Decimal(11_000))
    assert not found.exact


@pytest.mark.parametrize(
    ("limits", "decides", "at_least"),
    [
        (Limits(), "concurrency", 400),
        (Limits(requests_per_minute=6), "requests per minute", 1000),
        (Limits(tokens_per_minute=6_000), "tokens per minute", 11_000),
        (Limits(output_tokens_per_minute=600), "tokens per minute", 10_000),
    ],
)
def test_time_follows_the_tightest_limit(limits: Limits, decides: str, at_least: int) -> None:
    found = simple([Planned(10_000, 1)] * 100, limits)
    assert found.limited_by == decides
    assert found.seconds is not None
    assert at_least <= found.seconds.high <= 1.2 * at_least + 200
    assert found.seconds.low <= found.seconds.high


def test_estimates_of_a_sweep_add_up_and_an_unknown_price_stays_unknown() -> None:
    one = simple([Planned(10_000, 3)])
    assert one.live_usd is not None
    both = one + one
    assert both.requests == 6
    assert both.live_usd == one.live_usd + one.live_usd
    api = ApiRunner(
        model=ApiModel(name="x", pricing="unknown"), provider=ScriptedProvider(), decoding=Decoding(max_new_tokens=10)
    )
    unknown = api.estimate(counted(requests(3)))
    assert unknown.live_usd is None
    assert (one + unknown).live_usd is None
    assert unknown.tokens == "characters / 3.3"
    assert (one + unknown + unknown + one).tokens == "by hand, characters / 3.3", "each way of counting once"


def test_nothing_to_do_takes_no_time_and_no_money() -> None:
    found = simple([])
    assert found.seconds == Range(Decimal(0), Decimal(0))
    assert found.live_usd == Range(Decimal(0), Decimal(0))


def test_what_the_response_cache_holds_is_not_paid_for(tmp_path: Path) -> None:
    provider = ScriptedProvider()
    decoding = Decoding(max_new_tokens=100)
    api = ApiRunner(model=ApiModel(name="gpt-4o"), provider=provider, decoding=decoding, response_cache=str(tmp_path))
    api.generate(requests(5, samples=2), Outcomes(), threading.Event())
    found = api.estimate(counted(requests(8, samples=2)))
    assert (found.instances, found.requests, found.response_cache_hits) == (3, 6, 10)
    assert len(provider.sent) == 10


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_what_a_run_costs_lies_within_the_bounds_of_its_estimate(
    vendor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-loopback")
    text = "".join(f"{n} self.value_{n} = compute({n}, other)\n" for n in range(200))
    decoding = Decoding(max_new_tokens=64)
    asked = [request(f"i{n}", s, f"{n}\n{text}", decoding) for n in range(6) for s in range(3)]
    with ApiServer(latency_s=0.01) as server:
        api = (
            ApiRunner(
                model=ApiModel(name="gpt-4o"), provider=OpenAIChat(base_url=server.openai_url), decoding=decoding
            )
            if vendor == "openai"
            else ApiRunner(
                model=ApiModel(name="claude-sonnet-4-5"),
                provider=AnthropicMessages(base_url=server.url),
                decoding=decoding,
            )
        )
        found = api.estimate(counted(asked))
        assert server.log.asked() == []
        outcomes = Outcomes()
        api.generate(asked, outcomes, threading.Event())
        cost = sum((o.cost_usd or Decimal(0) for _, o in outcomes if isinstance(o, Completion)), Decimal(0))
        # The server's tokens are four characters, the estimate's 3.3: that is what its lower bound allows for.
        assert found.cached_usd is not None
        assert found.live_usd is not None
        assert found.cached_usd.low * Decimal("0.95") <= cost <= found.cached_usd.high < found.live_usd.high


def test_samples_that_share_a_request_pay_for_the_prompt_once() -> None:
    model = ApiModel(name="gpt-4o", parameters=("temperature", "n"))
    decoding = Decoding(max_new_tokens=100)
    api = ApiRunner(model=model, provider=OpenAIChat(), decoding=decoding)
    found = api.estimate(counted(request("a", s, "x" * 33_000, decoding) for s in range(4)))
    assert found.requests == 1
    assert found.output_tokens == Range(Decimal(4), Decimal(400))
    assert found.cached_usd is not None
    assert found.live_usd is not None
    assert found.cached_usd.high == Decimal(11_001) * Decimal("0.0000025") + 400 * Decimal("0.00001")
    assert found.live_usd.high == 4 * Decimal(11_001) * Decimal("0.0000025") + 400 * Decimal("0.00001")

    one = PendingSamples("a", request("a", 0, "x" * 33_000, decoding).prompt, decoding, 4)
    turns = api.estimate([replace(one, further_tokens=1_000, separate=True)])
    assert turns.requests == 4
    assert turns.input_tokens.high > 4 * 11_000
    assert (
        turns.cached_usd
        == turns.live_usd
        == Range(found.live_usd.low, found.live_usd.high)
        + Range(4 * Decimal(850) * Decimal("0.0000025"), 4 * Decimal(1_100) * Decimal("0.0000025"))
    )
    batched = ApiRunner(model=model, provider=OpenAIChat(mode="batch"), decoding=decoding).estimate([one])
    assert (batched.requests, batched.cached_usd) == (4, found.cached_usd)
    assert batched.input_tokens.high == 4 * found.input_tokens.high
