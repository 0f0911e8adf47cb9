"""The OpenAI SDK's client, as the OpenAI providers share it."""

from __future__ import annotations

from typing import Any

from swe_infer.providers.wire import WireProvider

__all__ = ["COUNT_PATH", "OpenAIProvider"]

COUNT_PATH = "/responses/input_tokens"
"""Counts the input of a request to the responses interface (openai.types.responses.InputTokenCountParams)."""


class OpenAIProvider(WireProvider):
    """A provider behind ``AsyncOpenAI``."""

    def _http_client(self, **settings: Any) -> Any:
        import openai

        return openai.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        client = openai.AsyncOpenAI(base_url=self.base_url, api_key=key, max_retries=0, http_client=http)
        return openai, client
