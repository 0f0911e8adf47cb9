"""Drafters by name."""

from __future__ import annotations

from collections.abc import Sequence

from swe_infer.llama.drafting.base import Codec, NoDrafter
from swe_infer.llama.drafting.diff import DiffDrafter
from swe_infer.llama.drafting.shared import SharedSuffixes
from swe_infer.llama.drafting.suffix import SuffixDrafter
from swe_infer.types import DrafterKind

__all__ = ["drafter_of"]


def drafter_of(
    kind: DrafterKind, prompt_ids: Sequence[int], codec: Codec, shared: SharedSuffixes | None = None
) -> NoDrafter | SuffixDrafter | DiffDrafter:
    """A drafter for one sequence.

    Args:
        kind: ``diff`` knows unified diffs and falls back on suffixes; ``suffix`` knows repetition alone.
        shared: of the same prompt; None: nothing is shared with other samples.
    """
    if kind == "none":
        return NoDrafter()
    if shared is None:
        ids = tuple(prompt_ids)
        shared = SharedSuffixes(lambda: codec.decode(ids), ids)
    if kind == "suffix":
        return SuffixDrafter(prompt_ids, shared.token_indexes)
    return DiffDrafter(codec, prompt_ids, shared)
