"""Speculative patch decoding: guesses of the next tokens, which the engine verifies.

A patch copies most of itself from the prompt. :func:`drafter_of` makes a drafter for one sequence; what the samples
of a prompt have in common lies in :class:`SharedSuffixes`; :class:`DraftLength` says how much to guess, from what
:class:`Acceptance` and :class:`PassCost` learned and what an :class:`Account` holds. Nothing in here knows torch.
"""

from swe_infer.llama.drafting.acceptance import Acceptance, PassCost
from swe_infer.llama.drafting.base import Codec, Drafter, NoDrafter
from swe_infer.llama.drafting.diff import drafter_of
from swe_infer.llama.drafting.length import Account, DraftLength
from swe_infer.llama.drafting.shared import NO_SOURCE, DraftSource, SharedPrompts, SharedSuffixes

__all__ = [
    "NO_SOURCE",
    "Acceptance",
    "Account",
    "Codec",
    "DraftLength",
    "DraftSource",
    "Drafter",
    "NoDrafter",
    "PassCost",
    "SharedPrompts",
    "SharedSuffixes",
    "drafter_of",
]
