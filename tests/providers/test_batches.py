"""The vendors' batches over the real SDKs: handed in, found again, read in any order, refused, ended early."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from swe_infer.errors import (
    AuthenticationFailed,
    ConfigError,
    ContextOverflow,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Answer, BatchProvider, BatchStatus
from swe_infer.providers.gemini_batches import GeminiBatches
from swe_infer.providers.mistral_batches import MistralBatches
from swe_infer.providers.openai_batches import OpenAIBatches
from swe_infer.providers.together_batches import TogetherBatches
from swe_infer.types import ApiModel, Decoding, Prompt, Request, Turn
from tests.providers.conftest import SECRETS, build, model_for, request_of, server_context
from tests.support.api_batch_forms import FORMS
from tests.support.api_hostile import hostile_server
from tests.support.api_http import HttpRequest
from tests.support.api_server import ApiServer, Fault

T = TypeVar("T")
Result = Answer | RequestError

NAMES = ["openai", "azure_openai", "openai_responses", "anthropic", "mistral", "together", "gemini"]
named = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name == "azure_openai")) for name in NAMES]
)
COUNTLESS = ("together",)
"""Vendors whose batches have no counts."""


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(batch_delay_s=0.05) as server:
        yield server


def with_open(name: str, server: ApiServer, use: Callable[[BatchProvider], Awaitable[T]]) -> T:
    async def life() -> T:
        provider: Any = build(name, server, mode="batch")
        await provider.open()
        try:
            return await use(provider.deferred())
        finally:
            await provider.close()

    return asyncio.run(life())


def items_of(provider: BatchProvider, name: str, label: str, count: int) -> dict[str, bytes]:
    ids = [f"{label}-{number}" for number in range(count)]
    prompts = [request_of(f"prompt {number}\n" * 5) for number in range(count)]
    return {i: provider.batch_item(i, prompt, model_for(name)) for i, prompt in zip(ids, prompts, strict=True)}


async def ended(provider: BatchProvider, batch_id: str) -> BatchStatus:
    for _ in range(200):
        status = await provider.status(batch_id, timeout_s=60)
        if status.state != "running":
            return status
        await asyncio.sleep(0.02)
    raise AssertionError("the batch did not end")


async def results_of(provider: BatchProvider, batch_id: str) -> dict[str, Result]:
    return {custom_id: result async for custom_id, result in provider.results(batch_id, timeout_s=60)}


def whole_life(name: str, server: ApiServer, count: int = 4) -> tuple[BatchStatus, dict[str, Result]]:
    async def life(provider: BatchProvider) -> tuple[BatchStatus, dict[str, Result]]:
        items = items_of(provider, name, "run-a", count)
        batch_id = await provider.submit(items, model_for(name), label="run-a", timeout_s=60)
        return await ended(provider, batch_id), await results_of(provider, batch_id)

    return with_open(name, server, life)


@named
def test_every_item_is_answered_under_its_own_id(server: ApiServer, name: str) -> None:
    status, results = whole_life(name, server, count=30)
    assert status == (BatchStatus("ended", None if name in COUNTLESS else 30))
    exchanges = {exchange.custom_id: exchange for exchange in server.log.answers()}
    assert set(results) == set(exchanges) == {f"run-a-{number}" for number in range(30)}
    for custom_id, result in results.items():
        assert isinstance(result, Answer)
        exchange = exchanges[custom_id]
        assert result.text == exchange.texts[0]
        assert result.usage == exchange.usage
        assert result.finish_reason == "stop"
        number = custom_id.rpartition("-")[2]
        assert exchange.prompt is not None
        assert f"prompt {number}\n" in exchange.prompt


@named
def test_results_do_not_come_in_the_order_of_the_requests(server: ApiServer, name: str) -> None:
    _, results = whole_life(name, server, count=30)
    assert list(results) != sorted(results, key=lambda i: int(i.rpartition("-")[2]))


@pytest.mark.parametrize(
    "name",
    ["openai", "mistral", *(pytest.param(name, marks=pytest.mark.full) for name in ("azure_openai", "together"))],
)
def test_results_in_a_storage_of_another_host_are_read_without_the_key(server: ApiServer, name: str) -> None:
    asked: list[HttpRequest] = []

    def stored(request: HttpRequest) -> tuple[int, bytes]:
        asked.append(request)
        return 200, server.batches.file(request.path.rpartition("/")[2])

    with hostile_server() as storage:
        storage.bodies |= {"storage": stored, "full": lambda request: (507, b""), "gone": lambda request: (403, b"")}
        server.batches.storage = f"{storage.url}/storage"
        _, results = whole_life(name, server)
        assert len(results) == 4
        assert all(isinstance(result, Answer) for result in results.values())
        assert {request.query["signature"] for request in asked} == {"x"}
        sent = {header.lower(): value for request in asked for header, value in request.headers.items()}
        assert not {"authorization", "api-key"} & sent.keys()
        assert not [value for value in sent.values() if any(secret in value for secret in SECRETS.values())]
        places = {f"{storage.url}/full": 507, f"{storage.url}/gone": 200, "ftp://host.example": 200}
        for place, status in places.items():
            server.batches.storage = place
            with pytest.raises(TransientError) as error:
                whole_life(name, server)
            assert error.value.status == status, error.value


@pytest.mark.parametrize("place", ["encrypted", "behind a proxy"])
def test_a_storage_may_need_certificates_or_a_proxy_that_the_vendor_does_not(
    server: ApiServer, place: str, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stored(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        assert (place == "encrypted") == target.startswith("/")
        content = server.batches.file(target.partition("?")[0].rpartition("/")[2])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(content), content))
        writer.close()

    async def results(provider: BatchProvider) -> dict[str, Result]:
        context = server_context(certificate) if place == "encrypted" else None
        async with await asyncio.start_server(stored, "127.0.0.1", 0, ssl=context) as listener:
            port = listener.sockets[0].getsockname()[1]
            if place == "encrypted":
                monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
                server.batches.storage = f"https://127.0.0.1:{port}"
            else:
                monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
                monkeypatch.setenv("NO_PROXY", "127.0.0.1")
                server.batches.storage = "http://storage.example"
            items = items_of(provider, "openai", "run-a", 2)
            batch_id = await provider.submit(items, model_for("openai"), label="run-a", timeout_s=60)
            await ended(provider, batch_id)
            return await results_of(provider, batch_id)

    assert [type(result) for result in with_open("openai", server, results).values()] == [Answer, Answer]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gemini"])
def test_a_batch_item_is_what_a_live_request_sends(server: ApiServer, name: str) -> None:
    async def item_and_live() -> dict[str, Any]:
        provider, request = build(name, server, mode="batch"), request_of()
        await provider.open()
        await provider.complete(request, model_for(name), timeout_s=60)
        await provider.close()
        item = json.loads(provider.deferred().batch_item("a", request, model_for(name)))
        return dict(item.get("body") or item["params"])

    item = asyncio.run(item_and_live())
    left_out = {"mistral": ("model", "stream"), "together": ("stream",)}.get(name, ())
    assert item == {key: value for key, value in server.log.asked()[0].body.items() if key not in left_out}


def native(model: ApiModel, prompt: Prompt, **decoding: Any) -> Any:
    """The native request of Gemini's batches."""
    batches = build("gemini", mode="batch").deferred()
    request = Request("a__b-1", 0, prompt, Decoding(**{"max_new_tokens": 256, **decoding}))
    return json.loads(batches.batch_item("a", request, model))["request"]


def test_gemini_s_batches_have_the_native_form_of_a_request() -> None:
    """google.genai.types: GenerateContentRequest, Content, Part, GenerationConfig, ThinkingConfig."""
    picture, data = "https://a.example/shot.png?size=2", "data:image/png;base64,iVBORw0KGgo="
    prompt = Prompt(
        "You fix bugs.", "Fix it.", turns=(Turn("a patch", "It does not apply."),), images=(picture, data)
    )
    model = ApiModel(name="gemini-3.8-flash", vision=True, effort="low")
    assert native(model, prompt, temperature=0.5, top_p=0.9, stop=("END",)) == {
        "contents": [
            {
                "role": "user",
                "parts": [
                    {"text": "Fix it."},
                    {"fileData": {"fileUri": picture, "mimeType": "image/png"}},
                    {"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}},
                ],
            },
            {"role": "model", "parts": [{"text": "a patch"}]},
            {"role": "user", "parts": [{"text": "It does not apply."}]},
        ],
        "systemInstruction": {"parts": [{"text": "You fix bugs."}]},
        "generationConfig": {
            "maxOutputTokens": 256,
            "temperature": 0.5,
            "topP": 0.9,
            "stopSequences": ["END"],
            "thinkingConfig": {"thinkingLevel": "LOW"},
        },
    }
    flash = ApiModel(name="gemini-2.5-flash")
    with_thoughts = {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}
    for thinking, changes in (
        (None, {}),
        ({"thinkingBudget": 0}, {"thinking": "off"}),
        ({"thinkingBudget": -1}, {"thinking": "adaptive"}),
        ({"thinkingBudget": 512}, {"thinking": 512}),
        ({"thinkingBudget": 8192}, {"effort": "medium"}),
        (
            {"thinkingBudget": 24576, "includeThoughts": True},
            {"effort": "high", "extra_body": with_thoughts},
        ),
    ):
        changed: Any = changes
        body = native(replace(flash, **changed), Prompt(None, "Fix it."))
        assert body["generationConfig"].get("thinkingConfig") == thinking
        assert "systemInstruction" not in body


@pytest.mark.parametrize(
    ("extra_body", "complaint"),
    [
        ({"top_k": 4}, r"model.extra_body.top_k: Gemini's batches have no such field"),
        ({"reasoning_effort": "max"}, r"reasoning_effort=max: must be one of minimal, low, medium, high"),
        (
            {"extra_body": {"google": {"cached_content": "x"}}},
            r"model.extra_body.extra_body.google: .*thinking_config",
        ),
        ({"extra_body": {"google": {"thinking_config": {"odd": 1}}}}, r"thinking_config: must have no fields but"),
        ({"extra_body": 7}, r"model.extra_body.extra_body: "),
    ],
)
def test_what_gemini_s_batches_cannot_express_is_refused_before_anything_is_sent(
    extra_body: dict[str, Any], complaint: str
) -> None:
    model = ApiModel(name="gemini-3.8-flash", extra_body=extra_body)
    decoding = Decoding(temperature=None, max_new_tokens=256)
    build("gemini").check(model, decoding)
    with pytest.raises(ConfigError, match=complaint):
        build("gemini", mode="batch").check(model, decoding)


def test_gemini_s_batches_need_google_s_address() -> None:
    model, decoding = ApiModel(name="gemini-3.8-flash"), Decoding(temperature=None, max_new_tokens=256)
    with pytest.raises(ConfigError, match=r"provider.base_url=https://gateway.example/v1: batches of Gemini need"):
        build("gemini", mode="batch", base_url="https://gateway.example/v1").check(model, decoding)
    build("gemini", mode="batch", base_url="https://gateway.example/google/v1beta/openai").check(model, decoding)


@named
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("server_error", TransientError),
        ("rate_limit_bare", RateLimited),
        ("context_overflow", ContextOverflow),
        ("batch_expired", TransientError),
    ],
)
def test_an_item_that_fails_costs_nothing_but_itself(
    server: ApiServer, name: str, fault: Any, kind: type[RequestError]
) -> None:
    server.set_faults(Fault(fault, contains="prompt 1\n"))
    _, results = whole_life(name, server)
    assert type(results.pop("run-a-1")) is kind
    assert len(results) == 3
    assert all(isinstance(result, Answer) for result in results.values())


@named
def test_a_filtered_prompt_is_an_answer_in_a_batch_too(server: ApiServer, name: str) -> None:
    server.set_faults(Fault("prompt_filtered", contains="prompt 1\n"))
    _, results = whole_life(name, server)
    result = results["run-a-1"]
    assert isinstance(result, Answer)
    assert result.finish_reason == "content_filter"


@named
def test_lost_and_foreign_results_are_left_to_the_caller(server: ApiServer, name: str) -> None:
    server.set_faults(
        Fault("batch_lost", contains="prompt 1\n"), Fault("batch_wrong_id", contains="prompt 2\n", times=1)
    )
    _, results = whole_life(name, server)
    assert set(results) == {"run-a-0", "run-a-3", "other-run-a-2"}


@named
def test_a_batch_whose_submission_broke_off_is_found_by_its_label(server: ApiServer, name: str) -> None:
    server.batches.drop_next_submissions = 1
    started = time.time()

    async def life(provider: BatchProvider) -> None:
        with pytest.raises(TransientError):
            await provider.submit(items_of(provider, name, "run-a", 4), model_for(name), label="run-a", timeout_s=60)
        other = await provider.submit(
            items_of(provider, name, "run-b", 2), model_for(name), label="run-b", timeout_s=60
        )
        await ended(provider, other)
        (lost,) = [batch for batch in server.batches.submitted() if batch != other]
        await ended(provider, lost)
        found = await provider.find("run-a", since=started, timeout_s=60)
        total = 0 if name in COUNTLESS else 4
        assert [(batch.id, batch.certain, batch.total) for batch in found] == [(lost, True, total)]
        assert len(await results_of(provider, lost)) == 4
        assert await provider.find("run-c", since=started, timeout_s=60) == []

    with_open(name, server, life)


def test_anthropic_cannot_tell_a_running_batch_s_owner_and_says_so(server: ApiServer) -> None:
    server.batches.delay_s = 30

    async def life(provider: BatchProvider) -> None:
        batch_id = await provider.submit(
            items_of(provider, "anthropic", "run-a", 3), model_for("anthropic"), label="run-a", timeout_s=60
        )
        (found,) = await provider.find("run-a", since=time.time(), timeout_s=60)
        assert (found.id, found.certain, found.total) == (batch_id, False, 3)

    with_open("anthropic", server, life)


@pytest.mark.parametrize("name", [pytest.param("openai", marks=pytest.mark.full), "anthropic"])
def test_finding_reads_every_page_and_stops_at_its_time(server: ApiServer, name: str) -> None:
    async def life(provider: BatchProvider) -> None:
        mine = await provider.submit(
            items_of(provider, name, "run-a", 1), model_for(name), label="run-a", timeout_s=60
        )
        for number in range(120):
            label = f"other-{number}"
            await provider.submit(items_of(provider, name, label, 1), model_for(name), label=label, timeout_s=60)
        await ended(provider, server.batches.submitted()[-1])
        listed = len([e for e in server.log.exchanges if e.method == "GET" and e.path.endswith("batches")])
        found = await provider.find("run-a", since=time.time() - 60, timeout_s=60)
        assert [batch.id for batch in found] == [mine]
        pages = len([e for e in server.log.exchanges if e.method == "GET" and e.path.endswith("batches")]) - listed
        assert pages == 2
        late = await provider.find("run-a", since=time.time() + 86_400, timeout_s=60)
        assert late == [] or name != "anthropic"

    with_open(name, server, life)


@named
def test_a_cancelled_batch_ends(server: ApiServer, name: str) -> None:
    server.batches.delay_s = 30

    async def life(provider: BatchProvider) -> dict[str, Result]:
        batch_id = await provider.submit(
            items_of(provider, name, "run-a", 3), model_for(name), label="run-a", timeout_s=60
        )
        assert (await provider.status(batch_id, timeout_s=60)).state == "running"
        await provider.cancel(batch_id, timeout_s=60)
        assert (await ended(provider, batch_id)).state == "ended"
        return await results_of(provider, batch_id)

    results = with_open(name, server, life)
    assert all(type(result) is TransientError for result in results.values())
    assert server.log.answers() == []


@pytest.mark.parametrize("name", ["openai", *FORMS])
def test_a_batch_that_is_refused_says_why(server: ApiServer, name: str) -> None:
    async def life(provider: BatchProvider) -> BatchStatus:
        items = items_of(provider, name, "run-a", 2)
        items["run-a-1"] = items["run-a-0"]  # one custom id twice
        batch_id = await provider.submit(items, model_for(name), label="run-a", timeout_s=60)
        (found,) = await provider.find("run-a", since=time.time(), timeout_s=60)
        assert found.id == batch_id
        return await ended(provider, batch_id)

    status = with_open(name, server, life)
    assert status.state == "failed"
    assert status.error is not None
    assert "custom ids repeat" in str(status.error)


@named
def test_errors_of_the_batch_interface_have_their_class(name: str) -> None:
    with ApiServer(api_key="another") as server:

        async def life(provider: BatchProvider) -> None:
            with pytest.raises(AuthenticationFailed) as caught:
                await provider.submit(
                    items_of(provider, name, "run-a", 1), model_for(name), label="run-a", timeout_s=60
                )
            assert not any(secret in str(caught.value) for secret in SECRETS.values())
            with pytest.raises(RequestError):
                await provider.status("no-such-batch", timeout_s=60)

        with_open(name, server, life)


@named
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("rate_limit", RateLimited),
        pytest.param("server_error", TransientError, marks=pytest.mark.full),
        pytest.param("reset", TransientError, marks=pytest.mark.full),
        ("hang", TransientError),
        pytest.param("html_page", TransientError, marks=pytest.mark.full),
        ("broken_json", TransientError),
        pytest.param("cut", TransientError, marks=pytest.mark.full),
    ],
)
def test_every_step_of_a_batch_classifies_its_faults(
    server: ApiServer, name: str, fault: Any, kind: type[RequestError]
) -> None:
    async def life(provider: BatchProvider) -> None:
        items = items_of(provider, name, "run-a", 3)
        batch_id = await provider.submit(items, model_for(name), label="run-a", timeout_s=60)
        await ended(provider, batch_id)
        timeout_s = 0.5 if fault == "hang" else 60.0
        steps: list[Callable[[], Awaitable[Any]]] = [
            lambda: provider.submit(items, model_for(name), label="run-b", timeout_s=timeout_s),
            lambda: provider.find("run-a", since=0.0, timeout_s=timeout_s),
            lambda: provider.status(batch_id, timeout_s=timeout_s),
            lambda: results_of(provider, batch_id),
        ]
        for step in steps[: 3 if fault == "hang" else 4]:
            server.script_elsewhere(fault)
            with pytest.raises(kind):
                await step()
        server.reset()  # the fault of a request that did not arrive in time
        assert len(await results_of(provider, batch_id)) == 3

    with_open(name, server, life)


def test_the_vendors_limits_are_stated() -> None:
    limits: dict[Any, tuple[int, int]] = {
        OpenAIBatches: (50_000, 200_000_000),
        AnthropicMessages: (100_000, 256_000_000),
        MistralBatches: (100_000, 512_000_000),
        TogetherBatches: (50_000, 100_000_000),
        GeminiBatches: (50_000, 2_000_000_000),
    }
    assert {kind: (kind.max_batch_requests, kind.max_batch_bytes) for kind in limits} == limits


@named
def test_a_line_that_names_no_request_costs_no_other_line(name: str) -> None:
    torn = ["", "{", "[]", '"x"', "null", '{"response": {}}', '{"custom_id": "a", "response":']
    odd = {"custom_id": "run-1", "key": "run-1", "response": {"status_code": 200, "body": {"odd": 1}}}
    odd["result"] = {"type": "succeeded", "message": {"odd": 1}}
    ended: dict[str, Any] = {"status": "completed", "output_file_id": "file-1", "processing_status": "ended"}
    ended |= {"output_file": "file-1", "metadata": {"state": "JOB_STATE_SUCCEEDED"}}
    ended["response"] = {"responsesFile": "files/1"}

    def body(request: HttpRequest) -> tuple[int, bytes]:
        is_file = request.path.endswith(("content", "results", "download"))
        return 200, "\n".join([*torn, json.dumps(odd)]).encode() if is_file else json.dumps(ended).encode()

    async def life(url: str) -> list[Any]:
        versioned = name.startswith("openai") or name in FORMS
        end = "/v1beta/openai" if name == "gemini" else "/v1" if versioned else ""
        provider = build(name, base_url=f"{url}/torn{end}")
        found: list[Any] = []
        await provider.open()
        try:
            async for custom_id, result in provider.deferred().results("batch_1", timeout_s=60):
                found += [custom_id, result]
        except RequestError as error:
            found.append(error)
        finally:
            await provider.close()
        return found

    with hostile_server() as server:
        server.bodies["torn"] = body
        custom_id, result, error = asyncio.run(life(server.url))
    assert (custom_id, type(result)) == ("run-1", TransientError)
    assert (type(error), error.status) == (TransientError, 200)
    assert "6 lines" in str(error)


JOBS: list[tuple[str, dict[str, Any], bool]] = [
    ("openai", {"status": "completed"}, False),
    ("openai", {"status": "expired", "request_counts": {"completed": 2}, "error_file_id": "file-2"}, False),
    ("openai", {"status": "failed", "request_counts": {"completed": 2}}, False),
    ("openai", {"status": "cancelled", "request_counts": {"completed": 0}}, True),
    ("mistral", {"status": "SUCCESS"}, False),
    ("mistral", {"status": "CANCELLED", "succeeded_requests": 2, "error_file": "file-2"}, False),
    ("mistral", {"status": "FAILED", "succeeded_requests": 2}, False),
    ("mistral", {"status": "TIMEOUT_EXCEEDED", "succeeded_requests": 0}, True),
    ("together", {"status": "COMPLETED"}, False),
    ("together", {"status": "FAILED", "progress": 50.0, "error": "internal"}, False),
    ("together", {"status": "EXPIRED", "progress": 0.0}, True),
    ("gemini", {"metadata": {"state": "BATCH_STATE_SUCCEEDED"}, "done": True}, False),
    ("gemini", {"metadata": {"state": "JOB_STATE_FAILED", "batchStats": {"successfulRequestCount": "2"}}}, False),
    ("gemini", {"metadata": {"state": "BATCH_STATE_EXPIRED"}}, True),
]
"""(vendor, an ended batch without a file of answers, whether that is plausible because it has none)."""


@pytest.mark.parametrize(("name", "job", "is_plausible"), JOBS)
def test_an_ended_batch_whose_answers_are_missing_stays_open(
    name: str, job: dict[str, Any], is_plausible: bool
) -> None:
    async def life(url: str) -> None:
        provider = build(name, base_url=f"{url}/job/{'v1beta/openai' if name == 'gemini' else 'v1'}")
        await provider.open()
        try:
            batches = provider.deferred()
            assert (await batches.status("batches/1", timeout_s=60)).state == "ended"
            if is_plausible:
                assert await results_of(batches, "batches/1") == {}
                return
            with pytest.raises(TransientError, match="without the file of its results") as caught:
                await results_of(batches, "batches/1")
            assert caught.value.status == 200
        finally:
            await provider.close()

    with hostile_server() as server:
        server.bodies["job"] = lambda request: (200, json.dumps(job).encode())
        asyncio.run(life(server.url))


@pytest.mark.parametrize("name", ["openai", *FORMS])
def test_an_unknown_state_is_logged_once_and_ends_with_a_stated_end(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    job: dict[str, Any] = {"status": "DRAINING", "metadata": {"state": "BATCH_STATE_DRAINING"}}

    async def life(url: str) -> list[str]:
        provider = build(name, base_url=f"{url}/job/{'v1beta/openai' if name == 'gemini' else 'v1'}")
        await provider.open()
        try:
            batches = provider.deferred()
            states: list[str] = [(await batches.status("batches/1", timeout_s=60)).state for _ in range(2)]
            job.update(completed_at=1, done=True)
            states.append((await batches.status("batches/1", timeout_s=60)).state)
            job.update(status="", metadata={})
            with pytest.raises(TransientError, match="without a status"):
                await batches.status("batches/1", timeout_s=60)
            return states
        finally:
            await provider.close()

    with hostile_server() as server:
        server.bodies["job"] = lambda request: (200, json.dumps(job).encode())
        assert asyncio.run(life(server.url)) == ["running", "running", "ended"]
    assert caplog.text.count("has the unknown state DRAINING") == 1


@pytest.mark.parametrize("name", ["mistral", "gemini"])
def test_finding_reads_pages_that_are_shorter_than_requested(name: str) -> None:
    def page(request: HttpRequest) -> tuple[int, bytes]:
        number = int(request.query.get("page", request.query.get("pageToken", "0")))
        job: dict[str, Any] = {"id": f"batch-{number}", "created_at": int(time.time()), "total_requests": 3}
        job |= {"metadata": {"swe_infer": f"run-{number}", "displayName": f"run-{number}"}}
        listed = [{**job, "name": f"batches/batch-{number}"}] if number < 3 else []
        more = {"nextPageToken": str(number + 1)} if listed else {}
        return 200, json.dumps({"data": listed, "operations": listed, **more}).encode()

    async def life(url: str) -> list[str]:
        provider = build(name, base_url=f"{url}/list/{'v1beta/openai' if name == 'gemini' else 'v1'}")
        await provider.open()
        try:
            return [b.id for b in await provider.deferred().find("run-2", since=time.time(), timeout_s=60)]
        finally:
            await provider.close()

    with hostile_server() as server:
        server.bodies["list"] = page
        assert asyncio.run(life(server.url)) == ["batches/batch-2" if name == "gemini" else "batch-2"]


@pytest.mark.parametrize("name", FORMS)
def test_an_error_in_place_of_a_list_is_not_an_empty_list(name: str) -> None:
    """Some gateways send errors with status 200. An empty list would mean that a batch was never accepted."""

    async def life(url: str) -> None:
        provider = build(name, base_url=f"{url}/list/{'v1beta/openai' if name == 'gemini' else 'v1'}")
        await provider.open()
        try:
            with pytest.raises(RequestError):
                await provider.deferred().find("run-a", since=time.time(), timeout_s=60)
        finally:
            await provider.close()

    with hostile_server() as server:
        server.bodies["list"] = lambda request: (200, b'{"error": {"message": "Internal error", "code": 500}}')
        asyncio.run(life(server.url))
        if name == "gemini":
            server.bodies["list"] = lambda request: (200, b'{"nextPageToken": "\\ud800"}')
            asyncio.run(life(server.url))
