"""Budgets and rate limits that a server keeps, for machines without a file system in common.

The server is ``swe-infer-budget`` (:mod:`swe_infer.budget.server`). An address such as
``http://budgets:8787/NAME`` names one ledger, or one rate limiter, of the server.

A reply may be lost although the server did what it was asked. A reservation whose reply is lost is released with the
next call. Changes that would add up have an id, so that the server makes them once.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from swe_infer.api.coordination import Busy, Interrupted
from swe_infer.api.ledger import CapLedger, LedgerEntry, Refusal, Remaining, from_pico, to_pico
from swe_infer.errors import ConfigError, StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.text import bounded_json, clean, first_line

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "SWE_INFER_BUDGET_TOKEN"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""The name of a ledger or rate limiter, which is a file name of the server."""
_TIMEOUT_S = 2.0
"""For connecting and for a reply. The event loop waits for it, so it is short."""
_PATIENCE_S = 60.0
"""How long calls that have to succeed are repeated, such as while the server starts again."""
_PAUSE_S = 0.5
_MAX_REPLY = 1 << 20
_MAX_MESSAGE = 300


class Unreachable(Busy):
    """The server did not reply. The call may succeed later, and may have taken effect."""


@dataclass(frozen=True, slots=True)
class BudgetAddress:
    """Where a ledger or a rate limiter is kept: the server's address, and a name there."""

    server: str
    name: str

    @classmethod
    def parse(cls, text: str, key: str) -> Self:
        """Raises ConfigError with ``key`` if ``text`` is not such an address."""
        parts = urlsplit(text)
        name = parts.path.strip("/")
        if not parts.hostname or parts.username or parts.query or parts.fragment or not re.fullmatch(NAME, name):
            raise ConfigError(
                f"{key}={text}: must be the address of a swe-infer-budget server and a name for what is shared, such "
                f"as http://HOST:8787/NAME; a token belongs into {TOKEN_VARIABLE}"
            )
        return cls(f"{parts.scheme}://{parts.netloc}", name)


def is_budget_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def check_budget_server(address: str, key: str) -> None:
    """Raises StoreError if the server does not reply or refuses this client; ConfigError for an invalid address."""
    with closing(BudgetClient(BudgetAddress.parse(address, key), key)) as client:
        client.call("servers", "check", {})


class BudgetClient:
    """One connection to a server.

    Args:
        key: the key of the configuration with the address, for messages.
    """

    def __init__(self, address: BudgetAddress, key: str) -> None:
        import httpx2

        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._http = httpx2.Client(base_url=address.server, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        self._name = f"{key}={address.server}/{address.name}"
        self._path = address.name

    def call(self, kind: str, method: str, arguments: dict[str, Any], *, until_reply: bool = False) -> Any:
        """Returns the result of one call.

        Args:
            until_reply: repeat the call for a minute while there is no reply; it must be safe to repeat.

        Raises:
            Unreachable: there was no reply.
            StoreError: the server refused the call.
        """
        deadline = time.monotonic() + (_PATIENCE_S if until_reply else 0.0)
        while True:
            try:
                return self._call(f"/{kind}/{self._path}/{method}", arguments)
            except Unreachable:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(_PAUSE_S)

    def _call(self, path: str, arguments: dict[str, Any]) -> Any:
        import httpx2

        try:
            with self._http.stream("POST", path, json=arguments) as response:
                body = _bounded(response)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            kind = Interrupted if INTERRUPTS.stopping else Unreachable
            raise kind(f"{self._name}: no reply ({first_line(error)})") from error
        if response.status_code >= 500:
            raise Unreachable(f"{self._name}: HTTP {response.status_code}")
        if response.status_code in (401, 403):
            raise StoreError(f"{self._name}: the token is not accepted; set {TOKEN_VARIABLE} as for the server")
        try:
            reply = bounded_json(body)
        except (ValueError, RecursionError):
            reply = None
        if isinstance(reply, dict) and response.status_code == 200 and "result" in reply:
            return reply["result"]
        said = reply.get("error") if isinstance(reply, dict) else None
        said = clean(str(said))[:_MAX_MESSAGE] if said else "this is not a swe-infer-budget server"
        raise StoreError(f"{self._name}: {said}")

    def close(self) -> None:
        self._http.close()


def _bounded(response: httpx2.Response) -> bytes:
    """Reads a body, which another server could send without end."""
    body = b""
    for part in response.iter_bytes():
        body += part
        if len(body) > _MAX_REPLY:
            break
    return body


class RemoteLedger(CapLedger):
    """A ledger that a server keeps.

    Args:
        run: the name of the run in the ledger.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, cap_usd: Decimal, run: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._cap = cap_usd
        self._caller = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "run": run, "cap_usd": str(cap_usd)}
        self._uncharged: list[tuple[int, str]] = []
        """Ids of reservations, and the dollars that replace them."""
        try:
            self._call("beat")
        except BaseException:
            self._client.close()
            raise

    @property
    def cap_usd(self) -> Decimal:
        return self._cap

    @property
    def spent_usd(self) -> Decimal:
        return self._cap - self.remaining().unspent

    def reserve(self, usd: Decimal) -> LedgerEntry | Refusal:
        entry = LedgerEntry(secrets.randbits(59), to_pico(usd))
        try:
            reply = self._call("reserve", id=entry.id, usd=str(usd))
        except Unreachable:
            self._uncharged.append((entry.id, "0"))  # it may be reserved
            raise
        if reply is True:
            return entry
        return "cannot_fit" if reply == "cannot_fit" else "wait"

    def charge(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = self.charge_later(entry, usd)
        self.write_charges()
        return charged

    def charge_later(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = from_pico(entry.amount if usd is None else to_pico(usd))
        self._uncharged.append((entry.id, str(charged)))
        return charged

    def write_charges(self) -> None:
        if self._uncharged:
            self._call("beat")

    def refund(self, usd: Decimal) -> None:
        self._call("refund", until_reply=True, usd=str(usd), change=uuid.uuid4().hex)

    def remaining(self) -> Remaining:
        available, unspent = self._call("remaining")
        return Remaining(Decimal(available), Decimal(unspent))

    def reserve_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        return list(map(int, self._call("reserve_batch", until_reply=True, label=label, usd=list(map(str, amounts)))))

    def charge_batch(self, label: str, held: Decimal, paid: Decimal | None) -> Decimal:
        charged = from_pico(to_pico(held if paid is None else paid))
        change = uuid.uuid4().hex
        self._call("charge_batch", until_reply=True, label=label, held=str(held), usd=str(charged), change=change)
        return charged

    def release_other_batches(self, labels: Collection[str]) -> None:
        self._call("release_other_batches", until_reply=True, labels=sorted(labels))

    def record_earlier_spending(self, usd: Decimal) -> None:
        self._call("record_earlier_spending", until_reply=True, usd=str(usd))

    def beat(self) -> None:
        self._call("beat")

    def close(self) -> None:
        """As in the base class. A server that does not reply charges the rest when this process counts as dead."""
        try:
            self._call("close")
        except StoreError as error:
            logger.log(logging.DEBUG if isinstance(error, Interrupted) else logging.WARNING, "%s", error)
        finally:
            self._client.close()

    def _call(self, method: str, *, until_reply: bool = False, **arguments: Any) -> Any:
        """Calls the server, which first writes what is charged. ``until_reply``: see :meth:`BudgetClient.call`."""
        charged = self._uncharged[:]
        body = {**self._caller, "charged": charged, **arguments}
        result = self._client.call("ledgers", method, body, until_reply=until_reply)
        del self._uncharged[: len(charged)]
        return result


class RemoteRateLimiter:
    """Schedules that a server keeps; see :class:`~swe_infer.api.rate_limits.SharedRateLimiter`. While the server does
    not reply, nothing may be sent.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._paused_until = 0.0
        """For the case that the server did not reply when the pause began."""
        self._unreachable_since: float | None = None
        try:
            self._client.call("limits", "pause", {"seconds": 0.0})
        except BaseException:
            self._client.close()
            raise

    def acquire(self, amounts: Sequence[float], rates: Sequence[float | None]) -> float:
        """As :meth:`SharedRateLimiter.acquire`.

        Raises:
            StoreError: the server has not replied for a minute, or refuses the call.
        """
        now = time.monotonic()
        if now < self._paused_until:
            return self._paused_until - now
        arguments = {"amounts": list(amounts), "rates": list(rates)}
        try:
            wait_s = self._client.call("limits", "acquire", arguments)
        except Unreachable as error:
            if self._unreachable_since is None:
                self._unreachable_since = now
                logger.warning("%s; requests wait for it", error)
            if now - self._unreachable_since > _PATIENCE_S:
                raise
            return _PAUSE_S
        self._unreachable_since = None
        return float(wait_s)

    def pause(self, seconds: float) -> None:
        """Lets no run send for ``seconds``."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        with suppress(Unreachable):
            self._client.call("limits", "pause", {"seconds": seconds})

    def close(self) -> None:
        self._client.close()
