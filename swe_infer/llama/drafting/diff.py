"""The drafter for unified diffs. Falls back on suffix matching."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

from swe_infer.llama.drafting.base import Codec
from swe_infer.llama.drafting.content import added_line, prose_line
from swe_infer.llama.drafting.patch_state import DraftHunk, PatchState
from swe_infer.llama.drafting.plan import Planner
from swe_infer.llama.drafting.shared import SharedSuffixes
from swe_infer.llama.drafting.suffix import SuffixDrafter
from swe_infer.llama.drafting.words import WordIndex, split_words
from swe_infer.types import DrafterKind

_CHARACTERS_PER_TOKEN = 4
"""Approximate characters per token."""
_MAX_TRIES = 4
"""Maximum drafts that do not align with the tokens before them."""
_LONG_MATCH = 5
"""Minimum tokens of a match that is preferred to word votes."""
_OVERLAP = 6
"""Tokens before the draft that are encoded along with it."""
_COMPARED = 2
"""How many of these must be reproduced. The first ones may differ, because their own context is missing."""


class DiffDrafter:
    """Drafts a patch to the files of a prompt."""

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
        """The kind of line being written; for an added line, whether lines were removed and whether it has content;
        between lines of a hunk, the kind of the previous line."""
        hunk, current = self.state.hunk, self.state.current
        if hunk is None:
            return "@" if current.startswith("@") else "started" if current else "between"
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
        """Fall back on a long token match, else on word votes, else on a short match."""
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
    """Converts drafted text to the tokens with which the model would continue its output.

    The tokens of a text depend on what precedes it: ``\\n`` and the indentation after it may be one token. So a draft
    is encoded together with the text before it, and used only if that reproduces the existing tokens. Otherwise the
    draft is unlikely: a model that writes as its tokenizer does would not have stopped there.

    Args:
        prompt_ids: the prompt's last tokens precede the output.
    """

    def __init__(self, codec: Codec, prompt_ids: Sequence[int]) -> None:
        self._codec = codec
        self._ids = list(prompt_ids[-_OVERLAP:])
        self._start = 0
        self._read = len(self._ids)
        self._tail = ""

    def push(self, tokens: Sequence[int]) -> str:
        """Append tokens. Returns the text that they add, without an incomplete character."""
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
        """Return the tokens of ``text`` after the existing tokens; None if the tokenizer would tokenize
        differently."""
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


def drafter_of(kind: DrafterKind, codec: Codec, shared: SharedSuffixes) -> SuffixDrafter | DiffDrafter:
    """Create a drafter for one sequence.

    Args:
        kind: ``diff`` drafts unified diffs and falls back on suffixes; ``suffix`` uses repetition only. Not ``none``.
        shared: the prompt and the outputs of its other samples.
    """
    if kind == "suffix":
        return SuffixDrafter(shared.prompt_ids, shared.token_indexes)
    return DiffDrafter(codec, shared)
