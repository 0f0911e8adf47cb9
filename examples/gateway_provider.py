"""A custom provider: a server with an HTTP interface that swe_infer does not support.

It consists of this file and ``conf/provider/gateway.yaml``. ``examples/own_provider.sh`` runs it.

The class translates one request to HTTP and one response back, and maps failures to error classes. ``swe_infer.api``,
which calls ``complete``, does retries, rate limits, the budget, prices and the response cache.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import httpx

from swe_infer.errors import (
    AuthenticationFailed,
    ConfigError,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    RateLimited,
    RequestError,
    TransientError,
)
from swe_infer.options import Option
from swe_infer.providers.base import Answer, Provider
from swe_infer.types import ApiModel, Decoding, FinishReason, Request, Usage

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass(kw_only=True, eq=False)
class GatewayProvider(Provider):
    """Each field is a key of ``conf/provider/gateway.yaml``. Its ``Option`` documents the key, and says whether a
    change of the value starts another run (``answer``) or resumes the same one."""

    name: Annotated[str, Option("The vendor's name in messages and records.", "answer")] = "gateway"
    base_url: Annotated[str | None, Option("The URL of the gateway.", "address")] = None
    api_key_env: Annotated[str, Option("The environment variable with the API key.", "address")] = "GATEWAY_API_KEY"
    team: Annotated[str, Option("The team that the gateway bills.", "reporting")] = "research"
    max_concurrency: Annotated[int, Option("Maximum number of concurrent requests.", "speed")] = 16
    timeout_s: Annotated[float, Option("Timeout of one request in seconds.", "speed")] = 300.0
    pricing_id: Annotated[str, Option("The provider's name in genai-prices.", "reporting")] = "openai"
    mode: Annotated[Literal["live"], Option("This gateway has no batches.", "speed")] = "live"

    def __post_init__(self) -> None:
        self.address = self.base_url or ""

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        if decoding.stop:
            raise ConfigError("decoding.stop: the gateway does not support stop strings; set decoding.stop=[]")

    def check_access(self) -> None:
        if not self.base_url:
            raise ConfigError("provider.base_url is missing: set it to the URL of the gateway")
        if not os.environ.get(self.api_key_env):
            raise ConfigError(f"{self.api_key_env} is not set: put the API key into that environment variable")

    async def open(self) -> None:
        headers = {"authorization": f"Bearer {os.environ[self.api_key_env]}", "x-team": self.team}
        self._client = httpx.AsyncClient(base_url=self.address, headers=headers)

    async def close(self) -> None:
        await self._client.aclose()

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        decoding = request.decoding
        body: dict[str, Any] = {
            "model": model.name,
            "messages": [{"role": "user", "content": request.prompt.text}],
            "max_tokens": decoding.max_new_tokens,
        }
        if decoding.temperature is not None:
            body["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            body["top_p"] = decoding.top_p
        try:
            response = await self._client.post("/chat/completions", json=body, timeout=timeout_s)
        except httpx.TransportError as error:
            raise TransientError(f"{self.name}: {type(error).__name__}") from error
        if response.is_error:
            raise self._error(response)
        try:
            return self._answer(response.json())
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise TransientError(f"{self.name}: the answer cannot be read") from error

    def _answer(self, body: dict[str, Any]) -> Answer:
        choice, usage = body["choices"][0], body["usage"]
        return Answer(
            text=choice["message"]["content"],
            finish_reason=_FINISH.get(choice["finish_reason"], "other"),
            usage=Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
            model=body["model"],
        )

    def _error(self, response: httpx.Response) -> RequestError:
        """The class of an error decides whether ``swe_infer.api`` retries and whether the run continues."""
        message, status = f"{self.name}: HTTP {response.status_code}", response.status_code
        if status == 429:
            wait = response.headers.get("retry-after", "")
            return RateLimited(message, retry_after_s=float(wait) if wait.isdecimal() else None)
        if status == 503:
            return Overloaded(message, status=status)
        if status >= 500:
            return TransientError(message, status=status)
        if status in (401, 403):
            return AuthenticationFailed(message, status=status)
        if status == 404:
            return ModelNotFound(message, status=status)
        return InvalidRequest(message, status=status)
