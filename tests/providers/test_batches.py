"""The vendors' batches over the real SDKs: handed in, found again, read in any order, refused, ended early."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar, cast

import pytest

from swe_infer.errors import (
    AuthenticationFailed,
    ContextOverflow,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.base import Answer, BatchProvider, BatchStatus, Provider
from swe_infer.providers.openai_chat import OpenAIChat
from tests.providers.conftest import SECRETS, build, model_for, request_of
from tests.support.api_hostile import hostile_server
from tests.support.api_http import HttpRequest
from tests.support.api_server import ApiServer, Fault

T = TypeVar("T")
Result = Answer | RequestError

NAMES = ["openai", "azure_openai", "openai_responses", "anthropic"]
named = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(batch_delay_s=0.05) as server:
        yield server


def with_open(name: str, server: ApiServer, use: Callable[[BatchProvider], Awaitable[T]]) -> T:
    async def life() -> T:
        provider: Any = build(name, server, mode="batch")
        await provider.open()
        try:
            return await use(provider)
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
        batch_id = await provider.submit(items, label="run-a", timeout_s=60)
        return await ended(provider, batch_id), await results_of(provider, batch_id)

    return with_open(name, server, life)


@named
def test_every_item_is_answered_under_its_own_id(server: ApiServer, name: str) -> None:
    status, results = whole_life(name, server, count=30)
    assert status == BatchStatus("ended", 30, 30)
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


@named
def test_a_batch_item_is_what_a_live_request_sends(server: ApiServer, name: str) -> None:
    async def both(provider: BatchProvider) -> dict[str, Any]:
        request = request_of()
        assert isinstance(provider, Provider)
        await provider.complete(request, model_for(name), timeout_s=60)
        item = json.loads(provider.batch_item("a", request, model_for(name)))
        return dict(item.get("body") or item["params"])

    assert with_open(name, server, both) == server.log.asked()[0].body


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
            await provider.submit(items_of(provider, name, "run-a", 4), label="run-a", timeout_s=60)
        other = await provider.submit(items_of(provider, name, "run-b", 2), label="run-b", timeout_s=60)
        await ended(provider, other)
        (lost,) = [batch for batch in server.batches.submitted() if batch != other]
        await ended(provider, lost)
        found = await provider.find("run-a", since=started, timeout_s=60)
        assert [(batch.id, batch.certain, batch.total) for batch in found] == [(lost, True, 4)]
        assert len(await results_of(provider, lost)) == 4
        assert await provider.find("run-c", since=started, timeout_s=60) == []

    with_open(name, server, life)


def test_anthropic_cannot_tell_a_running_batch_s_owner_and_says_so(server: ApiServer) -> None:
    server.batches.delay_s = 30

    async def life(provider: BatchProvider) -> None:
        batch_id = await provider.submit(items_of(provider, "anthropic", "run-a", 3), label="run-a", timeout_s=60)
        (found,) = await provider.find("run-a", since=time.time(), timeout_s=60)
        assert (found.id, found.certain, found.total) == (batch_id, False, 3)

    with_open("anthropic", server, life)


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_finding_reads_every_page_and_stops_at_its_time(server: ApiServer, name: str) -> None:
    async def life(provider: BatchProvider) -> None:
        mine = await provider.submit(items_of(provider, name, "run-a", 1), label="run-a", timeout_s=60)
        for number in range(120):
            label = f"other-{number}"
            await provider.submit(items_of(provider, name, label, 1), label=label, timeout_s=60)
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
        batch_id = await provider.submit(items_of(provider, name, "run-a", 3), label="run-a", timeout_s=60)
        assert (await provider.status(batch_id, timeout_s=60)).state == "running"
        await provider.cancel(batch_id, timeout_s=60)
        assert (await ended(provider, batch_id)).state == "ended"
        return await results_of(provider, batch_id)

    results = with_open(name, server, life)
    assert all(type(result) is TransientError for result in results.values())
    assert server.log.answers() == []


def test_a_batch_that_openai_refuses_says_why(server: ApiServer) -> None:
    async def life(provider: BatchProvider) -> BatchStatus:
        items = items_of(provider, "openai", "run-a", 2)
        items["run-a-1"] = items["run-a-0"]  # one custom id twice
        return await ended(provider, await provider.submit(items, label="run-a", timeout_s=60))

    status = with_open("openai", server, life)
    assert status.state == "failed"
    assert status.error is not None
    assert "custom ids repeat" in str(status.error)


@named
def test_errors_of_the_batch_interface_have_their_class(name: str) -> None:
    with ApiServer(api_key="another") as server:

        async def life(provider: BatchProvider) -> None:
            with pytest.raises(AuthenticationFailed) as caught:
                await provider.submit(items_of(provider, name, "run-a", 1), label="run-a", timeout_s=60)
            assert not any(secret in str(caught.value) for secret in SECRETS.values())
            with pytest.raises(RequestError):
                await provider.status("no-such-batch", timeout_s=60)

        with_open(name, server, life)


@named
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("rate_limit", RateLimited),
        ("server_error", TransientError),
        ("reset", TransientError),
        ("hang", TransientError),
        ("html_page", TransientError),
        ("broken_json", TransientError),
        ("cut", TransientError),
    ],
)
def test_every_step_of_a_batch_classifies_its_faults(
    server: ApiServer, name: str, fault: Any, kind: type[RequestError]
) -> None:
    async def life(provider: BatchProvider) -> None:
        items = items_of(provider, name, "run-a", 3)
        batch_id = await provider.submit(items, label="run-a", timeout_s=60)
        await ended(provider, batch_id)
        steps: list[Callable[[], Awaitable[Any]]] = [
            lambda: provider.submit(items, label="run-b", timeout_s=0.5),
            lambda: provider.find("run-a", since=0.0, timeout_s=0.5),
            lambda: provider.status(batch_id, timeout_s=0.5),
            lambda: results_of(provider, batch_id),
        ]
        for step in steps[: 3 if fault == "hang" else 4]:
            server.script_elsewhere(fault)
            with pytest.raises(kind):
                await step()
        assert len(await results_of(provider, batch_id)) == 3

    with_open(name, server, life)


def test_the_vendors_limits_are_stated() -> None:
    assert (OpenAIChat.max_batch_requests, OpenAIChat.max_batch_bytes) == (50_000, 200_000_000)
    assert (AnthropicMessages.max_batch_requests, AnthropicMessages.max_batch_bytes) == (100_000, 256_000_000)


@named
def test_a_line_that_names_no_request_costs_no_other_line(name: str) -> None:
    torn = ["", "{", "[]", '"x"', "null", '{"response": {}}', '{"custom_id": "a", "response":']
    odd = {"custom_id": "run-1", "response": {"status_code": 200, "body": {"odd": 1}}}
    odd["result"] = {"type": "succeeded", "message": {"odd": 1}}
    ended = {"status": "completed", "output_file_id": "file-1", "processing_status": "ended"}

    def body(request: HttpRequest) -> tuple[int, bytes]:
        is_file = request.path.endswith(("content", "results"))
        return 200, "\n".join([*torn, json.dumps(odd)]).encode() if is_file else json.dumps(ended).encode()

    async def life(url: str) -> list[Any]:
        provider = build(name, base_url=f"{url}/torn{'/v1' if name.startswith('openai') else ''}")
        found: list[Any] = []
        await provider.open()
        try:
            async for custom_id, result in cast(BatchProvider, provider).results("batch_1", timeout_s=60):
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
