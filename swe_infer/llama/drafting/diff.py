"""The drafter that knows unified diffs, with suffix matching where it has nothing to say."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from swe_infer.llama.drafting.base import Codec, NoDrafter
from swe_infer.llama.drafting.content import added_line, prose_line
from swe_infer.llama.drafting.patch_state import DraftHunk, PatchState
from swe_infer.llama.drafting.plan import Planner
from swe_infer.llama.drafting.shared import SharedSuffixes
from swe_infer.llama.drafting.suffix import SuffixDrafter
from swe_infer.llama.drafting.words import WordIndex, split_words
from swe_infer.types import DrafterKind

_CHARACTERS_PER_TOKEN = 4
"""Characters that a token holds, about."""
_MAX_TRIES = 4
"""Drafts that may fail to join on to the text before."""
_LONG_MATCH = 5
"""Tokens of a match that is worth more than a vote of words."""
_OVERLAP = 6
"""Tokens before the draft that are encoded along with it."""
_COMPARED = 2
"""Of these, those that must come out the same. The first ones may not: their own past is missing."""


class DiffDrafter:
    """Drafts a patch for the files in a prompt."""

    def __init__(self, codec: Codec, shared: SharedSuffixes) -> None:
        self._shared = shared
        self._aligner = TokenAligner(codec, shared.prompt_ids)
        self._suffix = SuffixDrafter(shared.prompt_ids, shared.token_indexes)
        self.written = self._suffix.written
        self._own_words = WordIndex()
        self.state = PatchState(shared.files, shared.style)
        opening = "<patch>" if "<patch>" in shared.source.prose else ""
        self._planner = Planner(self.state, shared.paths, opening, self._added)

    @property
    def situation(self) -> Hashable:
        """Which sort of line the output is in; for an added one, whether it has removed ones to be like, and whether
        it has begun; between lines of a hunk, which sort the last was."""
        hunk, current = self.state.hunk, self.state.current
        if hunk is None:
            return "@" if current.startswith("@") else "begun" if current else "between"
        if not current:
            return "next", self.state.previous[:1]
        if current[0] == "+":
            return "+", bool(hunk.removed), len(current) == 1
        return current[0]

    def draft(self, limit: int) -> list[int]:
        if limit < 1:
            return []
        tries = 0
        for text in self._planner.texts(limit * _CHARACTERS_PER_TOKEN):
            if not text:
                continue
            ids = self._aligner.align(text)
            if ids:
                return ids[:limit]
            tries += 1
            if tries == _MAX_TRIES:
                break
        return self._draft_repetition(limit)

    def _draft_repetition(self, limit: int) -> list[int]:
        """Where the diff says nothing: a long match of tokens, else words that agree, else a short match."""
        length, draft = self._suffix.match(limit)
        if length >= _LONG_MATCH or self.state.hunk is not None:
            return draft
        others = [self._own_words, self._shared.output_words]
        for text in prose_line(self.state.previous, self.state.current, self._shared.corpus, others):
            ids = self._aligner.align(text)
            if ids:
                return ids[:limit]
        return draft

    def extend(self, tokens: Sequence[int]) -> None:
        self._suffix.extend(tokens)
        text = self._aligner.push(tokens)
        if not text:
            return
        for line in self.state.push(text):
            if self.state.hunk is None:
                self._own_words.extend(split_words("\n" + line))
            elif line.startswith("+"):
                self._own_words.extend(split_words("\n" + line[1:]))

    def _added(self, hunk: DraftHunk, body: str, view: Sequence[str], most: int) -> Iterator[str]:
        others = [self._own_words, self._shared.output_words]
        return added_line(hunk, body, view, self._shared.corpus, others, most)


class TokenAligner:
    """From a drafted text to the tokens with which a model would write it; follows an output's tokens and text.

    What a tokenizer makes of a text depends on what stands before: ``\\n`` and the indentation after it may be one
    token. So the draft is encoded together with the text before it, and taken only where that gives back the tokens
    that are there already. Where it does not, a model that writes as its tokenizer does would not have stopped there:
    the draft is unlikely, and the next one gets its turn.

    Args:
        prompt_ids: the prompt's last tokens stand before the output's first.
    """

    def __init__(self, codec: Codec, prompt_ids: Sequence[int]) -> None:
        self._codec = codec
        self._ids = list(prompt_ids[-_OVERLAP:])
        self._start = 0
        self._read = len(self._ids)
        self._tail = ""

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens; returns the text that they add, but for a character that is not complete yet."""
        ids = self._ids
        before = self._codec.decode(ids[self._start : self._read])
        ids.extend(tokens)
        now = self._codec.decode(ids[self._start :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._start = max(self._start, len(ids) - _OVERLAP)
        if self._start > 64:
            del ids[: self._start]
            self._start = 0
        self._read = len(ids)
        return now[len(before) :]

    def align(self, text: str) -> list[int] | None:
        """The tokens of ``text`` after what is there; None where the tokenizer would have gone on differently."""
        held = self._ids[self._start :]
        before = self._codec.decode(held)
        if before.endswith("\ufffd"):
            return None
        ids = self._codec.encode_text(before + text)
        compared = held[-_COMPARED:]
        width = len(compared)
        for end in (len(held), len(held) + 1, len(held) - 1, len(held) + 2):
            if end >= width and ids[end - width : end] == compared:
                return ids[end:]
        return None


def drafter_of(kind: DrafterKind, codec: Codec, shared: SharedSuffixes) -> NoDrafter | SuffixDrafter | DiffDrafter:
    """A drafter for one sequence.

    Args:
        kind: ``diff`` knows unified diffs and falls back on suffixes; ``suffix`` knows repetition alone.
        shared: the prompt, and what its other samples said.
    """
    if kind == "none":
        return NoDrafter()
    if kind == "suffix":
        return SuffixDrafter(shared.prompt_ids, shared.token_indexes)
    return DiffDrafter(codec, shared)
