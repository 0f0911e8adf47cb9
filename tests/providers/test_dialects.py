"""Answers in the words of servers that differ from the vendors' own: framing, streams, finish reasons, errors.

The source of each body is beside it. All of them go through the real SDKs and a real socket.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.providers.base import Answer
from swe_infer.providers.faults import classify
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.wire import WireProvider
from tests.providers.conftest import build, model_for, request_of
from tests.support.api_http import HttpRequest, Peer, serving

SSE = "text/event-stream; charset=utf-8"
JSON = "application/json"
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "PATCH"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
}
MESSAGE = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "PATCH"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 2},
}
OUTPUT = {"type": "message", "content": [{"type": "output_text", "text": "PATCH"}]}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "model": "m",
    "output": [OUTPUT],
    "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
}


def sse(*events: Any, named: bool = False, done: bool = False) -> bytes:
    """Events as the vendors send them; ``named`` adds the line with the event's type."""
    lines = [
        (f"event: {event['type']}\n" if named else "")
        + f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n"
        for event in events
    ]
    return "".join([*lines, *(["data: [DONE]\n\n"] if done else [])]).encode()


def delta(content: Any = None, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}
    return {"object": "chat.completion.chunk", "model": "m", "choices": [choice], **fields}


MESSAGE_EVENTS = sse(
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "PATCH"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
    named=True,
)
RESPONSE_EVENTS = sse(
    {"type": "response.created", "response": {**RESPONSE, "status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "PATCH"},
    {"type": "response.output_item.done", "output_index": 0, "item": OUTPUT},
    {"type": "response.completed", "response": RESPONSE},
    named=True,
)
CHAT_EVENTS = sse(delta("PAT"), delta("CH"), delta(finish="stop"), {"choices": [], "usage": CHAT["usage"]}, done=True)


class Recorded:
    """A server that answers every request alike, and records the bodies of the requests."""

    def __init__(
        self, body: bytes, kind: str = JSON, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.body, self.kind, self.status, self.headers = body, kind, status, headers or {}
        self.asked: list[dict[str, Any]] = []

    async def __call__(self, request: HttpRequest, peer: Peer) -> None:
        self.asked.append(json.loads(request.body))
        peer.send(self.status, {"content-type": self.kind, **self.headers}, self.body)


def life(server: Recorded, name: str, use: Callable[[WireProvider], Awaitable[Any]], **changes: Any) -> Any:
    async def run() -> Any:
        async with serving(server) as port:
            versioned = "/v1" if name.startswith("openai") else ""
            provider = build(name, base_url=f"http://127.0.0.1:{port}{versioned}", **changes)
            await provider.open()
            try:
                return await use(provider)
            finally:
                await provider.close()

    return asyncio.run(run())


def ask(server: Recorded, name: str = "openai_compatible", **changes: Any) -> Answer:
    found: Answer = life(server, name, lambda p: p.complete(request_of(), model_for(name), timeout_s=60), **changes)
    return found


@pytest.mark.parametrize(
    ("name", "whole", "events"),
    [
        # BerriAI/litellm #25766: a chat server that always sends events; facts of any gateway that never does
        ("openai_compatible", CHAT, CHAT_EVENTS),
        # transformers 5.23, cli/serving/response.py: `body.get("stream", True)`; BerriAI/litellm #34094
        ("openai_responses", RESPONSE, RESPONSE_EVENTS),
        # LiteLLM's proxy answers a streamed /v1/messages with JSON
        ("anthropic", MESSAGE, MESSAGE_EVENTS),
    ],
)
def test_the_reader_is_chosen_by_the_answer_and_stream_is_always_sent(
    name: str, whole: dict[str, Any], events: bytes
) -> None:
    ways = [
        (json.dumps(whole).encode(), JSON),
        (
            b"\n\n" + json.dumps(whole, indent=1).encode(),
            SSE,
        ),  # mislabelled; DeepSeek sends blank lines while it waits
        (events, SSE),
        (events, JSON),
        (b": keep-alive\r\n\r\n" + events.replace(b"\n", b"\r\n"), "text/plain"),
    ]
    for stream, sent in (("never", False), ("always", True), (False, False), (True, True)):
        for body, kind in ways:
            server = Recorded(body, kind)
            answer = ask(server, name, stream=stream)
            assert (answer.text, answer.finish_reason) == ("PATCH", "stop"), (stream, body)
            assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)
            assert "usage_estimated" not in answer.details
            assert [request["stream"] for request in server.asked] == [sent]


def test_a_framing_that_cannot_be_read_is_final_and_a_request_of_auto_streams_long_answers_alone() -> None:
    for name in ("openai_compatible", "openai_responses", "anthropic"):
        with pytest.raises(TransientError, match="stream") as caught:
            ask(Recorded(sse({"type": "unheard_of"}), SSE), name)
        assert caught.value.is_final
    for name, key in (("openai", "max_completion_tokens"), ("openai_responses", "max_output_tokens")):
        provider = build(name, stream="auto")
        assert [provider.streams({key: bound}) for bound in (16_000, 16_001)] == [False, True]
    assert not build("openai", stream="auto").streams({"max_completion_tokens": 90_000, "n": 4})


STREAMS: list[tuple[str, Sequence[Any]]] = [
    # Azure: content filter annotations (microsoft/autogen #6465, AbanteAI/archive-old-cli-mentat #429)
    ("annotations", [{"choices": [], "prompt_filter_results": []}, delta("PATCH"), delta(finish="stop"),
                     {"choices": [{"index": 0, "finish_reason": None, "content_filter_offsets": {}}]}]),
    # eneo-ai/eneo #126: a choice whose delta is null
    ("null delta", [delta("PATCH"), {"choices": [{"delta": None, "index": 0}]}, delta(finish="stop")]),
    # odysseus-dev/odysseus #2389: null among the choices (MiniMax)
    ("null choice", [{"choices": [None]}, delta("PATCH"), delta(finish="stop")]),
    ("no choices", [{"object": "ping"}, delta("PATCH"), {"id": "x", "choices": None}, delta(finish="stop")]),
    # NousResearch/hermes-agent #89575
    ("data: null", ["null", delta("PAT"), "null", delta("CH"), delta(finish="stop"), "null"]),
    # BerriAI/litellm #16272: Mistral's reasoning models stream lists
    ("lists", [delta([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
               delta([{"type": "text", "text": "PATCH"}]), delta(finish="stop")]),
    # ollama/ollama #4357: an empty finish reason in each event
    ("empty finish", [delta("PATCH", ""), delta("", ""), delta(finish="stop")]),
    # a whole chat.completion in one event, as gateways that imitate streams send it
    ("whole", [CHAT]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "events"), STREAMS, ids=[name for name, _ in STREAMS])
def test_no_odd_event_costs_a_streamed_answer(name: str, events: Sequence[Any]) -> None:
    answer = ask(Recorded(sse(*events, done=True), SSE), stream="always")
    assert (answer.text, answer.finish_reason) == ("PATCH", "stop")
    assert answer.details.get("reasoning") == ("hm" if name == "lists" else None)


@pytest.mark.parametrize("name", ["openai_compatible", "openai_responses", "anthropic"])
def test_plain_text_in_a_stream_is_no_part_of_the_answer_but_of_the_error(name: str) -> None:
    whole = {"openai_compatible": CHAT_EVENTS, "openai_responses": RESPONSE_EVENTS, "anthropic": MESSAGE_EVENTS}[name]
    first, _, rest = whole.partition(b"\n\n")
    answer = ask(Recorded(first + b"\n\ndata: ping\n\n" + rest, SSE), name, stream="always")
    assert answer.text == "PATCH"
    with pytest.raises(TransientError, match="upstream went away"):
        ask(Recorded(first + b"\n\ndata: upstream went away\n\n", SSE), name, stream="always")


def test_usage_is_found_where_servers_put_it_in_streams() -> None:
    usage = CHAT["usage"]
    for events in (
        # Portkey-AI/gateway #1072: Groq's last chunk
        [delta("PATCH"), delta(finish="stop", x_groq={"id": "req_1", "usage": usage})],
        # earendil-works/pi #2017: Moonshot
        [delta("PATCH"), {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "usage": usage}]}],
        # BerriAI/litellm #17136: xAI, in the chunk before the last
        [delta("PATCH"), delta(finish="stop", usage=usage), {"choices": [], "usage": None}],
    ):
        answer = ask(Recorded(sse(*events, done=True), SSE), stream="always")
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)
        assert "usage_estimated" not in answer.details


def test_a_stream_of_the_text_so_far_is_not_repeated() -> None:
    # QwenLM/qwen-code #3896: DashScope's coding plan; can1357/oh-my-pi #2434: MiniMax's reasoning
    text = "--- a/x.py\n+++ b/x.py\n@@ -1,2 +1,2 @@\n-a = 1\n+a = 2\n b = 3\n" * 3
    ends = (1, 2, 30, 30, 90, len(text))
    for key in ("content", "reasoning_content"):
        events = [{"choices": [{"index": 0, "delta": {key: text[:end]}}]} for end in ends]
        answer = ask(Recorded(sse(*events, delta("PATCH"), delta(finish="stop"), done=True), SSE), stream="always")
        if key == "content":  # not a prefix of the rest: a stream of increments, some of which are alike
            assert answer.text == "".join(text[:end] for end in ends) + "PATCH"
            answer = ask(Recorded(sse(*events, delta(finish="stop"), done=True), SSE), stream="always")
            assert answer.text == text
        else:
            assert (answer.text, answer.details["reasoning"]) == ("PATCH", text)
    short = [delta("-" * 40), delta("-" * 41), delta("-" * 63), delta("-" * 80), delta(finish="stop")]
    assert len(ask(Recorded(sse(*short, done=True), SSE), stream="always").text) == 40 + 41 + 63 + 80


def test_a_zero_in_a_later_usage_does_not_replace_a_count() -> None:
    # sgl-project/sglang #20830: input_tokens=0 in message_delta, and #20678: in message_start
    start, end = {"input_tokens": 7, "output_tokens": 1}, {"input_tokens": 0, "output_tokens": 2}
    for first, last in ((start, end), ({**start, "input_tokens": 0}, {**end, "input_tokens": 7})):
        events = MESSAGE_EVENTS.replace(json.dumps(MESSAGE["usage"]).encode(), json.dumps(first).encode())
        events = events.replace(b'{"output_tokens": 2}', json.dumps(last).encode())
        answer = ask(Recorded(events, SSE), "anthropic", stream="always")
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)
        assert "usage_estimated" not in answer.details
    # the same in OpenAI's format, where a chunk of zeros follows (atopos31/llmio #71)
    zeros = dict.fromkeys(CHAT["usage"], 0)
    for usages in ([CHAT["usage"], zeros], [zeros, CHAT["usage"]]):
        chunks = [{"choices": [], "usage": usage} for usage in usages]
        answer = ask(Recorded(sse(delta("PATCH"), delta(finish="stop"), *chunks, done=True), SSE), stream="always")
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 2)


def test_bytes_that_are_not_utf_8_are_replaced() -> None:
    # openai/openai-python #1230: a token that is a part of a character; MoonshotAI/kimi-cli #2313
    events = CHAT_EVENTS.replace(b'"PAT"', b'"PAT\xe2\x80"')
    assert ask(Recorded(events, SSE), stream="always").text == "PAT\ufffdCH"
    whole = json.dumps(CHAT).encode().replace(b"PATCH", b"PAT\xffCH")
    assert ask(Recorded(whole)).text == "PAT\ufffdCH"
    assert (
        ask(Recorded(MESSAGE_EVENTS.replace(b"PATCH", b"P\xff"), SSE), "anthropic", stream="always").text == "P\ufffd"
    )


def test_what_follows_a_complete_stream_does_not_cost_the_answer() -> None:
    complete = [delta("PATCH"), delta(finish="stop")]
    for rest in (b"data: {torn", b"data: <html>\n\n", sse({"error": {"message": "usage is not available"}})):
        assert ask(Recorded(sse(*complete) + rest, SSE), stream="always").text == "PATCH"
    # without a finish reason, but with the end of the stream (ranxianglei/billion-context-omp #105)
    answer = ask(Recorded(sse(delta("PATCH"), done=True), SSE), stream="always")
    assert (answer.text, answer.finish_reason) == ("PATCH", "other")
    with pytest.raises(TransientError, match="ends before its answer"):
        ask(Recorded(sse(delta("PATCH")), SSE), stream="always")


class Endless(Recorded):
    """Sends its events, and then comments without end."""

    async def __call__(self, request: HttpRequest, peer: Peer) -> None:
        peer.start(200, {"content-type": SSE})
        await peer.chunk(self.body)
        for _ in range(600):
            await asyncio.sleep(0.1)
            await peer.chunk(b": keep-alive\n\n")


def test_a_complete_answer_is_kept_if_its_stream_does_not_end() -> None:
    # gateways that keep the connection open: no [DONE], no message_stop
    complete = [delta("PATCH"), delta(finish="stop")]
    usage = sse({"choices": [], "usage": CHAT["usage"]})

    async def life_of(events: bytes, name: str) -> Answer:
        return await asyncio.to_thread(ask, Endless(events, SSE), name, stream="always")

    async def all_at_once() -> list[Answer]:
        answers = await asyncio.gather(
            life_of(sse(*complete) + usage, "openai_compatible"),
            life_of(MESSAGE_EVENTS.partition(b"event: message_stop")[0], "anthropic"),
            life_of(sse(*complete), "openai_compatible"),
        )
        return list(answers)

    *answers, without = asyncio.run(all_at_once())
    assert [answer.text for answer in (*answers, without)] == ["PATCH"] * 3
    assert [(answer.usage.input_tokens, answer.usage.output_tokens) for answer in answers] == [(7, 2)] * 2
    assert "usage_estimated" in without.details


class Slow(Recorded):
    """Sends its events one by one, each after a longer time than is waited for a usage."""

    async def __call__(self, request: HttpRequest, peer: Peer) -> None:
        peer.start(200, {"content-type": SSE})
        events = self.body.split(b"\n\n")[:-1]
        for event in events:
            await peer.chunk(event + b"\n\n")
            await asyncio.sleep(3.2)


def test_an_end_that_is_stated_before_the_end_does_not_cut_the_answer() -> None:
    # BerriAI/litellm #2195, songquanpeng/one-api #1477, su-kaka/gcli2api #403: gateways to Gemini state
    # finish_reason=stop in each event, also in those with reasoning alone
    opening = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": "stop"}]}
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": "stop"}]}
    rest = (delta("PAT", "stop"), delta("CH", "stop"))
    streams = ([opening, *rest], [thought, *rest])

    async def all_at_once() -> list[Answer]:
        asked = (asyncio.to_thread(ask, Slow(sse(*events), SSE), stream="always") for events in streams)
        return list(await asyncio.gather(*asked))

    assert [answer.text for answer in asyncio.run(all_at_once())] == ["PATCH"] * 2


def test_items_in_their_own_events_make_up_for_an_empty_last_response() -> None:
    # BerriAI/litellm #34094: "Unknown items in responses API response: []"
    events = RESPONSE_EVENTS.replace(json.dumps(RESPONSE).encode(), json.dumps({**RESPONSE, "output": []}).encode())
    assert ask(Recorded(events, SSE), "openai_responses", stream="always").text == "PATCH"


def without_output(events: bytes, *, items: bool) -> bytes:
    """Events of a response whose last one has no output, and whose items have no content or are missing."""
    ended = events.replace(json.dumps(RESPONSE).encode(), json.dumps({**RESPONSE, "output": []}).encode())
    empty = json.dumps({**OUTPUT, "content": []}) if items else "null"
    return ended.replace(json.dumps(OUTPUT).encode(), empty.encode())


@pytest.mark.parametrize(
    "events",
    [
        # vllm-project/vllm #30223: the text is in the deltas alone
        without_output(RESPONSE_EVENTS, items=False).replace(b"response.output_item.done", b"response.in_progress"),
        # agentgateway/agentgateway #2281: the items are there, without their content
        without_output(RESPONSE_EVENTS, items=True),
        # Sophomoresty/gemini-web2api #57: one event with the whole text
        without_output(RESPONSE_EVENTS, items=True)
        .replace(b"response.output_text.delta", b"response.output_text.done")
        .replace(b'"delta": "PATCH"', b'"text": "PATCH"'),
        # Both are the same text.
        without_output(RESPONSE_EVENTS, items=True).replace(
            b"event: response.output_item.done",
            sse({"type": "response.output_text.done", "text": "PATCH"}) + b"event: response.output_item.done",
        ),
        RESPONSE_EVENTS.replace(
            b"event: response.output_item.done",
            sse({"type": "response.output_text.done", "text": "PATCH"}) + b"event: response.output_item.done",
        ),
    ],
    ids=["deltas", "items without content", "whole text", "deltas and whole text", "all of them"],
)
def test_the_text_of_a_response_is_found_in_any_of_its_events(events: bytes) -> None:
    answer = ask(Recorded(events, SSE), "openai_responses", stream="always")
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("PATCH", "stop", 2)


def message_item(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "message", **fields, "content": [{"type": "output_text", "text": text}]}


def test_a_commentary_and_a_final_answer_are_apart_and_not_repeated() -> None:
    # microsoft/vscode #312173: their texts ran together; langchain4j/langchain4j #6403: both were the same
    for commentary, text in (("I change x.", "I change x.\n\nPATCH"), ("PATCH", "PATCH")):
        output = [message_item(commentary, phase="commentary"), message_item("PATCH", phase="final_answer")]
        answer = ask(Recorded(json.dumps({**RESPONSE, "output": output}).encode()), "openai_responses")
        assert (answer.text, answer.finish_reason) == (text, "stop")


def test_a_refusal_in_the_events_of_a_response_is_one() -> None:
    # openai.types.responses: ResponseRefusalDeltaEvent, ResponseRefusalDoneEvent; the last response as in
    # BerriAI/litellm #34094
    ended = {"type": "response.completed", "response": {**RESPONSE, "output": []}}
    for events in (
        [{"type": "response.refusal.delta", "delta": "N"}, {"type": "response.refusal.delta", "delta": "o."}],
        [{"type": "response.refusal.done", "refusal": "No."}],
    ):
        answer = ask(Recorded(sse(*events, ended, named=True), SSE), "openai_responses", stream="always")
        assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("No.", "refusal", 2)


@pytest.mark.parametrize(
    ("output", "text"),
    [
        # openai/openai-python #2546: a reasoning item alone; it is billed
        ([{"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA=="}], ""),
        # openai.types.responses.EasyInputMessage: a message as it may also be written
        ([{"type": "message", "role": "assistant", "content": "PATCH"}], "PATCH"),
        ([{"type": "message", "role": "assistant", "content": [{"type": "text", "text": "PATCH"}]}], "PATCH"),
    ],
)
def test_a_completed_response_with_any_item_is_an_answer(output: list[Any], text: str) -> None:
    answer = ask(Recorded(json.dumps({**RESPONSE, "output": output}).encode()), "openai_responses")
    assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == (text, "stop", 2)
    # buddingnewinsights/proxypal #3: the gateway has lost the text
    with pytest.raises(TransientError, match="without a message"):
        ask(Recorded(json.dumps({**RESPONSE, "output": []}).encode()), "openai_responses")


def test_text_in_the_beginning_of_a_block_is_part_of_the_answer() -> None:
    # langchain-ai/langchain #38442, earendil-works/pi #7283; anthropic.lib.streaming._messages.accumulate_event
    def begun(block: dict[str, Any]) -> bytes:
        return sse({"type": "content_block_start", "index": 0, "content_block": block})

    begin = b"event: content_block_delta"
    text = begun({"type": "text", "text": "PAT"})
    events = MESSAGE_EVENTS.replace(begin, text + begin).replace(b'"text": "PATCH"', b'"text": "CH"')
    assert ask(Recorded(events, SSE), "anthropic", stream="always").text == "PATCH"
    thinking = begun({"type": "thinking", "thinking": "I look."}) + begun({"type": "text", "text": ""})
    answer = ask(Recorded(MESSAGE_EVENTS.replace(begin, thinking + begin), SSE), "anthropic", stream="always")
    assert (answer.text, answer.details) == ("PATCH", {"reasoning": "I look."})
    call = begun({"type": "tool_use", "name": "edit", "input": {"path": "a.py"}})
    answer = ask(Recorded(MESSAGE_EVENTS.replace(begin, call + begin), SSE), "anthropic", stream="always")
    assert '"arguments": {"path": "a.py"}' in answer.details["tool_calls"]


def test_the_count_in_the_first_event_of_a_message_is_none_of_its_output() -> None:
    # BerriAI/litellm #30420: {"output_tokens": 1} in message_start, and no usage in message_delta or no such event
    first = {"input_tokens": 7, "output_tokens": 1}
    events = MESSAGE_EVENTS.replace(json.dumps(MESSAGE["usage"]).encode(), json.dumps(first).encode())
    counted = ask(Recorded(events, SSE), "anthropic", stream="always")
    assert (counted.usage.output_tokens, "usage_estimated" in counted.details) == (2, False)
    without_usage = events.replace(b', "usage": {"output_tokens": 2}', b"")
    for uncounted in (without_usage, without_usage.replace(b'"type": "message_delta"', b'"type": "ping"')):
        assert uncounted != events
        answer = ask(Recorded(uncounted, SSE), "anthropic", stream="always")
        assert (answer.text, answer.details["usage_estimated"]) == ("PATCH", True)
        assert answer.usage.output_tokens == 2  # five letters


def chat(finish: Any, **choice: Any) -> dict[str, Any]:
    return {**CHAT, "choices": [{"index": 0, "message": {"content": "half"}, "finish_reason": finish, **choice}]}


@pytest.mark.parametrize(
    ("raw", "finish"),
    [
        ("eos", "stop"),  # Together (vercel/ai, togetherai)
        ("eos_token", "stop"),  # huggingface/text-generation-inference #1724
        ("stop_sequence", "stop"),
        ("STOP", "stop"),  # Google's FinishReason
        ("end_turn", "stop"),  # anthropic.types.StopReason, passed on by gateways
        ("max_tokens", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),  # mistralai.models.ChatCompletionChoiceFinishReason
        ("model_context_window_exceeded", "length"),  # mozilla-ai/any-llm #1200 (Z.ai)
        ("SAFETY", "content_filter"),
        ("sensitive", "content_filter"),  # promptfoo/promptfoo #9905 (Z.ai)
        ("COMPLETE", "stop"),  # cohere.types.ChatFinishReason
        ("ERROR_TOXIC", "content_filter"),
        ("ERROR_LIMIT", "length"),  # cohere.types.FinishReason, of the earlier API
        ("LANGUAGE", "content_filter"),  # Google's FinishReason
        ("repetition", "repetition"),  # vllm/v1/engine/__init__.py
        # Gemini's OpenAI format (HKUDS/Vibe-Trading #308 has its plain words)
        ("content_filter: PROHIBITED_CONTENT", "content_filter"),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", "other"),
        ("tool_calls", "other"),
    ],
)
def test_finish_reasons_are_read_by_one_table(raw: str, finish: str) -> None:
    assert OpenAIChat().read(chat(raw), None).finish_reason == finish
    streamed = ask(Recorded(sse(delta("half"), delta(finish=raw), done=True), SSE), stream="always")
    assert streamed.finish_reason == finish


@pytest.mark.parametrize(
    ("choice", "kind", "words"),
    [
        ({"finish_reason": "error"}, TransientError, "'error'"),  # vllm/v1/engine/__init__.py
        ({"finish_reason": "network_error"}, TransientError, "network_error"),  # promptfoo/promptfoo #9905 (Z.ai)
        ({"finish_reason": "TIMEOUT"}, TransientError, "TIMEOUT"),  # cohere.types.ChatFinishReason
        # ranxianglei/billion-context-pi #169: a gateway to Bedrock
        ({"finish_reason": "error_finish"}, TransientError, "error_finish"),
        # api-docs.deepseek.com/api/create-chat-completion
        ({"finish_reason": "insufficient_system_resource"}, TransientError, "insufficient_system_resource"),
        # openrouter.ai/docs/api-reference/errors; damianvtran/local-operator #223
        ({"finish_reason": "error", "error": {"code": 502, "message": "Upstream connection lost"}},
         TransientError, "error 502: Upstream connection lost"),
        ({"finish_reason": None, "error": {"code": 429, "message": "busy"}}, RateLimited, "busy"),
        ({"finish_reason": "stop", "error": {"message": "lost"}}, TransientError, "lost"),
    ],
)  # fmt: skip
def test_an_answer_in_which_the_server_failed_is_an_error(
    choice: dict[str, Any], kind: type[RequestError], words: str
) -> None:
    body = {**CHAT, "choices": [{"index": 0, "message": {"content": "half"}, **choice}]}
    events = sse(delta("half"), {"choices": [{"index": 0, "delta": {}, **choice}]}, done=True)
    for server, stream in ((Recorded(json.dumps(body).encode()), "never"), (Recorded(events, SSE), "always")):
        with pytest.raises(kind, match=words) as caught:
            ask(server, stream=stream)
        assert caught.value.in_answer
    assert type(caught.value) is kind


def test_a_prompt_that_gemini_filters_is_an_empty_answer_without_a_message() -> None:
    # Gemini's OpenAI format omits the message of such a choice
    choice = {"index": 0, "finish_reason": "content_filter: PROHIBITED_CONTENT"}
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "total_tokens": 10}
    answer = ask(Recorded(json.dumps({**CHAT, "choices": [choice], "usage": usage}).encode()))
    assert (answer.text, answer.finish_reason, answer.usage.input_tokens) == ("", "content_filter", 10)
    with pytest.raises(TransientError, match="without a message"):
        ask(Recorded(json.dumps({**CHAT, "choices": [{"index": 0, "finish_reason": "stop"}]}).encode()))


def test_a_choice_in_the_form_of_an_event_or_of_a_text_completion_is_read() -> None:
    # legacy completions have `text` (openai.types.CompletionChoice); gateways pass them on whatever was asked for
    for fields in ({"text": "PATCH"}, {"delta": {"role": "assistant", "content": "PATCH"}},
                   {"message": {"content": {"type": "text", "text": "PATCH"}}}):  # fmt: skip
        choice = {"index": 0, "finish_reason": "stop", **fields}
        for server, stream in (
            (Recorded(json.dumps({**CHAT, "choices": [choice]}).encode()), "never"),
            (Recorded(sse({"choices": [choice]}, done=True), SSE), "always"),
        ):
            answer = ask(server, stream=stream)
            assert (answer.text, answer.finish_reason) == ("PATCH", "stop"), fields
    texts = [{"choices": [{"index": 0, "text": text, "finish_reason": None}]} for text in ("PAT", "CH")]
    assert ask(Recorded(sse(*texts, delta(finish="stop"), done=True), SSE), stream="always").text == "PATCH"
    with pytest.raises(TransientError, match="without a message"):  # the first event of a stream
        ask(Recorded(json.dumps(delta("PAT")).encode()))
    odd = [{"choices": [{"index": index, "delta": {"content": text}}]} for index, text in ((0, "PAT"), (-1, "CH"))]
    assert ask(Recorded(sse(*odd, delta(finish="stop"), done=True), SSE), stream="always").text == "PATCH"


def test_events_of_a_message_that_are_missing_null_or_twice_do_not_cost_the_answer() -> None:
    start, text, end, stop = (event + b"\n\n" for event in MESSAGE_EVENTS.split(b"\n\n")[:4])
    null_text = sse({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": None}})
    null_delta = sse({"type": "content_block_delta", "index": 0, "delta": None})
    untyped = MESSAGE_EVENTS.replace(b'"type": "content_block_delta", ', b"")
    half = text.replace(b"PATCH", b"half of an earlier")
    again = start.replace(b'"msg_1"', b'"msg_2"')
    for events in (
        start + null_text + text + null_delta + end + stop,
        text + end + stop,  # router-for-me/CLIProxyAPI #530: without the first event
        start + text + stop + end,  # the last two in the other order
        start + text + end + b"data: [DONE]\n\n",
        MESSAGE_EVENTS + b"data: [DONE]\n\n",  # caozhiyuan/copilot-api #209
        untyped,  # the type is in the line `event:` alone
        start + half + again + text + end + stop,  # vercel/ai #18331: a gateway asks another server after a part
        start + text[:0] + start + text + start + end + stop,  # maximhq/bifrost #4556: the same one twice
    ):
        answer = ask(Recorded(events, SSE), "anthropic", stream="always")
        assert (answer.text, answer.finish_reason, answer.usage.output_tokens) == ("PATCH", "stop", 2), events
    for content in ("PATCH", [{"text": "PATCH"}]):  # anthropic.types.MessageParam; a block without a type
        assert ask(Recorded(json.dumps({**MESSAGE, "content": content}).encode()), "anthropic").text == "PATCH"
    # decolua/9router #1648: after a lost connection to the upstream server
    with pytest.raises(TransientError, match="ends before its answer"):
        ask(Recorded(start + text + b"data: [DONE]\n\n", SSE), "anthropic", stream="always")
    with pytest.raises(TransientError, match="unknown event"):
        ask(Recorded(start + text.replace(b'"PATCH"', b"7") + end, SSE), "anthropic", stream="always")


def test_a_stop_reason_in_the_first_event_of_a_message_does_not_end_it() -> None:
    # BerriAI/litellm #38153: message_start repeats the whole message
    events = MESSAGE_EVENTS.replace(b'"stop_reason": null', b'"stop_reason": "max_tokens"')
    assert ask(Recorded(events, SSE), "anthropic", stream="always").finish_reason == "stop"
    cut, _, end = events.partition(b"event: message_delta")
    with pytest.raises(TransientError, match="ends before its answer"):
        ask(Recorded(cut, SSE), "anthropic", stream="always")
    stop = b"event: message_stop" + end.partition(b"event: message_stop")[2]
    assert ask(Recorded(cut + stop, SSE), "anthropic", stream="always").finish_reason == "length"


def test_a_response_without_its_last_event_is_kept_if_the_stream_states_its_end() -> None:
    # decolua/9router #1648
    *rest, _ = (event + b"\n\n" for event in RESPONSE_EVENTS.split(b"\n\n")[:4])
    begun = b"".join(rest)
    answer = ask(Recorded(begun + b"data: [DONE]\n\n", SSE), "openai_responses", stream="always")
    assert (answer.text, answer.finish_reason, answer.model) == ("PATCH", "other", "m")
    # moeru-ai/airi #2589: OpenRouter closes the stream after the last item
    item = json.dumps({**OUTPUT, "status": "completed"}).encode()
    complete = begun.replace(json.dumps(OUTPUT).encode(), item)
    assert ask(Recorded(complete, SSE), "openai_responses", stream="always").text == "PATCH"
    added = sse({"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}})
    for cut in (
        begun,
        complete + added,
        begun + added + b"data: [DONE]\n\n",
        rest[0] + rest[1] + b"data: [DONE]\n\n",
    ):
        with pytest.raises(TransientError, match="ends before its answer"):
            ask(Recorded(cut, SSE), "openai_responses", stream="always")
    # the last event states the end, although its response is missing or still in progress
    for response in (None, {**RESPONSE, "status": "in_progress", "output": []}):
        ended = begun + sse({"type": "response.completed", "response": response}, named=True)
        answer = ask(Recorded(ended, SSE), "openai_responses", stream="always")
        assert (answer.text, answer.finish_reason) == ("PATCH", "stop")
    cut_off = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    ended = begun + sse({"type": "response.completed", "response": cut_off}, named=True)
    assert ask(Recorded(ended, SSE), "openai_responses", stream="always").finish_reason == "length"
    untyped = [{"role": "assistant", "content": OUTPUT["content"]}]
    assert ask(Recorded(json.dumps({**RESPONSE, "output": untyped}).encode()), "openai_responses").text == "PATCH"


def test_a_list_of_one_answer_and_a_list_of_texts_are_read() -> None:
    # predibase/lorax #272: the answer is in a list
    assert ask(Recorded(json.dumps([CHAT]).encode())).text == "PATCH"
    with pytest.raises(TransientError, match="no JSON object"):
        ask(Recorded(json.dumps([CHAT, CHAT]).encode()))
    # langchain_core.messages.BaseMessage: the content may be a list of texts
    parts = ["PAT", {"type": "text", "text": "CH"}]
    for server, stream in (
        (Recorded(json.dumps(chat("stop", message={"content": parts})).encode()), "never"),
        (Recorded(sse(delta(parts), delta(finish="stop"), done=True), SSE), "always"),
    ):
        answer = ask(server, stream=stream)
        assert (answer.text, answer.details.get("reasoning")) == ("PATCH", None)


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        # platform.minimax.io/docs/api-reference/errorcode; the status is 200
        (1002, "rate limit", RateLimited),
        (1008, "insufficient balance", QuotaExhausted),
        (2049, "invalid api key", AuthenticationFailed),
        (1000, "unknown error", TransientError),
        (2013, "invalid params, context window exceeds limit", ContextOverflow),
    ],
)
def test_an_error_in_base_resp_is_one(code: int, message: str, kind: type[RequestError]) -> None:
    body = {"id": "x", "choices": None, "base_resp": {"status_code": code, "status_msg": message}}
    for server, stream in ((Recorded(json.dumps(body).encode()), "never"), (Recorded(sse(body), SSE), "always")):
        with pytest.raises(kind, match=message) as caught:
            ask(server, stream=stream)
        assert type(caught.value) is kind
    fine = {"base_resp": {"status_code": 0, "status_msg": ""}}
    assert ask(Recorded(json.dumps({**CHAT, **fine}).encode())).text == "PATCH"
    assert (
        ask(Recorded(sse(delta("PATCH"), delta(finish="stop", **fine), done=True), SSE), stream="always").text
        == "PATCH"
    )


def test_an_answer_that_a_filter_ends_is_not_free_of_charge() -> None:
    # openai.types.responses: response.failed with a policy's code; MiniMax 1027, after the output
    failed = {**RESPONSE, "status": "failed", "output": [], "error": {"code": "bio_policy", "message": "blocked"}}
    cut = {
        "choices": [{"index": 0, "delta": {}}],
        "base_resp": {"status_code": 1027, "status_msg": "output sensitive"},
    }
    for server, name, stream in (
        (Recorded(json.dumps(failed).encode()), "openai_responses", "never"),
        (Recorded(sse(delta("half"), cut), SSE), "openai_compatible", "always"),
    ):
        answer = ask(server, name, stream=stream)
        assert (answer.text, answer.finish_reason) == ("", "content_filter")
        assert answer.details["usage_estimated"] is True
        assert answer.usage.input_tokens > 0


def test_a_failed_choice_does_not_lose_the_others() -> None:
    choices = [
        {"index": 0, "message": {"content": "a"}, "finish_reason": "stop"},
        {"index": 1, "message": {"content": "b"}, "finish_reason": "error"},
        {"index": 2, "message": {"content": "c"}, "finish_reason": "stop"},
    ]
    requests = [request_of(sample=sample) for sample in range(3)]
    model = model_for("openai", parameters=("n",))

    def use(given: list[dict[str, Any]]) -> list[Answer]:
        server = Recorded(json.dumps({**CHAT, "choices": given}).encode())
        found: list[Answer] = life(
            server, "openai_compatible", lambda p: p.complete_samples(requests, model, timeout_s=60)
        )
        return found

    assert [answer.text for answer in use(choices)] == ["a", "c"]
    events = [{"choices": [{"index": c["index"], "delta": c["message"], "finish_reason": c["finish_reason"]}]}
              for c in choices]  # fmt: skip
    server = Recorded(sse(*events, done=True), SSE)
    streamed = life(server, "openai_compatible", lambda p: p.complete_samples(requests, model, timeout_s=60))
    assert [answer.text for answer in streamed] == ["a", "c"]
    with pytest.raises(TransientError):
        use(choices[1:2])


def error_event(**error: Any) -> bytes:
    return sse(delta("half"), {"error": error, "choices": [{"index": 0, "delta": {}, "finish_reason": "error"}]})


@pytest.mark.parametrize(
    ("events", "kind", "status"),
    [
        # openrouter.ai/docs/api-reference/streaming: an error in mid-stream; diegosouzapw/OmniRoute #8210
        (error_event(code=429, message="Rate limit exceeded"), RateLimited, 429),
        (error_event(code="502", message="provider_unavailable"), TransientError, 502),
        (error_event(code=503, message="no capacity"), Overloaded, 503),
        (error_event(message="Upstream connection lost"), TransientError, None),
        (sse([{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "slow"}}]), RateLimited, 429),
        (error_event(code="context_length_exceeded", message="too long"), ContextOverflow, None),
    ],
)
def test_the_code_of_an_error_in_mid_stream_is_an_http_status(
    events: bytes, kind: type[RequestError], status: int | None
) -> None:
    with pytest.raises(kind) as caught:
        ask(Recorded(events, SSE), stream="always")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.in_answer) == (status, True)


def test_errors_of_the_other_interfaces_in_mid_stream_are_classified() -> None:
    # anthropic.types.ErrorResponse; openai.types.responses.ResponseErrorEvent, whose fields are not nested
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    started = MESSAGE_EVENTS.partition(b"event: content_block_delta")[0]
    with pytest.raises(Overloaded, match="Overloaded"):
        ask(Recorded(started + sse(overloaded, named=True), SSE), "anthropic", stream="always")
    event = {"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None, "sequence_number": 3}
    with pytest.raises(RateLimited, match="slow"):
        ask(Recorded(sse(event, named=True), SSE), "openai_responses", stream="always")


def google(message: str, *details: dict[str, Any]) -> dict[str, Any]:
    return {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": message, "details": list(details)}}


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "17s"}
QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
GEMINI = (  # continuedev/continue #11926, #12643
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits.\n* Quota exceeded for metric: "
    "generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: {limit}, model: gemini-3.1-pro\n"
    "Please retry in 17.30897372s."
)


@pytest.mark.parametrize(
    ("status", "body", "kind", "wait_s"),
    [
        (429, google(GEMINI.format(limit=15), RETRY_INFO), RateLimited, 17.30897372),
        (429, [google("Resource has been exhausted (e.g. check quota).", RETRY_INFO)], RateLimited, 17.0),
        (429, google("Quota exceeded for this minute. Please retry in 2.3s.", {**RETRY_INFO, "retryDelay": "2s"}),
         RateLimited, 2.3),
        (429, {"error": {"message": json.dumps(google(GEMINI.format(limit=15))), "code": 429}},
         RateLimited, 17.30897372),
        # a quota of a day, or none at all: waiting for a minute does not help
        (429, google(GEMINI.format(limit=0), RETRY_INFO), QuotaExhausted, None),
        (429, google(GEMINI.format(limit=50), RETRY_INFO, {"@type": QUOTA, "violations": [
            {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]}), QuotaExhausted, None),
        # assafelovic/gpt-researcher #985: more than Groq's account may send in a minute
        (413, {"error": {"message": "Request too large for model `llama-3.1-70b-versatile` in organization `org` on "
                         "tokens per minute (TPM): Limit 6000, Requested 14368, please reduce your message size and "
                         "try again.", "type": "tokens", "code": "rate_limit_exceeded"}}, InvalidRequest, None),
        # elizaOS/eliza #4040
        (429, {"error": {"message": "Rate limit reached for model `llama-3.1-8b-instant` on tokens per minute (TPM): "
                         "Limit 6000, Used 5034, Requested 1443. Please try again in 4.77s.", "type": "tokens",
                         "code": "rate_limit_exceeded"}}, RateLimited, 4.77),
        # console.groq.com/docs/flex-processing
        (498, {"error": {"message": "Flex tier capacity exceeded", "type": "capacity_exceeded"}}, Overloaded, None),
        # BerriAI/litellm #3142, #9663, #2532
        (400, {"error": {"message": "400: {'error': 'Invalid model name passed in model=Lite-GPT-12'}",
                         "type": "None", "param": "None", "code": 400}}, ModelNotFound, None),
        (400, {"error": {"message": "No connected db.", "type": "no_db_connection", "code": "400"}},
         AuthenticationFailed, None),
        # openai.com/docs: an account without credit
        (429, {"error": {"message": "You exceeded your current quota, please check your plan and billing details.",
                         "type": "insufficient_quota", "code": "insufficient_quota"}}, QuotaExhausted, None),
    ],
)  # fmt: skip
def test_errors_of_gateways_and_other_vendors(
    status: int, body: Any, kind: type[RequestError], wait_s: float | None
) -> None:
    error = classify(status, body, {}, where="host, model")
    assert type(error) is kind, error
    assert getattr(error, "retry_after_s", None) == wait_s
    served = Recorded(json.dumps(body).encode(), status=status)
    with pytest.raises(kind):
        ask(served)


def test_an_error_that_is_sent_as_events_is_read_as_one() -> None:
    # LiteLLM's proxy 1.108.7 (common_request_processing.create_response): an error before the first event of a stream
    for status, error, kind in (
        (500, {"message": "Error processing stream start", "type": "internal_server_error", "code": "500"},
         TransientError),
        (429, {"message": "no credit", "type": "insufficient_quota", "code": "insufficient_quota"}, QuotaExhausted),
    ):  # fmt: skip
        events = sse({"error": error}, done=True)
        with pytest.raises(kind, match=f"{status}: {error['message']}$"):
            ask(Recorded(events, SSE, status), stream="always")


def test_the_words_of_a_server_are_kept_in_the_error() -> None:
    # FastAPI's HTTPException with a wrong status
    for body, words in (
        ({"detail": "Model is still loading"}, "Model is still loading"),
        ({"detail": [{"loc": ["body", "n"], "msg": "field required"}]}, "field required"),
        ({"error": "queue is full", "status": "busy"}, "queue is full"),
        ({"message": "no worker", "choices": None}, "no worker"),
    ):
        for name in ("openai_compatible", "openai_responses", "anthropic"):
            for stream in ("never", "always"):
                with pytest.raises(RequestError, match=words):
                    ask(Recorded(json.dumps(body).encode()), name, stream=stream)
    with pytest.raises(ContextOverflow, match="maximum context length"):
        ask(Recorded(b'{"detail": "This model\'s maximum context length is 4096 tokens."}'))
