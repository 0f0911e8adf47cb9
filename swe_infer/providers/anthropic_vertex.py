"""Claude on Google Cloud's Vertex AI: Messages under the address of a project and a location.

Format: https://cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/use-claude.
"""

from __future__ import annotations

import asyncio
import importlib.util
from typing import Any, ClassVar, Literal

from swe_infer.errors import AuthenticationFailed, ConfigError, RequestError, TransientError
from swe_infer.providers.anthropic_cloud import AnthropicCloud, first_set
from swe_infer.providers.checks import check_key
from swe_infer.providers.environment import address, check_bundle
from swe_infer.providers.faults import one_line

__all__ = ["AnthropicVertex"]

_PROJECT_VARIABLES = ("ANTHROPIC_VERTEX_PROJECT_ID", "GOOGLE_CLOUD_PROJECT")
_ADDRESS_VARIABLE = "ANTHROPIC_VERTEX_BASE_URL"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_HOSTS = {
    "global": "aiplatform.googleapis.com",
    "us": "aiplatform.us.rep.googleapis.com",
    "eu": "aiplatform.eu.rep.googleapis.com",
}


class AnthropicVertex(AnthropicCloud):
    """Claude in one location of Vertex AI, which has no batches of Anthropic's kind.

    Args:
        project: of Google Cloud; None: from ANTHROPIC_VERTEX_PROJECT_ID or GOOGLE_CLOUD_PROJECT.
        region: the location, such as ``global`` or ``europe-west1``.
        base_url: None: from ANTHROPIC_VERTEX_BASE_URL, or the location's own endpoint.
        api_key_env: the environment variable of an access token, which lasts an hour; where it is None or not set,
            Google's Application Default Credentials are used, and renewed.
        stream: ``auto`` streams where the output bound is so long that a silent connection would be cut.
        cache_ttl: how long a cached prompt is kept.
    """

    address_env: ClassVar[str | None] = _ADDRESS_VARIABLE
    body_version: ClassVar[str] = "vertex-2023-10-16"

    def __init__(
        self,
        *,
        name: str = "vertex",
        project: str | None = None,
        region: str = "global",
        base_url: str | None = None,
        api_key_env: str | None = "GOOGLE_OAUTH_ACCESS_TOKEN",
        max_concurrency: int = 64,
        timeout_s: float = 1200.0,
        pricing_id: str = "google",
        mode: Literal["live", "batch"] = "live",
        stream: Literal["auto", "always", "never"] = "auto",
        cache_ttl: Literal["5m", "1h"] = "5m",
    ) -> None:
        host = _HOSTS.get(region, f"{region}-aiplatform.googleapis.com")
        super().__init__(
            name=name,
            base_url=address(base_url, _ADDRESS_VARIABLE, f"https://{host}/v1"),
            api_key_env=api_key_env,
            max_concurrency=max_concurrency,
            timeout_s=timeout_s,
            pricing_id=pricing_id,
            mode=mode,
            stream=stream,
            cache_ttl=cache_ttl,
        )
        if not region:
            raise ConfigError("provider.region is empty: name a location, such as global")
        self.region = region
        self.project = project or first_set(_PROJECT_VARIABLES)
        self._credentials: Any = None

    def check_access(self) -> None:
        """Raise ConfigError where there is no project or there are no credentials. Google's library may look for
        those in files and at the machine's own metadata service."""
        if not self.project:
            raise ConfigError(
                f"provider.project is not set: name Google Cloud's project there or in {_PROJECT_VARIABLES[0]}"
            )
        self._check_environment()
        if self._key():
            check_key(self.api_key_env)
        else:
            check_bundle(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))  # Google's library asks for tokens with requests
            self._found()

    async def open(self) -> None:
        """Create the client, and have a first token where Google's credentials are used.

        Raises:
            AuthenticationFailed: Google refuses the credentials.
        """
        if not self._key():
            self._credentials = self._found()
            from google.auth.exceptions import GoogleAuthError
            from google.auth.transport.requests import Request as Transport

            try:
                await asyncio.to_thread(self._credentials.refresh, Transport())
            except GoogleAuthError as error:
                raise AuthenticationFailed(one_line(f"Google Cloud: {error}")) from None
        await super().open()

    async def close(self) -> None:
        self._credentials = None
        await super().close()

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import anthropic

        client = anthropic.AsyncAnthropicVertex(
            region=self.region,
            project_id=self.project or "",
            access_token=self._key() or None,
            credentials=self._credentials,
            base_url=self.base_url,
            max_retries=0,
            http_client=http,
        )
        return anthropic, client

    def _found(self) -> Any:
        """Google's Application Default Credentials."""
        key = f", or set {self.api_key_env} to an access token" if self.api_key_env else ""
        if importlib.util.find_spec("google") is None or importlib.util.find_spec("google.auth") is None:
            raise ConfigError(
                f"provider.name={self.name}: Google's credentials need google-auth; install the extra "
                f"swe_infer[vertex]{key}"
            )
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        try:
            return google.auth.default(scopes=[_SCOPE])[0]
        except (GoogleAuthError, ValueError) as error:
            raise ConfigError(f"provider.name={self.name}: {one_line(str(error))}{key}") from None

    def _foreign_error(self, error: Exception, where: str) -> RequestError | None:
        """A token that could not be renewed, for good or for the moment."""
        if not type(error).__module__.startswith("google.auth"):
            return None
        told = one_line(f"{where}: {error}", self._key())
        return TransientError(told) if getattr(error, "retryable", False) else AuthenticationFailed(told)
