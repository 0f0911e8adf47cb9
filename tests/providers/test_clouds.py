"""Claude on Bedrock and Vertex AI: the clouds' own credentials over the real SDK clients, and what is missing."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swe_infer.errors import AuthenticationFailed, ConfigError, InvalidRequest, ModelNotFound, RateLimited
from swe_infer.providers.anthropic_bedrock import AnthropicBedrock
from swe_infer.providers.anthropic_vertex import AnthropicVertex
from swe_infer.providers.base import Answer
from swe_infer.providers.faults import classify
from swe_infer.providers.wire import WireProvider
from swe_infer.types import ApiModel
from tests.providers.conftest import HAVE_BOTO3, build, model_for, request_of
from tests.support.api_server import ApiServer
from tests.support.loopback import Handler, Server

AWS = {
    "AWS_ACCESS_KEY_ID": "AKIALOOPBACK",
    "AWS_SECRET_ACCESS_KEY": "planted0aws1secret2",
    "AWS_SESSION_TOKEN": "planted0session1token2",
    "AWS_EC2_METADATA_DISABLED": "true",
}
with_boto3 = pytest.mark.skipif(not HAVE_BOTO3, reason="the extra `bedrock` is not installed")


def ask(provider: WireProvider, model: ApiModel, times: int = 1) -> list[Answer]:
    async def life() -> list[Answer]:
        await provider.open()
        try:
            return [await provider.complete(request_of(), model, timeout_s=60) for _ in range(times)]
        finally:
            await provider.close()

    return asyncio.run(life())


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK")
    for name, value in AWS.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@with_boto3
@pytest.mark.usefixtures("aws")
def test_bedrock_requests_are_signed_with_aws_s_credentials(server: ApiServer) -> None:
    provider = build("bedrock", server)
    provider.check_access()
    model = ApiModel(name="global.anthropic.claude-sonnet-4-5-20250929-v1:0")
    (answer,) = ask(provider, model)
    (exchange,) = server.log.asked()
    assert exchange.path == f"/model/{model.name}/invoke"
    signature = exchange.headers["authorization"]
    assert re.match(r"AWS4-HMAC-SHA256 Credential=AKIALOOPBACK/\d{8}/eu-west-1/bedrock/aws4_request, ", signature)
    assert exchange.headers["x-amz-security-token"] == AWS["AWS_SESSION_TOKEN"]
    assert AWS["AWS_SECRET_ACCESS_KEY"] not in f"{exchange.headers}{provider!r}{vars(provider)}{answer}"
    assert answer.request_id == f"req_{exchange.number:08d}"
    assert answer.usage == exchange.usage


@with_boto3
@pytest.mark.usefixtures("aws")
def test_missing_aws_credentials_are_told_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match="no AWS credentials; set AWS_ACCESS_KEY_ID"):
        AnthropicBedrock().check_access()
    with pytest.raises(ConfigError, match=r"nobody"):
        AnthropicBedrock(profile="nobody").check_access()


def test_bedrock_without_a_region_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    AnthropicBedrock().check(model_for("bedrock"), request_of().decoding)  # a dry run goes without
    with pytest.raises(ConfigError, match=r"provider\.region is not set: .* AWS_REGION"):
        AnthropicBedrock().check_access()
    assert AnthropicBedrock(region="us-east-1").address == "https://bedrock-runtime.us-east-1.amazonaws.com"


def test_an_extra_that_is_not_installed_is_named_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setitem(sys.modules, "google.auth", None)
    AnthropicBedrock().check_access()  # a Bedrock API key needs none
    with pytest.raises(ConfigError, match=r"swe_infer\[bedrock\]"):
        AnthropicBedrock(stream="always").check(model_for("bedrock"), request_of().decoding)
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK")
    with pytest.raises(ConfigError, match=r"swe_infer\[bedrock\], or set AWS_BEARER_TOKEN_BEDROCK") as caught:
        AnthropicBedrock().check_access()
    assert "\n" not in str(caught.value)
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
    with pytest.raises(ConfigError, match=r"swe_infer\[vertex\], or set GOOGLE_OAUTH_ACCESS_TOKEN"):
        AnthropicVertex().check_access()


@pytest.mark.parametrize(
    ("body", "status", "kind", "error"),
    [
        ({"message": "no access"}, 403, "AccessDeniedException", AuthenticationFailed),
        ({"message": "The security token included in the request is expired"}, 403, "", AuthenticationFailed),
        ({"message": "The provided model identifier is invalid."}, 400, "ValidationException", ModelNotFound),
        ({"message": "Too many tokens, please wait"}, 429, "ThrottlingException", RateLimited),
        (
            [{"error": {"code": 429, "message": "RateLimiter!", "status": "RESOURCE_EXHAUSTED"}}],
            429,
            "",
            RateLimited,
        ),
        ({"error": {"code": 403, "message": "denied", "status": "PERMISSION_DENIED"}}, 403, "", AuthenticationFailed),
        ({"status": "blocked", "message": "a firewall's word"}, 403, "", InvalidRequest),
    ],
)
def test_the_clouds_wordings_are_known(body: Any, status: int, kind: str, error: type[Exception]) -> None:
    headers = {"x-amzn-errortype": f"{kind}:http://internal.amazon.com/"} if kind else {}
    if not kind and isinstance(body, dict) and "expired" in body.get("message", ""):
        headers = {"x-amzn-errortype": "ExpiredTokenException"}
    assert type(classify(status, body, headers, where="host, model")) is error


def test_a_signature_in_an_error_is_not_shown() -> None:
    message = "The Canonical String should have been 'POST x-amz-security-token:planted0 Signature=planted1'"
    headers = {"x-amzn-errortype": "InvalidSignatureException"}
    assert "planted" not in str(classify(403, {"message": message}, headers, where="host"))


@pytest.mark.parametrize(("name", "old"), [("bedrock", "bedrock-2023-05-31"), ("vertex", "vertex-2023-10-16")])
def test_the_version_stands_in_the_body_as_the_cloud_wants_it(server: ApiServer, name: str, old: str) -> None:
    provider = build(name, server)
    ask(provider, model_for(name, api_version="2023-06-01"))
    newer = model_for(name, api_version="2026-10-21", parameters=("stop",))
    with pytest.raises(ConfigError, match=r"does not support temperature"):
        provider.check(newer, request_of().decoding)
    asked = request_of(temperature=None)
    asyncio.run(_one(provider, asked, newer))
    versions = [exchange.body["anthropic_version"] for exchange in server.log.asked()]
    assert versions == [old, "2026-10-21"]
    assert all("model" not in exchange.body for exchange in server.log.asked())


async def _one(provider: WireProvider, request: Any, model: ApiModel) -> None:
    await provider.open()
    try:
        await provider.complete(request, model, timeout_s=60)
    finally:
        await provider.close()


# Google's credentials.


class TokenServer(Server):
    """Google's token endpoint: a new token for each request, or a refusal."""

    def __init__(self) -> None:
        super().__init__(_Tokens)
        self.given: list[str] = []
        self.lasts_s = 3600
        self.refuses = False


class _Tokens(Handler):
    server: TokenServer

    def respond(self) -> None:
        self.body()
        token = f"planted0google{len(self.server.given)}token"
        status: int = 400 if self.server.refuses else 200
        body: dict[str, Any] = {"access_token": token, "expires_in": self.server.lasts_s, "token_type": "Bearer"}
        if self.server.refuses:
            body = {"error": "invalid_grant", "error_description": "Invalid JWT Signature."}
        else:
            self.server.given.append(token)
        self.send(status, body)


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TokenServer]:
    """A service account's key file, whose token endpoint is on loopback."""
    pytest.importorskip("google.auth", reason="the extra `vertex` is not installed")
    rsa = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.rsa")
    from cryptography.hazmat.primitives import serialization

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, form, encryption).decode()
    with TokenServer() as tokens:
        account = {
            "type": "service_account",
            "project_id": "a-project",
            "private_key_id": "1",
            "private_key": pem,
            "client_email": "a@a-project.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": f"{tokens.url}/token",
        }
        path = tmp_path / "account.json"
        path.write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(path))
        monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
        yield tokens


def test_google_s_own_credentials_are_used_and_one_token_serves_all(server: ApiServer, google: TokenServer) -> None:
    provider = build("vertex", server)
    provider.check_access()
    ask(provider, model_for("vertex"), times=3)
    assert len(google.given) == 1
    sent = {exchange.headers["authorization"] for exchange in server.log.asked()}
    assert sent == {f"Bearer {google.given[0]}"}
    assert server.log.asked()[0].path == (
        "/v1/projects/a-project/locations/global/publishers/anthropic/models/claude-test:rawPredict"
    )
    assert "PRIVATE KEY" not in f"{provider!r}{vars(provider)}"
    assert google.given[0] not in f"{provider!r}{vars(provider)}"


def test_a_google_token_that_has_run_out_is_renewed(server: ApiServer, google: TokenServer) -> None:
    google.lasts_s = 1
    ask(build("vertex", server), model_for("vertex"), times=2)
    assert len(google.given) > 1
    assert server.log.asked()[-1].headers["authorization"] == f"Bearer {google.given[-1]}"


def test_credentials_that_google_refuses_stop_the_run_in_one_line(server: ApiServer, google: TokenServer) -> None:
    google.refuses = True
    with pytest.raises(AuthenticationFailed, match="invalid_grant") as caught:
        ask(build("vertex", server), model_for("vertex"))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert server.log.asked() == []


def test_vertex_without_a_project_or_credentials_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("google.auth", reason="the extra `vertex` is not installed")
    monkeypatch.delenv("GOOGLE_OAUTH_ACCESS_TOKEN")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"none\.json.*or set GOOGLE_OAUTH_ACCESS_TOKEN"):
        AnthropicVertex().check_access()
    monkeypatch.delenv("ANTHROPIC_VERTEX_PROJECT_ID")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(ConfigError, match=r"provider\.project is not set: .*ANTHROPIC_VERTEX_PROJECT_ID"):
        AnthropicVertex().check_access()
