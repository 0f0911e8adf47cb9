"""Images in the formats of the vendors' messages, and which models accept them."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from swe_infer.prompt_images import DATA_URL
from swe_infer.types import ApiModel, Prompt


def image_fault(model: ApiModel) -> str | None:
    """Why a model accepts no images; None if it does."""
    if model.vision:
        return None
    return (
        f"the model {model.name} does not accept images; model.vision=true sends them, dataset.images=false leaves "
        "them out"
    )


def with_content(prompt: Prompt, content: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a prompt, the first user message with these parts."""
    first, *others = prompt.messages
    return [{**first, "content": list(content)}, *others]


def chat_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages for chat completions (openai.types.chat.ChatCompletionContentPartImageParam)."""
    if not prompt.images:
        return list(prompt.messages)
    images = [{"type": "image_url", "image_url": {"url": url}} for url in prompt.images]
    return with_content(prompt, [{"type": "text", "text": prompt.user}, *images])


def responses_messages(prompt: Prompt) -> list[dict[str, Any]]:
    """The messages for the Responses API (openai.types.responses.ResponseInputImageParam)."""
    if not prompt.images:
        return list(prompt.messages)
    images = [{"type": "input_image", "image_url": url, "detail": "auto"} for url in prompt.images]
    return with_content(prompt, [{"type": "input_text", "text": prompt.user}, *images])


def anthropic_images(images: Sequence[str]) -> list[dict[str, Any]]:
    """Image blocks for Messages (anthropic.types.ImageBlockParam)."""
    return [{"type": "image", "source": _anthropic_source(url)} for url in images]


def google_part(url: str) -> dict[str, Any]:
    """An image for Gemini (google.genai.types.Part). Its API opens URLs
    (https://ai.google.dev/gemini-api/docs/file-input-methods)."""
    if (match := DATA_URL.fullmatch(url)) is not None:
        return {"inlineData": {"mimeType": match[1], "data": match[2]}}
    kind = mimetypes.guess_type(urlsplit(url).path)[0]
    is_known = kind is not None and kind.startswith("image/")
    return {"fileData": {"fileUri": url, **({"mimeType": kind} if is_known else {})}}


def _anthropic_source(url: str) -> dict[str, str]:
    if (match := DATA_URL.fullmatch(url)) is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": match[1], "data": match[2]}
