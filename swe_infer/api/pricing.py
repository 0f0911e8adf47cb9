"""What a request costs. Money is Decimal, tokens are integers. A model's price is looked up once, by the name in the
configuration, before anything is sent; the name in an answer (often a dated snapshot) is never looked up.

Prices come from ``genai-prices``, which has the vendors' prices with their history, long-context tiers, service tiers
and hours, unless ``model.pricing`` sets them. A reservation is made at the dearest price that the request may be
billed at; it is replaced by the price of what the answer states.
"""

from __future__ import annotations

import logging
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Protocol
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.providers.base import Answer, Bill, PriceTerms
from swe_infer.text import log_once
from swe_infer.types import ApiModel, Pricing, Usage

logger = logging.getLogger(__name__)

_MILLION = Decimal(1_000_000)
_VENDORS = ("anthropic", "openai")
"""Vendors with the same name in ``genai-prices`` and in ``conf/provider``."""
BATCH_FACTOR = Decimal("0.5")
"""OpenAI, Azure and Anthropic bill a batch at half of every token price
(platform.openai.com/docs/guides/batch, docs.claude.com/en/docs/build-with-claude/batch-processing)."""
_HALF_PRICED_BATCHES = frozenset({"openai", "azure", "anthropic"})
_FULLY_PRICED_BATCHES = frozenset({"together"})
"""Together bills batches of a few models at half, and of all others at the standard price, which is used for all
(docs.together.ai/docs/inference/batch/overview)."""
_STATES_BILL = frozenset({"openrouter", "perplexity", "x-ai"})
"""Providers whose answers state what they charge (openrouter.ai/docs/use-cases/usage-accounting,
docs.x.ai/developers/cost-tracking; Perplexity with its fee for a search, github.com/vercel/ai/pull/13705)."""
_BASE_TIERS = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand", "scale", "batch"})
"""Service tiers at the base price: OpenAI's, Anthropic's, Groq's and Gemini's names of standard processing, and tiers
whose capacity or discount is priced apart. ``auto`` in a request may be another tier."""
_PREPAID_TIERS = {"anthropic": "priority"}
"""Tiers of committed capacity, which is paid for separately. Tokens use it in proportion to their base prices, at
which they are recorded (platform.claude.com/docs/en/api/service-tiers)."""
_REGIONAL = (
    (r"[a-z0-9]+\.api\.openai\.com", r"gpt-(?:5\.(?:[4-9]|\d\d)|[6-9])", Decimal("1.1")),
    (
        r"[a-z0-9-]+-aiplatform\.googleapis\.com|aiplatform\.[a-z]+\.rep\.googleapis\.com",
        r"claude-[a-z]+-(?:4-[5-9]|[5-9])(?!\d)",
        Decimal("1.1"),
    ),
    (r"[a-z]+-api\.together\.(?:ai|xyz)", r"", Decimal("1.25")),
    (r"[a-z0-9-]+\.api\.x\.ai", r"", Decimal("1.1")),
)
"""(Hosts that process requests in one region, models, how many times the listed price they cost there):
developers.openai.com/api/docs/guides/data-residency (models from 5 March 2026 on, the day of gpt-5.4),
docs.claude.com/en/docs/build-with-claude/claude-on-vertex-ai (from Claude 4.5 on),
docs.together.ai/docs/serverless/geo-specific-inference, docs.x.ai/developers/advanced-api-usage/regions."""
_GEO_PREMIUMS = {"us": Decimal("1.1")}
"""Anthropic's ``inference_geo`` with another price (platform.claude.com/docs/en/manage-claude/data-residency)."""
_GLOBAL = "global"
_HAS_GEO = re.compile(r"claude-[a-z]+-(?:4-[6-9]|[5-9])(?!\d)")
"""Models for which Anthropic's workspaces have a default ``inference_geo``: Claude 4.6 and later."""
_WITH_FEES = (
    "web_search_options",
    "search_parameters",
    "enable_search",
    "plugins",
    "mcp_servers",
    "fallbacks",
    "context_management",
)
"""Fields that let a vendor search, call other servers or models, or summarise the context, which it charges beside
the answer: of OpenAI, xAI, DashScope, OpenRouter and Anthropic (anthropic.types.beta.BetaUsage.iterations)."""
_TOOLS_WITHOUT_FEES = re.compile(
    r"function|custom|namespace|apply_patch|local_shell|(?:bash|text_editor|memory|computer|browser)(?:_\w+)?"
)
"""Types of tools that the vendor's server does not execute (openai.types.responses.ToolParam,
anthropic.types.ToolUnionParam). It charges for its own, such as $10 for 1,000 searches
(platform.claude.com/docs/en/about-claude/pricing, developers.openai.com/api/docs/pricing)."""
_STATE_PRICES = "prices in dollars per million tokens, 'model.pricing={input_per_mtok: X, output_per_mtok: Y}'"
_HORIZON = timedelta(days=1)
"""How long after its reservation a request may be billed."""
_KEPT = timedelta(minutes=1)
"""How long the sheets that may apply are not determined again. Prices that change meanwhile are among them."""
FREE = "free"
"""``provider.pricing_id`` of servers that charge nothing."""


class UnlistedPrice(LookupError):
    """There is no price for the service tier or speed of an answer. The message names it."""


class PriceTable(Protocol):
    """The price of a model's tokens at one provider."""

    @property
    def source(self) -> str:
        """Where the prices come from, for the log."""
        ...

    @property
    def terms(self) -> PriceTerms:
        """How requests are sent."""
        ...

    @property
    def states_bill(self) -> bool:
        """Whether the cost that an answer states is what the provider charges."""
        ...

    @property
    def depends_on_tier(self) -> bool:
        """Whether the list has several prices for a request without a service tier."""
        ...

    def unlisted(self, *, cache_writes: bool) -> str | None:
        """What requests ask for without a price in the table, such as ``service_tier=flex``; None: all is priced.

        Args:
            cache_writes: whether prompts may be written to the provider's cache.
        """
        ...

    def price(self, usage: Usage, bill: Bill | None = None, at: datetime | None = None) -> Decimal:
        """Dollars for one answer.

        Args:
            bill: what the answer states; None: the price of the tier that the request asks for.
            at: when the request was sent; None: now.

        Raises:
            UnlistedPrice: there is no price for what ``bill`` states.
        """
        ...

    def dearest(self, usage: Usage) -> Decimal:
        """Dollars at the dearest tier and hour that may apply to a request which is sent now."""
        ...


def _consistent(usage: Usage) -> Usage:
    """``usage`` with parts that do not exceed the whole, so that invalid counts do not lose a paid answer."""
    cached = max(usage.cached_input_tokens, 0)
    written_1h = max(usage.cache_write_1h_tokens, 0)
    written = max(usage.cache_write_tokens, written_1h)
    return Usage(
        input_tokens=max(usage.input_tokens, cached + written),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        output_tokens=max(usage.output_tokens, usage.reasoning_tokens, 0),
        reasoning_tokens=usage.reasoning_tokens,
        cache_write_1h_tokens=written_1h,
    )


@dataclass(frozen=True, slots=True)
class StatedPrices:
    """Prices from ``model.pricing``, which apply to every tier and hour. ``factor`` multiplies them (one half in a
    batch)."""

    pricing: Pricing
    factor: Decimal = Decimal(1)
    source: str = "model.pricing"
    terms: PriceTerms = field(default_factory=PriceTerms)
    states_bill: bool = False
    depends_on_tier: bool = False

    def unlisted(self, *, cache_writes: bool) -> str | None:
        return None

    def price(self, usage: Usage, bill: Bill | None = None, at: datetime | None = None) -> Decimal:
        usage = _consistent(usage)
        stated = self.pricing
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        cached = stated.input_per_mtok if stated.cached_input_per_mtok is None else stated.cached_input_per_mtok
        written = stated.input_per_mtok if stated.cache_write_per_mtok is None else stated.cache_write_per_mtok
        hourly = written if stated.cache_write_1h_per_mtok is None else stated.cache_write_1h_per_mtok
        dollars = (
            plain * stated.input_per_mtok
            + usage.cached_input_tokens * cached
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * written
            + usage.cache_write_1h_tokens * hourly
            + usage.output_tokens * stated.output_per_mtok
        )
        return self.factor * dollars / _MILLION

    def dearest(self, usage: Usage) -> Decimal:
        return self.price(usage)


@dataclass(frozen=True, slots=True)
class _Rates:
    """Price in dollars of a request, and of an input token, a token read from the cache, a cache write, a cache write
    for an hour, and an output token."""

    request: Decimal
    plain: Decimal
    cached: Decimal
    written: Decimal
    written_1h: Decimal
    output: Decimal

    def price(self, usage: Usage) -> Decimal:
        return (
            self.request
            + (usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens) * self.plain
            + usage.cached_input_tokens * self.cached
            + (usage.cache_write_tokens - usage.cache_write_1h_tokens) * self.written
            + usage.cache_write_1h_tokens * self.written_1h
            + usage.output_tokens * self.output
        )


class _PriceSheet:
    """A model's listed prices in one context and at one time."""

    def __init__(self, prices: Any, factor: Decimal) -> None:
        import genai_prices

        self._usage_type = genai_prices.Usage
        self._prices = prices
        self._factor = factor
        tiers = (tier for price in vars(prices).values() for tier in getattr(price, "tiers", ()))
        self._starts = sorted({tier.start for tier in tiers})
        self._rates: dict[int, _Rates | None] = {}

    def price(self, usage: Usage) -> Decimal:
        # The price of a tier applies to all tokens of a request whose input is longer than the tier's start. Within a
        # tier the price is linear, and computing it from rates is a hundred times faster than calc_price().
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
        hour = Usage(input_tokens=tokens, cache_write_tokens=1, cache_write_1h_tokens=1)
        rates = _Rates(
            request,
            plain,
            plain + self._listed(Usage(input_tokens=tokens, cached_input_tokens=1)) - alone,
            plain + self._listed(Usage(input_tokens=tokens, cache_write_tokens=1)) - alone,
            plain + self._listed(hour) - alone,
            self._listed(Usage(input_tokens=tokens, output_tokens=1)) - alone,
        )
        half = tokens // 2
        tests = [
            Usage(tokens, half, 0, 977),
            Usage(tokens, 0, half, 31),
            Usage(tokens, 0, half, 5, 0, half // 2),
            Usage(tokens, half, tokens - half, 500_000),
        ]
        return rates if all(rates.price(test) == self._listed(test) for test in tests) else None

    def _listed(self, usage: Usage) -> Decimal:
        counted: Any = self._usage_type(
            input_tokens=usage.input_tokens,
            cache_read_tokens=usage.cached_input_tokens,
            cache_write_tokens=usage.cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
        )
        dollars: Decimal = self._prices.calc_price(counted)["total_price"]
        return self._factor * dollars


_SHEETS: dict[tuple[str, Decimal], _PriceSheet] = {}


class ListedPrices:
    """Prices from ``genai-prices``.

    Args:
        batch: of requests in batches. A vendor without listed batch prices bills half (OpenAI, Azure, Anthropic) or
            at most the standard price (Together), or the price is unlisted.
        terms: how requests are sent.
        address: the server's base URL, whose region may have a premium.

    Raises:
        LookupError: the list has no such model, or no price for its input or output.
    """

    def __init__(
        self,
        model: str,
        provider_id: str,
        *,
        batch: bool = False,
        terms: PriceTerms | None = None,
        address: str = "",
    ) -> None:
        import genai_prices
        from genai_prices.types import StartDateConstraint, TimeOfDateConstraint

        self.terms = PriceTerms() if terms is None else terms
        self.states_bill = provider_id in _STATES_BILL
        self._batch = batch
        now = datetime.now(tz=UTC)
        probe = genai_prices.Usage(input_tokens=1, output_tokens=1)
        found = genai_prices.calc_price(probe, model, provider_id=provider_id, genai_request_timestamp=now)
        self._model: Any = found.model
        for kind in ("input_mtok", "output_mtok"):
            if getattr(found.model_price, kind) is None:
                raise LookupError(f"genai-prices has no {kind.removesuffix('_mtok')} price for {found.model.id!r}")
        # genai-prices ignores the context of a model that it finds among another provider's models.
        is_own = any(own is found.model for own in found.provider.models)
        self._variants = tuple(found.model.price_variants or ()) if is_own else ()
        constraints: list[Any] = [variant.constraint for variant in self._variants]
        if isinstance(found.model.prices, list):
            constraints += [conditional.constraint for conditional in found.model.prices]
        daily = [c for c in constraints if isinstance(c, TimeOfDateConstraint)]
        self._dates = sorted({c.start_date for c in constraints if isinstance(c, StartDateConstraint)})
        self._times = sorted({_utc(end) for c in daily for end in (c.start_time, c.end_time)})
        self._sheets: dict[tuple[str, str, int, int], _PriceSheet] = {}
        self._batch_is_listed = self._has("processing", "batch", now)
        self._batch_is_unlisted = batch and not (
            self._batch_is_listed or found.provider.id in _HALF_PRICED_BATCHES | _FULLY_PRICED_BATCHES
        )
        self.depends_on_tier = not batch and any("service_tier" in variant.when for variant in self._variants)
        half = batch and not self._batch_is_listed and found.provider.id in _HALF_PRICED_BATCHES
        self.factor = BATCH_FACTOR if half else Decimal(1)
        self.source = f"genai-prices {genai_prices.__version__}: {found.provider.id}/{found.model.id}"
        self._regional = _regional_premium(address, model)
        if self._regional != 1:
            self.source += f", {self._regional} times for the region of {urlsplit(address).hostname}"
        self._prepaid_tier = _PREPAID_TIERS.get(found.provider.id)
        self._has_geo = found.provider.id == "anthropic" and _HAS_GEO.search(model) is not None
        unknown = self._has_geo and self.terms.geo is None
        self._dearest_premium = max(_GEO_PREMIUMS.values()) if unknown else self._premium(self.terms.geo)
        """Of the answers so far. Before the first one, the workspace's default geo is not known."""
        self._knows_geo = not unknown
        self._nominal = self._nominal_context(now)
        self._served: set[tuple[str, str]] = set()
        """The contexts of the answers so far."""
        self._possible: tuple[_PriceSheet, ...] = ()
        """The sheets that may apply to a request, determined at ``_possible_at``."""
        self._possible_at = now - 2 * _HORIZON

    def unlisted(self, *, cache_writes: bool) -> str | None:
        now = datetime.now(tz=UTC)
        terms = self.terms
        if self._batch_is_unlisted:
            return "provider.mode=batch"
        if not self._batch and not _is_base(terms.service_tier, asked=True):
            tier = terms.service_tier or ""
            if not self._has("service_tier", tier, now):
                return f"service_tier={tier}"
        if not self._batch and not _is_base(terms.speed) and not self._has("speed", terms.speed or "", now):
            return f"speed={terms.speed}"
        if self._has_geo and terms.geo not in (None, _GLOBAL, *_GEO_PREMIUMS):
            return f"inference_geo={terms.geo}"
        return self._unlisted_ttl(now) if cache_writes or terms.caches_unasked else None

    def _unlisted_ttl(self, at: datetime) -> str | None:
        """The lifetime of the requests' cache writes, if it has no price."""
        ttl = self.terms.cache_ttl
        hourly = ttl == "1h" and self._sheet_prices(self._nominal, at).cache_write_1h_mtok is not None
        return None if ttl == "5m" or hourly else f"cache_ttl={ttl}"

    def price(self, usage: Usage, bill: Bill | None = None, at: datetime | None = None) -> Decimal:
        moment = datetime.now(tz=UTC) if at is None else at
        context, premium = self._nominal, self._premium(self.terms.geo)
        if bill is not None:
            if usage.cache_write_tokens and not bill.states_lifetimes and (missing := self._unlisted_ttl(moment)):
                raise UnlistedPrice(f"{self.source} has no price for {missing}")
            context = self._context_of(bill, moment)
            if context not in self._served:
                self._served.add(context)
                self._possible = ()
            premium = premium if bill.geo is None else self._premium(bill.geo)
            self._dearest_premium = max(premium, self._dearest_premium) if self._knows_geo else premium
            self._knows_geo = True
        return premium * self._sheet(context, moment).price(_consistent(usage))

    def dearest(self, usage: Usage) -> Decimal:
        usage = _consistent(usage)
        now = datetime.now(tz=UTC)
        if not self._possible or not timedelta() <= now - self._possible_at < _KEPT:
            sheets = (
                self._sheet(context, moment)
                for moment in self._moments(now)
                for context in self._possible_contexts(moment)
            )
            self._possible, self._possible_at = tuple(dict.fromkeys(sheets)), now
        return self._dearest_premium * max(sheet.price(usage) for sheet in self._possible)

    def _premium(self, geo: str | None) -> Decimal:
        """How many times the listed price a request costs that is processed in ``geo``."""
        return self._regional * (_GEO_PREMIUMS.get(geo or "", Decimal(1)) if self._has_geo else 1)

    # Contexts: a key and a value of genai-prices, or two empty strings for the base price.

    def _has(self, key: str, value: str, at: datetime) -> bool:
        """Whether the list has a price for a context. An unknown value would silently get the base price."""
        return any(
            dict(variant.when) == {key: value} and (variant.constraint is None or variant.constraint.active(at))
            for variant in self._variants
        )

    def _nominal_context(self, at: datetime) -> tuple[str, str]:
        """The context of what requests ask for; the base price if it is unlisted."""
        if self._batch:
            return ("processing", "batch") if self._batch_is_listed else ("", "")
        for key, value in (("service_tier", self.terms.service_tier), ("speed", self.terms.speed)):
            if value and self._has(key, value, at):
                return key, value
        return "", ""

    def _possible_contexts(self, at: datetime) -> Iterator[tuple[str, str]]:
        """The contexts in which a request may be billed. A tier that is asked for may be answered by the base tier,
        and ``auto`` by any (openai.types.chat.CompletionCreateParams.service_tier)."""
        yield self._nominal
        if self._batch:
            return
        yield "", ""
        yield from self._served
        if self.terms.service_tier in (None, "auto"):
            for variant in self._variants:
                for key, value in variant.when.items():
                    if key == "service_tier" and self._has(key, value, at):
                        yield key, value

    def _context_of(self, bill: Bill, at: datetime) -> tuple[str, str]:
        """The context in which an answer was billed. What it does not state is as in the request."""
        if self._batch:
            return self._nominal
        for key, stated, asked in (
            ("speed", bill.speed, self.terms.speed),
            ("service_tier", bill.service_tier, self.terms.service_tier),
        ):
            value = (asked or "") if stated is None else stated.strip().lower()
            if _is_base(value) or (key, value) == ("service_tier", self._prepaid_tier):
                continue
            if not self._has(key, value, at):
                raise UnlistedPrice(f"{self.source} has no price for {key}={value}")
            return key, value
        return "", ""

    # Times.

    def _moments(self, now: datetime) -> Iterator[datetime]:
        """Now, and every time in the next day at which a price changes."""
        yield now
        for clock in self._times:
            moment = datetime.combine(now.date(), clock, tzinfo=UTC)
            yield moment if moment > now else moment + timedelta(days=1)
        for date in self._dates:
            if now < (moment := datetime.combine(date, time(), tzinfo=UTC)) <= now + _HORIZON + _KEPT:
                yield moment

    def _sheet(self, context: tuple[str, str], at: datetime) -> _PriceSheet:
        at = at.astimezone(UTC) if at.tzinfo is not None else at.replace(tzinfo=UTC)
        key = (*context, bisect_right(self._dates, at.date()), bisect_right(self._times, at.time()))
        if (sheet := self._sheets.get(key)) is None:
            prices = self._sheet_prices(context, at)
            # Tables share sheets, because the first price of each takes milliseconds.
            shared = (str(sorted(vars(prices).items())), self.factor)
            sheet = self._sheets[key] = _SHEETS.setdefault(shared, _PriceSheet(prices, self.factor))
        return sheet

    def _sheet_prices(self, context: tuple[str, str], at: datetime) -> Any:
        return self._model.get_prices(at, dict([context]) if context[0] else None)


def _regional_premium(address: str, model: str) -> Decimal:
    """How many times the listed price a model costs at an address that processes requests in one region."""
    host = urlsplit(address).hostname or ""
    return next(
        (factor for hosts, models, factor in _REGIONAL if re.fullmatch(hosts, host) and re.search(models, model)),
        Decimal(1),
    )


def _utc(clock: time) -> time:
    """A time of day in UTC, without a zone. A time without a zone is in UTC."""
    if clock.tzinfo is None:
        return clock
    return datetime.combine(datetime(1970, 1, 2, tzinfo=UTC), clock).astimezone(UTC).time()


def _is_base(value: str | None, *, asked: bool = False) -> bool:
    """Whether a service tier or a speed has the base price.

    Args:
        asked: it is a request's, in which the capacity of ``scale`` is priced apart.
    """
    return value is None or (value in _BASE_TIERS and not (asked and value == "scale"))


def field_with_fees(model: ApiModel, prices: PriceTable) -> str | None:
    """The key of a request field for which the vendor charges more than the tokens, or None."""
    if not prices.dearest(Usage(input_tokens=1000, output_tokens=1000)):
        return None
    tools = model.extra_body.get("tools")
    kinds = [tool.get("type") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, Sequence) else []
    if any(kind is not None and not _TOOLS_WITHOUT_FEES.fullmatch(str(kind)) for kind in kinds):
        return "model.extra_body.tools"
    return next(
        (f"model.extra_body.{name}" for name in _WITH_FEES if model.extra_body.get(name) not in (None, False, [])),
        None,
    )


def price_table_for(
    model: ApiModel,
    provider_id: str | None,
    *,
    batch: bool = False,
    terms: PriceTerms | None = None,
    address: str = "",
) -> PriceTable | None:
    """The prices of a model at a provider, or None if ``model.pricing`` is ``unknown``.

    Args:
        provider_id: the provider's id in ``genai-prices``; None: by ``address``.
        batch: the prices of batches instead of live requests.
        terms: how requests are sent; None: without a service tier.
        address: the server's base URL.

    Raises:
        ConfigError: no price is known or configured.
    """
    terms = PriceTerms() if terms is None else terms
    if model.pricing == "unknown":
        return None
    if provider_id == FREE and model.pricing is None:
        return StatedPrices(Pricing(input_per_mtok=Decimal(0), output_per_mtok=Decimal(0)), source="no charge")
    found_id, ids = _listed_provider(provider_id, address)
    if model.pricing is not None:
        factor = BATCH_FACTOR if batch and found_id not in _FULLY_PRICED_BATCHES else Decimal(1)
        return StatedPrices(model.pricing, factor, terms=terms, states_bill=found_id in _STATES_BILL)
    if found_id is None:
        why = "is not set, and the server's address is of no listed provider"
        if provider_id is not None:
            why = f"{provider_id!r} is not in genai-prices"
        raise ConfigError(
            f"provider.pricing_id: {why}. Set it to the provider whose prices apply, or to free for a server of your "
            f"own, or state {_STATE_PRICES}, or set model.pricing=unknown (then no budget can be set). Providers: "
            f"{', '.join(ids)}"
        )
    name = model.price_as or model.name
    try:
        return ListedPrices(name, found_id, batch=batch, terms=terms, address=address)
    except LookupError as error:
        reason = error.args[0]
        place = repr(found_id)
        if provider_id not in (None, found_id):
            place += f", the provider at {urlsplit(address).hostname}"
        elif (vendor := _vendor_of(name, found_id)) is not None:
            reason = f"it is a model of {vendor}: choose provider={vendor}, unless this server has it too"
        raise ConfigError(
            f"model.pricing: no price is known for {name!r} at {place} ({reason}). State "
            f"{_STATE_PRICES}, or name a listed model in model.price_as, or set model.pricing=unknown (then no "
            "budget can be set)"
        ) from None


def _listed_provider(provider_id: str | None, address: str) -> tuple[str | None, list[str]]:
    """(the id in ``genai-prices`` of the provider with an id or an address, or None; all ids). The default ids of
    OpenAI's and Anthropic's APIs do not apply to the addresses of other listed providers."""
    from genai_prices.data_snapshot import get_snapshot

    snapshot = get_snapshot()
    ids = [provider.id for provider in snapshot.providers]
    if address and (provider_id is None or provider_id in _VENDORS):
        with suppress(LookupError):  # not listed: the id decides
            return snapshot.find_provider(None, None, address).id, ids
    if provider_id is not None:
        with suppress(LookupError):  # the caller reports it
            return snapshot.find_provider(None, provider_id, None).id, ids
    return None, ids


def _vendor_of(name: str, provider_id: str) -> str | None:
    """The vendor other than ``provider_id`` whose list has a model, or None."""
    for vendor in _VENDORS:
        if vendor != provider_id:
            with suppress(LookupError):
                ListedPrices(name, vendor)
                return vendor
    return None


def settled_usd(prices: PriceTable | None, usage: Usage, bill: Bill, at: datetime | None = None) -> Decimal | None:
    """What an answer cost; None if that is not known. A cost that the answer states counts if the provider charges
    it (OpenRouter, xAI), or if there is no price.

    Args:
        at: when the request was sent; None: now.
    """
    if prices is None or (prices.states_bill and bill.usd is not None):
        return bill.usd
    try:
        return prices.price(usage, bill, at)
    except UnlistedPrice as error:
        cost = "unknown" if bill.usd is None else "the figure that it states"
        log_once(logger, logging.WARNING, f"the cost of an answer is {cost}: {error}")
        return bill.usd


def with_lifetimes(answer: Answer, prices: PriceTable | None) -> Answer:
    """``answer``, with the requests' lifetime of cache writes if it states none."""
    if prices is None or answer.bill.states_lifetimes:
        return answer
    usage = prices.terms.with_lifetimes(answer.usage)
    return answer if usage is answer.usage else replace(answer, usage=usage)


def bill_details(bill: Bill) -> dict[str, str]:
    """What the record says about an answer's price."""
    tier = "fast" if bill.speed == "fast" else bill.service_tier
    usd = None if bill.usd is None else str(bill.usd)
    found = {"service_tier": tier, "inference_geo": bill.geo, "stated_cost_usd": usd}
    return {key: value for key, value in found.items() if value is not None}


def worst_case(prices: PriceTable, input_tokens: int, output_tokens: int, *, cache_write: bool) -> Decimal:
    """The most that a request can cost: at the dearest tier and hour, nothing is read from the prompt cache, the
    output has its maximum length, and the whole prompt is written to the cache if it may be. ``input_tokens`` decides
    the long-context tier.

    Args:
        input_tokens: an upper bound on the prompt's tokens.
        output_tokens: ``max_new_tokens``.
        cache_write: whether this program requests that the provider writes its prompt cache.
    """
    plain = prices.dearest(Usage(input_tokens=input_tokens, output_tokens=output_tokens))
    if not cache_write and not prices.terms.caches_unasked:
        return plain
    return max(plain, prices.dearest(written_usage(prices, input_tokens, output_tokens)))


def caching_pays(prices: PriceTable, input_tokens: int, samples: int) -> bool:
    """Whether one request that writes the prompt cache and ``samples - 1`` that read it cost less than ``samples``
    requests without it. A write costs what the lifetime in the requests' terms costs."""
    plain = prices.price(Usage(input_tokens=input_tokens))
    written = prices.price(written_usage(prices, input_tokens))
    read = prices.price(Usage(input_tokens=input_tokens, cached_input_tokens=input_tokens))
    return written + (samples - 1) * read < samples * plain


def written_usage(prices: PriceTable, input_tokens: int, output_tokens: int = 0) -> Usage:
    """The usage of a request that writes its whole prompt to the provider's cache."""
    written = Usage(input_tokens=input_tokens, cache_write_tokens=input_tokens, output_tokens=output_tokens)
    return prices.terms.with_lifetimes(written)
