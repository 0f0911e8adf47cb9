"""From a guessed text to the tokens with which a model would write it.

What a tokenizer makes of a text depends on what stands before: ``\\n`` and the indentation after it may be one token.
So the guess is encoded together with the text before it, and taken only where that gives back the tokens that are
there already. Where it does not, a model that writes as its tokenizer does would not have stopped there: the guess is
unlikely, and the next one gets its turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from swe_infer.llama.drafting.base import Codec

__all__ = ["Junction"]

_TAIL = 6
"""Tokens before the guess that are encoded along with it."""
_COMPARED = 2
"""Of these, those that must come out the same. The first ones may not: their own past is missing."""


class Junction:
    """Follows an output's tokens and text.

    Args:
        prompt_ids: the prompt's last tokens stand before the output's first.
    """

    def __init__(self, codec: Codec, prompt_ids: Sequence[int]) -> None:
        self._codec = codec
        self._ids = list(prompt_ids[-_TAIL:])
        self._settled = 0
        self._read = len(self._ids)
        self._tail = ""

    def push(self, tokens: Sequence[int]) -> str:
        """Take tokens; returns the text that they add, but for a character that is not complete yet."""
        ids = self._ids
        before = self._codec.decode(ids[self._settled : self._read])
        ids.extend(tokens)
        now = self._codec.decode(ids[self._settled :])
        if len(now) <= len(before) or now.endswith("\ufffd"):
            return ""
        self._settled = max(self._settled, len(ids) - _TAIL)
        if self._settled > 64:
            del ids[: self._settled]
            self._settled = 0
        self._read = len(ids)
        return now[len(before) :]

    def tokens(self, text: str) -> list[int] | None:
        """The tokens of ``text`` after what is there; None where the tokenizer would have gone on differently."""
        held = self._ids[self._settled :]
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
