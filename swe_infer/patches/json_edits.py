"""Finds edits in JSON: ``[{"path": …, "search": …, "replace": …}, …]``, bare or in a fence, among other text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swe_infer.text import MAX_CONTAINERS

_PATH_KEYS = ("path", "file", "file_path", "filename")
_SEARCH_KEYS = ("search", "old_string", "old_str", "old", "original", "find")
_REPLACE_KEYS = ("replace", "new_string", "new_str", "new", "replacement")
_START = re.compile(r"^[ \t>]*(?:```\w*[ \t]*)?(?=[\[{])", re.MULTILINE)
_KEY = re.compile(rf'"(?:{"|".join(_SEARCH_KEYS)})"\s*:')
_MOST_TRIES = 64
"""Positions at which JSON is parsed; bounds the work."""


@dataclass(frozen=True, slots=True)
class JsonEdit:
    """One edit; ``search`` is empty for a new file."""

    path: str | None
    search: str
    replace: str


def find_json_edits(answer: str) -> tuple[list[JsonEdit], str | None]:
    """The edits of ``answer`` in order, or the reason why they cannot be parsed. Never raises."""
    if not _KEY.search(answer) or answer.count("[") + answer.count("{") > MAX_CONTAINERS:
        return [], None
    decoder = json.JSONDecoder(strict=False)  # models do not escape line breaks in strings
    found: list[JsonEdit] = []
    problem: str | None = None
    end = tries = 0
    for match in _START.finditer(answer):
        if match.end() < end or tries == _MOST_TRIES:
            continue
        tries += 1
        try:
            value, end = decoder.raw_decode(answer, match.end())
        except json.JSONDecodeError as error:
            cut = error.pos >= len(answer.rstrip()) or error.msg.startswith("Unterminated")
            problem = problem or (
                "the JSON of the edits is cut off" if cut else f"the JSON of the edits: {error.msg}"
            )
            continue
        except (RecursionError, ValueError):
            continue
        found += [edit for edit in _edits(value) if edit not in found]
    return (found, None) if found else ([], problem)


def _edits(value: Any) -> list[JsonEdit]:
    """The edits of a JSON value; empty if any part of it is something else."""
    if isinstance(value, Mapping) and isinstance(value.get("edits"), list):
        outer = _first(value, _PATH_KEYS)
        value = [{"path": outer, **edit} if isinstance(edit, Mapping) else edit for edit in value["edits"]]
    items = value if isinstance(value, list) else [value]
    edits = []
    for item in items:
        search = _first(item, _SEARCH_KEYS)
        replace = _first(item, _REPLACE_KEYS)
        if search is None or replace is None:
            return []
        edits.append(JsonEdit(_first(item, _PATH_KEYS), search, replace))
    return edits


def _first(item: Any, keys: tuple[str, ...]) -> str | None:
    if not isinstance(item, Mapping):
        return None
    return next((item[key] for key in keys if isinstance(item.get(key), str)), None)
