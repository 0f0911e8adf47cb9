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
from swe_infer.types import ApiModel, Decoding, Prompt, Request
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

if TYPE_CHECKING:
    from swe_infer.providers.anthropic_messages import AnthropicMessages
    from swe_infer.providers.anthropic_text import AnthropicText
    from swe_infer.providers.openai_chat import OpenAIChat

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
    takes = {
        name: messages.takes_prefill(ApiModel(name=name))
        for name in (
            "claude-sonnet-4-5",
            "claude-haiku-4-5",
            "claude-3-5-sonnet",
            "claude-opus-5-5",
            "claude-sonnet-5",
        )
    }
    assert list(takes.values()) == [True, True, True, False, False], takes
    assert AnthropicText().takes_prefill(ApiModel(name="claude-2"))
    assert not OpenAIChat().takes_prefill(ApiModel(name="gpt-4o"))


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
