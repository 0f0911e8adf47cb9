"""Adjusts the indentation and the line ends of a model's lines to those of the file."""

from __future__ import annotations

from collections.abc import Sequence

from swe_infer.patches.diff import Line
from swe_infer.patches.line_index import MATCH_KEYS, indent_of
from swe_infer.patches.typography import plain

_Shift = tuple[str, str]
"""The indentation that the model wrote, and the file's; without a common suffix."""


def resolve_whitespace(lines: Sequence[Line], base: Sequence[str | None]) -> list[str] | None:
    """Resolves the differences in white space between ``lines`` and the file.

    Args:
        base: the file's line for each old line of ``lines``; None for one that is left out.

    Returns:
        A text for each of ``lines``: the file's for kept and removed ones, the model's for added ones, shifted like
        the old lines. None if the shift is ambiguous.
    """
    shifts_removed: set[_Shift] = set()
    shifts_kept: set[_Shift] = set()
    known: dict[str, str | None] = {}
    old = iter(base)
    texts: list[str] = []
    ends: list[str] = []  # of old lines
    for line in lines:
        text = next(old) if line.tag != "+" else None
        texts.append(line.text if text is None else text)
        if line.tag != "+":
            ends.append("\r" if text is not None and text.endswith("\r") else "")
        if text is None or not text.strip():
            continue
        written, has = indent_of(line.text), indent_of(text)
        (shifts_removed if line.tag == "-" else shifts_kept).add(_shift(written, has))
        known[written] = has if known.get(written, has) == has else None
    if all(line.tag == "+" or line.text == text for line, text in zip(lines, texts, strict=True)):
        return texts  # the old lines are the file's, so the white space of the added ones is intended
    if len(ends) > 1 and set(ends[:-1]) == {"\r"}:
        ends[-1] = "\r"  # the file's last line may have no line end
    added_ends = line_ends(lines, ends)
    for number, line in enumerate(lines):
        if line.tag == "+":
            text = _shifted(line.text, shifts_removed, shifts_kept, known)
            if text is None:
                return None
            texts[number] = text.removesuffix("\r") + added_ends[number]
    return texts


def line_ends(lines: Sequence[Line], old_ends: Sequence[str]) -> list[str]:
    """The line end of each of ``lines``: an added one gets that of the removed line that it replaces, or else of the
    old line before it, or else of the first old line.

    Args:
        old_ends: ``\\r`` or empty for each old line.
    """
    ends: list[str] = []
    at = replaced = added = 0  # old lines so far; removed and added lines of this change
    for line in lines:
        if line.tag != "+":
            replaced = replaced + 1 if line.tag == "-" and not added else int(line.tag == "-")
            added = 0
            ends.append(old_ends[at])
            at += 1
            continue
        near = at - replaced + min(added, replaced - 1) if replaced else at - 1
        ends.append(old_ends[max(near, 0)] if old_ends else "")
        added += 1
    return ends


def _shifted(text: str, removed: set[_Shift], kept: set[_Shift], known: dict[str, str | None]) -> str | None:
    if not text.strip():
        return text
    shifts = removed or kept
    if len(shifts) > 1:
        has = known.get(indent_of(text))
        return None if has is None else has + text.lstrip(" \t")
    written, has = next(iter(shifts), ("", ""))
    if not removed and (written, has) == ("", " "):
        return text  # the context lost its sign, not its indentation; added lines kept theirs
    if not text.startswith(written):
        return None
    return has + text[len(written) :]


def reindent(old: Sequence[str], base: Sequence[str], new: Sequence[str]) -> list[str] | None:
    """``new`` with the file's indentation, where ``old`` differs from ``base`` only in white space.

    Three cases are unambiguous: all old lines are shifted alike; only the first one is, because it directly follows a
    tag; each indentation of ``old`` corresponds to one of ``base``. Returns None in any other. Lines of ``new`` that
    are lines of ``old`` become the file's. The result has no ``\\r`` at line ends.
    """
    pairs = [(written, has) for written, has in zip(old, base, strict=True) if has.strip()]
    shifts = [_shift(indent_of(written), indent_of(has)) for written, has in pairs]
    same = {
        written: has.removesuffix("\r") for written, has in pairs if plain(written).rstrip() == plain(has).rstrip()
    }
    copies = {written: has.removesuffix("\r") for written, has in pairs}
    first = next((n for n, text in enumerate(new) if text.strip()), 0)
    settled: list[str] = []
    for number, text in enumerate(new):
        shift: _Shift | None
        if not text.strip() or len(set(shifts)) <= 1:
            shift = shifts[0] if shifts else ("", "")
        elif len(set(shifts[1:])) == 1 and shifts[1] == ("", ""):
            shift = shifts[0] if number == first or _left_of(new[first + 1 :], indent_of(pairs[0][1])) else ("", "")
        else:
            indents = {indent_of(base_line) for written, base_line in pairs if indent_of(written) == indent_of(text)}
            shift = (indent_of(text), indents.pop()) if len(indents) == 1 else None
        if shift is None or (text.strip() and not text.startswith(shift[0])):
            return None
        moved = shift[1] + text[len(shift[0]) :] if text.strip() else text
        moved = same.get(text, moved.removesuffix("\r"))
        has = copies.get(text, moved)
        settled.append(has if MATCH_KEYS["typography"](has) == MATCH_KEYS["typography"](moved) else moved)
    return settled


def file_indents(
    old: Sequence[str], new: Sequence[str], base: Sequence[str | None]
) -> tuple[list[str], list[str]] | None:
    """Old and new lines with the file's steps of indentation: tabs, or so many blanks.

    Args:
        base: the file's line for each old line; None for one that is left out.

    Returns:
        None if it is ambiguous how many blanks a tab stands for.
    """
    pairs = {(indent_of(text), indent_of(line or "")) for text, line in zip(old, base, strict=True) if text.strip()}
    pairs = {(written, has) for written, has in pairs if written and has}
    units = {_unit(written, has) for written, has in pairs if ("\t" in written) != ("\t" in has)}
    blanks = {(len(written), len(has)) for written, has in pairs if set(written) == set(has) == {" "}}
    if not units and len({written for written, _ in blanks}) > 1:
        units = {(" " * max(written // has, 1), " " * max(has // written, 1)) for written, has in blanks}
        if len(units) > 1 or any(written % has and has % written for written, has in blanks):
            units = set()  # not another step, but another depth
    if not units:
        return list(old), list(new)
    unit = units.pop()
    if units or unit is None:
        return None
    return [_converted(text, *unit) for text in old], [_converted(text, *unit) for text in new]


def _unit(written: str, has: str) -> tuple[str, str] | None:
    """The step of indentation that the model wrote, and the file's."""
    if set(written) == {"\t"} and len(has) % len(written) == 0:
        return "\t", " " * (len(has) // len(written))
    if set(has) == {"\t"} and len(written) % len(has) == 0:
        return " " * (len(written) // len(has)), "\t"
    return None


def _converted(text: str, step: str, file_step: str) -> str:
    rest = indent_of(text)
    count = 0
    while rest.startswith(step):
        rest, count = rest[len(step) :], count + 1
    return file_step * count + rest + text.lstrip(" \t") if text.strip() else text


def _left_of(lines: Sequence[str], indent: str) -> bool:
    """Whether some line is indented less than ``indent``, so the lines do not use the file's indentation."""
    return any(line.strip() and len(indent_of(line)) < len(indent) for line in lines)


def _shift(written: str, has: str) -> _Shift:
    """The prefix to remove and the prefix to add instead."""
    if written.endswith(has):
        return (written[: len(written) - len(has)], "")
    if has.endswith(written):
        return ("", has[: len(has) - len(written)])
    return (written, has)
