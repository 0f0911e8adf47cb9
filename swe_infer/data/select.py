"""Selects and orders the instances of a run: ids, limit, shard, then the length filter.

An instance's shard depends on the whole dataset alone, so that it does not change with ids, limit, length bounds, or
what is already finished. The length filter counts an instance's tokens when the runner reaches it, because counting a
large dataset takes minutes. :attr:`Selection.kept` counts all at once.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from swe_infer.data.base import Dataset, Rows
from swe_infer.data.images import NOT_ACCEPTED
from swe_infer.errors import ConfigError, DataError
from swe_infer.prompt_images import IMAGES_COLUMN
from swe_infer.types import DataShard, Prompt, Skip, TokenCounter

_TEMPLATE_TOKENS = 256
"""An upper bound on the tokens of the chat template; added where a length is bounded without counting."""

_CHARACTERS_PER_TOKEN = 3.3
"""Characters per token of SWE-bench's prompts in OpenAI's and Llama's tokenizers.

Earlier versions divided shards by it.
"""

_ESTIMATE_FACTOR = 2
"""A prompt is skipped by an estimate only if that exceeds the available tokens by this factor; the provider decides
on the others."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A requested instance that is skipped, and why."""

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
        reserved_output_tokens: tokens of the context window for the output, ``decoding.max_new_tokens``.
    """

    count_tokens: TokenCounter | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    context_window: int | None = None
    reserved_output_tokens: int = 0

    def __post_init__(self) -> None:
        if self.context_window is not None and self.reserved_output_tokens >= self.context_window:
            raise ConfigError(
                f"decoding.max_new_tokens={self.reserved_output_tokens} leaves no tokens for a prompt in the context "
                f"window of {self.context_window} tokens"
            )
        if self.count_tokens is None and (self.min_tokens is not None or self.max_tokens is not None):
            raise ConfigError("dataset.min_tokens and dataset.max_tokens require a token counter")

    def allows_unread(self, characters: int) -> bool:
        """Whether any prompt of this many characters passes.

        A token is at least one byte and a character at most four in UTF-8, so there are at most four tokens per
        character.
        """
        return not self.min_tokens and 4 * characters + _TEMPLATE_TOKENS <= self._upper()

    def former_size(self, characters: int) -> int:
        """The size by which earlier versions balanced shards: the characters, or 0 if the bounds probably exclude the
        prompt."""
        tokens = characters / _CHARACTERS_PER_TOKEN
        return (
            0 if tokens > self._upper() or (self.min_tokens is not None and tokens < self.min_tokens) else characters
        )

    def check(self, prompt: Prompt) -> Skip | None:
        """Why a prompt is too short or too long, or None. Counts tokens only if its bytes do not decide."""
        counter = self.count_tokens
        if counter is None:
            return None
        if not self.min_tokens and len(prompt.text.encode()) + _TEMPLATE_TOKENS <= self._upper():
            return None
        tokens = counter(prompt)
        size = f"{tokens:,} tokens ({counter.name})" if counter.exact else f"about {tokens:,} tokens ({counter.name})"
        if self.min_tokens is not None and tokens < self.min_tokens:
            return Skip("PromptTooShort", f"the prompt has {size}, below dataset.min_tokens={self.min_tokens}")
        if self.max_tokens is not None and tokens > self.max_tokens:
            return Skip("PromptTooLong", f"the prompt has {size}, above dataset.max_tokens={self.max_tokens}")
        if self.context_window is None:
            return None
        available = self.context_window - self.reserved_output_tokens
        if tokens > (available if counter.exact else _ESTIMATE_FACTOR * available):
            return Skip(
                "ContextOverflow",
                f"the prompt has {size}; the context window of {self.context_window:,} tokens, less "
                f"{self.reserved_output_tokens:,} for the output, leaves {available:,}",
            )
        return None

    def _upper(self) -> float:
        bounds = [float("inf")]
        if self.max_tokens is not None:
            bounds.append(self.max_tokens)
        if self.context_window is not None:
            bounds.append(self.context_window - self.reserved_output_tokens)
        return min(bounds)


@dataclass
class Selection:
    """The requested instances of one shard.

    Args:
        requested: row indices in the order for the runner, including rows with a fault.
        requested_of_all_shards: number of instances of all shards together.
        moved: number of instances that earlier versions assigned to another shard.
        image_fault: why the model does not accept images, given by their URLs; None if it does.
    """

    rows: Rows
    requested: Sequence[int]
    requested_of_all_shards: int
    lengths: LengthFilter
    moved: Callable[[], int] = int
    image_fault: Callable[[Sequence[str]], str | None] = lambda images: None
    _verdicts: dict[int, Skip | None] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.requested)

    def skip_for(self, index: int) -> Skip | None:
        """Why the instance in row ``index`` is skipped, or None. Reads and counts its prompt once, if necessary."""
        if index not in self._verdicts:
            self._verdicts[index] = self._decide(index)
        return self._verdicts[index]

    @property
    def kept(self) -> list[int]:
        """The indices that are not skipped, in order. May count every prompt first."""
        return [index for index in self.requested if self.skip_for(index) is None]

    @property
    def skipped(self) -> list[Skipped]:
        """The skipped instances, in order. May count every prompt first."""
        return list(self._skipped())

    def _skipped(self) -> Iterator[Skipped]:
        for index in self.requested:
            if (skip := self.skip_for(index)) is not None:
                yield Skipped(index, self.rows.ids[index], skip)

    def _decide(self, index: int) -> Skip | None:
        if (fault := self.rows.fault(index)) is not None:
            return fault
        if IMAGES_COLUMN in self.rows.columns and (images := self.rows[index].prompt.images):
            why = self.image_fault(images)
            return self.lengths.check(self.rows[index].prompt) if why is None else Skip(NOT_ACCEPTED, why)
        if self.rows.has_known_lengths and self.lengths.allows_unread(self.rows.characters(index)):
            return None
        return self.lengths.check(self.rows[index].prompt)


def select(
    rows: Rows,
    dataset: Dataset,
    *,
    count_tokens: TokenCounter | None,
    reserved_output_tokens: int,
    context_window: int | None,
    shard: DataShard,
    order: Literal["dataset", "longest_first"],
    image_fault: Callable[[Sequence[str]], str | None] = lambda images: None,
) -> Selection:
    """Applies ``instance_ids``, ``limit`` and the shard. The length filter is applied later, row by row.

    Args:
        count_tokens: the model's tokenizer or an estimate; None: prompts are not measured.
        reserved_output_tokens: tokens of the context window that are reserved for the output.
        context_window: tokens of prompt and output together; None: unknown.
        order: ``longest_first`` sorts by characters, then by the dataset's order.
        image_fault: as in :class:`Selection`.

    Raises:
        DataError: an id of ``instance_ids`` is not in the dataset.
        ConfigError: the output leaves no tokens for a prompt, or bounds are set without a token counter.
    """
    lengths = LengthFilter(
        count_tokens, dataset.min_tokens, dataset.max_tokens, context_window, reserved_output_tokens
    )
    indices = list(range(len(rows)))
    if dataset.instance_ids is not None:
        requested = set(dataset.instance_ids)
        _check_known(requested, rows.ids, dataset.name)
        indices = [index for index in indices if rows.ids[index] in requested]
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
    return Selection(rows, indices, len(all_shards), lengths, moved, image_fault)


def _moved(rows: Rows, lengths: LengthFilter, indices: Sequence[int], owners: Sequence[int], count: int) -> int:
    """The number of rows that earlier versions, whose shards depended on ids, limit and bounds, assigned to another
    shard."""
    former = assign_shards([lengths.former_size(rows.characters(index)) for index in indices], count)
    return sum(owners[index] != owner for index, owner in zip(indices, former, strict=True))


def assign_shards(sizes: Sequence[int], count: int) -> list[int]:
    """Assigns each item to a shard from 0 to ``count`` - 1, with sums of sizes as equal as possible.

    Longest processing time first (Graham 1969): the largest item goes to the shard with the smallest sum, then with
    the fewest items. So sums differ by no more than the largest item.
    """
    assignment = [0] * len(sizes)
    shards = [(0, 0, number) for number in range(min(count, len(sizes)))]  # (size, items, shard); the rest stay empty
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, items, number = shards[0]
        assignment[item] = number
        heapq.heapreplace(shards, (load + sizes[item], items + 1, number))
    return assignment


def _check_known(requested: set[str], ids: Sequence[str], name: str) -> None:
    unknown = sorted(requested.difference(ids))
    if not unknown:
        return
    close = difflib.get_close_matches(unknown[0], ids, n=1, cutoff=0.0)
    others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    raise DataError(
        f"dataset.instance_ids: {unknown[0]!r} is not in {name}{others}; the closest of its {len(ids):,} ids is "
        f"{close[0]!r}"
    )
