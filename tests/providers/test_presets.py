"""Every model preset of ``conf/model``: it has a price, and a first request of its default decoding is accepted.

Also what the presets say about names: retirement, successors, and the rules of new names.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Any

import pytest

from swe_infer.api.pricing import price_table_for
from swe_infer.conf_files import conf_dir, file_of, node_of
from swe_infer.presets import newest_rules, presets, warnings_of, with_known_rules
from swe_infer.providers.knobs import chat_dialect, check_knobs
from swe_infer.types import ApiModel, Decoding, Pricing, Usage
from tests.providers.conftest import CONF, VENDORS, build, request_of
from tests.support import model_presets
from tests.support.api_server import ApiServer
from tests.support.api_vendors import VENDORS as QUIRKS
from tests.support.options import option_composed

PRESETS = sorted(
    path.stem
    for path in (CONF / "model").glob("*.yaml")
    if path.stem != "api" and (path.read_text().startswith("# Claude") or "- api\n" in path.read_text())
)


@cache
def composed(preset: str) -> tuple[ApiModel, str, Decoding]:
    """(model, provider's name, decoding) of ``model=PRESET`` alone."""
    whole: Any = option_composed("model", preset)
    keys = {key: value for key, value in whole.model.items() if key != "_target_"}
    assert whole.model._target_ == "swe_infer.types.ApiModel"
    keys["parameters"] = tuple(keys["parameters"])
    if keys.get("pricing"):
        stated = {key: Decimal(str(value)) for key, value in keys["pricing"].items() if key != "_target_"}
        keys["pricing"] = Pricing(**stated)
    decoding = {key: value for key, value in whole.decoding.items() if key != "_target_"}
    return ApiModel(**keys), whole.provider.name, Decoding(**{**decoding, "stop": tuple(decoding["stop"])})


def test_the_promised_presets_exist() -> None:
    assert {"gpt-4o", "claude-sonnet-4-5", "claude-2"} <= set(PRESETS)
    assert len(PRESETS) > 90
    assert sum(preset.vendor in VENDORS for preset in presets().values()) >= 25
    assert conf_dir().samefile(CONF)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_price_and_plausible_facts(preset: str) -> None:
    model, provider, decoding = composed(preset)
    if model.pricing is not None:
        text = (CONF / "model" / f"{preset}.yaml").read_text()
        assert "price list of" in text, "a stated price names its source and date"
    prices = price_table_for(model, node_of("provider", provider)["pricing_id"])
    assert prices is not None
    assert prices.price(Usage(input_tokens=1_000_000, output_tokens=1_000_000)) > Decimal("0.1")
    assert model.context_window is not None
    assert 8_000 <= model.context_window <= 1_050_000
    assert model.max_output_tokens is None or 4_096 <= model.max_output_tokens <= model.context_window
    if not {"temperature"} & set(model.parameters):
        assert decoding.temperature is None


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_decoding_of_every_preset_is_accepted(preset: str, server: ApiServer) -> None:
    """By the checks, and by a server as strict as the vendors about sampling parameters."""
    model, provider, decoding = composed(preset)
    server.maker.vendor = QUIRKS.get(provider)
    built = build(provider, server)
    built.check(model, decoding)

    async def life() -> str:
        await built.open()
        try:
            request = request_of(**{key: getattr(decoding, key) for key in Decoding.__dataclass_fields__})
            return (await built.complete(request, model, timeout_s=60)).text
        finally:
            server.maker.vendor = None
            await built.close()

    assert asyncio.run(life()).startswith("Here is the change.")


TODAY = date(2026, 11, 29)


@pytest.mark.parametrize(
    ("model", "provider", "said"),
    [
        (
            "claude-2",
            "anthropic_text",
            "claude-2 is retired since 2025-07-21; a current model: model=claude-sonnet-5-5",
        ),
        ("claude-sonnet-4-5", "anthropic", "retires on 2026-11-30; a current model: model=claude-sonnet-5-5"),
        ("claude-sonnet-4-5-20250929", "anthropic", "retires on 2026-11-30"),
        ("gpt-5-mini", "openai", "gpt-5-mini retires on 2026-12-11; a current model: model=gpt-5.4-mini"),
        ("o4-mini", "openai_responses", "o4-mini is retired since 2026-10-23; a current model: model=gpt-6"),
        ("deepseek-chat", "deepseek", "is retired since 2026-07-24; a current model: model=deepseek-flash"),
        ("gpt-4o", "openai", None),  # in more than 30 days
        ("claude-sonnet-5-5", "anthropic", None),
        ("claude-sonnet-4-5", "bedrock", None),  # the cloud has dates of its own
        ("claude-sonnet-6-0", "anthropic", "there is no preset; the rules of claude-sonnet-5-5 apply"),
        ("claude-saga", "anthropic", "there is no preset of provider=anthropic for it, nor for its family"),
        ("anything", "openai_compatible", None),
        ("anything", "ollama", None),
    ],
)
def test_a_name_that_is_retired_new_or_unknown_is_said_in_one_line(
    model: str, provider: str, said: str | None
) -> None:
    found = presets().get(model)
    lines = warnings_of(ApiModel(name=model) if found is None else found.model, provider, TODAY)
    assert len(lines) == (said is not None)
    assert said is None or said in lines[0]


def test_a_gateway_s_own_name_for_a_model_has_the_rules_of_the_chosen_preset() -> None:
    preset = replace(presets()["claude-sonnet-5-5"].model, name="ours", price_as="claude-sonnet-5-5", retires=None)
    assert warnings_of(preset, "anthropic", TODAY) == []
    assert len(warnings_of(replace(preset, parameters=("temperature",)), "anthropic", TODAY)) == 1
    assert len(warnings_of(replace(preset, price_as=None), "anthropic", TODAY)) == 1


def test_the_files_of_presets_are_not_read_for_a_model_that_says_when_it_retires() -> None:
    presets.cache_clear()
    assert warnings_of(ApiModel(name="gpt-4o", retires="2999-01-01"), "openai", TODAY) == []
    assert presets.cache_info().currsize == 0


@pytest.mark.parametrize(
    ("name", "vendor", "followed"),
    [
        ("claude-sonnet-6-0", "anthropic", "claude-sonnet-5-5"),
        ("global.anthropic.claude-opus-6-20270101-v1:0", "anthropic", "claude-opus-5-5"),
        ("claude-new-6", "anthropic", "claude-sonnet-5-5"),
        ("gpt-6.2-sol", "openai", "gpt-6.1-sol"),
        ("gemini-3.9-flash", "gemini", "gemini-3.8-flash"),
        ("deepseek-v5-flash", "deepseek", "deepseek-flash"),
        ("claude-sonnet-4-5-20250929", "anthropic", None),
        ("claude-3-opus-latest", "anthropic", None),
        ("gpt-4o-2024-08-06", "openai", None),
        ("gpt-test", "openai", None),
        ("claude-sonnet-6-0", "openrouter", None),
        ("gpt-oss-500b", "together", None),
    ],
)
def test_a_new_name_follows_the_newest_preset_of_its_family(name: str, vendor: str, followed: str | None) -> None:
    rules = newest_rules(name, vendor)
    assert (rules and rules.option) == followed
    if rules is not None and rules.vendor == "anthropic":
        model = with_known_rules(ApiModel(name=name), vendor)
        assert (model.parameters, model.api_version) == (("stop",), "2026-10-21")


def test_stated_rules_of_a_new_name_are_kept() -> None:
    stated = ApiModel(name="claude-sonnet-6-0", parameters=("temperature",))
    assert with_known_rules(stated, "anthropic") is stated


def test_the_presets_are_those_of_the_tables() -> None:
    """``python -m tests.support.model_presets`` updates them."""
    assert model_presets.main(["--check"]) == 0
    assert model_presets.retirements()["claude-opus-4-5"] == "2027-01-22"
    assert model_presets.retirements()["gpt-4-32k"] == "2025-06-06"


def test_the_efforts_that_a_comment_states_are_accepted() -> None:
    stated = 0
    for option, preset in presets().items():
        comment = file_of("model", option).read_text(encoding="utf-8").partition("\n")[0]
        found = re.search(r"effort ((?:\w+(?:, | to | or ))*\w+)", comment)
        for effort in re.findall(r"none|minimal|low|medium|x?high|max|default", found[1] if found else ""):
            model = replace(preset.model, effort=effort)
            check_knobs(preset.vendor, chat_dialect(preset.vendor), model, Decoding(temperature=None))
            stated += 1
    assert stated > 20


def test_a_refresh_changes_what_has_no_source_of_its_own() -> None:
    text = "name: m\ncontext_window: 1\nparameters: []\n"
    new = model_presets.refreshed(text, window=2, retires="2030-01-01")
    assert new == 'name: m\ncontext_window: 2\nparameters: []\nretires: "2030-01-01"\n'
    assert model_presets.refreshed(new, window=2, retires="2030-01-01") == new
    assert model_presets.refreshed(new, window=None, retires=None) == new
    kept = text.replace("1", "1 # the vendor's page")
    assert "context_window: 1 #" in model_presets.refreshed(kept, window=2, retires=None)
