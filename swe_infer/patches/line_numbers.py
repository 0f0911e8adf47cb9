"""Removes line numbers that a model copied from a prompt or wrote of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from swe_infer.patches.line_index import LineIndex

_NUMBERED = re.compile(r"[ \t]{0,8}(?P<number>\d{1,7})(?:(?P<mark>[:|→\t ])(?P<rest>.*))?$", re.DOTALL)
_MARKED = re.compile(r"[ \t]{0,8}[L\[]?(?P<number>\d{1,7})(?P<mark> \||[\].:])(?: (?P<rest>.*))?$", re.DOTALL)


def split_line_numbers(
    texts: Sequence[str], *, spaced: bool = True, marked: bool = False
) -> list[tuple[int | None, str]]:
    """For each text its line number (``12 x``, ``12: x``, ``12|x``, ``12<tab>x``) and the rest; None without one.

    Args:
        spaced: a blank behind each ``:`` or ``|`` belongs to the number, if all lines have one.
        marked: only numbers such as ``12 | x``, ``12. x``, ``[12] x`` and ``L12: x`` count.
    """
    matches = [(_MARKED if marked else _NUMBERED).match(text) for text in texts]
    rests = [match["rest"] or "" for match in matches if match and match["mark"] not in (None, " ", "\t")]
    spaced = spaced and not marked and all(rest.startswith(" ") for rest in rests if rest.strip())
    found: list[tuple[int | None, str]] = []
    for text, match in zip(texts, matches, strict=True):
        if match is None:
            found.append((None, text))
            continue
        rest = match["rest"] or ""
        found.append((int(match["number"]), rest[1:] if spaced and match["mark"] in (":", "|", "→") else rest))
    return found


def without_line_numbers(
    old: Sequence[str], new: Sequence[str], index: LineIndex
) -> tuple[list[str], list[str]] | None:
    """Old and new lines without line numbers; None if they have none, or if the numbers are inconsistent.

    All old lines must have increasing numbers. New lines must have numbers in all lines, or in none, or exactly in
    the lines that are old lines too.
    """
    spaced, tight = (_without_line_numbers(old, new, spaced=spaced) for spaced in (True, False))
    for texts in (spaced, tight, _without_line_numbers(old, new, spaced=True, marked=True)):
        if texts is not None and index.find_all(texts[0], "trailing", 1):
            return texts
    # Without a match, only new lines with numbers have the same indentation as the old ones for sure.
    return spaced if spaced == tight or (spaced and tight and spaced[1] != tight[1]) else None


def _without_line_numbers(
    old: Sequence[str], new: Sequence[str], *, spaced: bool, marked: bool = False
) -> tuple[list[str], list[str]] | None:
    split = split_line_numbers([*old, *new], spaced=spaced, marked=marked)
    olds, news = split[: len(old)], split[len(old) :]
    numbers = [number for (number, _), text in zip(olds, old, strict=True) if number is not None or text.strip()]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers) or any(later <= earlier for earlier, later in pairwise(known)):
        return None
    possible = range(known[0] - 1, known[-1] + len(new) + 2)
    written = [(number in possible, text) for (number, _), text in zip(news, new, strict=True) if text.strip()]
    copies = set(old)
    own = [number for (number, _), text in zip(news, new, strict=True) if text.strip()]
    if own and own[0] is not None and own == list(range(own[0], own[0] + len(own))):
        # Each line has a number, those of the new file or numbers of its content.
        if _has_numbers(rest for _, rest in olds) and not _has_numbers(rest for _, rest in news):
            return None
        rests = [rest for _, rest in news]
    elif all(is_numbered for is_numbered, _ in written):
        rests = [rest for _, rest in news]
    elif any(is_numbered and text not in copies for is_numbered, text in written):
        return None
    else:
        rests = [rest if text in copies else text for (_, rest), text in zip(news, new, strict=True)]
    return [rest for _, rest in olds], rests


def _has_numbers(texts: Iterable[str]) -> bool:
    return any(number is not None for number, _ in split_line_numbers(list(texts)))
