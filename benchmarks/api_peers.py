"""The peers' side of ``benchmarks.api_throughput``: run by the python of an environment that holds them, not by ours.

    python -m venv in && in/bin/pip install inspect-ai "openai>=3.54"      # litellm wants an older openai
    python -m venv li && li/bin/pip install litellm
    python -m benchmarks.api_throughput --peer inspect=in/bin/python litellm=li/bin/python

It imports nothing of this project. Each peer is used as its documentation shows, at its model layer: no store, no
budget, no tracking. Retries are on, the number of requests in flight is the same for all, and nothing is logged.

* Inspect: ``get_model(…).generate``, with ``max_connections``; chat completions, as all others use them.
* litellm: ``Router.acompletion`` behind a semaphore, since its own ``max_parallel_requests`` turns away whoever would
  have to wait; prices from the list that it brings along.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

KEY = "sk-loopback"


async def inspect(texts: list[str], url: str, concurrency: int, max_tokens: int) -> list[str]:
    from inspect_ai.model import GenerateConfig, get_model

    config = GenerateConfig(max_connections=concurrency, max_retries=5, temperature=0, max_tokens=max_tokens)
    async with get_model("openai/gpt-4o", base_url=url, api_key=KEY, config=config, responses_api=False) as model:

        async def one(text: str) -> str:
            return str((await model.generate(text)).completion)

        return await asyncio.gather(*(one(text) for text in texts))


async def litellm(texts: list[str], url: str, concurrency: int, max_tokens: int) -> list[str]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its list of prices is on the network otherwise
    from litellm import Router

    slots = asyncio.Semaphore(concurrency)
    parameters = {"model": "openai/gpt-4o", "api_base": url, "api_key": KEY}
    router = Router(model_list=[{"model_name": "gpt-4o", "litellm_params": parameters}], num_retries=5)

    async def one(text: str) -> str:
        async with slots:
            answer = await router.acompletion(
                model="gpt-4o",
                messages=[{"role": "user", "content": text}],
                max_completion_tokens=max_tokens,
                temperature=0,
            )
        return str(answer.choices[0].message.content)

    return await asyncio.gather(*(one(text) for text in texts))


Peer = Callable[[list[str], str, int, int], Awaitable[list[str]]]
PEERS: dict[str, Peer] = {"inspect": inspect, "litellm": litellm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--url", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, required=True)
    options = parser.parse_args()
    texts = [json.loads(line)["text"] for line in options.prompts.open()]

    async def run() -> list[str]:
        return await PEERS[options.peer](texts, options.url, options.concurrency, options.max_tokens)

    answers = asyncio.run(run())
    assert len(answers) == len(texts)
    assert all(answers)


if __name__ == "__main__":
    main()
