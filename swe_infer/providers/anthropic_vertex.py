"""Claude on Google Cloud's Vertex AI: Messages under the address of a project and a location.

Format: https://cloud.google.com/vertex-ai/generative-ai/docs/partner-models/claude/use-claude.
"""

from __future__ import annotations

import asyncio
import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swe_infer.errors import AuthenticationFailed, ConfigError, RequestError, TransientError
from swe_infer.options import Option
from swe_infer.providers.anthropic_cloud import AnthropicCloud, first_set
from swe_infer.providers.checks import check_key
from swe_infer.providers.environment import check_bundle
from swe_infer.providers.faults import one_line

_PROJECT_VARIABLES = ("ANTHROPIC_VERTEX_PROJECT_ID", "GOOGLE_CLOUD_PROJECT")
_ADDRESS_VARIABLE = "ANTHROPIC_VERTEX_BASE_URL"
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_HOSTS = {
    "global": "aiplatform.googleapis.com",
    "us": "aiplatform.us.rep.googleapis.com",
    "eu": "aiplatform.eu.rep.googleapis.com",
}


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicVertex(AnthropicCloud):
    """Claude in one location of Vertex AI, without Message Batches.

    If ``api_key_env`` is None or not set, Google's Application Default Credentials are used and renewed. An access
    token expires after an hour.
    """

    address_env: ClassVar[str | None] = _ADDRESS_VARIABLE
    body_version: ClassVar[str] = "vertex-2023-10-16"

    name: str = "vertex"
    base_url: Annotated[
        str | None,
        Option("The URL, with /v1; null: ANTHROPIC_VERTEX_BASE_URL, or the location's default.", "address"),
    ] = None
    project: Annotated[
        str | None,
        Option("Google Cloud project; null: ANTHROPIC_VERTEX_PROJECT_ID or GOOGLE_CLOUD_PROJECT.", "address"),
    ] = None
    region: Annotated[str, Option("The location, such as global or europe-west1.", "address")] = "global"
    api_key_env: Annotated[
        str | None,
        Option("The environment variable with an access token; if it is not set: Google's credentials.", "address"),
    ] = "GOOGLE_OAUTH_ACCESS_TOKEN"
    pricing_id: str | None = "google"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.region:
            raise ConfigError("provider.region is empty: name a location, such as global")
        self._project = self.project or first_set(_PROJECT_VARIABLES)
        self._credentials: Any = None

    def own_address(self) -> str:
        return f"https://{_HOSTS.get(self.region, f'{self.region}-aiplatform.googleapis.com')}/v1"

    def check_access(self) -> None:
        """Raises ConfigError if there is no project or no credentials. Google's library may look for credentials in
        files and the machine's metadata service."""
        if not self._project:
            raise ConfigError(
                f"provider.project is not set: name Google Cloud's project there or in {_PROJECT_VARIABLES[0]}"
            )
        self._check_environment()
        if self._key():
            check_key(self.api_key_env)
        else:
            check_bundle(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))  # Google's library uses requests to get tokens
            self._found()

    async def open(self) -> None:
        """Creates the client, and gets a first token if Google's credentials are used.

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
            project_id=self._project or "",
            access_token=self._key() or None,
            credentials=self._credentials,
            base_url=self.address,
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
        """A token could not be renewed, permanently or temporarily."""
        if not type(error).__module__.startswith("google.auth"):
            return None
        message = one_line(f"{where}: {error}", self._key())
        return TransientError(message) if getattr(error, "retryable", False) else AuthenticationFailed(message)
