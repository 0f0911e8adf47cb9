"""Reads answers that hold neither a diff nor edits in the usual forms, or only a damaged one.

Each family of forms has a small reader. A reader returns the answer rewritten in a usual form, or the edits that it
found. :data:`FAMILIES` lists them in the order in which they are tried.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from swe_infer.patches.calls import Calls, calls_in_json, calls_in_python, calls_in_xml
from swe_infer.patches.diff import PathIndex
from swe_infer.patches.extract import Block
from swe_infer.patches.replace import START_LINE, Replacement, path_in

Files = Mapping[str, str]
DECODED = "decoded HTML entities"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader found: a text to read like an answer, or edits, or why they cannot be used."""

    text: str | None = None
    edits: Sequence[Replacement] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A family of forms.

    Args:
        note: the repair, for the record.
        read: None if the answer has nothing in this form.
        whole_files: the form replaces or creates files, so it is not tried if the answer has a patch or an edit that
            does not apply: the files are examples then.
    """

    note: str
    read: Callable[[str, Files], Reading | None]
    whole_files: bool = False


_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\\(?:x1b|033|u001b|e)\[[0-9;]*[mK]")
_BARE_COLOUR = re.compile(r"\[\d[0-9;]{0,20}m|\[m$", re.MULTILINE)
_ENTITY = re.compile(r"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
_RAW = re.compile("[<>&]")
_ESCAPED_OPERATOR = re.compile(r"\s&[lg]t;=?\s|&amp;&amp;|[-=]&gt;")
_QUOTED = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'|(?:#|//).*")
"""Strings and comments."""
_SOURCE = frozenset(
    {"c", "cc", "cpp", "cs", "go", "h", "hpp", "java", "js", "kt", "lua", "py", "pyx", "rb", "rs", "scala", "swift",
     "ts"}
)  # fmt: skip
"""Extensions of files whose code has no HTML entities."""
_ESCAPED = re.compile(r"\\n(?:\+\+\+ |@@|\*\*\* |index |new file mode )")
_ESCAPED_START = re.compile(r"[\"']?(?:diff --git |--- |\*\*\* Begin Patch|@@ )")
_BREAKS = {"\\n": "\n", "\\t": "\t", "\\r": "", '\\"': '"', "\\'": "'", "\\/": "/", "\\\\": "\\"}
_BREAK = re.compile(r"\\[ntr\"'/\\]")


def _without_colours(answer: str, files: Files) -> Reading | None:
    text = _COLOUR.sub("", answer)
    if text == answer:
        text = _BARE_COLOUR.sub("", answer)  # the escape characters are lost
    return None if text == answer else Reading(text)


def _decoded(text: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match[0]).replace("\xa0", " "), text)


def _without_entities(answer: str, files: Files) -> Reading | None:
    text = _decoded(answer)
    return None if text == answer else Reading(text)


def decoded_additions(block: Block) -> Block | None:
    """A diff with the HTML entities of its added lines decoded; None if they are content.

    They are not if an operator of source code is among them, and no line of the diff has a character that would be an
    entity.
    """
    hunks = [line for line in block.lines if line[:1] in ("+", "-", " ") and not line.startswith(("+++ ", "--- "))]
    names = [line.split("\t")[0].rstrip() for line in block.lines if line.startswith(("+++ ", "*** Update File: "))]
    if not names or not all(name.rpartition(".")[2] in _SOURCE for name in names):
        return None
    if any(_RAW.search(_ENTITY.sub("", line)) or (line[0] != "+" and _ENTITY.search(line)) for line in hunks):
        return None
    if not any(_ESCAPED_OPERATOR.search(_QUOTED.sub("", line)) for line in hunks):
        return None
    lines = [_decoded(line) if line[:1] == "+" else line for line in block.lines]
    return replace(block, lines=lines)


def _with_line_breaks(answer: str, files: Files) -> Reading | None:
    """Lines that contain a whole diff with escaped line breaks, such as a string in damaged JSON."""
    if not _ESCAPED.search(answer):
        return None
    found: list[str] = []
    for line in answer.split("\n"):
        start = _ESCAPED_START.search(line) if _ESCAPED.search(line) else None
        if start is None:
            continue
        quote = start[0][0] if start[0][0] in "\"'" else ""
        text = line[start.start() + len(quote) :]
        end = _end_of_quoted(text, quote) if quote else len(text)
        found.append(_BREAK.sub(lambda match: _BREAKS[match[0]], text[:end]))
    return Reading("\n".join(found) + "\n") if found else None


def _end_of_quoted(text: str, quote: str) -> int:
    at = text.find(quote)
    while at > 0 and text[at - 1] == "\\":
        at = text.find(quote, at + 1)
    return at if at >= 0 else len(text)


_LONGEST_LINE = 300
"""Characters of a line with a marker or a path. Longer lines are content."""
_OPEN = re.compile(
    r"[ \t]*(?P<mark>-{3,12}|<{3,12}|>{3,12}) ?(?:(?:SEARCH|ORIGINAL|OLD|BEFORE|FIND)\b(?P<rest>[^\n]*))?$",
    re.IGNORECASE,
)
_CLOSE = re.compile(
    r"[ \t]*(?P<mark>\+{3,12}|>{3,12}|<{3,12}) ?(?:(?P<word>REPLACE|UPDATED?|NEW|AFTER)\b)?[ >]*$", re.IGNORECASE
)
_CONFLICT = re.compile(r"<{7} (?P<name>\S{1,200})$")
_OURS = frozenset({"HEAD", "CURRENT", "OURS", "LOCAL", "BASE"})
"""Names of the file's side in the conflict markers of git."""
_RULE = re.compile(r"[ \t]*={3,12}[ \t]*$")
_LINE_NUMBER = re.compile(r"[ \t]*:(?P<which>start|end)_line:[ \t]*(?P<number>\d{0,9})[ \t]*$")
_DASHES = re.compile(r"[ \t]*-{5,9}[ \t]*$")
_AROUND = re.compile(
    r"[ \t]*(?:<(?:diff|content|search_replace|args|file|apply_diff)>[ \t]*)*(?:<!\[CDATA\[)?(?P<text>[^\n]*?)"
    r"(?:\]\]>)?[ \t]*(?:</(?:diff|content|search_replace|args|file|apply_diff)>[ \t]*)*$"
)
_PATH_ELEMENT = re.compile(r"[ \t]*<(path|file_path|filename)>(?P<path>[^<>\n]{1,300})</\1>[ \t]*$")


def _with_usual_markers(answer: str, files: Files) -> Reading | None:
    """Cline's ``------- SEARCH``, Roo's ``:start_line:``, git's conflicts, inverted, short and unnamed markers."""
    lines = [line.rstrip("\r") for line in answer.split("\n")]
    if not any(
        _OPEN.match(line) or _conflict(line) is not None
        for line in lines
        if line.lstrip()[:3] in ("---", "<<<", ">>>", "<di", "<co", "<se")
    ):
        return None
    written: list[str] = []
    inside = ""
    divided = conflict = False
    numbered = START_LINE in answer
    for line in lines:
        around = _AROUND.match(line) if len(line) <= _LONGEST_LINE and ("<" in line or "]]>" in line) else None
        text = around["text"] if around and (_OPEN.match(around["text"]) or _CLOSE.match(around["text"])) else line
        opening = _OPEN.match(text) if not inside else None
        name = _conflict(text) if not inside else None
        if name is not None or (opening and (opening["rest"] is not None or opening["mark"] == "<" * 7)):
            inside, divided, conflict = opening["mark"] if opening else "<" * 7, False, name is not None
            path = path_in(name or ((opening and opening["rest"]) or "").strip(" :>"))
            written += [*([path] if path else []), "<<<<<<< SEARCH"]
        elif not inside:
            path_line = _PATH_ELEMENT.match(line)
            if path_line:
                written.append(path_line["path"].strip())
            elif around is None or around["text"] or not line.strip():
                written.append(line)
        elif not divided and _follows_marker(written) and (number := _LINE_NUMBER.match(line)):
            written += ["\0"]
            if number["which"] == "start" and number["number"]:
                written[-2] += f" {START_LINE}{number['number']}"
        elif not divided and _follows_marker(written) and _DASHES.match(line):
            written.append("\0")
        elif _RULE.match(line) and len(line.strip()) in (len(inside), 7):
            divided = True
            written.append("=======")
        elif numbered and line.startswith("\\") and _RULE.match(line[1:]):
            written.append(line[1:])  # Roo escapes markers in the content
        elif divided and (
            text.startswith(">>>>>>> ") if conflict else (closing := _CLOSE.match(text)) and _closes(closing, inside)
        ):
            inside = ""
            written.append(">>>>>>> REPLACE")
        else:
            written.append(line)
    return Reading("\n".join(line for line in written if line != "\0"))


def _conflict(line: str) -> str | None:
    """The side or path in the opening marker of a conflict; None for other lines."""
    match = _CONFLICT.match(line)
    name = match["name"] if match else ""
    return name if name in _OURS or ("." in name and path_in(name) is not None) else None


def _follows_marker(written: Sequence[str]) -> bool:
    return written[-1] == "\0" or written[-1].startswith("<<<<<<< SEARCH")


def _closes(closing: re.Match[str], opening: str) -> bool:
    """Whether a marker closes a block: it has a word, or it is as long as the opening one."""
    other = ">" if opening[0] == "<" else "+>" if opening[0] == "-" else "<"
    return closing["mark"][0] in other and (closing["word"] is not None or len(closing["mark"]) == len(opening))


_HEREDOC = re.compile(
    r"^(?P<before>[^\n<]{0,500})<<-?[ \t]*(?P<quote>['\"\\]?)(?P<word>\w{1,60})['\"]?(?P<after>[^\n]{0,500})$",
    re.MULTILINE,
)
_WRITES = re.compile(r"\b(?:cat|tee)\b")
_PATCHES = re.compile(r"\b(?:apply_patch|git\s+(?:apply|am)|patch)\b")
_TARGET = re.compile(
    r"(?P<append>>>|\btee\s+(?:-a|--append)\s)[ \t]*|"
    r"(?:>\|?|\btee\b)[ \t]*(?P<path>[^\s<>|&;'\"]+|'[^'\n]+'|\"[^\"\n]+\")"
)
_DEEPEST_INDENT = 40
_SHELL_ESCAPE = re.compile(r"\\([$`\\])")
_DIFF_START = re.compile(r"^(?:diff --git |--- |\*\*\* Begin Patch|From [0-9a-f]{40} )", re.MULTILINE)


def _here_documents(answer: str, files: Files) -> Reading | None:
    """``cat > PATH <<EOF``, and here-documents of ``git apply``, ``patch`` and ``apply_patch``."""
    edits: list[Replacement] = []
    texts: list[str] = []
    position = 0
    while match := _HEREDOC.search(answer, position):
        position = match.end()
        line = match["before"] + match["after"]
        applies = _PATCHES.search(line) is not None
        if not applies and not _WRITES.search(match["before"]):
            continue
        end = _end_of_here_document(answer, match["word"], position)
        if end < 0:
            return Reading(problem="a here-document is cut off")
        body = answer[match.end() + 1 : end].rpartition("\n")
        text = "".join(body[:2]).replace("\r\n", "\n")
        position = end
        if not match["quote"]:
            text = _SHELL_ESCAPE.sub(r"\1", text)
        target = next((m for m in _TARGET.finditer(line) if m["path"] != "/dev/null"), None)
        if applies or (_DIFF_START.match(text) and target is not None):
            texts.append(text)
        elif target is not None and target["append"]:
            return Reading(problem="a here-document appends to a file")
        elif target is not None:
            edits.append(Replacement(target["path"].strip("'\""), None, text, "whole_file"))
    return _reading(Calls(edits, texts))


def _end_of_here_document(answer: str, word: str, at: int) -> int:
    """The position of the line that consists of ``word``, or -1."""
    while (at := answer.find(word, at)) >= 0:
        after = answer[at + len(word) : at + len(word) + 2].removeprefix("\r")
        before = answer[max(0, at - _DEEPEST_INDENT) : at].rpartition("\n")
        if before[1] and not before[2].strip() and after[:1] in ("", "\n"):
            return at
        at += len(word)
    return -1


_ARTIFACT = re.compile(
    r"<(?P<name>(?:bolt|lov|dyad|v0|ant|xai|oai)[-_]?\w{1,20}|artifact|action|code|document|write_?(?:to_)?file|(?:create|edit|update|new)_?file|"
    r"source|code_?block|file_?content)\s(?P<attributes>[^<>\n]{1,600})>",
    re.IGNORECASE,
)
_NAMED_PATH = re.compile(
    r"\b(?:file_?path|file_?name|path|file|title|name|src|target)\s*=\s*(?:\"([^\"]+)\"|'([^']+)')", re.IGNORECASE
)


def _artifacts(answer: str, files: Files) -> Reading | None:
    """Files in the elements of chat front ends, such as ``<boltAction type="file" filePath="…">``."""
    calls = Calls()
    index = PathIndex(files)
    lower = ""
    position = 0
    while match := _ARTIFACT.search(answer, position):
        position = match.end()
        lower = lower or answer.lower()
        paths = (path_in(a or b) for a, b in _NAMED_PATH.findall(match["attributes"]))
        path = next((path for path in paths if path is not None), None)
        if path is None:
            continue
        end = lower.find(f"</{match['name'].lower()}>", position)
        if end < 0:
            calls.problem = f"the file {path} is cut off"
            break
        body = _unfenced(answer[position:end])
        position = end
        if re.match(r"(?:diff --git |--- |@@ |<<<<<<< )", body):
            header = f"--- a/{path}\n+++ b/{path}\n" if body.startswith("@@") else f"{path}\n"
            calls.texts.append(header + body)
        else:
            known = index.find(index.clean(path)) is not None
            calls.edits.append(Replacement(path, None, body, "whole_file", explicit=not known))
    return _reading(calls)


_SECTION_MARKS = "=-#*%<>"
_SHORTEST_MARK = 3
_SECTION_LABEL = re.compile(
    r"(?:(?:begin|start)[\s_]+(?:of\s+)?)?(?:(?:file(?:name|path)?|path)\b\s*:?\s*)?", re.IGNORECASE
)
_PLAIN_SECTION = re.compile(r"(?:BEGIN|START|END)(?: OF)?[ _]FILE\b")
_SECTION_END = re.compile(r"(?:end|eof)\b", re.IGNORECASE)


def _sections(answer: str, files: Files) -> Reading | None:
    """Files below lines such as ``=== PATH ===``."""
    lines = [line.rstrip("\r") for line in answer.split("\n")]
    index = PathIndex(files)
    edits: list[Replacement] = []
    path: str | None = None
    start = 0
    for at, line in enumerate([*lines, "=== end ==="]):
        header = _section_header(line)
        if header is None:
            continue
        found = path_in(_SECTION_LABEL.sub("", header, count=1))
        ends = _SECTION_END.match(header) is not None
        if found is None and not ends:
            continue
        if path is not None:
            known = index.find(index.clean(path))
            body = _section_body(lines[start:at], None if known is None else files[known], last=at == len(lines))
            if body is None:
                return Reading(problem=f"the end of the file {path} is not marked")
            edits.append(Replacement(path, None, body, "whole_file", explicit=known is None))
        path, start = (None if ends else found), at + 1
    return _reading(Calls(edits))


def _section_header(line: str) -> str | None:
    """The text between the marks at both ends of a line, or of ``BEGIN FILE PATH`` and ``END FILE``, or None."""
    line = line.strip()
    if len(line) <= _LONGEST_LINE and _PLAIN_SECTION.match(line):
        return line
    inner = line.strip(_SECTION_MARKS) if len(line) <= _LONGEST_LINE else ""
    first = len(line) - len(line.lstrip(_SECTION_MARKS))
    last = len(line) - len(line.rstrip(_SECTION_MARKS))
    return inner.strip() if inner and min(first, last) >= _SHORTEST_MARK else None


def _section_body(lines: Sequence[str], base: str | None, *, last: bool) -> str | None:
    """The content of a section; None if text may follow it. A fence at its start ends it, too."""
    text = "\n".join(lines).strip("\n") + "\n"
    fence = re.match(r"(?P<mark>`{3,}|~{3,})[^\n`]*\n", text)
    if fence:
        end = text.find(f"\n{fence['mark']}\n", fence.end() - 1)
        return None if end < 0 else text[fence.end() : end + 1]
    if last and (
        base is None or base.rstrip().rpartition("\n")[2].strip() != text.rstrip().rpartition("\n")[2].strip()
    ):
        return None
    return text


_FENCE = re.compile(r"[ \t>]*(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_COMMENT = re.compile(
    r"\s*(?:#|//|/\*+|<!--|--|;+|%+|\"\"\"|'''|\{#)\s*(?P<label>(?:file(?:path|name)?|path|full path)\b\s*:?\s*)?"
    r"(?P<path>[^\s*]+)\s*(?:\*/|-->|\"\"\"|'''|#\})?\s*$",
    re.IGNORECASE,
)
_LONGEST_SNIPPET = 3
"""Lines of code up to which a fence below a sentence is not a whole file."""
_INFO_WORDS = re.compile(r"[\s{}\"',=:\[\]()]+")
_DIFF_INFO = frozenset({"diff", "patch", "udiff"})


def _fences(answer: str, files: Files) -> Reading | None:
    """Files in fences whose info string, first comment or preceding line names the path."""
    edits: list[Replacement] = []
    index = PathIndex(files)
    for info, before, body in _fenced(answer):
        path, named = _path_of_info(info), True
        if path is None and body and (comment := path_of_comment(body[0])) is not None:
            path = comment
        if path is None:
            path, named = next((p for p in map(path_in, before) if p is not None), None), False
        if path is None and (path := _path_in_prose(before, index)) is not None and len(body) <= _LONGEST_SNIPPET:
            continue
        if path is None or info.split(" ")[0].lower() in _DIFF_INFO:
            continue
        known = index.find(index.clean(path))
        edit = Replacement(path, None, "\n".join(body), "whole_file", explicit=known is None and named)
        edits.append(without_path_comment(edit, None if known is None else files[known]))
    known_too = any(index.find(index.clean(edit.path or "")) is not None for edit in edits)
    return _reading(Calls(edits)) if known_too else None


def _path_in_prose(before: Sequence[str], index: PathIndex) -> str | None:
    """The only file of the prompt that the line before a fence names."""
    words = {word.strip(".:,`*'\"()") for line in before if len(line) <= _LONGEST_LINE for word in line.split()}
    found = {path for word in words if "." in word and (path := index.find(index.clean(word))) is not None}
    return found.pop() if len(found) == 1 else None


def _fenced(answer: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """The info, the lines before, last first, and the content of each closed fence."""
    lines = [line.rstrip("\r") for line in answer.split("\n")]
    start, mark, info = 0, "", ""
    for at, line in enumerate(lines):
        fence = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if fence is None:
            continue
        if not mark:
            start, mark, info = at, fence["mark"], fence["info"].strip()
        elif not fence["info"].strip() and fence["mark"][0] == mark[0] and len(fence["mark"]) >= len(mark):
            before = [text for text in reversed(lines[max(0, start - 3) : start]) if text.strip()]
            yield info[:300], before[:1], lines[start + 1 : at]
            mark = ""


def _path_of_info(info: str) -> str | None:
    words = [word for word in _INFO_WORDS.split(info) if "." in word or "/" in word]
    return next((path for path in map(path_in, words) if path is not None), None)


def path_of_comment(line: str) -> str | None:
    """The path that a comment consists of."""
    match = _COMMENT.match(line) if len(line) <= _LONGEST_LINE else None
    return None if match is None else path_in(match["path"])


def without_path_comment(edit: Replacement, base: str | None) -> Replacement:
    """A whole file without a first line that only names the file, unless the file has that line already."""
    if edit.old is not None:
        return edit
    first, _, rest = edit.new.partition("\n")
    path = path_of_comment(first)
    if path is None or edit.path is None or not (edit.path.endswith(path) or path.endswith(edit.path)):
        return edit
    if base is not None:
        if base.startswith(first):
            return edit
        if not base.startswith("\n"):
            rest = rest.removeprefix("\n")
    return Replacement(edit.path, None, rest, edit.form, edit.explicit)


def _unfenced(content: str) -> str:
    """The text between two tags, without adjacent line breaks, CDATA marks and a fence directly inside."""
    content = content.replace("\r\n", "\n").strip("\n").rstrip(" \t")
    if content.startswith("<![CDATA[") and content.rstrip().endswith("]]>"):
        content = content.rstrip()[len("<![CDATA[") : -len("]]>")].strip("\n")
    lines = content.split("\n")
    if len(lines) >= 2 and _FENCE.match(lines[0]) and _FENCE.match(lines[-1]):
        lines = lines[1:-1]
    return "\n".join(lines) + "\n"


def _reading(calls: Calls) -> Reading | None:
    """Edits and patches side by side are refused, because their order may matter."""
    if calls.problem is not None:
        return Reading(problem=calls.problem)
    if calls.edits and calls.texts:
        return Reading(problem="the answer has edits and patches side by side")
    if calls.edits:
        return Reading(edits=calls.edits)
    return Reading("\n".join(calls.texts)) if calls.texts else None


FAMILIES: tuple[Family, ...] = (
    Family("read other markers of search and replace", _with_usual_markers),
    Family("read tool calls in XML", lambda answer, files: _reading(calls_in_xml(answer, files))),
    Family("read tool calls in JSON", lambda answer, files: _reading(calls_in_json(answer, files))),
    Family("read tool calls in Python", lambda answer, files: _reading(calls_in_python(answer, files))),
    Family("read here-documents of a shell", _here_documents, whole_files=True),
    Family("read the files of a chat front end", _artifacts, whole_files=True),
    Family("removed terminal colours", _without_colours),
    Family(DECODED, _without_entities),
    Family("decoded escaped line breaks", _with_line_breaks),
    Family("read files below their names", _sections, whole_files=True),
    Family("read files in fences that name them", _fences, whole_files=True),
)
