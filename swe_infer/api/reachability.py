"""Whether anything can be reached at the addresses of a run.

A wrong address, a server that is not running or a refused certificate should be said within seconds. Once a single
request has connected, a broken connection is a fault that may pass, and :class:`swe_infer.api.retry.Retry` has the
patience for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from swe_infer.api.retry import never_connected
from swe_infer.errors import ProviderFatal
from swe_infer.redaction import without_credentials

_TRIES = 3
"""At each address."""


class Unreachable(ProviderFatal):
    """No request of the run has ever connected."""


class Reachability:
    """What is known of the addresses ``base_urls``, at all of which the same run may ask."""

    def __init__(self, base_urls: Sequence[str]) -> None:
        self._failures = dict.fromkeys(base_urls, 0)
        self.proven = False
        """Whether a request has connected."""
        self.turn = asyncio.Lock()
        """Held by the one request that tries while :meth:`is_doubtful`."""

    def is_doubtful(self) -> bool:
        """Whether a request failed to connect and none ever has connected."""
        return not self.proven and any(self._failures.values())

    def tries(self, base_url: str) -> int:
        """Failed tries at ``base_url``, one after the other."""
        return self._failures[base_url]

    def pause_s(self, base_url: str) -> float:
        """Seconds to wait before the next try at ``base_url``: 1, 2, …"""
        return float(self._failures[base_url])

    def note(self, base_url: str, error: BaseException | None, *, tries: int = 1) -> None:
        """Take in how a request ended.

        Args:
            error: None: it was answered.
            tries: how many of this address have come one after the other. Those side by side count as one.

        Raises:
            Unreachable: in the place of ``error``, where further tries are of no use.
        """
        if self.proven or error is None or not never_connected(error):
            self.proven = self.proven or error is None or isinstance(error, Exception)
            return
        self._failures[base_url] = max(tries, self._failures[base_url])
        if min(self._failures.values()) >= _TRIES:
            addresses = " and ".join(map(without_credentials, self._failures))
            raise Unreachable(
                f"provider.base_url={addresses}: nothing could connect ({error}); check the address, that the server "
                "is running, and any proxy, firewall or certificate on the way"
            ) from error
