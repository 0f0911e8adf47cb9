"""A loopback server that speaks the providers' HTTP interfaces, for tests and benchmarks.

It is a real server on a real socket: OpenAI chat completions, responses (background ones too), files and batches,
Azure's form of them, Anthropic messages, message batches, token counts and legacy text completions; messages on
Bedrock and Vertex AI; the batches of Mistral, Together and Gemini.

In a test::

    with ApiServer(latency_s=0.01, faults=[Fault("rate_limit", fraction=0.1)]) as server:
        ...  # provider.base_url=server.openai_url, anthropic_url or azure_url
    assert server.log.cost_usd(Rates(Decimal(3), Decimal(15))) < 5

As a process (the port is the first line on standard output; a JSON request to ``/_control`` changes the settings)::

    python -m tests.support.api_server --port 0 --latency 2 --log server.jsonl --fault rate_limit:0.05

Everything it was asked and answered is in :class:`~tests.support.api_log.Log`, in memory and, with ``log_path``, on
disk.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.api_answers import Maker
from tests.support.api_batches import BatchDesk, item_error
from tests.support.api_bodies import body_of, events_of
from tests.support.api_calls import COUNTING, AnswerFunction, Call, Dialect, dialect_of, parse_call
from tests.support.api_clouds import event_frame, exception_frame
from tests.support.api_faults import ERROR_FAULTS, Fault, FaultKind, FaultPlan, error_of
from tests.support.api_http import HttpRequest, Peer, serving
from tests.support.api_limits import PromptCache, RateLimiter
from tests.support.api_log import Exchange, Log, Rates, read_log
from tests.support.api_vendors import Vendor

__all__ = ["ApiServer", "Exchange", "Fault", "FaultKind", "Log", "Rates", "read_log"]

Latency = float | tuple[float, float] | Callable[[Call], float]

_JSON = {"content-type": "application/json"}
_HTML = b"<!DOCTYPE html><html><body><h1>Sign in to the network</h1></body></html>"


class ApiServer:
    """The server and its settings; most settings may be changed while it runs.

    Args:
        latency_s: seconds before an answer; a pair is a range drawn from; a function may look at the call.
        answer: prompt to text; by default a small patch that depends on the prompt and applies to its first file.
        prompt_cache: simulate the vendors' prompt caches in the usage figures.
        requests_per_minute, tokens_per_minute: beyond them, 429 in the vendor's form; headers tell what is left.
        burst_s: seconds' worth of the limits that may be used at once.
        faults: rules for faults; :meth:`script` sets the fate of single requests.
        context_window: longer requests are refused in the vendor's words.
        models: the names that exist; None: any.
        api_key: the key that is accepted; None: any or none.
        strict: refuse parameters that a model does not take, as the vendors do.
        vendor: refuse and ignore what this vendor of OpenAI's chat API does.
        stream_pieces: events that a streamed text is cut into, spread over the latency.
        batch_delay_s: how long a batch takes.
        count: what the counting endpoints state, given the tokens that are billed; None: there are no such endpoints.
        log_path: append the log to this JSON-lines file too.
        log_bodies: False keeps figures only, for benchmarks of hours.
        seed: for fractions of faults, ranges of latency, and the order of batch results.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        latency_s: Latency = 0.0,
        answer: AnswerFunction | None = None,
        prompt_cache: bool = True,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        burst_s: float = 60.0,
        faults: Sequence[Fault] = (),
        context_window: int | None = None,
        models: Sequence[str] | None = None,
        api_key: str | None = None,
        strict: bool = True,
        vendor: Vendor | None = None,
        stream_pieces: int = 8,
        batch_delay_s: float = 0.05,
        count: Callable[[int], object] | None = int,
        log_path: Path | None = None,
        log_bodies: bool = True,
        seed: int = 0,
    ) -> None:
        self.port = port
        self.latency_s: Latency = latency_s
        self.stream_pieces = stream_pieces
        self.count = count
        self.limiter = RateLimiter(requests_per_minute, tokens_per_minute, burst_s)
        self.maker = Maker(
            PromptCache(),
            answer=answer,
            context_window=context_window,
            models=frozenset(models) if models is not None else None,
            api_key=api_key,
            prompt_cache=prompt_cache,
            strict=strict,
            vendor=vendor,
        )
        self.log = Log(log_path, log_bodies)
        self.batches = BatchDesk(
            self._answer_item, refusal_of=self.maker.refusal_of, delay_s=batch_delay_s, seed=seed
        )
        self.in_flight = 0
        self.peak_in_flight = 0
        self._plan = FaultPlan(list(faults), seed)
        self._plan_elsewhere = FaultPlan([], seed)
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    # Addresses, as the SDKs take them.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def openai_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def anthropic_url(self) -> str:
        return self.url

    @property
    def azure_url(self) -> str:
        return self.url

    @property
    def bedrock_url(self) -> str:
        return self.url

    @property
    def gemini_url(self) -> str:
        return f"{self.url}/v1beta/openai/"

    @property
    def vertex_url(self) -> str:
        return f"{self.url}/v1"

    # Start and stop.

    def __enter__(self) -> Self:
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve(ready)), name="api-server", daemon=True)
        self._thread.start()
        if not ready.wait(60):
            raise RuntimeError("the loopback API server did not start within 60 s")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._stop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def serve(self, ready: threading.Event | None = None) -> None:
        """Serve until stopped; ``ready`` is set once the port is known."""
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.log.open()
        try:
            async with serving(self._handle, self.port) as self.port:
                if ready is not None:
                    ready.set()
                else:
                    print(self.port, flush=True)
                    for signum in (signal.SIGTERM, signal.SIGINT):
                        self._loop.add_signal_handler(signum, self._stop.set)
                await self._stop.wait()
        finally:
            self.log.close()

    # Settings while it runs.

    def script(self, *kinds: FaultKind | None) -> None:
        """Faults of the next requests for answers, one each; None: a good answer."""
        self._plan.script(*kinds)

    def script_elsewhere(self, *kinds: FaultKind | None) -> None:
        """The fate of the next requests for anything else: files, batches, counts. An error status means that
        nothing was done; where the connection or the body breaks instead, what was asked for has been done."""
        self._plan_elsewhere.script(*kinds)

    def reset(self) -> None:
        """Clears the log and all scripted faults."""
        self.log.exchanges.clear()
        for plan in (self._plan, self._plan_elsewhere):
            plan.clear()

    def set_faults(self, *faults: Fault) -> None:
        """Replaces all rules."""
        self._plan.replace(list(faults))

    def _control(self, body: dict[str, Any]) -> None:
        if "latency_s" in body:
            value = body["latency_s"]
            self.latency_s = tuple(value) if isinstance(value, list) else value
        if "faults" in body:
            self.set_faults(*(Fault(**fault) for fault in body["faults"]))
        if "script" in body:
            self.script(*body["script"])
        for key in ("requests_per_minute", "tokens_per_minute"):
            if key in body:
                setattr(self.limiter, key, body[key])

    # One request.

    async def _handle(self, request: HttpRequest, peer: Peer) -> None:
        dialect = dialect_of(request.path) if request.method == "POST" else None
        if request.path == "/_control":
            self._control(json.loads(request.body))
            peer.send(200, _JSON, b"{}")
            return
        exchange = Exchange(next(self._numbers), time.time(), request.method, request.path, request.headers)
        try:
            is_file = request.headers.get("content-type") == "application/jsonl"
            exchange.body = json.loads(request.body) if request.body[:1] == b"{" and not is_file else None
            if dialect == "openai_responses" and (exchange.body or {}).get("background"):
                dialect = None  # the response is answered later, see BatchDesk
            if dialect is None:
                self.log.received(exchange, request.body if exchange.body is not None else b"")
                await self._handle_other(request, exchange, peer)
                return
            call = parse_call(dialect, request.path, request.headers, exchange.body or {})
        except (KeyError, TypeError, ValueError) as error:
            message = f"malformed request: {error!r}"
            exchange.status = 400
            peer.send(
                400, _JSON, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()
            )
            return
        exchange.dialect, exchange.model, exchange.prompt = dialect, call.model, call.prompt
        self.log.received(exchange, request.body)
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            await self._answer(call, exchange, peer)
        finally:
            self.in_flight -= 1
            exchange.answered_at = time.time()
            self.log.settled(exchange)

    async def _handle_other(self, request: HttpRequest, exchange: Exchange, peer: Peer) -> None:
        bare = _bare_call(request)
        if (refused := self.maker.wrong_key(bare)) is not None:
            peer.send(refused.status, {**_JSON, **refused.headers}, refused.body)
            return
        fault = self._plan_elsewhere.draw(bare)
        if fault is not None and fault.kind in ERROR_FAULTS:
            error = error_of(fault, bare, time.time())
            exchange.status = error.status
            peer.send(error.status, {**_JSON, **error.headers}, error.body)
            return
        before = len(self.batches.submitted())
        route = self._counted(request, exchange) or self.batches.route(request, self.url)
        if len(self.batches.submitted()) > before:
            await asyncio.sleep(self.batches.response_delay_s)
            if self.batches.drop_next_submissions > 0:
                self.batches.drop_next_submissions -= 1
                peer.reset()
                return
        if route is None:
            message = f"Unknown request URL: {request.method} {request.path}"
            route = (404, {"error": {"message": message, "type": "invalid_request_error", "code": "unknown_url"}})
        status, body = route
        exchange.status = status
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = {"content-type": "application/x-jsonl"} if isinstance(body, bytes) else _JSON
        headers = {**kind, "request-id": f"req_{exchange.number}"}
        more, self.batches.answer_headers = self.batches.answer_headers, {}
        if fault is None:
            peer.send(status, {**headers, **more}, raw)
        elif fault.kind == "cut":
            peer.cut(status, headers, raw[: len(raw) // 2], promised=len(raw))
        elif fault.kind == "broken_json":
            peer.send(status, headers, raw[:-2])
        else:
            await self._break(fault, headers, exchange, peer)

    def _counted(self, request: HttpRequest, exchange: Exchange) -> tuple[int, dict[str, Any]] | None:
        """The answer of a counting endpoint; None for other paths."""
        dialect = COUNTING.get(request.path)
        if dialect is None or self.count is None or request.method != "POST":
            return None
        call = parse_call(dialect, request.path, request.headers, {**exchange.body, "max_tokens": 1})
        exchange.prompt = call.prompt
        stated = {"input_tokens": self.count(call.input_tokens)}
        # openai.types.responses.InputTokenCountResponse; anthropic.types.MessageTokensCount has the count alone.
        return 200, {"object": "response.input_tokens", **stated} if dialect == "openai_responses" else stated

    async def _answer(self, call: Call, exchange: Exchange, peer: Peer) -> None:
        headers = {**_JSON, _request_id_header(call): f"req_{exchange.number:08d}"}
        if (refused := self.maker.refusal_of(call)) is not None:
            exchange.status = refused.status
            peer.send(refused.status, {**headers, **refused.headers}, refused.body)
            return
        fault = self._plan.draw(call)
        exchange.fault = fault.kind if fault else None
        if fault is not None and fault.kind in ERROR_FAULTS:
            error = error_of(fault, call, time.time(), self.maker.context_window)
            exchange.status = error.status
            peer.send(error.status, {**headers, **error.headers}, error.body)
            return
        wait, limits = self.limiter.admit(call, time.monotonic())
        headers |= limits
        if wait:
            error = error_of(Fault("rate_limit_bare"), call, time.time())
            exchange.status, exchange.fault = 429, "limit"
            peer.send(429, {**headers, **error.headers}, error.body)
            return
        if fault is not None and fault.kind in ("reset", "close", "hang", "html_page"):
            await self._break(fault, headers, exchange, peer)
        elif call.stream:
            await self._stream(call, fault, headers, exchange, peer)
        else:
            await self._whole(call, fault, headers, exchange, peer)

    async def _break(self, fault: Fault, headers: dict[str, str], exchange: Exchange, peer: Peer) -> None:
        if fault.kind == "hang":
            await peer.gone.wait()
        elif fault.kind == "reset":
            peer.reset()
        elif fault.kind == "close":
            peer.close()
        else:
            exchange.status = 200
            peer.send(200, {**headers, "content-type": "text/html"}, _HTML)

    async def _whole(
        self, call: Call, fault: Fault | None, headers: dict[str, str], exchange: Exchange, peer: Peer
    ) -> None:
        latency = self._latency(call)
        if latency:
            await asyncio.sleep(latency)
        made = self.maker.make(call, exchange.number, fault)
        body = json.dumps(body_of(made)).encode()
        self.maker.cache.warm(call, made.usage)
        exchange.status, exchange.texts = 200, made.texts
        exchange.bill(made.usage, made.service_tier, made.speed, made.geo)
        kind = fault.kind if fault else None
        match kind:
            case "cut" | "stream_error":
                peer.cut(200, headers, body[: len(body) // 2], promised=len(body))
            case "broken_json":
                peer.send(200, headers, body[:-2])
            case "wrong_shape":
                peer.send(200, headers, b'{"result": ["not", "an", "answer"]}')
            case "no_choices":
                empty: dict[str, Any] = {"choices": [], "output": [], "content": [], "completion": None}
                peer.send(200, headers, json.dumps({**json.loads(body), **empty}).encode())
            case "wrong_type":
                typed = {**headers, "content-type": "text/plain"}
                exchange.end_with(lambda: peer.send(200, typed, body))
            case "slow_body":
                peer.start(200, headers)
                for start in range(0, len(body), max(1, len(body) // 8)):
                    await peer.chunk(body[start : start + max(1, len(body) // 8)])
                    await asyncio.sleep(0.02)
                exchange.end_with(peer.end)
            case _:
                exchange.end_with(lambda: peer.send(200, headers, body))

    async def _stream(
        self, call: Call, fault: Fault | None, headers: dict[str, str], exchange: Exchange, peer: Peer
    ) -> None:
        made = self.maker.make(call, exchange.number, fault)
        events = list(events_of(made, self.stream_pieces))
        pause = self._latency(call) / len(events)
        exchange.status, exchange.texts = 200, made.texts
        exchange.bill(made.usage, made.service_tier, made.speed, made.geo)
        amazon = call.cloud == "bedrock"
        kind = "application/vnd.amazon.eventstream" if amazon else "text/event-stream"
        peer.start(200, {**headers, "content-type": kind})
        for index, event in enumerate(events):
            if fault is not None and index == len(events) // 2 and await _break_stream(fault, call, peer):
                return
            if pause:
                await asyncio.sleep(pause)
            await peer.chunk(event_frame(event) if amazon else event)
        self.maker.cache.warm(call, made.usage)
        exchange.end_with(peer.end)

    def _answer_item(self, call: Call, batch_id: str, custom_id: str) -> tuple[int, dict[str, Any], Fault | None]:
        """Answers an item of a batch, and logs it."""
        fault = self._plan.draw(call)
        exchange = Exchange(next(self._numbers), time.time(), "BATCH", "", {}, call.body, call.dialect, call.model)
        exchange.prompt, exchange.batch_id, exchange.custom_id = call.prompt, batch_id, custom_id
        exchange.fault = fault.kind if fault else None
        self.log.received(exchange, json.dumps(call.body).encode())
        exchange.answered_at = time.time()
        if (error := item_error(fault, call)) is not None:
            exchange.status = error[0]
            self.log.settled(exchange)
            return *error, fault
        made = self.maker.make(call, exchange.number, fault)
        unpaid = fault is not None and fault.kind in ("batch_expired", "batch_lost", "batch_wrong_id")
        if not unpaid:
            exchange.texts, exchange.status, exchange.usable = made.texts, 200, True
            exchange.bill(made.usage, made.service_tier, made.speed, made.geo)
        self.maker.cache.warm(call, made.usage)
        self.log.settled(exchange)
        return 200, body_of(made), fault

    def _latency(self, call: Call) -> float:
        latency = self.latency_s
        if callable(latency):
            return latency(call)
        return self._chance.uniform(*latency) if isinstance(latency, tuple) else latency


def _bare_call(request: HttpRequest) -> Call:
    """A call without a prompt, for the errors of requests that ask for no answer."""
    dialect: Dialect = "anthropic_messages" if "/messages" in request.path else "openai_chat"
    azure = request.path.startswith("/openai/")
    return Call(dialect, "", "", None, 1, False, (), None, None, False, {}, request.headers, azure=azure)


def _request_id_header(call: Call) -> str:
    if call.cloud == "bedrock":
        return "x-amzn-requestid"
    return "x-request-id" if call.vendor == "openai" else "request-id"


async def _break_stream(fault: Fault, call: Call, peer: Peer) -> bool:
    """Break a stream half way. Returns whether that was its end."""
    if call.cloud == "bedrock" and fault.kind in ("stream_error", "broken_json", "wrong_shape", "no_choices"):
        if fault.kind == "stream_error":
            frame = exception_frame("serviceUnavailableException", "Bedrock is unable to process your request.")
        else:
            frame = event_frame(b'data: {"type": "content_block_delta", "delta": "no"}')
        await peer.chunk(frame)
    elif fault.kind == "stream_error":
        error = error_of(Fault("overloaded"), call, time.time()).body
        await peer.chunk(b"event: error\ndata: " + error + b"\n\n")
    elif fault.kind in ("broken_json", "wrong_shape", "no_choices"):
        shape = b'{"result": "no' if fault.kind == "broken_json" else b'{"result": "not an event"}'
        await peer.chunk(b"data: " + shape + b"\n\n")
    elif fault.kind != "cut":
        return False
    peer.close()
    return True


def _fault(text: str) -> Fault:
    """``KIND[:FRACTION[:PER_PROMPT]]``."""
    kind, _, rest = text.partition(":")
    fraction, _, per_prompt = rest.partition(":")
    return Fault(kind, float(fraction or 1), per_prompt=int(per_prompt) if per_prompt else None)  # type: ignore[arg-type]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The loopback API server, as a process of its own.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency", default="0", help="seconds, or a range such as 1.5-2.5")
    parser.add_argument("--log", type=Path, help="append the log to this JSON-lines file")
    parser.add_argument("--no-bodies", action="store_true", help="log figures only")
    parser.add_argument("--fault", action="append", default=[], type=_fault, help="KIND[:FRACTION[:PER_PROMPT]]")
    parser.add_argument("--rpm", type=float, help="requests a minute")
    parser.add_argument("--tpm", type=float, help="tokens a minute")
    parser.add_argument("--burst", type=float, default=60.0, help="seconds' worth of the limits usable at once")
    parser.add_argument("--context-window", type=int)
    parser.add_argument("--batch-delay", type=float, default=0.05)
    parser.add_argument("--no-prompt-cache", action="store_true")
    parser.add_argument("--answer-file", type=Path, help="answer every prompt with this file's text")
    options = parser.parse_args(arguments)
    low, _, high = options.latency.partition("-")
    text = options.answer_file.read_text() if options.answer_file else None
    server = ApiServer(
        port=options.port,
        latency_s=(float(low), float(high)) if high else float(low),
        answer=(lambda _: text) if text is not None else None,
        prompt_cache=not options.no_prompt_cache,
        requests_per_minute=options.rpm,
        tokens_per_minute=options.tpm,
        burst_s=options.burst,
        faults=options.fault,
        context_window=options.context_window,
        batch_delay_s=options.batch_delay,
        log_path=options.log,
        log_bodies=not options.no_bodies,
    )
    asyncio.run(server.serve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
