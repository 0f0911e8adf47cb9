"""Drafts from repetition: the tokens that followed the last occurrence of the latest tokens.

The idea is that of prompt lookup and of SuffixDecoding (Oliaro et al., 2024), over the prompt, the output so far and
other outputs of the prompt. A hash table of token pairs replaces the suffix tree: building is linear, and a lookup
compares a bounded number of places.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise

_PLACES = 64
"""Maximum occurrences of a pair that are compared: the latest."""
_LONGEST = 32
"""Maximum length of a match in tokens."""
_GRADES = (0, 2, 3, 4, 6, 8, 12, 16, 24)
"""Boundaries between the situations: lengths of matches."""


class TokenIndex:
    """A token sequence with an index of its token pairs."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._after: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens. Linear in their number."""
        first = max(1, len(self.tokens))
        self.tokens.extend(tokens)
        for place, pair in enumerate(pairwise(self.tokens[first - 1 :]), first + 1):
            self._after[pair].append(place)

    def longest(self, tail: Sequence[int]) -> tuple[int, int]:
        """Return ``(length, place)`` of the longest match of ``tail``'s end, the latest if several are equal.

        The draft begins at ``place``. Length 0: no pair matches.
        """
        if len(tail) < 2:
            return 0, 0
        held, best, where = self.tokens, 0, 0
        deepest = min(_LONGEST, len(tail))
        for place in reversed(self._after.get((tail[-2], tail[-1]), ())[-_PLACES:]):
            if place >= len(held):
                continue
            length = 2
            while length < deepest and place > length and held[place - 1 - length] == tail[-1 - length]:
                length += 1
            if length > best:
                best, where = length, place
                if length == deepest:
                    break
        return best, where


class SuffixDrafter:
    """Drafts from the longest match. The output itself is preferred among equals.

    Args:
        prompt_ids: the prompt's last tokens precede the output.
        sources: returns the indexes of other outputs and of the prompt, most trusted first.
    """

    def __init__(self, prompt_ids: Sequence[int], sources: Callable[[], Sequence[TokenIndex]]) -> None:
        self._sources = sources
        self.written = TokenIndex()
        self.written.extend(prompt_ids[-_LONGEST:])
        self._found: tuple[int, TokenIndex, int] | None = None

    @property
    def situation(self) -> Hashable:
        """Class of the match's length."""
        return bisect_right(_GRADES, self._best()[0])

    def draft(self, limit: int) -> list[int]:
        return self.match(limit)[1]

    def match(self, limit: int) -> tuple[int, list[int]]:
        """Return the length of the longest match and at most ``limit`` tokens that followed it."""
        length, index, place = self._best()
        return length, index.tokens[place : place + limit] if length else []

    def _best(self) -> tuple[int, TokenIndex, int]:
        """The longest match, its index, and the place after it. Cached until the output grows."""
        if self._found is not None:
            return self._found
        tail = self.written.tokens[-_LONGEST:]
        best: tuple[int, TokenIndex, int] = (0, self.written, 0)
        for index in (self.written, *(source for source in self._sources() if source is not self.written)):
            length, place = index.longest(tail)
            if length > best[0]:
                best = length, index, place
        self._found = best
        return best

    def extend(self, tokens: Sequence[int]) -> None:
        self._found = None
        self.written.extend(tokens)
