"""The images of an issue: the URLs in a row's ``image_assets`` column, as in SWE-bench Multimodal.

The column is an object, or in older revisions of the dataset its JSON text. Only the images of its
``problem_statement`` belong into a prompt. URLs are never opened here: they are sent to the model's provider.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from swe_infer.errors import DataError
from swe_infer.text import bounded_json

IMAGES_COLUMN = "image_assets"

MAX_IMAGES = 100
"""Images of one prompt. Anthropic accepts 100 for models with a context window of 200,000 tokens
(https://platform.claude.com/docs/en/build-with-claude/vision)."""
_LONGEST_URL = 4096
_LONGEST_DATA_URL = 8 << 20
_MOST_CHARACTERS = 24 << 20
"""Of all URLs of a prompt. Anthropic's requests have at most 32 MB."""

DATA_URL = re.compile(r"data:(image/(?:png|jpeg|gif|webp));base64,([A-Za-z0-9+/]+={0,2})")
"""The media type and the content of an image in a ``data:`` URL: the types that every vendor accepts."""


def images_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The URLs of the images in a row's issue, without duplicates.

    Raises:
        DataError: the column is not of the expected form, or a URL is invalid. The message says why.
    """
    assets = row.get(IMAGES_COLUMN)
    if assets is None or assets == "":
        return ()
    if isinstance(assets, str):
        try:
            assets = bounded_json(assets.encode(errors="surrogatepass"))
        except (ValueError, RecursionError):
            raise DataError(f"{IMAGES_COLUMN} is text, but not JSON") from None
    if assets is None:
        return ()
    if not isinstance(assets, Mapping):
        raise DataError(f"{IMAGES_COLUMN} is of type {type(assets).__name__}, not an object with problem_statement")
    urls = assets.get("problem_statement")
    if urls is None or urls == "":
        return ()
    if isinstance(urls, str):
        urls = [urls]
    if not isinstance(urls, list | tuple):
        raise DataError(f"{IMAGES_COLUMN}.problem_statement is of type {type(urls).__name__}, not a list of URLs")
    if len(urls) > MAX_IMAGES:
        raise DataError(f"{IMAGES_COLUMN}.problem_statement has {len(urls):,} images; at most {MAX_IMAGES} are sent")
    for number, url in enumerate(urls, 1):
        if (fault := _fault_of_url(url)) is not None:
            raise DataError(f"{IMAGES_COLUMN}.problem_statement, image {number}: {fault}")
    if sum(map(len, urls)) > _MOST_CHARACTERS:
        raise DataError(f"{IMAGES_COLUMN}.problem_statement is longer than {_MOST_CHARACTERS >> 20} MiB in total")
    return tuple(dict.fromkeys(urls))


def _fault_of_url(url: object) -> str | None:
    """Why a URL cannot be sent; None if it can."""
    if not isinstance(url, str):
        return f"the URL is of type {type(url).__name__}, not a string"
    if url.startswith("data:"):
        if len(url) > _LONGEST_DATA_URL:
            return f"the data URL is longer than {_LONGEST_DATA_URL >> 20} MiB"
        match = DATA_URL.fullmatch(url)
        is_image = match is not None and len(match[2]) % 4 == 0
        return None if is_image else "the data URL is not a PNG, JPEG, GIF or WebP image in base64"
    if len(url) > _LONGEST_URL:
        return f"the URL is longer than {_LONGEST_URL:,} characters"
    if not url.isprintable() or " " in url or not url.isascii():
        return "the URL has blanks, control characters or characters that are not ASCII"
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or True)
    except ValueError:
        is_address = False
    if not is_address:
        return "the URL is neither an http, https nor data URL"
    return "the URL has a user or a password" if "@" in parts.netloc else None


def shown_url(url: str) -> str:
    """A URL for records. Of a ``data:`` URL, the media type and the SHA-256 of its text instead of its content."""
    if not url.startswith("data:"):
        return url
    return f"{url[: url.find(',')]},sha256:{hashlib.sha256(url.encode()).hexdigest()}"
