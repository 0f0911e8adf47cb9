"""How much of a server's rate limit the API chain uses, and how often it is refused.

    python -m benchmarks.api_limits --per-minute 600 --burst 1 --count 600     # a limit that allows no bursts
    python -m benchmarks.api_limits --per-minute 600 --burst 60 --count 1100   # the vendors' bucket of a minute
    python -m benchmarks.api_limits --tokens-per-minute 400000 --count 400     # a limit of tokens alone

The measured limit is the server's own: what its bucket would have let through from the first request's arrival to the
last one's. Tokens count as OpenAI counts them, the prompt and the bound on the output when a request arrives, and
prompts then have 500 to 8,000 characters. The quota is learnt from the answers' headers, unless ``--configured``
states it.
"""

from __future__ import annotations

import argparse
import os
import random
import threading
import time

from swe_infer.api.limits import Limits
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Outcome, Prompt, Request
from tests.support.api_server import ApiServer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-minute", type=float, default=1200.0, help="requests that the server allows")
    parser.add_argument("--tokens-per-minute", type=float, help="tokens that it allows, and any number of requests")
    parser.add_argument("--burst", type=float, default=1.0, help="seconds' worth of it that may be used at once")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--latency", type=float, default=2.0, help="seconds")
    parser.add_argument("--vendor", choices=("openai", "anthropic"), default="openai")
    parser.add_argument("--configured", action="store_true", help="state the quota in the configuration")
    options = parser.parse_args()
    os.environ |= {"OPENAI_API_KEY": "sk-loopback", "ANTHROPIC_API_KEY": "sk-loopback"}
    decoding = Decoding(max_new_tokens=64)
    sizes = [2000] * options.count
    if options.tokens_per_minute is not None:
        chance = random.Random(0)
        sizes = [chance.randint(500, 8000) for _ in range(options.count)]
    requests = (
        Request(f"i{n}", 0, Prompt(None, f"{n} " + "word " * (s // 5)), decoding) for n, s in enumerate(sizes)
    )
    outcomes: list[Outcome] = []
    of_requests = None if options.tokens_per_minute is not None else options.per_minute
    with ApiServer(
        latency_s=options.latency,
        requests_per_minute=of_requests,
        tokens_per_minute=options.tokens_per_minute,
        burst_s=options.burst,
        prompt_cache=False,
        log_bodies=False,
    ) as server:
        provider: Provider = OpenAIChat(base_url=server.openai_url)
        model = ApiModel(name="gpt-4o")
        if options.vendor == "anthropic":
            provider, model = AnthropicMessages(base_url=server.anthropic_url), ApiModel(name="claude-sonnet-4-5")
        limits = Limits()
        if options.configured:
            limits = Limits(requests_per_minute=of_requests, tokens_per_minute=options.tokens_per_minute)
        began = time.monotonic()
        runner = ApiRunner(model=model, provider=provider, decoding=decoding, limits=limits)
        runner.generate(requests, lambda _, outcome: outcomes.append(outcome), threading.Event())
        wall_s = time.monotonic() - began
        asked = server.log.asked()
    taken = [exchange for exchange in asked if exchange.usable]
    arrivals = [exchange.received_at for exchange in taken]
    span_s = max(arrivals) - min(arrivals)
    if options.tokens_per_minute is None:
        used, per_minute = float(len(taken)), options.per_minute
    else:
        used = float(sum(e.usage.input_tokens + decoding.max_new_tokens for e in taken if e.usage is not None))
        per_minute = options.tokens_per_minute
    allowed = per_minute / 60 * (options.burst + span_s)
    refused = sum(exchange.status == 429 for exchange in asked)
    completed = sum(isinstance(outcome, Completion) for outcome in outcomes)
    print(
        f"{completed} of {options.count} completed in {wall_s:.1f} s: {100 * used / allowed:.1f} % of what "
        f"the server allowed, {refused} of {len(asked)} requests refused ({100 * refused / len(asked):.2f} %)"
    )


if __name__ == "__main__":
    main()
