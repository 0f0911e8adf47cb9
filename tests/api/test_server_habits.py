"""What a run makes of servers that refuse everything, ignore ``n`` or stop strings, truncate prompts, or contradict
themselves. The source of each habit is beside its test."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from swe_infer.api.limits import Limiter, Limits
from swe_infer.api.retry import Retry
from swe_infer.errors import (
    AuthenticationFailed,
    ModelNotFound,
    ProviderFatal,
    RateLimited,
    RateLimits,
    TransientError,
)
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Failure, Outcome, Request, Skip, Usage
from tests.api.scripted import ScriptedProvider, request, requests
from tests.api.test_runner import Outcomes
from tests.api.test_runner import runner as scripted_runner
from tests.providers.test_dialects import CHAT, SSE, sse
from tests.support.loopback import Handler, Server
from tests.support.virtual_time import run_virtual

Reply = Callable[[dict[str, Any]], tuple[int, object]]


class FourAtOnce(ScriptedProvider):
    """Takes four samples in one request, and gives ``given`` answers."""

    given = 4

    def max_samples(self, model: ApiModel, decoding: Decoding) -> int:
        return 4

    async def complete_samples(self, requests: Any, model: ApiModel, **options: Any) -> Any:
        return [await self.complete(one, model, **options) for one in requests[: self.given]]


class Served:
    """What a server was asked, and what a run made of its answers."""

    def __init__(self, reply: Reply, asked: list[Request], kind: str | None = None, **options: Any) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.error: ProviderFatal | None = None
        served = self

        class Speaker(Handler):
            def respond(self) -> None:
                body = json.loads(self.body())
                served.bodies.append(body)
                status, content = reply(body)
                self.send(status, content, {"Content-Type": kind} if kind else None)

        outcomes = Outcomes()
        with Server(Speaker) as server:
            make = options.pop("make", OpenAIChat)
            provider = make(
                name="own", base_url=f"{server.url}{options.pop('root', '/v1')}", api_key_env=options.pop("key", None)
            )
            model = ApiModel(name="m", pricing="unknown", **options.pop("model", {}))
            runner = ApiRunner(
                model=model,
                provider=provider,
                decoding=options.pop("decoding", asked[0].decoding),
                retry=Retry(backoff_s=0.01, max_backoff_s=0.02),
                **options,
            )
            try:
                runner.generate(asked, outcomes, threading.Event())
            except ProviderFatal as error:
                self.error = error
        self.outcomes: dict[tuple[str, int], Outcome] = outcomes.by_key

    @property
    def completions(self) -> list[Completion]:
        return [outcome for outcome in self.outcomes.values() if isinstance(outcome, Completion)]


def chat(*texts: str, **body: Any) -> dict[str, Any]:
    choices = [{"index": i, "message": {"content": t}, "finish_reason": "stop"} for i, t in enumerate(texts)]
    return {**CHAT, "choices": choices, **body}


@pytest.mark.parametrize(
    ("status", "message", "kind", "key"),
    [
        # BerriAI/litellm #3142 and #2532: the first request says it
        (400, "400: {'error': 'Invalid model name passed in model=m'}", ModelNotFound, "model.name=m"),
        (400, "No connected db.", AuthenticationFailed, "provider.api_key_env"),
        (404, "The model `m` does not exist.", ModelNotFound, "model.name=m"),
        (401, "Incorrect API key provided.", AuthenticationFailed, "provider.api_key_env"),
        # vLLM, llama.cpp, DeepSeek ("unsupported parameter"): the same 400 for each request
        (400, "Unsupported value: 'temperature' does not support 0.0 with this model (id {n}).", ProviderFatal,
         "decoding.temperature"),
        (422, "top_k: Extra inputs are not permitted", ProviderFatal, "model.extra_body.top_k"),
        (400, "Something is off, request {n}", ProviderFatal, "model.name, model.extra_body and provider.base_url"),
        # Amazon API Gateway before a server: {"message": "Forbidden"}
        (403, "Forbidden", ProviderFatal, "provider.api_key_env"),
        # LM Studio, for an address without /v1 (lmstudio-ai/lmstudio-bug-tracker #618)
        (200, "Unexpected endpoint or method. (POST /chat/completions)", ProviderFatal, "provider.base_url"),
    ],
)  # fmt: skip
def test_a_run_whose_first_answers_are_one_refusal_stops_and_names_the_key(
    status: int, message: str, kind: type[ProviderFatal], key: str
) -> None:
    numbers = iter(range(1000))
    asked = Served(
        lambda _: (status, {"error": {"message": message.replace("{n}", str(next(numbers)))}}),
        requests(200),
        model={"extra_body": {"top_k": 5}},
    )
    assert type(asked.error) is kind
    assert key in str(asked.error)
    assert ".;" not in str(asked.error)
    assert asked.error.exit_status == 2
    assert len(asked.bodies) < 60
    assert all(isinstance(outcome, Failure) for outcome in asked.outcomes.values())


def test_a_server_that_has_answered_500_alone_stops_the_run_after_all_tries_of_five_instances() -> None:
    # BerriAI/litellm 1.108.7 without prisma answers so if no key is sent
    asked = Served(
        lambda _: (500, "Internal Server Error"), requests(60), "text/plain",
        limits=Limits(start=1, doubling_s=1e6),
    )  # fmt: skip
    assert isinstance(asked.error, ProviderFatal)
    assert asked.error.exit_status == 1
    assert "provider.api_key_env and provider.base_url" in str(asked.error)
    tried = Counter(json.dumps(body) for body in asked.bodies)
    assert sorted(tried.values())[-5:] == [12] * 5
    assert len(tried) < 60


def test_the_same_refusal_after_an_answer_or_of_few_instances_costs_those_requests_alone() -> None:
    def reply(body: dict[str, Any]) -> tuple[int, object]:
        fine = body["messages"][-1]["content"] in ("fix it 0", "fix it 1")
        return (200, chat("PATCH")) if fine else (400, {"error": {"message": "bad prompt"}})

    late = Served(reply, requests(12))
    assert (late.error, len(late.completions), len(late.outcomes)) == (None, 2, 12)
    samples = [request("a", sample) for sample in range(8)]
    few = Served(lambda _: (400, {"error": {"message": "bad prompt"}}), samples)
    assert (few.error, len(few.outcomes)) == (None, 8)


@pytest.mark.parametrize(("make", "root"), [(OpenAIChat, "/v1"), (OpenAIResponses, "/v1"), (AnthropicMessages, "")])
def test_answers_that_cannot_be_read_are_not_asked_for_again_and_again(make: Any, root: str) -> None:
    # a framing of another API: the answer would be the same
    framing = Served(lambda _: (200, sse({"type": "unheard_of"})), requests(3), SSE, make=make, root=root)
    assert len(framing.bodies) == 3
    assert all(isinstance(outcome, Failure) for outcome in framing.outcomes.values())
    # a body that no reader knows: three times each, and the run stops after five instances
    shape = Served(lambda _: (200, {"result": "?"}), requests(40), make=make, root=root)
    assert isinstance(shape.error, ProviderFatal)
    assert len(shape.bodies) <= 3 * len({json.dumps(body) for body in shape.bodies})
    assert len({json.dumps(body) for body in shape.bodies}) < 40


def test_a_server_that_ignores_n_is_noticed_once(caplog: pytest.LogCaptureFixture) -> None:
    # abetlen/llama-cpp-python #1906, InternLM/lmdeploy #4419, vllm-project/vllm-omni #4269
    asked = [request(name, sample) for name in ("a", "b", "c", "d") for sample in range(6)]
    with caplog.at_level(logging.WARNING):
        found = Served(
            lambda _: (200, chat("PATCH")),
            asked,
            model={"parameters": ("temperature", "n")},
            limits=Limits(start=1, doubling_s=1e6),
        )
    assert len(found.completions) == 24
    assert len(found.bodies) == 24
    assert sum("n" in body for body in found.bodies) <= 2
    assert sum("ignores n" in record.message for record in caplog.records) == 1


def test_a_server_that_rejects_n_is_asked_for_one_sample_at_a_time(caplog: pytest.LogCaptureFixture) -> None:
    # llama-cpp-python #1130: "Only one completion choice is allowed"; Groq refuses n above 1
    def reply(body: dict[str, Any]) -> tuple[int, object]:
        if body.get("n", 1) > 1:
            return 400, {"error": {"message": "Only one completion choice is allowed"}}
        return 200, chat("PATCH")

    asked = [request(name, sample) for name in ("a", "b", "c") for sample in range(4)]
    with caplog.at_level(logging.WARNING):
        found = Served(reply, asked, model={"parameters": ("n",)}, limits=Limits(start=1, doubling_s=1e6))
    assert len(found.completions) == 12
    assert len(found.bodies) <= 12 + 2
    assert sum("rejects n" in record.message for record in caplog.records) == 1


def test_stop_strings_that_a_server_leaves_in_the_text_are_cut(tmp_path: Any) -> None:
    # huggingface/text-generation-inference #1724
    decoding = Decoding(max_new_tokens=64, stop=("</answer>", "<|im_end|>"))
    asked = [request("a", 0, decoding=decoding)]
    options: dict[str, Any] = {"decoding": decoding, "response_cache": str(tmp_path)}
    for _ in "12":  # from the server, then from the response cache
        found = Served(lambda _: (200, chat("PATCH<|im_end|>\n</answer>more")), asked, **options)
        assert [completion.text for completion in found.completions] == ["PATCH"]
    assert not found.bodies


def test_a_prompt_that_the_server_truncates_is_marked_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    # ollama/ollama #17889: a prompt_eval_count of 2,050 for a longer prompt, with status 200
    def reply(body: dict[str, Any]) -> tuple[int, object]:
        text = body["messages"][-1]["content"]
        tokens = min(2050, len(text) // 4)
        return 200, chat("PATCH", usage={"prompt_tokens": tokens, "completion_tokens": 2})

    words = "def some_function(argument):\n    return argument + 1\n"
    long = [request(f"long{n}", text=words * 4000) for n in range(3)]
    also_long = [request("x", text="x" * 200_000)]
    short = [request(f"short{n}", text=words * 100) for n in range(3)]
    with caplog.at_level(logging.WARNING):
        found = Served(reply, [*long, *also_long, *short])
    marked = {key[0] for key, outcome in found.outcomes.items() if outcome.details.get("prompt_truncated")}  # type: ignore[union-attr]
    assert marked == {"long0", "long1", "long2", "x"}
    assert sum("truncates prompts" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(("window", "kept"), [(4096, 4096), (4096, 2050)])
def test_prompts_that_are_truncated_by_less_than_a_half_are_noticed_by_their_equal_counts(
    window: int, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    # ollama/ollama #10368 (limit=2048 new=2048) and #17427 (half of the window and two)
    def reply(body: dict[str, Any]) -> tuple[int, object]:
        tokens = int(len(body["messages"][-1]["content"]) / 3.6)
        tokens = tokens if tokens <= window else kept
        return 200, chat("PATCH", usage={"prompt_tokens": tokens, "completion_tokens": 2})

    line = "        self.assertEqual(first_value, second_value)\n"
    fits = [request(f"fits{n}", text=line * (20 + 11 * n)) for n in range(20)]
    beyond = [request(f"beyond{n}", text=line * (290 + 25 * n)) for n in range(10)]
    with caplog.at_level(logging.WARNING):
        found = Served(reply, [*fits, *beyond])
    marked = {key[0] for key, outcome in found.outcomes.items() if outcome.details.get("prompt_truncated")}  # type: ignore[union-attr]
    assert len(marked) >= 3
    assert all(name.startswith("beyond") for name in marked)
    assert sum("truncates prompts" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("characters_a_token", [1.5, 2.5, 3.6, 4.7, 6.5])
def test_no_tokenizer_looks_like_a_truncation(characters_a_token: float, caplog: pytest.LogCaptureFixture) -> None:
    # bytes, code, English, and vocabularies with tokens of several words (arXiv 2503.13423)
    def reply(body: dict[str, Any]) -> tuple[int, object]:
        tokens = len(body["messages"][-1]["content"]) / characters_a_token
        return 200, chat("PATCH", usage={"prompt_tokens": int(tokens), "completion_tokens": 2})

    words = "the function returns a value that the caller has to check before it is used\n"
    asked = [request(f"i{n}", text=words * (60 + n % 40 + n)) for n in range(60)]
    with caplog.at_level(logging.WARNING):
        Served(reply, asked)
    assert not [record for record in caplog.records if "truncates" in record.message]


REFUSAL = RateLimits(limit_tokens=30_000, remaining_tokens=0, reset_tokens_s=360.0)
# @copilotkit/aimock 1.43 sends these with every 429
MOCK_REFUSAL = RateLimits(
    limit_requests=60, remaining_requests=0, reset_requests_s=1.0,
    limit_tokens=150_000, remaining_tokens=0, reset_tokens_s=360.0,
)  # fmt: skip


def paced(refusal: RateLimited, count: int) -> tuple[float, Limiter]:
    """(virtual seconds of ``count`` requests after one refusal, the limiter). Answers report no quotas."""

    async def scenario() -> tuple[float, Limiter]:
        limiter = Limiter(Limits(), 64, name="host")
        loop = asyncio.get_running_loop()

        async def ask() -> None:
            async with limiter.permit(4_000, 4_000) as permit:
                await asyncio.sleep(0.5)
                limiter.answered(permit, RateLimits(), Usage(input_tokens=1_000, output_tokens=100))

        await ask()
        async with limiter.permit(4_000, 4_000) as permit:
            limiter.refused(permit, refusal, 120)
        began = loop.time()
        for _ in range(count):
            await ask()
        return loop.time() - began, limiter

    return run_virtual(scenario())


@pytest.mark.parametrize("report", [REFUSAL, MOCK_REFUSAL])
def test_a_refusal_that_contradicts_itself_does_not_set_the_pace(
    report: RateLimits, caplog: pytest.LogCaptureFixture
) -> None:
    # OpenAI's headers (platform.openai.com/docs/guides/rate-limits): x-ratelimit-reset-tokens: 6m0s, Retry-After: 1
    with caplog.at_level(logging.INFO):
        seconds, limiter = paced(RateLimited("429", retry_after_s=1.0, rate_limits=report), 12)
    assert limiter.tokens_per_minute is None
    assert limiter.requests_per_minute is None
    assert seconds < 12 * 0.5 + 3
    (record,) = [record for record in caplog.records if "is not used" in record.message]
    assert "1 s" in record.message
    assert "360 s" in record.message


def test_what_a_refusal_reports_expires_and_the_log_says_when_and_why_the_pace_is_set(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stated = RateLimits(limit_tokens=30_000, remaining_tokens=0, reset_tokens_s=30.0)
    with caplog.at_level(logging.INFO):
        seconds, limiter = paced(RateLimited("429", retry_after_s=20.0, rate_limits=stated), 60)
    # 5,000 tokens each: ten seconds at the reported pace, for a minute; then half a second
    assert 60 < seconds < 60 + 60 * 0.5 + 20
    assert limiter.tokens_per_minute is None
    messages = [record.message for record in caplog.records]
    assert any("at most 30,000 tokens per minute, as a refusal reports" in message for message in messages)
    assert any("has expired" in message for message in messages)


def test_a_gateway_that_reports_another_quota_with_each_answer_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # docs.litellm.ai/docs/routing: requests are divided among deployments, each with its own quota
    async def scenario() -> None:
        limiter = Limiter(Limits(), 64, name="host")
        for number in range(200):
            async with limiter.permit(10, 10) as permit:
                await asyncio.sleep(0.01)
                limit = (60_000, 600)[number % 2]
                limiter.answered(permit, RateLimits(limit_requests=limit, remaining_requests=limit - 1), Usage())

    with caplog.at_level(logging.INFO):
        run_virtual(scenario())
    assert [record.args[1] for record in caplog.records] == ["60,000", "600"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("reported", "most_s"),
    [
        # no answer holds a run for longer than a minute before each request
        (RateLimits(limit_requests=60, remaining_requests=0, reset_requests_s=86_400.0), 30 * 61),
        (RateLimits(limit_tokens=1, remaining_tokens=0, reset_tokens_s=86_400.0), 30 * 61),
        # and a reset in years does not stall the run
        (RateLimits(limit_requests=60, remaining_requests=0, reset_requests_s=1e9), 60),
    ],
)
def test_no_absurd_quota_of_an_answer_stalls_a_run(reported: RateLimits, most_s: float) -> None:
    async def scenario() -> float:
        limiter = Limiter(Limits(), 16)
        began = asyncio.get_running_loop().time()

        async def ask() -> None:
            async with limiter.permit(4_000, 1_000) as permit:
                await asyncio.sleep(0.5)
                limiter.answered(permit, reported, Usage(input_tokens=1_000, output_tokens=100))

        await asyncio.gather(*(ask() for _ in range(30)))
        return asyncio.get_running_loop().time() - began

    assert run_virtual(scenario()) < most_s


def test_an_answer_confirms_the_pace_that_a_refusal_reports() -> None:
    async def scenario() -> None:
        limiter = Limiter(Limits(), 64)
        stated = RateLimits(limit_requests=60, remaining_requests=0, reset_requests_s=1.0)
        async with limiter.permit(10, 10) as permit:
            limiter.refused(permit, RateLimited("429", retry_after_s=0.5, rate_limits=stated), 120)
        async with limiter.permit(10, 10) as permit:
            limiter.answered(permit, stated, Usage())
        await asyncio.sleep(1_000)
        async with limiter.permit(10, 10):
            assert limiter.requests_per_minute == 60

    run_virtual(scenario())


def test_samples_in_one_request_that_come_back_in_part_are_no_sign_of_a_server_that_ignores_n() -> None:
    outcomes, provider = Outcomes(), FourAtOnce()
    provider.given = 2
    api = scripted_runner(provider)
    api.generate(requests(2, samples=4), outcomes, threading.Event())
    assert len(outcomes) == 8
    assert api.stats()["requests_sent"] == 4


@pytest.mark.parametrize("tries", [1, 2])
def test_what_may_have_been_billed_for_several_samples_is_recorded_once(tries: int) -> None:
    outcomes = Outcomes()
    broken = FourAtOnce(lambda one, n: TransientError("reset") if one.sample == n == 0 else None)
    api = scripted_runner(broken, retry=Retry(tries=tries, backoff_s=0.01))
    api.generate(requests(1, samples=4), outcomes, threading.Event())
    assert len(outcomes) == 4
    details = [outcome.details for _, outcome in outcomes if not isinstance(outcome, Skip)]
    assert sum("possibly_billed_usd" in one for one in details) == 1
    assert all(isinstance(outcome, Completion) for _, outcome in outcomes) == (tries == 2)
