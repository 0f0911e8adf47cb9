"""Typographic characters, and the ASCII characters that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " "),
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        "\u2026": "...",
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"),
    }
)


def plain(text: str) -> str:
    """``text`` with ASCII characters for typographic ones."""
    return text if text.isascii() else text.translate(_TYPOGRAPHY)


def plain_typography(old: Sequence[str], new: Sequence[str], base: Sequence[str]) -> tuple[list[str], list[str]]:
    """Old and new lines without the typographic characters that ``old`` has in place of those of ``base``."""
    foreign = {char for text in old for char in text if ord(char) in _TYPOGRAPHY}
    foreign -= {char for text in base for char in text}
    table = {ord(char): _TYPOGRAPHY[ord(char)] for char in foreign}
    return [text.translate(table) for text in old], [text.translate(table) for text in new]
