"""Requests for further turns: who continues a conversation, and how their common first prompt is cached."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from swe_infer.api.deployments import Deployments
from swe_infer.errors import ConfigError
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.anthropic_text import AnthropicText
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.run_directory.records import Record
from swe_infer.runners.api import ApiRunner
from swe_infer.runners.turns import PendingTurn
from swe_infer.types import ApiModel, Completion, Decoding, Outcome, Prompt, Request, Skip, Turn
from tests.api.scripted import ScriptedProvider
from tests.support.api_server import ApiServer, Fault


def test_every_deployment_must_continue_a_conversation() -> None:
    model = ApiModel(name="claude-2")
    both = Deployments(first=AnthropicMessages(), second=AnthropicText())
    with pytest.raises(ConfigError, match=r"^provider\.second: a further turn needs a chat model"):
        both.check_conversation(model)
    Deployments(first=AnthropicMessages(), second=OpenAIResponses()).check_conversation(model)


def test_conversations_share_the_cached_prompt_and_one_that_is_too_long_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-loopback-0123456789")
    decoding = Decoding(max_new_tokens=16, n=4)
    prompts = [Prompt("system", "word " * 3000, turns=(Turn(f"answer {sample}", "why"),)) for sample in range(4)]
    outcomes: dict[int, Outcome] = {}
    with ApiServer(faults=[Fault("context_overflow", contains="answer 0")]) as server:
        provider = AnthropicMessages(base_url=server.anthropic_url)
        api = ApiRunner(model=ApiModel(name="claude-sonnet-4-5"), provider=provider, decoding=decoding)
        api.check()
        rounds = [[Request("i", sample, prompt, decoding) for sample, prompt in enumerate(prompts)]]
        api.generate_rounds(
            rounds * 2, lambda request, outcome: outcomes.update({request.sample: outcome}), threading.Event()
        )
        assert len(server.log.asked()) == 8
        assert api.stats()["requests_sent"] == 8, "figures are of all rounds"
    assert isinstance(outcomes.pop(0), Skip)
    completions = [outcome for outcome in outcomes.values() if isinstance(outcome, Completion)]
    assert len(completions) == 3
    assert all(completion.usage.cached_input_tokens > 3000 for completion in completions)


def test_a_provider_stays_open_between_rounds() -> None:
    provider, decoding = ScriptedProvider(), Decoding(max_new_tokens=16)
    api = ApiRunner(model=ApiModel(name="gpt-4o"), provider=provider, decoding=decoding)
    rounds = ([Request(f"i{number}", 0, Prompt(None, "u"), decoding)] for number in range(3))
    api.generate_rounds(rounds, lambda request, outcome: None, threading.Event())
    assert (len(provider.sent), provider.opened, provider.closed) == (3, 1, 1)


def test_recorded_texts_that_utf_8_cannot_encode_are_sent_with_replacements() -> None:
    first = {"instance_id": "i", "sample": 0, "status": "completed", "full_output": "one \ud800"}
    lines = [first, {**first, "turn": 1, "feedback": "two \udcff"}]
    pending = PendingTurn(0, ("i", 0), cast("list[Record]", lines), "three", {}, None)
    prompt = pending.request(Prompt(None, "u"), Decoding(max_new_tokens=16)).prompt
    assert [turn.reply for turn in prompt.turns] == ["two \ufffd", "three"]
    assert prompt.text.encode()
