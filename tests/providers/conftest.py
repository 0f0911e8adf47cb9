"""The loopback server, keys in the environment, and every provider of ``conf/provider`` built from its YAML."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, ListConfig, OmegaConf

from swe_infer.providers.wire import WireProvider
from swe_infer.types import ApiModel, Decoding, Prompt, Request
from tests.support.api_server import ApiServer

CONF = Path(__file__).resolve().parent.parent.parent / "conf"
_TEXTS = {path.stem: path.read_text() for path in sorted((CONF / "provider").glob("*.yaml"))}
VENDORS = [
    name
    for name, text in _TEXTS.items()
    if "_target_: swe_infer.providers.openai_chat.OpenAIChat" in text and name not in ("openai", "openai_compatible")
]
"""Vendors and servers with OpenAI's chat API. Only their values differ from ``openai_compatible``."""
PROVIDERS = [
    name
    for name, text in _TEXTS.items()
    if "_target_: swe_infer.providers." in text and "\nbase_url:" in text and name not in VENDORS
]
"""Those that speak to a server at an address; not those that combine others, or that start a server."""
SECRETS = {
    "OPENAI_API_KEY": "sk-proj-planted0openai1secret2",
    "AZURE_OPENAI_API_KEY": "planted0azure1secret2",
    "ANTHROPIC_API_KEY": "sk-ant-planted0anthropic1secret2",
    "AWS_BEARER_TOKEN_BEDROCK": "planted0bedrock1secret2",
    "GOOGLE_OAUTH_ACCESS_TOKEN": "planted0vertex1secret2",
}
for path in (CONF / "provider").glob("*.yaml"):
    for variable in re.findall(r"^api_key_env: ([A-Z]\w*)", path.read_text(), re.MULTILINE):
        SECRETS.setdefault(variable, f"planted0{path.stem}1secret2")
PLACES = {"AWS_REGION": "eu-west-1", "ANTHROPIC_VERTEX_PROJECT_ID": "a-project"}
ANTHROPIC = ("anthropic", "anthropic_text", "bedrock", "vertex")
"""Those that speak to Claude."""
HAVE_BOTO3 = importlib.util.find_spec("boto3") is not None


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (SECRETS | PLACES).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1, with its key."""
    path = tmp_path_factory.mktemp("certificate") / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(path), "-keyout", str(path.with_name("key"))]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    path.write_text(path.read_text() + path.with_name("key").read_text())
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def server(shared_server: ApiServer) -> ApiServer:
    """The module's server, as new."""
    shared_server.reset()
    return shared_server


def build(name: str, server: ApiServer | None = None, **changes: Any) -> WireProvider:
    """The provider of ``conf/provider/NAME.yaml``, at the loopback server, with some keys changed."""
    loaded = OmegaConf.to_container(_parsed(name), resolve=True)  # the environment's variables, too
    assert isinstance(loaded, dict)
    keys: dict[str, Any] = {str(key): value for key, value in loaded.items()}
    module, _, attribute = keys.pop("_target_").rpartition(".")
    if server is not None:
        versioned = name.startswith("openai") or name == "vertex" or name in VENDORS
        keys["base_url"] = server.openai_url if versioned else server.url
        if name == "gemini":
            keys["base_url"] = server.gemini_url
    provider = getattr(importlib.import_module(module), attribute)(**{**keys, **changes})
    assert isinstance(provider, WireProvider)
    return provider


@functools.cache
def _parsed(name: str) -> DictConfig | ListConfig:
    """What :func:`build` reads a thousand times."""
    return OmegaConf.load(CONF / "provider" / f"{name}.yaml")


def model_for(provider: str, /, **changes: Any) -> ApiModel:
    facts: dict[str, Any] = {"name": "claude-test" if provider in ANTHROPIC else "gpt-test"}
    return ApiModel(**{**facts, **changes})


def request_of(
    user: str = "Fix the bug.\nNow.", system: str | None = "You fix bugs.", sample: int = 0, **decoding: Any
) -> Request:
    return Request("owner__name-1", sample, Prompt(system, user), Decoding(**{"max_new_tokens": 256, **decoding}))
