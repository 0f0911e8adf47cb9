"""Layouts of prompts: SWE-bench's four, byte for byte, and one of our own.

Format: SWE-bench's ``make_datasets/create_instance.py`` and ``create_text_dataset.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

from swe_infer.context.windows import Range, excerpt
from swe_infer.patches.diff import FilePatch
from swe_infer.prompts.edit_formats import INSTRUCTIONS
from swe_infer.types import EditFormat

NEW_FILE = "/dev/null"
"""SWE-bench's layouts show an empty file of this name if the gold patch creates a file."""

_PREMISE = "You will be provided with a partial code base and an issue statement explaining a problem to resolve."
_END = "\n\n"
"""The end of SWE-bench's published prompts."""

_STYLE_2 = (
    "I need you to solve this issue by generating a single patch file that I can apply directly to this repository "
    "using git apply. Please respond with a single patch file in the following format."
)
_STYLE_3_EXPLANATION = (
    "Here is an example of a patch file. It consists of changes to the code base. It specifies the file names, the "
    "line numbers of each change, and the removed and added lines. A single patch file can contain changes to "
    "multiple files."
)
_STYLE_3 = (
    "I need you to solve the provided issue by generating a single patch file that I can apply directly to this "
    "repository using git apply. Please respond with a single patch file in the format shown above."
)
_FULL_FILE = (
    "I need you to solve this issue by regenerating the full files in the code base that you would like to change. "
    "You can change as many files as you like. Please respond with a list of files and their revised contents in the "
    "following format."
)
_PATCH_EXAMPLE = """\
--- a/file.py
+++ b/file.py
@@ -1,27 +1,35 @@
 def euclidean(a, b):
-    while b:
-        a, b = b, a % b
-    return a
+    if b == 0:
+        return a
+    return euclidean(b, a % b)
\x20
\x20
 def bresenham(x0, y0, x1, y1):
     points = []
     dx = abs(x1 - x0)
     dy = abs(y1 - y0)
-    sx = 1 if x0 < x1 else -1
-    sy = 1 if y0 < y1 else -1
-    err = dx - dy
+    x, y = x0, y0
+    sx = -1 if x0 > x1 else 1
+    sy = -1 if y0 > y1 else 1
\x20
-    while True:
-        points.append((x0, y0))
-        if x0 == x1 and y0 == y1:
-            break
-        e2 = 2 * err
-        if e2 > -dy:
+    if dx > dy:
+        err = dx / 2.0
+        while x != x1:
+            points.append((x, y))
             err -= dy
-            x0 += sx
-        if e2 < dx:
-            err += dx
-            y0 += sy
+            if err < 0:
+                y += sy
+                err += dx
+            x += sx
+    else:
+        err = dy / 2.0
+        while y != y1:
+            points.append((x, y))
+            err -= dx
+            if err < 0:
+                x += sx
+                err += dy
+            y += sy
\x20
+    points.append((x, y))
     return points"""
_FULL_FILE_EXAMPLE = """\
[start of /src/this_file.py]
import os

def euclidean(a, b):
    if b == 0:
        return a
    return euclidean(b, a % b)
[end of /src/this_file.py]
[start of /src/another_file.py]
def bresenham(x0, y0, x1, y1):
    points = []
    dx = abs(x1 - x0)
    dy = abs(y1 - y0)
    x, y = x0, y0
    sx = -1 if x0 > x1 else 1
    sy = -1 if y0 > y1 else 1
    if dx > dy:
        err = dx / 2.0
        while x != x1:
            points.append((x, y))
            err -= dy
            if err < 0:
                y += sy
                err += dx
            x += sx
    else:
        err = dy / 2.0
        while y != y1:
            points.append((x
            err -= dx
            if err < 0:
                x += sx
                err += dy
            y += sy
    points.append((x, y))
    return points
[end of /src/another_file.py]"""


def style_2(issue: Sequence[str], code: str, edit_format: EditFormat) -> str:
    """SWE-bench's ``style-2``; with the code of :func:`edited_lines` its ``style-2-edits-only``.

    Args:
        issue: the lines of the issue and its hints, with the tags around them.
    """
    answer = [_STYLE_2, "<patch>", _PATCH_EXAMPLE, "</patch>"]
    return _swebench([*issue, *_code(code), *_answer(answer, edit_format, "unified_diff")])


def style_3(issue: Sequence[str], code: str, edit_format: EditFormat) -> str:
    """SWE-bench's ``style-3``, which the published datasets have."""
    answer = [_STYLE_3_EXPLANATION, "<patch>", _PATCH_EXAMPLE, "</patch>", "", _STYLE_3, "Respond below:"]
    return _swebench([*issue, "", *_code(code), "", *_answer(answer, edit_format, "unified_diff")])


def full_file(issue: Sequence[str], code: str, edit_format: EditFormat) -> str:
    """SWE-bench's ``full_file_gen``."""
    answer = [_FULL_FILE, "<example>", _FULL_FILE_EXAMPLE, "</example>"]
    return _swebench([*issue, *_code(code), *_answer(answer, edit_format, "whole_file")])


def plain(issue: Sequence[str], code: str, edit_format: EditFormat) -> str:
    """Our own layout. Without files it has no part for them."""
    shown = ["These are files of the repository:", "", *_code(code), ""] if code.strip() else []
    lines = ["You resolve an issue of a software repository.", *issue, "", *shown, INSTRUCTIONS[edit_format]]
    return "\n".join(lines)


def _swebench(lines: Iterable[str]) -> str:
    return "\n".join([_PREMISE, *lines]).strip() + _END


def _code(code: str) -> list[str]:
    return ["<code>", code, "</code>"]


def _answer(own: Sequence[str], edit_format: EditFormat, native: EditFormat) -> Sequence[str]:
    """The instructions for the answer: the style's own if they request ``edit_format``, else those of
    :mod:`.edit_formats`.
    """
    return own if edit_format == native else [INSTRUCTIONS[edit_format]]


def numbered(text: str) -> str:
    """A file with a number before each line; a final newline is shown as an empty last line."""
    return "\n".join(f"{number} {line}" for number, line in enumerate(text.split("\n"), 1))


def whole_files(
    files: Mapping[str, str],
    *,
    numbers: bool,
    keeps_order: bool = False,
    windows: Mapping[str, Sequence[Range]] = MappingProxyType({}),
) -> str:
    """The files, each between a start and an end line; empty without files.

    Args:
        keeps_order: otherwise they are sorted by path, as in SWE-bench.
        windows: the lines to show of a file by its path; others are shown whole.
    """
    return "\n".join(
        f"[start of {path}]\n{_body(text, windows.get(path), numbers)}\n[end of {path}]"
        for path, text in (files.items() if keeps_order else sorted(files.items()))
    )


def _body(text: str, windows: Sequence[Range] | None, numbers: bool) -> str:
    if windows:
        return excerpt(text, windows, numbers=numbers)
    return numbered(text) if numbers else text


_BEFORE = 15
"""Lines before a hunk that ``style-2-edits-only`` shows."""


def edited_parts(files: Mapping[str, str], changes: Iterable[FilePatch], *, keeps_order: bool = False) -> str:
    """The numbered lines around each hunk of the gold patch, by path. Files that it does not edit are shown whole.

    A hunk near the start of a file is shown from the first line; SWE-bench omits such hunks.
    """
    edited = {change.old_path or NEW_FILE: change for change in changes}
    lines: list[str] = []
    for path, text in files.items() if keeps_order else sorted(files.items()):
        shown = numbered(text)
        lines += [f"[start of {path}]", *(_excerpts(shown, edited[path]) if path in edited else [shown])]
        lines.append(f"[end of {path}]")
    return "\n".join(lines)


def _excerpts(shown: str, change: FilePatch) -> Iterator[str]:
    lines = shown.split("\n")
    for header in (hunk.header for hunk in change.hunks if hunk.header is not None):
        start, end = max(0, header.old_start - _BEFORE), header.old_start + header.old_count
        if start:
            yield "..."
        yield from lines[start:end] or [""]
        if end < len(lines):
            yield "..."
