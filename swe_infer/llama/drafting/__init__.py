"""Speculative decoding of patches: drafts of the next tokens, which the engine verifies.

A patch copies most of its text from the prompt. :func:`drafter_of` creates a drafter for one sequence; the samples of
a prompt share :class:`SharedSuffixes`; :class:`DraftLength` chooses the length of a draft from
:class:`AcceptanceModel`, :class:`StepCostModel` and :class:`DraftBudget`. No module of this package imports torch.
"""

from swe_infer.llama.drafting.acceptance import AcceptanceModel, StepCostModel
from swe_infer.llama.drafting.base import Codec, Drafter, NoDrafter
from swe_infer.llama.drafting.diff import drafter_of
from swe_infer.llama.drafting.length import DraftBudget, DraftLength
from swe_infer.llama.drafting.shared import NO_SOURCE, DraftSource, SharedPrompts, SharedSuffixes

__all__ = [
    "NO_SOURCE",
    "AcceptanceModel",
    "DraftBudget",
    "Codec",
    "DraftLength",
    "DraftSource",
    "Drafter",
    "NoDrafter",
    "StepCostModel",
    "SharedPrompts",
    "SharedSuffixes",
    "drafter_of",
]
