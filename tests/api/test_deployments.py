"""One model behind several endpoints, over real sockets: who answers, when the next takes over, what is recorded."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.deployments import Deployments
from swe_infer.api.retry import Retry
from swe_infer.errors import AuthenticationFailed, ConfigError, QuotaExhausted
from swe_infer.providers.anthropic_bedrock import AnthropicBedrock
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.anthropic_vertex import AnthropicVertex
from swe_infer.providers.azure_openai import AzureOpenAI
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Request
from tests.api.scripted import counted, requests
from tests.api.test_runner import Outcomes
from tests.support.api_server import ApiServer, Fault, FaultKind


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "AZURE_OPENAI_API_KEY",
        "ANTHROPIC_API_KEY",
        "AWS_BEARER_TOKEN_BEDROCK",
        "GOOGLE_OAUTH_ACCESS_TOKEN",
    ):
        monkeypatch.setenv(name, "sk-loopback")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("ANTHROPIC_VERTEX_PROJECT_ID", "a-project")


def runner(first: ApiServer, second: ApiServer, **options: Any) -> ApiRunner:
    provider = Deployments(
        first=OpenAIChat(base_url=first.openai_url, timeout_s=60),
        second=AzureOpenAI(base_url=second.azure_url, timeout_s=60),
        names={"second": "my-deployment"},
    )
    retry = Retry(backoff_s=0.02)
    api = ApiRunner(
        model=ApiModel(name="gpt-4o"), provider=provider, decoding=Decoding(max_new_tokens=64), retry=retry, **options
    )
    api.check()
    return api


def slowly(wanted: list[Request], until: Callable[[], bool]) -> Iterator[Request]:
    for one in wanted:
        if until():
            return
        time.sleep(0.05)
        yield one


SIMILAR: tuple[FaultKind, ...] = ("insufficient_quota", "unavailable", "server_error")


def answered_by(outcomes: Outcomes) -> Counter[str]:
    completions = [o for o in outcomes.by_key.values() if isinstance(o, Completion)]
    assert len(completions) == len(outcomes)
    assert all(o.cost_usd for o in completions)
    return Counter(str(o.details["provider"]) for o in completions)


def test_the_first_endpoint_is_used_while_it_works() -> None:
    with ApiServer() as first, ApiServer() as second:
        outcomes = Outcomes()
        runner(first, second).generate(requests(30), outcomes, threading.Event())
        assert answered_by(outcomes) == {"openai": 30}
        assert second.log.asked() == []


@pytest.mark.parametrize(
    "kind",
    ["auth", "rate_limit", "reset", *(pytest.param(kind, marks=pytest.mark.full) for kind in SIMILAR)],
)
def test_the_next_endpoint_takes_over_if_the_first_fails(kind: FaultKind) -> None:
    with (
        ApiServer(faults=[Fault(kind, retry_after_s=3600)]) as first,
        ApiServer() as second,
    ):  # which nobody waits out
        outcomes = Outcomes()  # nobody waits out the first one's Retry-After
        runner(first, second).generate(requests(100), outcomes, threading.Event())
        assert answered_by(outcomes) == {"azure_openai": 100}
        assert len(first.log.asked()) < 40
        assert {e.model for e in second.log.answers()} == {"my-deployment"}


def test_the_first_endpoint_is_used_again_after_its_pause() -> None:
    with (
        ApiServer(faults=[Fault("rate_limit", times=3, retry_after_s=1)]) as first,
        ApiServer(latency_s=0.3) as second,
    ):
        api = runner(first, second)
        outcomes = Outcomes()
        wanted = slowly(requests(2000), lambda: len(first.log.answers()) > 5)
        api.generate(wanted, outcomes, threading.Event())
        by = answered_by(outcomes)
        assert by["openai"] > 5
        assert by["azure_openai"] >= 3


def test_the_run_stops_when_all_endpoints_have_failed() -> None:
    with ApiServer(faults=[Fault("insufficient_quota")]) as first, ApiServer(faults=[Fault("auth")]) as second:
        outcomes = Outcomes()
        with pytest.raises((AuthenticationFailed, QuotaExhausted)):
            runner(first, second).generate(requests(500), outcomes, threading.Event())
        assert len(first.log.asked()) + len(second.log.asked()) < 50


BEDROCK_NAME = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"


def claude_runner(first: ApiServer, second: ApiServer, third: ApiServer) -> ApiRunner:
    provider = Deployments(
        first=AnthropicMessages(base_url=first.anthropic_url, timeout_s=60),
        second=AnthropicBedrock(base_url=second.bedrock_url, timeout_s=60),
        third=AnthropicVertex(base_url=third.vertex_url, timeout_s=60),
        names={"second": BEDROCK_NAME, "third": "claude-sonnet-4-5@20250929"},
    )
    model = ApiModel(name="claude-sonnet-4-5", api_version="2023-06-01", one_sampler=True)
    api = ApiRunner(model=model, provider=provider, decoding=Decoding(max_new_tokens=64), retry=Retry(backoff_s=0.02))
    api.check()
    return api


@pytest.mark.parametrize(
    "kind",
    [
        "overloaded",
        *(pytest.param(kind, marks=pytest.mark.full) for kind in ("insufficient_quota", "rate_limit", "reset")),
    ],
)
def test_bedrock_takes_over_from_anthropic_and_vertex_from_bedrock(kind: FaultKind) -> None:
    """Prompt caches are used wherever the answers come from, and every price is that of the place."""
    wanted = requests(12, samples=3, text="word " * 1500)
    down = [Fault(kind, retry_after_s=60)]
    for second_down, who in ((False, "bedrock"), (True, "vertex")):
        with ApiServer(faults=down) as first, ApiServer(faults=down * second_down) as second, ApiServer() as third:
            outcomes = Outcomes()
            claude_runner(first, second, third).generate(wanted, outcomes, threading.Event())
            assert answered_by(outcomes) == {who: 36}
            server = third if second_down else second
            assert {e.model for e in server.log.answers()} == {
                "claude-sonnet-4-5@20250929" if second_down else BEDROCK_NAME
            }
            done = [o for o in outcomes.by_key.values() if isinstance(o, Completion)]
            assert sum(o.usage.cached_input_tokens > 0 for o in done) == 24
            assert sum(o.usage.cache_write_tokens > 0 for o in done) == 12
            assert sum(o.cost_usd or Decimal(0) for o in done) == server.log.cost_usd()


def test_a_dry_run_counts_what_the_cache_holds_from_any_of_the_endpoints(tmp_path: Path) -> None:
    with ApiServer(faults=[Fault("auth")]) as first, ApiServer() as second:
        api = runner(first, second, response_cache=str(tmp_path))
        api.generate(requests(5), Outcomes(), threading.Event())
        found = runner(first, second, response_cache=str(tmp_path)).estimate(counted(requests(8)))
        assert (found.response_cache_hits, found.requests) == (5, 3)


def test_invalid_configurations_are_refused() -> None:
    one, other = OpenAIChat(), OpenAIChat(mode="batch")
    with pytest.raises(ConfigError, match=r"provider\.second\.mode"):
        Deployments(first=one, second=other)
    with pytest.raises(ConfigError, match=r"provider\.names\.third"):
        Deployments(first=one, second=one, names={"third": "x"})
    with pytest.raises(ConfigError, match=r"provider\.second: .*"):
        ApiRunner(
            model=ApiModel(name="gpt-4o"),
            provider=Deployments(first=one, second=OpenAIChat(base_url="nowhere")),
            decoding=Decoding(),
        ).check()
