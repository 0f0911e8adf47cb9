"""The loopback server itself: what tests and benchmarks rely on when they count, wait and add up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import RateLimited, RequestError
from swe_infer.providers.wire import WireProvider
from swe_infer.types import Usage
from tests.providers.conftest import CONF, build, model_for, request_of
from tests.support.api_log import Exchange
from tests.support.api_server import ApiServer, Fault, Rates, read_log

NAMES = ["openai", "openai_responses", "anthropic", "anthropic_text"]


def ask_all(provider: WireProvider, model: str, prompts: list[str]) -> list[Any]:
    """Answers or errors, all asked at once."""

    async def life() -> list[Any]:
        await provider.open()
        try:
            asked = (provider.complete(request_of(p), model_for("openai", name=model), timeout_s=60) for p in prompts)
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await provider.close()

    return asyncio.run(life())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_prompt_gets_the_same_answer_and_another_another(name: str) -> None:
    with ApiServer() as server:
        one, again, other = ask_all(build(name, server), "gpt-test", ["one", "one", "other"])
    assert one.text == again.text != other.text


def test_the_default_answer_applies_to_the_first_file_of_the_prompt(tmp_path: Path) -> None:
    content = "import os\n\ndef f():\n    return 1\n"
    numbered = "".join(f"{n} {line}\n" for n, line in enumerate(content.splitlines(), 1))
    prompt = f"<code>\n[start of pkg/mod.py]\n{numbered}[end of pkg/mod.py]\n</code>"
    with ApiServer() as server:
        (answer,) = ask_all(build("openai", server), "gpt-test", [prompt])
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "mod.py").write_text(content)
    patch = answer.text.split("```diff\n")[1].split("```")[0]
    subprocess.run(["git", "apply"], cwd=tmp_path, input=patch, text=True, check=True)
    assert (tmp_path / "pkg" / "mod.py").read_text().endswith(content)
    assert (tmp_path / "pkg" / "mod.py").read_text().startswith("# ")


def test_the_bill_is_the_sum_over_what_was_answered() -> None:
    rates = Rates(Decimal(3), Decimal(15), cached_input=Decimal("0.3"))
    with ApiServer(faults=[Fault("server_error", contains="bad")]) as server:
        answers = ask_all(build("openai", server), "gpt-4o", ["one", "two", "bad"])
        good = [answer for answer in answers if not isinstance(answer, Exception)]
        assert len(good) == 2
        expected = sum((rates.cost(answer.usage) for answer in good), Decimal(0))
        assert server.log.cost_usd(rates) == expected > 0
        assert server.log.cost_usd() > 0
        assert server.log.usage() == good[0].usage + good[1].usage
        assert len(server.log.asked()) == 3
        assert server.log.answers_by_prompt() == {
            "You fix bugs.\none": 1,
            "You fix bugs.\ntwo": 1,
        }


def test_rates_price_each_kind_of_token_once() -> None:
    rates = Rates(Decimal(10), Decimal(100), cached_input=Decimal(1), cache_write=Decimal(20))
    usage = Usage(1_000_000, 400_000, 100_000, 10_000, 5_000)
    assert rates.cost(usage) == Decimal("5") + Decimal("0.4") + Decimal("2") + Decimal("1")


def test_faults_strike_by_script_by_fraction_by_prompt_and_by_count() -> None:
    with ApiServer(faults=[Fault("server_error", per_prompt=1, contains="twice")]) as server:
        provider = build("openai", server)
        server.script("refusal", None)
        first = ask_all(provider, "gpt-test", ["a"])[0]
        second = ask_all(provider, "gpt-test", ["a"])[0]
        assert (first.finish_reason, second.finish_reason) == ("refusal", "stop")
        tries = [ask_all(provider, "gpt-test", ["twice"])[0] for _ in range(3)]
        assert [isinstance(one, RequestError) for one in tries] == [True, False, False]
        server.set_faults(Fault("server_error", times=2))
        tries = ask_all(provider, "gpt-test", ["a"] * 5)
        assert sum(isinstance(one, RequestError) for one in tries) == 2
        server.set_faults(Fault("server_error", fraction=0.3))
        tries = ask_all(provider, "gpt-test", ["a"] * 200)
        assert 30 <= sum(isinstance(one, RequestError) for one in tries) <= 90


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_rate_limits_refuse_what_is_beyond_them_and_refill(name: str) -> None:
    with ApiServer(requests_per_minute=0.6, burst_s=1000) as server:  # ten at once, then one in 100 s
        provider = build(name, server)
        answers = ask_all(provider, "gpt-test", ["a"] * 15)
        refused = [one for one in answers if isinstance(one, RateLimited)]
        assert len(refused) == 5
        assert all(0 < (one.retry_after_s or 0) <= 100 for one in refused)
        server.limiter.pass_time(400)
        again = ask_all(provider, "gpt-test", ["a"] * 4)
        assert not any(isinstance(one, Exception) for one in again)


def test_token_limits_count_the_prompt_and_the_output_bound() -> None:
    with ApiServer(tokens_per_minute=1000, burst_s=60) as server:
        answers = ask_all(build("openai", server), "gpt-test", ["a"] * 5)  # each wants 256 tokens and a few
    assert sum(isinstance(one, RateLimited) for one in answers) == 2


def test_openai_caches_a_repeated_prompt_by_itself_in_steps_of_128() -> None:
    long = "word " * 2000
    with ApiServer() as server:
        provider = build("openai", server)
        cold, short = (ask_all(provider, "gpt-test", [p])[0] for p in (long, "short"))
        warm, still_short = (ask_all(provider, "gpt-test", [p])[0] for p in (long, "short"))
        other_model = ask_all(provider, "gpt-other", [long])[0]
    assert cold.usage.cached_input_tokens == short.usage.cached_input_tokens == 0
    assert warm.usage.cached_input_tokens == warm.usage.input_tokens // 128 * 128 > 2000
    assert still_short.usage.cached_input_tokens == other_model.usage.cached_input_tokens == 0


def logged(exchanges: Callable[[], list[Exchange]]) -> list[Exchange]:
    """The server's account, which it writes after it has answered: once there is something in it."""
    deadline = time.monotonic() + 60.0
    while not (found := exchanges()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_n_choices_come_in_one_answer_and_are_billed_for_one_prompt() -> None:
    import openai

    with ApiServer() as server:
        client = openai.OpenAI(base_url=server.openai_url, api_key="key", max_retries=0)
        with client:
            message: Any = {"role": "user", "content": "hello"}
            answer = client.chat.completions.create(model="gpt-4o", messages=[message], n=3)
        texts = [choice.message.content for choice in answer.choices]
        assert len(set(texts)) == 3
        (exchange,) = logged(server.log.answers)
        assert exchange.texts == tuple(texts)
        assert exchange.usage is not None
        assert exchange.usage.input_tokens == 5


def test_parameters_that_a_model_does_not_take_are_refused_as_by_the_vendors() -> None:
    with ApiServer() as server:
        (thinker,) = ask_all(build("openai", server), "o3", ["a"])
        (new,) = ask_all(build("anthropic", server, api_version="2026-10-21"), "claude-test", ["a"])
    assert isinstance(thinker, RequestError)
    assert "temperature" in str(thinker)
    assert isinstance(new, RequestError)
    assert "temperature: Extra inputs" in str(new)


def test_latency_is_waited_for_and_requests_in_flight_are_counted() -> None:
    with ApiServer(latency_s=3.0) as server:
        ask_all(build("openai", server), "gpt-test", ["a"] * 20)
        assert server.peak_in_flight == 20
        assert server.in_flight == 0


def test_an_answer_that_nobody_waits_for_any_more_is_billed_but_not_usable() -> None:
    with ApiServer(latency_s=2.0) as server:

        async def life() -> None:
            provider = build("openai", server)
            await provider.open()
            asked = asyncio.create_task(provider.complete(request_of(), model_for("openai"), timeout_s=60))
            while not server.in_flight:  # noqa: ASYNC110 - counted by another thread
                await asyncio.sleep(0.01)
            asked.cancel()
            await provider.close()

        asyncio.run(life())
        (exchange,) = logged(lambda: [found for found in server.log.asked() if found.usage is not None])
        assert exchange.usage is not None
        assert not exchange.usable


def test_the_log_of_a_server_process_survives_its_death(tmp_path: Path) -> None:
    log = tmp_path / "server.jsonl"
    command = [sys.executable, "-m", "tests.support.api_server", "--log", str(log), "--fault", "server_error:1:1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=CONF.parent)
    assert process.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        provider = build("openai", base_url=url)
        answers = [ask_all(provider, "gpt-4o", [text])[0] for text in ("one\ntwo", "one\ntwo", "three")]
        assert [isinstance(answer, RequestError) for answer in answers] == [True, False, True]
        body = json.dumps({"latency_s": 60}).encode()
        head = f"POST /_control HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        assert asyncio.run(_exchange(url, head + body)).startswith(b"HTTP/1.1 200")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    with log.open("ab") as file:
        file.write(b'{"event": "answer", "numb')
    read = read_log(log)
    assert [exchange.prompt for exchange in read.asked()] == [
        f"You fix bugs.\n{t}" for t in ("one\ntwo",) * 2 + ("three",)
    ]
    assert [exchange.fault for exchange in read.asked()] == ["server_error", None, "server_error"]
    (good,) = read.answers()
    assert good.texts == (answers[1].text,)
    assert good.usage == answers[1].usage
    assert read.cost_usd() > 0


async def _exchange(url: str, data: bytes) -> bytes:
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return answer
