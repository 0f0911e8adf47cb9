"""One table of answers and faults for every provider of ``conf/provider``, over the real SDKs and a real socket."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from swe_infer.api.retry import may_have_been_billed
from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    RateLimits,
    RequestError,
    TransientError,
)
from swe_infer.providers.base import Answer
from swe_infer.providers.wire import WireProvider
from swe_infer.types import Usage
from tests.providers.conftest import ANTHROPIC, HAVE_BOTO3, PROVIDERS, SECRETS, build, model_for, request_of
from tests.support.api_server import ApiServer, Fault, FaultKind

T = TypeVar("T")

WAYS = [pytest.param(name, {}, id=name) for name in PROVIDERS] + [
    pytest.param("openai", {"stream": True}, id="openai-streamed"),
    pytest.param("azure_openai", {"stream": True}, id="azure_openai-streamed", marks=pytest.mark.full),
    pytest.param("openai_responses", {"stream": True}, id="openai_responses-streamed"),
    pytest.param("anthropic", {"stream": "always"}, id="anthropic-streamed"),
    pytest.param("vertex", {"stream": "always"}, id="vertex-streamed", marks=pytest.mark.full),
    pytest.param(
        "bedrock",
        {"stream": "always"},
        id="bedrock-streamed",
        marks=pytest.mark.skipif(not HAVE_BOTO3, reason="the extra `bedrock` is not installed"),
    ),
]
way = pytest.mark.parametrize(("name", "changes"), WAYS)


def with_open(provider: WireProvider, use: Callable[[WireProvider], Awaitable[T]]) -> T:
    async def life() -> T:
        await provider.open()
        try:
            return await use(provider)
        finally:
            await provider.close()

    return asyncio.run(life())


def ask(provider: WireProvider, name: str, timeout_s: float = 10.0, **model: Any) -> Answer:
    return with_open(provider, lambda p: p.complete(request_of(), model_for(name, **model), timeout_s=timeout_s))


def error_of(provider: WireProvider, name: str, timeout_s: float = 10.0) -> RequestError:
    with pytest.raises(RequestError) as caught:
        ask(provider, name, timeout_s)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) <= 300
    for secret in SECRETS.values():
        assert secret not in message
        assert secret[:8] not in message
        assert secret[-4:] not in message
    return caught.value


@way
def test_an_answer_comes_whole(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)
    answer = ask(provider, name)
    (exchange,) = server.log.answers()
    assert answer.text == exchange.texts[0]
    assert answer.text.startswith("Here is the change.\n\n```diff\n")
    assert answer.finish_reason == "stop"
    assert answer.model is not None
    assert answer.model.startswith(model_for(name).name)
    assert answer.request_id == f"req_{exchange.number:08d}"
    streamed = bool(changes)
    assert (answer.time_to_first_token_s is not None) == streamed
    if name != "anthropic_text":
        assert answer.usage == exchange.usage
        assert answer.details == {}


@way
def test_the_prompt_arrives_as_it_is(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)
    texts = [
        ("You fix bugs.", "One line"),
        (None, "no system part\nat all\n"),
        ("system", "an <|endoftext|> token, \u00e9\u4e2d\U0001f600, a tab\t, \\ and \x00"),
    ]

    async def all_of(p: WireProvider) -> None:
        for system, user in texts:
            await p.complete(request_of(user, system), model_for(name), timeout_s=60)

    with_open(provider, all_of)
    seen = [exchange.prompt for exchange in server.log.asked()]
    assert seen == [request_of(user, system).prompt.text for system, user in texts]


@way
def test_only_the_sampling_that_is_asked_for_is_sent(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)
    plain = request_of(temperature=None, top_p=None)
    full = request_of(temperature=0.5, top_p=0.9, stop=() if name == "openai_responses" else ("END",))

    async def both(p: WireProvider) -> None:
        for request in (plain, full):
            await p.complete(request, model_for(name), timeout_s=60)

    with_open(provider, both)
    bare, sampled = (exchange.body for exchange in server.log.asked())
    assert not {"temperature", "top_p", "stop", "stop_sequences", "seed", "n"} & set(bare)
    assert (sampled["temperature"], sampled["top_p"]) == (0.5, 0.9)
    stops = {
        "openai_responses": None,
        **{key: ["END"] for key in ANTHROPIC},
        "anthropic_text": ["\n\nHuman:", "END"],
    }
    assert (sampled.get("stop") or sampled.get("stop_sequences")) == stops.get(name, ["END"])
    limits = [bare.get(key) for key in bare if key.startswith("max_")]
    assert limits == [256]


ERRORS: list[tuple[FaultKind, type[RequestError]]] = [
    ("rate_limit", RateLimited),
    ("rate_limit_bare", RateLimited),
    ("rate_limit_ms", RateLimited),
    ("rate_limit_date", RateLimited),
    ("server_error", TransientError),
    ("bad_gateway_html", TransientError),
    ("unavailable", Overloaded),
    ("overloaded", Overloaded),
    ("timeout_408", TransientError),
    ("conflict_409", TransientError),
    ("context_overflow", ContextOverflow),
    ("context_overflow_output", ContextOverflow),
    ("insufficient_quota", QuotaExhausted),
    ("auth", AuthenticationFailed),
    ("forbidden", AuthenticationFailed),
    ("model_not_found", ModelNotFound),
    ("bad_request", InvalidRequest),
    ("too_large", InvalidRequest),
    ("reset", TransientError),
    ("close", TransientError),
    ("cut", TransientError),
    ("broken_json", TransientError),
    ("html_page", TransientError),
    ("wrong_shape", TransientError),
]


@way
def test_each_fault_has_its_class_and_one_line(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)

    async def every(p: WireProvider) -> dict[str, RequestError]:
        met: dict[str, RequestError] = {}
        for kind, _ in ERRORS:
            server.script(kind)
            try:
                await p.complete(request_of(), model_for(name), timeout_s=60)
            except RequestError as error:
                met[kind] = error
        return met

    met = with_open(provider, every)
    assert {kind: type(error) for kind, error in met.items()} == dict(ERRORS)
    for error in met.values():
        assert "\n" not in str(error)
        assert len(str(error)) <= 300
    for kind, low, high in (
        ("rate_limit", 1.0, 1.0),
        ("rate_limit_ms", 1.0, 1.0),
        ("rate_limit_date", 0.0, 2.0),
    ):
        limited = met[kind]
        assert isinstance(limited, RateLimited)
        assert limited.retry_after_s is not None
        assert low <= limited.retry_after_s <= high
    bare = met["rate_limit_bare"]
    assert isinstance(bare, RateLimited)
    assert bare.retry_after_s is None
    assert met["server_error"].status == 500
    assert met["server_error"].request_id is not None
    assert len(server.log.asked()) == len(ERRORS), "a request was sent again behind our back"


@pytest.mark.parametrize("name", ["openai", "openai_responses", "azure_openai", "anthropic"])
def test_requests_after_an_answer_are_sent_as_the_first_and_have_the_same_errors(
    server: ApiServer, name: str
) -> None:
    """The SDK builds the first request; later ones repeat its URL and headers."""
    kinds: list[FaultKind] = [*dict(ERRORS), "hang"]

    async def errors(p: WireProvider) -> dict[str, tuple[Any, ...]]:
        found: dict[str, tuple[Any, ...]] = {}
        for kind in kinds:
            server.script(kind)
            timeout_s = 0.5 if kind == "hang" else 60
            with pytest.raises(RequestError) as caught:
                await p.complete(request_of(), model_for(name), timeout_s=timeout_s)
            error, message = caught.value, re.sub(r"\d{6,}", "#", str(caught.value))  # answers have numbers
            if kind in ("reset", "close", "cut", "broken_json"):  # their words depend on timing and on the answer
                message = ""
            found[kind] = (type(error), message, error.status, error.timed_out, may_have_been_billed(error))
        return found

    async def two_rounds(p: WireProvider) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
        before = await errors(p)
        await p.complete(request_of(), model_for(name), timeout_s=60)
        return before, await errors(p)

    before, after = with_open(build(name, server), two_rounds)
    assert after == before
    asked = server.log.asked()
    assert len(asked) == 2 * len(kinds) + 1
    first, *others = [{k: v for k, v in e.headers.items() if k != "x-stainless-read-timeout"} for e in asked]
    assert all(headers == first for headers in others)
    assert {(e.path, str(e.body)) for e in asked} == {(asked[0].path, str(asked[0].body))}


@way
def test_an_unwelcome_answer_is_an_answer(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)
    kinds: tuple[FaultKind, ...] = (
        "empty",
        "refusal",
        "content_filter",
        "prompt_filtered",
        "slow_body",
        "wrong_type",
    )

    async def every(p: WireProvider) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        for kind in kinds:
            server.script(kind)
            answers[kind] = await p.complete(request_of(), model_for(name), timeout_s=60)
        return answers

    answers = with_open(provider, every)
    assert answers["empty"].text == ""
    assert answers["slow_body"].text.startswith("Here is the change.")
    assert answers["wrong_type"].text.startswith("Here is the change.")
    assert answers["prompt_filtered"].finish_reason == "content_filter"
    assert answers["prompt_filtered"].usage == Usage()
    if name != "anthropic_text":  # that interface knows neither refusals nor filters
        assert answers["refusal"].finish_reason == "refusal"
        assert answers["refusal"].text == "I cannot help with that."
        assert answers["content_filter"].finish_reason in ("content_filter", "refusal")


@way
def test_a_cut_answer_says_length(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    provider = build(name, server, **changes)
    request = request_of(max_new_tokens=8)
    answer = with_open(provider, lambda p: p.complete(request, model_for(name), timeout_s=60))
    assert answer.finish_reason == "length"
    assert answer.text == server.log.answers()[0].texts[0]
    assert len(answer.text) == 32


@pytest.mark.parametrize(("name", "changes"), WAYS[:-3])  # a streamed message always states its usage
def test_usage_that_is_missing_is_estimated_and_says_so(
    server: ApiServer, name: str, changes: dict[str, Any]
) -> None:
    server.script("missing_usage")
    answer = ask(build(name, server, **changes), name)
    assert answer.details["usage_estimated"] is True
    assert answer.usage.input_tokens >= len(request_of().prompt.text) // 4
    assert answer.usage.output_tokens >= len(answer.text) // 4


@way
def test_silence_ends_at_the_time_limit(server: ApiServer, name: str, changes: dict[str, Any]) -> None:
    server.script("hang")
    error = error_of(build(name, server, **changes), name, timeout_s=0.3)
    assert type(error) is TransientError
    assert "0.3 s" in str(error)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_trickle_of_bytes_does_not_stretch_the_time_limit(name: str) -> None:
    with ApiServer(latency_s=0.0, faults=[Fault("slow_body")], answer=lambda _: "x" * 2000) as slow:
        error = error_of(build(name, slow), name, timeout_s=0.08)
    assert type(error) is TransientError


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_refused_key_is_never_echoed(name: str) -> None:
    with ApiServer(api_key="another") as strict:
        error = error_of(build(name, strict, api_key_env="OPENAI_API_KEY"), name)
    assert isinstance(error, AuthenticationFailed)
    assert error.exit_status == 2


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_key_goes_where_the_vendor_looks(server: ApiServer, name: str) -> None:
    provider = build(name, server)
    ask(provider, name)
    headers = server.log.asked()[0].headers
    sent = headers.get("authorization", "").removeprefix("Bearer ") or headers.get("api-key")
    variables = {
        **dict.fromkeys(("openai", "openai_responses"), "OPENAI_API_KEY"),
        **dict.fromkeys(("anthropic", "anthropic_text"), "ANTHROPIC_API_KEY"),
        "azure_openai": "AZURE_OPENAI_API_KEY",
        "openai_compatible": None,
        "bedrock": "AWS_BEARER_TOKEN_BEDROCK",
        "vertex": "GOOGLE_OAUTH_ACCESS_TOKEN",
    }
    variable = variables.get(name, provider.api_key_env)
    assert sent == (variable and SECRETS[variable])
    assert "x-stainless-retry-count" not in headers or headers["x-stainless-retry-count"] == "0"


@pytest.mark.parametrize("name", PROVIDERS)
def test_neither_repr_nor_attributes_hold_the_key(server: ApiServer, name: str) -> None:
    provider = build(name, server)
    assert not any(secret in f"{provider!r}{vars(provider)}" for secret in SECRETS.values())


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name not in ("bedrock", "vertex")])
def test_quotas_are_read_from_the_headers(name: str) -> None:
    with ApiServer(requests_per_minute=600, tokens_per_minute=60_000) as limited:
        limits = ask(build(name, limited), name).rate_limits
    assert (limits.limit_requests, limits.limit_tokens) == (600, 60_000)
    assert limits.remaining_requests == 599
    assert limits.remaining_tokens is not None
    assert 50_000 < limits.remaining_tokens < 60_000
    assert limits.reset_requests_s is not None
    assert 0 <= limits.reset_requests_s < 3
    if name.startswith("anthropic"):
        assert limits.limit_output_tokens == 60_000


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_server_without_quotas_leaves_them_unknown(server: ApiServer, name: str) -> None:
    assert ask(build(name, server), name).rate_limits == RateLimits()


@pytest.mark.parametrize("name", PROVIDERS)
def test_connection_errors_pass_and_say_what_happened(server: ApiServer, name: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"
        refused = error_of(build(name, server, base_url=closed), name)
    assert type(refused) is TransientError
    assert "ConnectError" in str(refused)
    unknown = error_of(build(name, server, base_url="http://no-such-host.invalid"), name)
    assert type(unknown) is TransientError
    assert "no-such-host.invalid" in str(unknown)


def test_a_certificate_that_nobody_vouches_for_is_a_clear_error(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    try:
        subprocess.run([*command, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")

    async def life() -> RequestError:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        provider = build("openai", base_url=f"https://127.0.0.1:{port}/v1")
        await provider.open()
        try:
            with pytest.raises(RequestError) as caught:
                await provider.complete(request_of(), model_for("openai"), timeout_s=60)
            return caught.value
        finally:
            await provider.close()
            listener.close()
            await listener.wait_closed()

    error = asyncio.run(life())
    assert type(error) is TransientError
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] * (name not in ("openai", "anthropic"))) for name in PROVIDERS],
)
def test_a_huge_answer_is_read(server: ApiServer, name: str) -> None:
    server.script("huge")
    assert len(ask(build(name, server), name).text) == 8_000_000


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.full] * (name not in ("openai", "anthropic"))) for name in PROVIDERS],
)
def test_connections_are_kept_and_closed(server: ApiServer, name: str) -> None:
    """Two hundred requests, twenty at a time, need no more connections than twenty, and leave none behind."""
    open_before = len(os.listdir("/proc/self/fd"))
    provider = build(name, server, max_concurrency=20)

    async def many(p: WireProvider) -> int:
        request, model = request_of(), model_for(name)
        await asyncio.gather(*(p.complete(request, model, timeout_s=60) for _ in range(200)))
        return len(os.listdir("/proc/self/fd"))

    during = with_open(provider, many)
    assert during - open_before <= 2 * 20 + 8  # both ends are in this process
    assert len(server.log.answers()) == 200
