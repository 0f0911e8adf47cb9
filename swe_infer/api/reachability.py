"""Whether the addresses of a run can be reached.

An invalid address, a server that is not running or a rejected certificate is reported within seconds. After the first
connection, connection errors are transient, and :class:`swe_infer.api.retry.Retry` handles them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swe_infer.api.retry import never_connected
from swe_infer.errors import ProviderFatal
from swe_infer.providers.environment import proxy_of
from swe_infer.redaction import without_credentials

_TRIES = 3
"""Failed attempts at each address before the run stops."""


class Unreachable(ProviderFatal):
    """No request of the run has ever connected."""


class Reachability:
    """Failed attempts to connect to the addresses ``base_urls`` of one run."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        self._failures = dict.fromkeys(base_urls, 0)
        self.connected = False
        """Whether any request has connected."""
        self.probe_lock = asyncio.Lock()
        """Held by the one request that tries to connect while :meth:`is_doubtful`."""

    def is_doubtful(self) -> bool:
        """Whether a request failed to connect and none has connected yet."""
        return not self.connected and any(self._failures.values())

    def failed_attempts(self, base_url: str) -> int:
        """Consecutive failed attempts at ``base_url``."""
        return self._failures[base_url]

    def pause_s(self, base_url: str) -> float:
        """Seconds to wait before the next attempt at ``base_url``: 1, 2, …"""
        return float(self._failures[base_url])

    def record(self, base_url: str, error: BaseException | None, *, tries: int = 1) -> None:
        """Records how a request ended.

        Args:
            error: None: it was answered.
            tries: consecutive attempts at this address; concurrent ones count as one.

        Raises:
            Unreachable: instead of ``error``, after the last attempt.
        """
        if self.connected or error is None or not never_connected(error):
            self.connected = self.connected or error is None or isinstance(error, Exception)
            return
        self._failures[base_url] = max(tries, self._failures[base_url])
        if min(self._failures.values()) >= _TRIES:
            addresses = " and ".join(map(without_credentials, self._failures))
            proxies = sorted({proxy.variable for url in self._failures if (proxy := proxy_of(url)) is not None})
            way = f"the proxy in {' and '.join(proxies)}" if proxies else "any proxy"
            raise Unreachable(
                f"provider.base_url={addresses}: nothing could connect ({error}); check the address, that the server "
                f"is running, and {way}, firewall or certificate on the way"
            ) from error
