"""Chat completions of Azure OpenAI: the model name is a deployment, and the API version is part of the URL.

Format: https://learn.microsoft.com/azure/ai-services/openai/reference.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swe_infer.errors import ConfigError
from swe_infer.options import Option
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.text import log_once
from swe_infer.types import ApiModel

logger = logging.getLogger(__name__)

_ENDPOINT_VARIABLE = "AZURE_OPENAI_ENDPOINT"
_KEY_VARIABLE = "AZURE_OPENAI_API_KEY"
_TOKEN_VARIABLE = "AZURE_OPENAI_AD_TOKEN"


@dataclass(kw_only=True, eq=False, repr=False)
class AzureOpenAI(OpenAIChat):
    """An Azure OpenAI resource. A Microsoft Entra token in AZURE_OPENAI_AD_TOKEN has priority over the key, as in the
    SDK, unless ``api_key_env`` names another variable.
    """

    counts_input: ClassVar[bool] = False
    address_env: ClassVar[str | None] = _ENDPOINT_VARIABLE
    responses_address: ClassVar[str] = (
        f" provider.base_url=https://NAME.openai.azure.com/openai/v1 provider.api_key_env={_KEY_VARIABLE}"
    )

    name: str = "azure_openai"
    base_url: Annotated[
        str | None,
        Option("The endpoint URL, such as https://NAME.openai.azure.com; null: AZURE_OPENAI_ENDPOINT.", "address"),
    ] = None
    api_key_env: Annotated[
        str | None,
        Option("The environment variable with the API key; AZURE_OPENAI_AD_TOKEN takes precedence.", "address"),
    ] = _KEY_VARIABLE
    api_version: Annotated[str, Option("Azure's api-version, unless model.api_version is set.", "answer")] = (
        "2024-10-21"
    )
    max_concurrency: int = 128
    pricing_id: str | None = "azure"
    send_cache_key: bool = False

    def own_address(self) -> str:
        return ""

    def _serves_openai_models(self) -> bool:
        return True

    def check_access(self) -> None:
        if not self.address:
            raise ConfigError(
                f"provider.base_url is not set: give the resource's endpoint there or in {_ENDPOINT_VARIABLE}, "
                "such as https://NAME.openai.azure.com"
            )
        super().check_access()
        if (token := os.environ.get(_TOKEN_VARIABLE)) and self.api_key_env is not None:
            if self._key() != token:
                unused = f"provider.api_key_env={self.api_key_env}: {_TOKEN_VARIABLE} is not used"
                log_once(logger, logging.WARNING, unused)
            elif os.environ.get(_KEY_VARIABLE):
                log_once(logger, logging.WARNING, f"{_KEY_VARIABLE} and {_TOKEN_VARIABLE} are set: the token is used")

    def _key_variable(self) -> str | None:
        if self.api_key_env == _KEY_VARIABLE and os.environ.get(_TOKEN_VARIABLE):
            return _TOKEN_VARIABLE
        return self.api_key_env

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {"params": {"api-version": model.api_version}} if model.api_version else {}

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        is_token = self._key_variable() == _TOKEN_VARIABLE
        client = openai.AsyncAzureOpenAI(
            azure_endpoint=self.address,
            api_key=None if is_token else key,
            azure_ad_token=key if is_token else None,
            api_version=self.api_version,
            max_retries=0,
            http_client=http,
        )
        return openai, client
