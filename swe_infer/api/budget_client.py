"""Calls to a server that keeps budgets and rate limits, for machines without a file system in common.

The server is ``swe-infer-budget`` (:mod:`swe_infer.api.budget_server`), also as an actor of a Ray cluster
(:mod:`swe_infer.api.budget_actor`). A reply may be lost after the server has made the change.

The event loop waits for each call. While the server does not reply, the clients of a process try one call at a time,
and then leave the loop to the answers in flight for a while: other calls fail at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from swe_infer.api.budget_address import CHECKED, RAY, TOKEN_VARIABLE, BudgetAddress
from swe_infer.api.coordination import Busy, Interrupted
from swe_infer.errors import ConfigError, StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.serving import access_token
from swe_infer.text import bounded_json, clean, first_line

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

TIMEOUT_S = 2.0
"""For connecting and for a reply. The event loop waits for it, so it is short."""
_PATIENCE_S = 60.0
"""How long requests wait for a server that does not reply, such as while it starts again."""
PAUSE_S = 1.0
"""Between two attempts to reach a server that does not reply. The event loop goes on meanwhile."""
_ACTOR_START_S = 60.0
"""For the start of a Ray actor."""
_KEPT_S = 4.0
"""Idle connections are closed after this time, before the server closes them."""
_MAX_REPLY = 1 << 20
_MAX_MESSAGE = 300
_OTHER_SERVER = "this is not a swe-infer-budget server"


class Unreachable(Busy):
    """The server did not reply. The call may succeed later, and may have taken effect."""


def check_budget_server(address: str, key: str) -> None:
    """Raises StoreError if the server does not reply or refuses this client; ConfigError for an invalid address."""
    with closing(BudgetClient(BudgetAddress.parse(address, key), key)) as client:
        client.call("servers", "check", {}, one_of(CHECKED))


@dataclass(slots=True)
class _Contact:
    """Whether a server replies, for all clients in this process. Times are seconds of the monotonic clock."""

    has_replied: bool = False
    silent_since: float | None = None
    tried_at: float = 0.0
    reason: str = ""

    def note_silence(self, name: str, reason: str) -> None:
        now = time.monotonic()
        if self.silent_since is None or now - self.tried_at > _PATIENCE_S:
            self.silent_since = now
            if self.has_replied:
                logger.warning("%s: %s; requests wait for it for up to %.0f s", name, reason, _PATIENCE_S)
        self.tried_at, self.reason = now, reason

    def note_reply(self, name: str) -> None:
        if self.silent_since is not None and self.has_replied:
            logger.info("%s: replies again", name)
        self.has_replied, self.silent_since = True, None

    @property
    def may_return(self) -> bool:
        """Whether to wait for the server. Not if it has never replied, or not for a minute."""
        return (
            self.has_replied and self.silent_since is not None and time.monotonic() - self.silent_since < _PATIENCE_S
        )


_CONTACTS: dict[str, _Contact] = {}
"""By the server's address."""


class BudgetClient:
    """One connection to a server.

    Args:
        key: the key of the configuration with the address, for messages.

    Raises:
        ConfigError: the address or the token is invalid, or there is no Ray cluster.
        StoreError: the Ray actor does not start.
    """

    def __init__(self, address: BudgetAddress, key: str) -> None:
        self._address = address
        self._key = key
        self._name = f"{key}={address.server}/{address.name}"
        self._path = address.name
        self.calls = 0
        """Number of calls that were sent."""
        self._contact = _CONTACTS.setdefault(address.server, _Contact())
        try:
            self._http: httpx2.Client | None = self._connection(_ACTOR_START_S)
        except Unreachable as error:
            raise StoreError(f"{self._name}: {error}") from error

    def _connection(self, timeout_s: float) -> httpx2.Client:
        """Raises Unreachable if the Ray actor does not reply within ``timeout_s``; ConfigError."""
        import httpx2

        server = self._address.server
        token: str | None
        if server == RAY:
            from swe_infer.api.budget_actor import locate

            try:
                server, token = locate(self._name, timeout_s)
            except TimeoutError as error:
                raise Unreachable(str(error)) from error
        else:
            token = access_token(TOKEN_VARIABLE)
        try:
            return httpx2.Client(
                base_url=server,
                headers={} if token is None else {"authorization": f"Bearer {token}"},
                limits=httpx2.Limits(keepalive_expiry=_KEPT_S),
                trust_env=False,
            )
        except httpx2.InvalidURL as error:
            raise ConfigError(f"{self._name}: {first_line(error)}") from error

    def call(
        self,
        kind: str,
        method: str,
        arguments: dict[str, Any],
        read: Callable[[Any], _T],
        *,
        timeout_s: float = TIMEOUT_S,
        fail_fast: bool = True,
    ) -> _T:
        """Returns the result of one call.

        Args:
            kind: ``ledgers`` or ``limits``.
            method: the call, such as ``reserve``.
            arguments: of the call, as JSON values.
            read: converts the result; raises ValueError, TypeError or ArithmeticError if it is invalid.
            fail_fast: raise without a call if an earlier one got no reply within the last second.

        Raises:
            Unreachable: there was no reply. It may come later.
            Interrupted: there was no reply, and the run is stopping.
            StoreError: the server refused the call, or has not replied for a minute.
        """
        contact = self._contact
        if not fail_fast or contact.silent_since is None or time.monotonic() - contact.tried_at >= PAUSE_S:
            self.calls += 1
            try:
                result = read(self._reply(f"/{kind}/{self._path}/{method}", arguments, timeout_s))
            except Unreachable as error:
                contact.note_silence(self._name, str(error))
            except (TypeError, ValueError, ArithmeticError) as error:
                raise StoreError(f"{self._name}: {_OTHER_SERVER} of this version") from error
            else:
                contact.note_reply(self._name)
                return result
        message = f"{self._name}: {contact.reason}"
        if INTERRUPTS.stopping:
            raise Interrupted(message)
        if contact.may_return:
            raise Unreachable(message)
        raise StoreError(f"{message} for {_PATIENCE_S:.0f} s" if contact.has_replied else message)

    def _reply(self, path: str, arguments: dict[str, Any], timeout_s: float) -> Any:
        """The result that the server sends. Raises Unreachable with the reason, or StoreError."""
        import httpx2

        if self._http is None:
            self._http = self._connection(timeout_s)
        try:
            with self._http.stream("POST", path, json=arguments, timeout=timeout_s) as response:
                body = _bounded(response, time.monotonic() + timeout_s)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            if self._address.server == RAY:  # Ray starts a lost actor again, at another address
                self.close()
            raise Unreachable(f"no reply ({first_line(error)})") from error
        try:
            reply = bounded_json(body)
        except (ValueError, RecursionError):
            reply = None
        if isinstance(reply, dict) and response.status_code == 200 and "result" in reply:
            return reply["result"]
        if response.status_code in (401, 403):
            raise StoreError(f"{self._name}: the token is not accepted; set {TOKEN_VARIABLE} as for the server")
        said = reply.get("error") if isinstance(reply, dict) else None
        said = clean(said)[:_MAX_MESSAGE] if isinstance(said, str) else None
        if response.status_code >= 500:
            raise Unreachable(f"no reply (HTTP {response.status_code}{f', {said}' if said else ''})")
        raise StoreError(f"{self._name}: {said or _OTHER_SERVER}")

    @property
    def is_silent(self) -> bool:
        """Whether the last call had no reply, which is logged already."""
        return self._contact.silent_since is not None

    def close(self) -> None:
        if self._http is not None:
            self._http.close()
            self._http = None


def _bounded(response: httpx2.Response, deadline: float) -> bytes:
    """Reads a body, which another server could send without end.

    Raises:
        Unreachable: it is not complete at ``deadline``.
    """
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > _MAX_REPLY:
            break
        if time.monotonic() > deadline:
            raise Unreachable("no complete reply")
    return body


def one_of(*expected: object) -> Callable[[Any], Any]:
    """Checks that a result is one of ``expected``."""

    def read(result: Any) -> Any:
        if not any(type(result) is type(each) and result == each for each in expected):
            raise ValueError
        return result

    return read
