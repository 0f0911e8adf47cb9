"""What a request costs. Money is Decimal, tokens are whole numbers, and a model's price is found once, by the name in
the configuration, before anything is sent: the name in an answer (a dated snapshot, often) is never looked up.

Prices come from ``genai-prices``, which keeps every vendor's list with its history and its long-context tiers, unless
``model.pricing`` states them.
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
"""Vendors of models with the same name in ``genai-prices`` and in ``conf/provider``."""
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
    """``usage`` with parts that never exceed their whole, so that a provider's slip cannot lose a paid answer."""
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
    """Prices that ``model.pricing`` states. ``factor`` multiplies them (one half in a batch)."""

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
    """Dollars for a request, and for a token of each kind."""

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
    """Prices of ``genai-prices``, resolved when this is built and valid for that moment.

    Raises:
        LookupError: the list does not hold the model, or holds no price for its input or output.
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
                raise LookupError(f"genai-prices holds no {kind.removesuffix('_mtok')} price for {found.model.id!r}")
        self.factor = Decimal(1)
        if batch:
            live = genai_prices.calc_price(probe, model, provider_id=provider_id, genai_request_timestamp=now)
            # Many listed models lack a batch variant, and the list then answers with the live price, silently.
            if live.model_price.output_mtok == self._prices.output_mtok:
                self.factor = BATCH_FACTOR
        self.source = f"genai-prices {genai_prices.__version__}: {found.provider.id}/{found.model.id}"
        tiers = (tier for price in vars(self._prices).values() for tier in getattr(price, "tiers", ()))
        self._starts = sorted({tier.start for tier in tiers})
        self._rates: dict[int, _Rates | None] = {}

    def price(self, usage: Usage) -> Decimal:
        # A tier's price goes for all tokens of a request whose input is longer than the tier's start. Within a tier
        # the price is linear, and the list's own way to it takes a hundred times as long.
        usage = _consistent(usage)
        tier = bisect_left(self._starts, usage.input_tokens)
        if tier not in self._rates:
            if usage.input_tokens < 2:
                return self._listed(usage)
            self._rates[tier] = self._rates_at(usage.input_tokens)
        rates = self._rates[tier]
        return self._listed(usage) if rates is None else rates.price(usage)

    def _rates_at(self, tokens: int) -> _Rates | None:
        """The rates for prompts in the tier of one with so many tokens, or None where the price is not linear."""
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


def price_table_of(model: ApiModel, provider_id: str, *, batch: bool = False) -> PriceTable | None:
    """The tariff of a model at a provider, or None where ``model.pricing`` says ``unknown``.

    Args:
        provider_id: the provider's id in ``genai-prices``.
        batch: the price of a batch rather than that of a live request.

    Raises:
        ConfigError: no price is known, and the configuration states none.
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
    """The vendor other than ``provider_id`` that lists a model; None where neither does."""
    for vendor in _VENDORS:
        if vendor != provider_id:
            with suppress(LookupError):
                ListedPrices(name, vendor)
                return vendor
    return None


def worst_case(tariff: PriceTable, input_tokens: int, output_tokens: int, *, cache_write: bool) -> Decimal:
    """The most that a request can cost: nothing is read from a cache, the output is used up, and where a cache may
    be written all of the prompt is. Long-context tiers follow from ``input_tokens``.

    Args:
        input_tokens: an upper bound on the prompt's tokens.
        output_tokens: ``max_new_tokens``.
        cache_write: whether the request asks for its prompt to be cached.
    """
    plain = tariff.price(Usage(input_tokens=input_tokens, output_tokens=output_tokens))
    if not cache_write:
        return plain
    written = Usage(input_tokens=input_tokens, cache_write_tokens=input_tokens, output_tokens=output_tokens)
    return max(plain, tariff.price(written))


def caching_pays(tariff: PriceTable, input_tokens: int, samples: int) -> bool:
    """Whether one request that writes the provider's prompt cache and ``samples - 1`` that read it cost less than
    ``samples`` that do neither."""
    plain = tariff.price(Usage(input_tokens=input_tokens))
    written = tariff.price(Usage(input_tokens=input_tokens, cache_write_tokens=input_tokens))
    read = tariff.price(Usage(input_tokens=input_tokens, cached_input_tokens=input_tokens))
    return written + (samples - 1) * read < samples * plain
