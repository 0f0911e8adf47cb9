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
import re
import time
from abc import ABC, abstractmethod
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from swe_infer.api.budget_client import NAME
from swe_infer.api.coordination import RemoteOwner
from swe_infer.api.ledger import Ledger, LedgerEntry, to_pico
from swe_infer.api.rate_limits import SharedRateLimiter
from swe_infer.errors import StoreError

_MAX_BODY = 1 << 24
_IDLE_S = 600.0
"""A client's connection to its file is closed after this time without a call."""

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
EntryId = Annotated[int, Field(ge=0, le=10**18)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
Amount = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class _Call(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LedgerCall(_Call, ABC):
    """What all calls to a ledger have in common: who calls, and what it has been charged since its last call."""

    owner: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    host: Text
    run: Text
    cap_usd: Usd
    charged: list[tuple[EntryId, Usd]] = []

    @abstractmethod
    def make(self, ledger: Ledger) -> Any:
        """Makes the call. Returns its result. Raises StoreError."""


class Reserve(LedgerCall):
    id: EntryId
    usd: Usd

    def make(self, ledger: Ledger) -> Any:
        reply = ledger.reserve(self.usd, self.id)
        return True if isinstance(reply, LedgerEntry) else reply


class Refund(LedgerCall):
    usd: Usd
    change: Text

    def make(self, ledger: Ledger) -> Any:
        return ledger.refund(self.usd, self.change)


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


class RecordEarlierSpending(LedgerCall):
    usd: Usd

    def make(self, ledger: Ledger) -> Any:
        return ledger.record_earlier_spending(self.usd)


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
    "refund": Refund,
    "remaining": Remaining,
    "reserve_batch": ReserveBatch,
    "charge_batch": ChargeBatch,
    "release_other_batches": ReleaseOtherBatches,
    "record_earlier_spending": RecordEarlierSpending,
    "beat": Beat,
    "close": Close,
}
_LIMITER_CALLS: dict[str, type[Any]] = {"acquire": Acquire, "pause": Pause}


class BudgetServer:
    """All ledgers and rate limiters in ``folder``.

    Args:
        token: what clients have to send; None: nothing.
    """

    def __init__(self, folder: Path, token: str | None) -> None:
        self._folder = folder
        self._token = token
        self._ledgers: dict[tuple[str, str, str, Decimal], tuple[Ledger, float]] = {}
        """By name, owner, run and cap, each with the time of its last call."""
        self._limiters: dict[str, SharedRateLimiter] = {}
        self._renewed: set[str] = set()
        """Ledgers whose clients may have been unable to show that they are alive, because the server did not run."""

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{kind}/{name}/{method}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> JSONResponse:
        sent = request.headers.get("authorization", "").encode()
        if self._token is not None and not hmac.compare_digest(sent, f"Bearer {self._token}".encode()):
            return JSONResponse({"error": "the token is not accepted"}, 401)
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > _MAX_BODY:
                return JSONResponse({"error": f"the body has more than {_MAX_BODY} bytes"}, 400)
        try:
            return JSONResponse({"result": self._make(**request.path_params, body=body)})
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            return JSONResponse({"error": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 400)
        except LookupError as error:
            return JSONResponse({"error": str(error.args[0])}, 400)
        except StoreError as error:
            return JSONResponse({"error": str(error)}, 503)

    def _make(self, kind: str, name: str, method: str, body: bytes) -> Any:
        if (kind, method) == ("servers", "check"):
            return None
        calls = {"ledgers": _LEDGER_CALLS, "limits": _LIMITER_CALLS}.get(kind, {})
        if method not in calls or not re.fullmatch(NAME, name):
            raise LookupError(f"there is no call {kind}/{name}/{method}")
        call = calls[method].model_validate_json(body)
        if not isinstance(call, LedgerCall):
            return call.make(self._limiter(name))
        ledger = self._ledger(name, call)
        for entry, usd in call.charged:
            ledger.charge_later(LedgerEntry(entry, to_pico(usd)), usd)
        result = call.make(ledger)
        if isinstance(call, Close):
            self._ledgers.pop(_key(name, call))[0].detach()
        return result

    def _ledger(self, name: str, call: LedgerCall) -> Ledger:
        now, key = time.monotonic(), _key(name, call)
        for idle in [each for each, (_, used) in self._ledgers.items() if now - used > _IDLE_S and each != key]:
            self._ledgers.pop(idle)[0].detach()
        if (found := self._ledgers.get(key)) is not None:
            ledger = found[0]
        else:
            owner = RemoteOwner(call.owner, call.host)
            ledger = Ledger(self._folder / f"{name}.ledger.sqlite", call.cap_usd, call.run, owner=owner)
            if name not in self._renewed:
                ledger.renew_owners()
                self._renewed.add(name)
        self._ledgers[key] = ledger, now
        return ledger

    def _limiter(self, name: str) -> SharedRateLimiter:
        if name not in self._limiters:
            self._limiters[name] = SharedRateLimiter(self._folder / f"{name}.limits.sqlite")
        return self._limiters[name]


def _key(name: str, call: LedgerCall) -> tuple[str, str, str, Decimal]:
    return name, call.owner, call.run, call.cap_usd
