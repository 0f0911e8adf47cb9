"""The server that keeps ledgers and rate limiters for machines without a file system in common.

Each ledger is a file ``NAME.ledger.sqlite`` in the server's folder (:mod:`swe_infer.api.ledger`), each rate limiter a
file ``NAME.limits.sqlite`` (:mod:`swe_infer.api.rate_limits`). Every call is one transaction, so the server can be
killed and started again at any time. It makes one call after the other, which takes well under a millisecond.

A call is ``POST /ledgers/NAME/METHOD`` or ``POST /limits/NAME/METHOD`` with a JSON object; the reply is
``{"result": …}``, or ``{"error": …}`` with status 400. A process that has not called for three minutes counts as
dead: what it has reserved is charged.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from swe_infer.api.budget_address import CHECKED, NAME
from swe_infer.api.coordination import RemoteOwner
from swe_infer.api.ledger import Ledger, LedgerEntry, to_pico
from swe_infer.api.rate_limits import SharedRateLimiter
from swe_infer.errors import StoreError
from swe_infer.serving import KnownHosts

logger = logging.getLogger(__name__)

_MAX_BODY = 1 << 24
_IDLE_S = 600.0
"""A client's connection to its file is closed after this time without a call."""
_SILENT_S = 60.0
"""If a ledger gets no call for this time, or the clock is set, its clients may have been unable to reach the server:
then none counts as dead. Clients that are alive call more often."""

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
EntryId = Annotated[int, Field(ge=0, le=10**18)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LedgerCall(_Call, ABC):
    """What all calls to a ledger have in common: the client, and what it was charged since its last call.

    Args:
        owner: the client's id.
        host: the name of the client's machine.
        run: the name of the client's run in the ledger.
        number: greater than those of earlier calls by this owner.
        charged: ids of reservations, and what replaces them.
        refunded: ids of refunds, and their amounts.
    """

    owner: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    host: Text
    run: Text
    cap_usd: Annotated[Decimal, Field(ge=0, le=10**12, allow_inf_nan=False)]
    number: Annotated[int, Field(ge=1)]
    charged: list[tuple[EntryId, Usd]] = []
    refunded: list[tuple[Text, Usd]] = []

    @abstractmethod
    def make(self, ledger: Ledger) -> Any:
        """Makes the call. Returns its result as a JSON value. Raises StoreError."""


class Reserve(LedgerCall):
    id: EntryId
    usd: Usd

    def make(self, ledger: Ledger) -> Any:
        reply = ledger.reserve(self.usd, self.id)
        return True if isinstance(reply, LedgerEntry) else reply


class Remaining(LedgerCall):
    def make(self, ledger: Ledger) -> Any:
        remaining = ledger.remaining()
        return [str(remaining.available), str(remaining.unspent)]


class ReserveBatch(LedgerCall):
    label: Text
    usd: list[Usd]

    def make(self, ledger: Ledger) -> Any:
        return ledger.reserve_batch(self.label, self.usd)


class ChargeBatch(LedgerCall):
    label: Text
    held: Usd
    usd: Usd
    change: Text

    def make(self, ledger: Ledger) -> Any:
        ledger.charge_batch(self.label, self.held, self.usd, self.change)


class ReleaseOtherBatches(LedgerCall):
    labels: list[Text]

    def make(self, ledger: Ledger) -> Any:
        return ledger.release_other_batches(self.labels)


class OtherRunsWithBatches(LedgerCall):
    def make(self, ledger: Ledger) -> Any:
        return ledger.other_runs_with_batches()


class RecordEarlierSpending(LedgerCall):
    usd: Usd

    def make(self, ledger: Ledger) -> Any:
        return str(ledger.record_earlier_spending(self.usd))


class Beat(LedgerCall):
    def make(self, ledger: Ledger) -> Any:
        return ledger.beat()


class Close(LedgerCall):
    def make(self, ledger: Ledger) -> Any:
        return ledger.release()


class Acquire(_Call):
    amounts: Annotated[list[Amount], Field(min_length=3, max_length=3)]
    rates: Annotated[list[Amount | None], Field(min_length=3, max_length=3)]

    def make(self, limiter: SharedRateLimiter) -> Any:
        return limiter.acquire(self.amounts, self.rates)


class Pause(_Call):
    seconds: Annotated[float, Field(ge=0, le=86_400)]

    def make(self, limiter: SharedRateLimiter) -> Any:
        return limiter.pause(self.seconds)


_LEDGER_CALLS: dict[str, type[Any]] = {
    "reserve": Reserve,
    "remaining": Remaining,
    "reserve_batch": ReserveBatch,
    "charge_batch": ChargeBatch,
    "release_other_batches": ReleaseOtherBatches,
    "other_runs_with_batches": OtherRunsWithBatches,
    "record_earlier_spending": RecordEarlierSpending,
    "beat": Beat,
    "close": Close,
}
_LIMITER_CALLS: dict[str, type[Any]] = {"acquire": Acquire, "pause": Pause}


class BudgetServer:
    """All ledgers and rate limiters in ``folder``.

    Args:
        token: that clients must send; None: they need none.
        host: the address or name that the server listens on.
    """

    def __init__(self, folder: Path, token: str | None, host: str) -> None:
        self._folder = folder
        self._hosts = KnownHosts(host)
        self._token = token
        self._ledgers: dict[tuple[str, str, str, Decimal], _Client] = {}
        """By name, owner, run and cap."""
        self._limiters: dict[str, SharedRateLimiter] = {}
        self._called_at: dict[str, float] = {}
        """The time of the last call to each ledger, in seconds since the epoch."""
        self._fault = ""
        """The last error that was logged."""

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/{kind}/{name}/{method}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> JSONResponse:
        sent = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(sent, f"Bearer {self._token}".encode()):
            return JSONResponse({"error": "the token is not accepted"}, 401)
        if self._token is None and request.headers.getlist("host") not in self._hosts:
            return JSONResponse({"error": "this server has another name"}, 400)
        # A page in a browser may not send this type to another server.
        if request.headers.get("content-type") != "application/json":
            return JSONResponse({"error": "the body must be application/json"}, 400)
        body = bytearray()
        try:
            async for part in request.stream():
                body += part
                if len(body) > _MAX_BODY:
                    return JSONResponse({"error": f"the body has more than {_MAX_BODY} bytes"}, 400)
        except ClientDisconnect:
            return JSONResponse({"error": "the body is not complete"}, 400)
        try:
            return JSONResponse({"result": self._make(**request.path_params, body=bytes(body))})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 400)
        except LookupError as error:
            return JSONResponse({"error": str(error.args[0])}, 400)
        except StoreError as error:
            if str(error) != self._fault:
                logger.error("%s", error)
            self._fault = str(error)
            return JSONResponse({"error": self._fault}, 503)

    def _make(self, kind: str, name: str, method: str, body: bytes) -> Any:
        if (kind, method) == ("servers", "check"):
            return CHECKED
        calls = {"ledgers": _LEDGER_CALLS, "limits": _LIMITER_CALLS}.get(kind, {})
        if method not in calls or not re.fullmatch(NAME, name):
            raise LookupError(f"there is no call {kind}/{name}/{method}")
        call = calls[method].model_validate_json(body)
        if not isinstance(call, LedgerCall):
            return call.make(self._limiter(name))
        ledger = self._ledger(name, call)
        for entry, usd in call.charged:
            ledger.charge_later(LedgerEntry(entry, to_pico(usd)), usd)
        for change, usd in call.refunded:
            ledger.refund(usd, change)
        result = call.make(ledger)
        if isinstance(call, Close):
            self._ledgers.pop(_key(name, call)).ledger.detach()
        return result

    def _ledger(self, name: str, call: LedgerCall) -> Ledger:
        """The client's connection to a ledger. Raises LookupError if the client's later call was made already."""
        now, key = time.monotonic(), _key(name, call)
        for other, client in list(self._ledgers.items()):
            if other != key and now - client.used_at > _IDLE_S:
                self._ledgers.pop(other).ledger.detach()
        if key not in self._ledgers:
            owner = RemoteOwner(call.owner, call.host)
            path = self._folder / f"{name}.ledger.sqlite"
            self._ledgers[key] = _Client(Ledger(path, call.cap_usd, call.run, owner=owner))
        client = self._ledgers[key]
        if call.number <= client.number:
            raise LookupError("a later call of this client has been made already")
        client.number, client.used_at = call.number, now
        if not 0 <= time.time() - self._called_at.get(name, 0.0) < _SILENT_S:
            client.ledger.renew_owners()
        self._called_at[name] = time.time()
        return client.ledger

    def _limiter(self, name: str) -> SharedRateLimiter:
        if name not in self._limiters:
            self._limiters[name] = SharedRateLimiter(self._folder / f"{name}.limits.sqlite")
        return self._limiters[name]


@dataclass(slots=True)
class _Client:
    """A client's connection to a ledger's file, the number of its last call, and the time of it."""

    ledger: Ledger
    number: int = 0
    used_at: float = 0.0


def _key(name: str, call: LedgerCall) -> tuple[str, str, str, Decimal]:
    return name, call.owner, call.run, call.cap_usd
