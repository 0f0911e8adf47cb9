"""The Anthropic SDK's client, as the Anthropic providers share it."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.providers.faults import one_line
from swe_infer.providers.wire import WireProvider
from swe_infer.types import ApiModel, Decoding

logger = logging.getLogger(__name__)

ANTHROPIC = "https://api.anthropic.com"
_KEY_VARIABLE = "ANTHROPIC_API_KEY"
_TOKEN_VARIABLE = "ANTHROPIC_AUTH_TOKEN"
_OTHER_CREDENTIALS = ("ANTHROPIC_PROFILE", "ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_FILE")
"""Ways to credentials that the SDK knows and this program does not."""

FIRST_WITHOUT_SAMPLING = "2026-10-21"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicProvider(WireProvider):
    """A provider behind ``AsyncAnthropic``. The interface's version is a fact of the model: from 2026-10-21 on it
    takes no sampling parameters.

    A token in ANTHROPIC_AUTH_TOKEN is used where ANTHROPIC_API_KEY is not set, as in the SDK.
    """

    address_env: ClassVar[str | None] = "ANTHROPIC_BASE_URL"
    headers_env: ClassVar[str | None] = "ANTHROPIC_CUSTOM_HEADERS"

    highest_temperature: ClassVar[float] = 1.0

    address_may_be_versioned: ClassVar[bool] = False
    """Whether ``base_url`` may end in ``/v1``; Anthropic's own SDK adds it."""

    base_url: Annotated[
        str | None,
        Option("The root, without /v1; null: ANTHROPIC_BASE_URL, or https://api.anthropic.com.", "address"),
    ] = None
    api_key_env: Annotated[
        str | None, Option("The variable that holds the key; where it is not set: ANTHROPIC_AUTH_TOKEN.", "address")
    ] = _KEY_VARIABLE
    pricing_id: str = "anthropic"
    api_version: Annotated[str, Option("anthropic-version, unless model.api_version states one.", "answer")] = (
        "2023-06-01"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _DATE.fullmatch(self.api_version):
            raise ConfigError(f"provider.api_version={one_line(self.api_version)}: must be a date such as 2023-06-01")

    def own_address(self) -> str:
        return ANTHROPIC

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if not self.address_may_be_versioned and urlsplit(self.address).path.rstrip("/").endswith("/v1"):
            raise ConfigError(f"provider.base_url={one_line(self.address)}: must be the root, without /v1")
        version = model.api_version or self.api_version
        if not _DATE.fullmatch(version):
            raise ConfigError(f"model.api_version={one_line(version)}: must be a date such as 2023-06-01")
        for key, value in (("temperature", decoding.temperature), ("top_p", decoding.top_p)):
            if value is not None and version >= FIRST_WITHOUT_SAMPLING:
                raise ConfigError(
                    f"decoding.{key}={value}: anthropic-version {version} takes no {key}; set decoding.{key}=null, "
                    "or model.api_version=2023-06-01 where the model still takes it"
                )

    def check_access(self) -> None:
        if self.api_key_env == _KEY_VARIABLE and not self._key():
            for variable in _OTHER_CREDENTIALS:
                if os.environ.get(variable):
                    raise ConfigError(
                        f"{variable} is not supported: put an API key into {_KEY_VARIABLE}, or a token into "
                        f"{_TOKEN_VARIABLE}"
                    )
        super().check_access()
        if os.environ.get(_TOKEN_VARIABLE) and self._key_variable() not in (None, _TOKEN_VARIABLE):
            logger.warning("%s is used, and %s is not", self._key_variable(), _TOKEN_VARIABLE)

    def _key_variable(self) -> str | None:
        if (
            self.api_key_env == _KEY_VARIABLE
            and not os.environ.get(_KEY_VARIABLE)
            and os.environ.get(_TOKEN_VARIABLE)
        ):
            return _TOKEN_VARIABLE
        return self.api_key_env

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {"headers": {"anthropic-version": model.api_version}} if model.api_version else {}

    def _http_client(self, **settings: Any) -> Any:
        import anthropic

        return anthropic.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import anthropic

        is_token = self._key_variable() == _TOKEN_VARIABLE
        client = anthropic.AsyncAnthropic(
            base_url=self.address,
            api_key=None if is_token else key,
            auth_token=key if is_token else None,
            default_headers={"anthropic-version": self.api_version},
            max_retries=0,
            http_client=http,
        )
        return anthropic, client
