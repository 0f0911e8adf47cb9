"""Gemini's batches, in the form of Google's own API: its OpenAI-compatible one can neither upload nor download files.

Format: ``google.genai.batches`` and ``google.genai.files`` of its SDK (the functions for the Gemini Developer API);
https://ai.google.dev/api/batch-api and https://ai.google.dev/gemini-api/docs/batch-api.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from swe_infer.errors import ConfigError, RequestError
from swe_infer.providers.base import Answer, BatchStatus, FoundBatch
from swe_infer.providers.faults import classify, one_line
from swe_infer.providers.file_batches import FileBatches, file_name, json_line
from swe_infer.providers.image_parts import google_part
from swe_infer.providers.usage import Implausible, token_count
from swe_infer.providers.wire import MAX_PAGES
from swe_infer.types import ApiModel, Decoding, Prompt, Request

_ADDRESS = re.compile(r"(?P<root>https?://.+?)/(?P<version>v\d\w*)/openai/?")
_BATCH = re.compile(r"batches/[\w-]+", re.ASCII)
_FILE = re.compile(r"files/[\w-]+", re.ASCII)

_SETTINGS = {
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "stop": "stopSequences",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
"""Fields of ``generationConfig`` by their names in chat completions."""
_OTHER_FIELDS = ("model", "messages", "reasoning_effort", "extra_body")
_THINKING = {
    "thinking_budget": "thinkingBudget",
    "thinking_level": "thinkingLevel",
    "include_thoughts": "includeThoughts",
}
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576}
"""Tokens of thought of Gemini 2.5 by effort (https://ai.google.dev/gemini-api/docs/openai#thinking)."""
_LEVELS = ("minimal", "low", "medium", "high")

_HTTP_STATUS = {2: 500, 3: 400, 4: 504, 5: 404, 7: 403, 8: 429, 9: 400, 10: 409, 11: 400, 13: 500, 14: 503, 16: 401}
"""By ``google.rpc.Code``, as which batches state errors."""
_CANCELLED = 1
_EXHAUSTED = 8


class GeminiBatches(FileBatches):
    """Batches of ``generateContent``. Requests and answers are translated from and to chat completions."""

    max_batch_requests = 50_000
    """Google states no limit."""
    max_batch_bytes = 2_000_000_000
    id_key = "key"
    running_states = ("UNSPECIFIED", "QUEUED", "PENDING", "RUNNING", "UPDATING", "PAUSED", "CANCELLING")

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        if not _ADDRESS.fullmatch(self.address):
            raise ConfigError(
                f"provider.base_url={one_line(self.address)}: batches of Gemini need an address that ends with a "
                "version and /openai, such as https://generativelanguage.googleapis.com/v1beta/openai/"
            )
        body = self._provider.body(Request("", 0, Prompt(None, ""), decoding), model)
        _thinking_config(model, body)
        for name in body:
            if name not in (*_SETTINGS, *_OTHER_FIELDS):
                key = f"model.extra_body.{name}" if name in model.extra_body else f"provider.mode=batch: {name}"
                raise ConfigError(
                    f"{key}: Gemini's batches have no such field; leave it out, or set provider.mode=live"
                )

    def batch_item(self, custom_id: str, request: Request, model: ApiModel) -> bytes:
        return json_line({"key": custom_id, "request": _native_request(self._provider.body(request, model), model)})

    async def submit(self, items: Mapping[str, bytes], model: ApiModel, *, label: str, timeout_s: float) -> str:
        uploaded = await self._upload_resumable(b"".join(items.values()), label, timeout_s)
        order = {"batch": {"displayName": label, "inputConfig": {"fileName": uploaded}}}
        name = quote(model.name.removeprefix("models/"), safe="")
        created = await self._google("POST", self._url(f"models/{name}:batchGenerateContent"), timeout_s, body=order)
        return self._resource(created.get("name"), _BATCH, "batches")

    async def find(self, label: str, *, since: float, timeout_s: float) -> list[FoundBatch]:
        provider = self._provider
        found: list[FoundBatch] = []
        params: dict[str, Any] = {"pageSize": 100}
        for _ in range(MAX_PAGES):
            page = await self._google("GET", self._url("batches"), timeout_s, options={"params": params})
            with provider._shape_errors("batches"):
                for job in page.get("operations") or []:
                    facts = job.get("metadata") or {}
                    if facts.get("displayName") == label:
                        batch_id = self._resource(job.get("name"), _BATCH, "batches")
                        found.append(FoundBatch(batch_id, certain=True, total=_counts(facts)[0]))
                if not page.get("nextPageToken"):
                    return found
                params["pageToken"] = page["nextPageToken"].encode().decode()  # ValueError: it cannot be in a URL
        raise provider._unreadable("an endless list", provider._where("batches"), {})

    async def status(self, batch_id: str, *, timeout_s: float) -> BatchStatus:
        job = await self._google("GET", self._url(batch_id), timeout_s, describes_failures=True)
        with self._provider._shape_errors(batch_id):
            facts = job.get("metadata") or {}
            _, done, failed = _counts(facts)
        match state := self._short_state(batch_id, facts):
            case "SUCCEEDED" | "PARTIALLY_SUCCEEDED" | "CANCELLED" | "EXPIRED":
                return BatchStatus("ended", done, failed)
            case "FAILED" if done or _answer_file(job):
                return BatchStatus("ended", done, failed)
            case "FAILED":
                return BatchStatus("failed", error=self._google_error(job.get("error"), batch_id))
            case _:
                return self._unended(batch_id, state, job.get("done"), done, failed)

    async def cancel(self, batch_id: str, *, timeout_s: float) -> None:
        await self._google("POST", self._url(f"{batch_id}:cancel"), timeout_s, describes_failures=True)

    async def _result_files(self, batch_id: str, timeout_s: float) -> Sequence[str]:
        job = await self._google("GET", self._url(batch_id), timeout_s, describes_failures=True)
        with self._provider._shape_errors(batch_id):
            facts = job.get("metadata") or {}
            done = _counts(facts)[1]
        if (answers := _answer_file(job)) is None:
            if done or self._short_state(batch_id, facts).endswith("SUCCEEDED"):
                raise self._missing_answers(batch_id)
            return []
        return [self._url(f"{self._resource(answers, _FILE, batch_id)}:download", kind="/download")]

    def _download_options(self) -> Mapping[str, Any]:
        return {"headers": self._headers(), "params": {"alt": "media"}}

    def _result(self, custom_id: str, entry: Mapping[str, Any]) -> Answer | RequestError:
        provider, response = self._provider, entry.get("response")
        if not isinstance(response, dict):
            if not (error := entry.get("error")):
                return self._without_response(provider._where(custom_id))
            return provider.as_answer(self._google_error(error, custom_id))
        try:
            with provider._shape_errors(custom_id):
                chat = _chat_body(response)
            return provider.parse_answer(chat, None, provider._where(custom_id), {})
        except RequestError as unreadable:
            return unreadable

    # Google's endpoints.

    def _url(self, resource: str, *, kind: Literal["", "/upload", "/download"] = "") -> str:
        """The URL of a resource beside the OpenAI-compatible API."""
        match = _ADDRESS.fullmatch(self.address)
        assert match is not None  # see check()
        return f"{match['root']}{kind}/{match['version']}/{resource}"

    def _headers(self) -> dict[str, Any]:
        key = self._provider._key()
        return {} if key is None else {"Authorization": self._provider._sdk.Omit(), "x-goog-api-key": key}

    async def _google(
        self, method: Literal["GET", "POST"], url: str, timeout_s: float, **request: Any
    ) -> dict[str, Any]:
        options = {**request.pop("options", {})}
        options["headers"] = {**self._headers(), **options.get("headers", {})}
        return await self._call(method, url, timeout_s, options=options, **request)

    async def _upload_resumable(self, content: bytes, label: str, timeout_s: float) -> str:
        """Uploads the file of requests in one piece. Returns the file's name.

        As Google's SDK does with an address of its own, the second request goes to this provider's host, whichever
        host the first response names.
        """
        import httpx2

        provider, kind = self._provider, "application/jsonl"
        start = {
            **self._headers(),
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(len(content)),
            "X-Goog-Upload-Header-Content-Type": kind,
        }
        where = provider._where("files")
        async with provider._translated(where, timeout_s):
            response = await provider._client.post(
                self._url("files", kind="/upload"),
                cast_to=httpx2.Response,
                body={"file": {"displayName": file_name(label)}},
                options=provider._options(timeout_s, {"headers": start}),
            )
        stated = urlsplit(response.headers.get("x-goog-upload-url", ""))
        if not stated.path.startswith("/"):
            raise provider._unreadable("without an address for the upload", where, response.headers)
        url = urlsplit(self.address)._replace(path=stated.path, query=stated.query).geturl()
        finish = {
            **self._headers(),
            "Content-Type": kind,
            "X-Goog-Upload-Command": "upload, finalize",
            "X-Goog-Upload-Offset": "0",
        }
        made = await self._call("POST", url, timeout_s, content=content, options={"headers": finish})
        file = made.get("file")
        return self._resource(file.get("name") if isinstance(file, dict) else None, _FILE, "files")

    def _resource(self, name: Any, form: re.Pattern[str], what: str) -> str:
        """The name of a resource that Google created, which becomes part of a URL."""
        if not isinstance(name, str) or len(name) > 256 or not form.fullmatch(name):
            raise self._provider._unreadable("without a usable name", self._provider._where(what), {})
        return name

    def _short_state(self, batch_id: str, facts: Mapping[str, Any]) -> str:
        """The state without its prefix, which is ``BATCH_STATE_`` in Google's reference and ``JOB_STATE_`` in its
        guide."""
        return self._state(batch_id, facts.get("state")).rpartition("_STATE_")[2]

    def _google_error(self, error: Any, what: str) -> RequestError:
        """The error for a ``google.rpc.Status``."""
        where, stated = self._provider._where(what), error if isinstance(error, dict) else {"message": error}
        code = stated.get("code")
        if code is None or code == _CANCELLED:
            return self._error_without_response(error, where)
        status = _HTTP_STATUS.get(code, code) if type(code) is int else None
        body = {**stated, "code": status}
        if code == _EXHAUSTED:
            body.setdefault("status", "RESOURCE_EXHAUSTED")
        return classify(None, {"error": body}, {}, where=where, secret=self._provider._key())


def _counts(facts: Mapping[str, Any]) -> tuple[int, int, int]:
    """(requests, answers, errors) of a batch. Google writes 64-bit integers as text."""
    stats = facts.get("batchStats") or {}
    counts = [stats.get(f"{kind}equestCount") or 0 for kind in ("r", "successfulR", "failedR")]
    total, done, failed = (int(n) if isinstance(n, int | str) and len(str(n)) < 20 else 0 for n in counts)
    return max(0, total), max(0, done), max(0, failed)


def _answer_file(job: Mapping[str, Any]) -> Any:
    """The name of the file with the answers of a batch; None if it has none."""
    facts = job.get("metadata")
    output = facts.get("output") if isinstance(facts, dict) else None
    for holder in (job.get("response"), output):
        if isinstance(holder, dict) and holder.get("responsesFile"):
            return holder["responsesFile"]
    return None


def _native_request(body: Mapping[str, Any], model: ApiModel) -> dict[str, Any]:
    """A body of chat completions as a ``GenerateContentRequest``."""
    system = [message for message in body["messages"] if message["role"] == "system"]
    contents = [
        {"role": "model" if message["role"] == "assistant" else "user", "parts": _parts(message["content"])}
        for message in body["messages"]
        if message["role"] != "system"
    ]
    config = {_SETTINGS[name]: value for name, value in body.items() if name in _SETTINGS}
    if thinking := _thinking_config(model, body):
        config["thinkingConfig"] = thinking
    instruction = {"systemInstruction": {"parts": _parts(system[0]["content"])}} if system else {}
    return {"contents": contents, **instruction, "generationConfig": config}


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"text": content}]
    return [
        google_part(part["image_url"]["url"]) if part["type"] == "image_url" else {"text": part["text"]}
        for part in content
    ]


def _thinking_config(model: ApiModel, fields: Mapping[str, Any]) -> dict[str, Any]:
    """``thinkingConfig`` for the fields of chat completions.

    Raises:
        ConfigError: a field has no counterpart.
    """
    given: Any = fields.get("extra_body") or {}
    path = "extra_body"
    for name in ("google", "thinking_config"):
        if not isinstance(given, Mapping) or set(given) - {name}:
            raise ConfigError(f"model.extra_body.{path}: with Gemini's batches it may have the field {name} alone")
        given = given.get(name) or {}
        path = f"{path}.{name}"
    if not isinstance(given, Mapping) or set(given) - set(_THINKING):
        raise ConfigError(f"model.extra_body.{path}: must have no fields but {', '.join(_THINKING)}")
    config = {_THINKING[name]: value for name, value in given.items()}
    effort = fields.get("reasoning_effort")
    if effort is None:
        return config
    is_budget = "gemini-2.5" in model.name
    known = tuple(_BUDGETS) if is_budget else _LEVELS
    if effort not in known:
        raise ConfigError(
            f"model.extra_body.reasoning_effort={one_line(str(effort))}: must be one of {', '.join(known)}"
        )
    if is_budget:
        return {"thinkingBudget": _BUDGETS[effort], **config}
    level = "low" if effort == "minimal" and "-pro" in model.name else effort
    return {"thinkingLevel": level.upper(), **config}


def _chat_body(response: Mapping[str, Any]) -> dict[str, Any]:
    """A ``GenerateContentResponse`` as a body of chat completions. A prompt that was blocked is a filtered answer."""
    choices: list[dict[str, Any]] = []
    for candidate in response.get("candidates") or []:
        parts = (candidate.get("content") or {}).get("parts") or []
        texts = [part for part in parts if isinstance(part.get("text"), str)]
        calls = [part["functionCall"] for part in parts if part.get("functionCall")]
        message = {
            "content": "".join(part["text"] for part in texts if not part.get("thought")),
            "reasoning_content": "".join(part["text"] for part in texts if part.get("thought")),
            "tool_calls": [{"function": {"name": c.get("name"), "arguments": c.get("args")}} for c in calls],
        }
        choices.append({"message": message, "finish_reason": candidate.get("finishReason")})
    if not choices and (response.get("promptFeedback") or {}).get("blockReason"):
        choices = [{"message": {"content": ""}, "finish_reason": "content_filter"}]
    usage = _chat_usage(response.get("usageMetadata"))
    return {"model": response.get("modelVersion"), "choices": choices, "usage": usage}


def _chat_usage(usage: Any) -> dict[str, Any] | None:
    """Token counts as chat completions state them. Google's ``candidatesTokenCount`` does not include thoughts."""
    try:
        thoughts, texts = token_count(usage, "thoughtsTokenCount"), token_count(usage, "candidatesTokenCount")
    except Implausible:  # the answer is kept, and its usage estimated
        return None
    return {
        "prompt_tokens": usage.get("promptTokenCount"),
        "completion_tokens": texts + thoughts,
        "total_tokens": usage.get("totalTokenCount"),
        "prompt_tokens_details": {"cached_tokens": usage.get("cachedContentTokenCount")},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }
