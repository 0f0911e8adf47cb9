"""Reads answers that say what to replace by what, or what a file is to be, instead of a diff.

Forms: Aider's ``<<<<<<< SEARCH`` blocks; tags such as ``<file>…</file><original>…</original><patched>…</patched>``;
whole files between ``[start of PATH]`` and ``[end of PATH]``, in ``<file path="PATH">``, or in a fence that
follows a line with nothing but the path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Replacement", "find_replacements"]

_OLD_NAMES = frozenset({"original", "search", "old", "old_str", "old_code", "before", "find"})
_NEW_NAMES = frozenset({"patched", "replace", "new", "new_str", "new_code", "after", "updated", "replacement"})
_PATH_NAMES = frozenset({"file", "file_path", "filepath", "filename", "path"})
_NAMES = "|".join(sorted(_OLD_NAMES | _NEW_NAMES | _PATH_NAMES, key=len, reverse=True))
_TOKEN = re.compile(rf"<(?P<name>{_NAMES})(?P<attributes>\s[^<>\n]*)?>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"(?:path|name|filename)\s*=\s*[\"']?([^\"'\s>]+)")
_SEARCH = re.compile(r"\s*<{5,9} ?(?:SEARCH|ORIGINAL|OLD|BEFORE|HEAD)\b.*$", re.IGNORECASE)
_DIVIDER = re.compile(r"\s*={5,9}\s*$")
_REPLACE = re.compile(r"\s*>{5,9} ?(?:REPLACE|UPDATED?|NEW|AFTER|PATCHED)\b.*$", re.IGNORECASE)
_FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
_WHOLE = re.compile(r"\[start of (?P<path>[^\n\]]+)\]\s*$")
_PLAIN_PATH = re.compile(r"[\w./@+-]+")
_LABEL = re.compile(r"^(?:[#>*\s-]|\d+\.)*(?:(?:file|path|filename|in|edit|update|modify)\b[ :]*)?", re.IGNORECASE)
_DRESS = "`*'\":() \t\r"
_ELIDED = re.compile(
    r"^\s*(?:#|//|/\*|<!--|--|;)?\s*(?:\.{3,}|…)|"
    r"(?:rest of|remaining|existing|other|previous)\s+(?:the\s+)?(?:\w+\s+){0,3}"
    r"(?:unchanged|remains?|stays?|same|here|omitted|code|methods?|functions?)",
    re.IGNORECASE,
)
_LONGEST_NOTE = 300


@dataclass(frozen=True, slots=True)
class Replacement:
    """One edit.

    Args:
        path: as written; None where nothing names the file.
        old: the text to replace; None where ``new`` is the whole file.
        explicit: the form itself says that this is a file, so a new one may be made of it.
    """

    path: str | None
    old: str | None
    new: str
    form: str
    explicit: bool = True


def find_replacements(answer: str) -> tuple[list[Replacement], str | None]:
    """The edits of ``answer`` in order, in the first form that it uses; and what is wrong if one is cut off."""
    for reader in (_from_markers, _from_tags, _from_whole_files):
        found, problem = reader(answer)
        if found or problem:
            return found, problem
    return [], None


def elided(text: str) -> bool:
    """Whether a line stands for lines that were left out (``# ... rest of the code``)."""
    return any(_ELIDED.search(line) for line in text.split("\n") if len(line) < _LONGEST_NOTE)


def _from_markers(answer: str) -> tuple[list[Replacement], str | None]:
    lines = [line.removesuffix("\r") for line in answer.split("\n")]
    found: list[Replacement] = []
    path: str | None = None
    at = 0
    while at < len(lines):
        if not _SEARCH.match(lines[at]):
            at += 1
            continue
        path = _path_before(lines, at) or path
        divider = next((n for n in range(at + 1, len(lines)) if _DIVIDER.match(lines[n])), None)
        end = None
        if divider is not None:
            end = next((n for n in range(divider + 1, len(lines)) if _REPLACE.match(lines[n])), None)
        if divider is None or end is None:
            return [], "a search/replace block is cut off"
        old, new = "\n".join(lines[at + 1 : divider]), "\n".join(lines[divider + 1 : end])
        found.append(Replacement(path, old, new, "search_replace"))
        at = end + 1
    return found, None


def _path_before(lines: Sequence[str], at: int) -> str | None:
    """A path on one of the lines before a block, or in the info of its fence."""
    for line in reversed(lines[max(0, at - 4) : at]):
        if _REPLACE.match(line):
            return None
        fence = _FENCE.match(line)
        path = path_in(fence["info"] if fence else line)
        if path is not None:
            return path
    return None


def path_in(line: str) -> str | None:
    """The path that a short line names, if it names nothing else."""
    if len(line) > _LONGEST_NOTE:
        return None
    text = _LABEL.sub("", line.strip(), count=1).strip(_DRESS)
    language, _, rest = text.partition(" ")
    if rest and language.isalpha():
        text = rest.strip(_DRESS)  # the info of a fence: a language, then the path
    if text.startswith(("file=", "path=", "title=", "filename=")):
        text = text.partition("=")[2].strip(_DRESS)
    extension = text.rpartition("/")[2].rpartition(".")[2]
    plain = _PLAIN_PATH.fullmatch(text) and not text.startswith("/") and "." in text and extension.isalnum()
    return text if plain else None


def _from_tags(answer: str) -> tuple[list[Replacement], str | None]:
    found: list[Replacement] = []
    path: str | None = None
    old: str | None = None
    for name, attributes, content in _elements(answer):
        if content is None:
            return [], f"a search/replace block is cut off in its <{name}>"
        if name in _PATH_NAMES:
            attribute = _ATTRIBUTE.search(attributes)
            if attribute is None:
                path = content.strip().strip(_DRESS)
                continue
            path = attribute[1]
            if not _TOKEN.search(content):
                found.append(Replacement(path, None, _unwrapped(content), "whole_file"))
        elif name in _OLD_NAMES:
            old = content
        elif old is not None:
            found.append(Replacement(path, _unwrapped(old), _unwrapped(content), "search_replace"))
            old = None
    return (found, None) if old is None or not found else ([], "a search/replace block is cut off")


def _elements(answer: str) -> Iterator[tuple[str, str, str | None]]:
    """Name, attributes and content of each element; a file element with edits in it is read into as well.

    The content is None for an edit that is not closed. Each name is looked for in vain once at most.
    """
    lower = answer.lower()
    unclosed: set[str] = set()
    position = inside_until = 0
    old_seen = False
    while match := _TOKEN.search(answer, position):
        name, attributes = match["name"].lower(), match["attributes"] or ""
        position = match.end()
        end = -1 if name in unclosed else lower.find(f"</{name}>", position)
        if end < 0:
            unclosed.add(name)
            if name in _NEW_NAMES and old_seen:
                yield name, attributes, None
            continue
        if attributes and name in _PATH_NAMES and position >= inside_until and _TOKEN.search(answer, position, end):
            inside_until = end
            yield name, attributes, match[0]
            continue
        old_seen = name in _OLD_NAMES
        yield name, attributes, answer[position:end]
        position = end


def _unwrapped(content: str) -> str:
    """The text between two tags, without the line breaks next to them and a fence directly inside."""
    content = content.replace("\r\n", "\n").removeprefix("\n").rstrip(" \t").removesuffix("\n")
    lines = content.split("\n")
    if len(lines) >= 2 and _FENCE.match(lines[0]) and _FENCE.match(lines[-1]):
        return "\n".join(lines[1:-1])
    return content


def _from_whole_files(answer: str) -> tuple[list[Replacement], str | None]:
    lines = [line.removesuffix("\r") for line in answer.split("\n")]
    found: list[Replacement] = []
    at = 0
    while at < len(lines):
        whole, fence = _WHOLE.match(lines[at]), _FENCE.match(lines[at])
        if not whole and not fence:
            at += 1
            continue
        closing = f"[end of {whole['path']}]" if whole else fence["mark"] if fence else ""
        end = next((n for n in range(at + 1, len(lines)) if lines[n].strip() == closing), None)
        if end is None:
            return (found, None) if fence else ([], f"the file {whole['path'] if whole else ''} is cut off")
        path = whole["path"] if whole else _path_before(lines, at) or (path_in(fence["info"]) if fence else None)
        if path is not None:
            body = "\n".join(lines[at + 1 : end])
            found.append(Replacement(path, None, body, "whole_file", explicit=bool(whole)))
        at = end + 1
    return found, None
