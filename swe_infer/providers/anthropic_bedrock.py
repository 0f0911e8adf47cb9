"""Claude on Amazon Bedrock: Messages, signed with AWS credentials or sent with a Bedrock API key.

Formats: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html and the
API reference of InvokeModel and InvokeModelWithResponseStream.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swe_infer.errors import AuthenticationFailed, ConfigError, RequestError
from swe_infer.options import Option
from swe_infer.providers.anthropic_cloud import AnthropicCloud, first_set
from swe_infer.providers.checks import check_key
from swe_infer.providers.environment import check_bundle
from swe_infer.providers.faults import one_line
from swe_infer.types import ApiModel, Decoding

_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_ADDRESS_VARIABLE = "ANTHROPIC_BEDROCK_BASE_URL"
_EXTRA = "install the extra swe_infer[bedrock]"


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicBedrock(AnthropicCloud):
    """Claude in one region of Bedrock, without Message Batches.

    If ``api_key_env`` is None or not set, requests are signed with AWS's default credentials (environment, profile,
    role of the machine).
    """

    address_env: ClassVar[str | None] = _ADDRESS_VARIABLE
    priced_by_name: ClassVar[bool] = True  # prices depend on the region

    has_events: ClassVar[bool] = False  # streams consist of frames, whose length botocore limits

    body_version: ClassVar[str] = "bedrock-2023-05-31"

    name: str = "bedrock"
    base_url: Annotated[
        str | None,
        Option("The endpoint URL; null: ANTHROPIC_BEDROCK_BASE_URL, or the region's default.", "address"),
    ] = None
    region: Annotated[str | None, Option("AWS region; null: AWS_REGION or AWS_DEFAULT_REGION.", "address")] = None
    api_key_env: Annotated[
        str | None,
        Option("The environment variable with a Bedrock API key; if it is not set: AWS credentials.", "address"),
    ] = "AWS_BEARER_TOKEN_BEDROCK"
    profile: Annotated[str | None, Option("A profile in AWS's configuration files.", "address")] = None
    pricing_id: str | None = "aws"

    def __post_init__(self) -> None:
        self._region = self.region or first_set(_REGION_VARIABLES)
        super().__post_init__()

    def own_address(self) -> str:
        return f"https://bedrock-runtime.{self._region}.amazonaws.com" if self._region else ""

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if self.streams({"max_tokens": decoding.max_new_tokens}) and not _has_boto3():
            raise ConfigError(f"provider.stream={self.stream}: Bedrock's streams need boto3; {_EXTRA}")

    def check_access(self) -> None:
        """Raises ConfigError if there is no region or no credentials. AWS's library may look for credentials in
        files, other programs, and the machine's metadata service."""
        if not self._region:
            raise ConfigError(f"provider.region is not set: name AWS's region there or in {_REGION_VARIABLES[0]}")
        self._check_environment()
        if self._key():
            check_key(self.api_key_env)
            return
        key = f", or set {self.api_key_env}" if self.api_key_env else ""
        if not _has_boto3():
            raise ConfigError(f"provider.name={self.name}: AWS credentials need boto3; {_EXTRA}{key}")
        check_bundle(("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"))  # AWS's library may ask for credentials over TLS
        import boto3
        from botocore.exceptions import BotoCoreError

        try:
            found = boto3.Session(profile_name=self.profile).get_credentials()
        except BotoCoreError as error:
            raise ConfigError(f"provider.name={self.name}: {one_line(str(error))}") from None
        if found is None:
            raise ConfigError(
                f"provider.name={self.name}: no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                f"name a profile in provider.profile{key}"
            )

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import anthropic

        client = anthropic.AsyncAnthropicBedrock(
            aws_region=self._region, base_url=self.address, max_retries=0, http_client=http
        )
        # Not as arguments: the client would read another key from the environment, and refuse a profile with it.
        client.api_key, client.aws_profile = self._key(), self.profile
        return anthropic, client

    def _foreign_error(self, error: Exception, where: str) -> RequestError | None:
        """Credentials may expire during the run, and a stream may be broken."""
        module = type(error).__module__
        if module == "botocore.exceptions" or "AWS credentials" in str(error):
            return AuthenticationFailed(one_line(f"{where}: {error}", self._key()))
        if module.startswith("botocore."):
            return self._unreadable(f"a broken stream ({type(error).__name__})", where, {})
        return None


def _has_boto3() -> bool:
    return importlib.util.find_spec("boto3") is not None
