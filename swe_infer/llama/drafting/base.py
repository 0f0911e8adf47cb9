"""What a drafter is: a draft of a sequence's next tokens, which the model then verifies in one forward pass.

A draft is never wrong in a way that matters. The engine keeps the part that the model would have said itself and
throws the rest away (speculative decoding, Leviathan et al., 2023, with a deterministic draft).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol


class Codec(Protocol):
    """The part of a tokenizer that drafting needs. Both take and give plain text, without special tokens."""

    def encode_text(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Drafter(Protocol):
    """Follows one output and drafts how it goes on."""

    @property
    def situation(self) -> Hashable:
        """Where the output stands, in terms of a few places at which drafts fare differently. Cheap to ask for."""
        ...

    def draft(self, limit: int) -> list[int]:
        """At most ``limit`` tokens that may come next; empty where there is no draft."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Take the tokens that the model did produce, in order, each once."""
        ...


class NoDrafter:
    """Never drafts: plain decoding."""

    @property
    def situation(self) -> Hashable:
        return None

    def draft(self, limit: int) -> list[int]:
        return []

    def extend(self, tokens: Sequence[int]) -> None:
        return None
