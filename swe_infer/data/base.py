"""What a dataset is: rows that can be read one by one, whatever format they lie in."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.prompt_format import split_prompt
from swe_infer.types import Instance, Skip

ID_COLUMN = "instance_id"

FOREIGN_TOKENS = ("input_ids", "labels", "attention_mask")
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


class IndexedRows:
    """What the rows of every format share: ids, lengths and faults, all known once the dataset is open.

    Args:
        label: how messages call the dataset.
        unit: how they call a row, such as ``line``.
    """

    def __init__(self, text_column: str, label: str, unit: str) -> None:
        self._text_column = text_column
        self._label = label
        self._unit = unit
        self._ids: list[str] = []
        self._characters = array("Q")
        self._faults: dict[int, Skip] = {}

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def characters(self, index: int) -> int:
        return self._characters[index]

    def fault(self, index: int) -> Skip | None:
        return self._faults.get(index)

    def _index(self, rows: Iterable[tuple[int, object, object]], show: Callable[[object], str] = repr) -> None:
        """Take in number, id and prompt of every row; messages say the number, and show an id that is no string.

        Raises:
            DataError: there is no row, an id is no string, blank or used twice, or no row has a usable prompt.
        """
        seen: dict[str, int] = {}
        for number, identity, text in rows:
            if not isinstance(identity, str) or fault_of_text(identity) is not None:
                found = f"{ID_COLUMN} is {show(identity)[:60]}"
                raise DataError(
                    f"{self._label}, {self._unit} {number}: {found}; it should be a string that is not blank"
                )
            if identity in seen:
                found = f"{ID_COLUMN} {identity!r} is already used in {self._unit} {seen[identity]}"
                raise DataError(f"{self._label}, {self._unit} {number}: {found}; each row needs its own")
            if (fault := fault_of_text(text)) is not None:
                self._faults[len(self._ids)] = fault
            seen[identity] = number
            self._ids.append(identity)
            self._characters.append(len(text) if isinstance(text, str) else 0)
        if not seen:
            raise DataError(f"{self._label} holds no row")
        if len(self._faults) == len(self._ids):
            first = f"{self._unit} {seen[self._ids[0]]}: {self._faults[0].message}"
            raise DataError(f"{self._label} has no usable prompt; {first}")


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
    def run_tests(self) -> bool | Literal["unsafe"]:
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
    """The keys that every dataset has."""

    text_column: Annotated[str, Option("The column that holds the prompt.", "answer")] = "text"
    limit: Annotated[
        int | None, Option("Only the first N instances; counted after instance_ids, before shards.", "scope")
    ] = None
    instance_ids: Annotated[
        tuple[str, ...] | None, Option("Only these instances, such as [django__django-11099].", "scope")
    ] = None
    min_tokens: Annotated[
        int | None, Option("Skip shorter prompts; counted by the model's tokenizer, or estimated.", "scope")
    ] = None
    max_tokens: Annotated[
        int | None, Option("Skip longer prompts; counted by the model's tokenizer, or estimated.", "scope")
    ] = None

    @property
    def run_tests(self) -> bool | Literal["unsafe"]:
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
    left_out = {ID_COLUMN, text_column, *FOREIGN_TOKENS}
    metadata = {key: value for key, value in row.items() if key not in left_out}
    return Instance(row[ID_COLUMN], split_prompt(text), metadata)
