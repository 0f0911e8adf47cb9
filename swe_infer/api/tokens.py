"""Token counts of prompts without network access.

For an approximate count (length filter, rate limits, dry run): tiktoken (an extra) if it knows the model and its
vocabulary is on this machine, else an estimate. For an upper bound (budget): the number of UTF-8 bytes, because a
byte-level token has at least one byte; :mod:`swe_infer.api.counting` has tighter bounds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import unicodedata
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from swe_infer.types import ApiModel, Prompt, TokenCounter

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 3.3
"""Characters per token of SWE-bench prompts (Python with line numbers): 3.3 (long ones) to 3.9 (short ones)."""

_FRAMING_TOKENS = 64
"""Role names, separators and the start of the answer; providers add fewer than 20 for two messages."""

_VOCABULARIES = "https://openaipublic.blob.core.windows.net/encodings/"
_ENCODINGS = ("o200k_base", "cl100k_base")
"""The encodings of OpenAI's chat models."""

IMAGE_TOKENS = 1_500
"""Estimated tokens of one image: 765 for a square one of 1024 pixels with gpt-4o, 1,600 at most with Claude 4, 1,120
with Gemini 3."""


class EstimatedCounter:
    """Characters divided by a constant. Images are estimated, too."""

    exact = False

    def __init__(self, characters_per_token: float = CHARACTERS_PER_TOKEN) -> None:
        self._ratio = characters_per_token
        self.name = f"characters / {characters_per_token:g}"

    def __call__(self, prompt: Prompt) -> int:
        return int(prompt.characters / self._ratio) + 1 + IMAGE_TOKENS * len(prompt.images)


class TiktokenCounter:
    """OpenAI's tokenizer. Tokens around the messages are counted as in OpenAI's cookbook.

    The runs of a process share the counts of their prompts, because counting a large dataset takes minutes.
    """

    exact = True
    _counts: ClassVar[dict[tuple[str, bytes], int]] = {}

    def __init__(self, encoding: str) -> None:
        import tiktoken

        self._encoding = tiktoken.get_encoding(encoding)
        self.name = f"tiktoken:{encoding}"

    def __call__(self, prompt: Prompt) -> int:
        # disallowed_special: "<|endoftext|>" in an issue is text like any other.
        text = 3 + sum(4 + self._tokens(part) for part in prompt.parts)
        return text + IMAGE_TOKENS * len(prompt.images)  # which are estimated

    def _tokens(self, text: str) -> int:
        key = (self.name, hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        if key not in self._counts:
            self._counts[key] = len(self._encoding.encode(text, disallowed_special=()))
        return self._counts[key]


def counter_of(model: ApiModel, provider_id: str | None) -> TokenCounter:
    """The best counter for a model that needs no network."""
    encoding = _encoding_name(model.price_as or model.name) if provider_id in ("openai", "azure") else None
    if encoding is not None and _vocabulary_file(encoding).is_file():
        try:
            return TiktokenCounter(encoding)
        except (OSError, ValueError):  # a damaged file, which tiktoken would download again
            pass
    return EstimatedCounter()


def _encoding_name(model: str) -> str | None:
    """tiktoken's encoding of a model; None if tiktoken does not know the model, or is not installed."""
    try:
        from tiktoken.model import encoding_name_for_model
    except ImportError:
        if any(_vocabulary_file(name).is_file() for name in _ENCODINGS):
            _warn_without_tiktoken()
        return None
    try:
        return encoding_name_for_model(model)
    except KeyError:
        return None


@cache
def _warn_without_tiktoken() -> None:
    """Logs once how counts become exact."""
    logger.warning("Token counts are estimates. For exact ones: pip install 'swe_infer[tiktoken]'")


def _vocabulary_file(encoding: str) -> Path:
    """tiktoken's cached vocabulary of ``encoding``, whose file name is the SHA-1 of its URL."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    base = "o200k_base" if encoding.startswith("o200k") else encoding
    name = hashlib.sha1(f"{_VOCABULARIES}{base}.tiktoken".encode(), usedforsecurity=False).hexdigest()
    return Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / name


def byte_bound(prompt: Prompt, extra_body: Mapping[str, Any] | None = None) -> int:
    """An upper bound on the tokens of a prompt for any byte-level tokenizer.

    Every token has at least one byte. Some tokenizers normalise first (Claude's published one: NFKC), which can
    lengthen a text that is not ASCII, so the longer form counts.
    """
    total = _FRAMING_TOKENS * (1 + len(prompt.turns))
    for part in prompt.parts:
        total += len(part) if part.isascii() else _bytes(part)
    if extra_body:
        total += len(json.dumps(dict(extra_body), default=str))
    return total


def _bytes(text: str) -> int:
    normalised = unicodedata.normalize("NFKC", text)
    return max(len(form.encode("utf-8", "surrogatepass")) for form in (text, normalised))
