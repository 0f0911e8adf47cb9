"""Separates a model's reasoning from its answer.

Reasoning is the text between reasoning tags, the text before a closing tag that nothing opens (chat templates open it
in the prompt), and the channels of the harmony format other than ``final``. Some tags, such as ``<details>``, are
used for other text too: see :attr:`Answer.asides`.

Tags inside a fence or a diff are content.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

_ALWAYS = "think|thinking|thoughts?|reasoning|scratchpad|ant_?thinking|(?:inner|internal)_?(?:monologue|thoughts?)"
_ASIDE = "reflection|analysis|details|rationale|planning|draft|chain_of_thought|thought_process"
_TAG = re.compile(
    rf"<(?P<close>/?)(?:\w{{1,20}}:)?(?:(?P<always>{_ALWAYS})|(?P<aside>{_ASIDE}))(?:\s[^<>\n]{{0,300}})?>"
    r"|\[(?P<bracket_close>/?)THINK\]|\u25c1(?P<kimi_close>/?)think\u25b7"
    r"|<\|(?:begin|start|(?P<token_close>end))_(?:of_thought|thinking)\|>",
    re.IGNORECASE,
)
_MAY_HOLD_TAG = re.compile("[<\\[\u25c1]")
_ANSWER_TAG = re.compile(
    r"\s{0,3}<(?:(?:answer|solution|final_?answer|final_?patch|response|output)|\|begin_of_solution\|)>",
    re.IGNORECASE,
)
_FENCE = re.compile(r"[ \t>]*(?P<mark>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_CHANNEL = re.compile(r"(?:<\|start\|>assistant|^)<\|channel\|>", re.MULTILINE)
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
_PLAIN_ANALYSIS = re.compile(r"\s*(?:assistant)?analysis(?=[A-Z])")
_PLAIN_FINAL = "assistantfinal"
_GRANITE = re.compile(r"^(?:\W{0,4}|Now )here(?:'s| is) my response:", re.IGNORECASE | re.MULTILINE)
_GRANITE_START = re.compile(r"\W{0,4}here(?:'s| is) my thought process:", re.IGNORECASE)
_LAST_TOKEN = re.compile(
    r"(?:<\|(?:im_end|endoftext|eot_id|end_of_text|end|return|eom_id|end_of_solution)\|>|<end_of_turn>|"
    r"<\uff5cend\u2581of\u2581sentence\uff5c>|</s>)\s*\Z"
)
_MOST_TOKENS = 4
_QUOTES = "`'\""

CUT_OFF = "the answer ends inside its reasoning"
TAKEN = "took the patch from the reasoning, because no answer follows it"


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without reasoning.

    Args:
        text: blank if the answer ends inside its reasoning.
        asides: the same text including the sections in tags that are not only used for reasoning, if it has any.
        note: for the record, if reasoning stands for the answer.
    """

    text: str
    asides: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class _Tag:
    start: int
    end: int
    name: str
    closes: bool
    aside: bool
    content: bool
    """It is in a fence, in a diff or in quotes, so it counts at most as the end of reasoning that is open."""
    alone: bool
    """It starts its line, without indentation; an opening tag also ends it."""
    first: bool
    """No text is before it in its line."""


def without_reasoning(answer: str) -> Answer:
    """Removes the reasoning of ``answer``, in linear time.

    If no text follows complete reasoning, the reasoning stands for the answer. If the answer ends inside its
    reasoning, the text is blank: what is inside is a draft.
    """
    channels = _channels(answer)
    if channels is not None:
        return replace(channels, text=_without_last_tokens(channels.text))
    answer = _without_last_tokens(answer)
    if _TAG.search(answer) is None:
        return Answer(answer)
    tags = list(_tags(answer))
    whole = _outside(answer, [tag for tag in tags if not tag.aside])
    if not any(tag.aside for tag in tags) or not whole.text.strip() or whole.note is not None:
        return whole
    rest = _outside(answer, tags)
    if rest.text.strip() and rest.note is None:
        return Answer(rest.text, whole.text if rest.text != whole.text else None)
    return whole


def _without_last_tokens(answer: str) -> str:
    for _ in range(_MOST_TOKENS):
        match = _LAST_TOKEN.search(answer, max(0, len(answer) - 200))
        if match is None:
            break
        answer = answer[: match.start()]
    return answer


def _channels(answer: str) -> Answer | None:
    """The final channel of the harmony format, also where its special tokens are missing; None for other text."""
    if "<|channel|>" not in answer or _CHANNEL.search(answer) is None:
        return _plain_channels(answer)
    bodies: dict[str, list[str]] = {}
    cut = False
    for part in answer.split("<|channel|>")[1:]:
        header, message, body = part.partition("<|message|>")
        end = _CHANNEL_END.search(body)
        channel = (header.split() or [""])[0].lower()
        bodies.setdefault(channel, []).append(body if end is None else body[: end.start()])
        cut = end is None or not message
    for channel in ("final", "commentary"):
        if any(body.strip() for body in bodies.get(channel, ())):
            return Answer(bodies[channel][-1] if channel == "final" else "\n".join(bodies[channel]))
    thoughts = "\n".join(body for found in bodies.values() for body in found)
    return Answer("") if cut or "final" in bodies else Answer(thoughts, note=TAKEN)


def _plain_channels(answer: str) -> Answer | None:
    if _PLAIN_ANALYSIS.match(answer):
        _, final, text = answer.rpartition(_PLAIN_FINAL)
        return Answer(text if final else "")
    if _GRANITE_START.match(answer):
        ends = [match.end() for match in _GRANITE.finditer(answer)]
        return Answer(answer[ends[-1] :]) if ends else None
    return None


def _tags(answer: str) -> Iterator[_Tag]:
    """The reasoning tags of ``answer`` in order."""
    position = 0
    fence = ""
    in_hunk = False
    depth = 0
    for line in answer.split("\n"):
        text = line.rstrip("\r")
        match = _FENCE.match(text) if "```" in text or "~~~" in text else None
        if match is not None and depth == 0:
            mark, info = match["mark"], match["info"].strip()
            if not fence:
                fence = mark
            elif not info and mark[0] == fence[0] and len(mark) >= len(fence):
                fence = ""
        if text.startswith("@@ "):
            in_hunk = True
        elif text[:1] not in ("+", "-", " ", "\\", ""):
            in_hunk = False
        if _MAY_HOLD_TAG.search(text):
            for tag in _TAG.finditer(text):
                quoted = text[max(0, tag.start() - 1) : tag.start()] in tuple(_QUOTES)
                content = bool(fence) or quoted or (in_hunk and text[:1] in ("+", "-", " "))
                found = _tag(tag, position, text, content=content)
                yield found
                if not content and not found.aside:
                    depth = max(0, depth + (-1 if found.closes else 1))
                    if found.closes and depth == 0:
                        fence = ""
        position += len(line) + 1


def _tag(match: re.Match[str], position: int, line: str, *, content: bool) -> _Tag:
    closes = any(match[group] for group in ("close", "bracket_close", "kimi_close", "token_close"))
    name = (match["always"] or match["aside"] or "think").lower()
    first = not line[: match.start()].strip()
    return _Tag(
        position + match.start(),
        position + match.end(),
        name,
        closes,
        match["aside"] is not None,
        content or (match["aside"] is not None and not closes and not first),
        alone=match.start() == 0 and (closes or not line[match.end() :].strip()),
        first=first,
    )


def _outside(answer: str, tags: list[_Tag]) -> Answer:
    """The text of ``answer`` outside of ``tags``."""
    last_close: dict[str, int] = {}
    for tag in tags:
        if tag.closes:
            last_close[tag.name if tag.aside else ""] = tag.start
    kept: list[str] = []
    position = depth = 0
    opened: _Tag | None = None
    closed_at = -1
    for tag in tags:
        if opened is not None:
            same = tag.name == opened.name if opened.aside else not tag.aside
            if not same or (tag.content and not (tag.closes and tag.alone)):
                continue
            depth += -1 if tag.closes else 1
            closed_at = tag.end if tag.closes else closed_at
            if depth == 0:
                opened, position = None, tag.end
        elif tag.closes:
            # Everything before a closing tag that nothing opens is reasoning.
            if not tag.aside and tag.start >= position and (tag.alone or not tag.content):
                kept, position = [], tag.end
        elif not tag.content and (
            (tag.first and not tag.aside) or last_close.get(tag.name if tag.aside else "", -1) > tag.start
        ):
            kept.append(answer[position : tag.start])
            opened, depth, closed_at = tag, 1, -1
    if opened is not None:
        position = closed_at if closed_at >= 0 else _after_missing_close(answer, opened)
    kept.append(answer[position:])
    text = "".join(kept)
    if text.strip() or (opened is not None and closed_at < 0):
        return Answer(text)
    return Answer(_without_tags(answer, tags), note=TAKEN)


def _without_tags(answer: str, tags: list[_Tag]) -> str:
    kept: list[str] = []
    position = 0
    for tag in tags:
        if not tag.content or tag.alone:
            kept.append(answer[position : tag.start])
            position = tag.end
    return "".join(kept) + answer[position:]


def _after_missing_close(answer: str, opened: _Tag) -> int:
    """Where the answer proper starts after reasoning that is not closed: at its last tag for answers, or the end."""
    start, position = len(answer), opened.end
    for line in answer[opened.end :].split("\n"):
        if _ANSWER_TAG.match(line):
            start = position
        position += len(line) + 1
    return start
