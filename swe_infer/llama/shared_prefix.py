"""Which sequences of a decode step begin with the same cache blocks, so that those are read once for all of them.

Samples of a prompt, and the points of a sweep over it, share all blocks of the prompt but the last (cf. Hydragen,
Juravsky et al., 2024; cascade inference in FlashInfer, Ye et al., 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PrefixGroup", "common_blocks", "prefix_groups"]

_LEAST_SHARE = 0.5
"""Part of its blocks that a sequence must share for its group to be worth it."""


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Sequences ``members`` (by their place in the list) whose first ``blocks`` blocks are the same; 0 where a
    sequence is alone."""

    members: tuple[int, ...]
    blocks: int


def common_blocks(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many leading blocks two tables have in common, at most ``most``."""
    low, high = 0, min(most, len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def prefix_groups(tables: Sequence[Sequence[int]], most: int) -> list[PrefixGroup]:
    """Divide sequences into groups that share much of what they read.

    Args:
        tables: the blocks of each sequence's keys. The last one is never counted as shared: it is being written.
        most: sequences of a group.
    """
    groups: list[PrefixGroup] = []
    members: list[int] = []
    shared = 0
    for place in sorted(range(len(tables)), key=lambda place: list(tables[place])):
        table = tables[place]
        common = common_blocks(tables[members[0]], table, min(shared, len(table) - 1)) if members else 0
        if common and common >= _LEAST_SHARE * len(table) and len(members) < most:
            members.append(place)
            shared = common
            continue
        if members:
            groups.append(PrefixGroup(tuple(members), shared if len(members) > 1 else 0))
        members, shared = [place], len(table) - 1
    if members:
        groups.append(PrefixGroup(tuple(members), shared if len(members) > 1 else 0))
    return groups
