"""Parses requests to the loopback API server: the vendor's format, the prompt, the limits.

Every vendor's body is reduced to one :class:`Call`, so that answers, usage, faults and the log are written once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tests.support.api_clouds import Cloud, cloud_of, unwrapped

__all__ = ["COUNTING", "AnswerFunction", "Call", "Dialect", "dialect_of", "parse_call", "small_patch", "tokens"]

Dialect = Literal["openai_chat", "openai_responses", "anthropic_messages", "anthropic_complete"]

AnswerFunction = Callable[[str], str]
"""Prompt to answer."""

_PATHS: tuple[tuple[re.Pattern[str], Dialect], ...] = (
    (re.compile(r"(/v1|/openai/v1|/v1beta/openai)?/chat/completions"), "openai_chat"),
    (re.compile(r"/openai/deployments/[^/]+/chat/completions"), "openai_chat"),
    (re.compile(r"(/v1|/openai|/openai/v1)?/responses"), "openai_responses"),
    (re.compile(r"/v1/messages"), "anthropic_messages"),
    (re.compile(r"/v1/complete"), "anthropic_complete"),
)

COUNTING: dict[str, Dialect] = {
    "/v1/responses/input_tokens": "openai_responses",
    "/v1/messages/count_tokens": "anthropic_messages",
}
"""The paths of the vendors' free counting endpoints."""

IMAGE_TOKENS = 700

_TEXT_PARTS = {"openai_chat": "text", "openai_responses": "input_text", "anthropic_messages": "text"}
"""The type of a text in a message's content."""

_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class Call:
    """One request for an answer.

    Args:
        prompt: system and user text joined by a newline, as :attr:`swe_infer.types.Prompt.text` has them.
        cache_prefix: the text up to the last ``cache_control`` mark (Anthropic); None without a mark.
        thinking: the answer begins with a thinking block (Anthropic) or bills reasoning tokens (OpenAI).
        images: number of images, which are billed as :data:`IMAGE_TOKENS` each.
    """

    dialect: Dialect
    model: str
    prompt: str
    max_tokens: int | None
    n: int
    stream: bool
    stop: tuple[str, ...]
    seed: int | None
    cache_prefix: str | None
    thinking: bool
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    azure: bool = False
    batch: bool = False
    cloud: Cloud | None = None
    images: int = 0

    @property
    def vendor(self) -> Literal["openai", "anthropic"]:
        return "openai" if self.dialect.startswith("openai") else "anthropic"

    @property
    def input_tokens(self) -> int:
        return tokens(self.prompt) + 3 + IMAGE_TOKENS * self.images

    @property
    def cached_for_an_hour(self) -> bool:
        """Whether a ``cache_control`` mark asks for an hour."""
        return '"ttl": "1h"' in json.dumps(self.body)


def tokens(text: str) -> int:
    """The server's token count: four characters each."""
    return (len(text) + 3) // 4


def dialect_of(path: str) -> Dialect | None:
    if cloud_of(path) is not None:
        return "anthropic_messages"
    return next((dialect for pattern, dialect in _PATHS if pattern.fullmatch(path)), None)


def parse_call(
    dialect: Dialect, path: str, headers: Mapping[str, str], body: Mapping[str, Any], *, batch: bool = False
) -> Call:
    """Read a vendor's body. Raises KeyError, TypeError or ValueError if it lacks a required field."""
    cloud = cloud_of(path)
    if cloud is not None:
        body = unwrapped(path, body)
    prompt, prefix = _prompt(dialect, body)
    deployment = re.match(r"/openai/deployments/([^/]+)/", path)
    model = deployment[1] if deployment else body["model"]
    limit_keys = {
        "openai_chat": ("max_completion_tokens", "max_tokens"),
        "openai_responses": ("max_output_tokens",),
        "anthropic_messages": ("max_tokens",),
        "anthropic_complete": ("max_tokens_to_sample",),
    }[dialect]
    limit = next((body[key] for key in limit_keys if body.get(key) is not None), None)
    if limit is None and dialect.startswith("anthropic"):
        raise KeyError(limit_keys[0])
    stop = body.get("stop") or body.get("stop_sequences") or ()
    thinking = body.get("thinking") or {}
    return Call(
        dialect=dialect,
        model=model,
        prompt=prompt,
        max_tokens=limit,
        n=body.get("n") or 1,
        stream=bool(body.get("stream")),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        seed=body.get("seed"),
        cache_prefix=prefix,
        thinking=thinking.get("type") in ("enabled", "adaptive") or bool(re.match(r"(o\d|gpt-5)", model)),
        body=body,
        headers=headers,
        azure=path.startswith("/openai/"),
        batch=batch,
        cloud=cloud,
        images=sum(_is_image(dialect, block) for block in _blocks(dialect, body)),
    )


def _blocks(dialect: Dialect, body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The parts of all messages whose content is a list of parts."""
    messages = body.get("input" if dialect == "openai_responses" else "messages") or []
    contents = [message["content"] for message in messages] if isinstance(messages, list) else []
    return [block for content in contents if isinstance(content, list) for block in content]


def _is_image(dialect: Dialect, block: Mapping[str, Any]) -> bool:
    """Whether a part is an image, not a text. Raises ValueError if the vendor would refuse it."""
    match dialect, block:
        case ("openai_chat", {"type": "image_url", "image_url": {"url": str(url)}}):
            pass
        case ("openai_responses", {"type": "input_image", "image_url": str(url)}):
            pass
        case ("anthropic_messages", {"type": "image", "source": {"type": "url", "url": str(url)}}):
            if not url.startswith(("http://", "https://")):
                raise ValueError("messages: only HTTP and HTTPS URLs are supported")
        case ("anthropic_messages", {"type": "image", "source": {"type": "base64", "media_type": _, "data": _}}):
            return True
        case (_, {"type": kind, "text": str()}) if kind == _TEXT_PARTS.get(dialect):
            return False
        case _:
            raise ValueError(f"Invalid value: {block.get('type')!r}")
    if not url.startswith(("http://", "https://", "data:image/")):
        raise ValueError(f"Invalid image URL: {url[:80]!r}")
    return True


def _prompt(dialect: Dialect, body: Mapping[str, Any]) -> tuple[str, str | None]:
    """(whole text, text up to the last cache mark)."""
    if dialect == "anthropic_complete":
        text = body["prompt"]
        if not text.startswith(_HUMAN) or not text.rstrip().endswith(_ASSISTANT.strip()):
            raise ValueError("prompt must start with a human turn and end with an assistant turn")
        human = text[len(_HUMAN) : text.rindex(_ASSISTANT)]
        return human.removeprefix(" "), None
    pieces: list[str] = []
    marked = 0
    if dialect == "anthropic_messages":
        messages = [{"content": body["system"]}] if body.get("system") else []
        messages += body["messages"]
    elif dialect == "openai_responses":
        given = body["input"]
        messages = [{"content": body["instructions"]}] if body.get("instructions") else []
        messages += [{"content": given}] if isinstance(given, str) else given
    else:
        messages = body["messages"]
    for message in messages:
        content = message["content"]
        blocks = [{"text": content}] if isinstance(content, str) else content
        pieces.append("".join(block["text"] for block in blocks if "text" in block))
        if any("cache_control" in block for block in blocks):
            marked = len(pieces)
    return "\n".join(pieces), "\n".join(pieces[:marked]) if marked else None


def small_patch(call: Call, index: int = 0) -> str:
    """The default answer: a fenced patch that depends on the prompt, the seed and the choice, and on nothing else.

    It adds a comment at the top of the first file that the prompt shows, and so applies to it.
    """
    digest = hashlib.blake2b(f"{call.prompt}\x1f{call.seed}\x1f{index}".encode(), digest_size=6).hexdigest()
    start = f"\n{call.prompt}".find("\n[start of ")  # a plain search: a pattern would look at every line
    match = re.compile(r"\[start of ([^\n]+)\]\n([^\n]*)").match(call.prompt, max(0, start))
    path, line = (match[1], re.sub(r"^\d+ ?", "", match[2])) if match else ("module.py", "import os")
    hunk = f"@@ -1,1 +1,2 @@\n+# {digest}\n {line}"
    return f"Here is the change.\n\n```diff\ndiff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n{hunk}\n```\n"
