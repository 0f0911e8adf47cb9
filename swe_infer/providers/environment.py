"""What the environment says of the way to a provider: proxies, certificates, the variables that the SDKs document.

``docs/environment.md`` lists every variable and what becomes of it.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import re
import ssl
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError
from swe_infer.providers.faults import one_line

logger = logging.getLogger(__name__)

_SOCKS = ("socks5", "socks5h")
_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
"""A certificate's name in a directory that OpenSSL reads."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = frozenset(
    {
        *("authorization", "api-key", "x-api-key", "anthropic-version"),
        *("content-type", "content-length", "transfer-encoding", "host"),
    }
)
"""Headers that come from other settings, which a custom header must not replace."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the environment variable that names it. Its address may hold a password."""

    variable: str
    url: str

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()


# Addresses.


def address(configured: str | None, variable: str, default: str = "") -> str:
    """A server's address: what the configuration says, else the environment, else the vendor's own."""
    return configured or os.environ.get(variable) or default


def note_address(base_url: str, variable: str) -> None:
    """Say that the environment names the server, or that the configuration goes before it."""
    named = os.environ.get(variable)
    if not named:
        return
    host = urlsplit(base_url).netloc.rpartition("@")[2]
    if named.rstrip("/") == base_url.rstrip("/"):
        logger.info("%s names the server: %s", variable, host)
    else:
        logger.warning("provider.base_url names the server: %s; %s, which names another, is not used", host, variable)


# The way there.


def check_way(base_url: str, *, through_proxy: bool = True) -> None:
    """Refuse proxies and certificates that could not be used, if the way to ``base_url`` needs them.

    Raises:
        ConfigError: names the variable.
    """
    proxy = proxy_of(base_url) if through_proxy else None
    if proxy is not None:
        _check_proxy(proxy, base_url)
    if _is_encrypted(base_url, proxy):
        _check_certificates()


def proxy_of(base_url: str) -> Proxy | None:
    """The proxy that the environment names for an address; None where there is none.

    Raises:
        ConfigError: NO_PROXY cannot be read.
    """
    proxies = urllib.request.getproxies_environment()
    parts = urlsplit(base_url)
    for kind in (parts.scheme, "all"):
        url = proxies.get(kind)
        if url:
            if _goes_around(parts.scheme, parts.hostname or "", parts.port, proxies.get("no", "")):
                return None
            return Proxy(_variable(f"{kind}_proxy"), url if "://" in url else f"http://{url}")
    return None


def tls_context(base_url: str, proxy: Proxy | None) -> ssl.SSLContext:
    """The settings of TLS for an address, with the certificates that SSL_CERT_FILE or SSL_CERT_DIR names.

    Raises:
        ConfigError: TLS is needed, and what the variable names holds no certificates.
    """
    if not _is_encrypted(base_url, proxy):
        # Loading certificates takes a tenth of a second. Redirects, as to https, are not followed.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    import httpx2

    _check_certificates()
    return httpx2.create_ssl_context()


def check_bundle(variables: Iterable[str]) -> None:
    """Refuse a file of certificates that a cloud's library could not load. The first variable that is set counts.

    Raises:
        ConfigError: names the variable.
    """
    for variable in variables:
        if path := os.environ.get(variable):
            if not os.path.isdir(path):
                _check_file(variable, path)
            return


def _check_proxy(proxy: Proxy, base_url: str) -> None:
    # The value is not shown: it may hold a password, and a malformed one hides where.
    example = "such as http://proxy.example:3128"
    try:
        parts = urlsplit(proxy.url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0) and parts.path in ("", "/")
    except ValueError:
        named = False
    if not named or not proxy.url.isascii() or not proxy.url.isprintable() or " " in proxy.url:
        raise ConfigError(f"{proxy.variable} is no address of a proxy: set one {example}, or unset it")
    if proxy.scheme not in ("http", "https", *_SOCKS):
        raise ConfigError(
            f"{proxy.variable} names a proxy of the kind {proxy.scheme}: http, https, socks5 and socks5h are known"
        )
    if proxy.scheme in _SOCKS and importlib.util.find_spec("socksio") is None:
        raise ConfigError(
            f"{proxy.variable} names a SOCKS proxy, which needs the package socksio: pip install 'swe_infer[socks]'; "
            f"or unset it, or put {urlsplit(base_url).hostname} into NO_PROXY"
        )


def _is_encrypted(base_url: str, proxy: Proxy | None) -> bool:
    return base_url.startswith("https:") or (proxy is not None and proxy.scheme == "https")


def _check_certificates() -> None:
    if file := os.environ.get("SSL_CERT_FILE"):
        _check_file("SSL_CERT_FILE", file)
        return
    directories = os.environ.get("SSL_CERT_DIR")
    if directories and not any(map(_holds_certificates, directories.split(os.pathsep))):
        raise ConfigError(
            f"SSL_CERT_DIR={directories}: no such folder of certificates under the names that `openssl rehash` "
            "gives; name one, or unset it"
        )


def _check_file(variable: str, file: str) -> None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        raise ConfigError(f"{variable}={file}: holds no PEM certificates; name another, or unset it") from None
    except OSError as error:
        raise ConfigError(
            f"{variable}={file}: {error.strerror or 'cannot be read'}; name a file of PEM certificates, or unset it"
        ) from None


def _holds_certificates(directory: str) -> bool:
    try:
        return any(_HASHED.fullmatch(name) for name in os.listdir(directory))
    except OSError:
        return False


def _variable(lower: str) -> str:
    """How an environment variable is spelt: lower case goes before others, as everywhere."""
    return lower if os.environ.get(lower) else next(name for name in os.environ if name.lower() == lower)


def _goes_around(scheme: str, host: str, port: int | None, no_proxy: str) -> bool:
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
                f"{_variable('no_proxy')}: the entry {one_line(entry)} is no host, domain or network"
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
    """A network such as ``10.0.0.0/8``; a bare IPv6 address too, which is no host with a port."""
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
    """Raise ConfigError where a variable's value could not be sent as a header."""
    value = os.environ.get(variable, "")
    if not value.isascii() or (not value.isprintable() and value) or value != value.strip():
        raise ConfigError(f"{variable} holds blanks, line breaks or other characters that no header can hold")


def check_header_lines(variable: str) -> None:
    """Raise ConfigError where a variable of custom headers, ``NAME: VALUE`` in each line, holds a line of another
    form or a header that another setting decides. Values may be secrets, so they are not shown."""
    for number, line in enumerate(os.environ.get(variable, "").split("\n"), 1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if not colon or not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise ConfigError(f"{variable}: line {number} is no header; write one NAME: VALUE in each line")
        if name.lower() in _OWN_HEADERS:
            raise ConfigError(f"{variable}: {name} is set from the key and the configuration; leave it out")
