"""Every model preset of ``conf/model``: it has a price, and a first request of its default decoding is accepted."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import pytest
from genai_prices import Usage as PricedUsage
from genai_prices import calc_price

from swe_infer.conf_files import conf_dir
from swe_infer.types import ApiModel, Decoding, Pricing
from tests.providers.conftest import CONF, build, request_of
from tests.support.api_server import ApiServer
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
    assert len(PRESETS) > 40
    assert conf_dir().samefile(CONF)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_a_price(preset: str) -> None:
    model, provider, _ = composed(preset)
    if model.pricing is not None:
        text = (CONF / "model" / f"{preset}.yaml").read_text()
        assert "price list of" in text, "a stated price names its source and date"
        return
    vendor = "anthropic" if provider.startswith("anthropic") else "openai"
    usage = PricedUsage(input_tokens=1_000_000, output_tokens=1_000_000)
    now = datetime.now(UTC)
    price = calc_price(usage, model.price_as or model.name, provider_id=vendor, genai_request_timestamp=now)
    assert price.provider.id == vendor
    assert price.total_price > Decimal("0.1")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_decoding_of_every_preset_is_accepted(preset: str, server: ApiServer) -> None:
    """By the checks, and by a server as strict as the vendors about sampling parameters."""
    model, provider, decoding = composed(preset)
    built = build(provider, server)
    built.check(model, decoding)

    async def life() -> str:
        await built.open()
        try:
            request = request_of(**{key: getattr(decoding, key) for key in Decoding.__dataclass_fields__})
            return (await built.complete(request, model, timeout_s=60)).text
        finally:
            await built.close()

    assert asyncio.run(life()).startswith("Here is the change.")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_facts_of_a_preset_are_plausible(preset: str) -> None:
    model, _, decoding = composed(preset)
    assert model.context_window is not None
    assert 8_000 <= model.context_window <= 1_050_000
    assert model.max_output_tokens is None or 4_096 <= model.max_output_tokens <= model.context_window
    thinks = not model.parameters or model.parameters == ("stop",)
    assert (decoding.temperature is None) == thinks
