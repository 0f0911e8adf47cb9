"""Drafts the rest of a line from lines that were seen: a vote among the places where the same words came before.

Text is cut into words in a way that loses nothing, so that contexts do not depend on how a tokenizer cuts them. A
line begins with a word that holds its line break and its indentation; a word carries the space before it.

Each place votes for the word that followed there. Its weight grows fourfold with each further word of context that
agrees (in the spirit of prediction by partial matching, Cleary and Witten, 1984), and with nearness to the edit.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

_WORD = re.compile(r"\n[^\S\n]*| ?[^\W\d]\w*| ?\d+| ?[^\w\s]|[^\S\n]")

_NEAREST = 8
"""Places of one context that may vote, on either side of the edit."""
_DEEPEST = 6
"""Words of context that are compared."""
_GROWTH = 4.0
_NEAR = 4.0
_FAR = 400
"""A place at the edit weighs ``1 + _NEAR`` times as much as a far one; half of that is left ``_FAR`` words away."""


def split_words(text: str) -> list[str]:
    """Words whose concatenation is ``text``."""
    return _WORD.findall(text)


Vote = tuple[Sequence[str], int, int, float]
"""A vote ``(words, at, end, weight)``: ``words[at]`` comes next, and its successors after it, up to ``end``."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is known before a draft.

    Args:
        words: the text before, the last word possibly incomplete.
        edit_at: place of the edit in the first index, from which nearness is counted; None: nowhere.
        hidden: range of places in the first index that may not vote: the lines that the hunk itself goes over.
    """

    words: Sequence[str]
    edit_at: int | None = None
    hidden: tuple[int, int] = (0, 0)


class WordIndex:
    """Words in sequence, and where each word and each pair of words is followed by what."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._pairs: dict[tuple[str, str], list[int]] = {}
        self._singles: dict[str, list[int]] = {}
        self._vocabulary: list[str] = []

    def extend(self, words: Sequence[str]) -> None:
        """Append ``words``. Linear in their number."""
        held, pairs, singles = self.words, self._pairs, self._singles
        before = held[-1] if held else ""
        at = len(held)
        for word in words:
            at += 1
            bare = word[1:] if word[0] == " " and len(word) > 1 else word  # not called: this loop is all of the cost
            places = singles.get(bare)
            if places is None:
                singles[bare] = [at]
            else:
                places.append(at)
            key = (before, word)
            places = pairs.get(key)
            if places is None:
                pairs[key] = [at]
            else:
                places.append(at)
            before = word
        held.extend(words)

    def complete(self, part: str) -> list[int]:
        """Places of words that begin with ``part`` and go on, the most frequent word first."""
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

    def after(self, context: Sequence[str], edit_at: int | None) -> Sequence[int]:
        """Places that follow ``context``'s last two words, or its last one, the nearest to ``here`` or the latest."""
        places: Sequence[int] | None = None
        if len(context) > 1:
            places = self._pairs.get((context[-2], context[-1]))
        if not places and context:
            places = self._singles.get(_bare(context[-1]))
        if not places:
            return ()
        if len(places) <= 2 * _NEAREST:
            return places
        if edit_at is None:
            return places[-2 * _NEAREST :]
        middle = bisect_left(places, edit_at)
        return places[max(0, middle - _NEAREST) : middle + _NEAREST]


def _bare(word: str) -> str:
    return word[1:] if word[0] == " " and len(word) > 1 else word


def continuations(
    query: Query,
    indexes: Sequence[tuple[WordIndex, float]],
    extra: Sequence[tuple[str, Vote]],
    most: int,
    words: int,
) -> Iterator[str]:
    """Texts that may follow ``query.words``, the best first, each up to the end of the line.

    Args:
        indexes: with a weight each.
        extra: votes from elsewhere, each with the incomplete word that it continues ("" after a complete one).
        most: how many texts.
        words: how long a text gets at most.
    """
    votes: dict[str, list[Vote]] = {}
    for part, place in extra:
        _vote(votes, part, [place])
    whole = list(query.words)
    first = True
    for index, weight in indexes:
        if not index.words:
            continue
        _vote(votes, "", _votes_after(index, whole, query, weight, first))
        if whole:
            _vote(votes, whole[-1], _votes_after(index, whole[:-1], query, weight, first))
        first = False
    if not votes and whole and _bare(whole[-1]).isidentifier():
        for index, weight in indexes:
            end = len(index.words)
            places: list[Vote] = [(index.words, at, end, weight) for at in index.complete(_bare(whole[-1]))]
            _vote_bare(votes, _bare(whole[-1]), places)
    totals = {rest: sum(place[3] for place in places) for rest, places in votes.items()}
    for rest in nlargest(most, totals, key=totals.__getitem__):
        yield _continue_line(rest, votes[rest], words)


def _vote_bare(votes: dict[str, list[Vote]], part: str, places: Sequence[Vote]) -> None:
    for place in places:
        votes.setdefault(_bare(place[0][place[1]])[len(part) :], []).append(place)


def _vote(votes: dict[str, list[Vote]], part: str, places: Sequence[Vote]) -> None:
    """Sort places by what they say comes after ``part``."""
    length = len(part)
    for place in places:
        rest = place[0][place[1]]
        if part:
            if not rest.startswith(part) or len(rest) == length:
                continue
            rest = rest[length:]
        held = votes.get(rest)
        if held is None:
            votes[rest] = [place]
        else:
            held.append(place)


def _votes_after(index: WordIndex, context: Sequence[str], query: Query, weight: float, first: bool) -> list[Vote]:
    """The places of ``index`` that follow ``context``'s end. Only the first index knows the edit's place."""
    edit_at = query.edit_at if first else None
    low, high = query.hidden if first else (0, 0)
    words = index.words
    end = len(words)
    tail = context[: -_DEEPEST - 1 : -1]
    places: list[Vote] = []
    for at in index.after(context, edit_at):
        if at >= end or low <= at < high:
            continue
        vote = weight if edit_at is None else weight * (1.0 + _NEAR / (1.0 + abs(at - edit_at) / _FAR))
        before = at
        for word in tail:
            before -= 1
            if before < 0 or words[before] != word:
                break
            vote *= _GROWTH
        places.append((words, at, end, vote))
    return places


def _continue_line(rest: str, places: Sequence[Vote], words: int) -> str:
    """``rest`` and what follows it where it was found: what most of the weight says as long as places differ."""
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
