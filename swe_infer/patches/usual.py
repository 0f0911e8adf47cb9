"""Recognises the usual answer: text around one diff in a fence or in ``<patch>``, as git writes it, of changed files
only, whose hunks match at their line numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from swe_infer.patches.apply import StatedLines
from swe_infer.patches.diff import parse_hunk_header, unsafe_path
from swe_infer.patches.extract import MARKS
from swe_infer.types import PatchResult

_TEXT = rf"(?!(?:[^\S\n]|>)*{MARKS})[^\n]*"
"""A line that opens and closes nothing."""
_ANSWER = re.compile(
    rf"(?:{_TEXT}\n)*+(?:(?P<fence>```)[a-z]*|<patch>)\n"
    r"(?P<diff>(?=diff --git |--- )(?:[-+ ]?[ \t]*\n|(?!--[ \t]*\n|[-+]?(?:[^\S\n]|>)*[`~<])[^\n]*[^\s>][ \t]*\n)++)"
    rf"(?(fence)```|</patch>)[ \t]*(?:\n{_TEXT})*+\Z"
)
"""One fence or tag. No line of the diff may close another, and no line of the text may open one."""
_HEADER = re.compile(
    r"(?=(?:diff --git|---) a/(?P<path>[^\s\"'`*\\]+))(?:diff --git a/(?P=path) b/(?P=path)\n"
    r"(?:index [^\s.]+\.\.[^\s.]+(?: 100(?:644|755))?\n)?)?--- a/(?P=path)\n\+\+\+ b/(?P=path)\n"
)
"""A file's header, with or without git's own line, and with a path that needs neither quotes nor cleaning."""
_HUNK = re.compile(r"(?P<header>@@ -[^\n]*)\n(?P<lines>(?:(?!--- )[-+ ][^\n]*\n|\n)++)")


def usual_patch(answer: str, files: Mapping[str, str]) -> PatchResult | None:
    """The result for a usual answer; None for another one, which must be scanned and parsed."""
    found = None if "\r" in answer or "&" in answer else _ANSWER.match(answer)
    text = found["diff"].rstrip("\n") + "\n" if found else ""
    if found is None or not fits(text, files):
        return None
    return PatchResult(text, "applies", format="fence" if found["fence"] else "tag")


def fits(text: str, files: Mapping[str, str]) -> bool:
    """Whether a text is such a diff and applies to ``files``. False may also mean that it must be parsed."""
    changed: set[str] = set()
    position = 0
    while position < len(text):
        header = _HEADER.match(text, position)
        if header is None:
            return False
        path, position = header["path"], header.end()
        if path in changed or unsafe_path(path):
            return False
        content = files.get(path)
        # With a file of the longer name, it is not clear which one is meant.
        if content is None or f"a/{path}" in files or f"b/{path}" in files:
            return False
        changed.add(path)
        places = StatedLines(content)
        while hunk := _HUNK.match(text, position):
            position = hunk.end()
            if not _hunk_fits(hunk, places):
                return False
        if not places.position:
            return False
    return True


def _hunk_fits(hunk: re.Match[str], places: StatedLines) -> bool:
    header, lines = parse_hunk_header(hunk["header"]), hunk["lines"].removesuffix("\n").split("\n")
    old = [line[1:] for line in lines if line[:1] != "+"]
    new = [line[1:] for line in lines if line[:1] != "-"]
    if header is None or (header.old_count, header.new_count) != (len(old), len(new)) or old == new:
        return False
    text = "\n".join([*old, ""])
    return places.place(header, text, len(new), ends_in_change=lines[-1][:1] in ("+", "-")) is not None
