"""Nobody listens at the address: told of after a few tries. What has connected once is waited for."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swe_infer.api.batch import BatchSettings
from swe_infer.api.deployments import Deployments
from swe_infer.api.limits import Limits
from swe_infer.api.reachability import Unreachable
from swe_infer.api.retry import Retry
from swe_infer.errors import ProviderFatal
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Decoding, Failure, Outcome, Request
from tests.api.scripted import context, requests
from tests.support.api_server import ApiServer
from tests.support.loopback import Handler, Server

BURST = 8
"""``runner.limits.start``: so many may be on their way when the first one fails."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")


@pytest.fixture
def closed_ports() -> Iterator[list[int]]:
    """Nobody listens at these two. They are held, so that no other process gets one; a server can take it."""
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
        yield [one.getsockname()[1] for one in (first, second)]


@contextmanager
def no_tls() -> Iterator[tuple[int, list[int]]]:
    """A port at which somebody listens who speaks no TLS, and a count of the connections.

    The first one is rejected after a while, when all other requests have queued for a permit.
    """
    listener, count = socket.create_server(("127.0.0.1", 0)), [0]

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            if count[0] == 0:
                time.sleep(0.5)
            count[0] += 1
            peer.sendall(b"this is no TLS\n")
            peer.close()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1], count


def runner(provider: OpenAIChat | Deployments, tries: int = 12) -> ApiRunner:
    retry = Retry(tries=tries, backoff_s=0.01, max_backoff_s=0.05)
    return ApiRunner(
        model=ApiModel(name="gpt-4o"),
        provider=provider,
        decoding=Decoding(max_new_tokens=16),
        retry=retry,
        limits=Limits(start=BURST, doubling_s=1e6),  # otherwise the level grows until the first one fails
        batches=BatchSettings(first_poll_s=0.05),
    )


def nothing_is_answered(request: Request, outcome: Outcome) -> None:
    raise AssertionError(f"{request.key}: {outcome}")


def test_a_closed_port_ends_the_run_after_a_few_tries_in_all_and_names_the_address(closed_ports: list[int]) -> None:
    url = f"http://127.0.0.1:{closed_ports[0]}/v1"
    api = runner(OpenAIChat(base_url=url))
    with pytest.raises(Unreachable, match="check the address") as raised:
        api.generate(requests(60), nothing_is_answered, threading.Event())
    assert f"provider.base_url={url}: " in str(raised.value)
    assert raised.value.exit_status == 1
    assert api.stats()["requests_sent"] <= BURST + 6, "of 60 requests"


def test_a_proxy_on_the_way_to_a_closed_port_is_named(
    closed_ports: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"http://user:planted@127.0.0.1:{closed_ports[0]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    api = runner(OpenAIChat(base_url="http://server.example/v1"))
    with pytest.raises(Unreachable, match="and the proxy in ALL_PROXY, firewall") as raised:
        api.generate(requests(5), nothing_is_answered, threading.Event())
    assert "planted" not in str(raised.value)


def test_a_failing_handshake_counts_as_no_connection() -> None:
    with no_tls() as (port, connections):
        with pytest.raises(Unreachable, match=rf"https://127\.0\.0\.1:{port}"):
            runner(OpenAIChat(base_url=f"https://127.0.0.1:{port}/v1")).generate(
                requests(60), nothing_is_answered, threading.Event()
            )
        assert 3 <= connections[0] <= BURST + 6, "of 60 requests"


def test_every_deployment_is_tried_before_the_run_is_given_up_and_a_live_one_answers_it(
    closed_ports: list[int],
) -> None:
    dead = [OpenAIChat(base_url=f"http://127.0.0.1:{port}/v1") for port in closed_ports]
    with pytest.raises(Unreachable) as raised:
        runner(Deployments(first=dead[0], second=dead[1])).generate(
            requests(20), nothing_is_answered, threading.Event()
        )
    assert all(provider.address in str(raised.value) for provider in dead)
    outcomes: dict[tuple[str, int], Outcome] = {}
    with ApiServer() as server:
        both = Deployments(first=dead[0], second=OpenAIChat(base_url=server.openai_url))
        runner(both).generate(requests(20), lambda r, o: outcomes.update({r.key: o}), threading.Event())
        assert len(server.log.answers()) == len(outcomes) == 20


def test_a_server_that_comes_up_in_time_answers_everything(closed_ports: list[int]) -> None:
    port, outcomes = closed_ports[0], []
    api = runner(OpenAIChat(base_url=f"http://127.0.0.1:{port}/v1"))
    working = threading.Thread(
        target=api.generate, args=(requests(20), lambda r, o: outcomes.append(o), threading.Event()), daemon=True
    )
    working.start()
    while api.stats().get("requests_sent", 0.0) < 1:
        time.sleep(0.01)
    with ApiServer(port=port) as server:
        working.join(120)
        assert len(outcomes) == len(server.log.answers()) == 20


def test_once_a_request_has_connected_the_usual_patience_holds() -> None:
    """The server answers one request, with an error, and is gone."""
    outcomes: list[Outcome] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def answer_one() -> None:
        peer, _ = listener.accept()
        listener.close()
        peer.recv(1 << 16)
        peer.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        peer.close()

    threading.Thread(target=answer_one, daemon=True).start()
    provider = OpenAIChat(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}/v1", max_concurrency=1)
    runner(provider, tries=5).generate(requests(4), lambda r, o: outcomes.append(o), threading.Event())
    assert [outcome.attempts for outcome in outcomes if isinstance(outcome, Failure)] == [5, 5, 5, 5]


def test_a_batch_that_cannot_connect_ends_the_run_and_is_submitted_later(
    tmp_path: Path, closed_ports: list[int]
) -> None:
    port, outcomes = closed_ports[0], []

    def go() -> None:
        api = runner(OpenAIChat(base_url=f"http://127.0.0.1:{port}/v1", mode="batch"))
        api.bind(context(tmp_path))
        api.generate(requests(4), lambda r, o: outcomes.append(o), threading.Event())

    with pytest.raises(Unreachable):
        go()
    assert outcomes == []
    with ApiServer(port=port) as server:
        go()
        assert len(outcomes) == len(server.log.answers()) == 4


class Redirecting(Server):
    """Redirects every request to ``target``."""

    def __init__(self, target: str) -> None:
        super().__init__(_Redirect)
        self.target = target


class _Redirect(Handler):
    server: Redirecting

    def respond(self) -> None:
        self.body()
        self.send(307, headers={"Location": self.server.target})


def test_a_redirect_sends_no_prompt_to_another_host() -> None:
    with ApiServer() as other, Redirecting(f"{other.openai_url}/chat/completions") as server:
        api = runner(OpenAIChat(base_url=f"{server.url}/v1"))
        with pytest.raises(ProviderFatal, match=r"HTTP 307, a redirect .*; check provider\.base_url"):
            api.generate(requests(5), nothing_is_answered, threading.Event())
        assert other.log.asked() == []
