"""Predicts the rest of a line from text seen before, by votes of places with the same preceding words.

Text is split into words without loss, so that contexts do not depend on the tokenizer. A word at the start of a line
includes the newline and indentation; other words include the space before them.

Each place votes for its next word. Its weight grows fourfold with each matching word of context (in the spirit of
prediction by partial matching, Cleary and Witten, 1984).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from heapq import nlargest

_WORD = re.compile(r"\n[^\S\n]*| ?[^\W\d]\w*| ?\d+| ?[^\w\s]|[^\S\n]")

_LATEST = 16
"""How many places of a context vote: the latest ones."""
_DEEPEST = 6
"""Maximum words of context that are compared."""
_GROWTH = 4.0


def split_words(text: str) -> list[str]:
    """Split ``text`` into words whose concatenation is ``text``."""
    return _WORD.findall(text)


Vote = tuple[Sequence[str], int, int, float]
"""``(words, at, end, weight)``: votes for ``words[at]`` and its successors up to ``end``."""


class WordIndex:
    """A word sequence with indexes of its words and word pairs."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._pairs: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        self._singles: defaultdict[str, list[int]] = defaultdict(list)
        self._vocabulary: list[str] = []

    def extend(self, words: Sequence[str]) -> None:
        """Append ``words``. Linear in their number."""
        held, pairs, singles = self.words, self._pairs, self._singles
        before = held[-1] if held else ""
        for at, word in enumerate(words, len(held) + 1):
            singles[word[1:] if word[0] == " " and len(word) > 1 else word].append(at)  # _bare, inlined for speed
            pairs[before, word].append(at)
            before = word
        held.extend(words)

    def complete(self, part: str) -> list[int]:
        """Places of the most frequent word that starts with ``part`` and is longer."""
        singles = self._singles
        if len(self._vocabulary) != len(singles):
            self._vocabulary = sorted(singles)
        words = self._vocabulary
        at = bisect_left(words, part)
        found = []
        while at < len(words) and words[at].startswith(part):
            if len(words[at]) > len(part):
                found.append(words[at])
            at += 1
        if not found:
            return []
        return [place - 1 for place in singles[max(found, key=lambda word: len(singles[word]))][-4:]]

    def after(self, context: Sequence[str]) -> Sequence[int]:
        """Places after the last two words of ``context``, else after the last one: the latest."""
        places: Sequence[int] | None = None
        if len(context) > 1:
            places = self._pairs.get((context[-2], context[-1]))
        if not places and context:
            places = self._singles.get(_bare(context[-1]))
        return places[-_LATEST:] if places else ()


def _bare(word: str) -> str:
    return word[1:] if word[0] == " " and len(word) > 1 else word


def continuations(
    whole: Sequence[str],
    indexes: Sequence[tuple[WordIndex, float]],
    extra: Sequence[tuple[str, Vote]],
    most: int,
    words: int,
) -> Iterator[str]:
    """Texts that may follow ``whole``, best first, each up to the end of the line.

    Args:
        whole: preceding words, of which the last may be incomplete.
        indexes: each with a weight.
        extra: other votes, each with the incomplete word that it continues ("" after a complete word).
        most: maximum number of texts.
        words: maximum words of a text.
    """
    votes: defaultdict[str, list[Vote]] = defaultdict(list)
    for part, place in extra:
        _vote(votes, part, [place])
    for index, weight in indexes:
        _vote(votes, "", _votes_after(index, whole, weight))
        if whole:
            _vote(votes, whole[-1], _votes_after(index, whole[:-1], weight))
    part = _bare(whole[-1]) if whole else ""
    if not votes and part.isidentifier():
        for index, weight in indexes:
            for at in index.complete(part):
                rest = _bare(index.words[at])[len(part) :]
                votes[rest].append((index.words, at, len(index.words), weight))
    totals = {rest: sum(place[3] for place in places) for rest, places in votes.items()}
    for rest in nlargest(most, totals, key=totals.__getitem__):
        yield _continue_line(rest, votes[rest], words)


def _vote(votes: defaultdict[str, list[Vote]], part: str, places: Sequence[Vote]) -> None:
    """Group places by the text that they continue ``part`` with."""
    length = len(part)
    for place in places:
        word = place[0][place[1]]
        if part:
            if not word.startswith(part) or len(word) == length:
                continue
            word = word[length:]
        votes[word].append(place)


def _votes_after(index: WordIndex, context: Sequence[str], weight: float) -> list[Vote]:
    """The votes of ``index`` after ``context``."""
    words = index.words
    end = len(words)
    tail = context[: -_DEEPEST - 1 : -1]
    places: list[Vote] = []
    for at in index.after(context):
        if at >= end:
            continue
        vote = weight
        before = at
        for word in tail:
            before -= 1
            if before < 0 or words[before] != word:
                break
            vote *= _GROWTH
        places.append((words, at, end, vote))
    return places


def _continue_line(rest: str, places: Sequence[Vote], words: int) -> str:
    """``rest`` followed by the continuation with the most weight."""
    out = [rest]
    for depth in range(1, words):
        if depth > 1 and out[-1][0] == "\n":
            break
        if len(places) == 1:
            held, at, end, _ = places[0]
            if at + depth >= end:
                break
            out.append(held[at + depth])
            continue
        totals: dict[str, float] = {}
        for held, at, end, weight in places:
            if at + depth < end:
                word = held[at + depth]
                totals[word] = totals.get(word, 0.0) + weight
        if not totals:
            break
        best = max(totals, key=totals.__getitem__)
        out.append(best)
        if len(totals) > 1:
            places = [p for p in places if p[1] + depth < p[2] and p[0][p[1] + depth] == best]
    return "".join(out)
