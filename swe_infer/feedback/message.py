"""The parts of feedback messages: quoted lines, and the request for another answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from swe_infer.prompts.edit_formats import INSTRUCTIONS
from swe_infer.types import EditFormat

MOST_LINES = 40
"""Maximum number of quoted lines in one block."""
_LONGEST_LINE = 400
_MOST_CHARACTERS = 12_000


def quoted(lines: Sequence[str]) -> str:
    """Lines in a fence, without their ends. At most :data:`MOST_LINES`; long lines are cut, with a note."""
    shown = [line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " … (cut)" for line in lines[:MOST_LINES]]
    text = "\n".join(shown)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    more = len(lines) - MOST_LINES
    return f"{fence}\n{text}\n{fence}" + (f"\n(and {more} more lines)" if more > 0 else "")


def request_again(problem: str, edit_format: EditFormat | None, *, explain_form: bool = False) -> str:
    """The whole message.

    Args:
        problem: what is wrong with the answer.
        explain_form: repeat the instructions for the form of the answer.
    """
    problem = without_lone_surrogates(problem)
    if len(problem) > _MOST_CHARACTERS:
        problem = problem[:_MOST_CHARACTERS] + " …"
    if explain_form and edit_format is not None:
        return f"{problem}\n\n{INSTRUCTIONS[edit_format].rstrip()}\n\nNow answer again with the complete patch."
    return (
        f"{problem}\n\nAnswer again with the complete patch, all files included, in the form that was requested. "
        "Copy the lines of a file exactly as they are in it."
    )


def without_lone_surrogates(text: str) -> str:
    """``text`` as UTF-8 can encode it: bytes of files that are not UTF-8 become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
