"""What models do to a diff, as functions from lines of a real one to lines of a damaged one.

Each takes the lines of a ``git diff`` and a source of chance, and keeps the added and removed lines that it says.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

__all__ = ["DAMAGES", "WRAPPERS", "Damage"]

Damage = Callable[[list[str], random.Random], list[str]]

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)", re.DOTALL)


def _parts(lines: list[str]) -> tuple[list[str], list[list[str]]]:
    """One file's header, and its hunks with their own headers."""
    starts = [number for number, line in enumerate(lines) if line.startswith("@@ ")]
    if not starts:
        return lines, []
    bounds = [*starts, len(lines)]
    return lines[: starts[0]], [lines[first:last] for first, last in pairwise(bounds)]


def _files(lines: list[str]) -> list[list[str]]:
    starts = [number for number, line in enumerate(lines) if line.startswith("diff --git ")]
    bounds = [*starts, len(lines)]
    return [lines[first:last] for first, last in pairwise(bounds)]


def _each_hunk(lines: list[str], change: Callable[[list[str]], list[str]]) -> list[str]:
    changed: list[str] = []
    for file in _files(lines):
        header, hunks = _parts(file)
        changed += header
        for hunk in hunks:
            changed += change(hunk)
    return changed


def _is_new_or_gone(lines: list[str]) -> bool:
    return any(line in ("--- /dev/null", "+++ /dev/null") for line in lines)


def miscount(lines: list[str], chance: random.Random) -> list[str]:
    """Wrong counts."""

    def change(hunk: list[str]) -> list[str]:
        match = _HUNK.match(hunk[0])
        if match is None:  # already without numbers
            return hunk
        old, new = (int(match[group] or 1) + chance.choice((-2, -1, 1, 2)) for group in (2, 4))
        return [f"@@ -{match[1]},{max(old, 0)} +{match[3]},{max(new, 0)} @@{match[5]}", *hunk[1:]]

    return _each_hunk(lines, change)


def move(lines: list[str], chance: random.Random) -> list[str]:
    """Wrong line numbers."""

    def change(hunk: list[str]) -> list[str]:
        match = _HUNK.match(hunk[0])
        if match is None:  # already without numbers
            return hunk
        if match[1] == "0" or match[3] == "0":
            return hunk
        by = chance.choice((-9, -2, 1, 3, 40))
        old, new = (max(int(match[group]) + by, 1) for group in (1, 3))
        return [f"@@ -{old},{match[2] or 1} +{new},{match[4] or 1} @@{match[5]}", *hunk[1:]]

    return _each_hunk(lines, change)


def drop_numbers(lines: list[str], chance: random.Random) -> list[str]:
    """No line numbers at all."""
    return _each_hunk(lines, lambda hunk: [chance.choice(("@@ ... @@", "@@")), *hunk[1:]])


def strip_ends(lines: list[str], chance: random.Random) -> list[str]:
    """Context and removed lines without trailing white space, and blank context lines without a sign."""
    return [line.rstrip() if line[:1] in (" ", "-") and not line.startswith("--- ") else line for line in lines]


def pad_ends(lines: list[str], chance: random.Random) -> list[str]:
    """Context lines with added trailing white space."""
    return [line + "  " if line[:1] == " " and chance.random() < 0.5 else line for line in lines]


def shift(lines: list[str], chance: random.Random) -> list[str]:
    """A hunk indented further than the file."""
    by = chance.choice(("    ", "  ", "\t"))

    def change(hunk: list[str]) -> list[str]:
        return [
            hunk[0],
            *(line[0] + by + line[1:] if line[0] in " +-" and line[1:].strip() else line for line in hunk[1:]),
        ]

    return _each_hunk(lines, change)


def number(lines: list[str], chance: random.Random) -> list[str]:
    """The prompt's line numbers copied into context and removed lines."""

    def change(hunk: list[str]) -> list[str]:
        match = _HUNK.match(hunk[0])
        if match is None:  # already without numbers
            return hunk
        at = int(match[1])
        changed = [hunk[0]]
        for line in hunk[1:]:
            if line[0] in " -":
                changed.append(f"{line[0]}{at} {line[1:]}")
                at += 1
            else:
                changed.append(line)
        return changed

    return _each_hunk(lines, change)


def cut_context(lines: list[str], chance: random.Random) -> list[str]:
    """Outer context left out."""

    def change(hunk: list[str]) -> list[str]:
        body = hunk[1:]
        for _ in range(chance.randint(0, 3)):
            if len(body) > 1 and body[0].startswith(" "):
                body = body[1:]
        for _ in range(chance.randint(0, 3)):
            if len(body) > 1 and body[-1].startswith(" "):
                body = body[:-1]
        return [hunk[0], *body]

    return _each_hunk(lines, change)


def invent_context(lines: list[str], chance: random.Random) -> list[str]:
    """Outer context that the file does not have."""

    def change(hunk: list[str]) -> list[str]:
        first = [f" invented_{chance.random()}"] if chance.random() < 0.7 else []
        last = [f" invented_{chance.random()}"] if chance.random() < 0.7 else []
        return [hunk[0], *first, *hunk[1:], *last]

    return _each_hunk(lines, lambda hunk: hunk if _is_new_or_gone(lines) else change(hunk))


def shuffle(lines: list[str], chance: random.Random) -> list[str]:
    """Hunks out of order."""
    changed: list[str] = []
    for file in _files(lines):
        header, hunks = _parts(file)
        chance.shuffle(hunks)
        changed += header + [line for hunk in hunks for line in hunk]
    return changed


def drop_git_headers(lines: list[str], chance: random.Random) -> list[str]:
    """Only the ``---`` and ``+++`` lines of each header."""
    if any(line.startswith(("rename ", "old mode ", "new file ", "deleted file ")) for line in lines):
        return lines
    return [line for line in lines if not line.startswith(("diff --git ", "index "))]


def drop_sides(lines: list[str], chance: random.Random) -> list[str]:
    """Paths without ``a/`` and ``b/``."""
    changed = [re.sub(r"^(--- |\+\+\+ )[ab]/", r"\1", line) for line in lines]
    return [line for line in changed if not line.startswith("diff --git ")]


def drop_headers(lines: list[str], chance: random.Random) -> list[str]:
    """Hunks alone."""
    if len(_files(lines)) != 1 or _is_new_or_gone(lines) or any(line.startswith("rename ") for line in lines):
        return lines
    return [line for hunk in _parts(lines)[1] for line in hunk] or lines


def repeat(lines: list[str], chance: random.Random) -> list[str]:
    """The same hunk twice."""
    return _each_hunk(lines, lambda hunk: hunk if _is_new_or_gone(lines) else hunk + hunk)


def carriage_returns(lines: list[str], chance: random.Random) -> list[str]:
    return [line + "\r" for line in lines]


def _paths(lines: list[str], change: Callable[[str], str]) -> list[str]:
    """The file lines with other paths, without git's own header lines."""
    if any(line.startswith(("rename ", "old mode ", "new file ", "deleted file ")) for line in lines):
        return lines
    changed = []
    for at, line in enumerate(lines):
        pair = lines[at : at + 2] if line.startswith("--- ") else lines[at - 1 : at + 1]
        if len(pair) == 2 and pair[0].startswith("--- ") and pair[1].startswith("+++ ") and "/dev/null" not in line:
            changed.append(line[:4] + change(line[4:].rstrip("\t\r")) + "\r" * line.endswith("\r"))
        elif not line.startswith(("diff --git ", "index ")):
            changed.append(line)
    return changed


def date_paths(lines: list[str], chance: random.Random) -> list[str]:
    """A date behind each path, with a tab or blanks before it."""
    before = chance.choice(("\t", " ", "  "))
    zone = chance.choice(("", " +0000", ".000000000 -0800"))
    return _paths(lines, lambda path: f"{path}{before}2026-01-0{chance.randint(1, 9)} 10:00:00{zone}")


def remark_paths(lines: list[str], chance: random.Random) -> list[str]:
    """A remark behind each path."""
    return _paths(lines, lambda path: f"{path} ({chance.choice(('original', 'modified', 'new'))})")


def move_paths(lines: list[str], chance: random.Random) -> list[str]:
    """Paths as they are in a container, or with back slashes, or from the current folder."""
    form = chance.choice(("/testbed/{}", "/src/{}", "./{}", "a/./{}", "C:\\repo\\{}", "a/{}"))
    slash = chance.choice("/\\")
    return _paths(lines, lambda path: form.format(path[2:].replace("/", slash)))


def no_break_spaces(lines: list[str], chance: random.Random) -> list[str]:
    """No-break spaces in the indentation of every line of a hunk, or in each second place of it."""
    step = chance.choice((1, 2))

    def indent(text: str) -> str:
        count = len(text) - len(text.lstrip(" "))
        return "".join(" " if at % step else "\u00a0" for at in range(count)) + text[count:]

    def change(hunk: list[str]) -> list[str]:
        return [hunk[0], *(line[:1] + indent(line[1:]) for line in hunk[1:])]

    return _each_hunk(lines, change)


DAMAGES: dict[str, Damage] = {
    "miscount": miscount,
    "move": move,
    "drop_numbers": drop_numbers,
    "strip_ends": strip_ends,
    "pad_ends": pad_ends,
    "shift": shift,
    "number": number,
    "cut_context": cut_context,
    "invent_context": invent_context,
    "shuffle": shuffle,
    "drop_git_headers": drop_git_headers,
    "drop_sides": drop_sides,
    "drop_headers": drop_headers,
    "repeat": repeat,
    "carriage_returns": carriage_returns,
    "date_paths": date_paths,
    "remark_paths": remark_paths,
    "move_paths": move_paths,
    "no_break_spaces": no_break_spaces,
}

WRAPPERS: dict[str, Callable[[str], str]] = {
    "bare": lambda diff: diff,
    "fence": lambda diff: f"Here is the fix:\n\n```diff\n{diff}```\n\nIt adds a check.\n",
    "fence with info": lambda diff: f"```diff file=x.py\n{diff}```\n",
    "tildes": lambda diff: f"~~~~ git-diff\n{diff}~~~~\n",
    "tag": lambda diff: f"<patch>\n{diff}</patch>\nDone.\n",
    "fence in a tag": lambda diff: f"<patch>\n```\n{diff}```\n</patch>\n",
    "after code": lambda diff: f"```python\nx = 1\n```\nThe patch:\n```patch\n{diff}```\n",
    "indented": lambda diff: (
        "1. First\n\n   ```diff\n" + "".join(f"   {x}\n" for x in diff.removesuffix("\n").split("\n")) + "   ```\n"
    ),
}
