"""Finds the diffs in an answer: in fences, in tags, or bare in the text.

The answer is scanned once, line by line. A diff starts at its own first line, in any fence, tag, nesting or
indentation. Fences and tags only decide where it ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from swe_infer.patches.diff import parse_hunk_header

_FENCE = re.compile(r"(?P<indent>[ \t>]*)(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_TAGS = r"(?P<name>patch|diff|git_?diff|final_?patch|answer|solution|code)\b[^<>]*>"
_TAG = re.compile(rf"\s*<(?P<close>/?){_TAGS}\s*$", re.IGNORECASE)
_TAG_BEFORE = re.compile(rf"\s*<{_TAGS}(?=[-d@*I])", re.IGNORECASE)
_TAG_AFTER = re.compile(rf"</{_TAGS}\s*$", re.IGNORECASE)
_TAG_AT_START = re.compile(rf"(?:`{{3,}}|~{{3,}})?</{_TAGS}", re.IGNORECASE)
"""A closing tag at the start of a line, or behind a closing fence, whatever follows it."""
_BARE_FENCE = re.compile(r"[ \t>\r]*(?:`{3,}|~{3,})[ \t>\r]*$")
_INDENT = " \t>"
_OPENERS = (
    "diff --git ",
    "--- ",
    "@@",
    "Index: ",
    "*** Begin Patch",
    "*** Update File: ",
    "*** Add File: ",
    "*** Delete File: ",
)
MARKS = r"(?:[`~<@]|diff --git |--- |Index: |\*\*\* )"
"""How such a line may begin behind its indentation, and how a fence or tag does."""
_MAY_OPEN = re.compile(rf"[\s>]*{MARKS}")
"""A line outside a patch that may open a container or a patch, or close a container."""
_MAY_CLOSE = re.compile(r"[-+]?[\s>]*[`~<]|--")
"""A line of a patch that may close a container or begin a signature. So may one that ends in ``>``."""
_SIGNATURE = re.compile(r"--[ \t]*$")
_VERSION = re.compile(r"\d+\.\d+[\w.() -]{0,60}$")
"""The signature of a patch in a mail: two dashes, then git's version."""
_DEEPEST = 16
_EXTENDED = (
    "index ", "old mode ", "new mode ", "new file mode ", "deleted file mode ", "similarity index ",
    "dissimilarity index ", "rename ", "copy ", "Binary files ", "GIT binary patch", "diff --git ", "Index: ",
    "====", "--- ", "+++ ", "*** ",
)  # fmt: skip
_WITHOUT_HUNKS = (
    "rename ",
    "copy ",
    "new mode ",
    "new file mode ",
    "deleted file mode ",
    "Binary ",
    "GIT binary ",
    "*** ",
)


@dataclass(slots=True)
class Block:
    """A range of lines of an answer that looks like a diff.

    Args:
        lines: its lines, without common indentation and without ``\\r`` at their ends.
        container: ``fence``, ``tag`` or ``raw``.
        closed: its fence or tag was closed, or it had none and text follows it.
        hint: text before it that may name the file (the fence's info, the lines before it).
    """

    lines: list[str]
    container: str
    closed: bool = True
    hint: str = ""


@dataclass(slots=True)
class _Container:
    kind: str
    mark: str


@dataclass(slots=True)
class _Counter:
    """Counts down the lines of the current hunk by its header."""

    old: int = 0
    new: int = 0
    known: bool = False
    inside: bool = False
    enveloped: bool = False

    def open(self, line: str) -> None:
        header = parse_hunk_header(line)
        self.inside, self.known = True, header is not None
        if header is not None:
            self.old, self.new = header.old_count, header.new_count

    def count(self, sign: str) -> None:
        self.old -= sign != "+"
        self.new -= sign != "-"

    @property
    def is_complete(self) -> bool:
        return self.known and self.old <= 0 and self.new <= 0


def find_blocks(answer: str) -> list[Block]:
    """All ranges of ``answer`` that look like a diff, in order, in linear time."""
    raw = answer.split("\n")
    last_fence = next((at for at in range(len(raw) - 1, -1, -1) if _BARE_FENCE.match(raw[at])), -1)
    last_envelope = answer.count("\n", 0, answer.rfind("\n*** End Patch") + 1)
    return _Scanner(raw, last_fence, last_envelope).scan()


@dataclass(slots=True)
class _Scanner:
    raw: list[str]
    last_fence: int
    last_envelope: int
    at: int = 0
    stack: list[_Container] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)

    def scan(self) -> list[Block]:
        while self.at < len(self.raw):
            line = self.raw[self.at].rstrip("\r")
            if not _MAY_OPEN.match(line):
                self.at += 1
                continue
            tag = _TAG_BEFORE.match(line)
            if tag:
                self._push("tag", tag["name"].lower())
                self.raw[self.at] = line = line[tag.end() :]
            if self._opens_patch(self.at, line):
                self._collect()
            else:
                self._track(line)
                self.at += 1
        return self.blocks

    def _track(self, line: str) -> None:
        """Tracks a fence or tag that opens or closes outside a patch."""
        fence = _FENCE.match(line)
        if fence:
            mark, info = fence["mark"], fence["info"].strip()
            depth = next((n for n in range(len(self.stack) - 1, -1, -1) if self.stack[n].kind == "fence"), None)
            if depth is not None and not info and _closes(self.stack[depth], mark):
                del self.stack[depth:]
            else:
                self._push("fence", mark)
            return
        tag = _TAG.match(line)
        if tag:
            name = tag["name"].lower()
            if not tag["close"]:
                self._push("tag", name)
            else:
                self._close_tag(name)

    def _push(self, kind: str, mark: str) -> None:
        """Pushes a container. A depth limit bounds the work per line."""
        if len(self.stack) < _DEEPEST:
            self.stack.append(_Container(kind, mark))

    def _close_tag(self, name: str) -> None:
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth].kind == "tag" and self.stack[depth].mark == name:
                del self.stack[depth:]
                return

    def _opens_patch(self, at: int, line: str) -> bool:
        body = line.lstrip(_INDENT)
        if not body.startswith(_OPENERS):
            return False
        if body.startswith("--- "):
            following = next((text for text in self.raw[at + 1 : at + 3] if text.strip()), "")
            return following.lstrip(" \t>").startswith("+++ ")
        if body.startswith("@@"):
            return parse_hunk_header(body) is not None or (bool(self.stack) and _looks_like_hunk(self.raw, at))
        if body.startswith("Index: "):
            return any(text.lstrip(" \t>").startswith("--- ") for text in self.raw[at + 1 : at + 4])
        return True

    def _collect(self) -> None:
        start = self.at
        first = self.raw[start]
        indent = first[: len(first) - len(first.lstrip(_INDENT))]
        innermost = self.stack[-1].kind if self.stack else "raw"
        block = Block([], innermost, closed=False, hint=self._hint(start))
        counter = _Counter()
        in_mail = False
        while self.at < len(self.raw):
            raw = self.raw[self.at]
            line = _dedent(raw.rstrip("\r"), indent)
            if in_mail or _MAY_CLOSE.match(line) or line.rstrip().endswith(">"):
                # A mail's text, between its signature and the patch of the next mail, is not a part of the patch.
                in_mail = not line.startswith("diff --git ") if in_mail else self._is_signature(line, indent)
                if self._ends(line, counter):
                    block.closed = True
                    break
                if (end := self._closed_behind(line)) is not None:
                    block.lines.append(line[:end])
                    block.closed = True
                    self.at += 1
                    break
                if in_mail:
                    self.at += 1
                    continue
            if not self.stack and self._leaves(line, counter):
                block.closed = True
                break
            self._count(line, counter)
            # Carriage returns belong to the file's lines if the block's first line has none.
            block.lines.append(line + "\r" * (raw.endswith("\r") and not first.endswith("\r")))
            self.at += 1
        block.closed = block.closed or in_mail
        self.blocks.append(block)
        if self.at == start:  # always advance
            self.at += 1

    def _is_signature(self, line: str, indent: str) -> bool:
        if not _SIGNATURE.match(line) or self.at + 1 >= len(self.raw):
            return False
        return _VERSION.match(_dedent(self.raw[self.at + 1].rstrip("\r"), indent)) is not None

    def _hint(self, start: int) -> str:
        before = [text.strip() for text in self.raw[max(0, start - 4) : start] if text.strip()]
        return "\n".join(before)[-1000:]

    def _count(self, line: str, counter: _Counter) -> None:
        if line.startswith("@@"):
            counter.open(line)
        elif line.startswith("diff --git ") or (line.startswith("--- ") and self._header_at(self.at)):
            counter.inside = counter.known = False
        elif line.startswith("*** "):
            counter.enveloped = not line.startswith("*** End Patch") and (counter.enveloped or "Begin Patch" in line)
            counter.inside = line.startswith(("*** Add File: ", "*** Update File: "))
            counter.known = False
        elif counter.inside:
            counter.count(line[:1] or " ")

    def _header_at(self, at: int) -> bool:
        return at + 1 < len(self.raw) and self.raw[at + 1].lstrip(" \t>").startswith("+++ ")

    def _ends(self, line: str, counter: _Counter) -> bool:
        """Whether ``line`` closes a fence or tag around the patch."""
        if not self.stack:
            return False
        fence = _FENCE.match(line) if line.lstrip(" \t>").startswith(("```", "~~~")) else None
        if line[:1] in ("+", "-") and self.at > self.last_fence and not self._goes_on():
            fence = _FENCE.match(" " + line[1:])  # the model gave the closing fence a sign
        if fence and not fence["info"].strip():
            indent = len(fence["indent"])
            for depth, container in enumerate(self.stack):
                if container.kind != "fence" or not _closes(container, fence["mark"]):
                    continue
                if indent == 0 or counter.is_complete or not counter.inside or not self._goes_on():
                    del self.stack[depth:]
                    self.at += 1
                    return True
        tag = _TAG.match(line)
        if tag and tag["close"] and any(c.kind == "tag" and c.mark == tag["name"].lower() for c in self.stack):
            self._close_tag(tag["name"].lower())
            self.at += 1
            return True
        return self._ends_before_text(line, counter)

    def _ends_before_text(self, line: str, counter: _Counter) -> bool:
        """Whether ``line`` closes a tag around the patch and has more behind it, which is scanned next."""
        tag = _TAG_AT_START.match(line) if line.startswith(("</", "```", "~~~")) else None
        if tag is None or not (counter.is_complete or not self._goes_on()):
            return False
        name = tag["name"].lower()
        if not any(container.kind == "tag" and container.mark == name for container in self.stack):
            return False
        self._close_tag(name)
        self.raw[self.at] = line[tag.end() :]
        return True

    def _closed_behind(self, line: str) -> int | None:
        """Where a tag around the patch is closed at the end of a line of the patch, or None."""
        after = _TAG_AFTER.search(line) if self.stack and line.rstrip().endswith(">") else None
        if after is None or f"<{after['name']}" in line:
            return None
        name = after["name"].lower()
        if not any(container.kind == "tag" and container.mark == name for container in self.stack):
            return None
        self._close_tag(name)
        return after.start()

    def _goes_on(self) -> bool:
        """Whether the next line looks like part of the same hunk."""
        following = self.raw[self.at + 1] if self.at + 1 < len(self.raw) else ""
        return following[:1] in ("+", "-", " ", "@")

    def _leaves(self, line: str, counter: _Counter) -> bool:
        """Whether ``line`` cannot belong to a bare patch."""
        if line.startswith(("@@", *_EXTENDED)) or (counter.enveloped and self.at < self.last_envelope):
            return False
        if not counter.inside:
            return bool(line.strip())
        if line[:1] in ("+", "-", " "):
            return counter.is_complete and not self._open_ended(line)
        if line.startswith(("\\ ", "\\\u00a0")):
            return False
        if not line:
            return counter.is_complete
        return True

    def _open_ended(self, line: str) -> bool:
        """Whether a hunk with more lines than its header counts may continue."""
        previous = self.raw[self.at - 1] if self.at else ""
        return bool(previous.strip())


def cut_off(block: Block) -> str | None:
    """Why ``block`` is truncated, or None.

    It is truncated if the answer ends in a header, or in a hunk that lacks more than trailing context. Models
    miscount context, so only the changes must be complete, including the last line.
    """
    if block.closed:
        return None
    lines = list(block.lines)
    while lines and not lines[-1]:
        lines.pop()
    at = next((n for n in range(len(lines) - 1, -1, -1) if lines[n].startswith("@@")), None)
    body = [] if at is None else lines[at + 1 :]
    if not body and any(line.startswith(_WITHOUT_HUNKS) for line in lines):
        return None
    header = None if at is None else parse_hunk_header(lines[at])
    removed, added, kept = (sum(line[:1] == sign for line in body) for sign in "-+ ")
    kept += body.count("")
    counted = header is not None and kept + removed >= header.old_count and kept + added >= header.new_count
    if not body or body[-1].startswith(("diff --git ", "index ")) or (counted and body[-1].startswith("--- ")):
        return "the answer ends in a patch's header"
    if body[-1].startswith("+++ ") and body[-2:-1] and body[-2].startswith("--- "):
        return "the answer ends in a patch's header"
    if counted:
        return None
    miscounted = header is not None and header.new_count - header.old_count != added - removed
    if miscounted or not (added or removed):
        return "the answer ends inside a hunk: it has fewer changes than its header counts"
    return "the answer ends inside a hunk, in its last change" if body[-1][:1] in ("+", "-") else None


def _closes(container: _Container, mark: str) -> bool:
    return mark[0] == container.mark[0] and len(mark) >= len(container.mark)


def _dedent(line: str, indent: str) -> str:
    if not indent:
        return line
    if line.startswith(indent):
        return line[len(indent) :]
    return "" if not line.strip(" \t>") else line


def _looks_like_hunk(raw: list[str], at: int) -> bool:
    """Whether the lines after a header without numbers look like a hunk: one of the first has a sign."""
    return any(text.lstrip(" \t>")[:1] in ("+", "-") for text in raw[at + 1 : at + 12])
