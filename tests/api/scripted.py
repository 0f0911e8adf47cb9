"""A provider in this process: a real implementation of the protocol whose answers and faults are stated by a test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Literal

from swe_infer.errors import RateLimits, RequestError
from swe_infer.providers.base import Answer, Provider
from swe_infer.runners.base import PendingSamples, ProcessResources, RunContext
from swe_infer.types import ApiModel, Decoding, Prompt, Request, Usage

Fate = Answer | BaseException | None
"""What becomes of one request; None: the usual answer."""


@dataclass
class ScriptedProvider(Provider):
    """Answers after ``latency_s``.

    Args:
        fate: decides by the request and how often it was sent before; None: the usual answer.
        held: whether an answer is still kept back.
        tokens: usage of the usual answer, from the prompt.
        ended_before: how many requests had ended when each was sent.
    """

    fate: Callable[[Request, int], Fate] = lambda request, sent_before: None
    latency_s: float = 0.0
    held: Callable[[ScriptedProvider, Request], bool] = lambda provider, request: False
    max_concurrency: int = 64
    name: str = "scripted"
    pricing_id: str = "openai"
    address: str = "https://scripted.example/v1"
    timeout_s: float = 60.0
    mode: Literal["live", "batch"] = "live"
    rate_limits: RateLimits = field(default_factory=RateLimits)
    tokens: Callable[[Request], Usage] = lambda request: Usage(input_tokens=100, output_tokens=10)
    sent: list[Request] = field(default_factory=list)
    ended_before: list[int] = field(default_factory=list)
    asked_to_cache: list[bool] = field(default_factory=list)
    times: Counter[tuple[str, int]] = field(default_factory=Counter)
    in_flight: int = 0
    peak: int = 0
    opened: int = 0
    closed: int = 0

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Everything is fine."""

    def check_access(self) -> None:
        """Nothing is missing."""

    async def open(self) -> None:
        self.opened += 1

    async def close(self) -> None:
        self.closed += 1

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        sent_before = self.times[request.key]
        self.times[request.key] += 1
        self.ended_before.append(len(self.sent) - self.in_flight)
        self.sent.append(request)
        self.asked_to_cache.append(cache_prompt)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            fate = self.fate(request, sent_before)
            if isinstance(fate, RequestError) and fate.status is not None:
                raise fate  # refusals come at once, answers take their time
            await asyncio.sleep(self.latency_s)
            while self.held(self, request):  # noqa: ASYNC110 - it may depend on anything
                await asyncio.sleep(0.001)
            if isinstance(fate, BaseException):
                raise fate
            return fate if fate is not None else self.usual(request)
        finally:
            self.in_flight -= 1

    def usual(self, request: Request) -> Answer:
        return Answer(
            text=f"answer to {request.instance_id}/{request.sample}",
            finish_reason="stop",
            usage=self.tokens(request),
            model="scripted-2026-01-01",
            request_id="req_1",
            rate_limits=self.rate_limits,
        )


def request(name: str = "a", sample: int = 0, text: str = "fix it", decoding: Decoding | None = None) -> Request:
    return Request(name, sample, Prompt(None, text), decoding or Decoding(max_new_tokens=100))


def requests(count: int, samples: int = 1, text: str = "fix it", decoding: Decoding | None = None) -> list[Request]:
    return [request(f"i{n}", s, f"{text} {n}", decoding) for n in range(count) for s in range(samples)]


def counted(asked: Iterable[Request]) -> list[PendingSamples]:
    """The same requests as an estimate takes them."""
    prompts: dict[tuple[str, Prompt, Decoding], set[int]] = {}
    for one in asked:
        prompts.setdefault((one.instance_id, one.prompt, one.decoding), set()).add(one.sample)
    return [
        PendingSamples(*key, max(numbers) + 1, set(range(max(numbers) + 1)) - numbers)
        for key, numbers in prompts.items()
    ]


def context(directory: Path, *, run_id: str = "run", spent_usd: Decimal = Decimal(0)) -> RunContext:
    """What a runner learns of its run; the runs of one directory share a sweep's ledger."""
    return RunContext(directory, run_id, spent_usd, directory / "sweep.sqlite", ProcessResources())
