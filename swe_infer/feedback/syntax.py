"""Finds Python files that do not parse after a patch although they did before."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from swe_infer.feedback.message import quoted
from swe_infer.patches.apply import apply_patch
from swe_infer.patches.diff import PatchError

_MOST_CHARACTERS = 1 << 19
"""Longer files are not checked: the parser takes memory in proportion."""
_CONTEXT = 3


@dataclass(frozen=True, slots=True)
class SyntaxProblem:
    """Why a file does not parse.

    Args:
        line: number, from 1.
        message: one line.
        excerpt: the lines around it, quoted.
    """

    path: str
    line: int
    message: str
    excerpt: str


def find_syntax_problem(patch: str, files: Mapping[str, str]) -> SyntaxProblem | None:
    """The first Python file of the patch that does not parse any more; None if all do or it cannot be checked.

    Args:
        patch: a patch that applies to ``files``.
    """
    try:
        changed = apply_patch(patch, files).files
    except PatchError:  # the repository is not available now
        return None
    for path, content in changed.items():
        if content is None or not path.endswith((".py", ".pyi")):
            continue
        error = syntax_error(content)
        before = files.get(path)
        if error is None or (before is not None and syntax_error(before) is not None):
            continue
        line, message = error
        lines = content.split("\n")
        first = max(0, line - 1 - _CONTEXT)
        numbered = [f"{number} {text}" for number, text in enumerate(lines[first : line + _CONTEXT], first + 1)]
        return SyntaxProblem(path, line, message, quoted(numbered))
    return None


def syntax_error(content: str) -> tuple[int, str] | None:
    """Line and message of the first syntax error; None if the text parses or cannot be checked."""
    if len(content) > _MOST_CHARACTERS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like
            ast.parse(content)
    except SyntaxError as error:
        return max(1, error.lineno or 1), " ".join(str(error.msg).split())[:200]
    except (ValueError, RecursionError, MemoryError):  # lone surrogates, or too many levels for this parser
        return None
    return None
