"""Chat completions of Azure OpenAI: the model's name is a deployment, the interface's version part of the address.

Format: https://learn.microsoft.com/azure/ai-services/openai/reference.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from swe_infer.errors import ConfigError
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.types import ApiModel

__all__ = ["AzureOpenAI"]

_ENDPOINT_VARIABLE = "AZURE_OPENAI_ENDPOINT"


class AzureOpenAI(OpenAIChat):
    """A resource of Azure OpenAI.

    Args:
        base_url: the resource's endpoint, ``https://NAME.openai.azure.com``; None: from AZURE_OPENAI_ENDPOINT.
        api_version: of the interface, unless ``model.api_version`` states one.
    """

    counts_input: bool = False

    def __init__(
        self,
        *,
        name: str = "azure_openai",
        base_url: str | None = None,
        api_key_env: str | None = "AZURE_OPENAI_API_KEY",
        api_version: str = "2024-10-21",
        max_concurrency: int = 128,
        timeout_s: float = 900.0,
        pricing_id: str = "azure",
        mode: Literal["live", "batch"] = "live",
        stream: bool = False,
        send_cache_key: bool = False,
    ) -> None:
        super().__init__(
            name=name,
            base_url=base_url or os.environ.get(_ENDPOINT_VARIABLE, ""),
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            timeout_s=timeout_s,
            pricing_id=pricing_id,
            mode=mode,
            stream=stream,
            send_cache_key=send_cache_key,
        )
        self.api_version = api_version

    def check_access(self) -> None:
        if not self.base_url:
            raise ConfigError(
                f"provider.base_url is not set: give the resource's endpoint there or in {_ENDPOINT_VARIABLE}, "
                "such as https://NAME.openai.azure.com"
            )
        super().check_access()

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {"params": {"api-version": model.api_version}} if model.api_version else {}

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        client = openai.AsyncAzureOpenAI(
            azure_endpoint=self.base_url,
            api_key=key,
            api_version=self.api_version,
            max_retries=0,
            http_client=http,
        )
        return openai, client
