"""The presets of vendors and servers with OpenAI's chat API, against a server with their documented quirks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from swe_infer.api.pricing import price_table_for
from swe_infer.errors import ConfigError, RequestError
from swe_infer.providers.base import Answer
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.types import ApiModel, SamplingParameter, Usage
from tests.providers.conftest import VENDORS, build, model_for, request_of
from tests.support.api_batch_forms import FORMS
from tests.support.api_server import ApiServer
from tests.support.api_vendors import VENDORS as QUIRKS

LOCAL = ("ollama", "llama_cpp", "lm_studio", "sglang", "vllm_server")
EVERY: tuple[SamplingParameter, ...] = ("temperature", "top_p", "seed", "stop", "n")
MODEL = model_for("", parameters=EVERY)
VALUES: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "stop": ("END",)}


@pytest.fixture
def quirky(request: pytest.FixtureRequest) -> Iterator[tuple[str, ApiServer]]:
    with ApiServer(vendor=QUIRKS[request.param]) as server:
        yield request.param, server


each_vendor = pytest.mark.parametrize("quirky", VENDORS, indirect=True)


def answer(provider: OpenAIChat, model: ApiModel = MODEL, **decoding: Any) -> Answer:
    async def life() -> Answer:
        await provider.open()
        try:
            request = request_of(**{"temperature": None, **decoding})
            return await provider.complete(request, model, timeout_s=60)
        finally:
            await provider.close()

    return asyncio.run(life())


def vendor(name: str, server: ApiServer | None = None, **changes: Any) -> OpenAIChat:
    provider = build(name, server, **changes)
    assert isinstance(provider, OpenAIChat)
    return provider


def taken_by(provider: OpenAIChat) -> dict[str, Any]:
    return {key: value for key, value in VALUES.items() if key in provider.supported_parameters()}


def test_every_preset_has_its_quirks_in_the_server() -> None:
    assert sorted(VENDORS) == sorted(QUIRKS)


@each_vendor
def test_what_a_preset_accepts_the_vendor_accepts_and_reads(quirky: tuple[str, ApiServer]) -> None:
    """Whole and streamed. The limit has an effect, so its key is the one that the vendor reads."""
    name, server = quirky
    for stream in ("never", "always"):
        provider = vendor(name, server, stream=stream)
        decoding = {**taken_by(provider), "max_new_tokens": 4}
        provider.check(MODEL, request_of(**{"temperature": None, **decoding}).decoding)
        provider.check_access()
        assert answer(provider, **decoding).finish_reason == "length"
    bodies = [exchange.body for exchange in server.log.exchanges]
    assert [exchange.status for exchange in server.log.exchanges] == [200, 200]
    for body in bodies:
        assert body is not None
        assert not set(body) & {*QUIRKS[name].refused, *QUIRKS[name].ignored}


@each_vendor
def test_what_a_vendor_refuses_or_ignores_is_refused_before_it_is_sent(quirky: tuple[str, ApiServer]) -> None:
    name, server = quirky
    provider = vendor(name, server)
    for key in QUIRKS[name].refused + QUIRKS[name].ignored:
        if key in ("n", "stream_options", "prompt_cache_key") or (key == "seed" and provider.seed_key != "seed"):
            continue  # never sent to this vendor
        if key in VALUES:
            model, decoding = MODEL, {key: VALUES[key]}
        else:
            model, decoding = replace(MODEL, extra_body={key: "1"}), {}
        with pytest.raises(ConfigError, match=rf"{key}.*provider={name} does not support {key}") as caught:
            provider.check(model, request_of(**{"temperature": None, **decoding}).decoding)
        assert len(str(caught.value).splitlines()) == 1
        if key in VALUES:
            assert f"it takes {', '.join(taken_by(provider))}" in str(caught.value)
    low, high = QUIRKS[name].temperatures
    for temperature in {0.0, 2.0} - {low, high}:
        if not low <= temperature <= high:
            with pytest.raises(ConfigError, match=rf"decoding.temperature={temperature}: .*provider={name}"):
                provider.check(MODEL, request_of(temperature=temperature).decoding)
    assert provider.max_samples(MODEL, request_of(temperature=None, n=4).decoding) == (
        1 if "n" in provider.refused_fields else 128
    )
    assert server.log.exchanges == []


@each_vendor
def test_openais_own_words_are_refused_or_ignored(quirky: tuple[str, ApiServer]) -> None:
    """So the server holds the quirks that the presets are for."""
    name, server = quirky
    plain = vendor("openai_compatible", server, api_key_env="OPENAI_API_KEY")
    for key in set(QUIRKS[name].refused) & set(VALUES):
        with pytest.raises(RequestError) as caught:
            answer(plain, **{key: VALUES[key]})
        assert caught.value.status == QUIRKS[name].status
    if QUIRKS[name].limit == "max_tokens" and QUIRKS[name].other_limit == "ignored":
        assert answer(plain, max_new_tokens=4).finish_reason == "stop"
    elif QUIRKS[name].other_limit == "refused":
        with pytest.raises(RequestError):
            answer(plain, max_new_tokens=4)


@pytest.mark.parametrize("name", VENDORS)
def test_a_missing_key_is_named_and_servers_of_ones_own_need_none(
    name: str, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = vendor(name, server)
    assert provider.api_key_env is not None
    monkeypatch.delenv(provider.api_key_env)
    if name in LOCAL:
        provider.check_access()
        assert answer(provider).finish_reason == "stop"
        assert server.log.exchanges[-1].headers["authorization"] == "Bearer none"
    else:
        with pytest.raises(ConfigError, match=f"{provider.api_key_env} is not set"):
            provider.check_access()


@pytest.mark.parametrize("name", VENDORS)
def test_batches_are_refused_where_the_vendor_has_none(name: str) -> None:
    if name in ("groq", "azure_v1", *FORMS):
        assert vendor(name, mode="batch").has_batches
    else:
        with pytest.raises(ConfigError, match=f"provider.mode=batch: the provider {name} has no batches"):
            vendor(name, mode="batch")
        assert not vendor(name).has_batches


def test_servers_of_ones_own_cost_nothing_and_stated_prices_count() -> None:
    for name in LOCAL:
        prices = price_table_for(MODEL, vendor(name).pricing_id, address=vendor(name).address)
        assert prices is not None
        assert prices.price(Usage(input_tokens=10**6, output_tokens=10**6)) == Decimal(0)


def test_an_output_limit_that_the_vendor_does_not_read_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"model.max_tokens_key=max_tokens: provider=xai takes max_completion_tokens"
    ):
        vendor("xai").check(replace(MODEL, max_tokens_key="max_tokens"), request_of(temperature=None).decoding)
    with pytest.raises(ConfigError, match=r"provider.service_tier=flex: provider=cerebras has no service tiers"):
        vendor("cerebras", service_tier="flex").check(MODEL, request_of(temperature=None).decoding)
    with pytest.raises(ConfigError, match=r"model.extra_body.random_seed: is set from decoding.seed"):
        vendor("mistral").check(replace(MODEL, extra_body={"random_seed": 1}), request_of(temperature=None).decoding)
