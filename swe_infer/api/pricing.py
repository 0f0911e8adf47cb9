"""What a request costs. Money is Decimal, tokens are integers. A model's price is looked up once, by the name in the
configuration, before anything is sent; the name in an answer (often a dated snapshot) is never looked up.

Prices come from ``genai-prices``, which has the vendors' prices with their history and long-context tiers, unless
``model.pricing`` sets them.
"""

from __future__ import annotations

from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Protocol

from swe_infer.errors import ConfigError
from swe_infer.types import ApiModel, Pricing, Usage

_MILLION = Decimal(1_000_000)
_VENDORS = ("anthropic", "openai")
"""Vendors with the same name in ``genai-prices`` and in ``conf/provider``."""
BATCH_FACTOR = Decimal("0.5")
"""OpenAI, Azure and Anthropic bill a batch at half of every token price
(platform.openai.com/docs/guides/batch, docs.claude.com/en/docs/build-with-claude/batch-processing)."""


class PriceTable(Protocol):
    """The price of a model's tokens at one provider."""

    @property
    def source(self) -> str:
        """Where the prices come from, for the log."""
        ...

    def price(self, usage: Usage) -> Decimal:
        """Dollars for one answer."""
        ...


def _consistent(usage: Usage) -> Usage:
    """``usage`` with parts that do not exceed the whole, so that invalid counts do not lose a paid answer."""
    cached = max(usage.cached_input_tokens, 0)
    written = max(usage.cache_write_tokens, 0)
    return Usage(
        input_tokens=max(usage.input_tokens, cached + written),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(usage.output_tokens, usage.reasoning_tokens, 0),
        reasoning_tokens=usage.reasoning_tokens,
    )


@dataclass(frozen=True, slots=True)
class StatedPrices:
    """Prices from ``model.pricing``. ``factor`` multiplies them (one half in a batch)."""

    pricing: Pricing
    factor: Decimal = Decimal(1)
    source: str = "model.pricing"

    def price(self, usage: Usage) -> Decimal:
        usage = _consistent(usage)
        stated = self.pricing
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        cached = stated.input_per_mtok if stated.cached_input_per_mtok is None else stated.cached_input_per_mtok
        written = stated.input_per_mtok if stated.cache_write_per_mtok is None else stated.cache_write_per_mtok
        dollars = (
            plain * stated.input_per_mtok
            + usage.cached_input_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * stated.output_per_mtok
        )
        return self.factor * dollars / _MILLION


@dataclass(frozen=True, slots=True)
class _Rates:
    """Price in dollars of a request, and of an input token, a cached token (prompt cache read), a cache write and an
    output token.
    """

    request: Decimal
    plain: Decimal
    cached: Decimal
    written: Decimal
    output: Decimal

    def price(self, usage: Usage) -> Decimal:
        return (
            self.request
            + (usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens) * self.plain
            + usage.cached_input_tokens * self.cached
            + usage.cache_write_tokens * self.written
            + usage.output_tokens * self.output
        )


class ListedPrices:
    """Prices from ``genai-prices``, as of the creation of this object.

    Raises:
        LookupError: the list has no such model, or no price for its input or output.
    """

    def __init__(self, model: str, provider_id: str, *, batch: bool = False) -> None:
        import genai_prices

        self._usage_type = genai_prices.Usage
        probe = genai_prices.Usage(input_tokens=1, output_tokens=1)
        context = {"processing": "batch"} if batch else None
        now = datetime.now(tz=UTC)
        found = genai_prices.calc_price(
            probe, model, provider_id=provider_id, genai_request_timestamp=now, price_context=context
        )
        self._prices = found.model_price
        for kind in ("input_mtok", "output_mtok"):
            if getattr(self._prices, kind) is None:
                raise LookupError(f"genai-prices has no {kind.removesuffix('_mtok')} price for {found.model.id!r}")
        self.factor = Decimal(1)
        if batch:
            live = genai_prices.calc_price(probe, model, provider_id=provider_id, genai_request_timestamp=now)
            # Many models have no batch price in the list, which then returns the live price.
            if live.model_price.output_mtok == self._prices.output_mtok:
                self.factor = BATCH_FACTOR
        self.source = f"genai-prices {genai_prices.__version__}: {found.provider.id}/{found.model.id}"
        tiers = (tier for price in vars(self._prices).values() for tier in getattr(price, "tiers", ()))
        self._starts = sorted({tier.start for tier in tiers})
        self._rates: dict[int, _Rates | None] = {}

    def price(self, usage: Usage) -> Decimal:
        # The price of a tier applies to all tokens of a request whose input is longer than the tier's start. Within a
        # tier the price is linear, and computing it from rates is a hundred times faster than calc_price().
        usage = _consistent(usage)
        tier = bisect_left(self._starts, usage.input_tokens)
        if tier not in self._rates:
            if usage.input_tokens < 2:
                return self._listed(usage)
            self._rates[tier] = self._rates_at(usage.input_tokens)
        rates = self._rates[tier]
        return self._listed(usage) if rates is None else rates.price(usage)

    def _rates_at(self, tokens: int) -> _Rates | None:
        """The rates of the tier of a prompt with ``tokens`` tokens, or None if the price is not linear."""
        alone = self._listed(Usage(input_tokens=tokens))
        request = self._listed(Usage())
        plain = (alone - request) / tokens
        rates = _Rates(
            request,
            plain,
            plain + self._listed(Usage(input_tokens=tokens, cached_input_tokens=1)) - alone,
            plain + self._listed(Usage(input_tokens=tokens, cache_write_tokens=1)) - alone,
            self._listed(Usage(input_tokens=tokens, output_tokens=1)) - alone,
        )
        half = tokens // 2
        tests = [Usage(tokens, half, 0, 977), Usage(tokens, 0, half, 31), Usage(tokens, half, tokens - half, 500_000)]
        return rates if all(rates.price(test) == self._listed(test) for test in tests) else None

    def _listed(self, usage: Usage) -> Decimal:
        counted: Any = self._usage_type(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            output_tokens=usage.output_tokens,
        )
        return self.factor * self._prices.calc_price(counted)["total_price"]


def price_table_for(model: ApiModel, provider_id: str, *, batch: bool = False) -> PriceTable | None:
    """The prices of a model at a provider, or None if ``model.pricing`` is ``unknown``.

    Args:
        provider_id: the provider's id in ``genai-prices``.
        batch: the prices of batches instead of live requests.

    Raises:
        ConfigError: no price is known or configured.
    """
    if model.pricing == "unknown":
        return None
    if model.pricing is not None:
        return StatedPrices(model.pricing, factor=BATCH_FACTOR if batch else Decimal(1))
    name = model.price_as or model.name
    try:
        return ListedPrices(name, provider_id, batch=batch)
    except LookupError as error:
        reason = error.args[0]
        if (vendor := _vendor_of(name, provider_id)) is not None:
            reason = f"it is a model of {vendor}: choose provider={vendor}, unless this server has it too"
        raise ConfigError(
            f"model.pricing: no price is known for {name!r} at {provider_id!r} ({reason}). State "
            "model.pricing.input_per_mtok and model.pricing.output_per_mtok in dollars, or name a listed model in "
            "model.price_as, or set model.pricing=unknown (then no budget can be set)"
        ) from None


def _vendor_of(name: str, provider_id: str) -> str | None:
    """The vendor other than ``provider_id`` whose list has a model, or None."""
    for vendor in _VENDORS:
        if vendor != provider_id:
            with suppress(LookupError):
                ListedPrices(name, vendor)
                return vendor
    return None


def worst_case(prices: PriceTable, input_tokens: int, output_tokens: int, *, cache_write: bool) -> Decimal:
    """The most that a request can cost: nothing is read from the prompt cache, the output has its maximum length, and
    the whole prompt is written to the cache if it may be. ``input_tokens`` decides the long-context tier.

    Args:
        input_tokens: an upper bound on the prompt's tokens.
        output_tokens: ``max_new_tokens``.
        cache_write: whether the provider may write its prompt cache.
    """
    plain = prices.price(Usage(input_tokens=input_tokens, output_tokens=output_tokens))
    if not cache_write:
        return plain
    written = Usage(input_tokens=input_tokens, cache_write_tokens=input_tokens, output_tokens=output_tokens)
    return max(plain, prices.price(written))


def caching_pays(prices: PriceTable, input_tokens: int, samples: int) -> bool:
    """Whether one request that writes the prompt cache and ``samples - 1`` that read it cost less than ``samples``
    requests without it."""
    plain = prices.price(Usage(input_tokens=input_tokens))
    written = prices.price(Usage(input_tokens=input_tokens, cache_write_tokens=input_tokens))
    read = prices.price(Usage(input_tokens=input_tokens, cached_input_tokens=input_tokens))
    return written + (samples - 1) * read < samples * plain
