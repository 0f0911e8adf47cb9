"""One model at several endpoints (OpenAI and Azure, two regions, two keys): the next one takes over if one is down or
out of quota. Never another model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.providers.base import Answer, Provider
from swe_infer.types import ApiModel, Decoding, Request


@dataclass(kw_only=True, eq=False, repr=False)
class Deployments(Provider):
    """Up to four providers of one model, in order of preference.

    ``names`` must name the same model: its price is looked up by ``model.price_as`` or ``model.name``, unless the
    price list has the provider's own names (Bedrock).
    """

    mode: Literal["live", "batch"] = field(default="live", init=False)

    first: Annotated[Provider, Option("The preferred provider.", "answer")]
    second: Annotated[Provider, Option("The provider to use if the first is down.", "answer")]
    third: Annotated[Provider | None, Option("A third provider.", "answer")] = None
    fourth: Annotated[Provider | None, Option("A fourth provider.", "answer")] = None
    names: Annotated[
        Mapping[str, str | None],
        Option("The model's name at each position, if different from model.name.", "address"),
    ] = field(default_factory=dict)
    name: Annotated[str, Option("The name in messages and records.", "answer")] = "deployments"

    def __post_init__(self) -> None:
        given = {"first": self.first, "second": self.second, "third": self.third, "fourth": self.fourth}
        self._parts = {key: part for key, part in given.items() if part is not None}
        self._names = {key: there for key, there in self.names.items() if there is not None}
        for key in self._names:
            if key not in self._parts:
                raise ConfigError(f"provider.names.{key}: no such provider; available: {', '.join(self._parts)}")
        for key, part in self._parts.items():
            if part.mode != "live":
                raise ConfigError(f"provider.{key}.mode={part.mode}: several deployments answer live requests only")
            if part.background:
                raise ConfigError(f"provider.{key}.background: several deployments answer live requests only")
        self.pricing_id = self.first.pricing_id
        self.address = self.first.address
        self.timeout_s = max(part.timeout_s for part in self._parts.values())
        self.max_concurrency = max(part.max_concurrency for part in self._parts.values())

    def endpoints(self, model: ApiModel) -> list[tuple[Provider, ApiModel]]:
        """All providers, each with its name for the model."""
        return [(part, self._there(key, model)) for key, part in self._parts.items()]

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Checks every provider; see :meth:`swe_infer.providers.base.Provider.check`."""
        for key, part in self._parts.items():
            with _named(key):
                part.check(self._there(key, model), decoding)

    def check_prefill(self, model: ApiModel, prefill: str) -> None:
        for key, part in self._parts.items():
            with _named(key):
                part.check_prefill(self._there(key, model), prefill)

    def check_conversation(self, model: ApiModel) -> None:
        for key, part in self._parts.items():
            with _named(key):
                part.check_conversation(self._there(key, model))

    def check_access(self) -> None:
        """Checks every provider; see :meth:`swe_infer.providers.base.Provider.check_access`."""
        for key, part in self._parts.items():
            with _named(key):
                part.check_access()

    async def open(self) -> None:
        for part in self._parts.values():
            await part.open()

    async def close(self) -> None:
        for part in self._parts.values():
            await part.close()

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        """Sends to the first provider. :class:`swe_infer.api.chain.Chain` uses :meth:`endpoints` to fail over."""
        part, there = self.endpoints(model)[0]
        return await part.complete(request, there, timeout_s=timeout_s, cache_prompt=cache_prompt)

    def _there(self, key: str, model: ApiModel) -> ApiModel:
        if key not in self._names:
            return model
        price_as = None if self._parts[key].priced_by_name else model.price_as or model.name
        return replace(model, name=self._names[key], price_as=price_as)


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Adds the provider's key to a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"provider.{key}: {error}") from None
