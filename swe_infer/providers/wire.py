"""The base of all providers over HTTP: an SDK's client without retries, requests, error classification.

A vendor's module defines the client, the address, the body and how to read an answer. Requests use the SDK's ``post``
(its address rules, authentication and error classes) with a body built here, and the JSON answer is read here: the
SDKs' typed layer needs half as much CPU again. Where the headers do not depend on the request, the URL and headers
that the SDK made are used for all later requests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.errors import (
    AnswerTooLarge,
    AuthenticationFailed,
    ConfigError,
    InvalidRequest,
    RequestError,
    TransientError,
)
from swe_infer.options import Option
from swe_infer.providers.base import Answer, PriceTerms, Provider
from swe_infer.providers.bounds import (
    ENCODINGS,
    FILE_BYTES,
    LINE_BYTES,
    STREAM_BYTES,
    BodyTooLarge,
    Received,
    bounded,
    check_values,
    is_whole_object,
    lines,
)
from swe_infer.providers.checks import check_base_url, check_decoding, check_extra_body, check_key, host_of
from swe_infer.providers.environment import (
    REFUSED_CREDENTIALS,
    Proxy,
    address,
    check_connection_settings,
    check_header_lines,
    check_header_value,
    check_headers,
    note_address,
    proxy_of,
    tls_context,
)
from swe_infer.providers.faults import PromptFiltered, classify, one_line, states_error, words_of
from swe_infer.providers.framing import CLOSED, DONE, beginning_of, is_event_stream, server_sent_events
from swe_infer.providers.headers import rate_limits_of, request_id_of
from swe_infer.providers.knobs import Dialect, check_knobs, fields_of, is_set, merged, with_sampling
from swe_infer.providers.transport import http_transport
from swe_infer.providers.untrusted_json import decoded_json, leading_objects
from swe_infer.providers.usage import checked_usage, stated_dollars
from swe_infer.types import ApiModel, Decoding, Request, Usage

_CONNECT_TIMEOUT_S = 15.0
_REQUESTS_FOR_A_FILE = 4
"""With those to which it is redirected."""
_KEEP_ALIVE_S = 60.0
_DRAIN_S = 0.2
"""Seconds to wait for the end of a stream after its last event. An unfinished connection is not reused."""
_LONGEST_UNSTREAMED = 16_000
"""Output tokens. Anthropic's SDK refuses requests without streaming above 21,333 (ten minutes at its rate); networks
drop idle connections earlier."""

StreamChoice = Annotated[
    Literal["auto", "always", "never"] | bool,
    Option("always, never, or auto: stream if a long answer would leave the connection silent for minutes.", "speed"),
]
"""``provider.stream`` of every vendor. True and False, which earlier versions had, mean always and never."""

MAX_PAGES = 1000
"""Maximum pages of a list, with 100 entries each. A longer list is refused."""

_TIER_HEADERS = (
    "x-amzn-bedrock-service-tier",
    "x-amzn-bedrock-performanceconfig-latency",
    "x-vertex-ai-llm-shared-request-type",
)
"""Headers that ask for a service tier: the API reference of Bedrock's InvokeModel, and
docs.cloud.google.com/vertex-ai/generative-ai/docs/priority-paygo."""
_COST_HEADER = "x-litellm-response-cost"
"""https://docs.litellm.ai/docs/proxy/response_headers"""
_SHORT = 100
"""Characters of a name that is cached."""
_LONGEST_WORDS = 200
"""Characters of a plain text in a stream that are quoted in an error."""
_BETA_HEADER = "anthropic-beta"
"""A list of features; every other header has one value."""
_OF_ONE_BODY = (b"content-length", b"transfer-encoding")
"""Headers that depend on a request's body."""
_PREPARED: ContextVar[str | None] = ContextVar("_PREPARED", default=None)
"""The key in ``WireProvider._sent`` of the request that the SDK prepares in this task."""
_TIERS_IN_BATCHES = (None, "auto", "default", "standard", "standard_only")
_ID = re.compile(r"[\w.:/=+-]{1,256}", re.ASCII)
_SHAPE_ERRORS = (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError)
"""Raised by code that reads a body of an unexpected shape."""


def streams_output(stream: Literal["auto", "always", "never"] | bool, max_tokens: int) -> bool:
    """Whether ``provider.stream`` streams an answer of at most ``max_tokens`` tokens."""
    return stream in (True, "always") or (stream == "auto" and max_tokens > _LONGEST_UNSTREAMED)


class Unreadable(Exception):
    """An answer with status 200 that is not in the vendor's format. The message says why."""


class CutShort(Unreadable):
    """A stream that ends within an answer."""

    def __init__(self) -> None:
        super().__init__("a stream that ends before its answer")


class _Several(Exception):
    """A body that consists of several JSON objects."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = objects


def _custom_id(line: bytes, key: str) -> str | None:
    """The custom id in the first bytes of a line that is too long."""
    found = re.search(rb'"%s"\s*:\s*"([\w-]{1,64})"' % key.encode(), line, re.ASCII)
    return None if found is None else found[1].decode("ascii")


def named(value: Any) -> str | None:
    """A server's string on one line, truncated; None for other values."""
    if not isinstance(value, str):
        return None
    return _short_name(value) if len(value) <= _SHORT else one_line(value)


@lru_cache(maxsize=256)
def _short_name(value: str) -> str:
    """:func:`one_line` of a model or finish reason, most of which repeat."""
    return one_line(value)


def price_terms_of(sent: Mapping[str, Any], *, cache_ttl: str = "5m", caches_unasked: bool = False) -> PriceTerms:
    """The price terms of requests with these fields, in either vendor's names.

    Args:
        cache_ttl: lifetime of the prompts that this program asks the vendor to cache.
        caches_unasked: whether the vendor caches without being asked.
    """
    marks = list(_cache_marks(sent))
    ttls = {str(mark.get("ttl") or "5m") for mark in marks} | {cache_ttl}
    return PriceTerms(
        service_tier=sent.get("service_tier"),
        speed=sent.get("speed"),
        cache_ttl=max(ttls, key=lambda ttl: (ttl not in ("5m", "1h"), ttl != "5m")),  # the dearest or an unknown one
        caches_unasked=caches_unasked or bool(marks),
        geo=sent.get("inference_geo"),
    )


def _cache_marks(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every ``cache_control`` in fields of a body."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key == "cache_control" and isinstance(item, Mapping):
                yield item
            else:
                yield from _cache_marks(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _cache_marks(item)


def size_of(fields: Mapping[str, Any]) -> int:
    """Bytes of extra body fields as JSON, an upper bound on their tokens; 0 without fields."""
    return len(json.dumps(dict(fields), default=str)) if fields else 0


@dataclass(kw_only=True, eq=False, repr=False)
class WireProvider(Provider):
    """A provider over HTTP. Subclasses translate; this class sends."""

    name: Annotated[str, Option("The vendor's name in messages, records and the run's identity.", "answer")]
    base_url: Annotated[
        str | None,
        Option("The base URL for the vendor's SDK; null: the SDK's variable, or its default.", "address"),
    ] = None
    api_key_env: Annotated[
        str | None, Option("The environment variable with the API key; null: send no key.", "address")
    ] = None
    max_concurrency: Annotated[int, Option("Maximum number of concurrent requests.", "speed")] = 128
    timeout_s: Annotated[float, Option("Timeout of one request in seconds.", "speed")] = 900.0
    pricing_id: Annotated[
        str | None, Option("The provider's name in genai-prices; free: no charge; null: by the address.", "reporting")
    ]
    headers: Annotated[
        Mapping[str, str],
        Option("Additional headers of every request; not for secrets, as the run directory shows them.", "answer"),
    ] = field(default_factory=dict)
    mode: Annotated[
        Literal["live", "batch"],
        Option("live, or batch: the vendor's batch API, at half the price and within a day.", "speed"),
    ] = "live"

    parameters: ClassVar[tuple[str, ...]] = ("temperature", "top_p", "seed", "stop")
    """The sampling parameters that the vendor's API has a field for."""

    reserved: ClassVar[tuple[str, ...]] = ("model", "messages", "stream", "n", "temperature", "top_p", "seed", "stop")
    """Fields that ``model.extra_body`` must not set, because they come from other keys."""

    address_env: ClassVar[str | None] = None
    """The environment variable for the address if ``base_url`` is None."""

    headers_env: ClassVar[str | None] = None
    """The environment variable of custom headers, which the SDK sends."""

    header_values_env: ClassVar[tuple[str, ...]] = ()
    """Environment variables whose values the SDK sends as headers."""

    has_events: ClassVar[bool] = True
    """Whether its streams consist of server-sent events."""

    has_fixed_headers: ClassVar[bool] = False
    """Whether requests with the same path, model and options have the same URL and headers. False if the SDK signs
    requests or refreshes tokens."""

    through_proxy: ClassVar[bool] = True
    """Whether a proxy in the environment is used."""

    def __post_init__(self) -> None:
        if self.max_concurrency < 1:
            raise ConfigError(f"provider.max_concurrency={self.max_concurrency}: must be at least 1")
        if not self.timeout_s > 0:
            raise ConfigError(f"provider.timeout_s={self.timeout_s}: must be above 0")
        if self.mode == "batch" and not self.has_batches:
            raise ConfigError(f"provider.mode=batch: the provider {self.name} has no batches; use provider.mode=live")
        check_headers(self.headers, self.headers_env)
        if self.base_url == "":  # a variable of the shell that is not set; not the vendor's own address
            raise ConfigError("provider.base_url is empty: give an address, or null for the default one")
        self.address = address(self.base_url, self.address_env or "", self.own_address())
        self._client: Any = None
        self._sdk: Any = None
        self._headers: dict[str, Any] = {}
        self._transport: Any = None
        self._transports: dict[tuple[str, Proxy | None], Any] = {}
        """By the scheme of an address and the proxy."""
        self._proxy: Proxy | None = None
        self._sent: dict[str, tuple[Any, Any]] = {}
        """URL and headers that the SDK prepared, by path, model and options."""

    def own_address(self) -> str:
        """The vendor's address; empty if it must be configured."""
        return ""

    @property
    def temperature_range(self) -> tuple[float, float]:
        """The lowest and the highest temperature that the vendor's API accepts."""
        return 0.0, 2.0

    @property
    def requires_key(self) -> bool:
        """Whether a request without a key is refused before it is sent."""
        return True

    # Implemented by vendors' modules.

    @abstractmethod
    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        """(the vendor's SDK module, its asynchronous client over ``http`` without retries)."""

    @abstractmethod
    def _http_client(self, **settings: Any) -> Any:
        """The SDK's HTTP client class, constructed with ``settings``."""

    @abstractmethod
    def path(self, model: ApiModel) -> str: ...

    @abstractmethod
    def body(self, request: Request, model: ApiModel, *, cache_prompt: bool = False) -> dict[str, Any]:
        """The request's JSON body."""

    @abstractmethod
    def read(self, body: dict[str, Any], request: Request | None) -> Answer:
        """Translates an answer's JSON body; ``request`` is None for a batch's item, whose prompt is unknown.

        Raises:
            Unreadable: it is not in the vendor's format.
        """

    def dialect(self) -> Dialect | None:
        """The fields for the effort, thinking and verbosity of a model; None: there are none."""
        return None

    def extra_fields(self, model: ApiModel) -> Mapping[str, Any]:
        """The body fields of ``model.extra_body``, and of the model's effort, thinking and verbosity."""
        dialect = self.dialect()
        if dialect is None or not is_set(model):
            return model.extra_body
        return merged(fields_of(dialect, model), model.extra_body)

    def streams(self, body: Mapping[str, Any]) -> bool:
        """Whether to stream the answer to this request."""
        return False

    def joined(self, events: AsyncIterator[Any], marks: dict[str, float]) -> Any:
        """An awaitable of the body joined from a stream's events; sets ``marks['first']`` to the time of the first
        text."""
        raise NotImplementedError

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        """The request headers and query parameters that depend on the model, as options of the SDK."""
        return {}

    # The contract of :class:`~swe_infer.providers.base.Provider`.

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        if self.address:
            check_base_url(self.address, self._address_key())
        check_decoding(
            with_sampling(self.name, model),
            decoding,
            provider=self.name,
            supported=self.supported_parameters(),
            temperature_range=self.temperature_range,
        )
        check_extra_body(model, self.reserved)
        self._check_terms(model)
        check_knobs(self.name, self.dialect(), model, decoding)

    def supported_parameters(self) -> tuple[str, ...]:
        """The sampling parameters that may be sent."""
        return self.parameters

    def _header_tier(self) -> dict[str, str]:
        """The service tier that ``provider.headers`` ask for, as a field."""
        tiers = (value for name, value in self.headers.items() if name.lower() in _TIER_HEADERS)
        unusual = next((tier for tier in tiers if tier not in _TIERS_IN_BATCHES), None)
        return {} if unusual is None else {"service_tier": unusual}

    def _check_terms(self, model: ApiModel) -> None:
        """Raises ConfigError for a service tier or speed that is no text, or that a batch cannot have."""
        terms = self.price_terms(model)
        if not isinstance(terms.geo, str | None):
            raise ConfigError(f"model.extra_body.inference_geo={terms.geo!r}: must be a name, such as us, or null")
        for name in ("service_tier", "speed"):
            value = getattr(terms, name)
            key = f"model.extra_body.{name}" if name in model.extra_body else "provider.service_tier"
            if not isinstance(value, str | None) or value == "":
                raise ConfigError(f"{key}={value!r}: must be a name, such as flex, or null")
            if name in model.extra_body and getattr(self, "service_tier", None) is not None:
                raise ConfigError(f"{key}: provider.service_tier is set too; leave one of them out")
            if self.mode == "batch" and value not in _TIERS_IN_BATCHES:
                raise ConfigError(f"{key}={value}: a batch has its own price and speed; leave it out")

    def check_access(self) -> None:
        check_base_url(self.address, self._address_key())
        if self.requires_key or self._key():
            check_key(self._key_variable())
        self._check_environment()

    def _check_environment(self) -> None:
        """Checks proxies, certificates and headers from the environment."""
        check_base_url(self.address, self._address_key())
        if self.address_env is not None:
            note_address(self.address, self.address_env)
        if self.headers_env is not None:
            check_header_lines(self.headers_env)
        for variable in self.header_values_env:
            check_header_value(variable)
        check_connection_settings(self.address, through_proxy=self.through_proxy)

    def _address_key(self) -> str:
        """The key or variable that set the address, for messages."""
        variable = self.address_env
        return variable if variable and os.environ.get(variable) == self.address else "provider.base_url"

    async def open(self) -> None:
        self._proxy = proxy_of(self.address) if self.through_proxy else None
        self._transport = self._transport_to(self.address)
        self._sent.clear()
        hooks = {"request": [self._keep_prepared]}
        # A redirect would send the prompt to any host that the server names. With trust_env the client would refuse
        # an invalid proxy in the environment that this address does not use.
        http = self._http_client(
            transport=self._transport, trust_env=False, follow_redirects=False, event_hooks=hooks
        )
        self._sdk, self._client = self._open_client(http, self._key() or "none")
        if self.api_key_env is None:  # no key is sent, although the SDKs require one
            self._headers = {"Authorization": self._sdk.Omit()}

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        while self._transports:
            await self._transports.popitem()[1].aclose()

    def _transport_to(self, address: str) -> Any:
        """The transport to an address, which decides on certificates and the proxy."""
        proxy = proxy_of(address) if self.through_proxy else None
        key = (address.partition(":")[0], proxy)
        if key not in self._transports:
            context = tls_context(address, proxy)
            self._transports[key] = bounded(http_transport(self.max_concurrency, _KEEP_ALIVE_S, context, proxy))
        return self._transports[key]

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        body = self.body(request, model, cache_prompt=cache_prompt)
        marks: dict[str, float] = {}
        started = time.monotonic()
        try:
            answered, headers = await self._send(body, model, timeout_s, marks)
            answer = self.parse_answer(answered, request, self._where(model.name), headers)
        except PromptFiltered as error:
            return _filtered(error, request)
        answer = self._with_headers(answer, headers)
        first = marks.get("first")
        return answer if first is None else replace(answer, time_to_first_token_s=first - started)

    def _with_headers(self, answer: Answer, headers: Mapping[str, str]) -> Answer:
        """``answer`` with the request id, quotas and cost from the headers."""
        headers = dict(headers.items())  # each lookup in the transport's own type compares every header
        if answer.bill.usd is None and (usd := stated_dollars(headers.get(_COST_HEADER))) is not None:
            answer = replace(answer, bill=replace(answer.bill, usd=usd))
        return replace(answer, request_id=request_id_of(headers), rate_limits=rate_limits_of(headers))

    # Sending.

    @asynccontextmanager
    async def _translated(self, where: str, timeout_s: float | None) -> AsyncIterator[None]:
        """Translates errors of the SDK and its transport into RequestError, and applies the total timeout."""
        try:
            async with asyncio.timeout(timeout_s):  # the SDK's own timeout is a read timeout
                yield
        except TimeoutError:
            late = TransientError(f"{where}: no complete answer within {timeout_s or 0:g} s")
            late.timed_out = True
            raise late from None
        except self._sdk.APIError as error:
            raise self._classify(error, where) from None
        except self._transport_errors as error:  # the SDKs do not wrap some errors of a stream
            raise TransientError(f"{where}: {self._describe(error)}") from None
        except BodyTooLarge as error:
            raise self._too_large(error, where) from None
        except Exception as error:
            translated = self._foreign_error(error, where)
            if translated is None:
                raise
            raise translated from None

    async def _send(
        self, body: dict[str, Any], model: ApiModel, timeout_s: float, marks: dict[str, float]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """(decoded body, headers) of an answer with status 200. Raises RequestError."""
        where = self._where(model.name)
        options = self._options(timeout_s, self.request_options(model))
        async with self._translated(where, timeout_s):
            if self.streams(body):
                return await self._stream(body, model, options, marks)
            response = await self._post(self.path(model), {**body, "stream": False}, options)
            if is_event_stream(response.content, response.headers.get("content-type", "")):
                events = self._events(response.content, _parts_of(), where)
                return await self._join(events, where, response.headers, {}, streamed=False), response.headers
        return await self._whole(response.content, response.headers, where), response.headers

    async def _call(
        self,
        method: Literal["GET", "POST"],
        path: str,
        *,
        timeout_s: float,
        describes_failures: bool = False,
        **request: Any,
    ) -> dict[str, Any]:
        """The decoded JSON answer of another endpoint of the vendor. Raises RequestError.

        Args:
            path: relative to the client's address, or a URL.
            describes_failures: the answer is about jobs. A field ``error`` in it is the error of a job, not of this
                call, and a list is returned under the key ``data``.
        """
        import httpx2

        where = self._where(path.partition("?")[0].rpartition("/")[2])
        send = self._client.get if method == "GET" else self._client.post
        options = self._options(timeout_s, request.pop("options", {}))
        async with self._translated(where, timeout_s):
            response = await send(path, cast_to=httpx2.Response, options=options, **request)
        return self._decode(response.content, response.headers, where, describes_failures=describes_failures)

    async def _results(
        self,
        path: str,
        what: str,
        *,
        timeout_s: float,
        id_key: str = "custom_id",
        options: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[tuple[str, dict[str, Any] | RequestError], None]:
        """Yields (custom id, entry) of each line of a result file; an error instead of an entry that is too long.

        Args:
            timeout_s: a read timeout, because the file may be long.
            id_key: the key of the custom id in a line.
            options: headers and query parameters.

        Raises:
            RequestError: after all entries, TransientError with status 200 if lines cannot be read.
        """
        broken = 0
        custom_id: str | None
        value: dict[str, Any] | RequestError
        async with aclosing(self._lines(path, what, timeout_s, options or {})) as found:
            async for line, is_whole in found:
                try:
                    if is_whole:
                        check_values(line)
                        entry = decoded_json(line)
                        custom_id, value = str(entry[id_key]), entry
                    else:
                        raise BodyTooLarge(f"its line is longer than {LINE_BYTES >> 20} MiB")
                except BodyTooLarge as error:
                    custom_id, value = _custom_id(line, id_key), self._too_large(error, self._where(what))
                except _SHAPE_ERRORS:
                    custom_id = None
                if custom_id is None:
                    broken += 1
                else:
                    yield custom_id, value
        if broken:
            raise self._unreadable(f"broken: {broken} lines of the results cannot be read", self._where(what), {})

    async def _lines(
        self, path: str, what: str, timeout_s: float, options: Mapping[str, Any]
    ) -> AsyncGenerator[tuple[bytes, bool], None]:
        """The lines of a file, as :func:`swe_infer.providers.bounds.lines` yields them."""
        async with self._translated(self._where(what), None):
            response = await self._file(path, what, self._options(timeout_s, options))
            try:
                response.read_in_parts(FILE_BYTES)
                async with aclosing(response.aiter_bytes()) as parts:
                    async for line in lines(parts):
                        yield line
            finally:
                await response.aclose()

    async def _file(self, path: str, what: str, options: dict[str, Any]) -> Any:
        """The response with a file. Redirects are followed, because the request has nothing but the key, which no
        other host gets. Raises RequestError, or the SDK's errors."""
        import httpx2

        from swe_infer.providers.http11 import origin_of

        where, origin, url = self._where(what), origin_of(httpx2.URL(self._client.base_url)), httpx2.URL(path)
        for _ in range(_REQUESTS_FOR_A_FILE):
            if url.is_relative_url or origin_of(url) == origin:
                try:
                    cast: dict[str, Any] = {"cast_to": object, "stream_cls": self._sdk.AsyncStream[object]}
                    return (await self._client.get(str(url), options=options, stream=True, **cast)).response
                except self._sdk.APIStatusError as error:
                    if not error.response.has_redirect_location:
                        raise
                    response, url = error.response, error.response.url
            elif url.scheme == "https" or (url.scheme, origin[0]) == ("http", "http"):
                check_connection_settings(str(url), through_proxy=self.through_proxy)
                response = await self._transport_to(str(url)).handle_async_request(
                    httpx2.Request("GET", url, extensions={"timeout": options["timeout"].as_dict()})
                )
                if response.is_success:
                    return response
                await response.aclose()
            else:
                break
            if not response.has_redirect_location:
                # The vendor may name another address the next time.
                status = response.status_code if response.is_server_error else 200
                raise TransientError(f"{where}: HTTP {response.status_code} from {url.host}", status=status)
            try:
                url = url.join(response.headers["location"])
            except httpx2.InvalidURL:
                break
        raise self._unreadable("a redirect that cannot be followed", where, {})

    @contextmanager
    def _shape_errors(self, what: str) -> Iterator[None]:
        """Raises TransientError for a body of an unexpected shape."""
        try:
            yield
        except _SHAPE_ERRORS as error:
            why = f"of an unexpected shape ({type(error).__name__})"
            raise self._unreadable(why, self._where(what), {}) from None

    async def _count_tokens(self, path: str, body: Mapping[str, Any], model: ApiModel, timeout_s: float) -> int:
        """``input_tokens`` from a counting endpoint, an unchecked integer. Raises RequestError."""
        options = self.request_options(model)
        answered = await self._call("POST", path, timeout_s=timeout_s, body=body, options=options)
        tokens = answered.get("input_tokens")
        if type(tokens) is not int:
            raise self._unreadable("without a token count", self._where(path.rpartition("/")[2]), {})
        return tokens

    async def _post(self, path: str, body: Mapping[str, Any], options: dict[str, Any]) -> Any:
        """The response to a request, read whole. Raises the SDK's errors.

        The SDK prepares the first request. Later ones repeat its URL and headers, because preparing a request takes
        the SDK more processor time than the transport needs to send it.
        """
        import httpx2
        from pydantic_core import to_json

        others = {name: value for name, value in options.items() if name != "timeout"}
        key = repr((path, body.get("model"), others))
        if (prepared := self._sent.get(key)) is None:
            token = _PREPARED.set(key)
            try:
                return await self._client.post(path, cast_to=httpx2.Response, body=body, options=options)
            finally:
                _PREPARED.reset(token)
        # A quarter of the time of json.dumps() for a long prompt. The SDK has refused NaN with the first request.
        content = to_json(body)
        url, headers = prepared[0], [*prepared[1], (b"Content-Length", b"%d" % len(content))]
        return await self._post_again(url, headers, content, options["timeout"].connect)

    async def _keep_prepared(self, sent: Any) -> None:
        """Keeps the URL and headers of a request that the SDK is about to send for :meth:`_post`."""
        import httpx2

        key = _PREPARED.get()
        if key is not None and self.has_fixed_headers and not any("idempotency" in name for name in sent.headers):
            headers = httpx2.Headers({**sent.headers, "accept-encoding": ENCODINGS})
            kept = [(name, value) for name, value in headers.raw if name.lower() not in _OF_ONE_BODY]
            self._sent[key] = (sent.url, kept)

    async def _post_again(
        self, url: Any, headers: list[tuple[bytes, bytes]], content: bytes, connect_s: float | None
    ) -> Any:
        """Sends a request over the SDK's transport, without the SDK. Raises the SDK's errors."""
        import httpx2

        # The whole request has a time limit; further timers for each read and write would be expensive.
        timeouts = {"connect": connect_s}
        try:
            response = await self._transport.post(url, headers, content, timeouts)
        except httpx2.TimeoutException as error:
            raise self._sdk.APITimeoutError(request=httpx2.Request("POST", url)) from error
        except httpx2.RequestError as error:
            raise self._sdk.APIConnectionError(request=httpx2.Request("POST", url)) from error
        if isinstance(response, Received) or response.is_success:
            return response
        response.request = httpx2.Request("POST", url)
        try:
            stated = json.loads(response.content)
        except (ValueError, RecursionError):
            stated = response.text.strip()
        raise self._sdk.APIStatusError(f"HTTP {response.status_code}", response=response, body=stated)

    async def _stream(
        self, body: dict[str, Any], model: ApiModel, options: dict[str, Any], marks: dict[str, float]
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        stream = await self._client.post(
            self.path(model),
            cast_to=object,
            body=self._streamed_body(body),
            options=options,
            stream=True,
            stream_cls=self._sdk.AsyncStream[object],
        )
        response = stream.response
        where, content_type = self._where(model.name), response.headers.get("content-type", "")
        try:
            if not self.has_events and "json" not in content_type:
                response.read_in_parts(STREAM_BYTES)  # botocore limits the length of a frame
                return await self._join(_iterated(stream), where, response.headers, marks), response.headers
            if "event-stream" in content_type:
                response.read_in_parts(STREAM_BYTES, has_events=True)
            async with aclosing(response.aiter_bytes()) as parts:
                beginning = await beginning_of(parts)
                if not is_event_stream(beginning, content_type):
                    content = bytearray(beginning)
                    try:
                        async for part in parts:
                            content += part
                    except self._transport_errors:
                        if not is_whole_object(bytes(content)):
                            raise
                    return await self._whole(bytes(content), response.headers, where), response.headers
                events = self._events(beginning, parts, where)
                joined = await self._join(events, where, response.headers, marks)
                # The answer is complete. The rest is read so that the connection can be used again.
                with suppress(TimeoutError, *self._transport_errors):
                    async with asyncio.timeout(_DRAIN_S):
                        async for _ in parts:
                            pass
                return joined, response.headers
        finally:
            await stream.close()

    async def _events(self, beginning: bytes, parts: AsyncIterator[bytes], where: str) -> AsyncGenerator[Any, None]:
        """Yields the decoded data of server-sent events, and :data:`DONE`. The data of an event that is plain text,
        such as a sign of life, is yielded as it is.

        Raises:
            RequestError: an event is an error.
            ValueError: an event is broken JSON.
        """
        async with aclosing(server_sent_events(beginning, parts)) as events:
            async for kind, data in events:
                if data.startswith(DONE):
                    yield DONE
                    continue
                check_values(data)
                try:
                    event = decoded_json(data)
                except ValueError:
                    if data.lstrip().startswith("{"):  # it may have a part of the answer
                        raise
                    event = data
                if isinstance(event, dict) and kind and event.get("type") is None:
                    event["type"] = kind
                self._check_event(kind, event, where)
                yield event

    def _check_event(self, kind: str, event: Any, where: str) -> None:
        """Raises RequestError for an event that is an error."""
        first = event[0] if isinstance(event, list) and event else event  # Google sends errors in a list
        fields = first if isinstance(first, dict) else {}
        is_error = states_error(fields)
        if kind == "error" or fields.get("type") == "error" or is_error:
            body = fields if is_error else {"error": event}
            raise classify(None, body, {}, where=where, secret=self._key(), in_answer=True)

    async def _whole(self, content: bytes, headers: Mapping[str, str], where: str) -> dict[str, Any]:
        """:meth:`_decode` of an answer. Several objects are the events of a stream without its framing."""
        try:
            return self._decode(content, headers, where, may_be_several=True)
        except _Several as several:
            return await self._join(self._checked(several.objects, where), where, headers, {})

    async def _checked(self, events: list[dict[str, Any]], where: str) -> AsyncGenerator[Any, None]:
        for event in events:
            self._check_event("", event, where)
            yield event

    async def _join(
        self,
        events: AsyncGenerator[Any, None],
        where: str,
        headers: Mapping[str, str],
        marks: dict[str, float],
        *,
        streamed: bool = True,
    ) -> dict[str, Any]:
        """:meth:`joined`. An answer may be complete before an unreadable event, an error, or the end of the
        connection.

        Args:
            streamed: whether events were requested.
        """
        ends: list[Exception] = []
        words = ""
        has_events = False
        passing = (ValueError, RecursionError, RequestError, self._sdk.APIError, *self._transport_errors)

        async def readable() -> AsyncGenerator[Any, None]:
            nonlocal words, has_events
            try:
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, str) and event != DONE:
                            words = f": {event[:_LONGEST_WORDS]}"
                        has_events |= isinstance(event, dict)
                        yield event
                yield CLOSED
            except passing as error:
                ends.append(error)

        try:
            async with aclosing(readable()) as sound:
                joined: dict[str, Any] = await self.joined(sound, marks)
                return joined
        except _SHAPE_ERRORS as error:
            why, is_final = f"a broken stream ({type(error).__name__})", not streamed
        except Unreadable as error:
            if ends and not isinstance(ends[0], ValueError | RecursionError):
                raise ends[0] from None
            why = f"a broken stream ({type(ends[0]).__name__})" if ends else f"{error}{words}"
            is_final = has_events and not streamed and not isinstance(error, CutShort)
        unreadable = self._unreadable(why, where, headers)
        unreadable.is_final = is_final
        raise unreadable

    def _streamed_body(self, body: dict[str, Any]) -> dict[str, Any]:
        return {**body, "stream": True}

    # Errors.

    def _foreign_error(self, error: Exception, where: str) -> RequestError | None:
        """The error for an exception of a library below the SDK; None: not a known one."""
        return None

    def _classify(self, error: Any, where: str) -> RequestError:
        """Translates an error that the SDK raised."""
        response = getattr(error, "response", None)
        status = response.status_code if response is not None else None
        cause = error.__cause__
        refusal = "HTTP 407" if status == 407 else str(cause) if type(cause).__name__ == "ProxyError" else ""
        if self._proxy is not None and refusal.startswith(("HTTP 407", "407", REFUSED_CREDENTIALS)):
            variable = self._proxy.variable
            return AuthenticationFailed(
                f"{where}: the proxy refuses the request ({refusal}); check user name and password in {variable}",
                status=status,
            )
        if isinstance(error, self._sdk.APITimeoutError):
            late = TransientError(f"{where}: timed out")
            late.timed_out = type(error.__cause__).__name__ == "ReadTimeout"
            return late
        if isinstance(error.__cause__, BodyTooLarge):
            return self._too_large(error.__cause__, where)
        if isinstance(error, self._sdk.APIConnectionError):
            return TransientError(f"{where}: {self._describe(error.__cause__ or error)}")
        headers = response.headers if response is not None else {}
        body = error.body if error.body is not None else (response.text if response is not None else str(error))
        # An error event inside a stream has the stream's status.
        return classify(None if status == 200 else status, body, headers, where=where, secret=self._key())

    def _too_large(self, error: BodyTooLarge, where: str) -> AnswerTooLarge:
        return AnswerTooLarge(one_line(f"{where}: the answer is not read: {error}", self._key()), status=200)

    def _unreadable(self, why: str, where: str, headers: Mapping[str, str]) -> TransientError:
        message = one_line(f"{where}: the answer is {why}", self._key())
        return TransientError(message, status=200, request_id=request_id_of(headers))

    def _decode(
        self,
        content: bytes,
        headers: Mapping[str, str],
        where: str,
        *,
        describes_failures: bool = False,
        may_be_several: bool = False,
    ) -> dict[str, Any]:
        """The JSON object of a body with status 200. Raises RequestError.

        Args:
            describes_failures: see :meth:`_call`.
            may_be_several: raise _Several for several objects; what follows a single one is ignored.
        """
        try:
            check_values(content)
            decoded = decoded_json(content)
        except BodyTooLarge as error:
            raise self._too_large(error, where) from None
        except ValueError:
            objects = leading_objects(content) if may_be_several else []
            if len(objects) > 1:
                raise _Several(objects) from None
            decoded = objects[0] if objects else None
        if decoded is None:
            kind = headers.get("content-type", "no content type")
            beginning = content[:320].decode(errors="replace")[:80]
            raise self._unreadable(f"no JSON ({kind}): {beginning}", where, headers) from None
        if describes_failures and isinstance(decoded, dict | list):
            return decoded if isinstance(decoded, dict) else {"data": decoded}
        body = decoded[0] if isinstance(decoded, list) and decoded else decoded
        if isinstance(body, dict) and states_error(body) and not _is_response(body):
            in_answer = bool(body.get("choices") or body.get("usage"))
            raise classify(None, body, headers, where=where, secret=self._key(), in_answer=in_answer)
        if isinstance(decoded, list) and len(decoded) == 1 and isinstance(body, dict) and "choices" in body:
            return body  # LoRAX, and text-generation-inference
        if not isinstance(decoded, dict):
            raise self._unreadable("no JSON object", where, headers)
        return decoded

    def _id(self, made: Mapping[str, Any], what: str) -> str:
        """The id of an object that the vendor created, which becomes part of a URL."""
        found = made.get("id")
        if not isinstance(found, str) or not _ID.fullmatch(found):
            raise self._unreadable("without a usable id", self._where(what), {})
        return found

    def parse_answer(
        self, body: dict[str, Any], request: Request | None, where: str, headers: Mapping[str, str]
    ) -> Answer:
        """:meth:`read`; a body of an unexpected shape is a TransientError."""
        try:
            return self.read(body, request)
        except Unreadable as error:
            if words := words_of(body):  # an error of a server that sends it with status 200
                stated = classify(None, body, headers, where=where, secret=self._key())
                raise (
                    self._unreadable(f"{error}: {words}", where, headers)
                    if type(stated) is InvalidRequest
                    else stated
                ) from None
            raise self._unreadable(str(error), where, headers) from None
        except _SHAPE_ERRORS as error:
            raise self._unreadable(f"of an unexpected shape ({type(error).__name__})", where, headers) from None

    def as_answer(self, error: RequestError, request: Request | None = None) -> Answer | RequestError:
        """``error`` itself, or an empty answer for a prompt that the vendor's content filter refused."""
        return _filtered(error, request) if isinstance(error, PromptFiltered) else error

    def _describe(self, error: BaseException) -> str:
        """A short description of a connection error (DNS, TLS, refused, closed)."""
        text = str(error) or str(error.__cause__ or error.__context__ or "") or "the connection broke"
        return one_line(f"no answer ({type(error).__name__}): {text}", self._key())

    @property
    def _transport_errors(self) -> tuple[type[Exception], ...]:
        import httpx2

        return (httpx2.RequestError, httpx2.StreamError)

    def _where(self, what: str) -> str:
        return f"{host_of(self.address)}, {what}"

    def _options(self, timeout_s: float, more: Mapping[str, Any]) -> dict[str, Any]:
        headers = {**self._headers, **more.get("headers", {})}
        for name, value in self.headers.items():
            features = headers.pop(_BETA_HEADER, None) if name.lower() == _BETA_HEADER else None
            headers[name] = value if features is None else f"{features},{value}"
        return {**more, "headers": headers, "timeout": self._timeout(timeout_s)}

    def _timeout(self, timeout_s: float) -> Any:
        import httpx2

        return httpx2.Timeout(timeout_s, connect=min(_CONNECT_TIMEOUT_S, self.timeout_s, timeout_s))

    @property
    def variant(self) -> str:
        """See :attr:`swe_infer.providers.base.Provider.variant`."""
        return json.dumps(dict(self.headers), sort_keys=True) if self.headers else ""

    @property
    def credential(self) -> str | None:
        """See :attr:`swe_infer.providers.base.Provider.credential`."""
        return self._key_variable()

    def _key(self) -> str | None:
        """The key from the environment. Only the SDK's client and the headers of sent requests contain it."""
        variable = self._key_variable()
        return os.environ.get(variable) if variable is not None else None

    def _key_variable(self) -> str | None:
        """The environment variable of the credential that is sent; None: no credential."""
        return self.api_key_env


def _is_response(body: Mapping[str, Any]) -> bool:
    """Whether a body is one of OpenAI's responses, which state an error in addition to their status."""
    return body.get("object") == "response" or isinstance(body.get("output"), list)


async def _parts_of(*parts: bytes) -> AsyncGenerator[bytes, None]:
    for part in parts:
        yield part


async def _iterated(stream: Any) -> AsyncGenerator[Any, None]:
    async for event in stream:
        yield event


def _filtered(error: PromptFiltered, request: Request | None) -> Answer:
    """An empty answer for a prompt that the vendor's content filter refused, without cost unless the filter ended an
    answer."""
    usage, details = Usage(), dict[str, Any](message=str(error))
    if error.in_answer:
        usage, details["usage_estimated"] = checked_usage(None, request, "")
    return Answer("", "content_filter", usage, request_id=error.request_id, details=details)
