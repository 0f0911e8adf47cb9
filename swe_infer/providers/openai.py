"""The base of the OpenAI providers: the SDK's client, and service tiers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from swe_infer.options import Option
from swe_infer.providers.base import PriceTerms
from swe_infer.providers.checks import check_service_tier
from swe_infer.providers.image_parts import image_fault
from swe_infer.providers.wire import WireProvider, price_terms_of
from swe_infer.types import ApiModel, Decoding

OPENAI = "https://api.openai.com/v1"
COUNT_PATH = "/responses/input_tokens"
"""Counts the input of a request to the Responses API (openai.types.responses.InputTokenCountParams)."""
_USUAL_TTL = "30m"
"""Lifetime of OpenAI's cached prompts, whose writes have the listed price."""


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIProvider(WireProvider):
    """A provider behind ``AsyncOpenAI``, which reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS."""

    address_env: ClassVar[str | None] = "OPENAI_BASE_URL"
    headers_env: ClassVar[str | None] = "OPENAI_CUSTOM_HEADERS"
    header_values_env: ClassVar[tuple[str, ...]] = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    has_fixed_headers: ClassVar[bool] = True
    service_tiers: ClassVar[tuple[str, ...]] = ("auto", "default", "flex", "scale", "priority", "fast")
    """OpenAI's service tiers (openai.types.chat.CompletionCreateParams)."""

    service_tier: Annotated[
        str | None,
        Option(
            "Service tier, such as flex, priority or auto; null: none, or under a budget the standard one.", "speed"
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tier_is_fixed = False

    def own_address(self) -> str:
        return OPENAI

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if self.service_tier is not None and self._is_openai():
            check_service_tier(self.service_tier, (*self.service_tiers, "standard"))

    def image_fault(self, model: ApiModel, images: Sequence[str]) -> str | None:
        return image_fault(model)

    def _is_openai(self) -> bool:
        """Whether the server has OpenAI's service tiers."""
        return True

    def fix_service_tier(self) -> None:
        self._tier_is_fixed = True

    def price_terms(self, model: ApiModel) -> PriceTerms:
        """OpenAI caches prompts unless a request says otherwise, for 30 minutes unless it asks for longer
        (openai.types.responses.ResponseCreateParams.prompt_cache_options)."""
        sent = {**self._header_tier(), **self._cost_fields(model), **model.extra_body}
        options = sent.get("prompt_cache_options")
        options = options if isinstance(options, Mapping) else {}
        ttl = options.get("ttl") or _USUAL_TTL
        terms = price_terms_of(sent, caches_unasked=options.get("mode") != "explicit")
        return terms if ttl == _USUAL_TTL else replace(terms, cache_ttl=str(ttl))

    def _cost_fields(self, model: ApiModel) -> dict[str, Any]:
        """The fields of a request that does not share its prompt which decide its price."""
        return self._tier_field(model)

    def _tier_field(self, model: ApiModel) -> dict[str, Any]:
        if self.service_tier is not None:
            return {"service_tier": self._tier()}
        fixed = self._tier_is_fixed and "service_tier" not in model.extra_body
        return {"service_tier": "default"} if fixed else {}

    def _tier(self) -> str | None:
        """The vendor's name of the tier."""
        return "default" if self.service_tier == "standard" else self.service_tier

    def _http_client(self, **settings: Any) -> Any:
        import openai

        return openai.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        client = openai.AsyncOpenAI(base_url=self.address, api_key=key, max_retries=0, http_client=http)
        return openai, client
