"""Reads the gold patch of a row: which files it edits, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swe_infer.errors import DataError
from swe_infer.patches.diff import FilePatch, PatchError, parse_as_git

COLUMN = "patch"

_OPENING, _CLOSING = "<patch>\n", "\n</patch>"
"""Tags around the patch in SWE-bench's datasets with finished prompts."""


def gold_changes(row: Mapping[str, Any]) -> list[FilePatch]:
    """The changes of the gold patch by file, in the patch's order.

    Raises:
        DataError: the row has no patch, or one that git cannot read.
    """
    text = row.get(COLUMN)
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"the row has no gold patch (column {COLUMN!r})")
    if text.startswith(_OPENING):
        text = text.removeprefix(_OPENING).rstrip("\n").removesuffix(_CLOSING)
    try:
        return parse_as_git(text)
    except PatchError as error:
        raise DataError(f"the gold patch (column {COLUMN!r}) cannot be read: {error}") from error
