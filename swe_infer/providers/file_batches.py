"""What the batches of most vendors share: a file of requests, one JSON line each, and files of answers."""

from __future__ import annotations

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Literal

from swe_infer.errors import InvalidRequest, RequestError, TransientError
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch
from swe_infer.providers.faults import classify, one_line, states_error
from swe_infer.providers.wire import WireProvider, named
from swe_infer.types import ApiModel, Decoding, Request

logger = logging.getLogger(__name__)

LABEL = "swe_infer"
"""The key of the label in a batch's metadata."""
GRACE_S = 600.0
"""How much earlier than ``since`` a batch in a vendor's list may have been created."""

_MAY_SUCCEED_LATER = re.compile(
    r"time.?out|timed out|expired|cancel|rate.?limit|overload|unavailable|internal|server.?error", re.IGNORECASE
)
"""In errors without an HTTP status: the request itself is valid."""
_LONGEST_SEARCHED = 8192


class FileBatches(ABC):
    """Batches of a provider; implements :class:`~swe_infer.providers.base.BatchProvider`.

    Subclasses add one vendor's endpoints. They send with the provider's client.
    """

    max_batch_requests: int
    max_batch_bytes: int
    id_key: ClassVar[str] = "custom_id"
    """The key of the custom id in the lines of all files."""
    running_states: ClassVar[tuple[str, ...]]
    """The states of a batch that has not ended."""

    def __init__(self, provider: WireProvider) -> None:
        self._provider = provider
        self.name, self.address, self.timeout_s = provider.name, provider.address, provider.timeout_s
        self._warned_of_state = False

    def check(self, model: ApiModel, decoding: Decoding) -> None:  # noqa: B027 - most vendors accept all requests
        """Raises ConfigError if the requests of a run, or its address, cannot be sent in batches."""

    @abstractmethod
    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes: ...

    @abstractmethod
    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str: ...

    @abstractmethod
    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]: ...

    @abstractmethod
    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus: ...

    @abstractmethod
    async def cancel(self, batch_id: str, *, timeout_s: float) -> None: ...

    @abstractmethod
    async def _result_files(self, batch_id: str, timeout_s: float) -> Sequence[str]:
        """The paths of the files with the results of an ended batch.

        Raises:
            RequestError: TransientError with status 200 if answers exist and their file is not stated.
        """

    def _result(self, custom_id: str, entry: Mapping[str, Any]) -> Answer | RequestError:
        """The result in one line of a file: a ``response``, which consists of an HTTP status and a body, or an
        ``error``."""
        provider, where = self._provider, self._provider._where(custom_id)
        response, error = entry.get("response"), entry.get("error")
        if not isinstance(response, dict):
            if not error:
                return self._without_response(where)
            return provider.as_answer(self._error_without_response(error, where))
        headers = {"x-request-id": named(response.get("request_id")) or ""}
        status, body = response.get("status_code"), response.get("body")
        known = status if type(status) is int and 100 <= status < 600 else None
        is_answered = status == 200 or (known is None and isinstance(body, dict) and not states_error(body))
        if not is_answered or not isinstance(body, dict):
            stated = body or _error_body(error)
            return provider.as_answer(classify(known, stated, headers, where=where, secret=provider._key()))
        try:
            return provider.parse_answer(body, None, where, headers)
        except RequestError as fault:
            return fault

    def _error_without_response(self, error: Any, where: str) -> RequestError:
        """The error of a line or a batch that a vendor states as a code and a message, or as a text alone. One that
        may pass, such as a timeout, is transient."""
        known = classify(None, _error_body(error), {}, where=where, secret=self._provider._key())
        may_succeed = not error or _MAY_SUCCEED_LATER.search(str(error)[:_LONGEST_SEARCHED])
        if type(known) is InvalidRequest and may_succeed:
            return TransientError(str(known))
        return known

    def _download_options(self) -> Mapping[str, Any]:
        """Headers and query parameters of the requests for files."""
        return {}

    async def results(
        self, batch_id: str, *, timeout_s: float
    ) -> AsyncGenerator[tuple[str, Answer | RequestError], None]:
        broken: RequestError | None = None
        for path in await self._result_files(batch_id, timeout_s):
            lines = self._provider._results(
                path, batch_id, timeout_s=timeout_s, id_key=self.id_key, options=self._download_options()
            )
            try:
                async with aclosing(lines) as entries:
                    async for custom_id, entry in entries:
                        yield custom_id, self._result(custom_id, entry) if isinstance(entry, dict) else entry
            except TransientError as error:
                if error.status != 200:
                    raise
                broken = error  # the other file may be readable
        if broken is not None:
            raise broken

    async def _call(
        self, method: Literal["GET", "POST"], path: str, timeout_s: float, **request: Any
    ) -> dict[str, Any]:
        """The decoded answer of one of the vendor's endpoints for batches and files. Raises RequestError."""
        return await self._provider._call(method, path, timeout_s=timeout_s, **request)

    async def _upload(
        self,
        items: Mapping[str, bytes],
        label: str,
        fields: Mapping[str, str],
        *,
        path: str = "/files",
        timeout_s: float,
    ) -> str:
        """Uploads the file of requests, named after the label, as a multipart form. Returns the file's id."""
        file = (file_name(label), b"".join(items.values()), "application/jsonl")
        multipart = {"headers": {"Content-Type": "multipart/form-data"}}
        uploaded = await self._call(
            "POST", path, timeout_s, body=dict(fields), files=[("file", file)], options=multipart
        )
        return self._provider._id(uploaded, "files")

    def _without_response(self, where: str) -> TransientError:
        """The error for a line with neither a response nor an error. It may be billed."""
        return self._provider._unreadable("without a response and an error", where, {})

    def _missing_answers(self, batch_id: str) -> TransientError:
        """The error for a batch with answers whose file is not stated. They may be billed."""
        return self._provider._unreadable("without the file of its results", self._provider._where(batch_id), {})

    def _state(self, batch_id: str, state: Any) -> str:
        """The stated ``state`` of a batch. Raises TransientError if there is none."""
        if not isinstance(state, str) or not state:
            raise self._provider._unreadable("without a status", self._provider._where(batch_id), {})
        return state

    def _unended(self, batch_id: str, state: str, stated_end: object, done: int = 0, failed: int = 0) -> BatchStatus:
        """The status of a batch that is in none of the final states that are known. In an unknown state it has ended
        if it states when (``stated_end``)."""
        if state in self.running_states:
            return BatchStatus("running", done, failed)
        if not self._warned_of_state:
            self._warned_of_state = True
            what = "it is collected" if stated_end else "it is polled until its state is a known one"
            logger.warning("batch %s has the unknown state %s; %s", batch_id, one_line(state), what)
        return BatchStatus("ended" if stated_end else "running", done, failed)


def file_name(label: str) -> str:
    """The name of a batch's file of requests."""
    return f"{label}.jsonl"


def json_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _error_body(error: Any) -> dict[str, Any]:
    """An error in the form of a vendor's error body."""
    return {"error": error if isinstance(error, dict) else {"message": str(error or "no answer")}}
