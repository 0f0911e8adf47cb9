"""Bodies that are too long, compressed a thousandfold, nested or full of absurd figures, over the real SDKs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import AnswerTooLarge, RateLimited, RequestError, TransientError
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Answer
from swe_infer.providers.bounds import EVENT_LINES, lines
from swe_infer.providers.faults import classify, one_line
from swe_infer.providers.headers import rate_limits_of, request_id_of, retry_after_s
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.providers.untrusted_json import decoded_json
from swe_infer.providers.wire import WireProvider
from tests.providers.conftest import HAVE_BOTO3, build, model_for, request_of
from tests.support import commands
from tests.support.api_hostile import HostileServer, chat, hostile_server

ROOT = Path(__file__).resolve().parent.parent.parent

CHILD = """
import asyncio, json, resource, sys
from swe_infer.errors import RequestError
from tests.providers.conftest import build, model_for, request_of

def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

async def one(name, changes, kind, url):
    provider = build(name, base_url=f"{url}/{kind}{'' if name in ('anthropic', 'bedrock') else '/v1'}", **changes)
    await provider.open()
    try:
        if kind == "results":
            found = {}
            async for custom_id, result in provider.deferred().results("batch_1", timeout_s=300):
                found[custom_id] = getattr(result, "text", None) or type(result).__name__
            return found
        ask = lambda: provider.complete(request_of(temperature=None), model_for(name), timeout_s=300)
        asked = [ask() for _ in range(12 if kind == "endless" else 1)]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        return "an answer"
    except RequestError as error:
        return f"{type(error).__name__} {error.status}: {error}"
    finally:
        await provider.close()

async def main():
    calls, url = json.loads(sys.argv[1]), sys.argv[2]
    for name in {name for name, _, _ in calls}:  # what the SDKs take by themselves
        await one(name, {}, "error", url)
    base = peak_mib()
    found = [[name, kind, await one(name, changes, kind, url), peak_mib()] for name, changes, kind in calls]
    print(json.dumps([base, found]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def hostile() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


WHOLE = ("endless", "bomb", "values", "error", "error_bomb", "results")
STREAMED: dict[str, dict[str, Any]] = {
    "openai": {"stream": True},
    "openai_responses": {"stream": True},
    "anthropic": {"stream": "always"},
    **({"bedrock": {"stream": "always"}} if HAVE_BOTO3 else {}),
}
CALLS = [
    *(("openai", kind, False) for kind in WHOLE),
    *(("openai", kind, True) for kind in ("line", "lines", "comments")),
    *((name, "events", True) for name in STREAMED if name == "bedrock"),
]
MORE_CALLS = [
    *(("openai", kind, False) for kind in ("layers", "charset", "layers_error")),
    ("anthropic", "results", False),
    ("openai", "behind", False),
    *((name, kind, True) for name in ("openai_responses", "anthropic") for kind in ("line", "lines")),
    ("openai", "events", True),
]


@pytest.mark.parametrize("cases", [CALLS, pytest.param(MORE_CALLS, marks=pytest.mark.full)], ids=["", "more"])
def test_no_body_takes_more_memory_than_its_bound(hostile: HostileServer, cases: list[tuple[str, str, bool]]) -> None:
    calls = [(name, STREAMED[name] if streamed else {}, kind) for name, kind, streamed in cases]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = commands.run("-c", CHILD, json.dumps(calls), hostile.url, cwd=ROOT, env=environment, timeout=600)
    assert child.returncode == 0, child.stderr
    base, found = json.loads(child.stdout)
    outcomes = {(name, kind): outcome for name, kind, outcome, _ in found}
    peak = max(row[-1] for row in found)
    assert peak - base < 320, found  # MiB; one body of 512 MiB or more would take at least that
    for (name, kind), outcome in outcomes.items():
        if kind == "results":
            text = "one\u2028two\x85three"
            assert outcome == {"run-0": "AnswerTooLarge", "run-1": text, "run-2": text}
        elif kind in ("error", "error_bomb", "charset", "layers_error"):
            wanted = "TransientError 500" if kind in ("error_bomb", "charset") else "RateLimited 429"
            assert outcome.startswith(wanted), outcome
        elif kind == "behind":
            assert outcome == "an answer", outcome  # what follows a gzip file is dropped
        elif (name, kind) == ("bedrock", "events"):
            assert outcome.startswith("TransientError 200"), outcome  # the frames' checksums are wrong
        else:
            assert outcome.startswith("AnswerTooLarge 200"), (name, kind, outcome)
            assert "MiB" in outcome or f"{EVENT_LINES:,} lines" in outcome or "more than" in outcome
    endless = ("behind", "error", "line", "events")
    assert {kind: hostile.sent.get(kind, 0) < 512 << 20 for kind in endless} == dict.fromkeys(endless, True)


ABSURD: list[Any] = [
    None, [], "many", 7, {}, {"prompt_tokens": "1e2", "completion_tokens": 10},
    {"prompt_tokens": 100, "completion_tokens": None}, {"prompt_tokens": 100, "completion_tokens": True},
    {"prompt_tokens": 100.5, "completion_tokens": 10}, {"prompt_tokens": -1, "completion_tokens": 10},
    {"prompt_tokens": 10**18, "completion_tokens": 10}, {"prompt_tokens": 100, "completion_tokens": float("nan")},
    {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": 100, "completion_tokens": float("inf")},
    {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": [1]},
    {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": -5}},
]  # fmt: skip


def test_absurd_counts_are_no_counts_and_no_answer_is_lost_or_free() -> None:
    """Where a server states no plausible usage, it is estimated from the texts, which the record says."""
    for stated in ABSURD:
        renamed = cached = stated
        if isinstance(stated, dict):
            names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
            renamed = {names.get(key, key): value for key, value in stated.items()}
            names["prompt_tokens_details"] = "cache_read_input_tokens"
            cached = {names[key]: value for key, value in stated.items()}
        bodies: list[tuple[WireProvider, dict[str, Any]]] = [
            (OpenAIChat(), {"choices": [{"message": {"content": "the answer"}}], "usage": stated}),
            (OpenAIResponses(), {
                "status": "completed", "usage": renamed,
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "the answer"}]}],
            }),
            (AnthropicMessages(), {
                "content": [{"type": "text", "text": "the answer"}], "stop_reason": "end_turn",
                "usage": cached,
            }),
        ]  # fmt: skip
        for provider, body in bodies:
            answer = provider.parse_answer(body, request_of("word " * 100), "host, model", {})
            assert answer.text == "the answer", (stated, provider.name)
            assert answer.details.get("usage_estimated"), (stated, provider.name)
            assert 150 < answer.usage.input_tokens < 200, (stated, provider.name)
            assert 3 < answer.usage.output_tokens <= 10, (stated, provider.name)


@pytest.mark.parametrize(
    "usage",
    ["[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "0" + "}" * 100_000,
     '{"prompt_tokens": 100, "completion_tokens": ' + "9" * 5000 + "}", "NaN", "-Infinity"],
    ids=["lists", "objects", "digits", "NaN", "infinity"],
)  # fmt: skip
def test_json_at_its_limits_costs_no_answer(hostile: HostileServer, usage: str) -> None:
    whole = chat(usage="USAGE").replace(b'"USAGE"', usage.encode())
    event = b"data: " + chat(choices=[{"delta": {"content": "the answer"}, "finish_reason": "stop"}], usage=None)
    last = b'data: {"choices": [], "usage": ' + usage.encode() + b"}"
    hostile.bodies["limits"] = lambda _: (200, whole)
    hostile.bodies["streamed"] = lambda _: (200, b"\n\n".join([event, last, b"data: [DONE]", b""]))
    for kind in ("limits", "streamed"):
        answer = asked("openai", f"{hostile.url}/{kind}/v1", stream=kind == "streamed")
        assert isinstance(answer, Answer), answer
        assert (answer.text, answer.details.get("usage_estimated")) == ("the answer", True)
    answered = json.dumps({"error": {"message": "USAGE", "code": "rate_limit_exceeded"}})
    hostile.bodies["failed"] = lambda _: (429, answered.replace('"USAGE"', usage).encode())
    assert isinstance(asked("openai", f"{hostile.url}/failed/v1"), RateLimited)


def asked(name: str, url: str, **changes: Any) -> Answer | RequestError:
    """The answer, or the error that it amounts to."""

    async def life() -> Answer | RequestError:
        provider = build(name, base_url=url, **changes)
        await provider.open()
        try:
            return await provider.complete(request_of(), model_for(name), timeout_s=60)
        except RequestError as error:
            return error
        finally:
            await provider.close()

    return asyncio.run(life())


def test_fields_of_wrong_types_cost_no_answer() -> None:
    """Also where they would be unhashable, very long, or not to be shown on one line."""
    for odd in (7, 1.5, True, ["stop"], {"a": 1}, "x\x1b[2J" * 100_000, "\ud800"):
        answer = OpenAIChat().parse_answer(
            {"choices": [{"message": {"content": "a"}, "finish_reason": odd}, odd], "model": odd, "id": odd},
            request_of(), "host, model", {},
        )  # fmt: skip
        message = {"content": [{"type": "text", "text": "a"}, odd], "stop_reason": odd, "model": odd}
        for found in (answer, AnthropicMessages().parse_answer(message, request_of(), "host, model", {})):
            assert (found.text, found.finish_reason) == ("a", "other")
            kept = json.dumps([found.details, found.model])
            assert len(kept) < 1000
            assert "\\u001b" not in kept
        reply = {
            "status": "incomplete", "incomplete_details": odd,
            "output": [odd, {"type": "message", "content": [{"type": "output_text", "text": "a"}, odd]},
                       {"type": "message", "content": None if isinstance(odd, str) else odd}],
        }  # fmt: skip
        assert OpenAIResponses().parse_answer(reply, request_of(), "host, model", {}).text == "a"


def test_one_choice_that_cannot_be_read_does_not_cost_the_others(hostile: HostileServer) -> None:
    choices = [None, {"message": {"content": "a" * 300}}, {"message": 7}, {"message": {"content": "b" * 300}}]
    hostile.bodies["choices"] = lambda _: (200, chat(choices=choices, usage=None))

    async def life() -> list[Answer]:
        provider = build("openai", base_url=f"{hostile.url}/choices/v1")
        await provider.open()
        try:
            asked_for = [request_of(sample=sample) for sample in range(4)]
            return await provider.complete_samples(asked_for, model_for("openai"), timeout_s=60)
        finally:
            await provider.close()

    answers = asyncio.run(life())
    assert [answer.text for answer in answers] == ["a" * 300, "b" * 300]
    assert sum(answer.usage.output_tokens for answer in answers) == 200


def test_headers_and_errors_of_absurd_content_say_nothing() -> None:
    for odd in (
        "-5",
        "NaN",
        "inf",
        "1e400",
        "9" * 400,
        "\u0661\u00e9\x00",
        "",
        "Mon, 99 Foo 99999 99:99:99 +9999999",
        "12 Jan",
    ):
        wait = retry_after_s({"retry-after": odd, "date": odd}, now=None)
        assert wait is None or wait == 0.0, odd
        stated = rate_limits_of({f"x-ratelimit-{kind}-requests": odd for kind in ("limit", "remaining", "reset")})
        assert (stated.limit_requests, stated.remaining_requests, stated.reset_requests_s) == (None, None, None), odd
        names = ("requests-limit", "requests-remaining", "requests-reset")
        stated = rate_limits_of({f"anthropic-ratelimit-{name}": odd for name in names})
        assert (stated.limit_requests, stated.remaining_requests) == (None, None), odd
    assert request_id_of({"x-request-id": "r\x1b\n" * 1000}) == "r" * 67
    for body in ("<title>" * 200_000, {"error": {"message": "*" * 1_000_000}}, {"error": [[{"a": 1}]]},
                 {"error": {"message": {"a": [1] * 100_000}, "code": ["x"]}}, "\x00" * 1_000_000):  # fmt: skip
        error = classify(500, body, {}, where="host, model", secret="sk-secret")
        assert type(error) is TransientError
        assert len(str(error)) <= 300
        assert str(error).isprintable()
    assert "sk-secret" not in one_line("x" * 5 + "sk-secret" * 100_000, "sk-secret")


def test_a_line_is_held_up_to_its_bound_alone() -> None:
    async def found(*parts: bytes) -> list[tuple[bytes, bool]]:
        async def given() -> AsyncIterator[bytes]:
            for part in parts:
                yield part

        return [line async for line in lines(given(), longest=10)]

    assert asyncio.run(found(b"one\ntw", b"o\n\n", b"\nthree")) == [(b"one", True), (b"two", True), (b"three", True)]
    long = [b"x" * 4000] * 100
    assert asyncio.run(found(*long, b"\nshort\n")) == [(b"x" * 4096, False), (b"short", True)]


def test_nesting_is_cut_where_it_is_too_deep_and_nowhere_else() -> None:
    deep = "[" * 50_000 + '"]"' + "]" * 50_000
    text = '{"a": "quoted \\" [[[", "b": ' + deep + ', "c": [1, {"d": [2]}]}'
    value = decoded_json(text)
    assert (value["a"], value["c"]) == ('quoted " [[[', [1, {"d": [2]}])
    for broken in ("[" * 50_000, '{"a":' * 50_000):
        with pytest.raises(ValueError):  # noqa: PT011 - the class is the contract
            decoded_json(broken)


def test_an_answer_that_is_too_long_is_its_own_class() -> None:
    assert not issubclass(AnswerTooLarge, TransientError)  # which would be tried, and paid for, again
