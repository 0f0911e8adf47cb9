"""What the environment says: proxies and certificates that cannot be used are refused before anything is sent, and
the variables that the SDKs document are honoured or refused."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import re
import ssl
from pathlib import Path
from typing import Any

import httpx2
import pytest

from swe_infer.api.retry import may_have_been_billed
from swe_infer.errors import AuthenticationFailed, ConfigError, ModelNotFound
from swe_infer.providers.base import Answer
from swe_infer.providers.environment import Proxy, check_connection_settings, proxy_of, tls_context
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.redaction import RedactingFormatter
from tests.providers.conftest import ANTHROPIC, CONF, PROVIDERS, SECRETS, build, model_for, request_of
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
BUNDLES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
BASE_URL = {
    **dict.fromkeys(("openai", "openai_responses", "openai_compatible"), "OPENAI_BASE_URL"),
    **dict.fromkeys(("anthropic", "anthropic_text"), "ANTHROPIC_BASE_URL"),
    "azure_openai": "AZURE_OPENAI_ENDPOINT",
    "bedrock": "ANTHROPIC_BEDROCK_BASE_URL",
    "vertex": "ANTHROPIC_VERTEX_BASE_URL",
}


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *(name.lower() for name in PROXIES), *BUNDLES, "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


def refusal(address: str = "https://host.example/v1") -> str:
    with pytest.raises(ConfigError) as refused:
        check_connection_settings(address)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def ask(name: str, server: ApiServer, **changes: Any) -> Answer:
    async def life() -> Answer:
        provider = build(name, server, **changes)
        provider.check_access()
        await provider.open()
        try:
            return await provider.complete(request_of(), model_for(name), timeout_s=30)
        finally:
            await provider.close()

    return asyncio.run(life())


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_named(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (
        "socks4://h:1",
        "ftp://h",
        "http://",
        "http://h:port",
        "http://h:99999",
        "h:x",
        "http:/h",
        "a b",
        "ü",
    ):
        monkeypatch.setenv(variable, value)
        assert variable in refusal(), value
    monkeypatch.setenv(variable, "socks4://user:planted-secret@h")
    assert "planted" not in refusal()


def test_only_what_the_way_needs_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks4://h")
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    check_connection_settings("http://host.example/v1")
    monkeypatch.setenv("NO_PROXY", "host.example")
    monkeypatch.delenv("SSL_CERT_FILE")
    check_connection_settings("https://host.example/v1")
    refusal("https://other.example/v1")
    check_connection_settings("https://other.example/v1", through_proxy=False)


@pytest.mark.parametrize("entry", ["[::1", "https://[x", "1.2.3.4/99", "host:port", "a b/8"])
def test_a_no_proxy_that_cannot_be_read_is_named(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", f"fine.example,{entry}")
    check_connection_settings("https://host.example/v1")  # there is no proxy to go around
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert "NO_PROXY" in refusal()


NO_PROXY = [
    ("https://host.example/v1", "host.example", True),
    ("https://host.example/v1", "example", True),
    ("https://host.example/v1", ".example", True),
    ("https://host.example/v1", "*.example", True),
    ("https://example/v1", ".example", False),
    ("https://host.example/v1", "st.example", False),
    ("https://host.example/v1", "x, *", True),
    ("https://host.example:8443/v1", "host.example:8443", True),
    ("https://host.example/v1", "host.example:8443", False),
    ("https://10.1.2.3/v1", "10.0.0.0/8", True),
    ("https://10.1.2.3/v1", "10.1.2.3", True),
    ("https://11.1.2.3/v1", "10.0.0.0/8", False),
    ("https://[::1]:8000/v1", "::1", True),
    ("https://[::1]:8000/v1", "[::1]", True),
    ("https://[fd00::1]:8000/v1", "fd00::/8", True),
    ("https://localhost:8000/v1", "localhost", True),
    ("https://host.example/v1", "https://host.example", True),
    ("https://host.example/v1", "http://host.example", False),
]


def test_no_proxy_means_what_it_means_to_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    wrong, context = [], ssl.create_default_context()
    for address, no_proxy, around in NO_PROXY:
        monkeypatch.setenv("NO_PROXY", no_proxy)
        client = httpx2.Client(verify=context)
        theirs = client._transport_for_url(httpx2.URL(address)) is client._transport
        if ((proxy_of(address) is None), theirs) != (around, around):
            wrong.append((address, no_proxy, proxy_of(address), theirs))
    assert not wrong


@pytest.mark.parametrize("name", ["openai", "anthropic"])
@pytest.mark.parametrize("max_concurrency", [4, 100])
def test_requests_go_through_the_proxy(name: str, max_concurrency: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loopback server is no proxy, but says what it was asked as one."""
    with ApiServer() as server:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("ALL_PROXY", "socks4://not-used")
        address = "http://host.example" + ("/v1" if name == "openai" else "")
        with pytest.raises(ModelNotFound, match=r"POST http://host\.example/v1"):
            ask(name, server, base_url=address, max_concurrency=max_concurrency)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert ask(name, server, max_concurrency=max_concurrency).text


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_the_credentials_is_named(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With https nothing of the request is sent: the proxy refuses the tunnel."""
    asked: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://user:secret@127.0.0.1:{port}")
            provider = OpenAIChat(base_url=f"{scheme}://host.example/v1")
            await provider.open()
            for _ in range(2):  # the second one does not go through the SDK
                with pytest.raises(AuthenticationFailed) as refused:
                    await provider.complete(request_of(), model_for("openai"), timeout_s=30)
                assert f"check user name and password in {scheme.upper()}_PROXY" in str(refused.value)
                assert "secret" not in str(refused.value)
                assert not may_have_been_billed(refused.value)
            await provider.close()

    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")
    asyncio.run(scenario())
    assert len(asked) == 2
    if scheme == "https":
        assert all(head.startswith(b"CONNECT host.example:443 ") for head in asked)


def test_a_socks_proxy_that_refuses_the_credentials_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\5\2")
        await reader.read(100)
        writer.write(b"\1\1")
        writer.close()

    async def scenario() -> None:
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as proxy:
            port = proxy.sockets[0].getsockname()[1]
            monkeypatch.setenv("ALL_PROXY", f"socks5://user:secret@127.0.0.1:{port}")
            provider = OpenAIChat(base_url="https://host.example/v1")
            provider.check_access()
            await provider.open()
            for _ in range(2):
                with pytest.raises(
                    AuthenticationFailed, match="check user name and password in ALL_PROXY"
                ) as refused:
                    await provider.complete(request_of(), model_for("openai"), timeout_s=30)
                assert "secret" not in str(refused.value)
                assert not may_have_been_billed(refused.value)
            await provider.close()

    monkeypatch.setenv("OPENAI_API_KEY", "sk-loopback")
    asyncio.run(scenario())


def test_certificates_are_loaded_where_the_way_is_encrypted() -> None:
    proxy = Proxy("HTTP_PROXY", "https://proxy.example:3129")
    for address, through, encrypted in (
        ("http://host.example/v1", None, False),
        ("https://host.example/v1", None, True),
        ("http://host.example/v1", proxy, True),
    ):
        context = tls_context(address, through)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert bool(context.get_ca_certs()) == encrypted


def test_certificates_that_are_not_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate\n")
    for value in ("/nowhere.pem", str(tmp_path), str(nothing)):
        monkeypatch.setenv("SSL_CERT_FILE", value)
        assert f"SSL_CERT_FILE={value}" in refusal()
    monkeypatch.setenv("HTTP_PROXY", "https://proxy.example:3129")
    assert "SSL_CERT_FILE" in refusal("http://host.example/v1")
    monkeypatch.delenv("SSL_CERT_FILE")
    for value in ("/nowhere", str(tmp_path)):
        monkeypatch.setenv("SSL_CERT_DIR", value)
        assert f"SSL_CERT_DIR={value}" in refusal()
    (tmp_path / "0123abcd.0").touch()
    check_connection_settings("https://host.example/v1")


def test_a_bundle_of_certificates_that_credentials_need_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("boto3")
    nothing = tmp_path / "nothing.pem"
    nothing.write_text("no certificate\n")
    bedrock = build("bedrock", base_url=None, api_key_env=None)
    for variable in ("REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"):  # the second one counts, where both are set
        for value in ("/nowhere.pem", str(nothing)):
            monkeypatch.setenv(variable, value)
            with pytest.raises(ConfigError, match=f"{variable}={value}: .* unset it"):
                bedrock.check_access()
    build("bedrock", base_url=None).check_access()  # with a key of Bedrock's own no credentials are looked for


@pytest.mark.parametrize("name", PROVIDERS)
def test_the_sdk_s_variable_names_the_server(
    name: str, server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    variable = BASE_URL.get(name) or build(name).address_env
    if variable is None:
        pytest.skip("no variable names this server")
    versioned = name.startswith("openai") or name == "vertex"
    monkeypatch.setenv(variable, server.openai_url if versioned else server.url)
    assert ask(name, server, base_url=None).text
    assert f"{variable} names the server" in caplog.text
    monkeypatch.setenv(variable, "http://127.0.0.1:9/v1")
    assert ask(name, server).text
    assert f"{variable}, which names another, is not used" in caplog.text
    monkeypatch.setenv(variable, "ftp://user:planted@host")
    with pytest.raises(ConfigError, match=variable) as refused:
        build(name, base_url=None).check_access()
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", PROVIDERS)
def test_custom_headers_are_sent_or_refused(name: str, server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "ANTHROPIC_CUSTOM_HEADERS" if name in ANTHROPIC else "OPENAI_CUSTOM_HEADERS"
    monkeypatch.setenv(variable, "X-Team: planted-blue-team\nX-Other: 1")
    ask(name, server)
    assert server.log.exchanges[-1].headers["x-team"] == "planted-blue-team"
    shown = RedactingFormatter("%(message)s").format(
        logging.LogRecord("x", logging.INFO, "", 0, "sent planted-blue-team", None, None)
    )
    assert "planted" not in shown
    for value in ("no colon", "a b: 1", "X-A: 1\nX-B", "X-A: \x01", "Authorization: planted", "x-api-key: planted"):
        monkeypatch.setenv(variable, value)
        with pytest.raises(ConfigError, match=variable) as refused:
            build(name, server).check_access()
        assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", ["openai", "openai_responses", "azure_openai"])
def test_organisation_and_project_are_sent_or_refused(
    name: str, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    ask(name, server)
    headers = server.log.exchanges[-1].headers
    assert (headers["openai-organization"], headers["openai-project"]) == ("org-1", "proj-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "two\nlines")
    with pytest.raises(ConfigError, match="OPENAI_PROJECT_ID"):
        build(name, server).check_access()


def test_azure_takes_a_token_and_a_version(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_VERSION", "2025-01-01-preview")
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", "planted-entra-token")
    ask("azure_openai", server)
    assert server.log.exchanges[-1].headers["authorization"] == "Bearer planted-entra-token"
    assert "AZURE_OPENAI_API_KEY and AZURE_OPENAI_AD_TOKEN are set: the token is used" in caplog.text
    assert vars(build("azure_openai", server))["api_version"] == "2025-01-01-preview"
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    ask("azure_openai", server)
    monkeypatch.setenv("MY_KEY", "another-key")
    ask("azure_openai", server, api_key_env="MY_KEY")
    assert server.log.exchanges[-1].headers["api-key"] == "another-key"
    assert "AZURE_OPENAI_AD_TOKEN is not used" in caplog.text


@pytest.mark.parametrize("name", ["anthropic", "anthropic_text"])
def test_anthropic_takes_a_token(
    name: str, server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ANTHROPIC_AUTH_TOKEN", "planted-bearer-token")
    ask(name, server)
    assert server.log.exchanges[-1].headers["authorization"] == f"Bearer {SECRETS['ANTHROPIC_API_KEY']}"
    assert "ANTHROPIC_AUTH_TOKEN is not" in caplog.text
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    ask(name, server)
    assert server.log.exchanges[-1].headers["authorization"] == "Bearer planted-bearer-token"
    monkeypatch.delenv("ANTHROPIC_AUTH_TOKEN")
    monkeypatch.setenv("ANTHROPIC_PROFILE", "work")
    with pytest.raises(ConfigError, match="ANTHROPIC_PROFILE is not supported"):
        build(name, server).check_access()


def test_vertex_takes_its_region_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build("vertex").address == "https://aiplatform.googleapis.com/v1"
    monkeypatch.setenv("CLOUD_ML_REGION", "europe-west1")
    assert build("vertex").address == "https://europe-west1-aiplatform.googleapis.com/v1"


def test_every_variable_that_the_sdks_read_is_documented() -> None:
    """So that a new version of an SDK that reads another one is noticed."""
    files = {
        "openai": ["__init__.py", "_client.py", "lib/_client_auth.py", "lib/azure.py", "_utils/_logs.py"],
        "anthropic": [
            "_client.py",
            "lib/_env.py",
            "lib/bedrock/_client.py",
            "lib/vertex/_client.py",
            "_utils/_logs.py",
            "lib/credentials/_constants.py",
        ],
    }
    read: set[tuple[str, str]] = set()
    for package, names in files.items():
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        for name in names:
            text = (Path(spec.origin).parent / name).read_text(encoding="utf-8")
            read |= set(re.findall(r'environ\.get\(\s*"([A-Z_]+)"|^ENV_\w+ = "([A-Z_]+)"', text, re.MULTILINE))
    variables = {name for pair in read for name in pair if name} - {"APPDATA"}  # of Windows
    assert {"OPENAI_BASE_URL", "ANTHROPIC_AUTH_TOKEN", "AZURE_OPENAI_AD_TOKEN"} <= variables
    documented = (CONF.parent / "docs" / "environment.md").read_text(encoding="utf-8")
    assert not {name for name in variables if f"`{name}`" not in documented}
