"""The loopback API server's log of requests, answers and costs.

In a file it is append-only JSON lines, two for each request (``request`` when it arrives, ``answer`` when it is
settled), so that it can be read after any process was killed.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, cast

from swe_infer.types import Usage
from tests.support.api_batch_forms import FORMS
from tests.support.api_calls import Dialect, parse_call
from tests.support.api_clouds import cloud_of

_ON_SETTLEMENT = (
    "number",
    "status",
    "answered_at",
    "fault",
    "texts",
    "usage",
    "usable",
    "service_tier",
    "speed",
    "geo",
)
_ON_ARRIVAL = (
    "number",
    "received_at",
    "method",
    "path",
    "headers",
    "dialect",
    "model",
    "batch_id",
    "custom_id",
)

__all__ = ["Exchange", "Log", "Rates", "read_log"]


@dataclass(frozen=True, slots=True)
class Rates:
    """Dollars for a million tokens."""

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None

    def cost(self, usage: Usage) -> Decimal:
        plain = usage.input_tokens - usage.cached_input_tokens - usage.cache_write_tokens
        cached = self.input if self.cached_input is None else self.cached_input
        write = self.input if self.cache_write is None else self.cache_write
        dollars = plain * self.input + usage.cached_input_tokens * cached + usage.cache_write_tokens * write
        return (dollars + usage.output_tokens * self.output) / 1_000_000


@dataclass(slots=True)
class Exchange:
    """One request and its response.

    Args:
        prompt: for a request for an answer: system and user text joined by a newline; else None.
        status: HTTP status; None while unanswered, and where the connection was broken instead.
        fault: the kind of fault that was shown.
        texts: the answer, one text for each choice.
        usage: what was billed; None where nothing was.
        usable: a whole and well-formed answer was sent, and the client was still there to take it.
        batch_id: the batch whose item this is.
        custom_id: the item's id in its batch.
    """

    number: int
    received_at: float
    method: str
    path: str
    headers: Mapping[str, str]
    body: Any = None
    dialect: str | None = None
    model: str | None = None
    prompt: str | None = None
    status: int | None = None
    answered_at: float | None = None
    fault: str | None = None
    texts: tuple[str, ...] = ()
    usage: Usage | None = None
    usable: bool = False
    batch_id: str | None = None
    custom_id: str | None = None
    service_tier: str | None = None
    speed: str | None = None
    geo: str | None = None

    def bill(self, usage: Usage, service_tier: str | None, speed: str | None, geo: str | None) -> None:
        """Records what is billed, at which tier and speed, and where it was processed."""
        self.usage, self.service_tier, self.speed, self.geo = usage, service_tier, speed, geo

    def end_with(self, send: Callable[[], bool]) -> None:
        """Sends the last bytes of an answer. Once they are sent, a client in another thread may read the log."""
        self.usable = True
        self.usable = send()


@dataclass
class Log:
    """Every exchange, in the order of arrival.

    Args:
        path: a JSON-lines file to append to as well.
        bodies: keep bodies, prompts, headers and answers. False: keep figures only, for long benchmarks.
    """

    path: Path | None = None
    bodies: bool = True
    exchanges: list[Exchange] = field(default_factory=list)
    _file: IO[bytes] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def received(self, exchange: Exchange, raw_body: bytes = b"") -> None:
        """Records an arrival; ``raw_body`` is its JSON text, where it is JSON."""
        if not self.bodies:
            exchange.headers, exchange.body, exchange.prompt = {}, None, None
        self.exchanges.append(exchange)
        if self._file is not None:
            line = {key: getattr(exchange, key) for key in _ON_ARRIVAL}
            self._write("request", line, raw_body if self.bodies else b"")

    def settled(self, exchange: Exchange) -> None:
        """Records the end of an exchange, whose fields are set."""
        if not self.bodies:
            exchange.texts = ()
        if self._file is not None:
            line = {key: getattr(exchange, key) for key in _ON_SETTLEMENT}
            line["usage"] = asdict(exchange.usage) if exchange.usage else None
            self._write("answer", line)

    def _write(self, event: str, values: dict[str, Any], raw_body: bytes = b"") -> None:
        assert self._file is not None
        line = json.dumps({"event": event, **values}, separators=(",", ":")).encode()
        if raw_body:  # a newline in JSON text is never part of a string, and so may become a blank
            line = line[:-1] + b',"body":' + raw_body.replace(b"\n", b" ") + b"}"
        line += b"\n"
        with self._lock:
            self._file.write(line)

    def asked(self) -> list[Exchange]:
        """The requests for an answer, with what became of them (files, batches and counts left out)."""
        return [e for e in list(self.exchanges) if e.dialect is not None]

    def answers(self) -> list[Exchange]:
        """Exchanges with a complete, valid answer."""
        return [e for e in self.asked() if e.usable]

    def billed(self) -> list[Exchange]:
        """Exchanges that a provider would bill, including broken answers."""
        return [e for e in self.asked() if e.usage is not None]

    def usage(self) -> Usage:
        """Tokens over everything billed."""
        return sum((e.usage for e in self.billed() if e.usage is not None), Usage())

    def cost_usd(self, rates: Rates | None = None, *, only_usable: bool = False) -> Decimal:
        """The server's bill: by stated rates, or by genai-prices. Items of batches cost half."""
        chosen: Iterable[Exchange] = self.answers() if only_usable else self.billed()
        total = Decimal(0)
        for exchange in chosen:
            assert exchange.usage is not None
            cost = rates.cost(exchange.usage) if rates else _list_price(exchange)
            total += cost / 2 if exchange.batch_id and rates else cost
        return total

    def answers_by_prompt(self) -> Counter[str]:
        """How many answers each prompt got; more than the samples asked for is a double payment."""
        counts: Counter[str] = Counter()
        for exchange in self.answers():
            counts[exchange.prompt or ""] += len(exchange.texts)
        return counts


def read_log(path: Path) -> Log:
    """Read a server's log file back; a torn last line (the server was killed) is left out."""
    by_number: dict[int, Exchange] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = json.loads(line)
        event = entry.pop("event")
        if event == "request":
            exchange = by_number[entry["number"]] = Exchange(**entry)
            if exchange.dialect is not None and exchange.body is not None:
                dialect = cast(Dialect, exchange.dialect)
                exchange.prompt = parse_call(dialect, exchange.path, exchange.headers, exchange.body).prompt
            continue
        exchange = by_number[entry["number"]]
        for key, value in entry.items():
            setattr(exchange, key, value)
        exchange.texts = tuple(entry["texts"])
        exchange.usage = Usage(**entry["usage"]) if entry["usage"] else None
    return Log(exchanges=list(by_number.values()))


def _list_price(exchange: Exchange) -> Decimal:
    from genai_prices import Usage as PricedUsage
    from genai_prices import calc_price

    assert exchange.usage is not None
    assert exchange.model is not None
    usage = PricedUsage(
        input_tokens=exchange.usage.input_tokens,
        cache_read_tokens=exchange.usage.cached_input_tokens,
        cache_write_tokens=exchange.usage.cache_write_tokens,
        cache_write_1h_tokens=exchange.usage.cache_write_1h_tokens,
        output_tokens=exchange.usage.output_tokens,
    )
    vendor = "openai" if (exchange.dialect or "").startswith("openai") else "anthropic"
    vendor = {"bedrock": "aws", "vertex": "google", None: vendor}[cloud_of(exchange.path)]
    forms = (name for name, form in FORMS.items() if (exchange.batch_id or "").startswith(form.id_prefix))
    if (form := next(forms, None)) is not None:
        vendor = {"gemini": "google"}.get(form, form)
    context = {"service_tier": exchange.service_tier or "", "speed": exchange.speed or ""}
    if exchange.batch_id:
        context = {"processing": "batch"}
    at = datetime.fromtimestamp(exchange.received_at, tz=UTC)
    priced = calc_price(usage, exchange.model, provider_id=vendor, price_context=context, genai_request_timestamp=at)
    # Anthropic bills processing in the US at 1.1 times the list, batches included.
    return priced.total_price * (Decimal("1.1") if exchange.geo == "us" else 1)
