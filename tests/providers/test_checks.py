"""What is refused before any request, in one line that names the key to change."""

from __future__ import annotations

from typing import Any

import pytest

from swe_infer.errors import ConfigError
from swe_infer.providers.azure_openai import AzureOpenAI
from tests.providers.conftest import PROVIDERS, SECRETS, build, model_for, request_of

ADDRESS = "https://host.example"


def refusal(name: str, model: dict[str, Any] | None = None, **changes: Any) -> str:
    decoding = changes.pop("decoding", {})
    changes.setdefault("base_url", ADDRESS)

    def check() -> None:
        provider = build(name, **changes)
        provider.check(model_for(name, **(model or {})), request_of(**decoding).decoding)
        provider.check_access()

    with pytest.raises(ConfigError) as caught:
        check()
    assert caught.value.exit_status == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_decoding_that_the_model_takes_is_accepted(name: str) -> None:
    build(name, base_url=ADDRESS).check(model_for(name), request_of(temperature=0.5, top_p=0.9).decoding)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        ({}, ["decoding.temperature=0.0", "does not support temperature", "decoding.temperature=null"]),
        ({"temperature": None, "top_p": 0.9}, ["decoding.top_p=0.9", "decoding.top_p=null"]),
        ({"temperature": None, "seed": 7}, ["decoding.seed=7", "decoding.seed=null"]),
        ({"temperature": None, "stop": ("END",)}, ["decoding.stop=['END']", "decoding.stop=[]"]),
    ],
)
def test_a_parameter_that_the_model_does_not_take_is_never_dropped(
    name: str, decoding: dict[str, Any], words: list[str]
) -> None:
    message = refusal(name, {"name": "thinker", "parameters": ()}, decoding=decoding)
    assert "thinker" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("openai_responses", "stop", ("END",)),
        ("openai_responses", "seed", 1),
        ("anthropic", "seed", 1),
        ("anthropic_text", "seed", 1),
        ("bedrock", "seed", 1),
        ("vertex", "seed", 1),
    ],
)
def test_a_parameter_without_a_field_in_the_interface_is_refused(name: str, key: str, value: Any) -> None:
    every = ("temperature", "top_p", "seed", "stop", "n")
    assert f"does not support {key}" in refusal(name, {"parameters": every}, decoding={key: value})


def test_one_sampler_means_temperature_or_top_p() -> None:
    both = {"temperature": 0.5, "top_p": 0.9}
    assert "not both" in refusal("anthropic", {"one_sampler": True}, decoding=both)
    build("anthropic").check(model_for("anthropic", one_sampler=True), request_of(temperature=0.5).decoding)


@pytest.mark.parametrize("name", ["anthropic", "anthropic_text"])
def test_sampling_under_the_newest_anthropic_version_is_refused(name: str) -> None:
    message = refusal(name, {"api_version": "2026-10-21"})
    assert "decoding.temperature=null" in message
    assert "2026-10-21" in refusal(name, api_version="2026-10-21", decoding={"temperature": None, "top_p": 0.5})
    build(name).check(model_for(name, api_version="2026-10-21"), request_of(temperature=None).decoding)


def test_anthropic_s_temperature_ends_at_one() -> None:
    assert "at most 1" in refusal("anthropic", decoding={"temperature": 1.5})


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_output_bound_must_fit_the_model(name: str) -> None:
    assert "at most 100" in refusal(name, {"max_output_tokens": 100}, decoding={"max_new_tokens": 101})
    assert "leaves no tokens" in refusal(name, {"context_window": 4096}, decoding={"max_new_tokens": 4096})


def test_a_thinking_budget_must_leave_room_for_the_answer() -> None:
    thinking = {"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 4096}}}
    sampled = {"max_new_tokens": 8192, "temperature": 0.0}
    assert "decoding.temperature=null" in refusal("anthropic", thinking, decoding=sampled)
    small = {"max_new_tokens": 4096, "temperature": None}
    assert "budget_tokens=4096" in refusal("anthropic", thinking, decoding=small)


@pytest.mark.parametrize("name", PROVIDERS)
def test_extra_body_cannot_override_what_other_keys_set(name: str) -> None:
    message = refusal(name, {"extra_body": {"temperature": 0.3}})
    assert "model.extra_body.temperature" in message


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("openai", "OPENAI_API_KEY"),
        ("openai_responses", "OPENAI_API_KEY"),
        ("azure_openai", "AZURE_OPENAI_API_KEY"),
        ("anthropic", "ANTHROPIC_API_KEY"),
        ("anthropic_text", "ANTHROPIC_API_KEY"),
    ],
)
def test_a_missing_key_names_its_variable(name: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable)
    assert variable in refusal(name)
    monkeypatch.setenv(variable, "two\nlines")
    message = refusal(name)
    assert variable in message
    assert "lines\n" not in message


def test_a_compatible_server_wants_a_key_only_where_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    build("openai_compatible", base_url=ADDRESS).check_access()
    assert "MY_KEY" in refusal("openai_compatible", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "secret")
    build("openai_compatible", base_url=ADDRESS, api_key_env="MY_KEY").check_access()


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(
    "address",
    [
        "host.example/v1",
        "ftp://host",
        "http://",
        "http://host:port",
        "http://host:99999",
        " http://host",
        "http://h?x=1",
    ],
)
def test_an_address_that_is_none_is_refused(name: str, address: str) -> None:
    assert "provider.base_url=" in refusal(name, base_url=address)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert "planted" not in refusal("openai", base_url="ftp://user:planted@host")


@pytest.mark.parametrize("name", ["azure_openai", "openai_compatible"])
def test_a_missing_address_says_what_belongs_there(name: str) -> None:
    message = refusal(name, base_url=None)
    assert "provider.base_url" in message
    assert "http" in message


def test_azure_takes_its_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://name.openai.azure.com")
    assert AzureOpenAI().address == "https://name.openai.azure.com"


def test_anthropic_s_address_is_the_root() -> None:
    assert "without /v1" in refusal("anthropic", base_url="https://api.anthropic.com/v1/")


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize(("key", "value"), [("max_concurrency", 0), ("timeout_s", 0.0), ("timeout_s", float("nan"))])
def test_limits_that_let_nothing_through_are_refused(name: str, key: str, value: Any) -> None:
    assert f"provider.{key}" in refusal(name, **{key: value})


def test_text_completions_have_no_batches() -> None:
    assert "provider.mode=live" in refusal("anthropic_text", mode="batch")


def test_no_check_shows_a_key() -> None:
    for name in PROVIDERS:
        message = refusal(name, {"parameters": ()})
        assert not any(secret in message for secret in SECRETS.values())
