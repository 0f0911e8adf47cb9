"""Decodes JSON of a server, whose numbers and nesting are not trusted."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

LONGEST_NUMBER = 40
"""Maximum digits of an integer, as Python's conversion is quadratic in their number."""
_DEEPEST = 64
"""Levels that are kept of a body that is nested too deeply."""
_JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[][{}]', re.DOTALL)
_BETWEEN = re.compile(r"[\s\0\ufeff]*(?:data:\s*)?")


def decoded_json(raw: bytes | str) -> Any:
    """Decodes JSON text. Integers with too many digits become floats, values that are nested too deeply null, and
    bytes that are not UTF-8 replacement characters. Strings may have control characters.

    Raises:
        ValueError: it is not JSON.
    """
    text = raw if isinstance(raw, str) else _decoded(raw)
    try:
        return _DECODER.decode(text)
    except RecursionError:
        try:
            return _DECODER.decode(_without_deep_values(text))
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode(json.detect_encoding(raw), "surrogatepass")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace")


def leading_objects(raw: bytes) -> list[dict[str, Any]]:
    """The JSON objects that follow each other at the beginning of a text, as in ``{…} {…} more``. Between them are
    only blanks, NULs and the field name of server-sent events."""
    text = raw.decode("utf-8", "replace")
    found: list[dict[str, Any]] = []
    end = 0
    with suppress(ValueError, RecursionError):  # no JSON follows
        while match := _BETWEEN.match(text, end):
            value, end = _DECODER.raw_decode(text, match.end())
            if not isinstance(value, dict):
                break
            found.append(value)
    return found


def _parsed_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_NUMBER else float(digits)


_DECODER = json.JSONDecoder(parse_int=_parsed_int, strict=False)


def _without_deep_values(text: str) -> str:
    """JSON text with null for every list and object below the level ``_DEEPEST``."""
    kept: list[str] = []
    depth = start = 0
    for token in _JSON_TOKEN.finditer(text):
        if text[token.start()] in "[{":
            depth += 1
            if depth == _DEEPEST:
                kept += [text[start : token.start()], "null"]
        elif text[token.start()] in "]}":
            depth -= 1
            if depth == _DEEPEST - 1:
                start = token.end()
    return "".join([*kept, text[start:]])
