"""Images of issues: which rows have usable ones, their form in each vendor's API, budgets, records and caches."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.batch_journal import Journal
from swe_infer.api.cache import cache_key
from swe_infer.errors import BudgetExceeded, DataError
from swe_infer.presets import with_known_rules
from swe_infer.prompt_images import images_of
from swe_infer.providers.anthropic_messages import AnthropicMessages
from swe_infer.providers.anthropic_text import AnthropicText
from swe_infer.providers.anthropic_vertex import AnthropicVertex
from swe_infer.providers.base import Provider
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.providers.openai_responses import OpenAIResponses
from swe_infer.run_directory.records import without_answers
from swe_infer.runners.api import ApiRunner
from swe_infer.types import ApiModel, Budget, Completion, Decoding, Failure, Prompt, Request, Turn
from tests.api.scripted import context
from tests.api.test_batches import FAST, QUICK
from tests.api.test_runner import Outcomes
from tests.support import commands
from tests.support.api_calls import IMAGE_TOKENS
from tests.support.api_server import ApiServer

URL = "https://user-images.githubusercontent.com/1/chart.png"
DATA = "data:image/png;base64,iVBORw0KGgo="
PROMPT = Prompt("Fix it.", "The chart is blank.", images=(URL, DATA))

CHAT: list[dict[str, Any]] = [
    {"type": "text", "text": PROMPT.user},
    {"type": "image_url", "image_url": {"url": URL}},
    {"type": "image_url", "image_url": {"url": DATA}},
]
RESPONSES: list[dict[str, Any]] = [
    {"type": "input_text", "text": PROMPT.user},
    {"type": "input_image", "image_url": URL, "detail": "auto"},
    {"type": "input_image", "image_url": DATA, "detail": "auto"},
]
ANTHROPIC: list[dict[str, Any]] = [
    {"type": "image", "source": {"type": "url", "url": URL}},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
    {"type": "text", "text": PROMPT.user},
]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(name, "sk-loopback-0123456789")


def test_images_are_read_from_objects_and_from_their_json_text() -> None:
    assets = {"problem_statement": [URL, DATA, URL], "patch": ["https://a.example/fix.png"], "test_patch": []}
    for form in (assets, json.dumps(assets), {**assets, "problem_statement": (URL, DATA)}):
        assert images_of({"image_assets": form}) == (URL, DATA)
    assert images_of({"image_assets": {"problem_statement": URL}}) == (URL,)
    nothing: list[Any] = [None, "", "null", {}, "{}", {"problem_statement": None}, {"problem_statement": []}]
    assert {images_of({"image_assets": assets}) for assets in [*nothing, {"patch": [URL]}]} == {()}
    assert images_of({}) == ()


HOSTILE: Mapping[str, Any] = {
    "not JSON": "{oops",
    "of type list": [URL],
    "of type int, not a list": {"problem_statement": 7},
    "of type int, not a string": {"problem_statement": [7]},
    "neither an http": {"problem_statement": [URL, "file:///etc/passwd"]},
    "image 1: the URL is neither": {"problem_statement": ["http://[::1"]},
    "longer than 4,096": {"problem_statement": [URL + "a" * 5000]},
    "longer than 8 MiB": {"problem_statement": ["data:image/png;base64," + "A" * (9 << 20)]},
    "not a PNG": {"problem_statement": ["data:text/html;base64,AAAA"]},
    "500 images; at most 100": {"problem_statement": [f"{URL}?{n}" for n in range(500)]},
    "image 1: the data URL is not": {"problem_statement": ["data:image/png;base64,iVBORw0KGg="]},
    "a user or a password": {"problem_statement": ["https://user:secret@host.example/x.png"]},
    "control characters": {"problem_statement": ["https://host.example/\u202ex.png"]},
    "but not JSON": "[" * 100_000,
}


def test_hostile_assets_are_refused_with_the_reason() -> None:
    for reason, assets in HOSTILE.items():
        with pytest.raises(DataError, match=reason):
            images_of({"image_assets": assets})


def made(server: ApiServer, vendor: str, **settings: Any) -> tuple[Provider, ApiModel, list[dict[str, Any]]]:
    """A provider, a model, and the content of the first user message that the vendor gets."""
    if vendor == "chat":
        return OpenAIChat(base_url=server.openai_url, **settings), ApiModel(name="gpt-4o", vision=True), CHAT
    if vendor == "responses":
        provider = OpenAIResponses(base_url=server.openai_url, **settings)
        return provider, ApiModel(name="gpt-5.4", vision=True), RESPONSES
    model = ApiModel(name="claude-sonnet-4-5", vision=True, image_tokens=5000)
    return AnthropicMessages(base_url=server.anthropic_url, **settings), model, ANTHROPIC


def answered(directory: Path, provider: Provider, model: ApiModel, *asked: Request, cap: str = "50") -> Outcomes:
    outcomes = Outcomes()
    budget = Budget(max_usd=Decimal(cap))
    api = ApiRunner(
        model=model, provider=provider, decoding=asked[0].decoding, budget=budget, retry=FAST, batches=QUICK
    )
    api.check()
    api.bind(context(directory))
    api.generate(asked, outcomes, threading.Event())
    return outcomes


def content_of(body: Mapping[str, Any]) -> Any:
    messages = body.get("input") or body["messages"]
    if isinstance(messages, str):
        return messages
    return next(message["content"] for message in messages if message["role"] == "user")


DECODING = Decoding(temperature=None, max_new_tokens=256)


@pytest.mark.parametrize(
    ("vendor", "settings"),
    [
        ("chat", {}),
        ("responses", {}),
        ("anthropic", {}),
        ("chat", {"mode": "batch"}),
        ("anthropic", {"mode": "batch"}),
        ("responses", {"background": True}),
    ],
)
def test_each_vendor_gets_images_in_its_form(vendor: str, settings: Mapping[str, Any], tmp_path: Path) -> None:
    turned = replace(PROMPT, turns=(Turn("no patch", "try again"),))
    with ApiServer() as server:
        provider, model, content = made(server, vendor, **settings)
        asked = [Request("a", 0, PROMPT, DECODING), Request("b", 0, turned, DECODING)]
        outcomes = answered(tmp_path, provider, model, *asked)
        completions = [outcome for _, outcome in outcomes if isinstance(outcome, Completion)]
        assert len(completions) == 2
        assert [content_of(e.body or {}) for e in server.log.answers()] == [content, content]
        assert all(completion.usage.input_tokens > 2 * IMAGE_TOKENS for completion in completions)
        assert sum(completion.cost_usd or 0 for completion in completions) == server.log.cost_usd()


def test_unknown_parts_are_answered_with_400(tmp_path: Path) -> None:
    """The server of these tests is as strict as the vendors."""
    with ApiServer() as server:
        provider, model, _ = made(server, "anthropic")
        for url in ("ftp://host.example/x.png", "data:text/html;base64,AAAA"):
            asked = Request("a", 0, replace(PROMPT, images=(url,)), DECODING)
            ((_, outcome),) = answered(tmp_path, provider, model, asked)
            assert isinstance(outcome, Failure)
            assert outcome.error_type == "InvalidRequest"


@pytest.mark.parametrize(("counts", "vendor"), [(False, "chat"), (True, "chat"), (True, "anthropic")])
def test_the_most_tokens_of_images_are_reserved(counts: bool, vendor: str, tmp_path: Path) -> None:
    """Without a counting endpoint, two images of gpt-4o may cost 100,000 tokens, $0.25."""
    with ApiServer(count=int if counts else None) as server:
        provider, model, content = made(server, vendor)
        asked = Request("a", 0, PROMPT, DECODING)
        if not counts:
            with pytest.raises(BudgetExceeded, match=r"can cost up to \$0\.25"):
                answered(tmp_path, provider, model, asked, cap="0.2")
            assert server.log.asked() == []
            return
        ((_, outcome),) = answered(tmp_path, provider, model, asked, cap="0.02")
        assert isinstance(outcome, Completion)
        counted = [e.body or {} for e in server.log.exchanges if "tokens" in e.path]
        assert [content_of(body) for body in counted] == [RESPONSES if vendor == "chat" else content]


def test_images_are_part_of_digests_caches_and_the_journal(tmp_path: Path) -> None:
    other = replace(PROMPT, images=(URL,))
    text = replace(PROMPT, images=())
    assert len({prompt.sha256 for prompt in (PROMPT, other, text)}) == 3
    assert text.sha256 == Prompt("Fix it.", "The chart is blank.").sha256
    model = ApiModel(name="gpt-4o")
    assert len({cache_key(Request("a", 0, p, DECODING), model, "openai") for p in (PROMPT, other, text)}) == 3
    journal = Journal(tmp_path)
    offsets = [journal.add_prompt(prompt) for prompt in (PROMPT, text)]
    assert [journal.prompt(offset) for offset in offsets] == [PROMPT, text]
    journal.close()


def test_what_cannot_send_images_says_why() -> None:
    named = with_known_rules(ApiModel(name="claude-sonnet-5-5"), "anthropic")
    assert (named.vision, named.image_tokens) == (True, 5000)
    assert not with_known_rules(ApiModel(name="claude-sonnet-5-5", vision=False), "anthropic").vision
    vertex = AnthropicVertex(project="p", region="global")
    assert "data URLs alone" in (vertex.image_fault(named, [URL]) or "")
    assert vertex.image_fault(named, [DATA]) is None
    assert "text alone" in (AnthropicText().image_fault(named, [URL]) or "")
    assert "model.vision=true" in (OpenAIChat().image_fault(ApiModel(name="o3-mini"), [URL]) or "")


@pytest.mark.parametrize(
    "named",
    [
        ("chat", "anthropic", "blind"),
        pytest.param(("chat", "responses", "anthropic", "gemini", "blind"), marks=pytest.mark.full),
    ],
)
def test_a_sweep_sends_images_to_models_that_accept_them(named: tuple[str, ...], tmp_path: Path) -> None:
    """Through the command: OpenAI's two APIs, Anthropic, Gemini, and a model without vision."""
    text = "Fix it.\n<issue>\nThe chart is blank.\n</issue>\n[start of a.js]\n1 let x\n[end of a.js]"
    columns: list[tuple[str, Any]] = [
        ("a", {"problem_statement": [URL], "patch": [], "test_patch": []}),
        ("b", json.dumps({"problem_statement": [URL, DATA]})),
        ("c", None),
        ("d", {"problem_statement": ["file:///etc/passwd"]}),
    ]
    rows = [{"instance_id": name, "text": text, "image_assets": assets} for name, assets in columns]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with ApiServer() as server:
        at = f"provider.base_url={server.openai_url}"
        points = {
            "chat": ["model=gpt-4o", at],
            "responses": ["model=gpt-5.4", "provider=openai_responses", at],
            "anthropic": ["model=claude-sonnet-5-5", f"provider.base_url={server.anthropic_url}"],
            "gemini": ["model=gemini-3.8-flash", at],
            "blind": ["model=o3-mini", at],
        }
        (tmp_path / "points.json").write_text(
            json.dumps([{"name": name, "overrides": points[name]} for name in named])
        )
        keys = ["dataset=jsonl", "dataset.path=rows.jsonl", "output_dir=out", "tracker=none", "evaluation=none"]
        sweep = ["swe_infer", "-m", "sweep.points=points.json", *keys]
        ended = commands.run(*sweep, cwd=tmp_path, env=os.environ)
        assert ended.returncode == 0, ended.stderr
        sent = {
            (name, part["type"])
            for e in server.log.asked()
            for name in [str(e.model)]
            for part in content_of(e.body or {})
            if isinstance(part, dict)
        }
        kinds = {
            "chat": ("gpt-4o", ("text", "image_url")),
            "gemini": ("gemini-3.8-flash", ("text", "image_url")),
            "responses": ("gpt-5.4", ("input_text", "input_image")),
            "anthropic": ("claude-sonnet-5-5", ("text", "image")),
            "blind": ("o3-mini", ()),
        }
        assert sent == {(kinds[name][0], kind) for name in named for kind in kinds[name][1]}
    records = {}
    for path in (tmp_path / "out").glob("*/records.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        assert b"iVBORw0KGgo" not in b"".join(lines)
        config = (path.parent / "config.yaml").read_text()
        for line in lines:
            record = json.loads(line)
            key = ("o3-mini" if "name: o3-mini" in config else "other", record["instance_id"])
            records[key] = record
            if record.get("images"):
                assert json.loads(without_answers(line))["images"] == record["images"]
    assert records["other", "a"]["images"] == [URL]
    assert records["other", "b"]["images"][1].startswith("data:image/png;base64,sha256:")
    assert "images" not in records["other", "c"]
    errors_of = {key: (record["error"] or {}).get("type") for key, record in records.items()}
    assert errors_of["other", "d"] == errors_of["o3-mini", "d"] == "InvalidImages"
    assert errors_of["o3-mini", "a"] == errors_of["o3-mini", "b"] == "ImagesNotAccepted"
    assert records["o3-mini", "c"]["status"] == "completed"
