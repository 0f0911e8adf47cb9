"""The HTTP transport to an address."""

from __future__ import annotations

import ssl
from typing import Any

from swe_infer.providers.environment import Proxy


def http_transport(
    max_concurrency: int, keep_alive_s: float, context: ssl.SSLContext | None = None, proxy: Proxy | None = None
) -> Any:
    """A transport of ``httpx2`` for ``max_concurrency`` requests at once.

    Args:
        context: for TLS; None: the system's.
        proxy: None: no proxy.
    """
    import httpx2

    from swe_infer.providers.http11 import Http11Transport

    through = None if proxy is None else httpx2.Proxy(proxy.url)
    return Http11Transport(max_concurrency, keep_alive_s, context or httpx2.create_ssl_context(), through)
