"""What each interface is sent, and what is read from the oddities of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swe_infer.errors import ContextOverflow, RateLimited, RequestError, TransientError
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.anthropic_text import AnthropicText
from swe_infer.providers.azure_openai import AzureOpenAI
from swe_infer.providers.base import Answer, BatchProvider, Provider
from swe_infer.providers.gemini_batches import GeminiBatches
from swe_infer.providers.mistral_batches import MistralBatches
from swe_infer.providers.openai_batches import OpenAIBatches
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.providers.together_batches import TogetherBatches
from swe_infer.providers.unspoken import MAX_KEPT
from swe_infer.providers.wire import Unreadable, WireProvider
from swe_infer.types import Usage, sample_seed
from tests.providers.conftest import build, model_for, request_of
from tests.support.api_http import HttpRequest, Peer, serving
from tests.support.api_server import ApiServer


def with_open(provider: WireProvider, use: Callable[[WireProvider], Awaitable[Any]]) -> Any:
    async def life() -> Any:
        await provider.open()
        try:
            return await use(provider)
        finally:
            await provider.close()

    return asyncio.run(life())


def test_system_and_user_go_where_each_interface_wants_them() -> None:
    request = request_of("user part", "system part")
    chat = OpenAIChat().body(request, model_for("openai"))
    assert chat["messages"] == [
        {"role": "system", "content": "system part"},
        {"role": "user", "content": "user part"},
    ]
    responses = OpenAIResponses().body(request, model_for("openai"))
    assert (responses["instructions"], responses["input"]) == ("system part", "user part")
    messages = AnthropicMessages().body(request, model_for("anthropic"))
    assert (messages["system"], messages["messages"]) == ("system part", [{"role": "user", "content": "user part"}])
    text = AnthropicText().body(request, model_for("anthropic"))
    assert text["prompt"] == "\n\nHuman: system part\nuser part\n\nAssistant:"


def test_a_prompt_without_a_system_part_sends_none() -> None:
    request = request_of("user part", None)
    assert OpenAIChat().body(request, model_for("openai"))["messages"] == [{"role": "user", "content": "user part"}]
    assert "instructions" not in OpenAIResponses().body(request, model_for("openai"))
    assert "system" not in AnthropicMessages().body(request, model_for("anthropic"))


def test_the_output_bound_has_the_name_that_the_model_knows() -> None:
    old = OpenAIChat().body(request_of(), model_for("openai", max_tokens_key="max_tokens"))
    assert old["max_tokens"] == 256
    assert "max_completion_tokens" not in old


def test_each_sample_has_its_own_seed() -> None:
    model = model_for("openai", parameters=("temperature", "seed"))
    requests = [request_of(seed=3, sample=sample) for sample in (0, 1)]
    seeds = [OpenAIChat().body(request, model)["seed"] for request in requests]
    assert seeds == [sample_seed(request.decoding, "owner__name-1", request.sample) for request in requests]
    assert seeds[0] != seeds[1]


def test_extra_body_is_sent_as_it_is(server: ApiServer) -> None:
    model = model_for("openai", extra_body={"reasoning_effort": "high", "metadata": {"a": "b"}})
    with_open(build("openai", server), lambda p: p.complete(request_of(), model, timeout_s=60))
    body = server.log.asked()[0].body
    assert (body["reasoning_effort"], body["metadata"]) == ("high", {"a": "b"})


def test_the_model_s_version_goes_before_the_provider_s(server: ApiServer) -> None:
    for version, sent in (("2026-10-21", "2026-10-21"), (None, "2023-06-01")):
        model = model_for("anthropic", api_version=version)
        request = request_of(temperature=None)
        with_open(
            build("anthropic", server), partial(WireProvider.complete, request=request, model=model, timeout_s=60)
        )
        assert server.log.asked()[-1].headers["anthropic-version"] == sent
    seen: list[str] = []

    async def handler(request: HttpRequest, peer: Peer) -> None:
        seen.append(f"{request.path}?{request.query['api-version']}")
        peer.send(404, {"content-type": "application/json"}, b"{}")

    async def life() -> None:
        async with serving(handler) as port:
            provider = build("azure_openai", base_url=f"http://127.0.0.1:{port}")
            await provider.open()
            for version in ("2025-03-01-preview", None):
                with pytest.raises(RequestError):
                    await provider.complete(request_of(), model_for("openai", api_version=version), timeout_s=60)
            await provider.close()

    asyncio.run(life())
    path = "/openai/deployments/gpt-test/chat/completions"
    assert seen == [f"{path}?2025-03-01-preview", f"{path}?2024-10-21"]


def test_a_cached_prompt_is_marked_written_once_and_read_after(server: ApiServer) -> None:
    request = request_of("a long prompt " * 1000)

    async def twice(p: WireProvider) -> list[Usage]:
        return [
            (await p.complete(request, model_for("anthropic"), timeout_s=60, cache_prompt=True)).usage for _ in "12"
        ]

    written, read = with_open(build("anthropic", server), twice)
    body = server.log.asked()[0].body
    assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
    assert written.cache_write_tokens > 3000
    assert written.cached_input_tokens == 0
    assert read.cached_input_tokens == written.cache_write_tokens
    assert read.cache_write_tokens == 0
    assert written.input_tokens == read.input_tokens > written.cache_write_tokens
    hour = AnthropicMessages(cache_ttl="1h").body(request, model_for("anthropic"), cache_prompt=True)
    assert hour["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}


def test_openai_s_cache_is_named_where_wanted_and_off_where_writing_is_billed_for_nobody() -> None:
    one, other = request_of("one"), request_of("other")
    chat, model = OpenAIChat(), model_for("openai")
    key = chat.body(one, model, cache_prompt=True)["prompt_cache_key"]
    assert key == chat.body(request_of("one", sample=1), model, cache_prompt=True)["prompt_cache_key"]
    assert key != chat.body(other, model, cache_prompt=True)["prompt_cache_key"]
    assert not any("cache" in field for field in chat.body(one, model))
    billed = model_for("openai", billed_cache_writes=True)
    assert chat.body(one, billed)["prompt_cache_options"] == {"mode": "explicit"}
    assert OpenAIResponses().body(one, billed)["prompt_cache_options"] == {"mode": "explicit"}
    assert "prompt_cache_options" not in chat.body(one, billed, cache_prompt=True)
    elsewhere = OpenAIChat(send_cache_key=False).body(one, billed, cache_prompt=True)
    assert not any("cache" in field for field in elsewhere)


def test_cached_and_reasoning_tokens_are_counted_once() -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 300,
        "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 128},
        "completion_tokens_details": {"reasoning_tokens": 200},
    }
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
    assert OpenAIChat().read(body, None).usage == Usage(2000, 1024, 128, 300, 200)
    responses_usage = {
        "input_tokens": 2000,
        "output_tokens": 300,
        "input_tokens_details": {"cached_tokens": 1024},
        "output_tokens_details": {"reasoning_tokens": 200},
    }
    item = {"type": "message", "content": [{"type": "output_text", "text": "x"}]}
    response = {"status": "completed", "output": [item], "usage": responses_usage}
    assert OpenAIResponses().read(response, None).usage == Usage(2000, 1024, 0, 300, 200)
    message_usage = {
        "input_tokens": 100,
        "cache_read_input_tokens": 1500,
        "cache_creation_input_tokens": 400,
        "output_tokens": 300,
        "output_tokens_details": {"thinking_tokens": 200},
    }
    message = {"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": message_usage}
    assert AnthropicMessages().read(message, None).usage == Usage(2000, 1500, 400, 300, 200)


@pytest.mark.parametrize("stream", ["never", "always"])
def test_thinking_comes_first_and_is_no_part_of_the_text(server: ApiServer, stream: str) -> None:
    model = model_for("anthropic", extra_body={"thinking": {"type": "enabled", "budget_tokens": 64}})
    request = request_of(temperature=None)
    answer = with_open(build("anthropic", server, stream=stream), lambda p: p.complete(request, model, timeout_s=60))
    assert answer.text == server.log.answers()[0].texts[0]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([], ""),
        ([{"type": "thinking", "thinking": "hm", "signature": "s"}], "<think>\nhm\n</think>\n"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": "a"}, {"type": "tool_use", "input": {}}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text"}], ""),
        (["odd"], ""),
    ],
)
def test_a_message_s_text_is_its_text_blocks(content: list[Any], text: str) -> None:
    assert AnthropicMessages().read({"content": content, "stop_reason": "end_turn"}, None).text == text


@pytest.mark.parametrize(
    ("raw", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("tool_use", "other"),
        ("pause_turn", "other"),
        ("something_new", "other"),
    ],
)
def test_anthropic_s_stop_reasons(raw: str, finish: str) -> None:
    answer = AnthropicMessages().read({"content": [], "stop_reason": raw, "stop_details": {"category": "x"}}, None)
    assert answer.finish_reason == finish
    assert (answer.details.get("finish_reason") == raw) == (finish == "other")
    assert ("stop_details" in answer.details) == (finish == "refusal")


@pytest.mark.parametrize(
    ("choice", "text", "finish"),
    [
        ({"message": {"content": None}, "finish_reason": "stop"}, "", "stop"),
        ({"message": {"content": "a", "refusal": None}, "finish_reason": "length"}, "a", "length"),
        ({"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}, "No.", "refusal"),
        ({"message": {"content": "a"}, "finish_reason": "tool_calls"}, "a", "other"),
        ({"message": {"content": "a"}, "finish_reason": None}, "a", "other"),
        ({"message": {"content": "a"}}, "a", "other"),
        ({"message": {"content": [{"text": "a"}, {"text": "b"}]}, "finish_reason": "stop"}, "ab", "stop"),
        ({"message": {"reasoning_content": "hm", "content": "a"}, "finish_reason": "stop"}, "a", "stop"),
    ],
)  # fmt: skip
def test_the_choices_of_chat_servers(choice: dict[str, Any], text: str, finish: str) -> None:
    answer = OpenAIChat().read({"choices": [choice]}, None)
    assert (answer.text, answer.finish_reason) == (text, finish)


@pytest.mark.parametrize(
    ("body", "finish"),
    [
        ({"status": "completed"}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"status": "incomplete", "incomplete_details": None}, "other"),
        ({}, "other"),  # openai.types.responses.Response: the status is optional
        ({"status": None}, "other"),
    ],
)
def test_the_endings_of_responses(body: dict[str, Any], finish: str) -> None:
    output = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "content": [{"type": "output_text", "text": "a"}]},
    ]
    answer = OpenAIResponses().read({**body, "output": output}, None)
    assert (answer.text, answer.finish_reason) == ("a", finish)


def test_a_response_that_thought_until_its_bound_is_an_empty_answer() -> None:
    body = {
        "status": "incomplete",
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": [{"type": "reasoning", "summary": []}],
    }
    answer = OpenAIResponses().read(body, None)
    assert (answer.text, answer.finish_reason) == ("", "length")


_CALL = '<tool_call>\n{"name": "edit", "arguments": {"path": "a.py"}}\n</tool_call>'
_FUNCTION = {"name": "edit", "arguments": {"path": "a.py"}}


def _chat(message: dict[str, Any], finish: str = "stop") -> Answer:
    return OpenAIChat().read({"choices": [{"message": message, "finish_reason": finish}]}, None)


def _response(*output: dict[str, Any]) -> Answer:
    return OpenAIResponses().read({"status": "completed", "output": list(output)}, None)


def _message(*content: dict[str, Any]) -> Answer:
    return AnthropicMessages().read({"content": list(content), "stop_reason": "end_turn"}, None)


_SPOKEN: dict[str, Any] = {"type": "message", "content": [{"type": "output_text", "text": "a"}]}
_THOUGHT: dict[str, Any] = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}], "summary": []}


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        (_chat({"content": "a", "reasoning_content": "hm"}), {"reasoning": "hm"}),
        (_chat({"content": "a", "reasoning": "hm", "reasoning_details": [{"text": "hm"}]}), {"reasoning": "hm"}),
        (_chat({"content": "a", "refusal": "No."}), {"refusal": "No."}),
        (_chat({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "a"}]}),
         {"reasoning": "hm"}),
        (_chat({"content": "a", "tool_calls": [{"function": _FUNCTION}]}), {"tool_calls": _CALL}),
        (_chat({"content": "a", "function_call": _FUNCTION, "tool_calls": 7}), {"tool_calls": _CALL}),
        (_response(_THOUGHT, _SPOKEN), {"reasoning": "hm"}),
        (_response({"type": "function_call", **_FUNCTION}, _SPOKEN), {"tool_calls": _CALL}),
        (_message({"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "a"}), {"reasoning": "hm"}),
        (_message({"type": "tool_use", "name": "edit", "input": {"path": "a.py"}}, {"type": "text", "text": "a"}),
         {"tool_calls": _CALL}),
        (_chat({"content": "a", "reasoning_content": "x" * (MAX_KEPT + 7)}), {"reasoning": "x" * MAX_KEPT}),
        (_chat({"content": "a", "reasoning_content": None, "tool_calls": []}), {}),
    ],
)  # fmt: skip
def test_what_an_answer_has_beside_its_text_is_kept(answer: Answer, kept: dict[str, str]) -> None:
    assert answer.text == "a"
    assert {key: value for key, value in answer.details.items() if key != "usage_estimated"} == kept


@pytest.mark.parametrize(
    ("answer", "text", "used"),
    [
        (_chat({"content": None, "reasoning_content": "hm"}), "<think>\nhm\n</think>\n", "reasoning"),
        (_chat({"content": "", "reasoning_content": "hm"}, "length"), "<think>\nhm\n", "reasoning"),
        (_chat({"content": "\n", "tool_calls": [{"function": _FUNCTION}]}, "tool_calls"), _CALL, "tool_calls"),
        (_response(_THOUGHT), "<think>\nhm\n</think>\n", "reasoning"),
        (_response(_THOUGHT, {"type": "function_call", **_FUNCTION}), _CALL, "tool_calls"),
        (_message({"type": "tool_use", "name": "edit", "input": {"path": "a.py"}}), _CALL, "tool_calls"),
        (_chat({"content": None, "refusal": "No."}), "No.", "refusal"),
    ],
)
def test_an_empty_text_is_replaced_by_what_was_paid_for(answer: Answer, text: str, used: str) -> None:
    assert (answer.text, answer.details["text_from"]) == (text, used)


def test_streams_keep_reasoning_and_tool_calls() -> None:
    async def joined(provider: OpenAIChat | AnthropicMessages, events: list[Any]) -> Answer:
        async def sent() -> AsyncIterator[Any]:
            for event in events:
                yield event

        return provider.read(await provider.joined(sent(), {}), None)

    def delta(**fields: Any) -> dict[str, Any]:
        return {"choices": [{"delta": fields}]}

    def call(**function: str) -> list[dict[str, Any]]:
        return [{"index": 0, "function": function}]

    chat = [
        delta(reasoning_content="h"), delta(reasoning_content="m"),
        delta(tool_calls=call(name="edit", arguments="{")), delta(tool_calls=call(arguments="}")),
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    ]  # fmt: skip
    block = {"type": "content_block_delta", "index": 1}
    message = [
        {"type": "message_start", "message": {"content": [], "stop_reason": None}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "name": "edit", "input": {}},
        },
        {**block, "delta": {"type": "input_json_delta", "partial_json": "{"}},
        {**block, "delta": {"type": "input_json_delta", "partial_json": "}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {}},
    ]
    for provider, events in ((OpenAIChat(), chat), (AnthropicMessages(), message)):
        answer = asyncio.run(joined(provider, events))
        assert answer.text == '<tool_call>\n{"name": "edit", "arguments": "{}"}\n</tool_call>'
        assert answer.details["reasoning"] == "hm"


def test_a_failed_response_is_classified_by_its_code() -> None:
    for code, kind in (("server_error", TransientError), ("rate_limit_exceeded", RateLimited)):
        with pytest.raises(kind):
            OpenAIResponses().read({"status": "failed", "error": {"code": code, "message": "m"}}, None)


@pytest.mark.parametrize("status", ["in_progress", "queued", "cancelled", None])
def test_a_response_that_is_not_over_is_no_answer(status: str | None) -> None:
    with pytest.raises(Unreadable):
        OpenAIResponses().read({"status": status, "output": []}, None)


def raw_answer(body: bytes, kind: str = "application/json", status: int = 200) -> Answer:
    """What ``openai_compatible`` makes of a server that says exactly this."""

    async def handler(request: HttpRequest, peer: Peer) -> None:
        peer.send(status, {"content-type": kind}, body)

    async def life() -> Answer:
        async with serving(handler) as port:
            provider = build("openai_compatible", base_url=f"http://127.0.0.1:{port}/v1")
            await provider.open()
            try:
                return await provider.complete(request_of(), model_for("openai"), timeout_s=60)
            finally:
                await provider.close()

    return asyncio.run(life())


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b"{}", b'{"choices": {}}', b'{"choices": [null]}',
     b'{"choices": [{"message": "text"}]}', b"\x1f\x8b\x00", b"<html>"],
)  # fmt: skip
def test_a_body_of_another_shape_is_a_transient_error(body: bytes) -> None:
    with pytest.raises(TransientError) as caught:
        raw_answer(body)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "maximum context length is 4096 tokens", "code": 400}, ContextOverflow),
        ({"message": "upstream is busy", "code": 429}, RateLimited),
        ({"message": "upstream failed", "code": 502}, TransientError),
    ],
)
def test_an_error_under_status_200_is_an_error(error: dict[str, Any], kind: type[RequestError]) -> None:
    with pytest.raises(kind):
        raw_answer(json.dumps({"error": error}).encode())


def test_a_long_output_bound_is_streamed_where_silence_would_be_cut(server: ApiServer) -> None:
    for bound, streamed in ((16_000, False), (16_001, True)):
        request = request_of(max_new_tokens=bound)
        model = model_for("anthropic")
        with_open(
            build("anthropic", server), partial(WireProvider.complete, request=request, model=model, timeout_s=60)
        )
        assert server.log.asked()[-1].body.get("stream", False) is streamed


WORDS = [
    "choices",
    "message",
    "content",
    "text",
    "refusal",
    "finish_reason",
    "usage",
    "prompt_tokens",
    "model",
    "type",
    "completion_tokens",
    "output",
    "status",
    "prompt_tokens_details",
    "cached_tokens",
    "incomplete_details",
    "reason",
    "input_tokens",
    "output_tokens",
    "stop_reason",
    "stop_details",
    "completion",
    "error",
    "code",
    "cache_read_input_tokens",
    "candidates",
    "parts",
    "usageMetadata",
    "promptTokenCount",
    "response",
    "error",
]
CHAT = OpenAIChat()
VALUES = ["text", "message", "output_text", "completed", "incomplete", "stop", "end_turn", "max_tokens"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6),
    max_leaves=25,
)


@given(st.dictionaries(st.sampled_from(WORDS), JSON))
@example({"content": [], "stop_reason": "end_turn", "usage": {"input_tokens": "many"}})
@example({"content": [], "stop_reason": ["a"]})
@example({"choices": [{"message": {}, "finish_reason": {}}]})
@example({"choices": [{"message": {}}], "usage": {"prompt_tokens": float("inf")}})
@example({"status": "completed", "output": [{"type": "message", "content": 7}]})
@example({"content": [], "stop_reason": "end_turn", "usage": {"input_tokens": -1}})
@example({"status": "incomplete", "output": [], "incomplete_details": "x"})
@example({"candidates": [{"content": {"parts": [{"text": "a"}, 7]}}]})
@example(
    {"candidates": [{"finishReason": "STOP"}], "usageMetadata": {"promptTokenCount": "9", "totalTokenCount": []}}
)
@example({"error": {"code": 8, "message": [], "details": 7}})
def test_no_body_breaks_the_reading(body: dict[str, Any]) -> None:
    """Every JSON object is either an answer or a RequestError, whatever stands in it."""
    found: list[Answer | RequestError] = []
    for provider in (OpenAIChat(), OpenAIResponses(), AnthropicMessages(), AnthropicText()):
        with suppress(RequestError):
            found.append(provider.parse_answer(body, request_of(), "host, model", {}))
    for batches in (GeminiBatches(CHAT), MistralBatches(CHAT)):
        found += [batches._result("a-1", body), batches._result("a-1", {"response": body})]
    for answer in found:
        if isinstance(answer, RequestError):
            continue
        assert isinstance(answer.text, str)
        assert min(answer.usage.input_tokens, answer.usage.cached_input_tokens, answer.usage.output_tokens) >= 0
        json.dumps(answer.details)


def test_every_provider_keeps_the_contract() -> None:
    """For the type checker: the classes have the shape that the chain and the batches build on."""
    live: list[Provider] = [OpenAIChat(), AzureOpenAI(), OpenAIResponses(), AnthropicMessages(), AnthropicText()]
    chat: OpenAIChat
    batched: list[BatchProvider] = [AnthropicMessages(), OpenAIBatches(OpenAIResponses(), "/v1/responses")]
    for chat in (OpenAIChat(), AzureOpenAI()):
        batched += [form(chat) for form in (OpenAIBatches, MistralBatches, TogetherBatches, GeminiBatches)]
    assert {provider.mode for provider in live} == {"live"}
    assert [provider for provider in live if provider.has_batches] == live[:4]
    assert all(batches.max_batch_requests >= 50_000 for batches in batched)
