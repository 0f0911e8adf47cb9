"""The base of the OpenAI providers: the SDK's client, and batches.

A batch is a file of requests, one JSON line each, and a file of answers. Format and limits:
https://platform.openai.com/docs/guides/batch.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from swe_infer.errors import ConfigError, RequestError, TransientError
from swe_infer.options import Option
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch, PriceTerms
from swe_infer.providers.faults import classify, one_line
from swe_infer.providers.image_parts import image_fault
from swe_infer.providers.wire import MAX_PAGES, WireProvider, named, price_terms_of, whole_number
from swe_infer.types import ApiModel, Decoding, Request

OPENAI = "https://api.openai.com/v1"
COUNT_PATH = "/responses/input_tokens"
"""Counts the input of a request to the Responses API (openai.types.responses.InputTokenCountParams)."""


@dataclass(kw_only=True, eq=False, repr=False)
class OpenAIProvider(WireProvider):
    """A provider behind ``AsyncOpenAI``, which reads OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS."""

    address_env: ClassVar[str | None] = "OPENAI_BASE_URL"
    headers_env: ClassVar[str | None] = "OPENAI_CUSTOM_HEADERS"
    header_values_env: ClassVar[tuple[str, ...]] = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")
    has_fixed_headers: ClassVar[bool] = True
    service_tiers: ClassVar[tuple[str, ...]] = ("auto", "default", "flex", "scale", "priority", "fast")
    """OpenAI's service tiers (openai.types.chat.CompletionCreateParams)."""

    service_tier: Annotated[
        str | None,
        Option(
            "Service tier, such as flex, priority or auto; null: none, or under a budget the standard one.", "speed"
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._tier_is_fixed = False

    def own_address(self) -> str:
        return OPENAI

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        tiers = self.service_tiers
        if self.service_tier is not None and self._is_openai() and self._tier() not in tiers:
            raise ConfigError(
                f"provider.service_tier={one_line(self.service_tier)}: must be one of {', '.join(tiers)}, or null"
            )

    def _is_openai(self) -> bool:
        """Whether the server has OpenAI's service tiers."""
        return True

    def fix_service_tier(self) -> None:
        self._tier_is_fixed = True

    def price_terms(self, model: ApiModel) -> PriceTerms:
        """OpenAI caches prompts unless a request says otherwise."""
        sent = {**self._cost_fields(model), **model.extra_body}
        options = sent.get("prompt_cache_options")
        explicit = isinstance(options, Mapping) and options.get("mode") == "explicit"
        return price_terms_of(sent, caches_unasked=not explicit)

    def _cost_fields(self, model: ApiModel) -> dict[str, Any]:
        """The fields of a request that does not share its prompt which decide its price."""
        return self._tier_field(model)

    def _tier_field(self, model: ApiModel) -> dict[str, Any]:
        if self.service_tier is not None:
            return {"service_tier": self._tier()}
        fixed = self._tier_is_fixed and "service_tier" not in model.extra_body
        return {"service_tier": "default"} if fixed else {}

    def _tier(self) -> str | None:
        """The vendor's name of the tier."""
        return "default" if self.service_tier == "standard" else self.service_tier

    def _http_client(self, **settings: Any) -> Any:
        import openai

        return openai.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import openai

        client = openai.AsyncOpenAI(base_url=self.address, api_key=key, max_retries=0, http_client=http)
        return openai, client


_LABEL = "swe_infer"
_GRACE_S = 600.0
_STATES = {"completed": "ended", "expired": "ended", "cancelled": "ended", "failed": "failed"}


class OpenAIBatches(OpenAIProvider):
    """Batches of an OpenAI API; implements :class:`~swe_infer.providers.base.BatchProvider`."""

    max_batch_requests: int = 50_000
    max_batch_bytes: int = 200_000_000
    batch_endpoint: ClassVar[str]
    """The endpoint of the requests in a batch."""

    @property
    def has_batches(self) -> bool:
        return True

    def image_fault(self, model: ApiModel, images: Sequence[str]) -> str | None:
        return image_fault(model)

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        body = {**self.body(request, model), "stream": False}
        line = {"custom_id": custom_id, "method": "POST", "url": self.batch_endpoint, "body": body}
        return json.dumps(line, separators=(",", ":")).encode() + b"\n"

    async def submit(self, items: Mapping[str, bytes], *, label: str, timeout_s: float) -> str:
        file = (f"{label}.jsonl", b"".join(items.values()), "application/jsonl")
        multipart = {"headers": {"Content-Type": "multipart/form-data"}}
        uploaded = await self._call(
            "POST",
            "/files",
            timeout_s=timeout_s,
            body={"purpose": "batch"},
            files=[("file", file)],
            options=multipart,
        )
        order = {
            "input_file_id": self._id(uploaded, "files"),
            "endpoint": self.batch_endpoint,
            "completion_window": "24h",
            "metadata": {_LABEL: label},
        }
        batch = await self._call("POST", "/batches", timeout_s=timeout_s, body=order)
        return self._id(batch, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"limit": 100}
        for _ in range(MAX_PAGES):
            page = await self._call("GET", "/batches", timeout_s=timeout_s, options={"params": params})
            with self._shape_errors("batches"):
                batches = page.get("data") or []
                for batch in batches:
                    if (batch.get("metadata") or {}).get(_LABEL) == label:
                        found.append(FoundBatch(self._id(batch, "batches"), certain=True, total=_counts(batch)[0]))
                # Newest first: entries before ``since`` are not needed.
                if not page.get("has_more") or not batches or batches[-1]["created_at"] < since - _GRACE_S:
                    return found
                params["after"] = self._id(batches[-1], "batches")
        raise self._unreadable("an endless list", self._where("batches"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s=timeout_s)
        with self._shape_errors(batch_id):
            total, done = _counts(batch)
            error = None
            if batch.get("status") == "failed":
                causes = (batch.get("errors") or {}).get("data") or [{}]
                error = classify(None, {"error": causes[0]}, {}, where=self._where(batch_id), secret=self._key())
            state: Any = _STATES.get(str(batch.get("status")), "running")
            return BatchStatus(state, total, done, error)

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        batch = await self._call("GET", f"/batches/{batch_id}", timeout_s=timeout_s)
        broken: RequestError | None = None
        for key in ("output_file_id", "error_file_id"):
            if not batch.get(key):
                continue
            path = f"/files/{self._id({'id': batch[key]}, batch_id)}/content"
            try:
                async with aclosing(self._results(path, batch_id, timeout_s=timeout_s)) as entries:
                    async for custom_id, entry in entries:
                        yield custom_id, self._result(custom_id, entry)
            except TransientError as error:
                if error.status != 200:
                    raise
                broken = error  # the other file may be readable
        if broken is not None:
            raise broken

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"/batches/{batch_id}/cancel", timeout_s=timeout_s)

    def _result(self, custom_id: str, entry: dict[str, Any] | RequestError) -> Answer | RequestError:
        """The result in one line of an output or error file."""
        if isinstance(entry, RequestError):
            return entry
        where = self._where(custom_id)
        response = entry.get("response")
        if not isinstance(response, dict):
            error = entry.get("error")
            words = (
                [named(error.get(key)) for key in ("code", "message")] if isinstance(error, dict) else ["no answer"]
            )
            return TransientError(one_line(f"{where}: {': '.join(map(str, words))}", self._key()))
        headers = {"x-request-id": named(response.get("request_id")) or ""}
        status, body = response.get("status_code"), response.get("body")
        if status != 200 or not isinstance(body, dict):
            known = status if type(status) is int and 100 <= status < 600 else None
            return self.as_answer(classify(known, body, headers, where=where, secret=self._key()))
        try:
            return self.parse_answer(body, None, where, headers)
        except RequestError as error:
            return error


def _counts(batch: Mapping[str, Any]) -> tuple[int, int]:
    counts = batch.get("request_counts") or {}
    return whole_number(counts.get("total")), whole_number(counts.get("completed"))
