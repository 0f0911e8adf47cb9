"""Environment variables for the connection to a provider: proxies, certificates, and those that the SDKs document.

``docs/environment.md`` lists every variable and its effect.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.providers.faults import one_line
from swe_infer.redaction import without_secrets
from swe_infer.text import log_once

logger = logging.getLogger(__name__)

_SOCKS = ("socks5", "socks5h")
REFUSED_CREDENTIALS = "the SOCKS proxy refuses user name and password"
"""The message of the error."""
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
"""The name of a certificate file in a directory for OpenSSL."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = frozenset(
    {
        *("authorization", "api-key", "x-api-key", "anthropic-version"),
        *("content-type", "content-length", "transfer-encoding", "host"),
    }
)
"""Headers that other settings decide; custom headers must not replace them."""


_SECRET_HEADER = re.compile(
    r"(?:^|[-_])(?:auth\w*|(?:api|access|subscription)?key|\w*token|secret|cookie|password|credentials?)(?:$|[-_])",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"(?:bearer|basic)\s|\bsk-\w", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and the environment variable that names it. Its URL may contain a password."""

    variable: str
    url: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()


# Addresses.


def address(configured: str | None, variable: str, default: str = "") -> str:
    """The server's address: from the configuration, else the environment, else ``default``."""
    return configured or os.environ.get(variable) or default


def note_address(base_url: str, variable: str) -> None:
    """Logs that the environment names the server, or that the configuration overrides it."""
    named = os.environ.get(variable)
    if not named:
        return
    host = urlsplit(base_url).netloc.rpartition("@")[2]
    if named.rstrip("/") == base_url.rstrip("/"):
        log_once(logger, logging.INFO, f"{variable} names the server: {host}")
    else:
        unused = f"{variable}, which names another, is not used"
        log_once(logger, logging.WARNING, f"provider.base_url names the server: {host}; {unused}")


# The connection.


def check_connection_settings(base_url: str, *, through_proxy: bool = True) -> None:
    """Checks the proxy and certificates that a connection to ``base_url`` needs.

    Raises:
        ConfigError: names the variable.
    """
    proxy = proxy_of(base_url) if through_proxy else None
    if proxy is not None:
        _check_proxy(proxy, base_url)
    if _is_encrypted(base_url, proxy):
        _check_certificates()


def proxy_of(base_url: str) -> Proxy | None:
    """The proxy in the environment for an address, or None.

    Raises:
        ConfigError: NO_PROXY cannot be read.
    """
    proxies = urllib.request.getproxies_environment()
    parts = urlsplit(base_url)
    for kind in (parts.scheme, "all"):
        url = proxies.get(kind)
        if url:
            if _bypasses_proxy(parts.scheme, parts.hostname or "", parts.port, proxies.get("no", "")):
                return None
            return Proxy(_variable(f"{kind}_proxy"), url if "://" in url else f"http://{url}")
    return None


def tls_context(base_url: str, proxy: Proxy | None) -> ssl.SSLContext:
    """The TLS settings for an address, with the certificates in SSL_CERT_FILE or SSL_CERT_DIR.

    Raises:
        ConfigError: TLS is needed, and the file or directory has no certificates.
    """
    if not _is_encrypted(base_url, proxy):
        # Loading certificates takes a tenth of a second. Redirects, as to https, are not followed.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    import httpx2

    _check_certificates()
    return httpx2.create_ssl_context()


def check_bundle(variables: Iterable[str]) -> None:
    """Checks that a cloud's library can load the certificates in the first variable that is set.

    Raises:
        ConfigError: names the variable.
    """
    for variable in variables:
        if path := os.environ.get(variable):
            if not os.path.isdir(path):
                _check_file(variable, path)
            return


def _check_proxy(proxy: Proxy, base_url: str) -> None:
    # The value is not shown: it may contain a password anywhere if it is malformed.
    example = "such as http://proxy.example:3128"
    try:
        parts = urlsplit(proxy.url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0) and parts.path in ("", "/")
    except ValueError:
        named = False
    if not named or not proxy.url.isascii() or not proxy.url.isprintable() or " " in proxy.url:
        raise ConfigError(f"{proxy.variable} is not the address of a proxy: set one {example}, or unset it")
    if proxy.scheme not in ("http", "https", *_SOCKS):
        raise ConfigError(
            f"{proxy.variable} names a proxy with the scheme {proxy.scheme}: must be http, https, socks5 or socks5h"
        )


def _is_encrypted(base_url: str, proxy: Proxy | None) -> bool:
    return base_url.startswith("https:") or (proxy is not None and proxy.scheme == "https")


def _check_certificates() -> None:
    if file := os.environ.get("SSL_CERT_FILE"):
        _check_file("SSL_CERT_FILE", file)
        return
    directories = os.environ.get("SSL_CERT_DIR")
    if directories and not any(map(_has_certificates, directories.split(os.pathsep))):
        raise ConfigError(
            f"SSL_CERT_DIR={directories}: no directory with certificates named by `openssl rehash`; name "
            "one, or unset it"
        )


def _check_file(variable: str, file: str) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise ConfigError(f"{variable}={file}: has no PEM certificates; name another file, or unset it") from None
    except OSError as error:
        raise ConfigError(
            f"{variable}={file}: {error.strerror or 'cannot be read'}; name a file of PEM certificates, or unset it"
        ) from None


def _has_certificates(directory: str) -> bool:
    try:
        return any(_HASHED.fullmatch(name) for name in os.listdir(directory))
    except OSError:
        return False


def _variable(lower: str) -> str:
    """The spelling of an environment variable that is set; lower case has priority, as in other programs."""
    return lower if os.environ.get(lower) else next(name for name in os.environ if name.lower() == lower)


def _bypasses_proxy(scheme: str, host: str, port: int | None, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, a domain above it or its network, with this port or none."""
    for entry in filter(None, map(str.strip, no_proxy.split(","))):
        if entry == "*":
            return True
        try:
            kind, _, rest = entry.rpartition("://")
            if kind not in ("", "all", scheme):
                continue
            if (network := _network(rest)) is not None:
                if (address := _ip(host)) is not None and address in network:
                    return True
                continue
            parts = urlsplit(f"//{rest}")
            name, wanted_port = (parts.hostname or "").removeprefix("*"), parts.port
        except ValueError:
            raise ConfigError(
                f"{_variable('no_proxy')}: the entry {one_line(entry)} is not a host, domain or network"
            ) from None
        if not name or wanted_port not in (None, port):
            continue
        if (named := _ip(name)) is not None:
            if named == _ip(host):
                return True
        elif host.endswith(name if name.startswith(".") else f".{name}") or host == name:
            return True
    return False


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """A network such as ``10.0.0.0/8``, or a bare IPv6 address."""
    if "/" not in text and text.count(":") < 2:
        return None
    inner = re.sub(r"\[([^]]*)\]", r"\1", text) if re.fullmatch(r"\[[^]]*\](/\d+)?", text) else text
    return None if text.startswith("[") and inner is text else ipaddress.ip_network(inner, strict=False)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


# Headers from the environment.


def check_header_value(variable: str) -> None:
    """Raises ConfigError if a variable's value cannot be sent as a header."""
    value = os.environ.get(variable, "")
    if not value.isascii() or (not value.isprintable() and value) or value != value.strip():
        raise ConfigError(f"{variable} has blanks, line breaks or other characters that a header cannot have")


def check_header_lines(variable: str) -> None:
    """Raises ConfigError if a variable of custom headers (``NAME: VALUE`` per line) has an invalid line or a header
    that another setting decides. Values are not shown, because they may be secrets."""
    for number, line in enumerate(os.environ.get(variable, "").split("\n"), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise ConfigError(f"{variable}: line {number} is not a header; write NAME: VALUE on each line")
        if name.lower() in _OWN_HEADERS:
            raise ConfigError(f"{variable}: {name} is set from the key and the configuration; leave it out")


def check_headers(headers: Mapping[str, str], variable: str | None) -> None:
    """Checks ``provider.headers``.

    Args:
        variable: the environment variable of custom headers, which may be secret; None: there is none.

    Raises:
        ConfigError: a header is invalid, is set from other keys, or seems to be a secret.
    """
    for name, value in headers.items():
        key = f"provider.headers.{one_line(name)}"
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{key}: is not the name of a header")
        if not value.isascii() or not value.isprintable() or not value or value != value.strip():
            raise ConfigError(f"{key}: must be ASCII characters, without line breaks or blanks around them")
        if _SECRET_HEADER.search(name) or _SECRET_VALUE.search(value) or without_secrets(value) != value:
            elsewhere = f", and other secret headers into {variable}" if variable is not None else ""
            raise ConfigError(
                f"{key}: seems to be a secret, and the run directory would show it; put the API key into the "
                f"variable that provider.api_key_env names{elsewhere}"
            )
        if name.lower() in _OWN_HEADERS:
            raise ConfigError(f"{key}: is set from other keys, such as provider.api_key_env and model.api_version")
