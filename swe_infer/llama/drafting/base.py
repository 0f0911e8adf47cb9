"""The interface of drafters, which propose a sequence's next tokens for verification in one forward pass.

Wrong drafts cost time but never change the output: the engine keeps the tokens that the model confirms and discards
the rest (speculative decoding, Leviathan et al., 2023, with a deterministic draft).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol


class Codec(Protocol):
    """The tokenizer methods that drafting needs. Text is plain, without special tokens."""

    def encode_text(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Drafter(Protocol):
    """Follows one output and drafts its continuation."""

    @property
    def situation(self) -> Hashable:
        """The state of the output, as one of a few classes with similar acceptance. Cheap to compute."""
        ...

    def draft(self, limit: int) -> list[int]:
        """Return at most ``limit`` tokens that may come next; empty without a draft."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that the model generated, in order, each once."""
        ...
