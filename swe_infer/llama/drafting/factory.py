"""Drafters by name."""

from __future__ import annotations

from swe_infer.llama.drafting.base import Codec, NoDrafter
from swe_infer.llama.drafting.diff import DiffDrafter
from swe_infer.llama.drafting.shared import SharedSuffixes
from swe_infer.llama.drafting.suffix import SuffixDrafter
from swe_infer.types import DrafterKind

__all__ = ["drafter_of"]


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
