"""Tells the whole of a rewritten file from an excerpt, and from a text that leaves lines out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from swe_infer.patches.diff import Line

_COMMENT = r"\s*(?:#|//|/\*|<!--|--|;|%|\(|\[|<|\"\"\")\s*"
_REST = (
    r"(?:rest of|remaining|existing|other|previous)\s+(?:the\s+)?(?:\w+\s+){0,3}"
    r"(?:unchanged|remains?|stays?|same|here|omitted|code|methods?|functions?)"
)
_OMISSION = re.compile(rf"{_COMMENT}[(\[<]?\s*(?:(?:\.{{3,}}|…)\s*\w|[^\n]*{_REST})", re.IGNORECASE)
"""A line that says that it stands for others."""
_POSSIBLE_OMISSION = re.compile(
    rf"(?:{_COMMENT})?\s*[(\[<]?\s*(?:\.{{3,}}|…|⋮|etc\b)|[^\n]*{_REST}|"
    rf"(?:\s*pass\b)?{_COMMENT}[^\n]*\b(?:unchanged|no changes?|not changed|omitted|elided|snip|snipped|truncated|"
    r"as (?:is|before)|same as (?:before|above|original)|rest of|remaining|everything else|(?:keep|existing) \w+)\b",
    re.IGNORECASE,
)
"""A line that may stand for others: it does if lines are missing where it is."""
_LONGEST_OMISSION = 300
_TRIVIAL = re.compile(r"\s*(?:pass|\.\.\.|raise NotImplementedError\b.*|return NotImplemented)\s*$")
_BINDING = re.compile(r"(?:import|from|use|using|require|#include)\b(?P<names>.*)")
_WORD = re.compile(r"\w+")

_SHORT_FILE = 3
"""Lines of a file up to which any text may replace it. In a form that is not explicit, a text of fewer lines must not
look like a change of one of them."""
_LEAST_KEPT = 0.5
"""The share of a file's lines that a rewritten file must keep. With less it is treated as an excerpt."""


def says_lines_are_left_out(lines: Sequence[Line]) -> bool:
    """Whether an added line of a diff says that it stands for others (``# ... rest of the code``)."""
    return any(
        line.tag == "+" and len(line.text) < _LONGEST_OMISSION and _OMISSION.match(line.text) for line in lines
    )


def leaves_lines_out(lines: Sequence[Line]) -> bool:
    """Whether an added line of a diff stands for lines that were left out.

    A line such as ``...`` does so only if lines are removed where it is added, at least as many as are added there.
    """
    for group in _groups(lines):
        added = [line.text for line in group if line.tag == "+"]
        removed = [line.text for line in group if line.tag == "-" and line.text.strip()]
        kept = [text for text in removed if not _TRIVIAL.match(text) and not _POSSIBLE_OMISSION.match(text)]
        if len(removed) < sum(bool(text.strip()) for text in added) or not kept:
            continue
        if any(len(text) < _LONGEST_OMISSION and _POSSIBLE_OMISSION.match(text) for text in added):
            return True
    return says_lines_are_left_out(lines)


def is_excerpt(lines: Sequence[Line], written: Sequence[str], *, explicit: bool) -> bool:
    """Whether a text is only a part of a file.

    Args:
        lines: the diff from the file to the text.
        written: the lines of the text.
        explicit: its form is for whole files. Otherwise it must keep half of the file, and the file's ends.
    """
    shown = [line for line in lines if line.text.strip()]
    tags = [line.tag for line in shown]
    kept, removed, added = tags.count(" "), tags.count("-"), tags.count("+")
    if kept + removed <= _SHORT_FILE:
        return added < removed and not explicit and _changes_a_line(shown)
    if _indented_start(shown, written):
        return True
    few = kept < _LEAST_KEPT * (kept + removed)
    if not explicit:
        return few or _is_cut(tags) or _is_cut(tags[::-1])
    if few and kept + added < _LEAST_KEPT * (kept + removed):
        return True
    return _lacks_start(shown, written) or _lacks_a_part(shown)


def _changes_a_line(shown: Sequence[Line]) -> bool:
    """Whether an added line begins with the same word as a removed one."""
    added, removed = ({line.text.split()[0] for line in shown if line.tag == tag} for tag in "+-")
    return not added.isdisjoint(removed)


def _groups(lines: Sequence[Line]) -> Iterator[list[Line]]:
    """The changes between kept lines."""
    group: list[Line] = []
    for line in lines:
        if line.tag != " ":
            group.append(line)
        elif group:
            yield group
            group = []
    if group:
        yield group


def _is_cut(tags: Sequence[str]) -> bool:
    """Whether removed lines come first and are not replaced."""
    return tags[:1] == ["-"] and next((tag for tag in tags if tag != "-"), None) != "+"


def _indented_start(shown: Sequence[Line], written: Sequence[str]) -> bool:
    """Whether the text begins indented and the file does not."""
    old = next((line.text for line in shown if line.tag != "+"), "")
    new = next((text for text in written if text.strip()), "")
    return new[:1].isspace() and not old[:1].isspace()


def _lacks_start(shown: Sequence[Line], written: Sequence[str]) -> bool:
    """Whether the file's first lines are missing: several without a replacement, or imports that are still used."""
    first = next(_groups(shown), []) if shown and shown[0].tag != " " else []
    removed = [line.text for line in first if line.tag == "-"]
    if not removed:
        return False
    words = {word for text in written for word in _WORD.findall(text)}
    for text in removed:
        binding = _BINDING.match(text)
        if binding is not None and not text.startswith("from __future__"):
            bound = binding["names"].rpartition(" import ")[2]
            if any(word in words for word in _WORD.findall(bound) if word != "as"):
                return True
    following = next((line.text for line in shown if line.tag == " "), "")
    alike = removed[-1].split(" ", 1)[0] == following.split(" ", 1)[0]
    return len(removed) > 1 and len(first) == len(removed) and not alike


def _lacks_a_part(shown: Sequence[Line]) -> bool:
    """Whether lines are missing without a replacement: a third of the file, or its end from inside a block on."""
    old = sum(line.tag != "+" for line in shown)
    runs = [group for group in _groups(shown) if all(line.tag == "-" for line in group)]
    if any(len(run) * 3 > old and len(run) > _SHORT_FILE for run in runs):
        return True
    at_end = bool(runs) and shown[-1] is runs[-1][-1]
    return at_end and len(runs[-1]) > 1 and runs[-1][0].text[:1].isspace()
