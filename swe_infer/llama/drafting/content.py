"""Predicts the content of added lines: votes from the removed lines, from the surrounding file, and from all other
text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from swe_infer.llama.drafting.files import SourceFile
from swe_infer.llama.drafting.patch_state import DraftHunk
from swe_infer.llama.drafting.words import Vote, WordIndex, continuations, split_words

_ALIGNED = 400.0
"""Weight of the aligned place in the removed line; each matching word multiplies it by four."""
_START = 4
"""Words that the start of a line counts for: replacement lines mostly start like the lines they replace."""
_LINE = 24
"""Maximum words of a draft."""
_SKIP = 8
"""Words of a removed line that an added line may skip."""


def corpus_of(files: Iterable[SourceFile], prose: str) -> WordIndex:
    """The words of a prompt's files and of its other text."""
    index = WordIndex()
    index.extend(split_words("\n" + prose))
    for source in files:
        index.extend(["\n\n", *split_words("\n" + "\n".join(source.lines))])
    return index


def added_line(
    hunk: DraftHunk, body: str, view: Sequence[str], corpus: WordIndex, others: Sequence[WordIndex], most: int
) -> Iterator[str]:
    """Texts that may follow ``body``, the added line so far, up to the line's end.

    A text that ends in a newline completes the line.
    """
    words = split_words("\n" + "\n".join([*view[-2:], body]))
    extra = _replacing(hunk, body)
    if not body:
        extra += _indented(hunk, view)
    own = [(corpus, 1.0), *((index, 2.0) for index in others)]
    return (_line_only(text) for text in continuations(words, own, extra, most, _LINE))


def prose_line(previous: str, current: str, corpus: WordIndex, others: Sequence[WordIndex]) -> Iterator[str]:
    """Texts that may follow ``current`` outside a diff, in explanations, quotes or code."""
    words = split_words(f"\n{previous}\n{current}")
    indexes = [(corpus, 1.0), *((index, 2.0) for index in others)]
    return (_line_only(text) for text in continuations(words, indexes, [], 2, _LINE))


def _line_only(text: str) -> str:
    """Truncate a draft at its line's end. Its first character may be the newline that starts the current line."""
    head, rest = text[:1], text[1:]
    if head == "\n":
        return "\n"
    end = rest.find("\n")
    return text if end < 0 else head + rest[: end + 1]


def _replacing(hunk: DraftHunk, body: str) -> list[tuple[str, Vote]]:
    """Votes of the removed lines."""
    votes: list[tuple[str, Vote]] = []
    mine = split_words("\n" + body)
    for place, text in enumerate(hunk.removed[:4]):
        votes += _aligned(mine, [*split_words("\n" + text), "\n"], 1.0 / (1 + 3 * place))
    return votes


def _aligned(mine: list[str], theirs: list[str], weight: float) -> list[tuple[str, Vote]]:
    """Align the line so far with ``theirs``, with the last word taken as complete and as incomplete."""
    end = len(theirs)
    at, agreed, streak, fresh = 0, 0, _START, False
    before = at, streak
    for word in mine:
        before = at, streak
        try:
            found = theirs.index(word, at, at + _SKIP)
        except ValueError:
            streak, fresh = 0, True
            continue
        streak = streak + 1 if found == at and not fresh else 1
        at, agreed, fresh = found + 1, agreed + 1, False
    votes: list[tuple[str, Vote]] = []
    weight *= 1.0 + agreed
    if at < end and not fresh:
        votes.append(("", (theirs, at, end, weight * _ALIGNED * 4.0 ** min(streak, 5))))
    at, streak = before
    for skip in range(at, min(end, at + _SKIP)):
        votes.append((mine[-1], (theirs, skip, end, weight * _ALIGNED * 4.0 ** min(streak, 5) / (1 + skip - at))))
    return votes


def _indented(hunk: DraftHunk, view: Sequence[str]) -> list[tuple[str, Vote]]:
    """Votes for the indentation of a new line: that of the previous line, or one level deeper."""
    if not view or not view[-1].strip():
        nearby = hunk.upcoming() or ""
    else:
        nearby = view[-1]
    depth = len(nearby) - len(nearby.lstrip())
    if nearby.rstrip().endswith((":", "(", "[", "{")) and view and nearby == view[-1]:
        depth += 4
    return [("\n", (["\n" + " " * depth], 0, 1, 200.0))] if depth else []
