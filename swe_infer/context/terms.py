"""Counts the terms of files, and ranks files for a query by BM25.

A term is represented by a 64-bit hash of its word, so counts of different files need no common vocabulary.

BM25: Kamphuis et al. 2020, "Which BM25 do you mean?", the variant of Lucene with exact document lengths.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from swe_infer.context.words import is_term, split_words

if TYPE_CHECKING:  # imported late: a run that is finished counts no terms
    import numpy as np
    from numpy.typing import NDArray

VERSION = 1
"""Change it with the rules for terms: stored counts of other versions are not used."""

_HASH_BYTES, _COUNT_BYTES = 8, 4
_MOST_TERMS = 1 << 24
_MOST_WORDS = 1_000_000
"""Maximum number of cached hashes."""


@dataclass(frozen=True, slots=True)
class TermCounts:
    """The terms of a text, sorted by hash.

    Args:
        hashes: of shape (terms,).
        counts: how often each occurs, of the same shape.
    """

    hashes: NDArray[np.uint64]
    counts: NDArray[np.uint32]

    @property
    def total(self) -> int:
        """The length of the text in terms."""
        return int(self.counts.sum())

    def to_bytes(self) -> bytes:
        """The serialized counts, with a checksum."""
        return zlib.compress(self.hashes.astype("<u8").tobytes() + self.counts.astype("<u4").tobytes(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> TermCounts:
        """Reads the result of :meth:`to_bytes`.

        Raises:
            ValueError: the data is damaged.
        """
        import numpy as np

        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(data, _MOST_TERMS * (_HASH_BYTES + _COUNT_BYTES))
        except zlib.error as error:
            raise ValueError(f"damaged term counts: {error}") from None
        terms, rest = divmod(len(content), _HASH_BYTES + _COUNT_BYTES)
        if rest or not unpacker.eof:
            raise ValueError("damaged term counts")
        hashes = np.frombuffer(content, "<u8", terms)
        return cls(hashes, np.frombuffer(content, "<u4", terms, terms * _HASH_BYTES))


class _Hashes(dict[str, int]):
    """The hash of a word in lower case; 0 for a stop word, a single character, or data."""

    def __missing__(self, word: str) -> int:
        found = 0
        if is_term(word):
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
            found = int.from_bytes(digest)
        if len(self) >= _MOST_WORDS:
            self.clear()
        self[word] = found
        return found


_HASHES = _Hashes()


def hash_of(word: str) -> int:
    """The hash of a word in lower case; 0 if it is no term."""
    return _HASHES[word]


def count_terms(text: str) -> TermCounts:
    """The terms of a text."""
    import numpy as np

    frequency = Counter(split_words(text))
    hashes = np.fromiter(map(_HASHES.__getitem__, frequency), np.uint64, len(frequency))
    counts = np.fromiter(frequency.values(), np.uint32, len(frequency))
    order = np.argsort(hashes)
    order = order[np.searchsorted(hashes, 1, sorter=order) :]
    return TermCounts(hashes[order], counts[order])


@lru_cache(maxsize=1 << 17)
def path_terms(path: str) -> TermCounts:
    """The terms of a path, which are part of the text of its file, as in SWE-bench."""
    return count_terms(path)


@dataclass(frozen=True, slots=True)
class Ranking:
    """The files that share a term with the query, best first, with their scores.

    Files with the same score are sorted by path.

    Args:
        weights: how much one occurrence of each term of the query matters: its count in the query times its inverse
            document frequency. Terms that occur in no file are left out.
    """

    scores: dict[str, float]
    weights: dict[int, float]


def rank(files: dict[str, TermCounts], query: TermCounts, *, k1: float, b: float) -> Ranking:
    """Ranks files for a query, where a term counts as often as it occurs in the query.

    Args:
        files: path to the terms of the content. The terms of the path are added.
        k1: how slowly a term's weight saturates with its count.
        b: how much long files are penalized, from 0 to 1.
    """
    import numpy as np

    paths = sorted(files)
    if not paths or not len(query.hashes):
        return Ranking({}, {})
    parts = [part for path in paths for part in (files[path], path_terms(path))]
    hashes = np.concatenate([part.hashes for part in parts])
    counts = np.concatenate([part.counts for part in parts]).astype(np.float64)
    file_of = np.repeat(np.arange(len(parts)) // 2, [len(part.hashes) for part in parts])
    lengths = np.bincount(file_of, counts, len(paths))
    term_of_query = np.minimum(np.searchsorted(query.hashes, hashes), len(query.hashes) - 1)
    found = query.hashes[term_of_query] == hashes
    keys, place = np.unique(file_of[found] * len(query.hashes) + term_of_query[found], return_inverse=True)
    if not len(keys):
        return Ranking({}, {})
    frequency = np.bincount(place, counts[found])
    file, term = np.divmod(keys, len(query.hashes))
    containing = np.bincount(term, minlength=len(query.hashes))  # document frequency
    weights = query.counts * np.log1p((len(paths) - containing + 0.5) / (containing + 0.5))
    damping = k1 * (1 - b + b * lengths / lengths.mean())
    scores = np.bincount(file, weights[term] * frequency / (damping[file] + frequency), len(paths))
    order = np.argsort(-scores, kind="stable")
    return Ranking(
        {paths[index]: float(scores[index]) for index in order if scores[index] > 0},
        {int(query.hashes[index]): float(weights[index]) for index in np.flatnonzero(containing)},
    )
