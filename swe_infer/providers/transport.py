"""The HTTP transport of an SDK's client."""

from __future__ import annotations

import ssl
from typing import Any

from swe_infer.providers.environment import Proxy


def transport_settings(
    max_concurrency: int, keep_alive_s: float, context: ssl.SSLContext | None = None, proxy: Proxy | None = None
) -> dict[str, Any]:
    """Settings of an ``httpx2.AsyncClient`` for ``max_concurrency`` requests at once.

    Args:
        context: for TLS; None: the system's.
        proxy: None: no proxy. The client does not read proxies from the environment, because it would refuse an
            invalid one that this address does not use.
    """
    import httpx2

    from swe_infer.providers.http11 import Http11Transport, tcp_options

    verify = context or httpx2.create_ssl_context()
    if proxy is None or not proxy.is_socks:
        through = None if proxy is None else httpx2.Proxy(proxy.url)
        return {"transport": Http11Transport(max_concurrency, keep_alive_s, verify, through), "trust_env": False}
    limits = httpx2.Limits(
        max_connections=max_concurrency,
        max_keepalive_connections=max_concurrency,
        keepalive_expiry=keep_alive_s,
    )
    transport = httpx2.AsyncHTTPTransport(
        limits=limits, verify=verify, proxy=httpx2.Proxy(proxy.url), socket_options=tcp_options()
    )
    return {"transport": transport, "trust_env": False}
