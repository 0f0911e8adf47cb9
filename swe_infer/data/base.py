"""The interface of datasets: random access to rows, for every file format."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, Self

from swe_infer.data.choices import FileChoices
from swe_infer.data.normalise import Normaliser, RowFault
from swe_infer.errors import ConfigError, DataError
from swe_infer.instance_files import files_of
from swe_infer.options import Option
from swe_infer.prompt_format import PromptFiles, edit_format_of, prompt_of
from swe_infer.types import EditFormat, Instance, Skip

ID_COLUMN = "instance_id"
TEXT_COLUMN = "text"
ISSUE_COLUMN = "problem_statement"

NO_TEXT_COLUMN = " (dataset.text_column names the one with the prompt; null: the rows have no prompts)"
"""The end of messages about a missing prompt column."""

INVALID_ROW = "InvalidRow"
"""Reason to skip a row of a benchmark that cannot be normalised."""

FOREIGN_TOKENS = ("input_ids", "labels", "attention_mask")
"""Columns of some published datasets with the tokens of an unnamed tokenizer. They are ignored."""


class Rows(Protocol):
    """An opened dataset with random access. Prompts stay on disk until they are read."""

    @property
    def ids(self) -> Sequence[str]:
        """``instance_id`` of every row, unique, in the dataset's order."""
        ...

    def __len__(self) -> int: ...

    @property
    def columns(self) -> Collection[str]:
        """The names of all columns; some rows may lack some of them."""
        ...

    @property
    def has_known_lengths(self) -> bool:
        """Whether ``characters`` is the length of the prompt. False if prompts are rendered when they are read."""
        ...

    @property
    def file_choices(self) -> FileChoices | None:
        """The files that a model chooses; None: prompts need no request."""
        ...

    def characters(self, index: int) -> int:
        """Length in characters (Unicode code points) of a row's prompt or, if rows have no prompts, of its
        ``problem_statement``; 0 without one."""
        ...

    def fault(self, index: int) -> Skip | None:
        """Why this row is unusable, such as a blank prompt; None if it is usable. Known once the dataset is open.

        If rows have no prompts (``dataset.text_column`` is null), no row has a fault.
        """
        ...

    def content_sha256(self) -> str | None:
        """SHA-256 of the dataset's files, in hexadecimal; None if it is unknown."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit on the hub; None if the rows do not come from there."""
        ...

    def row(self, index: int) -> Mapping[str, Any]:
        """The columns of one row, without nulls and :data:`FOREIGN_TOKENS`.

        Raises:
            DataError: the file has changed since it was opened, or is damaged.
        """
        ...

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        """The files of one row's instance, and the row's form of answer. No prompt is rendered if the files come from
        a repository.

        Raises:
            DataError: as ``__getitem__``.
        """
        ...

    def __getitem__(self, index: int) -> Instance:
        """Reads one row.

        Raises:
            DataError: as for ``row``, or the row has a fault, or rows have no prompts.
        """
        ...


class RowsView:
    """Rows that forward to other rows. Subclasses change what they need to."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def ids(self) -> Sequence[str]:
        return self._rows.ids

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def columns(self) -> Collection[str]:
        return self._rows.columns

    @property
    def has_known_lengths(self) -> bool:
        return self._rows.has_known_lengths

    @property
    def file_choices(self) -> FileChoices | None:
        return self._rows.file_choices

    def characters(self, index: int) -> int:
        return self._rows.characters(index)

    def fault(self, index: int) -> Skip | None:
        return self._rows.fault(index)

    def content_sha256(self) -> str | None:
        return self._rows.content_sha256()

    @property
    def revision(self) -> str | None:
        return self._rows.revision

    def row(self, index: int) -> Mapping[str, Any]:
        return self._rows.row(index)

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        return self._rows.inputs_of_check(index)

    def __getitem__(self, index: int) -> Instance:
        return self._rows[index]


class IndexedRows:
    """Base class of the formats' rows: ids, lengths and faults, all known once the dataset is open.

    Args:
        text_column: the column with the prompt; None: the rows have no prompts.
        label: the dataset's name in messages.
        unit: the name of a row in messages, such as ``line``.
        normaliser: converts the rows of a benchmark; None: they are used as they are. A row that it cannot convert
            has a fault.
    """

    has_known_lengths = True
    file_choices: FileChoices | None = None
    revision: str | None = None

    def __init__(self, text_column: str | None, label: str, unit: str, normaliser: Normaliser | None = None) -> None:
        self._text_column = text_column
        self._label = label
        self._unit = unit
        self._normaliser = normaliser
        self._last: tuple[int, Mapping[str, Any] | Skip] | None = None
        self._last_instance: tuple[int, Instance] | None = None
        self._ids: list[str] = []
        self._characters = array("Q")
        self._faults: dict[int, Skip] = {}
        self.columns: Collection[str] = ()

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def characters(self, index: int) -> int:
        return self._characters[index]

    def fault(self, index: int) -> Skip | None:
        if index in self._faults or self._normaliser is None:
            return self._faults.get(index)
        row = self._normalised(index, self._normaliser)
        return row if isinstance(row, Skip) else None

    def row(self, index: int) -> Mapping[str, Any]:
        if self._normaliser is not None:
            row = self._normalised(index, self._normaliser)
            return {ID_COLUMN: self._ids[index]} if isinstance(row, Skip) else row
        columns = self._read(index).items()
        return {key: value for key, value in columns if value is not None and key not in FOREIGN_TOKENS}

    def _normalised(self, index: int, normaliser: Normaliser) -> Mapping[str, Any] | Skip:
        """A row of a benchmark, or why it is unusable; cached for the last row."""
        last = self._last
        if last is None or last[0] != index:
            fault = self._faults.get(index)
            if fault is not None and fault.reason == INVALID_ROW:
                return fault
            try:
                columns = normaliser.normalised(self._read(index)).items()
                last = index, {key: value for key, value in columns if key not in FOREIGN_TOKENS}
            except RowFault as error:
                last = index, Skip(INVALID_ROW, f"{self._label}, {self._ids[index]}: {error}")
            self._last = last
        return last[1]

    def inputs_of_check(self, index: int) -> tuple[Mapping[str, str], EditFormat | None]:
        instance = self[index]
        return instance.files, instance.edit_format

    def __getitem__(self, index: int) -> Instance:
        last = self._last_instance  # a prompt is measured, then sent
        if last is None or last[0] != index:
            last = self._last_instance = index, make_instance(self.row(index), self._text_column)
        return last[1]

    def content_sha256(self) -> str | None:
        """SHA-256 of the dataset's files, in hexadecimal; None if it is unknown."""
        return None

    def _read(self, index: int) -> Mapping[str, Any]:
        """All columns of one row."""
        raise NotImplementedError

    @property
    def _measured_column(self) -> str:
        """The column that ``characters`` measures."""
        return ISSUE_COLUMN if self._text_column is None else self._text_column

    def _entry(self, number: int, row: Mapping[str, Any]) -> tuple[int, object, object]:
        """The number, id and measured column of a row, for :meth:`_index`."""
        if self._normaliser is None:
            return number, row.get(ID_COLUMN), row.get(self._measured_column)
        text = self._normaliser.statement(row) if self._text_column is None else row.get(self._text_column)
        return number, self._normaliser.identity(row), text

    def _index(self, rows: Iterable[tuple[int, object, object]], show: Callable[[object], str] = repr) -> None:
        """Indexes the number, id and measured column of every row. ``show`` formats an invalid id for messages.

        In a benchmark an invalid or duplicated id costs its row alone, which is called by its number instead.

        Raises:
            DataError: there is no row, an id is not a string, blank or duplicated, or no row has a usable prompt.
        """
        seen: dict[str, int] = {}
        for number, identity, text in rows:
            problem = None
            if not isinstance(identity, str) or fault_of_text(identity) is not None:
                found = f"{ID_COLUMN} is {show(identity)[:60]}"
                problem = f"{self._label}, {self._unit} {number}: {found}; it should be a string that is not blank"
            elif identity in seen:
                found = f"{ID_COLUMN} {identity!r} is already used in {self._unit} {seen[identity]}"
                problem = f"{self._label}, {self._unit} {number}: {found}; each row needs its own"
            if problem is not None:
                if self._normaliser is None:
                    raise DataError(problem)
                self._faults[len(self._ids)] = Skip(INVALID_ROW, problem)
                identity, text = f"{self._unit}-{number}", ""
            assert isinstance(identity, str)
            if problem is None and self._text_column is not None and (fault := fault_of_text(text)) is not None:
                self._faults[len(self._ids)] = fault
            seen[identity] = number
            self._ids.append(identity)
            self._characters.append(len(text) if isinstance(text, str) else 0)
        if not seen:
            raise DataError(f"{self._label} has no rows")
        if len(self._faults) == len(self._ids):
            first = f"{self._unit} {seen[self._ids[0]]}: {self._faults[0].message}"
            raise DataError(f"{self._label} has no usable {'prompt' if self._text_column else 'row'}; {first}")


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
    def text_column(self) -> str | None:
        """The column with the prompt; None: the rows have no prompts."""
        ...

    @property
    def rules(self) -> str:
        """Name and version of the rules that convert rows; ``given``: rows are used as they are. Part of a run's
        identity."""
        ...

    @property
    def has_patch_files(self) -> bool:
        """Whether a run writes each submitted patch into a file, and prints it."""
        ...

    @property
    def images(self) -> bool:
        """Whether prompts have the images in the column ``image_assets``."""
        ...

    def without_prompts(self) -> Dataset:
        """The same dataset without its prompt column."""
        ...

    def open(self) -> Rows:
        """Opens the dataset and reads all ids.

        Raises:
            DataError: names the file or hub name, the line or column, and what would be right.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The keys that every dataset has."""

    text_column: Annotated[
        str | None, Option("The column with the prompt; null: the rows have no prompts.", "answer")
    ] = TEXT_COLUMN
    images: Annotated[
        bool, Option("Send the images in the column image_assets; a model without model.vision skips them.", "answer")
    ] = True
    limit: Annotated[
        int | None, Option("Only the first N instances; applied after instance_ids, before shards.", "scope")
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
    def rules(self) -> str:
        return "given"

    @property
    def has_patch_files(self) -> bool:
        """Whether a run writes each submitted patch into a file, and prints it."""
        return False

    def without_prompts(self) -> Self:
        """The same dataset without its prompt column: a context and a renderer write the prompts."""
        return replace(self, text_column=None)

    def __post_init__(self) -> None:
        if self.text_column in ("", ID_COLUMN):
            raise ConfigError(
                f"dataset.text_column={self.text_column!r}: name the column with the prompt, or null for none"
            )
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
            raise ConfigError("dataset.instance_ids is an empty list: name some, or omit the key for all")


def sha256_of_files(descriptors: Iterable[int]) -> str:
    """SHA-256 of the content of open files, one after the other. Their positions are not changed."""
    digest = hashlib.sha256()
    for descriptor in descriptors:
        offset = 0
        while chunk := os.pread(descriptor, 1 << 20, offset):
            digest.update(chunk)
            offset += len(chunk)
    return digest.hexdigest()


def fault_of_text(text: object) -> Skip | None:
    """Why a prompt's value is invalid, or None. An invalid one costs its row alone."""
    if text is None:
        return Skip("MissingPrompt", "the row has no prompt (null, or the column is absent)")
    if not isinstance(text, str):
        return Skip("InvalidPrompt", f"the prompt is of type {type(text).__name__}, not a string")
    if not text or text.isspace():
        return Skip("BlankPrompt", "the prompt is empty or white space")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return Skip("InvalidPrompt", f"the prompt contains a lone surrogate at character {error.start}")
    return None


def make_instance(row: Mapping[str, Any], text_column: str | None) -> Instance:
    """Converts a row without a fault into an instance. Its files are the row's own, else those in the prompt.

    Args:
        row: the result of :meth:`Rows.row`.

    Raises:
        DataError: the row has a fault, or ``text_column`` is None.
    """
    if text_column is None:
        raise DataError(f"{row[ID_COLUMN]}: the row has no prompt (dataset.text_column is null)")
    text = row.get(text_column)
    if (fault := fault_of_text(text)) is not None:
        raise DataError(f"{row[ID_COLUMN]}: {fault.message}")
    assert isinstance(text, str)
    metadata = {key: value for key, value in row.items() if key not in (ID_COLUMN, text_column)}
    prompt, files = prompt_of(text, row), files_of(row)
    return Instance(
        row[ID_COLUMN], prompt, metadata, PromptFiles(prompt) if files is None else files, edit_format_of(row)
    )
