"""Drafts continuations of a diff as text: headers, hunk headers, and lines of a hunk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from swe_infer.llama.drafting.patch_state import DraftHunk, PatchState

AddedLine = Callable[[DraftHunk, str, Sequence[str], int], Iterator[str]]
"""(hunk, line so far, lines before, how many) to texts that may follow, each up to the line's end at most."""

_LINES = 24
_HEADER = re.compile(r"@@ -(\d+)(?:,(\d*))?(?: \+(\d+)(?:,(\d*))?)?(?P<rest> .*)?$")
"""A hunk header or the start of one: old line and count, new line and count, and the rest."""


class Planner:
    """Continuations of a :class:`PatchState`, most likely first.

    Args:
        paths: files of the prompt, ranked by how likely a patch touches them, and its front matter.
        opening: text of an answer before its first header, such as ``<patch>``.
        added: drafts the content of an added line.
    """

    def __init__(
        self, state: PatchState, paths: tuple[Sequence[str], Sequence[str]], opening: str, added: AddedLine
    ) -> None:
        self._state = state
        self._likely, self._unlikely = paths
        self._opening = opening
        self._added = added

    def texts(self, size: int) -> Iterator[str]:
        """Texts of about ``size`` characters that may follow the output so far."""
        state = self._state
        hunk = state.hunk
        if hunk is not None and not hunk.complete:
            yield from self._in_hunk(hunk, state.current, size)
        elif state.current.startswith("@@"):
            yield from self._hunk_header(state.current, size)
        else:
            yield from self._between(state.current)

    # Headers

    def _between(self, current: str) -> Iterator[str]:
        for text in self._outside():
            if len(text) > len(current) and text.startswith(current):
                yield text[len(current) :]
        if current.startswith("diff --git a/") and " b/" not in current:
            path = current[13:]
            if path.endswith(" "):
                yield f"b/{path.rstrip()}\n"
            elif path:
                yield f" b/{path}\n"

    def _outside(self) -> Iterator[str]:
        """Texts from the start of the line that may follow outside hunks."""
        state = self._state
        previous, path = state.previous, state.path or ""
        new_file = f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1,"
        if previous.startswith("diff --git a/"):
            yield f"--- a/{path}\n+++ b/{path}\n@@ -"
            yield f"new file mode 100644\n{new_file}"
            yield f"deleted file mode 100644\n--- a/{path}\n+++ /dev/null\n@@ -1,"
        elif previous.startswith("new file mode") or (previous.startswith("index ") and state.source is None):
            yield new_file
        elif previous.startswith("index "):
            yield f"--- a/{path}\n+++ b/{path}\n@@ -"
        elif previous.startswith("--- /dev/null"):
            yield f"+++ b/{path}\n@@ -0,0 +1,"
        elif previous.startswith("--- a/"):
            yield f"+++ b/{path}\n@@ -"
        elif previous.startswith("+++ "):
            yield "@@ -"
        else:
            yield from self._next_part()

    def _next_part(self) -> Iterator[str]:
        state = self._state
        if not state.touched:
            if state.lines == 0 and self._opening:
                for header in self._headers():
                    yield f"{self._opening}\n{header}"
            yield from self._headers()
            return
        ahead = any(path not in state.touched for path in self._likely)
        ending = ["\n</patch>\n", "</patch>\n"] if state.tagged else [f"{state.fence}\n"] if state.fence else []
        files = list(self._headers())
        yield from (files[:1] if ahead else ending[:1])
        yield "@@ -"
        yield from (ending if ahead else files[:1])
        yield from files[1:]
        yield from ending[1:]

    def _headers(self) -> Iterator[str]:
        state = self._state
        git = state.style.git_headers is not False
        for path in (*self._likely, *self._unlikely):
            if path not in state.touched:
                first = f"diff --git a/{path} b/{path}\n" if git else ""
                yield f"{first}--- a/{path}\n+++ b/{path}\n@@ -"

    # Hunk headers

    def _hunk_header(self, current: str, size: int) -> Iterator[str]:
        """Continuations of ``@@ -start,old +begin,new @@ heading`` from any point."""
        match = _HEADER.match(current)
        if match is None:
            if "@@ -".startswith(current):
                yield "@@ -"[len(current) :]
            return
        start, old, begin, new, rest = match.groups()
        if begin and rest is not None:
            head = f"{current[: match.start('rest')]} @@"
            yield from self._headed(current, int(start), int(old or 1), int(new or 1), head, size)
            return
        usual = 2 * self._state.style.context
        line = int(begin) if begin and new is not None else int(start) + self._state.offset
        for removed in [int(old)] if old else [usual + 1, usual][: 1 if old is None else 2]:
            added = int(new) if new else removed + (removed <= usual)
            head = f"@@ -{start},{removed} +{line},{added} @@"
            if head.startswith(current):
                yield from self._headed(current, int(start), removed, added, head, size)

    def _headed(self, current: str, start: int, old: int, new: int, head: str, size: int) -> Iterator[str]:
        """Texts after ``current`` that complete the header ``head``, with and without a heading, and its lines."""
        state = self._state
        at = max(0, start - 1)
        heading = "" if state.source is None else state.source.heading(at)
        body = self._lines(state.new_hunk(at, old, new), [], size) if start else "+"
        variants = [f" {heading}" if heading else "", ""]
        for variant in variants if state.style.headings else reversed(variants):
            text = f"{head}{variant}\n{body}"
            if text.startswith(current):
                yield text[len(current) :]

    # The lines of a hunk

    def _in_hunk(self, hunk: DraftHunk, current: str, size: int) -> Iterator[str]:
        view = self._state.view
        kinds = _kinds(hunk) if not current else [current[0]]
        for kind in kinds:
            if kind == "+":
                for text in self._added(hunk, current[1:], view, 3):
                    lead = "" if current else "+"
                    yield lead + self._go_on(hunk, current[1:], text, view, size)
            elif kind in " -":
                line = hunk.upcoming()
                if line is None or not line.startswith(current[1:]):
                    continue
                after = hunk.copy()
                after.consume(kind, line)
                seen = [*view, line] if kind == " " else view
                yield f"{kind}{line}"[len(current) :] + "\n" + self._lines(after, seen, size - len(line))

    def _go_on(self, hunk: DraftHunk, body: str, text: str, view: Sequence[str], size: int) -> str:
        """``text``, which continues an added line, followed by draft lines after it."""
        if not text.endswith("\n"):
            return text
        line = body + text[:-1]
        after = hunk.copy()
        after.consume("+", line)
        return text + self._lines(after, [*view, line], size - len(text))

    def _lines(self, hunk: DraftHunk, view: Sequence[str], size: int) -> str:
        """The most likely remaining lines of the hunk. Modifies ``hunk``."""
        out: list[str] = []
        remaining = size
        for _ in range(_LINES):
            if remaining <= 0:
                break
            if hunk.complete:
                out.append(next(self._after_hunk(), ""))
                break
            kind = _kinds(hunk)[0]
            if kind == "+":
                text = next(self._added(hunk, "", view, 1), "")
                out.append("+" + text)
                if not text.endswith("\n") or len(text) < 2:
                    break
                line = text[:-1]
            else:
                upcoming = hunk.upcoming()
                if upcoming is None:
                    break
                line = upcoming
                out.append(f"{kind}{line}\n")
            hunk.consume(kind, line)
            if kind != "-":
                view = [*view[-2:], line]
            remaining -= len(line) + 2
        return "".join(out)

    def _after_hunk(self) -> Iterator[str]:
        state = self._state
        ahead = any(path not in state.touched for path in self._likely)
        if ahead:
            yield from self._headers()
        elif state.tagged:
            yield "\n</patch>\n"
        elif state.fence:
            yield f"{state.fence}\n"


def _kinds(hunk: DraftHunk) -> list[str]:
    """Possible signs of the hunk's next line, most likely first."""
    if hunk.old is None or hunk.new is None:
        return [" ", "+", "-"]
    if hunk.old <= 0:
        return ["+", " ", "-"]
    if hunk.new <= 0:
        return ["-", " ", "+"]
    if not hunk.changed and max(hunk.old, hunk.new) <= hunk.context:  # too few lines are left for more context
        return ["+", "-", " "] if hunk.new > hunk.old else ["-", "+", " "]
    removals, additions = hunk.old - hunk.context, hunk.new - hunk.context
    if not hunk.changed and hunk.run < hunk.context:
        return [" ", "-", "+"]
    if removals <= 0:
        return ["+", " ", "-"] if hunk.new > hunk.old else [" ", "-", "+"]
    if additions <= 0 or (hunk.old - hunk.new == removals and not hunk.added):
        return ["-", " ", "+"]
    if hunk.added:
        if len(hunk.added) < len(hunk.removed) or hunk.new - hunk.old > 0:
            return ["+", " ", "-"]
        return [" ", "+", "-"]
    if hunk.removed:
        return ["-", "+", " "] if removals <= 3 else ["+", "-", " "]
    if hunk.run >= (2 * hunk.context if hunk.changed else hunk.context):
        return ["-", "+", " "]
    return [" ", "-", "+"]
