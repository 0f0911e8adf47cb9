"""Dialects of ``usage``: what servers state, each with its source, and statements that cannot be true."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Answer, Bill
from swe_infer.providers.gemini_batches import GeminiBatches
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.providers.wire import WireProvider
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Pricing, Usage
from tests.api.scripted import requests
from tests.api.test_runner import Outcomes
from tests.providers.conftest import request_of
from tests.support.loopback import Handler, Server

CHAT: list[tuple[str, dict[str, Any], Usage]] = [
    # xAI: the extractor of genai-prices 0.2.3 for x-ai adds reasoning_tokens to completion_tokens; "separated from
    # the completion_tokens" (docs.cloud.google.com/vertex-ai/generative-ai/docs/partner-models/grok).
    (
        "reasoning beside the output",
        {
            "prompt_tokens": 1000, "completion_tokens": 3000, "total_tokens": 6900,
            "completion_tokens_details": {"reasoning_tokens": 2900},
        },
        Usage(1000, 0, 0, 5900, 2900),
    ),
    # Gemini through OpenAI's format (github.com/router-for-me/CLIProxyAPI/issues/5733).
    (
        "nothing but reasoning",
        {
            "prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 81,
            "completion_tokens_details": {"reasoning_tokens": 60},
        },
        Usage(21, 0, 0, 60, 60),
    ),
    # No total, and a part that is larger than the whole (the extractor of genai-prices 0.2.3 for x-ai).
    (
        "more reasoning than output",
        {"prompt_tokens": 100, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 20}},
        Usage(100, 0, 0, 25, 20),
    ),
    (
        "more reasoning than output, by another count",
        {
            "prompt_tokens": 100, "completion_tokens": 18, "total_tokens": 118,
            "completion_tokens_details": {"reasoning_tokens": 20},
        },
        Usage(100, 0, 0, 20, 20),
    ),
    # The same without details (github.com/mozilla-ai/any-llm/issues/1290).
    (
        "a total alone shows the reasoning",
        {"prompt_tokens": 20, "completion_tokens": 198, "total_tokens": 623},
        Usage(20, 0, 0, 603),
    ),
    # OpenAI: reasoning is part of the output (openai.types.CompletionUsage).
    (
        "reasoning in the output",
        {
            "prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150,
            "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 20},
            "completion_tokens_details": {"reasoning_tokens": 40},
        },
        Usage(100, 64, 20, 50, 40),
    ),
    # DeepSeek (docs.stigg.io/documentation/ai-agents/providers/deepseek, "cache usage in its own fields").
    (
        "DeepSeek",
        {
            "prompt_tokens": 100_000, "completion_tokens": 50, "total_tokens": 100_050,
            "prompt_cache_hit_tokens": 99_000, "prompt_cache_miss_tokens": 1000,
        },
        Usage(100_000, 99_000, 0, 50),
    ),
    # Kimi states cached tokens at the top level (github.com/vercel/ai/pull/12352).
    (
        "Kimi",
        {"prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905, "cached_tokens": 800},
        Usage(900, 800, 0, 5),
    ),
    # Databricks: the extractor of genai-prices 0.2.3.
    (
        "a gateway to Anthropic",
        {"prompt_tokens": 900, "completion_tokens": 5, "cache_read_input_tokens": 800},
        Usage(900, 800, 0, 5),
    ),
    # xAI and gateways to Anthropic: more cached tokens than the prompt has are not part of it (vercel/ai,
    # packages/xai/src/convert-xai-chat-usage.ts; github.com/decolua/9router/pull/2658).
    (
        "cached tokens beside the prompt",
        {
            "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12,
            "prompt_tokens_details": {"cached_tokens": 800},
        },
        Usage(805, 800, 0, 7),
    ),
    (
        "cached tokens beside the prompt, and in the total",
        {
            "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 912,
            "cache_read_input_tokens": 800, "cache_creation_input_tokens": 100,
        },
        Usage(905, 800, 100, 7),
    ),
    (
        "cached tokens and reasoning beside the others",
        {
            "prompt_tokens": 5, "completion_tokens": 3000, "total_tokens": 5905,
            "prompt_tokens_details": {"cached_tokens": 800}, "completion_tokens_details": {"reasoning_tokens": 2900},
        },
        Usage(805, 800, 0, 5900, 2900),
    ),
    # Mistral's three names (vercel/ai, packages/mistral/src/convert-mistral-usage.ts).
    ("Mistral", {"prompt_tokens": 900, "completion_tokens": 5, "num_cached_tokens": 800}, Usage(900, 800, 0, 5)),
    (
        "Mistral's slip",
        {"prompt_tokens": 900, "completion_tokens": 5, "prompt_token_details": {"cached_tokens": 800}},
        Usage(900, 800, 0, 5),
    ),
    # alibabacloud.com/help/en/model-studio/context-cache; docs.litellm.ai/docs/completion/prompt_caching
    (
        "DashScope",
        {
            "prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905,
            "prompt_tokens_details": {"cached_tokens": 10, "cache_creation_input_tokens": 800},
        },
        Usage(900, 10, 800, 5),
    ),
    (
        "LiteLLM",
        {
            "prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905,
            "prompt_tokens_details": {"cached_tokens": 10, "cache_creation_tokens": 800},
        },
        Usage(900, 10, 800, 5),
    ),
    # litellm.types.utils.CacheCreationTokenDetails
    (
        "LiteLLM, written for an hour",
        {
            "prompt_tokens": 900, "completion_tokens": 5, "total_tokens": 905,
            "prompt_tokens_details": {
                "cached_tokens": 10, "cache_creation_tokens": 800,
                "cache_creation_token_details": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 700},
            },
        },
        Usage(900, 10, 800, 5, 0, 700),
    ),
    # sglang: UsageInfo of srt/entrypoints/openai/protocol.py
    (
        "SGLang",
        {"prompt_tokens": 900, "completion_tokens": 50, "total_tokens": 950, "reasoning_tokens": 40},
        Usage(900, 0, 0, 50, 40),
    ),
    # protobuf.dev/programming-guides/json: 64-bit integers are strings; json-schema.org: 1.0 is an integer.
    # Arize-ai/openinference #1183: counts are sometimes strings.
    ("strings", {"prompt_tokens": "900", "completion_tokens": "5", "cached_tokens": "8"}, Usage(900, 8, 0, 5)),
    ("floats", {"prompt_tokens": 900.0, "completion_tokens": 5.0, "total_tokens": 905.0}, Usage(900, 0, 0, 5)),
    # vLLM: details are null unless a flag is set (github.com/vllm-project/vllm/issues/44961).
    (
        "vLLM",
        {
            "prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14,
            "prompt_tokens_details": None, "completion_tokens_details": None,
        },
        Usage(9, 0, 0, 5),
    ),
]  # fmt: skip


def chat(usage: Any, text: str = "PATCH", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage, **more}


def read(provider: WireProvider, body: dict[str, Any], user: str = "word " * 100_000) -> Answer:
    return provider.parse_answer(json.loads(json.dumps(body)), request_of(user, max_new_tokens=8192), "host", {})


@pytest.mark.parametrize("name", [name for name, *_ in CHAT])
def test_token_counts_of_chat_completions(name: str) -> None:
    usage, expected = next((stated, found) for other, stated, found in CHAT if other == name)
    answer = read(OpenAIChat(), chat(usage), "word " * expected.input_tokens)
    assert (answer.usage, "usage_estimated" in answer.details) == (expected, False)


def test_reasoning_of_xai_is_beside_the_output_without_a_total_too() -> None:
    # genai-prices 0.2.3: the extractor for x-ai
    usage = {"prompt_tokens": 9, "completion_tokens": 20, "completion_tokens_details": {"reasoning_tokens": 5}}
    for provider, output in ((OpenAIChat(name="xai", pricing_id="x-ai"), 25), (OpenAIChat(), 20)):
        assert read(provider, chat(usage), "fix it").usage == Usage(9, 0, 0, output, 5)
    told = {**usage, "total_tokens": 34}
    assert read(OpenAIChat(name="xai", pricing_id="x-ai"), chat(told), "fix it").usage.output_tokens == 25


def test_counts_of_gemini_s_own_api_cost_no_answer() -> None:
    # google.genai.types.GenerateContentResponseUsageMetadata; protobuf.dev/programming-guides/json
    batches = GeminiBatches(OpenAIChat(base_url="https://generativelanguage.googleapis.com/v1beta/openai/"))
    for stated, expected in (
        (
            {"promptTokenCount": 9, "candidatesTokenCount": 5, "thoughtsTokenCount": 7, "totalTokenCount": 21},
            (9, 12, 7),
        ),
        ({"promptTokenCount": "9", "candidatesTokenCount": "5", "thoughtsTokenCount": "7"}, (9, 12, 7)),
        ({"promptTokenCount": 9, "candidatesTokenCount": "many"}, (0, 2, 0)),  # estimated from the text alone
        ([], (0, 2, 0)),
    ):
        candidate = {"content": {"parts": [{"text": "PATCH"}]}, "finishReason": "STOP"}
        answer = batches._result("a-1", {"response": {"candidates": [candidate], "usageMetadata": stated}})
        assert isinstance(answer, Answer)
        usage = answer.usage
        assert (usage.input_tokens, usage.output_tokens, usage.reasoning_tokens) == expected


def test_reasoning_beside_the_output_of_a_response() -> None:
    # The same in the Responses API (github.com/router-for-me/CLIProxyAPI/pull/5746).
    message = {"type": "message", "content": [{"type": "output_text", "text": "PATCH"}]}
    usage = {
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 75,
        "output_tokens_details": {"reasoning_tokens": 60},
    }
    answer = read(
        OpenAIResponses(),
        {"status": "completed", "output": [message], "usage": usage, "service_tier": "flex"},
        "fix it",
    )
    assert (answer.usage, answer.bill.service_tier) == (Usage(10, 0, 0, 65, 60), "flex")


def test_lifetimes_and_speed_of_a_message() -> None:
    # anthropic.types.Usage and CacheCreation
    usage = {
        "input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
        "service_tier": "standard", "speed": "fast",
    }  # fmt: skip
    body = {"content": [{"type": "text", "text": "PATCH"}], "stop_reason": "end_turn", "usage": usage}
    answer = read(AnthropicMessages(), body)
    assert answer.usage == Usage(405, 100, 300, 7, 0, 200)
    assert answer.bill == Bill("standard", "fast", None, states_lifetimes=True)
    del usage["cache_creation"]
    assert not read(AnthropicMessages(), body).bill.states_lifetimes
    # LiteLLM's proxy: what Anthropic states, in the form of OpenAI
    details = {"cache_creation_token_details": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 5}}
    stated = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": details, "inference_geo": "us"}
    assert read(OpenAIChat(), chat(stated), "fix it").bill == Bill(None, None, None, states_lifetimes=True, geo="us")


@pytest.mark.parametrize(
    "usage",
    [None, {}, "many", 7, [], {"prompt_tokens": None, "completion_tokens": None},
     {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
     {"prompt_tokens": "12k", "completion_tokens": "3"}, {"prompt_tokens": 12.5, "completion_tokens": 3},
     {"prompt_tokens": "-12", "completion_tokens": "3"}, {"prompt_tokens": "9" * 5000, "completion_tokens": 3},
     {"prompt_tokens": float("nan"), "completion_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": -1},
     {"prompt_tokens": 12, "completion_tokens": 90_000_000}, {"prompt_tokens": 90_000_000, "completion_tokens": 3},
     {"prompt_tokens": 12, "completion_tokens": 3, "cached_tokens": 90_000_000},
     {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 90_000_000}],
    ids=str,
)  # fmt: skip
def test_counts_that_cannot_be_true_are_estimated(usage: Any) -> None:
    answer = read(OpenAIChat(), chat(usage, "the answer"), "word " * 30)
    assert answer.details["usage_estimated"] is True
    assert 50 <= answer.usage.input_tokens < 100
    assert 3 <= answer.usage.output_tokens <= 10


def test_one_token_for_a_long_answer_is_no_count() -> None:
    # abetlen/llama-cpp-python #1344: completion_tokens is 1 for any answer
    text = "return x + 1\n" * 40  # 13 characters each
    for outputs, is_count in ((1, False), (12, False), (14, True), (120, True)):
        answer = read(OpenAIChat(), chat({"prompt_tokens": 12, "completion_tokens": outputs}, text), "fix it")
        assert ("usage_estimated" not in answer.details) is is_count
        assert answer.usage.output_tokens == (outputs if is_count else -(-len(text) // 3))
    short = read(OpenAIChat(), chat({"prompt_tokens": 12, "completion_tokens": 1}, "-" * 64), "fix it")
    assert short.usage.output_tokens == 1


def test_the_part_of_a_prompt_that_was_not_cached_is_no_count_of_it() -> None:
    # github.com/decolua/9router/pull/2658: input_tokens of Claude alone; github.com/ollama/ollama/pull/16428
    prompt = "word " * 2000
    for inputs, is_count in ((3, False), (63, False), (64, True), (2050, True)):
        answer = read(OpenAIChat(), chat({"prompt_tokens": inputs, "completion_tokens": 5}), prompt)
        assert ("usage_estimated" not in answer.details) is is_count
        assert (answer.usage.input_tokens == inputs) is is_count
        assert answer.usage.input_tokens > 3000 or is_count
    stated = {"prompt_tokens": 3, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2400}}
    assert read(OpenAIChat(), chat(stated), prompt).usage == Usage(2403, 2400, 0, 5)
    for text, inputs in (("word " * 300, 3), ("word " * 450, 60)):  # short, or not too few by themselves
        answer = read(OpenAIChat(), chat({"prompt_tokens": inputs, "completion_tokens": 5}), text)
        assert answer.usage.input_tokens == inputs


COSTS: list[tuple[dict[str, Any], str | None]] = [
    # OpenRouter (openrouter.ai/docs/use-cases/usage-accounting)
    ({"cost": 0.95, "cost_details": {"upstream_inference_cost": 19}}, "0.95"),
    ({"cost": 0.95, "is_byok": True, "cost_details": {"upstream_inference_cost": 19}}, "19.95"),
    # @openrouter/sdk: OpenResponsesUsage; the total may be null, and without any of it the cost is OpenRouter's fee
    (
        {"cost": 0.01, "is_byok": True, "cost_details": {
            "upstream_inference_cost": None, "upstream_inference_prompt_cost": 0.2,
            "upstream_inference_completions_cost": 0.03,
        }},
        "0.24",
    ),
    ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": None}}, None),
    ({"cost": 0.01, "is_byok": True}, None), ({"cost": 0.01, "is_byok": "yes"}, "0.01"),
    ({"cost": 3.25e-05}, "0.0000325"),
    # xAI (docs.x.ai/developers/cost-tracking): 10,000,000,000 ticks are a dollar
    ({"cost_in_usd_ticks": 37_756_000}, "0.0037756"),
    ({"cost_in_usd_ticks": 0}, None), ({"cost_in_usd_ticks": -1}, None), ({"cost_in_usd_ticks": 10**19}, None),
    # Perplexity (github.com/vercel/ai/pull/13705)
    ({"cost": {"input_tokens_cost": 0.00001, "request_cost": 0.005, "total_cost": 0.00515}}, "0.00515"),
    ({"cost": {}}, None), ({"cost": {"total_cost": {}}}, None), ({"cost": [1]}, None),
    # DeepInfra (fighthealthinsurance, tests of ml/spend.py)
    ({"estimated_cost": 0.0003}, "0.0003"), ({"estimated_cost": -0.5}, None),
    ({"cost": 0.5, "estimated_cost": 1}, "0.5"),
    ({"cost_in_usd_ticks": "37756000"}, None), ({"cost_in_usd_ticks": True}, None),
    ({"cost": 0}, None), ({"cost": -1}, None), ({"cost": "free"}, None), ({"cost": None}, None),
    ({"cost": float("nan")}, None), ({"cost": True}, None), ({"cost": 10**9}, None), ({"cost": "0.5"}, "0.5"),
]  # fmt: skip


@pytest.mark.parametrize(("stated", "usd"), COSTS, ids=str)
def test_stated_costs(stated: dict[str, Any], usd: str | None) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, **stated}
    assert read(OpenAIChat(), chat(usage)).bill.usd == (None if usd is None else Decimal(usd))


def settled(usage: Any, headers: Mapping[str, str] | None = None, **options: Any) -> Completion:
    """The completion of a run against a server that answers so."""

    class Gateway(Handler):
        def respond(self) -> None:
            self.body()
            self.send(200, chat(usage, "the answer", model="m"), headers)

    outcomes = Outcomes()
    decoding = Decoding(max_new_tokens=64)
    with Server(Gateway) as server:
        name = options.pop("model", "deepseek/deepseek-v4.1-flash")
        model = ApiModel(name=name, pricing=options.pop("pricing", None))
        provider = OpenAIChat(name="gateway", base_url=f"{server.url}/v1", api_key_env=None, **options)
        api = ApiRunner(model=model, provider=provider, decoding=decoding)
        api.generate(requests(1, decoding=decoding), outcomes, threading.Event())
    ((_, outcome),) = outcomes
    assert isinstance(outcome, Completion)
    return outcome


def test_a_stated_cost_is_the_bill_where_it_is_charged_and_elsewhere_only_without_a_price() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost": 0.0123}
    header = {"x-litellm-response-cost": "3.25e-05"}  # docs.litellm.ai/docs/proxy/response_headers
    bare = {**usage, "cost": None}
    cheap = Pricing(input_per_mtok=Decimal(1), output_per_mtok=Decimal(2))
    ticks = {**bare, "cost_in_usd_ticks": 37_756_000}  # docs.x.ai/developers/cost-tracking
    searched = {**bare, "cost": {"request_cost": 0.005, "total_cost": 0.00515}}  # github.com/vercel/ai/pull/13705
    cases: list[tuple[dict[str, Any], dict[str, str], dict[str, Any], Decimal | None, str | None]] = [
        (ticks, {}, {"pricing_id": "x-ai", "model": "grok-4.7"}, Decimal("0.0037756"), "0.0037756"),
        (usage, {}, {"pricing_id": "openrouter"}, Decimal("0.0123"), "0.0123"),
        (searched, {}, {"pricing_id": "perplexity", "model": "sonar"}, Decimal("0.00515"), "0.00515"),
        ({**bare, "estimated_cost": 0.0003}, {}, {"pricing": "unknown"}, Decimal("0.0003"), "0.0003"),
        ({**bare, "estimated_cost": 0.0003}, {}, {"pricing": cheap}, Decimal("0.00002"), "0.0003"),
        (usage, {}, {"pricing": "unknown"}, Decimal("0.0123"), "0.0123"),
        (usage, {}, {"pricing": cheap}, Decimal("0.00002"), "0.0123"),
        (bare, header, {"pricing": "unknown"}, Decimal("0.0000325"), "0.0000325"),
        (bare, header, {"pricing": cheap}, Decimal("0.00002"), "0.0000325"),
        (bare, {"x-litellm-response-cost": "None"}, {"pricing": "unknown"}, None, None),
    ]
    for stated, headers, options, usd, noted in cases:
        outcome = settled(stated, headers, **options)
        assert outcome.cost_usd == usd, (headers, options)
        assert outcome.details.get("stated_cost_usd") == noted
    listed = settled(bare, {}, pricing_id="openrouter")
    assert listed.cost_usd is not None
    assert 0 < listed.cost_usd < Decimal("0.0001")


def test_no_answer_is_free_because_its_usage_is_missing() -> None:
    for usage in ({}, None, {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0, "cost": 0}):
        outcome = settled(usage, {"x-litellm-response-cost": "0.0"}, pricing_id="openrouter")
        assert outcome.details["usage_estimated"] is True
        assert outcome.cost_usd is not None
        assert outcome.cost_usd > 0
