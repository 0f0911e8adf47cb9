"""Parses literals and calls as models write them: JSON, Python, or a mixture of both.

Raw line breaks in strings, single quotes, trailing commas, unquoted keys and named arguments are accepted. Nothing is
evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"(?:\s+|#[^\n]*|//[^\n]*)*+")
_QUOTE = re.compile(r"(?P<prefix>[rRbBuUfF]{0,2})(?P<quote>\"\"\"|'''|[\"'`])")
_WORD = re.compile(r"[+-]?[\w.$-]+")
_NAME = re.compile(r"([A-Za-z_]\w*)\s*(?:=(?!=)|:)\s*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[\s\S])")
_SIMPLE = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\\": "\\", "'": "'", '"': '"', "/": "/", "\n": ""}
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False}
_DEEPEST = 24
_CLOSING = {"[": "]", "(": ")", "{": "}"}
ARGUMENTS = "arguments"
"""The key of a call's arguments without a name."""


class NotALiteral(Exception):
    """The text is not a literal. ``cut_off``: it may be the beginning of one."""

    def __init__(self, *, cut_off: bool) -> None:
        super().__init__()
        self.cut_off = cut_off


@dataclass(slots=True)
class LiteralParser:
    """Parses literals at positions of ``text``.

    Args:
        tokens: the number of strings, words and brackets to parse; bounds the work of all calls together.
    """

    text: str
    tokens: int = 200_000

    def parse(self, at: int) -> tuple[Any, int]:
        """The value at ``at``, and the position behind it. A call's value is the mapping of its arguments.

        Raises:
            NotALiteral: another text is there.
        """
        return self._value(at, 0)

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        self.tokens -= 1
        at = self._skip(at)
        if self.tokens < 0 or depth > _DEEPEST:
            raise NotALiteral(cut_off=False)
        if _QUOTE.match(self.text, at):
            return self._strings(at)
        if self.text[at] in _CLOSING:
            return self._container(at, depth)
        word = _WORD.match(self.text, at)
        if word is None:
            raise NotALiteral(cut_off=False)
        if self.text[word.end() : word.end() + 1] == "(":
            return self._container(word.end(), depth)
        return _CONSTANTS.get(word[0], _number(word[0])), word.end()

    def _container(self, at: int, depth: int) -> tuple[Any, int]:
        """A list, or a mapping if any item has a name."""
        closing = _CLOSING[self.text[at]]
        items: list[Any] = []
        named: dict[str, Any] = {}
        at = self._skip(at + 1)
        while self.text[at] != closing:
            name = _NAME.match(self.text, at)
            if name is not None:
                named[name[1]], at = self._value(name.end(), depth + 1)
            else:
                value, at = self._value(at, depth + 1)
                at = self._skip(at)
                if self.text[at] == ":" and isinstance(value, str):
                    named[value], at = self._value(at + 1, depth + 1)
                else:
                    items.append(value)
            at = self._skip(at)
            if self.text[at] == ",":
                at = self._skip(at + 1)
            elif self.text[at] != closing:
                raise NotALiteral(cut_off=False)
        if named and items:
            named[ARGUMENTS] = items
        return named or ({} if closing == "}" else items), at + 1

    def _strings(self, at: int) -> tuple[str, int]:
        """Adjacent strings, which are one value, as in Python."""
        parts: list[str] = []
        while match := _QUOTE.match(self.text, at):
            self.tokens -= 1
            end = _end_of_string(self.text, match["quote"], match.end())
            if end < 0 or self.tokens < 0:
                raise NotALiteral(cut_off=end < 0)
            part = self.text[match.end() : end]
            parts.append(part if "r" in match["prefix"].lower() else unescaped(part))
            last = end + len(match["quote"])
            space = _SPACE.match(self.text, last)
            at = space.end() if space else last
            if self.text[at : at + 1] == "+":
                space = _SPACE.match(self.text, at + 1)
                at = space.end() if space else at
        return "".join(parts), last

    def _skip(self, at: int) -> int:
        match = _SPACE.match(self.text, at)
        at = match.end() if match else at
        if at >= len(self.text):
            raise NotALiteral(cut_off=True)
        return at


def unescaped(text: str) -> str:
    """``text`` with the escape sequences of JSON and Python decoded. Unknown ones are unchanged."""
    return _ESCAPE.sub(_decoded, text) if "\\" in text else text


def _decoded(match: re.Match[str]) -> str:
    code = match[1]
    if len(code) > 1:
        number = int(code[1:], 16)
        return chr(number) if number < 0x110000 else match[0]
    return _SIMPLE.get(code, match[0])


def _end_of_string(text: str, quote: str, at: int) -> int:
    """The position of the closing ``quote``, or -1. Runs of backslashes are counted once each."""
    start = at
    while (end := text.find(quote, at)) >= 0:
        before = end
        while before > start and text[before - 1] == "\\":
            before -= 1
        if (end - before) % 2 == 0:
            return end
        at = start = end + 1
    return -1


def _number(word: str) -> int | None:
    return int(word) if word.isdecimal() and len(word) < 10 else None
