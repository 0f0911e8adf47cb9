"""The Anthropic SDK's client, as the Anthropic providers share it."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.providers.faults import one_line
from swe_infer.providers.wire import WireProvider
from swe_infer.types import ApiModel, Decoding

__all__ = ["FIRST_WITHOUT_SAMPLING", "AnthropicProvider"]

FIRST_WITHOUT_SAMPLING = "2026-10-21"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


class AnthropicProvider(WireProvider):
    """A provider behind ``AsyncAnthropic``. The interface's version is a fact of the model: from 2026-10-21 on it
    takes no sampling parameters."""

    highest_temperature: ClassVar[float] = 1.0

    address_may_be_versioned: ClassVar[bool] = False
    """Whether ``base_url`` may end in ``/v1``; Anthropic's own SDK adds it."""

    def __init__(
        self,
        *,
        name: str,
        base_url: str,
        api_key_env: str | None,
        max_concurrency: int,
        timeout_s: float,
        pricing_id: str,
        api_version: str,
        mode: Literal["live", "batch"],
    ) -> None:
        super().__init__(
            name=name,
            base_url=base_url,
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            timeout_s=timeout_s,
            pricing_id=pricing_id,
            mode=mode,
        )
        if not _DATE.fullmatch(api_version):
            raise ConfigError(f"provider.api_version={one_line(api_version)}: must be a date such as 2023-06-01")
        self.api_version = api_version

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if not self.address_may_be_versioned and urlsplit(self.base_url).path.rstrip("/").endswith("/v1"):
            raise ConfigError(f"provider.base_url={one_line(self.base_url)}: must be the root, without /v1")
        version = model.api_version or self.api_version
        if not _DATE.fullmatch(version):
            raise ConfigError(f"model.api_version={one_line(version)}: must be a date such as 2023-06-01")
        for key, value in (("temperature", decoding.temperature), ("top_p", decoding.top_p)):
            if value is not None and version >= FIRST_WITHOUT_SAMPLING:
                raise ConfigError(
                    f"decoding.{key}={value}: anthropic-version {version} takes no {key}; set decoding.{key}=null, "
                    "or model.api_version=2023-06-01 where the model still takes it"
                )

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {"headers": {"anthropic-version": model.api_version}} if model.api_version else {}

    def _http_client(self, **settings: Any) -> Any:
        import anthropic

        return anthropic.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import anthropic

        client = anthropic.AsyncAnthropic(
            base_url=self.base_url,
            api_key=key,
            default_headers={"anthropic-version": self.api_version},
            max_retries=0,
            http_client=http,
        )
        return anthropic, client
