"""Speculative patch decoding: drafts of the next tokens, which the engine verifies.

A patch copies most of itself from the prompt. :func:`drafter_of` makes a drafter for one sequence; what the samples
of a prompt have in common lies in :class:`SharedSuffixes`; :class:`DraftLength` decides the length of a draft from
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
