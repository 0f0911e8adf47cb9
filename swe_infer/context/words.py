"""The words of a text that BM25 compares."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w\w+")
_STOP_WORD = re.compile(
    "a|an|and|are|as|at|be|but|by|for|if|in|into|is|it|no|not|of|on|or|such|that|the|their|then|there|these|they|"
    "this|to|was|will|with"
)
"""Lucene's English stop words."""
_LOWER_WORDS = bytes(
    byte if chr(byte).isalnum() or byte == ord("_") else ord(" ") for byte in bytes(range(256)).lower()
)
"""Of ASCII: letters in lower case, digits and underscores; anything else becomes a space."""
_LONGEST_WORD = 255
"""Characters, as in Lucene. Longer words are data, such as Base64."""


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, in order. An identifier is one word."""
    if text.isascii():  # much faster than a regular expression
        return text.encode("ascii").translate(_LOWER_WORDS).decode("ascii").split()
    return _WORD.findall(text.lower())


def is_term(word: str) -> bool:
    """Whether a word counts: False for stop words, single characters and data."""
    return 1 < len(word) <= _LONGEST_WORD and not _STOP_WORD.fullmatch(word)
