"""Speculative decoding of patches: drafts of the next tokens, which the engine verifies.

A patch copies most of its text from the prompt. :func:`drafter_of` creates a drafter for one sequence; the samples of
a prompt share :class:`SharedSuffixes`; :mod:`swe_infer.llama.drafting.gain` chooses the length of a draft. No module
of this package imports torch.
"""

from swe_infer.llama.drafting.base import Codec, Drafter
from swe_infer.llama.drafting.diff import drafter_of
from swe_infer.llama.drafting.shared import NO_SOURCE, DraftSource, SharedPrompts, SharedSuffixes

__all__ = [
    "NO_SOURCE",
    "Codec",
    "DraftSource",
    "Drafter",
    "SharedPrompts",
    "SharedSuffixes",
    "drafter_of",
]
