"""Prices: against the vendors' published lists, and against arithmetic by hand."""

from __future__ import annotations

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.api.pricing import ListedPrices, PriceTable, StatedPrices, caching_pays, price_table_for, worst_case
from swe_infer.errors import ConfigError
from swe_infer.types import ApiModel, Pricing, Usage


def listed(name: str, provider: str = "openai", *, batch: bool = False) -> PriceTable:
    prices = price_table_for(ApiModel(name=name), provider, batch=batch)
    assert prices is not None
    return prices


def test_cached_tokens_are_priced_once_and_at_their_own_price() -> None:
    usage = Usage(input_tokens=10_000, cached_input_tokens=8_000, output_tokens=1_000)
    # gpt-4o: 2.50 for input, 1.25 for cached input, 10.00 for output
    assert listed("gpt-4o").price(usage) == Decimal("0.005") + Decimal("0.010") + Decimal("0.010")


def test_cache_writes_and_reads_of_anthropic_have_separate_prices() -> None:
    usage = Usage(input_tokens=10_000, cached_input_tokens=4_000, cache_write_tokens=5_000)
    # claude-sonnet-4-5: 3.00 plain, 0.30 read, 3.75 written
    assert listed("claude-sonnet-4-5", "anthropic").price(usage) == Decimal("0.003") + Decimal("0.0012") + Decimal(
        "0.01875"
    )


def test_reasoning_tokens_are_part_of_the_output_and_not_paid_twice() -> None:
    prices = listed("o3-mini")
    with_reasoning = prices.price(Usage(input_tokens=1, output_tokens=1000, reasoning_tokens=900))
    assert with_reasoning == prices.price(Usage(input_tokens=1, output_tokens=1000))


def test_long_contexts_have_their_own_price() -> None:
    prices = listed("claude-sonnet-4-5", "anthropic")
    assert prices.price(Usage(input_tokens=200_000)) == Decimal("0.6")
    assert prices.price(Usage(input_tokens=200_001)) == Decimal("1.200006")


@pytest.mark.parametrize(
    ("model", "provider"),
    [
        ("gpt-4o", "openai"),
        ("gpt-4o", "azure"),  # the list has no batch price for this one
        ("claude-sonnet-4-5", "anthropic"),
        ("claude-3-5-sonnet-20241022", "anthropic"),  # nor for this one
    ],
)
def test_a_batch_costs_half(model: str, provider: str) -> None:
    usage = Usage(input_tokens=5_000, output_tokens=1_000)
    assert listed(model, provider, batch=True).price(usage) * 2 == listed(model, provider).price(usage)


def test_dated_names_are_known_by_their_own_price() -> None:
    assert listed("gpt-4o-2024-08-06").price(Usage(input_tokens=1_000_000)) == Decimal("2.5")
    assert listed("gpt-4o-2024-05-13").price(Usage(input_tokens=1_000_000)) == Decimal(5)


def test_an_unlisted_model_is_refused_with_remedies() -> None:
    with pytest.raises(ConfigError, match=r"'model\.pricing={input_per_mtok: .*model\.price_as.*unknown"):
        price_table_for(ApiModel(name="swe-llama-13b"), "openai")


def test_a_listed_model_without_an_output_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="output"):
        price_table_for(ApiModel(name="text-embedding-3-small"), "openai")


def test_stated_prices_win_and_default_to_the_plain_ones() -> None:
    pricing = Pricing(input_per_mtok=Decimal(2), output_per_mtok=Decimal(8), cached_input_per_mtok=Decimal(1))
    prices = price_table_for(ApiModel(name="gpt-4o", pricing=pricing), "openai")
    assert prices is not None
    usage = Usage(input_tokens=1_000_000, cached_input_tokens=500_000, cache_write_tokens=100_000, output_tokens=10)
    assert prices.price(usage) == Decimal("0.8") + Decimal("0.5") + Decimal("0.2") + Decimal("0.00008")


def test_fractions_of_a_cent_are_kept() -> None:
    total = sum((listed("gpt-4o-mini").price(Usage(input_tokens=1)) for _ in range(1000)), Decimal(0))
    assert total == Decimal("0.00015")


tokens = st.integers(0, 400_000)


@given(prompt=tokens, bound=tokens, cached=tokens, written=tokens, output=st.integers(0, 4096))
def test_no_answer_within_its_bounds_costs_more_than_the_worst_case(
    prompt: int, bound: int, cached: int, written: int, output: int
) -> None:
    prompt = min(prompt, bound)
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    usage = Usage(prompt, cached, written, output)
    for prices in (
        listed("claude-sonnet-4-5", "anthropic"),
        listed("gpt-4.1"),
        StatedPrices(
            Pricing(
                input_per_mtok=Decimal(3),
                output_per_mtok=Decimal(15),
                cached_input_per_mtok=Decimal("0.3"),
                cache_write_per_mtok=Decimal("3.75"),
            )
        ),
    ):
        assert prices.price(usage) <= worst_case(prices, bound, 4096, cache_write=True)


def test_inconsistent_usage_has_a_price() -> None:
    usage = Usage(input_tokens=10, cached_input_tokens=500, output_tokens=1, reasoning_tokens=7)
    assert listed("gpt-4o").price(usage) > 0


def test_caching_pays_from_two_samples_on_where_reads_are_cheap() -> None:
    assert caching_pays(listed("claude-sonnet-4-5", "anthropic"), 5000, 2)
    assert not caching_pays(listed("claude-sonnet-4-5", "anthropic"), 5000, 1)
    assert caching_pays(listed("gpt-4o"), 5000, 2)
    assert not caching_pays(listed("gpt-4"), 5000, 10)


@pytest.mark.parametrize(
    ("model", "provider"), [("gpt-4o", "openai"), ("claude-sonnet-4-5", "anthropic"), ("gpt-5.4", "openai")]
)
@pytest.mark.parametrize("batch", [False, True])
def test_the_price_is_the_list_s_own_in_every_tier(model: str, provider: str, batch: bool) -> None:
    import genai_prices

    prices = ListedPrices(model, provider, batch=batch)
    chance = random.Random(0)
    context = {"processing": "batch"} if batch else None
    for _ in range(40):
        tokens = chance.choice([0, 1, 2, 1_000, 199_999, 200_000, 200_001, 272_000, 272_001, 900_000])
        cached = chance.randint(0, tokens)
        written, output = chance.randint(0, tokens - cached), chance.randint(0, 100_000)
        counted = genai_prices.Usage(
            input_tokens=tokens, cache_read_tokens=cached, cache_write_tokens=written, output_tokens=output
        )
        found = genai_prices.calc_price(counted, model, provider_id=provider, price_context=context)
        assert prices.price(Usage(tokens, cached, written, output)) == prices.factor * found.total_price
