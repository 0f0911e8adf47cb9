"""``model.effort``, ``thinking`` and ``verbosity``, and ``provider.headers``: fields on the wire, refusals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from swe_infer import config
from swe_infer.errors import ConfigError
from tests.providers.conftest import PROVIDERS, build, model_for, request_of
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.options import composed, option_composed

ROOT = Path(__file__).resolve().parent.parent.parent
ADDRESS = "https://host.example"
TEMPLATE_OFF = {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}

FIELDS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("openai", "gpt-5.4", {"effort": "xhigh", "verbosity": "low"}, {"reasoning_effort": "xhigh", "verbosity": "low"}),
    ("openai", "gpt-5.4-2026-03-05", {"thinking": "off"}, {"reasoning_effort": "none"}),
    ("azure_openai", "gpt-5-mini", {"effort": "minimal"}, {"reasoning_effort": "minimal"}),
    (
        "openai_responses",
        "gpt-5.6-sol",
        {"effort": "low", "verbosity": "high"},
        {"reasoning": {"effort": "low"}, "text": {"verbosity": "high"}},
    ),
    (
        "anthropic",
        "claude-opus-4-6",
        {"effort": "max", "thinking": 2048},
        {"output_config": {"effort": "max"}, "thinking": {"type": "enabled", "budget_tokens": 2048}},
    ),
    ("anthropic", "claude-sonnet-5-5", {"thinking": True}, {"thinking": {"type": "adaptive"}}),
    ("bedrock", "global.anthropic.claude-haiku-5-5-v1:0", {"thinking": False}, {"thinking": {"type": "disabled"}}),
    ("vertex", "claude-sonnet-4-6@20260217", {"effort": "low"}, {"output_config": {"effort": "low"}}),
    ("gemini", "gemini-3.7-flash", {"effort": "medium"}, {"reasoning_effort": "medium"}),
    (
        "gemini",
        "gemini-2.5-pro",
        {"thinking": 512},
        {"extra_body": {"google": {"thinking_config": {"thinking_budget": 512}}}},
    ),
    (
        "deepseek",
        "deepseek-flash",
        {"effort": "max", "thinking": "adaptive"},
        {"reasoning_effort": "max", "thinking": {"type": "enabled"}},
    ),
    ("moonshot", "kimi-k2.6", {"thinking": "off"}, {"thinking": {"type": "disabled"}}),
    ("moonshot", "kimi-k3.1-pro", {"effort": "low"}, {"reasoning_effort": "low"}),
    ("dashscope", "qwen3.8-max", {"thinking": 1000}, {"enable_thinking": True, "thinking_budget": 1000}),
    ("xai", "grok-4.7", {"effort": "xhigh"}, {"reasoning_effort": "xhigh"}),
    ("mistral", "mistral-large-4", {"thinking": "off"}, {"reasoning_effort": "none"}),
    ("groq", "openai/gpt-oss-120b", {"effort": "high"}, {"reasoning_effort": "high"}),
    ("openrouter", "moonshotai/kimi-k3.1-pro", {"effort": "high"}, {"reasoning": {"effort": "high"}}),
    ("openrouter", "qwen/qwen3.8-max-0902", {"thinking": 900}, {"reasoning": {"max_tokens": 900}}),
    ("sglang", "Qwen/Qwen3.8-27B", {"thinking": "off"}, TEMPLATE_OFF),
    ("llama_cpp", "gpt-oss-20b", {"effort": "low"}, {"chat_template_kwargs": {"reasoning_effort": "low"}}),
    ("ollama", "gpt-oss:20b", {"effort": "low"}, {"reasoning_effort": "low"}),
]
"""(``provider.name``, model, keys of the model, fields of the body)"""


def provider_of(vendor: str, **changes: Any) -> Any:
    """The provider of that name; a server with OpenAI's format if there is no such preset."""
    if vendor in PROVIDERS:
        return build(vendor, base_url=ADDRESS, **changes)
    return replace(build("openai_compatible", base_url=ADDRESS, **changes), name=vendor)


@pytest.mark.parametrize(("vendor", "model", "keys", "fields"), FIELDS)
def test_each_vendor_gets_its_own_fields(
    vendor: str, model: str, keys: dict[str, Any], fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    provider, request = provider_of(vendor), request_of(max_new_tokens=4096, temperature=None)
    with caplog.at_level(logging.WARNING):
        provider.check(model_for(vendor, name=model, **keys), request.decoding)
    assert bool(caplog.records) == (vendor == "sglang"), "only a model that the table does not have is warned about"
    bare = provider.body(request, model_for(vendor, name=model))
    assert provider.body(request, model_for(vendor, name=model, **keys)) == {**bare, **fields}
    item = provider.body(
        request, model_for(vendor, name=model, **keys, extra_body={"thinking": {"display": "omitted"}})
    )
    assert item["thinking"] == {"display": "omitted", **fields.get("thinking", {})}


@pytest.mark.parametrize(
    ("vendor", "model", "keys", "words"),
    [
        ("openai", "gpt-5", {"effort": "max"}, ["model.effort=max", "accepts minimal, low, medium, high"]),
        ("openai", "gpt-4o", {"effort": "low"}, ["does not accept model.effort", "model.effort=null"]),
        ("openai", "gpt-4o", {"verbosity": "low"}, ["does not accept model.verbosity"]),
        ("openai", "gpt-5", {"thinking": 4096}, ["model.thinking=4096", "use model.effort instead"]),
        (
            "openai",
            "gpt-5",
            {"thinking": "off"},
            ["model.thinking=off", "for model.effort minimal, low, medium, high"],
        ),
        ("openai", "gpt-5.6-sol", {"effort": "minimal"}, ["accepts none, low"]),
        ("openai", "gpt-5.4", {"effort": "high", "thinking": "off"}, ["exclude each other"]),
        ("openai_responses", "gpt-5-pro", {"effort": "low"}, ["accepts high"]),
        ("anthropic", "claude-opus-5-5", {"thinking": "off"}, ["accepts adaptive"]),
        ("anthropic", "claude-opus-5", {"thinking": 2048}, ["accepts off, adaptive"]),
        ("anthropic", "claude-opus-4-6", {"effort": "xhigh"}, ["accepts low, medium, high, max"]),
        ("anthropic", "claude-sonnet-4-5", {"effort": "high"}, ["off, a budget in tokens"]),
        ("anthropic", "claude-haiku-5-5", {"thinking": "off", "effort": "max"}, ["without thinking", "high"]),
        ("anthropic", "claude-sonnet-4-5", {"thinking": 1023}, ["at least 1024"]),
        ("anthropic", "claude-sonnet-4-5", {"thinking": 4096}, ["below decoding.max_new_tokens=4096"]),
        ("anthropic_text", "claude-2", {"effort": "low"}, ["provider=anthropic_text has no known field"]),
        ("gemini", "gemini-3.1-pro-preview", {"effort": "minimal"}, ["accepts low, medium, high"]),
        ("gemini", "gemini-2.5-flash", {"effort": "low", "thinking": 512}, ["exclude each other"]),
        (
            "deepseek",
            "deepseek-v4-pro",
            {"effort": "medium"},
            ["accepts low, high, max, and for model.thinking off, adaptive"],
        ),
        ("dashscope", "qwen3.8-max", {"effort": "low"}, ["has no known field"]),
        ("xai", "grok-build-0.1", {"effort": "low"}, ["does not accept"]),
        ("openai_compatible", "gpt-oss-20b", {"effort": "max"}, ["accepts low, medium, high"]),
    ],
)
def test_a_value_that_the_model_does_not_accept_is_refused_with_those_it_does(
    vendor: str, model: str, keys: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        provider_of(vendor).check(
            model_for(vendor, name=model, **keys), request_of(max_new_tokens=4096, temperature=None).decoding
        )
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_an_effort_excludes_sampling_and_the_same_field_in_extra_body() -> None:
    provider, plain = provider_of("openai"), request_of(temperature=None).decoding
    with pytest.raises(ConfigError, match=r"decoding\.temperature=0\.0: gpt-5\.4 .*model\.effort=high"):
        provider.check(model_for("openai", name="gpt-5.4", effort="high"), request_of(temperature=0.0).decoding)
    provider.check(model_for("openai", name="gpt-5.4", effort="none"), request_of(temperature=0.0).decoding)
    both = {"effort": "high", "extra_body": {"reasoning_effort": "low"}}
    with pytest.raises(ConfigError, match=r"model\.extra_body\.reasoning_effort: model\.effort sets the same field"):
        provider.check(model_for("openai", name="gpt-5.4", **both), plain)
    claude = {"name": "claude-opus-4-6", "thinking": 2048, "extra_body": {"thinking": {"type": "adaptive"}}}
    with pytest.raises(ConfigError, match=r"model\.extra_body\.thinking\.type: model\.thinking sets the same field"):
        provider_of("anthropic").check(
            model_for("anthropic", **claude), request_of(max_new_tokens=4096, temperature=None).decoding
        )


def test_models_sample_without_thinking() -> None:
    for preset, key in (
        ("gpt-5.4", "model.effort=none"),
        ("gpt-5.1", "model.thinking=off"),
        ("deepseek-flash", "model.thinking=off"),
    ):
        sampled = (f"model={preset}", "decoding.temperature=0.5", "decoding.top_p=0.9")
        with pytest.raises(ConfigError, match="does not support temperature"):
            config.build(composed(*sampled)).runner.check(dry_run=True)
        config.build(composed(*sampled, key)).runner.check(dry_run=True)
    with pytest.raises(ConfigError, match="does not support temperature"):
        config.build(composed("model=gpt-5.6-sol", "model.effort=none", "decoding.temperature=0.5")).runner.check(
            dry_run=True
        )


def test_extra_fields_are_logged_once_unless_they_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    note = ["model.extra_body: num_ctx: sent as given, not checked"]
    with caplog.at_level(logging.INFO):
        for name, expected in (("openai", note), ("ollama", [])):
            node = option_composed("provider", name, "+model.extra_body.num_ctx=8192", "model.pricing=unknown")
            caplog.clear()
            with nullcontext() if expected else pytest.raises(ConfigError, match=r"extra_body\.num_ctx"):
                for _ in range(2):  # the plan of a sweep checks its runs, too
                    config.build(node).runner.check(dry_run=True)
            assert [line for line in caplog.messages if "extra_body" in line] == expected


def test_claude_that_thinks_takes_neither_a_temperature_nor_a_prefill() -> None:
    provider, model = provider_of("anthropic"), model_for("anthropic", name="claude-sonnet-4-5", thinking=2048)
    with pytest.raises(ConfigError, match=r"thinks \(model\.thinking\)"):
        provider.check(model, request_of(temperature=0.0, max_new_tokens=4096).decoding)
    with pytest.raises(ConfigError, match=r"prompt\.prefill: .*thinks \(model\.thinking\)"):
        provider.check_prefill(model, "diff")


@pytest.mark.parametrize(
    "model",
    [
        "gpt-5-pro",
        "gpt-6.2-pro",
        "o1-pro",
        "o3-pro-2025-06-10",
        "gpt-5.3-codex",
        "gpt-5.1-codex-max",
        "codex-mini-latest",
    ],
)
def test_a_model_that_chat_does_not_serve_is_pointed_to_responses(model: str) -> None:
    for name, address in (("openai", ""), ("azure_openai", "openai.azure.com/openai/v1")):
        with pytest.raises(ConfigError, match=r"set provider=openai_responses") as caught:
            provider_of(name).check(model_for(name, name=model), request_of().decoding)
        assert address in str(caught.value)
    provider_of("openai_responses").check(model_for("openai", name=model), request_of().decoding)
    provider_of("openai_compatible").check(model_for("openai", name=model), request_of().decoding)
    for served in ("gpt-5", "gpt-5.4-mini", "o3", "gpt-4o"):
        provider_of("openai").check(model_for("openai", name=served), request_of().decoding)


@pytest.mark.parametrize("preset", ["gpt-5-pro", "gpt-5.5-pro", "gpt-5.3-codex", "o1-pro", "o3-pro"])
def test_presets_of_such_models_choose_responses(preset: str) -> None:
    assert option_composed("model", preset).provider.name == "openai_responses"


def test_keys_that_are_not_set_leave_the_identity_of_a_run_unchanged() -> None:
    cfg = option_composed("model", "gpt-5-mini")
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    before = json.loads(json.dumps(plain))
    for group, keys in {"model": ("effort", "thinking", "verbosity"), "provider": ("headers", "store")}.items():
        for key in keys:
            assert before[group].pop(key) in (None, {})
    assert config.digest(before) == config.digest(plain)
    digests = {config.digest(plain)}
    for group, key, value in (
        ("model", "effort", "low"),
        ("model", "effort", "high"),
        ("model", "thinking", 2048),
        ("model", "verbosity", "low"),
        ("provider", "headers", {"X-Beta": "a"}),
    ):
        digests.add(config.digest({**plain, group: {**plain[group], key: value}}))
    assert len(digests) == 6
    assert config.digest({**plain, "provider": {**plain["provider"], "store": True}}) == config.digest(plain)


@pytest.mark.parametrize("name", ["openai", "anthropic", "vertex"])
def test_headers_are_sent_with_every_request(server: ApiServer, name: str) -> None:
    tier = {"service_tier": "fast"} if name == "anthropic" else {}
    provider = build(name, server, headers={"X-Title": "runs", "Anthropic-Beta": "a-feature"}, **tier)

    async def life() -> None:
        await provider.open()
        try:
            await provider.complete(request_of(), model_for(name), timeout_s=60)
        finally:
            await provider.close()

    asyncio.run(life())
    (asked,) = server.log.asked()
    assert asked.headers["x-title"] == "runs"
    expected = "fast-mode-2026-02-01,a-feature" if tier else "a-feature"
    assert asked.headers["anthropic-beta"] == expected


@pytest.mark.parametrize(
    ("header", "value", "words"),
    [
        ("Authorization", "x", "provider.api_key_env"),
        ("X-Gateway-Token", "x", "OPENAI_CUSTOM_HEADERS"),
        ("Helicone-Auth", "x", "OPENAI_CUSTOM_HEADERS"),
        ("Cookie", "x", "seems to be a secret"),
        ("X-Title", "sk-proj-planted0openai1secret2", "seems to be a secret"),
        ("X-Title", "Bearer abc", "seems to be a secret"),
        ("X Title", "x", "is not the name of a header"),
        ("X-Title", "two\nlines", "without line breaks"),
        ("anthropic-version", "x", "model.api_version"),
    ],
)
def test_headers_with_secrets_and_invalid_ones_are_refused(header: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build("openai", base_url=ADDRESS, headers={header: value})
    message = str(caught.value)
    assert message.startswith(f"provider.headers.{header}: ")
    assert words in message
    assert value not in message or len(value) == 1


def test_store_is_sent_if_it_is_set() -> None:
    model = model_for("openai")
    assert "store" not in provider_of("openai").body(request_of(), model)
    assert provider_of("openai", store=False).body(request_of(), model)["store"] is False
    with pytest.raises(ConfigError, match=r"model\.extra_body\.store: provider\.store"):
        provider_of("openai", store=True).check(
            model_for("openai", extra_body={"store": False}), request_of().decoding
        )


@pytest.mark.full
def test_a_sweep_over_efforts_reaches_three_vendors(server: ApiServer, tmp_path: Path) -> None:
    """One command; each point is a run of its own, and a repetition pays for nothing."""
    data = write_instances(tmp_path / "instances.jsonl", 1)
    gemini = ["provider=openai_compatible", "provider.name=gemini", f"provider.base_url={server.openai_url}"]
    points = [
        {"name": "gpt", "overrides": ["model=gpt-5-mini"]},
        {"name": "claude", "overrides": ["model=claude-opus-5-5"]},
        {"name": "gemini", "overrides": ["model=api", "model.name=gemini-3.8-flash", "decoding=reasoning", *gemini]},
    ]
    (tmp_path / "points.yaml").write_text(json.dumps(points))
    command = ["-m", "sweep.points=points.yaml", "model.effort=low,high", "model.pricing=unknown", "dataset=jsonl",
               f"dataset.path={data}", "tracker=none", "decoding.max_new_tokens=64"]  # fmt: skip
    addresses = {"OPENAI_BASE_URL": server.openai_url, "ANTHROPIC_BASE_URL": server.anthropic_url}
    environment = {**os.environ, **addresses, "PYTHONPATH": str(ROOT)}
    first = commands.run("swe_infer", *command, cwd=tmp_path, env=environment)
    assert first.returncode == 0, first.stderr
    sent = [
        (exchange.model, exchange.body.get("reasoning_effort"), exchange.body.get("output_config"))
        for exchange in server.log.asked()
    ]
    assert sorted(sent, key=str) == [
        ("claude-opus-5-5", None, {"effort": "high"}),
        ("claude-opus-5-5", None, {"effort": "low"}),
        ("gemini-3.8-flash", "high", None),
        ("gemini-3.8-flash", "low", None),
        ("gpt-5-mini", "high", None),
        ("gpt-5-mini", "low", None),
    ]
    again = commands.run("swe_infer", *command, "dry_run=false", cwd=tmp_path, env=environment)
    assert again.returncode == 0, again.stderr
    assert len(server.log.asked()) == 6
