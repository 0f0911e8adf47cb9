"""White space that the base file settles: line ends, indentation, and the line numbers of the prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from swe_infer.patches.diff import Line

__all__ = ["reindent", "settle", "without_line_numbers"]

_NUMBERED = re.compile(r"[ \t]{0,8}(?P<number>\d{1,7})(?:[:|]? (?P<rest>.*)|[:|]?)$", re.DOTALL)

_Shift = tuple[str, str]
"""An indentation as the model wrote it, and as the file has it; equal beginnings removed."""


def settle(lines: Sequence[Line], base: Sequence[str | None]) -> list[str] | None:
    """The texts that ``lines`` get from the file.

    Args:
        base: the file's line for each old line of ``lines``; None for one that is left out.

    Returns:
        A text for each of ``lines``: the file's for kept and removed ones, the model's for added ones, shifted as the
        old lines are. None where it is not clear by how much.
    """
    shifts_removed: set[_Shift] = set()
    shifts_kept: set[_Shift] = set()
    known: dict[str, str | None] = {}
    old = iter(base)
    texts: list[str] = []
    carriage_return = False
    for line in lines:
        text = next(old) if line.tag != "+" else None
        texts.append(line.text if text is None else text)
        if text is None or not text.strip():
            continue
        carriage_return = text.endswith("\r")
        written, has = _indent(line.text), _indent(text)
        (shifts_removed if line.tag == "-" else shifts_kept).add(_shift(written, has))
        known[written] = has if known.get(written, has) == has else None
    for number, line in enumerate(lines):
        if line.tag == "+":
            text = _shifted(line.text, shifts_removed, shifts_kept, known)
            if text is None:
                return None
            texts[number] = text.removesuffix("\r") + "\r" * carriage_return
    return texts


def _shifted(text: str, removed: set[_Shift], kept: set[_Shift], known: dict[str, str | None]) -> str | None:
    if not text.strip():
        return text
    shifts = removed or kept
    if len(shifts) > 1:
        has = known.get(_indent(text))
        return None if has is None else has + text.lstrip(" \t")
    written, has = next(iter(shifts), ("", ""))
    if not removed and (written, has) == ("", " "):
        return text  # the context has lost its sign, not its indentation; added lines have kept theirs
    if not text.startswith(written):
        return None
    return has + text[len(written) :]


def reindent(old: Sequence[str], base: Sequence[str], new: Sequence[str]) -> list[str] | None:
    """``new`` as it stands in the file, where ``old`` differs from ``base`` in white space alone.

    Three cases are clear: all old lines are shifted alike; only the first one is, because it was written right behind
    a tag; each indentation of ``old`` stands for one of ``base``. None in any other. Lines of ``new`` that are
    lines of ``old`` become the file's.
    """
    pairs = [(written, has) for written, has in zip(old, base, strict=True) if has.strip()]
    shifts = [_shift(_indent(written), _indent(has)) for written, has in pairs]
    same = {written: has for written, has in pairs if written.rstrip() == has.rstrip()}
    ends = "\r" if any(has.endswith("\r") for _, has in pairs) else ""
    first = next((n for n, text in enumerate(new) if text.strip()), 0)
    settled: list[str] = []
    for number, text in enumerate(new):
        shift: _Shift | None
        if not text.strip() or len(set(shifts)) <= 1:
            shift = shifts[0] if shifts else ("", "")
        elif len(set(shifts[1:])) == 1 and shifts[1] == ("", ""):
            shift = shifts[0] if number == first or _left_of(new[first + 1 :], _indent(pairs[0][1])) else ("", "")
        else:
            has = {_indent(base_line) for written, base_line in pairs if _indent(written) == _indent(text)}
            shift = (_indent(text), has.pop()) if len(has) == 1 else None
        if shift is None or (text.strip() and not text.startswith(shift[0])):
            return None
        moved = shift[1] + text[len(shift[0]) :] if text.strip() else text
        settled.append(same.get(text, moved.removesuffix("\r") + ends))
    return settled


def _left_of(lines: Sequence[str], indent: str) -> bool:
    """Whether some line begins further left than ``indent``: the lines are not written in the file's columns."""
    return any(line.strip() and len(_indent(line)) < len(indent) for line in lines)


def _indent(text: str) -> str:
    return text[: len(text) - len(text.lstrip(" \t"))]


def _shift(written: str, has: str) -> _Shift:
    """What must be taken off the front and put there instead."""
    if written.endswith(has):
        return (written[: len(written) - len(has)], "")
    if has.endswith(written):
        return ("", has[: len(has) - len(written)])
    return (written, has)


def without_line_numbers(lines: Sequence[Line]) -> list[Line] | None:
    """The lines without the prompt's line numbers, where all old ones carry some that count upwards; else None."""
    numbers: list[int] = []
    stripped: list[Line] = []
    added = [line for line in lines if line.tag == "+" and line.text.strip()]
    added_numbered = bool(added) and all(_NUMBERED.match(line.text) for line in added)
    for line in lines:
        match = _NUMBERED.match(line.text)
        if line.tag != "+" and line.text.strip():
            if match is None:
                return None
            numbers.append(int(match["number"]))
        takes = match is not None and (line.tag != "+" or added_numbered)
        stripped.append(replace(line, text=match["rest"] or "") if takes and match else line)
    counts = all(later > earlier for earlier, later in pairwise(numbers))
    return stripped if numbers and counts else None
