"""The OpenAI SDK's client, as the OpenAI providers share it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from swe_infer.providers.wire import WireProvider

OPENAI = "https://api.openai.com/v1"
COUNT_PATH = "/responses/input_tokens"
"""Counts the input of a request to the responses interface (openai.types.responses.InputTokenCountParams)."""


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIProvider(WireProvider):
    """A provider behind ``AsyncOpenAI``, which reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS."""

    address_env: ClassVar[str | None] = "OPENAI_BASE_URL"
    headers_env: ClassVar[str | None] = "OPENAI_CUSTOM_HEADERS"
    header_values_env: ClassVar[tuple[str, ...]] = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")

    def own_address(self) -> str:
        return OPENAI

    def _http_client(self, **settings: Any) -> Any:
        import openai

        return openai.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        client = openai.AsyncOpenAI(base_url=self.address, api_key=key, max_retries=0, http_client=http)
        return openai, client
