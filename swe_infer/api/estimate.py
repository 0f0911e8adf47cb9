"""Estimates a run before anything is sent: requests, tokens, dollars and time, each as a range."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from swe_infer.api.pricing import PriceTable, caching_pays, written_usage
from swe_infer.types import Bottleneck, Estimate, Range, Usage

if TYPE_CHECKING:
    from swe_infer.api.limits import Limits

ESTIMATE_ERROR = (Decimal("0.85"), Decimal("1.10"))
"""Range of the true token count relative to an estimate by characters. SWE-bench prompts have 3.3 to 3.9 characters
per token; 3.0 is allowed for."""

_TOKENS_PER_S = (100.0, 20.0)
"""Output tokens per second of fast and of slow models."""
_OVERHEAD_S = (0.5, 5.0)
"""Seconds of a request apart from its output: queue, prompt, network."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One prompt that would be sent.

    Args:
        tokens: of the prompt, as counted.
        samples: how many answers are requested and not cached.
        separate: each sample has a prompt of its own, of this length.
    """

    tokens: int
    samples: int
    separate: bool = False


@dataclass(slots=True)
class _Sums:
    """Dollars at one end of the range."""

    live: Decimal = Decimal(0)
    cached: Decimal = Decimal(0)
    batch: Decimal = Decimal(0)


def estimate(
    planned: Iterable[Planned],
    *,
    tokens: str,
    exact: bool,
    max_new_tokens: int,
    prices: PriceTable | None,
    batch_prices: PriceTable | None,
    max_concurrency: int,
    limits: Limits,
    prompt_caching: Literal["auto", "always", "never"],
    max_samples: int = 1,
    in_batches: bool = False,
) -> Estimate:
    """Estimates ``planned``, which is read once.

    Args:
        tokens: the counter's name; ``exact``: whether its counts are exact.
        prices: of live requests; None: unknown.
        batch_prices: None: unknown, or the provider has no batches.
        max_samples: how many samples one live request may ask for; each request is charged the prompt once.
        in_batches: requests and tokens are those of batches, in which each sample is a request.
    """
    factors = (Decimal(1), Decimal(1)) if exact else ESTIMATE_ERROR
    outputs = (1, max_new_tokens)
    instances = requests = answers = counted = 0
    ends = (_Sums(), _Sums())
    for prompt in planned:
        instances += prompt.samples > 0
        times, samples, together = (prompt.samples, 1, 1) if prompt.separate else (1, prompt.samples, max_samples)
        sent = prompt.samples if in_batches else -(-prompt.samples // together)
        requests += sent
        answers += prompt.samples
        counted += prompt.tokens * sent
        for end, factor, output in zip(ends, factors, outputs, strict=True):
            size = int(prompt.tokens * factor)
            _add(end, times, size, output, samples, prices, batch_prices, prompt_caching, together)
    input_tokens = Range(Decimal(int(counted * factors[0])), Decimal(int(counted * factors[1])))
    seconds, limited_by = _time(requests, input_tokens, max_new_tokens, max_concurrency, limits)
    low, high = ends
    return Estimate(
        instances=instances,
        requests=requests,
        response_cache_hits=0,
        tokens=tokens,
        exact=exact,
        input_tokens=input_tokens,
        output_tokens=Range(Decimal(answers), Decimal(answers * max_new_tokens)),
        live_usd=None if prices is None else Range(low.live, high.live),
        cached_usd=None if prices is None else Range(low.cached, high.cached),
        batch_usd=None if batch_prices is None else Range(low.batch, high.batch),
        seconds=seconds,
        limited_by=limited_by,
    )


def _add(
    end: _Sums,
    prompts: int,
    size: int,
    output: int,
    samples: int,
    prices: PriceTable | None,
    batch_prices: PriceTable | None,
    prompt_caching: Literal["auto", "always", "never"],
    max_samples: int,
) -> None:
    """Adds the price of prompts of one length, each with all its samples."""
    if batch_prices is not None:
        end.batch += prompts * samples * batch_prices.price(Usage(input_tokens=size, output_tokens=output))
    if prices is None or samples == 0:
        return
    plain = prices.price(Usage(input_tokens=size, output_tokens=output))
    end.live += prompts * samples * plain
    if max_samples > 1 and samples > 1:
        full, rest = divmod(samples, max_samples)
        for times, together in ((full, max_samples), (1, rest)):
            if together:
                usage = Usage(input_tokens=size, output_tokens=together * output)
                end.cached += prompts * times * prices.price(usage)
        return
    shared = prompt_caching == "always" or (prompt_caching == "auto" and samples > 1)
    if not shared or size < 1024 or not caching_pays(prices, size, max(samples, 2)):
        end.cached += prompts * samples * plain
        return
    written = prices.price(written_usage(prices, size, output))
    read = prices.price(Usage(input_tokens=size, cached_input_tokens=size, output_tokens=output))
    end.cached += prompts * (written + (samples - 1) * read)


def _time(
    requests: int, input_tokens: Range, max_new_tokens: int, max_concurrency: int, limits: Limits
) -> tuple[Range, Bottleneck]:
    """Seconds that a live run takes, and what limits it at the slow end."""
    if requests == 0:
        return Range(Decimal(0), Decimal(0)), "nothing to do"
    rounds = max(1.0, requests / max_concurrency)
    ends = []
    bottleneck: Bottleneck = "concurrency"
    # A short answer is a sixteenth of the bound; a long one is as long as the bound.
    for speed, overhead, share in zip(_TOKENS_PER_S, _OVERHEAD_S, (1 / 16, 1.0), strict=True):
        seconds = rounds * (overhead + share * max_new_tokens / speed)
        bottleneck = "concurrency"
        by_quota: list[tuple[float, Bottleneck]] = []
        if limits.requests_per_minute is not None:
            by_quota.append((60 * requests / limits.requests_per_minute, "requests per minute"))
        if limits.tokens_per_minute is not None:
            output = 0 if limits.output_tokens_per_minute is not None else requests * max_new_tokens
            size = float(input_tokens.high if share == 1.0 else input_tokens.low) + output
            by_quota.append((60 * size / limits.tokens_per_minute, "tokens per minute"))
        if limits.output_tokens_per_minute is not None:
            written = requests * share * max_new_tokens
            by_quota.append((60 * written / limits.output_tokens_per_minute, "tokens per minute"))
        for bound, name in by_quota:
            if bound > seconds:
                seconds, bottleneck = bound, name
        ends.append(Decimal(f"{seconds:.1f}"))
    return Range(ends[0], ends[1]), bottleneck
