"""Rate limits and the prompt cache of the loopback API server, as the vendors describe theirs.

Both vendors refill continuously (token bucket). OpenAI counts a request's prompt and its whole output bound when it
arrives; Anthropic counts input when it arrives (cached input excluded) and output as it is written.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from swe_infer.types import Usage
from tests.support.api_calls import Call, tokens

__all__ = ["PromptCache", "RateLimiter"]


@dataclass(slots=True)
class _Bucket:
    """``per_minute`` units flow in each minute; at most ``burst`` of them are kept."""

    per_minute: float
    burst: float
    level: float
    updated: float

    def refill(self, now: float) -> None:
        self.level = min(self.burst, self.level + (now - self.updated) * self.per_minute / 60)
        self.updated = now

    def wait_for(self, amount: float) -> float:
        """Seconds until ``amount`` fits; more than the burst only ever needs a full bucket."""
        return max(0.0, (min(amount, self.burst) - self.level) * 60 / self.per_minute)

    def full_in(self) -> float:
        return (self.burst - self.level) * 60 / self.per_minute


@dataclass
class RateLimiter:
    """Requests and tokens a minute; None: no limit.

    Args:
        burst_s: how many seconds' worth of the limit may be used at once. The vendors' bucket holds a minute; a test
            that wants a steady rate within seconds takes 1.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    burst_s: float = 60.0
    _buckets: dict[str, _Bucket] = field(default_factory=dict)

    def pass_time(self, seconds: float) -> None:
        """Refill as if so many seconds more had passed."""
        for bucket in self._buckets.values():
            bucket.updated -= seconds

    def admit(self, call: Call, now: float) -> tuple[float, dict[str, str]]:
        """(0 when admitted, else the seconds to wait; the headers that tell the client about it)."""
        needs = {"requests": (self.requests_per_minute, 1.0), "tokens": (self.tokens_per_minute, self._size(call))}
        limited = {name: (rate, need) for name, (rate, need) in needs.items() if rate is not None}
        wait = 0.0
        for name, (rate, need) in limited.items():
            bucket = self._bucket(name, rate, now)
            bucket.refill(now)
            wait = max(wait, bucket.wait_for(need))
        if wait == 0.0:
            for name, (_, need) in limited.items():
                self._buckets[name].level -= need
        write = _openai_headers if call.vendor == "openai" else _anthropic_headers
        headers = {}
        for name in limited if call.cloud is None else ():  # the clouds state no quotas
            headers.update(write(name, self._buckets[name]))
        if wait:
            headers["retry-after"] = str(int(wait) + 1)
            if call.vendor == "openai":
                headers["retry-after-ms"] = str(int(wait * 1000) + 1)
        return wait, headers

    def _bucket(self, name: str, rate: float, now: float) -> _Bucket:
        bucket = self._buckets.get(name)
        if bucket is None or bucket.per_minute != rate:
            burst = max(1.0, rate * self.burst_s / 60)
            bucket = self._buckets[name] = _Bucket(rate, burst, burst, now)
        return bucket

    @staticmethod
    def _size(call: Call) -> float:
        return float(call.input_tokens + (call.max_tokens or 0) * call.n)


def _openai_headers(name: str, bucket: _Bucket) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(int(bucket.per_minute)),
        f"x-ratelimit-remaining-{name}": str(max(0, int(bucket.level))),
        f"x-ratelimit-reset-{name}": _duration(bucket.full_in()),
    }


def _duration(seconds: float) -> str:
    """Go's way of writing a duration, as OpenAI sends it: ``6m0s``, ``1.5s``, ``20ms``."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:.3g}s" if minutes else f"{rest:.4g}s"


def _anthropic_headers(name: str, bucket: _Bucket) -> dict[str, str]:
    reset = datetime.now(UTC) + timedelta(seconds=bucket.full_in())
    kinds = ("requests",) if name == "requests" else ("tokens", "input-tokens", "output-tokens")
    headers = {}
    for kind in kinds:
        headers[f"anthropic-ratelimit-{kind}-limit"] = str(int(bucket.per_minute))
        headers[f"anthropic-ratelimit-{kind}-remaining"] = str(max(0, int(bucket.level)))
        headers[f"anthropic-ratelimit-{kind}-reset"] = reset.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


_BILLS_WRITES = re.compile(r"gpt-(5\.[6-9]|[6-9])")


class PromptCache:
    """Which prompts a provider has in its cache. A prompt is there once its first answer has been made.

    OpenAI caches by itself from 1,024 tokens on, in steps of 128, and bills the writing from gpt-5.6 on unless the
    request has the mode ``explicit``. Anthropic caches what a ``cache_control`` mark asks
    for, from 1,024 tokens on, and bills the writing.
    """

    minimum_tokens = 1024

    def __init__(self, capacity: int = 100_000) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._capacity = capacity

    def look_up(self, call: Call) -> tuple[int, int]:
        """(tokens read from the cache, tokens that will be written to it)."""
        if call.vendor == "openai":
            whole = call.input_tokens
            if whole < self.minimum_tokens:
                return 0, 0
            if _key(call, call.prompt) in self._known:
                return whole // 128 * 128, 0
            explicit = (call.body.get("prompt_cache_options") or {}).get("mode") == "explicit"
            return 0, whole // 128 * 128 if _BILLS_WRITES.match(call.model) and not explicit else 0
        if call.cache_prefix is None or tokens(call.cache_prefix) < self.minimum_tokens:
            return 0, 0
        size = tokens(call.cache_prefix)
        return (size, 0) if _key(call, call.cache_prefix) in self._known else (0, size)

    def warm(self, call: Call, usage: Usage) -> None:
        text = call.prompt if call.vendor == "openai" else call.cache_prefix
        if text is None or usage.input_tokens < self.minimum_tokens:
            return
        self._known[_key(call, text)] = None
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)


def _key(call: Call, text: str) -> bytes:
    return hashlib.blake2b(f"{call.model}\x1f{text}".encode(), digest_size=16).digest()
