"""Budgets and rate limits that a server keeps, for machines without a file system in common.

The server is ``swe-infer-budget`` (:mod:`swe_infer.budget.server`). An address such as
``http://budgets:8787/NAME`` names one ledger, or one rate limiter, of the server.

A reply may be lost after the server has made the change. A reservation whose reply is lost is released with the next
call. Changes that would add up have an id, so that the server makes each once. Calls are numbered, so that a server
that was stopped for a while ignores old calls that it reads after a new one.

The event loop waits for each call. While the server does not reply, the clients of a process try one call at a time,
and then leave the loop to the answers in flight for a while: other calls fail at once.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from swe_infer.api.coordination import Busy, Interrupted
from swe_infer.api.ledger import CapLedger, LedgerEntry, Refusal, Remaining, from_pico, new_entry_id, to_pico
from swe_infer.errors import ConfigError, StoreError
from swe_infer.interrupts import INTERRUPTS
from swe_infer.redaction import without_credentials
from swe_infer.text import bounded_json, clean, first_line

if TYPE_CHECKING:
    import httpx2

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

TOKEN_VARIABLE = "SWE_INFER_BUDGET_TOKEN"
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""The name of a ledger or rate limiter, which is a file name of the server."""
CHECKED = "swe-infer-budget"
"""The server's reply to :func:`check_budget_server`."""
_TIMEOUT_S = 2.0
"""For connecting and for a reply. The event loop waits for it, so it is short."""
_TIMEOUT_PER_AMOUNT_S = 0.001
"""In addition for each request of a batch."""
_PATIENCE_S = 60.0
"""How long requests wait for a server that does not reply, such as while it starts again."""
_PAUSE_S = 1.0
"""Between two attempts to reach a server that does not reply. The event loop goes on meanwhile."""
_KEPT_S = 4.0
"""Idle connections are closed after this time, before the server closes them."""
_MAX_REPLY = 1 << 20
_MAX_MESSAGE = 300
_OTHER_SERVER = "this is not a swe-infer-budget server"


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
        with suppress(ValueError):  # an invalid port or IPv6 address
            parts = urlsplit(text)
            name = parts.path.strip("/")
            if (
                parts.scheme in ("http", "https")
                and parts.hostname
                and parts.port != 0
                and not (parts.username or parts.password or parts.query or parts.fragment)
                and re.fullmatch(NAME, name)
            ):
                return cls(f"{parts.scheme}://{parts.netloc}", name)
        raise ConfigError(
            f"{key}={clean(without_credentials(text))}: must be the address of a swe-infer-budget server and a name "
            f"for what is shared, such as http://HOST:8787/NAME; a token belongs in {TOKEN_VARIABLE}"
        )


def is_budget_address(text: str) -> bool:
    """Whether ``text`` is a URL, which :meth:`BudgetAddress.parse` checks, and not the path of a file."""
    return re.match(r"(?i)[a-z][a-z0-9+.-]+:/", text) is not None


def budget_token() -> str | None:
    """The token in the environment; None: there is none.

    Raises:
        ConfigError: an HTTP header cannot contain it.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", token):
        raise ConfigError(f"{TOKEN_VARIABLE}: must consist of ASCII letters, digits and punctuation, without blanks")
    return token or None


def check_budget_server(address: str, key: str) -> None:
    """Raises StoreError if the server does not reply or refuses this client; ConfigError for an invalid address."""
    with closing(BudgetClient(BudgetAddress.parse(address, key), key)) as client:
        client.call("servers", "check", {}, _one_of(CHECKED))


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
        ConfigError: the address or the token is invalid.
    """

    def __init__(self, address: BudgetAddress, key: str) -> None:
        import httpx2

        token = budget_token()
        self._name = f"{key}={address.server}/{address.name}"
        self._path = address.name
        self.calls = 0
        """Calls that were sent."""
        self._contact = _CONTACTS.setdefault(address.server, _Contact())
        try:
            self._http = httpx2.Client(
                base_url=address.server,
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
        timeout_s: float = _TIMEOUT_S,
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
        if not fail_fast or contact.silent_since is None or time.monotonic() - contact.tried_at >= _PAUSE_S:
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

        try:
            with self._http.stream("POST", path, json=arguments, timeout=timeout_s) as response:
                body = _bounded(response, time.monotonic() + timeout_s)
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
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
        self._http.close()


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


def _one_of(*expected: object) -> Callable[[Any], Any]:
    """Checks that a result is one of ``expected``."""

    def read(result: Any) -> Any:
        if not any(type(result) is type(each) and result == each for each in expected):
            raise ValueError
        return result

    return read


_nothing = _one_of(None)


def _remaining(result: Any) -> Remaining:
    available, unspent = map(Decimal, result)
    if not (available.is_finite() and unspent.is_finite()):
        raise ValueError
    return Remaining(available, unspent)


def _wait_s(result: Any) -> float:
    wait_s = float(result)
    if not 0 <= wait_s < float("inf"):
        raise ValueError
    return wait_s


def _indexes(count: int) -> Callable[[Any], list[int]]:
    """Checks that a result is a list of different indexes below ``count``, in order."""

    def read(result: Any) -> list[int]:
        indexes = list(map(int, result))
        if indexes != sorted({index for index in indexes if 0 <= index < count}):
            raise ValueError
        return indexes

    return read


def _until_reply(call: Callable[[], _T]) -> _T:
    """Makes a call that has to succeed, and that is safe to repeat. It blocks for a minute if there is no reply."""
    while True:
        try:
            return call()
        except Unreachable:
            time.sleep(_PAUSE_S)


class RemoteLedger(CapLedger):
    """A ledger that a server keeps.

    Args:
        address: of the server, with the ledger's name.
        run: the name of the run in the ledger.
        key: see :class:`BudgetClient`.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, cap_usd: Decimal, run: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._cap = self._unspent = cap_usd
        self._caller = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "run": run, "cap_usd": str(cap_usd)}
        self._numbers = itertools.count(1)
        self._charged: list[tuple[int, str]] = []
        """Ids of reservations, and the dollars that replace them; the server does not have them yet."""
        self._refunded: list[tuple[str, str]] = []
        """Ids of refunds, and dollars; the server does not have them yet."""
        try:
            self._call_until_reply("beat", _nothing)
        except BaseException:
            self._client.close()
            raise

    @property
    def cap_usd(self) -> Decimal:
        return self._cap

    @property
    def spent_usd(self) -> Decimal:
        """As in the base class; while the server does not reply, as far as it is known."""
        with suppress(Busy):
            self.remaining()
        return self._cap - self._unspent

    def reserve(self, usd: Decimal) -> LedgerEntry | Refusal:
        entry = LedgerEntry(new_entry_id(), to_pico(usd))
        answer: Any = False
        calls = self._client.calls
        try:
            answer = self._call(
                "reserve", _one_of(True, "wait", "cannot_fit"), id=entry.id, usd=str(from_pico(entry.amount))
            )
        finally:
            if answer is False and self._client.calls > calls:  # it may be reserved
                self._charged.append((entry.id, "0"))
        return entry if answer is True else answer

    def charge(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = self.charge_later(entry, usd)
        self.write_charges()
        return charged

    def charge_later(self, entry: LedgerEntry, usd: Decimal | None) -> Decimal:
        charged = from_pico(entry.amount if usd is None else to_pico(usd))
        self._charged.append((entry.id, str(charged)))
        return charged

    def write_charges(self) -> None:
        if self._charged or self._refunded:
            self.beat()

    def refund(self, usd: Decimal) -> None:
        self._refunded.append((uuid.uuid4().hex, str(usd)))  # with the next call

    def remaining(self, *, wait: bool = False) -> Remaining:
        call = self._call_until_reply if wait else self._call
        remaining = call("remaining", _remaining)
        self._unspent = remaining.unspent
        return remaining

    def reserve_batch(self, label: str, amounts: Sequence[Decimal]) -> list[int]:
        usd = [str(from_pico(to_pico(amount))) for amount in amounts]
        timeout_s = _TIMEOUT_S + _TIMEOUT_PER_AMOUNT_S * len(usd)
        return self._call_until_reply("reserve_batch", _indexes(len(usd)), timeout_s=timeout_s, label=label, usd=usd)

    def charge_batch(self, label: str, held: Decimal, paid: Decimal | None) -> Decimal:
        charged = from_pico(to_pico(held if paid is None else paid))
        change = uuid.uuid4().hex
        self._call_until_reply("charge_batch", _nothing, label=label, held=str(held), usd=str(charged), change=change)
        return charged

    def release_other_batches(self, labels: Collection[str]) -> None:
        self._call_until_reply("release_other_batches", _nothing, labels=sorted(labels))

    def record_earlier_spending(self, usd: Decimal) -> None:
        self._call_until_reply("record_earlier_spending", _nothing, usd=str(usd))

    def beat(self) -> None:
        self._call("beat", _nothing)

    def close(self) -> None:
        """As in the base class. A server that does not reply charges the rest when this process counts as dead."""
        try:
            self._call_until_reply("close", _nothing)
        except StoreError as error:
            logger.log(logging.DEBUG if self._client.is_silent else logging.WARNING, "%s", error)
        finally:
            self._client.close()

    def _call_until_reply(self, method: str, read: Callable[[Any], _T], **arguments: Any) -> _T:
        return _until_reply(lambda: self._call(method, read, fail_fast=INTERRUPTS.stopping, **arguments))

    def _call(
        self,
        method: str,
        read: Callable[[Any], _T],
        *,
        timeout_s: float = _TIMEOUT_S,
        fail_fast: bool = True,
        **arguments: Any,
    ) -> _T:
        """Calls the server, which first writes what is charged and refunded."""
        charged, refunded = self._charged[:], self._refunded[:]
        body = {
            **self._caller, "number": next(self._numbers), "charged": charged, "refunded": refunded, **arguments,
        }  # fmt: skip
        result = self._client.call("ledgers", method, body, read, timeout_s=timeout_s, fail_fast=fail_fast)
        del self._charged[: len(charged)]
        del self._refunded[: len(refunded)]
        return result


class RemoteRateLimiter:
    """Schedules that a server keeps; see :class:`~swe_infer.api.rate_limits.SharedRateLimiter`. While the server does
    not reply, nothing may be sent.

    Args:
        address: of the server, with the rate limiter's name.
        key: see :class:`BudgetClient`.

    Raises:
        ConfigError: the address is invalid.
        StoreError: the server does not reply, or refuses this client.
    """

    def __init__(self, address: str, key: str) -> None:
        self._client = BudgetClient(BudgetAddress.parse(address, key), key)
        self._paused_until = 0.0
        """Kept here too, since the server may not reply when a pause begins."""
        try:
            _until_reply(lambda: self._pause(0.0))
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
            return self._client.call("limits", "acquire", arguments, _wait_s)
        except Busy:
            return _PAUSE_S

    def pause(self, seconds: float) -> None:
        """Lets no run send for ``seconds``."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
        with suppress(StoreError):  # the next request reports it
            self._pause(seconds)

    def _pause(self, seconds: float) -> None:
        self._client.call("limits", "pause", {"seconds": seconds}, _nothing)

    def close(self) -> None:
        self._client.close()
