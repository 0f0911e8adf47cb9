"""The whole chain through the real SDKs and real sockets, for each of the providers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.ledger import Ledger
from swe_infer.api.limits import Limits
from swe_infer.api.pricing import price_table_for
from swe_infer.api.retry import Retry
from swe_infer.errors import AuthenticationFailed, BudgetExceeded, ModelNotFound, QuotaExhausted
from swe_infer.providers.anthropic_bedrock import AnthropicBedrock
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.anthropic_text import AnthropicText
from swe_infer.providers.anthropic_vertex import AnthropicVertex
from swe_infer.providers.azure_openai import AzureOpenAI
from swe_infer.providers.base import Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Outcome, Request, Skip, Usage
from tests.api.scripted import context, requests
from tests.api.test_runner import Outcomes
from tests.support.api_server import ApiServer, Fault, FaultKind

CLOUDS = ("AWS_BEARER_TOKEN_BEDROCK", "GOOGLE_OAUTH_ACCESS_TOKEN", "ANTHROPIC_VERTEX_PROJECT_ID")
FAST = Retry(backoff_s=0.02, max_backoff_s=0.1, tries=30)
TEXT = "Fix this.\n[start of a/b.py]\n1 import os\n[end of a/b.py]\n" + "padding " * 100

Made = tuple[Provider, ApiModel]
MAKERS: dict[str, Callable[[ApiServer], Made]] = {
    "openai": lambda s: (OpenAIChat(base_url=s.openai_url, timeout_s=5), ApiModel(name="gpt-4o")),
    "azure_openai": lambda s: (AzureOpenAI(base_url=s.azure_url, timeout_s=5), ApiModel(name="gpt-4o")),
    "openai_compatible": lambda s: (
        OpenAIChat(name="openai_compatible", base_url=s.openai_url, api_key_env=None, timeout_s=5),
        ApiModel(name="gpt-4o"),
    ),
    "openai_responses": lambda s: (
        OpenAIResponses(base_url=s.openai_url, timeout_s=5),
        ApiModel(name="gpt-4o", parameters=("temperature", "top_p")),
    ),
    "anthropic": lambda s: (
        AnthropicMessages(base_url=s.anthropic_url, timeout_s=5),
        ApiModel(name="claude-sonnet-4-5"),
    ),
    "bedrock": lambda s: (
        AnthropicBedrock(base_url=s.bedrock_url, timeout_s=5),
        ApiModel(name="us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    ),
    "vertex": lambda s: (AnthropicVertex(base_url=s.vertex_url, timeout_s=5), ApiModel(name="claude-sonnet-4-5")),
    "anthropic_text": lambda s: (AnthropicText(base_url=s.anthropic_url, timeout_s=5), ApiModel(name="claude-2")),
}


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", *CLOUDS):
        monkeypatch.setenv(name, "sk-loopback-0123456789")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")


def runner(server: ApiServer, name: str = "openai", budget: Budget | None = None, **options: Any) -> ApiRunner:
    provider, model = MAKERS[name](server)
    api = ApiRunner(
        model=model,
        provider=provider,
        decoding=Decoding(max_new_tokens=64),
        budget=budget or Budget(),
        retry=FAST,
        **options,
    )
    api.check()
    return api


def run(api: ApiRunner, wanted: list[Request]) -> dict[tuple[str, int], Outcome]:
    outcomes = Outcomes()
    api.generate(wanted, outcomes, threading.Event())
    return outcomes.by_key


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.full] * (name in ("azure_openai", "openai_compatible", "vertex")))
        for name in MAKERS
    ],
)
def test_every_provider_answers_and_its_cost_is_the_server_s_own_bill(name: str) -> None:
    with ApiServer(latency_s=0.01) as server:
        outcomes = run(runner(server, name), requests(40, text=TEXT))
        assert len(outcomes) == 40
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 40
        assert all("diff --git" in o.text and o.finish_reason == "stop" for o in completions)
        cost, bill = sum((o.cost_usd or Decimal(0) for o in completions), Decimal(0)), server.log.cost_usd()
        if name == "anthropic_text":  # its answers state no usage, and the estimate is on the safe side
            assert bill < cost < bill * Decimal("1.4")
        else:
            assert cost == bill > 0
        assert set(server.log.answers_by_prompt().values()) == {1}


@pytest.mark.parametrize("name", ["openai", pytest.param("anthropic", marks=pytest.mark.full)])
def test_every_instance_is_answered_through_every_fault_and_none_is_answered_twice(name: str) -> None:
    kinds: tuple[FaultKind, ...]
    kinds = ("rate_limit_ms", "server_error", "overloaded", "reset", "broken_json", "bad_gateway_html", "html_page")
    faults = [Fault(kind, fraction=0.05, retry_after_s=0.05) for kind in kinds]
    faults += [
        Fault("hang", fraction=0.05, times=1),
        Fault("cut", fraction=0.03),
        Fault("timeout_408", fraction=0.03),
    ]
    with ApiServer(latency_s=(0.0, 0.02), faults=faults) as server:
        provider, model = MAKERS[name](server)
        provider.timeout_s = 10.0  # an answer that a busy machine delivers later than this would be paid for twice
        api = ApiRunner(model=model, provider=provider, decoding=Decoding(max_new_tokens=64), retry=FAST)
        outcomes = run(api, requests(150, text=TEXT))
        assert len(outcomes) == 150
        assert all(isinstance(outcome, Completion) for outcome in outcomes.values())
        assert set(server.log.answers_by_prompt().values()) == {1}
        paid = sum(o.cost_usd or Decimal(0) for o in outcomes.values() if isinstance(o, Completion))
        assert paid == server.log.cost_usd(only_usable=True)


@pytest.mark.parametrize(
    ("fault", "error"),
    [("auth", AuthenticationFailed), ("model_not_found", ModelNotFound), ("insufficient_quota", QuotaExhausted)],
)
def test_a_fatal_fault_is_met_once_not_a_thousand_times(fault: str, error: type[Exception]) -> None:
    with ApiServer(faults=[Fault(fault)]) as server:  # type: ignore[arg-type]
        with pytest.raises(error) as caught:
            run(runner(server), requests(1000))
        assert "0123456789" not in str(caught.value)
        assert len(server.log.asked()) <= Limits().start * 2


def test_a_prompt_beyond_the_window_is_skipped_and_the_others_are_answered() -> None:
    with ApiServer(context_window=500) as server:
        wanted = requests(10)
        wanted[4] = replace(wanted[4], prompt=replace(wanted[4].prompt, user="x" * 10_000))
        outcomes = run(runner(server), wanted)
        assert isinstance(outcomes["i4", 0], Skip)
        assert sum(isinstance(o, Completion) for o in outcomes.values()) == 9


@pytest.mark.parametrize("name", [pytest.param("openai", marks=pytest.mark.full), "anthropic"])
def test_a_cap_holds_if_the_server_bills_the_longest_output_for_all_that_breaks(name: str, tmp_path: Path) -> None:
    kinds: tuple[FaultKind, ...] = ("broken_json", "cut", "server_error", "timeout_408", "reset", "missing_usage")
    cap = Decimal("0.15")
    with ApiServer(latency_s=(0.0, 0.05), faults=[Fault(kind, fraction=0.04) for kind in kinds]) as server:
        api = runner(server, name, Budget(max_usd=cap))
        api.bind(context(tmp_path))
        outcomes = Outcomes()
        with pytest.raises(BudgetExceeded):
            api.generate(requests(600, text=TEXT), outcomes, threading.Event())
        broken = [exchange for exchange in server.log.asked() if exchange.fault]
        answered = [exchange.usage for exchange in server.log.asked() if exchange.usage and not exchange.fault]
    prices = price_table_for(api.model, name)  # type: ignore[arg-type]
    assert prices is not None
    longest = Usage(max(usage.input_tokens for usage in answered), output_tokens=64)
    bill = sum((prices.price(usage) for usage in answered), len(broken) * prices.price(longest))
    assert bill <= cap
    ledger = Ledger(tmp_path / "ledger.sqlite", cap, "another")
    charged = ledger.spent_usd
    ledger.close()
    assert Decimal("0.95") * cap <= charged <= cap
    # The records say all of it, except of samples that were given up as the cap was reached.
    done = [outcome for outcome in outcomes.by_key.values() if isinstance(outcome, Completion)]
    cost = sum(outcome.cost_usd or Decimal(0) for outcome in done)
    assert Decimal(api.stats()["possibly_billed_usd"]) == pytest.approx(charged - cost, abs=Decimal("1e-9"))


@pytest.mark.parametrize(("name", "share"), [("openai", "0.72"), ("anthropic", "0.62")])
def test_samples_of_a_prompt_are_read_from_the_provider_s_cache(name: str, share: str) -> None:
    with ApiServer(latency_s=0.02) as server:
        api = runner(server, name)
        outcomes = run(api, requests(10, samples=4, text=TEXT * 8))
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert sum(o.usage.cached_input_tokens > 0 for o in completions) == 30
        bill = server.log.cost_usd()
        assert sum(o.cost_usd or Decimal(0) for o in completions) == bill
        assert isinstance(api.model, ApiModel)
        prices = price_table_for(api.model, api.provider.pricing_id)
        assert prices is not None
        uncached = (replace(o.usage, cached_input_tokens=0, cache_write_tokens=0) for o in completions)
        assert bill < Decimal(share) * sum(prices.price(usage) for usage in uncached)
        assert api.stats()["prompt_cache_hit_rate"] > 0.7


def test_time_to_first_token_is_recorded_where_answers_are_streamed() -> None:
    with ApiServer(latency_s=0.1) as server:
        provider = AnthropicMessages(base_url=server.anthropic_url, stream="always")
        api = ApiRunner(
            model=ApiModel(name="claude-sonnet-4-5"), provider=provider, decoding=Decoding(max_new_tokens=64)
        )
        (outcome,) = run(api, requests(1)).values()
        assert isinstance(outcome, Completion)
        assert 0 < outcome.details["time_to_first_token_s"] < outcome.latency_s


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_a_quota_in_real_headers_is_kept(name: str) -> None:
    """How much of it is used is shown without the machine's clock, in test_limits."""
    with ApiServer(latency_s=0.2, requests_per_minute=1200, burst_s=1) as server:
        assert len(run(runner(server, name), requests(60))) == 60
        refused = sum(e.status == 429 for e in server.log.asked())
        assert refused <= 30  # those of the start; 60 at once, each again after up to 0.1 s, are some hundreds


def test_samples_of_a_prompt_share_one_request_where_the_model_takes_n_and_the_prompt_is_paid_once() -> None:
    with ApiServer(latency_s=0.02) as server:
        model = ApiModel(name="gpt-4o", parameters=("temperature", "n"))
        decoding = Decoding(max_new_tokens=64, temperature=1.0)
        api = ApiRunner(
            model=model,
            provider=OpenAIChat(base_url=server.openai_url),
            decoding=decoding,
            budget=Budget(max_usd=Decimal(5)),
            retry=FAST,
        )
        wanted = requests(10, samples=4, text=TEXT, decoding=decoding)
        outcomes = run(api, wanted)
        completions = [o for o in outcomes.values() if isinstance(o, Completion)]
        assert len(completions) == 40
        assert len(server.log.asked()) == 10
        assert len({o.text for o in completions}) == 40
        assert sum(o.cost_usd or Decimal(0) for o in completions) == server.log.cost_usd()
        assert sum(o.usage.input_tokens for o in completions) == server.log.usage().input_tokens
