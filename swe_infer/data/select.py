"""Which instances a run asks, and in which order: ids, limit, shard, then the length filter.

A shard's instances are those of its part of the whole dataset: which part that is depends on the dataset alone, so
that no instance changes its shard when ids, limit or bounds change.

Every step but the last is decided at once and needs no tokenizer. Nothing here looks at what is finished already, so
a resumed run has the shards of the first one. Tokens are counted when an instance comes up, because counting all of
a large dataset takes minutes; whoever needs the whole answer at once reads :attr:`Selection.kept`.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from swe_infer.data.base import Dataset, Rows
from swe_infer.errors import ConfigError, DataError
from swe_infer.types import DataShard, Prompt, Skip, TokenCounter

_TEMPLATE_TOKENS = 256
"""More than begin, end and chat template tokens come to; added where a length is bounded without counting."""

_CHARACTERS_PER_TOKEN = 3.3
"""Of SWE-bench's prompts, by OpenAI's and Llama's tokenizers; part of the former division into shards."""

_ESTIMATE_FACTOR = 2
"""An estimate this far above the room left is taken for sure; below, the provider has the last word."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An instance that is requested but not asked: a ``Skip`` with its name and place."""

    index: int
    instance_id: str
    skip: Skip

    @property
    def reason(self) -> str:
        return self.skip.reason

    @property
    def message(self) -> str:
        return self.skip.message


@dataclass(frozen=True, slots=True)
class LengthFilter:
    """Bounds on a prompt's length in tokens.

    Args:
        room_for_output: tokens of the context window that stay free, ``decoding.max_new_tokens``.
    """

    count_tokens: TokenCounter | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    context_window: int | None = None
    room_for_output: int = 0

    def __post_init__(self) -> None:
        if self.context_window is not None and self.room_for_output >= self.context_window:
            raise ConfigError(
                f"decoding.max_new_tokens={self.room_for_output} leaves no room for a prompt in the context window "
                f"of {self.context_window} tokens"
            )
        if self.count_tokens is None and (self.min_tokens is not None or self.max_tokens is not None):
            raise ConfigError("dataset.min_tokens and dataset.max_tokens need something that counts tokens")

    def allows_unread(self, characters: int) -> bool:
        """Whether a prompt of so many characters passes whatever its text is.

        A token stands for at least one byte, and a character has at most four in UTF-8, so tokens are at most four
        times the characters.
        """
        return not self.min_tokens and 4 * characters + _TEMPLATE_TOKENS <= self._upper()

    def former_size(self, characters: int) -> int:
        """What a prompt of so many characters weighed where an earlier version balanced shards: its characters, or
        nothing where the bounds would probably leave it out."""
        tokens = characters / _CHARACTERS_PER_TOKEN
        return (
            0 if tokens > self._upper() or (self.min_tokens is not None and tokens < self.min_tokens) else characters
        )

    def check(self, prompt: Prompt) -> Skip | None:
        """Why a prompt is too short or too long, or None. Counts only where its size in bytes does not decide."""
        counter = self.count_tokens
        if counter is None:
            return None
        if not self.min_tokens and len(prompt.text.encode()) + _TEMPLATE_TOKENS <= self._upper():
            return None
        tokens = counter(prompt)
        said = f"{tokens:,} tokens ({counter.name})" if counter.exact else f"about {tokens:,} tokens ({counter.name})"
        if self.min_tokens is not None and tokens < self.min_tokens:
            return Skip("PromptTooShort", f"the prompt has {said}, below dataset.min_tokens={self.min_tokens}")
        if self.max_tokens is not None and tokens > self.max_tokens:
            return Skip("PromptTooLong", f"the prompt has {said}, above dataset.max_tokens={self.max_tokens}")
        if self.context_window is None:
            return None
        room = self.context_window - self.room_for_output
        if tokens > (room if counter.exact else _ESTIMATE_FACTOR * room):
            return Skip(
                "ContextOverflow",
                f"the prompt has {said}; the context window of {self.context_window:,} tokens, less "
                f"{self.room_for_output:,} for the output, takes {room:,}",
            )
        return None

    def _upper(self) -> float:
        bounds = [float("inf")]
        if self.max_tokens is not None:
            bounds.append(self.max_tokens)
        if self.context_window is not None:
            bounds.append(self.context_window - self.room_for_output)
        return min(bounds)


@dataclass
class Selection:
    """The requested instances of one shard.

    Args:
        requested: row indices in the order for the runner, rows with a fault included.
        requested_of_all_shards: how many instances all shards together have.
        moved: how many of these another shard had by the division of an earlier version.
    """

    rows: Rows
    requested: Sequence[int]
    requested_of_all_shards: int
    lengths: LengthFilter
    moved: Callable[[], int] = int
    _verdicts: dict[int, Skip | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.requested)

    def verdict(self, index: int) -> Skip | None:
        """Why the row ``index`` is left out, or None where it is asked. Reads and counts its prompt where that is
        needed, once."""
        if index not in self._verdicts:
            self._verdicts[index] = self._decide(index)
        return self._verdicts[index]

    @property
    def kept(self) -> list[int]:
        """The indices that are asked, in order. Decides every row first, which may mean counting all of them."""
        return [index for index in self.requested if self.verdict(index) is None]

    @property
    def skipped(self) -> list[Skipped]:
        """What is left out and why, in order. Decides every row first."""
        return list(self._skipped())

    def _skipped(self) -> Iterator[Skipped]:
        for index in self.requested:
            if (skip := self.verdict(index)) is not None:
                yield Skipped(index, self.rows.ids[index], skip)

    def _decide(self, index: int) -> Skip | None:
        if (fault := self.rows.fault(index)) is not None:
            return fault
        if self.rows.has_known_lengths and self.lengths.allows_unread(self.rows.characters(index)):
            return None
        return self.lengths.check(self.rows[index].prompt)


def select(
    rows: Rows,
    dataset: Dataset,
    *,
    count_tokens: TokenCounter | None,
    room_for_output: int,
    context_window: int | None,
    shard: DataShard,
    order: Literal["dataset", "longest_first"],
) -> Selection:
    """Apply ``instance_ids``, then ``limit``; of these, take the shard's. The length filter acts when a row is
    decided.

    Args:
        count_tokens: the model's tokenizer or an estimate; None: prompts are not measured.
        room_for_output: tokens of the context window that stay free.
        context_window: tokens, prompt and output together; None: not known.
        order: ``longest_first`` sorts by characters, the dataset's order among equals.

    Raises:
        DataError: an id of ``instance_ids`` is not in the dataset.
        ConfigError: the output leaves no room for a prompt, or bounds are set and nothing counts.
    """
    lengths = LengthFilter(count_tokens, dataset.min_tokens, dataset.max_tokens, context_window, room_for_output)
    indices = list(range(len(rows)))
    if dataset.instance_ids is not None:
        wanted = set(dataset.instance_ids)
        _check_known(wanted, rows.ids, dataset.name)
        indices = [index for index in indices if rows.ids[index] in wanted]
    if dataset.limit is not None:
        indices = indices[: dataset.limit]
    all_shards = tuple(indices)
    moved: Callable[[], int] = int  # none
    if shard.index is not None and shard.count is not None:
        owners = assign_shards([rows.characters(index) for index in range(len(rows))], shard.count)
        moved = partial(_moved, rows, lengths, all_shards, owners, shard.count)
        indices = [index for index in indices if owners[index] == shard.index]
    if order == "longest_first":
        indices.sort(key=lambda index: (-rows.characters(index), index))
    return Selection(rows, indices, len(all_shards), lengths, moved)


def _moved(rows: Rows, lengths: LengthFilter, indices: Sequence[int], owners: Sequence[int], count: int) -> int:
    """How many of the rows ``indices`` another shard had by the division of an earlier version, which depended on
    ids, limit and bounds."""
    former = assign_shards([lengths.former_size(rows.characters(index)) for index in indices], count)
    return sum(owners[index] != owner for index, owner in zip(indices, former, strict=True))


def assign_shards(sizes: Sequence[int], count: int) -> list[int]:
    """Give each item a shard from 0 to ``count`` - 1, so that the shards' sums of sizes are as alike as can be.

    Longest processing time first (Graham 1969): the largest item goes to the shard with the least so far, the one
    with fewer items among equals. So sums differ by no more than the largest item.
    """
    assignment = [0] * len(sizes)
    shards = [(0, 0, number) for number in range(min(count, len(sizes)))]  # (size, items, shard); the rest stay empty
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, items, number = shards[0]
        assignment[item] = number
        heapq.heapreplace(shards, (load + sizes[item], items + 1, number))
    return assignment


def _check_known(wanted: set[str], ids: Sequence[str], name: str) -> None:
    unknown = sorted(wanted.difference(ids))
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], ids, n=1, cutoff=0.0)
    others = f" (and {len(unknown) - 1} more that are not there)" if len(unknown) > 1 else ""
    raise DataError(
        f"dataset.instance_ids: {unknown[0]!r} is not in {name}{others}; the closest of its {len(ids):,} ids is "
        f"{close[0]!r}"
    )
