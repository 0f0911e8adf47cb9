"""What a dataset is: rows that can be read one by one, whatever format they lie in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swe_infer.errors import ConfigError, DataError
from swe_infer.prompts import split_prompt
from swe_infer.types import Instance, Skip

__all__ = ["Dataset", "DatasetOptions", "Rows", "fault_of_text", "make_instance"]

ID_COLUMN = "instance_id"

_FOREIGN_TOKENS = ("input_ids", "labels", "attention_mask")
"""Columns of some published datasets that hold the tokens of one particular tokenizer. They are never read: which
tokenizer that was is not stated, and each model brings its own."""


class Rows(Protocol):
    """An opened dataset with random access. Prompts stay on disk until they are asked for."""

    @property
    def ids(self) -> Sequence[str]:
        """``instance_id`` of every row, unique, in the dataset's order."""
        ...

    def __len__(self) -> int: ...

    def characters(self, index: int) -> int:
        """Length of a row's prompt in characters (Unicode code points); 0 where there is none."""
        ...

    def fault(self, index: int) -> Skip | None:
        """Why this one row cannot be asked (no prompt, a blank one), known since the opening; None where it can."""
        ...

    def __getitem__(self, index: int) -> Instance:
        """Read one row.

        Raises:
            DataError: the row has a fault, or the file was changed since it was opened.
        """
        ...


class Dataset(Protocol):
    """The ``dataset`` group. Constructors are cheap; the keys of :class:`DatasetOptions` are shared by all."""

    @property
    def name(self) -> str: ...

    @property
    def limit(self) -> int | None: ...

    @property
    def instance_ids(self) -> tuple[str, ...] | None: ...

    @property
    def min_tokens(self) -> int | None: ...

    @property
    def max_tokens(self) -> int | None: ...

    @property
    def run_tests(self) -> bool:
        """Whether the dataset brings tests, which the end of a run is to run on its patches."""
        ...

    def open(self) -> Rows:
        """Read what is needed to know every id.

        Raises:
            DataError: names the file or hub name, the line or column, and what would be right.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The keys that every dataset has.

    Args:
        text_column: the column that holds the prompt.
        limit: at most so many instances, the first ones; counted after ``instance_ids``, before shards.
        instance_ids: only these.
        min_tokens: skip shorter prompts.
        max_tokens: skip longer prompts.
    """

    text_column: str = "text"
    limit: int | None = None
    instance_ids: tuple[str, ...] | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None

    @property
    def run_tests(self) -> bool:
        """Only a dataset of ours brings tests that may be run unasked."""
        return False

    def __post_init__(self) -> None:
        if not self.text_column or self.text_column == ID_COLUMN:
            raise ConfigError(f"dataset.text_column={self.text_column!r}: name the column that holds the prompt")
        for key, least in (("limit", 1), ("min_tokens", 0), ("max_tokens", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"dataset.{key}={value}: must be at least {least}, or null")
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ConfigError(
                f"dataset.min_tokens={self.min_tokens} is above dataset.max_tokens={self.max_tokens}: "
                "no prompt can satisfy both"
            )
        if self.instance_ids is not None and not self.instance_ids:
            raise ConfigError("dataset.instance_ids is an empty list: name some, or leave the key out for all")


def fault_of_text(text: object) -> Skip | None:
    """What is wrong with a prompt's value, if anything. It costs this row only."""
    if text is None:
        return Skip("MissingPrompt", "the row has no prompt (null, or the column is absent)")
    if not isinstance(text, str):
        return Skip("InvalidPrompt", f"the prompt is of type {type(text).__name__}, not a string")
    if not text or text.isspace():
        return Skip("BlankPrompt", "the prompt is empty or holds white space only")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Skip("InvalidPrompt", f"the prompt holds half a surrogate pair at character {error.start}")
    return None


def make_instance(row: Mapping[str, Any], text_column: str) -> Instance:
    """Turn a row that has no fault into an instance.

    Raises:
        DataError: it has one after all.
    """
    text = row.get(text_column)
    if (fault := fault_of_text(text)) is not None:
        raise DataError(f"{row[ID_COLUMN]}: {fault.message}")
    assert isinstance(text, str)
    left_out = {ID_COLUMN, text_column, *_FOREIGN_TOKENS}
    metadata = {key: value for key, value in row.items() if key not in left_out}
    return Instance(row[ID_COLUMN], split_prompt(text), metadata)


def is_foreign_tokens(column: str) -> bool:
    """Whether a column holds another tokenizer's tokens, which are never read."""
    return column in _FOREIGN_TOKENS
