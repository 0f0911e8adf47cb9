"""The beginning of an answer, on its way to whoever continues it."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swe_infer.api.batch_journal import Journal
from swe_infer.api.cache import cache_key
from swe_infer.context.base import Shown
from swe_infer.errors import ConfigError
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.run_directory.records import read_records
from swe_infer.types import ApiModel, Decoding, LlamaModel, Prompt, Request
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

if TYPE_CHECKING:
    from swe_infer.providers.anthropic_messages import AnthropicMessages
    from swe_infer.providers.anthropic_text import AnthropicText
    from swe_infer.providers.base import Provider
    from swe_infer.providers.openai_chat import OpenAIChat
    from swe_infer.providers.openai_responses import OpenAIResponses
    from swe_infer.providers.vllm import VLLM

PROMPT = Prompt("system", "user", "<patch>\n")
REQUEST = Request("i", 0, PROMPT, Decoding())


def test_it_is_the_users_option() -> None:
    row = {"problem_statement": "x"}
    assert PromptRenderer(style="plain", prefill="<patch>\n").render(row, Shown()).prefill == "<patch>\n"
    assert PromptRenderer(style="plain").render(row, Shown()).prefill is None
    with pytest.raises(ConfigError, match=r"prompt\.prefill is blank"):
        PromptRenderer(style="plain", prefill="\n")


def test_a_base_model_reads_it_at_the_end_of_the_prompt() -> None:
    assert PROMPT.text == "system\nuser<patch>\n"
    assert PROMPT.question == "system\nuser"


def test_providers_that_take_it_send_it() -> None:
    model = ApiModel(name="claude-sonnet-4-5")
    messages = AnthropicMessages()
    sent = messages.body(REQUEST, model)
    assert sent["system"] == "system"
    assert sent["messages"] == [
        {"role": "user", "content": "user"},
        {"role": "assistant", "content": "<patch>\n"},
    ]
    assert len(messages.body(Request("i", 0, Prompt("s", "u"), Decoding()), model)["messages"]) == 1
    text = AnthropicText().body(REQUEST, ApiModel(name="claude-2"))["prompt"]
    assert text == "\n\nHuman: system\nuser\n\nAssistant: <patch>\n"
    chat = OpenAIChat(name="openai_compatible", base_url="http://127.0.0.1/v1", accepts_prefill=True)
    body = chat.body(REQUEST, ApiModel(name="m"))
    assert body["messages"][-1] == {"role": "assistant", "content": "<patch>\n"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert "continue_final_message" not in chat.body(
        Request("i", 0, Prompt("s", "u"), Decoding()), ApiModel(name="m")
    )
    for prompt_format in ("raw", "chat"):
        vllm = VLLM()
        model = vllm.served(LlamaModel(path="org/model", prompt_format=prompt_format))
        vllm.check_prefill(model, "<patch>\n")
        body = vllm.body(REQUEST, model)
        raw = prompt_format == "raw"
        assert body.get("prompt") == ("system\nuser<patch>\n" if raw else None)
        assert ("messages" in body, "continue_final_message" in body) == (not raw, not raw)


def test_who_refuses_it_is_known_before_anything_is_sent() -> None:
    for name in ("claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-20250514", "claude-3-5-sonnet"):
        AnthropicMessages().check_prefill(ApiModel(name=name), "<patch>")
    AnthropicText().check_prefill(ApiModel(name="claude-2"), "<patch>\n")
    thinking = ApiModel(name="claude-sonnet-4-5", extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}})
    refusing: list[tuple[Provider, ApiModel, str, str]] = [
        (OpenAIChat(), ApiModel(name="gpt-4o"), "x", "gpt-4o does not continue"),
        (OpenAIResponses(), ApiModel(name="gpt-5"), "x", "gpt-5 does not continue"),
        (AnthropicMessages(), ApiModel(name="claude-sonnet-4-5"), "x\n", "ends in white space"),
        (AnthropicMessages(), thinking, "x", "claude-sonnet-4-5 thinks"),
    ]
    for name in ("claude-opus-4-6", "claude-sonnet-4-6-v1", "claude-opus-4-8", "claude-sonnet-5", "claude-opus-5-5"):
        refusing.append((AnthropicMessages(), ApiModel(name=name), "x", f"{name} does not continue"))
    for provider, model, prefill, said in refusing:
        with pytest.raises(ConfigError, match=rf"^prompt\.prefill: .*{said}|^prompt\.prefill: {said}"):
            provider.check_prefill(model, prefill)


def test_a_whole_answer_begins_with_it_once() -> None:
    assert PROMPT.with_prefill("--- a") == "<patch>\n--- a"
    assert PROMPT.with_prefill("<patch>\n--- a") == "<patch>\n--- a", "a server repeats it"
    assert PROMPT.with_prefill(" ") == " "
    assert Prompt(None, "u").with_prefill("x") == "x"


def test_cached_answers_and_batches_know_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    offsets = [journal.add_prompt(PROMPT), journal.add_prompt(Prompt(None, "u"))]
    assert [journal.prompt(offset) for offset in offsets] == [PROMPT, Prompt(None, "u")]
    journal.close()
    model = ApiModel(name="m")
    prompts = (PROMPT, Prompt("system", "user"), Prompt("system", "user", "x"))
    requests = [replace(REQUEST, prompt=prompt) for prompt in prompts]
    assert len({cache_key(request, model, "anthropic") for request in requests}) == 3


def test_a_run_reads_the_answer_behind_its_given_beginning(tmp_path: Path) -> None:
    answer = "\n+++ b/pkg/mod_0.py\n@@ -1,2 +1,2 @@\n def scale_0(value):\n-    factor = 0\n+    factor = 1\n"
    data = write_instances(tmp_path / "instances.jsonl", 1, lines=3)
    environment = {**os.environ, "ANTHROPIC_API_KEY": "planted", "OPENAI_API_KEY": "planted"}

    def run(model: str, url: str) -> subprocess.CompletedProcess[str]:
        command = [f"model={model}", f"provider.base_url={url}", "dataset=jsonl", f"dataset.path={data}",
                   "prompt.prefill=--- a/pkg/mod_0.py", "tracker=none", "output_dir=run"]  # fmt: skip
        return commands.run("swe_infer", *command, cwd=tmp_path, env=environment)

    with ApiServer(answer=lambda prompt: answer) as server:
        refused = run("gpt-4o", server.openai_url)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert "prompt.prefill: gpt-4o does not continue" in refused.stderr
        assert server.log.answers() == []
        done = run("claude-sonnet-4-5", server.anthropic_url)
        assert done.returncode == 0, done.stderr
        messages = server.log.answers()[0].body["messages"]
    assert messages[-1] == {"role": "assistant", "content": "--- a/pkg/mod_0.py"}
    record = next(read_records(tmp_path / "run" / "records.jsonl"))
    assert record["full_output"] == answer
    assert record["patch_status"] in ("applies", "repaired"), record
    assert "+    factor = 1" in str(record["model_patch"])
