"""Service tiers, fast mode, cache lifetimes and hours: prices against genai-prices, caps against the server's bill.

Vendors' words: openai.types.chat.CompletionCreateParams.service_tier, anthropic.types.MessageCreateParams.speed,
anthropic.types.Usage (``speed``, ``cache_creation``).
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import genai_prices
import pytest
from genai_prices.data_snapshot import get_snapshot

from swe_infer.api.ledger import Ledger
from swe_infer.api.pricing import (
    ListedPrices,
    UnlistedPrice,
    caching_pays,
    price_table_for,
    settled_usd,
    worst_case,
)
from swe_infer.errors import BudgetExceeded, ConfigError
from swe_infer.providers.anthropic_bedrock import AnthropicBedrock
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Bill, PriceTerms, Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Pricing, Request, Usage
from tests.api.scripted import context, requests
from tests.api.test_runner import Outcomes
from tests.providers.test_dialects import CHAT
from tests.support.api_server import ApiServer
from tests.support.loopback import Handler, Server

OUTPUT = 100
PLAIN = Decoding(temperature=None, max_new_tokens=OUTPUT)
USAGES = [
    Usage(10_000, 0, 0, 700),
    Usage(300_000, 120_000, 0, 5),
    Usage(150_000, 0, 150_000, 40_000),
    Usage(60_000, 10_000, 50_000, 9, 0, 50_000),
    Usage(400_000, 1, 200_000, 3, 2, 77_777),
]
TIMES = [
    datetime(2026, 11, 28, 2, 30, tzinfo=UTC),
    datetime(2026, 12, 5, 4, 0, tzinfo=UTC),
    datetime(2026, 12, 5, 9, 59, 59, tzinfo=UTC),
    datetime(2027, 1, 2, 20, 0, tzinfo=UTC),
]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, "sk-loopback-0123456789")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no_vocabulary"))


def independent(model: str, provider: str, usage: Usage, at: datetime, **where: str) -> Decimal:
    """What genai-prices itself computes."""
    counted = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        cache_read_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cache_write_1h_tokens=usage.cache_write_1h_tokens,
        output_tokens=usage.output_tokens,
    )
    return genai_prices.calc_price(
        counted, model, provider_id=provider, genai_request_timestamp=at, price_context=where
    ).total_price


VENDORS = ("openai", "anthropic", "deepseek", "google")


def priced_models(every: bool) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """(provider, model, contexts) of every text model of the main vendors with tiers, speeds or hours, or of every
    model of every provider, with batches."""
    keys = ("service_tier", "speed", "processing") if every else ("service_tier", "speed")
    for provider in get_snapshot().providers:
        for model in provider.models if every or provider.id in VENDORS else ():
            variants = [pair for variant in model.price_variants or () for pair in variant.when.items()]
            contexts = [pair for pair in dict.fromkeys(variants) if pair[0] in keys]
            hours = isinstance(model.prices, list)
            is_text = "ft:" not in model.id and "image" not in model.id and "tts" not in model.id
            if every or ((contexts or hours) and is_text):
                yield provider.id, model.id, contexts


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.full)])
def test_prices_equal_genai_prices_for_models_tiers_times_and_kinds_of_caching(every: bool) -> None:
    models = checked = 0
    for provider, name, contexts in priced_models(every):
        try:
            table, batch = ListedPrices(name, provider), ListedPrices(name, provider, batch=True)
        except LookupError:
            continue  # no output price
        models += 1
        for pair, at, usage in itertools.product([None, *contexts], TIMES, USAGES):
            stated: dict[str, Any] = {} if pair is None else dict([pair])
            expected = independent(name, provider, usage, at, **stated)
            found = (
                batch.price(usage, Bill(), at) if "processing" in stated else table.price(usage, Bill(**stated), at)
            )
            assert found == expected, (provider, name, stated, at, usage)
            checked += 1
    assert models >= (1900 if every else 40)
    assert checked >= max(2000, 20 * models)


def test_a_reservation_is_at_the_dearest_hour_and_tier() -> None:
    usage = Usage(50_000, output_tokens=4_000)
    day = [datetime.now(tz=UTC) + timedelta(minutes=30 * step) for step in range(48)]
    for name in ("deepseek-v4-pro", "deepseek-flash", "deepseek-chat"):
        table = ListedPrices(name, "deepseek")
        prices = [independent(name, "deepseek", usage, at) for at in day]
        assert table.dearest(usage) == max(prices) > min(prices)
        assert worst_case(table, 50_000, 4_000, cache_write=False) == max(prices)
    now = datetime.now(tz=UTC)

    def of(tier: str) -> Decimal:
        return independent("gpt-5.4", "openai", usage, now, service_tier=tier)

    for tier, dearest in {
        None: of("priority"), "auto": of("priority"), "priority": of("priority"), "fast": of("fast"),
        "flex": of("default"), "default": of("default"),
    }.items():  # fmt: skip
        assert ListedPrices("gpt-5.4", "openai", terms=PriceTerms(service_tier=tier)).dearest(usage) == dearest, tier
    # An answer from a tier that nobody asked for raises later reservations.
    table = ListedPrices("gpt-5.4", "openai", terms=PriceTerms(service_tier="default"))
    table.price(usage, Bill(service_tier="priority"))
    assert table.dearest(usage) == of("priority")


def test_anthropic_s_prepaid_tier_has_the_base_price() -> None:
    # platform.claude.com/docs/en/api/service-tiers: "burndown rates reflect the relative pricing of each token type"
    usage, base = Usage(60_000, 10_000, 50_000, 9), ListedPrices("claude-opus-5", "anthropic")
    assert settled_usd(base, usage, Bill(service_tier="priority")) == base.price(usage)
    assert settled_usd(base, usage, Bill(service_tier="priority", geo="us")) == Decimal("1.1") * base.price(usage)
    elsewhere = ListedPrices("anthropic.claude-opus-4-5-20251101-v1:0", "aws")  # Bedrock's tier has its own price
    with pytest.raises(UnlistedPrice):
        elsewhere.price(usage, Bill(service_tier="priority"))


def test_a_tier_that_the_list_does_not_know_has_no_price() -> None:
    for model, provider, terms in [
        ("gpt-5.4", "openai", PriceTerms(service_tier="Flex")),
        ("gpt-5.4", "openai", PriceTerms(service_tier="ultrafast")),
        ("gpt-5.4", "openai", PriceTerms(service_tier="scale")),
        ("gpt-4o", "openai", PriceTerms(service_tier="flex")),
        ("gpt-5.4", "azure", PriceTerms(service_tier="flex")),  # genai-prices ignores the context there
        ("claude-sonnet-4-5", "anthropic", PriceTerms(speed="fast")),
        ("claude-opus-5", "anthropic", PriceTerms(speed="Fast")),
        ("claude-2", "anthropic", PriceTerms(cache_ttl="1h")),
        ("claude-sonnet-4-5", "anthropic", PriceTerms(cache_ttl="2h")),
    ]:
        assert ListedPrices(model, provider, terms=terms).unlisted(cache_writes=True), (model, terms)
    for model, provider, terms in [
        ("gpt-5.4", "openai", PriceTerms(service_tier="flex")),
        ("gpt-5.4", "openai", PriceTerms(service_tier="auto")),
        ("claude-opus-5", "anthropic", PriceTerms(speed="fast")),
        ("claude-opus-5", "anthropic", PriceTerms(service_tier="standard_only", cache_ttl="1h")),
    ]:
        assert ListedPrices(model, provider, terms=terms).unlisted(cache_writes=True) is None, (model, terms)
    with pytest.raises(UnlistedPrice, match="ultrafast"):
        ListedPrices("gpt-5.4", "openai").price(USAGES[0], Bill(service_tier="ultrafast"))
    # Vendors whose discount in batches is not listed.
    assert ListedPrices("grok-4.7", "x-ai", batch=True).unlisted(cache_writes=False) == "provider.mode=batch"
    assert ListedPrices("grok-4.3", "x-ai", batch=True).unlisted(cache_writes=False) is None


def test_the_lifetime_of_a_cached_prompt_decides_whether_caching_pays() -> None:
    short = price_table_for(ApiModel(name="claude-sonnet-4-5"), "anthropic")
    hour = price_table_for(ApiModel(name="claude-sonnet-4-5"), "anthropic", terms=PriceTerms(cache_ttl="1h"))
    assert short is not None
    assert hour is not None
    # Written once and read once: 1.25 + 0.1 or 2 + 0.1, instead of 2.
    assert (caching_pays(short, 5000, 2), caching_pays(hour, 5000, 2), caching_pays(hour, 5000, 3)) == (
        True,
        False,
        True,
    )
    stated = Pricing(
        input_per_mtok=Decimal(1), output_per_mtok=Decimal(1), cached_input_per_mtok=Decimal("0.1"),
        cache_write_per_mtok=Decimal("1.25"), cache_write_1h_per_mtok=Decimal(3),
    )  # fmt: skip
    own = price_table_for(ApiModel(name="mine", pricing=stated), None, terms=PriceTerms(cache_ttl="1h"))
    assert own is not None
    assert not caching_pays(own, 5000, 3)
    assert own.price(Usage(10, 0, 10, 0, 0, 4)) * 10**6 == 6 * Decimal("1.25") + 4 * 3


def test_processing_in_one_region_has_its_premium() -> None:
    usage = USAGES[0]

    def times(model: str, provider: str, address: str, geo: str | None = None) -> tuple[Decimal, Decimal]:
        """How many times the list the price and the reservation are."""
        table = price_table_for(ApiModel(name=model), provider, terms=PriceTerms(geo=geo), address=address)
        default = PriceTerms(service_tier="default", geo="global")
        listed = price_table_for(ApiModel(name=model), provider, terms=default)
        assert table is not None
        assert listed is not None
        return table.price(usage) / listed.price(usage), table.dearest(usage) / listed.dearest(usage)

    tenth, none = Decimal("1.1"), Decimal(1)
    # developers.openai.com/api/docs/guides/data-residency; which models: github.com/BerriAI/litellm/pull/31136
    for host, model, factor in [("us", "gpt-5.5", tenth), ("eu", "gpt-6.1-terra", tenth), ("eu", "gpt-5.1", none)]:
        assert times(model, "openai", f"https://{host}.api.openai.com/v1")[0] == factor
    assert times("gpt-5.5", "openai", "https://api.openai.com/v1")[0] == 1
    # docs.claude.com/en/docs/build-with-claude/claude-on-vertex-ai: Claude 4.5 and later
    for host, model, factor in [
        ("us-east5-aiplatform.googleapis.com", "claude-opus-5-5", tenth),
        ("aiplatform.eu.rep.googleapis.com", "claude-sonnet-4-5@20250929", tenth),
        ("europe-west1-aiplatform.googleapis.com", "claude-opus-4-1@20250805", none),
        ("aiplatform.googleapis.com", "claude-opus-5-5", none),
    ]:
        assert times(model, "google", f"https://{host}/v1") == (factor, factor)
    # docs.together.ai/docs/serverless/geo-specific-inference
    together = "meta-llama/Llama-2-70b-chat-hf"
    assert times(together, "together", "https://us-api.together.ai/v1") == (Decimal("1.25"), Decimal("1.25"))
    assert times(together, "together", "https://api.together.ai/v1") == (none, none)
    # Before an answer, the default of Anthropic's workspace is not known.
    anthropic = "https://api.anthropic.com"
    assert times("claude-opus-5", "anthropic", anthropic, "us") == (tenth, tenth)
    assert times("claude-opus-5", "anthropic", anthropic, "global") == (none, none)
    assert times("claude-opus-5", "anthropic", anthropic) == (none, tenth)
    assert times("claude-sonnet-4-5", "anthropic", anthropic) == (none, none)
    for geo, expected in (("us", tenth), ("global", none), (None, none)):
        table = ListedPrices("claude-opus-5", "anthropic")
        paid = table.price(usage, Bill(geo=geo))
        assert table.dearest(usage) == paid == expected * ListedPrices("claude-opus-5", "anthropic").price(usage)
    assert ListedPrices("claude-opus-5", "anthropic", terms=PriceTerms(geo="mars")).unlisted(cache_writes=False)


def chat(server: ApiServer, **changes: Any) -> Provider:
    return OpenAIChat(base_url=server.openai_url, max_concurrency=16, **changes)


def responses(server: ApiServer, **changes: Any) -> Provider:
    return OpenAIResponses(base_url=server.openai_url, max_concurrency=16, **changes)


def messages(server: ApiServer, **changes: Any) -> Provider:
    return AnthropicMessages(base_url=server.url, max_concurrency=16, **changes)


GPT = ApiModel(name="gpt-5.4", parameters=())
CLAUDE = ApiModel(name="claude-opus-5", parameters=())
HOURLY = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}

CASES: dict[str, tuple[Callable[..., Provider], ApiModel, dict[str, Any], dict[str, Any], str | None]] = {
    # name: (provider, model, its options, the server's settings, the tier in the records)
    "flex": (chat, GPT, {"service_tier": "flex"}, {}, "flex"),
    "priority": (responses, GPT, {"service_tier": "priority"}, {}, "priority"),
    "fast is priority": (chat, GPT, {"service_tier": "fast", "stream": True}, {}, "priority"),
    "priority is downgraded": (chat, GPT, {"service_tier": "priority"}, {"downgraded": True}, "default"),
    "auto": (chat, GPT, {"service_tier": "auto"}, {"project_tier": "priority"}, "priority"),
    "the project's tier": (chat, GPT, {}, {"project_tier": "priority"}, "default"),
    "extra_body": (
        chat, ApiModel(name="gpt-5.4", parameters=(), extra_body={"service_tier": "priority"}), {}, {}, "priority"
    ),
    "automatic cache writes": (responses, ApiModel(name="gpt-5.6-sol", parameters=()), {}, {}, "default"),
    "claude fast": (messages, CLAUDE, {"service_tier": "fast"}, {}, "fast"),
    "claude, an hour": (messages, CLAUDE, {"cache_ttl": "1h"}, {}, "standard"),
    "claude, an hour in extra_body": (
        messages, ApiModel(name="claude-opus-5", parameters=(), extra_body=HOURLY), {}, {}, "standard"
    ),
    # platform.claude.com/docs/en/manage-claude/data-residency: a workspace has a default, and answers state the geo
    "claude in the US": (
        messages, ApiModel(name="claude-opus-5", parameters=(), extra_body={"inference_geo": "us"}),
        {}, {}, "standard",
    ),
    "the workspace's geo": (messages, CLAUDE, {}, {"workspace_geo": "us"}, "standard"),
    "the workspace's geo is global": (messages, CLAUDE, {}, {"workspace_geo": "global"}, "standard"),
}  # fmt: skip
SAME_PRICES = (
    *("flex", "fast is priority", "auto", "extra_body", "claude, an hour in extra_body"),
    "the workspace's geo is global",
)
"""Cases whose prices others have, in other words."""


def spend(api: ApiRunner, wanted: Sequence[Request], directory: Path) -> Outcomes:
    """Request answers until the budget is used up."""
    api.check()
    api.bind(context(directory))
    outcomes = Outcomes()
    with pytest.raises(BudgetExceeded):
        api.generate(wanted, outcomes, threading.Event())
    return outcomes


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.full] * (case in SAME_PRICES)) for case in CASES]
)
def test_a_cap_holds_by_the_server_s_own_bill(case: str, tmp_path: Path) -> None:
    make, model, options, settings, tier = CASES[case]
    with ApiServer(latency_s=0.002, answer=lambda _: "x" * 4 * (OUTPUT - 64)) as server:  # 64 tokens of reasoning
        for key, value in settings.items():
            setattr(server.maker, key, value)
        provider = make(server, **options)
        samples = 4 if "hour" in case else 1
        wanted = requests(60, samples=samples, text="fix " * 2000, decoding=PLAIN)
        table = ListedPrices(model.name, str(provider.pricing_id), terms=provider.price_terms(model))
        cap = 12 * worst_case(table, 2_100, OUTPUT, cache_write=True)
        api = ApiRunner(model=model, provider=provider, decoding=PLAIN, budget=Budget(max_usd=cap))
        outcomes = spend(api, wanted, tmp_path)
        bill = server.log.cost_usd()
        done = [outcome for outcome in outcomes.by_key.values() if isinstance(outcome, Completion)]
        assert bill == sum(outcome.cost_usd or 0 for outcome in done)
        assert cap / 5 < bill <= cap
        assert {outcome.details.get("service_tier") for outcome in done} == {tier}
        if case == "the project's tier":  # a budget needs to know the price before the answer
            assert {e.body["service_tier"] for e in server.log.asked()} == {"default"}


@pytest.mark.parametrize("states_cost", [True, False])
def test_a_cap_holds_if_the_server_charges_more_than_the_list(states_cost: bool, tmp_path: Path) -> None:
    served = []

    class Dear(Handler):
        def respond(self) -> None:
            if "messages" in json.loads(self.body()):
                served.append(Decimal("0.004"))
                usage: dict[str, object] = {"prompt_tokens": 2_000, "completion_tokens": 100}  # $0.002 by the list
                self.send(200, {**CHAT, "usage": usage | ({"cost": 0.004} if states_cost else {})})
            else:
                self.send(404, {})  # it counts no tokens

    price = Pricing(input_per_mtok=Decimal("0.95"), output_per_mtok=Decimal(1))
    with Server(Dear) as server:
        provider = OpenAIChat(
            name="openrouter", base_url=f"{server.url}/v1", api_key_env=None, pricing_id="openrouter"
        )
        model, budget = ApiModel(name="m", pricing=price), Budget(max_usd=Decimal("0.1"))
        api = ApiRunner(model=model, provider=provider, decoding=Decoding(max_new_tokens=100), budget=budget)
        outcomes = spend(api, requests(80, text="fix it " * 286), tmp_path)
    assert len(outcomes) == len(served)
    if states_cost:
        assert Decimal("0.08") < sum(served) <= Decimal("0.1")
    else:
        assert len(served) > 45


def test_a_cap_holds_if_the_server_bills_more_output_than_was_requested(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # DeepSeek ignores max_completion_tokens (api-docs.deepseek.com); xAI bills reasoning beside the output
    served = []

    class Verbose(Handler):
        def respond(self) -> None:
            if "messages" not in json.loads(self.body()):
                return self.send(404, {})  # it counts no tokens
            served.append(Decimal("0.0031"))
            return self.send(200, {**CHAT, "usage": {"prompt_tokens": 100, "completion_tokens": 3_000}})

    price = Pricing(input_per_mtok=Decimal(1), output_per_mtok=Decimal(1))
    with Server(Verbose) as server:
        provider = OpenAIChat(name="own", base_url=f"{server.url}/v1", api_key_env=None, pricing_id=None)
        model, budget = ApiModel(name="m", pricing=price), Budget(max_usd=Decimal("0.1"))
        api = ApiRunner(model=model, provider=provider, decoding=Decoding(max_new_tokens=100), budget=budget)
        outcomes = spend(api, requests(200), tmp_path)
    assert len(outcomes) == len(served)
    assert Decimal("0.08") < sum(served) <= Decimal("0.1")
    assert sum("where at most 100 were requested" in record.message for record in caplog.records) == 1


def test_the_tier_of_the_answer_decides_the_price_without_a_budget() -> None:
    with ApiServer(prompt_cache=False) as server:
        server.maker.project_tier = "priority"
        for provider in (OpenAIChat(base_url=server.openai_url), OpenAIResponses(base_url=server.openai_url)):
            api = ApiRunner(model=GPT, provider=provider, decoding=PLAIN)
            outcomes = Outcomes()
            api.generate(requests(2, decoding=PLAIN), outcomes, threading.Event())
            assert {o.details["service_tier"] for o in outcomes.by_key.values() if isinstance(o, Completion)} == {
                "priority"
            }
            assert "service_tier" not in server.log.asked()[-1].body
        assert sum(e.service_tier == "priority" for e in server.log.billed()) == 4


def test_an_answer_from_a_tier_without_a_price_counts_with_the_most_that_it_can_cost(tmp_path: Path) -> None:
    with ApiServer(prompt_cache=False) as server:
        server.maker.project_tier = "unheard-of"
        provider = chat(server, service_tier="auto")
        cap = 10 * worst_case(ListedPrices("gpt-5.4", "openai"), 100, OUTPUT, cache_write=True)
        api = ApiRunner(model=GPT, provider=provider, decoding=PLAIN, budget=Budget(max_usd=cap))
        outcomes = spend(api, requests(60, decoding=PLAIN), tmp_path)
    done = [outcome for outcome in outcomes.by_key.values() if isinstance(outcome, Completion)]
    assert {outcome.cost_usd for outcome in done} == {None}
    counted = sum(Decimal(outcome.details["possibly_billed_usd"]) for outcome in done)
    with closing(Ledger(tmp_path / "ledger.sqlite", cap, "look")) as ledger:
        assert cap / 2 < counted == ledger.spent_usd <= cap


def refusal(model: ApiModel, provider: Provider, cap: str | None = "1") -> str:
    budget = Budget(max_usd=None if cap is None else Decimal(cap))
    with pytest.raises(ConfigError) as caught:
        ApiRunner(model=model, provider=provider, decoding=PLAIN, budget=budget).check(dry_run=True)
    return str(caught.value)


def test_what_has_no_price_is_refused_under_a_budget_and_what_no_vendor_knows_always() -> None:
    extra = ApiModel(name="gpt-5.4", parameters=(), extra_body={"service_tier": "Flex"})
    assert "budget.max_usd" in refusal(extra, OpenAIChat())
    assert "service_tier=Flex" in refusal(extra, OpenAIChat())
    ApiRunner(model=extra, provider=OpenAIChat(), decoding=PLAIN).check(dry_run=True)
    assert "service_tier=ultrafast" in refusal(GPT, OpenAIResponses(service_tier="ultrafast"))
    # openai.types.responses.response_create_params.PromptCacheOptions: 12h; the list has the price of 30 minutes
    for ttl in ("12h", "30m"):
        cached = ApiModel(name="gpt-6.1-sol", parameters=(), extra_body={"prompt_cache_options": {"ttl": ttl}})
        terms = OpenAIResponses().price_terms(cached)
        table = ListedPrices(cached.name, "openai", terms=terms)
        written = settled_usd(table, Usage(5000, 0, 4000, 9), Bill())
        assert settled_usd(table, Usage(5000, 4000, 0, 9), Bill()) is not None
        if ttl == "12h":
            assert "cache_ttl=12h" in refusal(cached, OpenAIResponses())
            assert written is None
        else:
            assert written is not None
            ApiRunner(
                model=cached, provider=OpenAIResponses(), decoding=PLAIN, budget=Budget(max_usd=Decimal(1))
            ).check(dry_run=True)
    gateway = OpenAIChat(name="gateway", base_url="http://127.0.0.1:1/v1", pricing_id="anthropic")
    assert "speed=fast" in refusal(ApiModel(name="claude-sonnet-4-5", extra_body={"speed": "fast"}), gateway)
    slow = ApiModel(name="claude-sonnet-4-5", parameters=(), extra_body={"speed": "fast"})
    assert "speed=fast" in refusal(slow, AnthropicMessages())
    for provider, model in [
        (OpenAIChat(service_tier="Flex"), GPT),
        (OpenAIChat(service_tier="ultrafast"), GPT),
        (AnthropicMessages(service_tier="flex"), CLAUDE),
    ]:
        assert "provider.service_tier=" in refusal(model, provider, None)
    for by_tier, model in [
        (OpenAIChat(service_tier="batch"), GPT),
        (AnthropicMessages(service_tier="batch"), CLAUDE),
    ]:
        assert "or null; the batch API is provider.mode=batch" in refusal(model, by_tier, None)
    assert "none for service_tier=scale: leave that out of provider.service_tier" in refusal(
        GPT, OpenAIChat(service_tier="scale")
    )
    tiered = ApiModel(name="gpt-5.4", parameters=(), extra_body={"service_tier": "flex"})
    assert "provider.service_tier is set too" in refusal(tiered, OpenAIChat(service_tier="flex"), None)
    assert "model.extra_body.service_tier" in refusal(
        ApiModel(name="gpt-5.4", parameters=(), extra_body={"service_tier": 7}), OpenAIChat(), None
    )
    for batches in (
        OpenAIChat(mode="batch", service_tier="flex"),
        AnthropicMessages(mode="batch", service_tier="fast"),
    ):
        assert "a batch has its own price" in refusal(GPT, batches, None)
    own = OpenAIChat(name="openai_compatible", base_url="http://127.0.0.1:1/v1", pricing_id=None)
    message = refusal(GPT, own, None)
    assert "provider.pricing_id" in message
    assert "deepseek" in message
    assert "\n" not in message
    assert "'deepseak'" in refusal(GPT, OpenAIChat(pricing_id="deepseak"), None)


def test_tiers_that_headers_ask_for_are_refused_under_a_budget() -> None:
    # botocore, bedrock-runtime: InvokeModelRequest; docs.cloud.google.com/vertex-ai/generative-ai/docs/priority-paygo
    opus = ApiModel(name="anthropic.claude-opus-5-5", parameters=())
    gemini = ApiModel(name="gemini-3.8-flash", parameters=())
    for header, value in (
        ("X-Amzn-Bedrock-Service-Tier", "priority"), ("x-amzn-bedrock-performanceconfig-latency", "optimized"),
    ):  # fmt: skip
        assert f"service_tier={value}" in refusal(opus, AnthropicBedrock(region="us-east-1", headers={header: value}))
    vertex: dict[str, Any] = {
        "name": "vertex",
        "base_url": "https://aiplatform.googleapis.com/v1",
        "api_key_env": None,
    }
    shared = {"X-Vertex-AI-LLM-Shared-Request-Type": "priority"}
    assert "service_tier=priority" in refusal(gemini, OpenAIChat(**vertex, pricing_id="google", headers=shared))
    usual = {"X-Amzn-Bedrock-Service-Tier": "default", "X-Title": "priority"}
    table = ListedPrices(
        opus.name, "aws", terms=AnthropicBedrock(region="us-east-1", headers=usual).price_terms(opus)
    )
    assert table.unlisted(cache_writes=False) is None


SEARCH = {"type": "web_search_20260318", "name": "web_search"}  # anthropic.types.WebSearchTool20260318Param
EDITOR = {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"}


def test_what_is_charged_beside_the_tokens_is_refused_under_a_budget(caplog: pytest.LogCaptureFixture) -> None:
    # platform.claude.com/docs/en/about-claude/pricing, developers.openai.com/api/docs/pricing (tools)
    cases: list[tuple[Provider, str, str, dict[str, object]]] = [
        (AnthropicMessages(), "claude-opus-5", "tools", {"tools": [EDITOR, SEARCH]}),
        (OpenAIResponses(), "gpt-5.4", "tools", {"tools": [{"type": "code_interpreter"}]}),
        (OpenAIChat(), "gpt-5.4", "web_search_options", {"web_search_options": {}, "tools": []}),
        # anthropic.types.beta: BetaUsage.iterations, BetaFallbackMessageIterationUsage
        (AnthropicMessages(), "claude-opus-5", "fallbacks", {"fallbacks": "default"}),
        (AnthropicMessages(), "claude-opus-5", "context_management", {"context_management": {"edits": []}}),
    ]
    for provider, name, field, extra in cases:
        model = ApiModel(name=name, parameters=(), extra_body=extra)
        assert refusal(model, provider).startswith(f"model.extra_body.{field}: what ")
        caplog.clear()
        ApiRunner(model=model, provider=provider, decoding=PLAIN).check(dry_run=True)
        assert any(f"leaves out what {provider.name} charges" in record.message for record in caplog.records)
    caplog.clear()
    function = {"type": "function", "function": {"name": "edit", "parameters": {}}}
    for provider, name, tools in [
        (AnthropicMessages(), "claude-opus-5", [EDITOR, {"name": "edit", "input_schema": {"type": "object"}}]),
        (OpenAIChat(), "gpt-5.4", [function]),
    ]:
        model = ApiModel(name=name, parameters=(), extra_body={"tools": tools})
        budget = Budget(max_usd=Decimal(1))
        ApiRunner(model=model, provider=provider, decoding=PLAIN, budget=budget).check(dry_run=True)
    own = OpenAIChat(name="own", base_url="http://127.0.0.1:1/v1", api_key_env=None, pricing_id="free")
    free = ApiModel(name="m", extra_body={"tools": [{"type": "web_search"}]})
    ApiRunner(model=free, provider=own, decoding=PLAIN, budget=Budget(max_usd=Decimal(1))).check(dry_run=True)
    assert not any("leaves out" in record.message for record in caplog.records)


def test_the_prices_of_a_known_address_apply() -> None:
    own = OpenAIChat(name="mine", base_url="https://api.deepseek.com", pricing_id=None)
    table = price_table_for(ApiModel(name="deepseek-v4-pro"), own.pricing_id, address=own.address)
    assert table is not None
    assert table.source.endswith("deepseek/deepseek-v4-pro")
    for name, pricing_id, address, source in [
        (
            "gpt-oss-120b",
            "openai",
            "https://api.cerebras.ai/v1",
            "cerebras/gpt-oss-120b",
        ),  # nine times OpenAI's price
        ("deepseek-v4-pro", "anthropic", "https://api.deepseek.com/anthropic", "deepseek/deepseek-v4-pro"),
        ("gpt-oss-120b", "groq", "https://api.cerebras.ai/v1", None),
        ("gpt-4o", "openai", "https://openrouter.ai/api/v1", None),
        ("gpt-5.4", "openai", "https://api.openai.com/v1", "openai/gpt-5.4"),
        ("gpt-5.4", "openai", "https://eu.api.openai.com/v1", "openai/gpt-5.4"),
        ("gpt-5.4", "openai", "http://127.0.0.1:8000/v1", "openai/gpt-5.4"),
    ]:
        if source is None:
            with pytest.raises(ConfigError, match=r"'groq' |'openrouter', the provider at openrouter\.ai"):
                price_table_for(ApiModel(name=name), pricing_id, address=address)
        else:
            found = price_table_for(ApiModel(name=name), pricing_id, address=address)
            assert found is not None
            assert f": {source}" in found.source


def test_vendors_get_their_own_fields() -> None:
    request = requests(1, decoding=PLAIN)[0]
    assert OpenAIChat(service_tier="standard").body(request, GPT)["service_tier"] == "default"
    assert OpenAIResponses(service_tier="flex").body(request, GPT)["service_tier"] == "flex"
    groq = OpenAIChat(name="groq", base_url="https://api.groq.com/openai/v1", service_tier="on_demand")
    assert groq.body(request, GPT)["service_tier"] == "on_demand"
    assert "service_tier" not in OpenAIChat().body(request, GPT)
    fast = AnthropicMessages(service_tier="fast")
    assert fast.body(request, CLAUDE)["speed"] == "fast"
    assert fast.request_options(CLAUDE)["headers"]["anthropic-beta"] == "fast-mode-2026-02-01"
    assert AnthropicMessages(service_tier="standard").body(request, CLAUDE)["service_tier"] == "standard_only"


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
def test_batches_cost_what_the_server_bills(vendor: str, tmp_path: Path) -> None:
    with ApiServer(batch_delay_s=0.01, prompt_cache=vendor == "anthropic") as server:
        model = GPT if vendor == "openai" else ApiModel(name="claude-opus-5", parameters=(), extra_body=HOURLY)
        make = chat if vendor == "openai" else messages
        api = ApiRunner(
            model=model, provider=make(server, mode="batch"), decoding=PLAIN, budget=Budget(max_usd=Decimal(5))
        )
        api.batches = type(api.batches)(first_poll_s=0.02, max_poll_s=0.05, settle_s=0.3)
        api.check()
        api.bind(context(tmp_path))
        outcomes = Outcomes()
        api.generate(requests(3, text="fix " * 2000, decoding=PLAIN), outcomes, threading.Event())
        done = [outcome for outcome in outcomes.by_key.values() if isinstance(outcome, Completion)]
        assert len(done) == 3
        assert server.log.cost_usd() == sum(outcome.cost_usd or 0 for outcome in done) > 0
