"""The base of the Anthropic providers: the SDK's client, and Message Batches.

Format and limits of batches: https://docs.anthropic.com/en/api/creating-message-batches.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from swe_infer.errors import ConfigError, RequestError, TransientError
from swe_infer.options import Option
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch
from swe_infer.providers.faults import classify, one_line
from swe_infer.providers.usage import whole_number
from swe_infer.providers.wire import MAX_PAGES, WireProvider, named
from swe_infer.text import log_once
from swe_infer.types import ApiModel, Decoding, Request

logger = logging.getLogger(__name__)

ANTHROPIC = "https://api.anthropic.com"
_KEY_VARIABLE = "ANTHROPIC_API_KEY"
_TOKEN_VARIABLE = "ANTHROPIC_AUTH_TOKEN"
_OTHER_CREDENTIALS = ("ANTHROPIC_PROFILE", "ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_FILE")
"""Credentials that the SDK supports and this program does not."""

FIRST_WITHOUT_SAMPLING = "2026-10-21"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(kw_only=True, eq=False, repr=False)
class AnthropicProvider(WireProvider):
    """A provider that uses ``AsyncAnthropic``. The API version depends on the model: from 2026-10-21 on it accepts no
    sampling parameters.

    A token in ANTHROPIC_AUTH_TOKEN is used if ANTHROPIC_API_KEY is not set, as in the SDK.
    """

    address_env: ClassVar[str | None] = "ANTHROPIC_BASE_URL"
    headers_env: ClassVar[str | None] = "ANTHROPIC_CUSTOM_HEADERS"

    has_fixed_headers: ClassVar[bool] = True
    address_may_be_versioned: ClassVar[bool] = False
    """Whether ``base_url`` may end in ``/v1``; Anthropic's SDK adds it."""

    base_url: Annotated[
        str | None,
        Option("The root URL, without /v1; null: ANTHROPIC_BASE_URL, or https://api.anthropic.com.", "address"),
    ] = None
    api_key_env: Annotated[
        str | None,
        Option("The environment variable with the API key; if it is not set: ANTHROPIC_AUTH_TOKEN.", "address"),
    ] = _KEY_VARIABLE
    pricing_id: str | None = "anthropic"
    api_version: Annotated[str, Option("anthropic-version, unless model.api_version is set.", "answer")] = (
        "2023-06-01"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _DATE.fullmatch(self.api_version):
            raise ConfigError(f"provider.api_version={one_line(self.api_version)}: must be a date such as 2023-06-01")

    @property
    def temperature_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    def own_address(self) -> str:
        return ANTHROPIC

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        super().check(model, decoding)
        if not self.address_may_be_versioned and urlsplit(self.address).path.rstrip("/").endswith("/v1"):
            raise ConfigError(f"provider.base_url={one_line(self.address)}: must be the root, without /v1")
        version = model.api_version or self.api_version
        if not _DATE.fullmatch(version):
            raise ConfigError(f"model.api_version={one_line(version)}: must be a date such as 2023-06-01")
        for key, value in (("temperature", decoding.temperature), ("top_p", decoding.top_p)):
            if value is not None and version >= FIRST_WITHOUT_SAMPLING:
                raise ConfigError(
                    f"decoding.{key}={value}: anthropic-version {version} does not support {key}; set "
                    f"decoding.{key}=null, or model.api_version=2023-06-01 if the model still supports it"
                )

    def check_access(self) -> None:
        if self.api_key_env == _KEY_VARIABLE and not self._key():
            for variable in _OTHER_CREDENTIALS:
                if os.environ.get(variable):
                    raise ConfigError(
                        f"{variable} is not supported: put an API key into {_KEY_VARIABLE}, or a token into "
                        f"{_TOKEN_VARIABLE}"
                    )
        super().check_access()
        if os.environ.get(_TOKEN_VARIABLE) and self._key_variable() not in (None, _TOKEN_VARIABLE):
            log_once(logger, logging.WARNING, f"{self._key_variable()} is used, and {_TOKEN_VARIABLE} is not")

    def _key_variable(self) -> str | None:
        if (
            self.api_key_env == _KEY_VARIABLE
            and not os.environ.get(_KEY_VARIABLE)
            and os.environ.get(_TOKEN_VARIABLE)
        ):
            return _TOKEN_VARIABLE
        return self.api_key_env

    def request_options(self, model: ApiModel) -> dict[str, Any]:
        return {"headers": {"anthropic-version": model.api_version}} if model.api_version else {}

    def _http_client(self, **settings: Any) -> Any:
        import anthropic

        return anthropic.DefaultAsyncHttpxClient(**settings)

    def _open_client(self, http: Any, key: str) -> tuple[Any, Any]:
        import anthropic

        is_token = self._key_variable() == _TOKEN_VARIABLE
        client = anthropic.AsyncAnthropic(
            base_url=self.address,
            api_key=None if is_token else key,
            auth_token=key if is_token else None,
            default_headers={"anthropic-version": self.api_version},
            max_retries=0,
            http_client=http,
        )
        return anthropic, client


_PATH = "/v1/messages/batches"
_GRACE_S = 600.0


class AnthropicBatches(AnthropicProvider):
    """Batches of Messages; implements :class:`~swe_infer.providers.base.BatchProvider`.

    Anthropic's batches have no names. The label is in the custom ids of the results, after the batch has ended.
    """

    max_batch_requests: int = 100_000
    max_batch_bytes: int = 256_000_000

    @property
    def has_batches(self) -> bool:
        return True

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        item = {"custom_id": custom_id, "params": {**self.body(request, model), "stream": False}}
        return json.dumps(item, separators=(",", ":")).encode()

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        order = b'{"requests":[' + b",".join(items.values()) + b"]}"
        headers = {"content-type": "application/json"}
        batch = await self._call("POST", _PATH, timeout_s=timeout_s, content=order, options={"headers": headers})
        return self._id(batch, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"limit": 100}
        for _ in range(MAX_PAGES):
            page = await self._call("GET", _PATH, timeout_s=timeout_s, options={"params": params})
            with self._shape_errors("batches"):
                listed = page.get("data") or []
                batches = [b for b in listed if _created(b) >= since - _GRACE_S]
                named_ids = [self._id(batch, "batches") for batch in batches]
            for batch, batch_id in zip(batches, named_ids, strict=True):
                ended = batch.get("processing_status") == "ended"
                if not ended or await self._has_label(label, batch_id, timeout_s):
                    found.append(FoundBatch(batch_id, certain=ended, total=_total(batch)))
            if not page.get("has_more") or not listed or len(batches) < len(listed):  # newest first
                return found
            params["after_id"] = self._id({"id": page.get("last_id")}, "batches")
        raise self._unreadable("an endless list", self._where("batches"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        batch = await self._call("GET", f"{_PATH}/{batch_id}", timeout_s=timeout_s)
        with self._shape_errors(batch_id):
            done = whole_number((batch.get("request_counts") or {}).get("succeeded"))
            state: Any = "ended" if batch.get("processing_status") == "ended" else "running"
            return BatchStatus(state, done, failed=_total(batch) - done)

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        # Not the batch's results_url, which may be on another host.
        path = f"{_PATH}/{batch_id}/results"
        async with aclosing(self._results(path, batch_id, timeout_s=timeout_s)) as entries:
            async for custom_id, entry in entries:
                yield custom_id, self._result(custom_id, entry)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._call("POST", f"{_PATH}/{batch_id}/cancel", timeout_s=timeout_s)

    async def _has_label(self, label: str, batch_id: str, timeout_s: float) -> bool:
        """Whether an ended batch's first result has a custom id that begins with ``label``."""
        async with aclosing(self.results(batch_id, timeout_s=timeout_s)) as results:
            async for custom_id, _ in results:
                return custom_id.startswith(label)
        return False

    def _result(self, custom_id: str, entry: dict[str, Any] | RequestError) -> Answer | RequestError:
        if isinstance(entry, RequestError):
            return entry
        where = self._where(custom_id)
        result = entry["result"] if isinstance(entry.get("result"), dict) else {}
        kind = result.get("type")
        if kind == "succeeded":
            message = result.get("message")
            try:
                return self.parse_answer(message if isinstance(message, dict) else {}, None, where, {})
            except RequestError as error:
                return error
        if kind == "errored":
            return self.as_answer(classify(None, result.get("error") or {}, {}, where=where, secret=self._key()))
        return TransientError(f"{where}: the request {named(kind) or 'failed'} in its batch")


def _created(batch: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(batch["created_at"]).timestamp()
    except (ValueError, TypeError, KeyError, OverflowError, OSError):
        return float("inf")  # unknown: not skipped


def _total(batch: Mapping[str, Any]) -> int:
    counts = batch.get("request_counts")
    return sum(map(whole_number, counts.values())) if isinstance(counts, dict) else 0
