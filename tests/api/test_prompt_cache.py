"""Runs at the same time pay for a prompt once: one goes ahead with it, the others wait for the provider's cache."""

from __future__ import annotations

import gc
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from swe_infer.api.prompt_cache import PromptCacheIndex, prompt_key
from swe_infer.errors import InvalidRequest
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Completion, Decoding, Outcome, Prompt, Request
from tests.api.scripted import ScriptedProvider, context, requests
from tests.support import commands
from tests.support.api_server import ApiServer

KEY = b"prompt"
CLAIM = """
import sys
from pathlib import Path
from swe_infer.api.prompt_cache import PromptCacheIndex
index = PromptCacheIndex(Path(sys.argv[1]))
print(index.claim(b"prompt"))
"""


def run_at_once(runners: list[ApiRunner], wanted: list[list[Request]], directory: Path) -> list[list[Outcome]]:
    """Each runner in a thread of its own; they share files alone."""
    outcomes: list[list[Outcome]] = [[] for _ in runners]

    def run(number: int) -> None:
        runners[number].bind(context(directory, run_id=str(number)))
        keep = outcomes[number]
        runners[number].generate(wanted[number], lambda _, outcome: keep.append(outcome), threading.Event())

    thresholds = gc.get_threshold()  # of the whole process; a run sets them for itself
    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(runners))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.set_threshold(*thresholds)
    return outcomes


def test_points_of_a_sweep_at_the_same_time_write_each_prompt_to_the_cache_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-loopback")
    with ApiServer(latency_s=0.3) as server:
        runners, wanted = [], []
        for temperature in (0.0, 0.5, 1.0):
            decoding = Decoding(max_new_tokens=64, temperature=temperature)
            provider = AnthropicMessages(base_url=server.anthropic_url, max_concurrency=4)
            runners.append(
                ApiRunner(
                    model=ApiModel(name="claude-sonnet-4-5"),
                    provider=provider,
                    decoding=decoding,
                    prompt_caching="always",
                )
            )
            wanted.append(requests(6, text="word " * 2000, decoding=decoding))
        outcomes = run_at_once(runners, wanted, tmp_path)
        answers = server.log.answers()
    assert all(isinstance(outcome, Completion) for part in outcomes for outcome in part)
    assert len(answers) == 18
    writes = Counter(a.prompt for a in answers if a.usage is not None and a.usage.cache_write_tokens)
    assert set(writes.values()) == {1}
    assert len(writes) == 6
    assert sum(a.usage is not None and a.usage.cached_input_tokens > 0 for a in answers) == 12


def test_after_a_failed_leader_another_run_leads(tmp_path: Path) -> None:
    provider = ScriptedProvider(
        fate=lambda request, sent_before: InvalidRequest("no", status=400) if request.sample == 0 else None,
        latency_s=0.01,
    )
    runners = [
        ApiRunner(
            model=ApiModel(name="gpt-4o"),
            provider=provider,
            decoding=Decoding(max_new_tokens=100),
            prompt_caching="always",
        )
        for _ in range(2)
    ]
    outcomes = run_at_once(runners, [requests(1, samples=2, text="word " * 2000)] * 2, tmp_path)
    assert [type(outcome).__name__ for part in outcomes for outcome in part] == ["Failure", "Completion"] * 2


def test_one_run_leads_and_the_others_wait(tmp_path: Path) -> None:
    first, second = (PromptCacheIndex(tmp_path / "deep" / "warm.sqlite") for _ in range(2))
    assert first.claim(KEY) == "lead"
    assert second.claim(KEY) == "wait"
    assert second.claim(b"another") == "lead"
    first.release(KEY, cached=False)
    assert second.claim(KEY) == "lead"
    second.release(KEY, cached=True)
    assert first.claim(KEY) == "cached"
    second.close()
    assert first.claim(KEY) == "cached"
    assert first.claim(b"another") == "lead"  # what was claimed and not done ends with its owner
    first.close()


def test_a_prompt_counts_as_cached_for_the_time_of_the_provider_cache(tmp_path: Path) -> None:
    now = 1000.0
    index = PromptCacheIndex(tmp_path / "warm.sqlite", clock=lambda: now)
    assert index.claim(KEY) == "lead"
    index.release(KEY, cached=True)
    now = 1200.0
    assert index.claim(KEY) == "cached"
    now = 1400.0
    assert index.claim(KEY) == "lead"
    other = PromptCacheIndex(tmp_path / "warm.sqlite", clock=lambda: now)
    assert other.claim(KEY) == "wait"
    now = 1700.0
    assert other.claim(KEY) == "lead"  # nobody is waited for without end
    index.close()
    other.close()
    hour = PromptCacheIndex(tmp_path / "hour.sqlite", clock=lambda: now, cached_s=3600.0)
    assert hour.claim(KEY) == "lead"
    hour.release(KEY, cached=True)
    now += 3500.0
    assert hour.claim(KEY) == "cached"
    now += 100.0
    assert hour.claim(KEY) == "lead"
    hour.close()


def test_a_killed_process_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "warm.sqlite"
    claimed = commands.run("-c", CLAIM, str(path), cwd=tmp_path, env=os.environ)
    assert claimed.stdout == "lead\n"
    index = PromptCacheIndex(path)
    assert index.claim(KEY) == "lead"
    index.close()


def test_with_an_unusable_file_no_run_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "warm.sqlite").write_text("no database " * 100)
    index = PromptCacheIndex(tmp_path / "warm.sqlite")
    assert index.claim(KEY) == "cached"
    index.release(KEY, cached=True)
    index.close()
    assert "do not wait for each other" in caplog.text


def test_prompt_keys_differ_by_provider_model_and_text() -> None:
    places = [
        (Prompt("s", "u"), "gpt-4o", "openai", "https://a"),
        (Prompt(None, "su"), "gpt-4o", "openai", "https://a"),
        (Prompt("s", "u"), "gpt-4.1", "openai", "https://a"),
        (Prompt("s", "u"), "gpt-4o", "azure", "https://a"),
        (Prompt("s", "u"), "gpt-4o", "openai", "https://b"),
    ]
    keys = {prompt_key(prompt, ApiModel(name=model), provider, url) for prompt, model, provider, url in places}
    assert len(keys) == len(places)
