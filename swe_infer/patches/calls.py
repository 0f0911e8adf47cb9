"""Reads the edits in tool calls that a model wrote as text: JSON, XML, or calls as in Python.

The arguments are recognised by name, whatever the tool is called: a path, with an old and a new text, with the whole
content, or with a patch. Strings that contain a patch are returned as text, to be read like an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swe_infer.patches.diff import PathIndex
from swe_infer.patches.literals import ARGUMENTS, LiteralParser, NotALiteral
from swe_infer.patches.replace import Replacement
from swe_infer.text import MAX_CONTAINERS, bounded_json

FORM = "tool_call"
_PATH = (
    "path", "filepath", "file", "filename", "targetfile", "absolutepath", "relativepath", "relativeworkspacepath",
    "target", "targetpath",
)  # fmt: skip
_OLD = (
    "oldstr", "oldstring", "oldtext", "oldcode", "oldcontent", "oldlines", "old", "search", "searchtext",
    "searchblock", "searchstring", "searchcontent", "original", "originaltext", "originalcode", "find",
    "targetcontent", "before",
)  # fmt: skip
_NEW = (
    "newstr", "newstring", "newtext", "newcode", "newcontent", "newlines", "new", "replace", "replacetext",
    "replacestring", "replaceblock", "replacewith", "replacement", "replacementcontent", "replacementtext", "updated",
    "updatedcode", "after",
)  # fmt: skip
_CONTENT = ("content", "contents", "filetext", "filecontent", "filecontents", "newcontent", "codecontent", "text")
_PATCH = ("patch", "modelpatch", "diff", "unifieddiff", "gitdiff", "patchtext", "patchcontent", "input", "answer")
_POSITION = frozenset(
    {"line", "lines", "linenumber", "startline", "endline", "start", "end", "linestart", "lineend", "insertafter",
     "insertbefore", "append", "position", "offset"}
)  # fmt: skip
"""Arguments that say which part of a file a content is for."""
_EVERYWHERE = ("replaceall", "global", "allowmultiple")
_SHELL = ("command", "cmd", "script", "code", "bash")
_IGNORED = frozenset(
    {"thought", "thoughts", "thinking", "reasoning", "explanation", "description", "analysis", "plan"}
)
_LOOKS = frozenset({"view", "undo_edit", "read", "open", "search"})
_JSON_START = re.compile(r"(?:^[ \t>]*|[>\])][ \t]*|```[\w-]*[ \t]*)(?=[\[{])", re.MULTILINE)
_KEY = re.compile(
    r"\b(?:old|new|search|replace|original|find|patch|model_?patch|diff|edits?|changes|files|content|file_?text|input|cmd|command|"
    r"arguments|target)\w*[\"']?\s*[:=]|\"[\w./-]{1,200}\.\w{1,10}\"\s*:\s*\"",
    re.IGNORECASE,
)
_CALL = re.compile(
    r"^[ \t>]*(?:\w{1,40}\s*=\s*)?(?:(?:print|await)\b[( ]*)?(?:\w{1,40}\.){0,3}"
    r"(?=(?:\w{0,40}(?:edit|replace|patch|write|create|insert|update|modify|diff)\w{0,40})\()(?P<name>\w+)(?=\()",
    re.MULTILINE | re.IGNORECASE,
)
_TOOLS = (
    r"(?:str_?replace|replace_in_file|search_and_replace|search_replace|edit|write|create|update|apply|insert|modify|"
    r"multi_?edit)\w{0,40}"
)
_XML = re.compile(
    rf"<(?P<close>/?)(?:\w+:)?(?:(?P<call>invoke|function|tool_call|tool_use|{_TOOLS})(?:[\s=][^<>\n]*)?"
    r"|parameter(?:=|\s+name=)[\"']?(?P<parameter>[\w-]+)[\"']?[^<>\n]*"
    r"|(?P<element>[A-Za-z][\w-]{1,40}))>",
)
_ARGUMENT = re.compile(r"\s*(?P<key>[\w-]{1,40})\s*</arg_key>\s*<arg_value>")
_ELEMENTS = frozenset(
    (*_PATH, *_OLD, *_NEW, *_CONTENT, *_PATCH, *_POSITION, *_EVERYWHERE, "command", "insertline", "argkey")
)
_NEEDS = frozenset((*_NEW, *_CONTENT, *_PATCH, "command"))
"""Arguments of which a complete call has at least one."""
_FILE_ELEMENTS = frozenset({"path", "filepath", "filename"})
"""Elements that begin a call without an element around it."""
_PATCH_MARKS = ("\n+++ ", "*** Begin Patch", "\n@@ ", "diff --git ", " SEARCH\n", "*** Update File")
_MOST_TRIES = 64
_MOST_INSERTIONS = 64
_DEEPEST = 12
_FENCE = re.compile(r"```[\w.+-]*[ \t]*$")
_HUNK = re.compile(r"\s*@@ ")
CUT_OFF = "a tool call is cut off"


@dataclass(slots=True)
class Calls:
    """What the calls of an answer change: edits, or texts with patches. ``problem``: why they cannot be used."""

    edits: list[Replacement] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    problem: str | None = None

    def __bool__(self) -> bool:
        return bool(self.edits or self.texts or self.problem)


def calls_in_json(answer: str, files: Mapping[str, str]) -> Calls:
    """The edits in JSON objects, also in Python's spelling."""
    calls = Calls()
    if not _KEY.search(answer) or answer.count("[") + answer.count("{") > MAX_CONTAINERS:
        return calls
    reader = _Arguments(calls, files)
    decoder = json.JSONDecoder(strict=False)  # models do not escape line breaks in strings
    literals = LiteralParser(answer)
    end = tries = 0
    for match in _JSON_START.finditer(answer):
        if match.end() < end or tries == _MOST_TRIES:
            continue
        tries += 1
        try:
            value, end = decoder.raw_decode(answer, match.end())
        except (ValueError, RecursionError):
            if (literal := _literal(literals, answer, match.end(), calls)) is None:
                continue
            value, end = literal
        reader.read(value, None)
    return calls


def calls_in_python(answer: str, files: Mapping[str, str]) -> Calls:
    """The edits in calls such as ``edit_file(path="…", old_string="…", new_string="…")``."""
    calls = Calls()
    reader = _Arguments(calls, files)
    literals = LiteralParser(answer)
    end = 0
    for match in _CALL.finditer(answer):
        if match.start() < end:
            continue
        if (literal := _literal(literals, answer, match.end(), calls)) is not None:
            value, end = literal
            reader.read(reader.with_names(match["name"].lower(), value), None)
    return calls


def _literal(literals: LiteralParser, answer: str, start: int, calls: Calls) -> tuple[Any, int] | None:
    """The literal at ``start`` and its end; None if there is none. Edits that are cut off become the problem."""
    try:
        return literals.parse(start)
    except NotALiteral as error:
        if error.cut_off and (calls.edits or _KEY.search(answer, start)):
            calls.problem = CUT_OFF
        return None


def calls_in_xml(answer: str, files: Mapping[str, str]) -> Calls:
    """The edits in ``<invoke>``, ``<function=…>``, ``<replace_in_file>`` and similar elements."""
    calls = Calls()
    reader = _Arguments(calls, files)
    for arguments in _xml_calls(answer, calls):
        reader.read(arguments, None)
    return calls


def _xml_calls(answer: str, calls: Calls) -> Iterator[dict[str, str]]:
    """The arguments of each call, in order."""
    for arguments in _xml_arguments(answer, calls):
        texts = [arguments[name] for name in (*_OLD, *_NEW) if name in arguments]
        if len(texts) < 2 or all(not text or text.startswith("\n") for text in texts):
            # The first line break belongs to the form, unless the form puts values behind the tag.
            arguments = {name: value.removeprefix("\n") for name, value in arguments.items()}
        yield arguments


def _xml_arguments(answer: str, calls: Calls) -> Iterator[dict[str, str]]:
    current: dict[str, str] | None = None
    is_open = False
    position = 0
    unclosed: set[str] = set()
    while match := _XML.search(answer, position):
        position = match.end()
        if match["call"]:
            if current:
                yield current
            current = None if match["close"] else {}
            is_open = not match["close"]
            continue
        key = match["parameter"] or match["element"]
        name = _normal(key)
        if current is None and name in _FILE_ELEMENTS and not match["close"]:
            current = {}
        if current is None or match["close"] or (match["element"] and name not in _ELEMENTS):
            continue
        tag = "parameter" if match["parameter"] else key
        if name == "argkey":
            argument = _ARGUMENT.match(answer, position)
            if argument is None:
                continue
            name, tag, position = _normal(argument["key"]), "arg_value", argument.end()
        end = -1 if tag in unclosed else answer.find(f"</{tag}>", position)
        if end < 0:
            unclosed.add(tag)
            calls.problem = CUT_OFF
            continue
        if name in current and name in _PATH + _OLD:
            yield current
            current = {} if name in _PATH else {k: v for k, v in current.items() if k in _PATH}
        current[name] = _without_cdata(answer[position:end])
        position = end + len(tag) + 3
    if is_open and current is not None and _NEEDS.isdisjoint(current):
        calls.problem = CUT_OFF
    elif current:
        yield current


def _without_cdata(value: str) -> str:
    stripped = value.strip()
    if stripped.startswith("<![CDATA[") and stripped.endswith("]]>"):
        value = stripped[len("<![CDATA[") : -len("]]>")]
    return value.replace("\r\n", "\n")


@dataclass(slots=True)
class _Arguments:
    """Adds what the arguments of calls change to ``calls``."""

    calls: Calls
    files: Mapping[str, str]
    index: PathIndex = field(init=False)
    insertions: int = 0

    def __post_init__(self) -> None:
        self.index = PathIndex(self.files)

    def read(self, value: Any, path: str | None, depth: int = 0) -> None:
        """Read a value of a call, and the values in it. ``path``: the file that an outer value names."""
        if depth > _DEEPEST:
            return
        if isinstance(value, str):
            self._read_text(value, path, depth)
        elif isinstance(value, Mapping):
            self._read_mapping(value, path, depth)
        elif isinstance(value, Sequence):
            for item in value:
                self.read(item, path, depth + 1)

    def with_names(self, function: str, value: Any) -> Any:
        """The arguments of a call by name, where the first of them without a name is a file of the prompt."""
        items = value.get(ARGUMENTS) if isinstance(value, Mapping) else value
        texts = [item for item in items if isinstance(item, str)] if isinstance(items, list) else []
        if texts[:1] == [function.rpartition("editor")[0] or "str_replace"]:
            texts = texts[1:]  # the command
        if not texts or "\n" in texts[0] or self._find(texts[0]) is None:
            return value
        named = dict(value) if isinstance(value, Mapping) else {}
        named.pop(ARGUMENTS, None)
        others: tuple[str, ...] = ("old", "new")
        if len(texts) == 2 and not named:
            others = ("content",) if "write" in function or "create" in function else ("patch",)
        return {"path": texts[0], **dict(zip(others, texts[1:], strict=False)), **named}

    def _read_text(self, value: str, path: str | None, depth: int) -> None:
        if _is_patch(value) or "<<" in value:
            self._add_text(value, path)
        elif value.lstrip()[:1] in ("{", "[") and _KEY.search(value):
            try:
                self.read(bounded_json(value, strict=False), path, depth + 1)
            except (ValueError, RecursionError):
                return

    def _read_mapping(self, value: Mapping[str, Any], path: str | None, depth: int) -> None:
        named = {_normal(str(key)): item for key, item in value.items()}
        written = _first(named, _PATH)
        path = written.strip() if written is not None and "\n" not in written.strip() else path
        command = named.get("command")
        command = command.strip() if isinstance(command, str) else command
        if isinstance(command, str) and command in _LOOKS:
            return
        old, new, content = _first(named, _OLD), _first(named, _NEW), _first(named, _CONTENT)
        if old is not None and new is None and command == "str_replace":
            new = ""
        if isinstance(line := _integer(named.get("insertline")), int):
            self._insert(path, line, new if new is not None else named.get("inserttext") or content)
        elif old is not None and new is not None:
            everywhere = any(named.get(key) in (True, "true", "True") for key in _EVERYWHERE)
            self._add(Replacement(path, old, new, FORM, everywhere=everywhere))
        elif path is not None and content is not None and not _POSITION.isdisjoint(named):
            self.calls.problem = "a tool call changes a part of a file by its position"
        elif path is not None and content is not None and not _is_patch(content):
            known = self._find(path)
            content = _without_fence(content, "" if known is None else self.files[known])
            self._add(Replacement(path, None, content, FORM, explicit=known is None))
        else:
            self._read_values(named, value, path, depth)

    def _read_values(self, named: Mapping[str, Any], value: Mapping[str, Any], path: str | None, depth: int) -> None:
        for key, item in value.items():
            name = _normal(str(key))
            if name in _IGNORED or name in _PATH:
                continue
            if isinstance(item, str) and self._find(str(key)) is not None and not _is_patch(item):
                self._add(Replacement(str(key), None, item, FORM, explicit=False))  # {"files": {PATH: content}}
            elif not isinstance(item, str) or name not in _SHELL or _is_patch(item) or "<<" in item:
                self.read(item, path, depth + 1)

    def _add(self, edit: Replacement) -> None:
        if edit not in self.calls.edits[-1:]:
            self.calls.edits.append(edit)

    def _add_text(self, text: str, path: str | None) -> None:
        if path is not None and _HUNK.match(text):
            text = f"--- a/{path}\n+++ b/{path}\n{text.lstrip()}"
        elif path is not None and "\n+++ " not in text and "diff --git " not in text and "*** Begin" not in text:
            text = f"{path}\n{text}"
        self.calls.texts.append(text if text.endswith("\n") else f"{text}\n")

    def _find(self, path: str) -> str | None:
        return self.index.find(self.index.clean(path).removeprefix("/testbed/"))

    def _insert(self, path: str | None, line: int, text: Any) -> None:
        """Adds an edit that inserts ``text`` after a line: the lines around it, as many as identify the place."""
        found = None if path is None else self._find(path)
        lines = [] if found is None else self.files[found].split("\n")
        self.insertions += 1
        possible = found is not None and 0 <= line <= len(lines) and self.insertions <= _MOST_INSERTIONS
        if not isinstance(text, str) or not possible or found is None:
            self.calls.problem = "a tool call inserts a text into a file or at a line that does not exist"
            return
        content = f"\n{self.files[found]}"
        reach = 1
        while True:
            before, after = lines[max(0, line - reach) : line], lines[line : line + reach]
            old = "\n".join([*before, *after])
            if content.count(f"\n{old}") == 1 or len(before) + len(after) == len(lines):
                break
            reach *= 2
        self._add(Replacement(path, old, "\n".join([*before, *text.removesuffix("\n").split("\n"), *after]), FORM))


def _without_fence(content: str, base: str) -> str:
    """A whole file without a fence around it, unless the file begins with one."""
    lines = content.strip("\n").split("\n")
    if len(lines) < 3 or base.startswith("```") or not _FENCE.match(lines[0]) or lines[-1].strip() != "```":
        return content
    return "\n".join(lines[1:-1]) + "\n"


def _normal(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "").replace(" ", "")


def _first(named: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((named[key] for key in keys if isinstance(named.get(key), str)), None)


def _integer(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal() and len(value.strip()) < 10:
        return int(value)
    return value if type(value) is int else None


def _is_patch(text: str) -> bool:
    return "\n" in text and (any(mark in text for mark in _PATCH_MARKS) or _HUNK.match(text) is not None)
