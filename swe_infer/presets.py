"""What the presets of ``conf/model`` say about a model's name: its rules, its retirement, its successor.

A name without a preset follows the newest preset of its family, if it is newer: ``claude-sonnet-6-0`` follows
``claude-sonnet-5-5``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from swe_infer.conf_files import node_of, options_of, overridden_by
from swe_infer.options import parameters_of
from swe_infer.types import ApiModel

_SOON = timedelta(days=30)
_API_MODEL = "swe_infer.types.ApiModel"

_VENDORS: Mapping[str, str] = {
    "openai_responses": "openai",
    "anthropic_text": "anthropic",
    "bedrock": "anthropic",
    "vertex": "anthropic",
}
"""Other options of the group ``provider`` that serve a vendor's models."""
_OWN_SCHEDULE = frozenset({"azure_openai", "azure_v1", "bedrock", "vertex"})
"""Clouds that retire models on dates of their own."""
_MAKERS = frozenset({"anthropic", "openai", "gemini", "deepseek", "xai", "mistral", "moonshot"})
"""Providers that serve only their own models."""

_PART = re.compile(r"\d+|[a-z]+")
_SNAPSHOT = re.compile(r"[-@](\d{8}|\d{4}-\d{2}-\d{2}|\d{4}|latest)$|-v\d+:\d+$")
_ORGANISATION = re.compile(r".*/|.*anthropic\.")
_NO_FAMILY = frozenset({"preview", "latest", "v"})
_LONGEST_VERSION = 3
"""Digits. Longer numbers are dates, such as 2512 in ``devstral-2512``."""


@dataclass(frozen=True, slots=True)
class Family:
    """A model's name, taken apart: ``claude-sonnet-5-5`` is version 5.5 of ``claude sonnet``."""

    words: tuple[str, ...]
    version: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Preset:
    """A model of ``conf/model`` behind an API.

    Args:
        option: the option of the group ``model``.
        vendor: the provider that it selects; one name for all APIs of a vendor.
        model: the model without prices.
    """

    option: str
    vendor: str
    model: ApiModel
    family: Family

    @property
    def name(self) -> str:
        return self.model.name


def vendor_of(provider: str) -> str | None:
    """The vendor behind an option of the group ``provider``; None: any vendor, as several deployments may be of."""
    return None if provider == "deployments" else _VENDORS.get(provider, provider)


def family_of(name: str) -> Family:
    """Takes a name apart. The organisation, dates, Bedrock's suffixes and ``latest`` are not part of it."""
    short = _ORGANISATION.sub("", name.lower(), count=1)
    while (match := _SNAPSHOT.search(short)) is not None:
        short = short[: match.start()]
    parts = _PART.findall(short)
    words = tuple(part for part in parts if not part.isdigit() and part not in _NO_FAMILY)
    version = [int(part) for part in parts if part.isdigit() and len(part) <= _LONGEST_VERSION]
    while version and version[-1] == 0:
        version.pop()
    return Family(words, tuple(version))


@functools.cache
def presets() -> Mapping[str, Preset]:
    """Every API model of ``conf/model``, by its option."""
    found = {}
    for option in options_of("model"):
        node = node_of("model", option)
        name = node.get("name")
        if node.get("_target_") == _API_MODEL and isinstance(name, str) and name != "???":
            keys = {key: value for key, value in node.items() if key not in ("_target_", "pricing")}
            model = ApiModel(**{**keys, "parameters": tuple(node["parameters"])})
            provider = overridden_by("model", option).get("provider", "openai")
            found[option] = Preset(option, vendor_of(provider) or provider, model, family_of(name))
    return found


def preset_of(name: str, vendor: str | None) -> Preset | None:
    """The vendor's preset with this name, or whose dated snapshot or alias it is.

    Args:
        vendor: None: any vendor.
    """
    own = [preset for preset in presets().values() if vendor in (None, preset.vendor)]
    exact = next((preset for preset in own if preset.name == name), None)
    family = family_of(name)
    return exact or next((preset for preset in own if family.version and preset.family == family), None)


def newest_rules(name: str, vendor: str | None) -> Preset | None:
    """The preset whose rules apply to a name that is newer than all presets of its family; None for other names.

    Args:
        vendor: None: any vendor.
    """
    family = family_of(name)
    if not family.words or not family.version:
        return None
    own = [p for p in presets().values() if vendor in (None, p.vendor) and p.vendor in _MAKERS]
    same = [p for p in own if p.family.words == family.words]
    related = [p for p in own if p.family.words[:1] == family.words[:1] and p.family.version]
    newest = max(same or related, key=_age, default=None)
    return newest if newest is not None and newest.family.version < family.version else None


def _age(preset: Preset) -> tuple[tuple[int, ...], str]:
    return preset.family.version or _ALIAS, preset.option


_ALIAS = (999,)
"""The version of a name without one: an alias, such as ``deepseek-flash``, is the newest model."""


def successor_of(preset: Preset) -> Preset | None:
    """The newest preset without a retirement date: of the same family, or else of the same line, such as Claude, or
    else of the vendor if it serves only its own models."""
    living = [p for p in presets().values() if p.vendor == preset.vendor and p.model.retires is None]
    same = [p for p in living if p.family.words == preset.family.words]
    related = [p for p in living if p.family.words[:1] == preset.family.words[:1]]
    others = living if preset.vendor in _MAKERS else []
    for group in (same, related, others):
        newest = max(group, key=_age, default=None)
        if newest is not None and _age(newest)[0] >= _age(preset)[0]:
            return newest
    return None


def with_known_rules(model: ApiModel, provider: str) -> ApiModel:
    """``model`` with the rules of the preset with its name, or of the newest preset of its family, if it has no rules
    yet, as with ``model=api``. Its parameters become fewer, never more."""
    if (model.parameters, model.api_version) != _NO_RULES:
        return model
    vendor = vendor_of(provider)
    rules = preset_of(model.name, vendor) or newest_rules(model.name, vendor)
    if rules is None or rules.vendor not in _MAKERS:
        return model
    return replace(
        model,
        parameters=tuple(name for name in model.parameters if name in rules.model.parameters),
        api_version=rules.model.api_version,
        one_sampler=rules.model.one_sampler,
        billed_cache_writes=rules.model.billed_cache_writes,
        vision=rules.model.vision if model.vision is None else model.vision,
        image_tokens=rules.model.image_tokens if model.image_tokens == _IMAGE_TOKENS else model.image_tokens,
    )


_IMAGE_TOKENS = parameters_of(ApiModel)["image_tokens"].default
_NO_RULES = tuple(parameters_of(ApiModel)[key].default for key in ("parameters", "api_version"))


def warnings_of(model: ApiModel, provider: str, today: date | None = None) -> list[str]:
    """What to say about a model's name before a run, one line each: it is retired or about to be, newer than all
    presets, or unknown.

    Args:
        provider: the run's provider.
        today: None: the current date.
    """
    today = datetime.now(UTC).date() if today is None else today
    if model.retires is None and model.name in options_of("model"):
        return []
    vendor = vendor_of(provider)
    # Presets are many files: they are read only where they decide.
    preset = None if model.retires is not None else preset_of(model.name, vendor)
    retires = model.retires if preset is None else preset.model.retires
    if retires is not None and provider not in _OWN_SCHEDULE:
        day = date.fromisoformat(retires)
        if day > today + _SOON:
            return []
        when = f"is retired since {retires}" if day <= today else f"retires on {retires}"
        known = preset or preset_of(model.name, vendor) or preset_of(model.name, None)
        successor = successor_of(known) if known is not None else None
        hint = f"; a current model: model={successor.option}" if successor is not None else ""
        return [f"the model {model.name} {when}{hint}"]
    if preset is not None or vendor not in _MAKERS or provider in _OWN_SCHEDULE:
        return []
    if (rules := newest_rules(model.name, vendor)) is not None:
        return [f"model.name={model.name}: there is no preset; the rules of {rules.option} apply"]
    priced = None if model.price_as is None else preset_of(model.price_as, vendor)
    if priced is not None and priced.model.parameters == model.parameters:
        return []  # a gateway's own name for a model whose preset is chosen
    sent = ", ".join(model.parameters) or "none"
    return [
        f"model.name={model.name}: there is no preset of provider={vendor} for it, nor for its family; check "
        f"model.parameters ({sent}) and model.api_version"
    ]
