"""Rows of a ``datasets.Dataset``, a memory-mapped Arrow table, for ``disk``, ``parquet`` and ``hub``."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.data.base import FOREIGN_TOKENS, ID_COLUMN, NO_TEXT_COLUMN, IndexedRows, sha256_of_files
from swe_infer.data.normalise import Normaliser, RowFault
from swe_infer.errors import DataError
from swe_infer.text import first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

_BATCH = 1000  # rows in memory at once while lengths are measured


class ArrowRows(IndexedRows):
    """Random access to an Arrow table on disk.

    Args:
        table: an opened ``datasets.Dataset``.
        text_column: the column with the prompt; None: the rows have no prompts.
        label: the dataset's name in messages.
        normaliser: see :class:`swe_infer.data.base.IndexedRows`.

    Raises:
        DataError: there is no row, a column is missing or not of strings, an ``instance_id`` is null, blank or
            duplicated, or no row has a usable prompt.
    """

    def __init__(
        self, table: datasets.Dataset, text_column: str | None, label: str, normaliser: Normaliser | None = None
    ) -> None:
        schema = table.data.schema
        types = {name: schema.field(name).type for name in table.column_names}
        if normaliser is None:
            check_columns(types, text_column, label)
        elif text_column is not None:
            check_column(types, text_column, label)
        super().__init__(text_column, label, "row", normaliser)
        self._table = table.remove_columns([name for name in table.column_names if name in FOREIGN_TOKENS])
        self.columns = tuple(self._table.column_names)
        if normaliser is not None:
            self.columns = normaliser.columns(self.columns, label)
        try:
            self._index(self._columns())
        except (ValueError, OSError) as error:  # invalid UTF-8 or offsets
            raise DataError(f"{label} is damaged: {first_line(error)}") from error

    def content_sha256(self) -> str | None:
        """SHA-256 of the table's Arrow files; None if the table is in memory."""
        names = [str(file["filename"]) for file in self._table.cache_files]
        if not names:
            return None
        with ExitStack() as opened:
            return sha256_of_files([opened.enter_context(open(name, "rb")).fileno() for name in names])

    def _read(self, index: int) -> Mapping[str, Any]:
        try:
            row: dict[str, Any] = self._table[index]
            return row
        except OverflowError as error:  # a time beyond those of Python
            why = f"has a value out of range: {first_line(error)}"
            if self._normaliser is not None:
                raise RowFault(None, why) from error
            raise DataError(f"{self._label}, row {index} {why}") from error
        except (ValueError, OSError, SystemError) as error:
            raise DataError(f"{self._label}, row {index} is damaged: {first_line(error)}") from error

    def _columns(self) -> Iterator[tuple[int, object, object]]:
        number = 0
        read = {ID_COLUMN, self._measured_column} | set(self._normaliser.indexed if self._normaliser else ())
        names = [name for name in self._table.column_names if name in read]
        for batch in self._table.select_columns(names).with_format("arrow").iter(batch_size=_BATCH):
            batch.validate(full=True)  # before any offset of a damaged file is followed
            for values in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                yield self._entry(number, dict(zip(names, values, strict=True)))
                number += 1


def silence_datasets() -> None:
    """Turns off progress bars and logs of the library, whose errors are raised too."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.CRITICAL)


def check_columns(types: Mapping[str, pa.DataType], text_column: str | None, label: str) -> None:
    """Raises DataError unless the ids and prompts are columns of strings.

    Args:
        types: the type of every column.
        text_column: None: there are no prompts.
    """
    for column in (ID_COLUMN,) if text_column is None else (ID_COLUMN, text_column):
        check_column(types, column, label)


def check_column(types: Mapping[str, pa.DataType], column: str, label: str) -> None:
    """Raises DataError unless ``column`` is one of strings."""
    if column not in types:
        hint = "" if column == ID_COLUMN else NO_TEXT_COLUMN
        raise DataError(f"{label} has no column {column!r}; it has {', '.join(types)}{hint}")
    if not _holds_strings(types[column]):
        raise DataError(f"{label}: column {column!r} contains {types[column]}; it should contain strings")


_COMMIT = re.compile(r"[0-9a-f]{40}")


def revision_of(table: datasets.Dataset) -> str | None:
    """The commit on the hub that a table was loaded from; None for another table."""
    parts = [part for file in table.cache_files for part in Path(file["filename"]).parts]
    return next((part for part in reversed(parts) if _COMMIT.fullmatch(part)), None)


def _holds_strings(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):  # pandas writes categories like this
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "null")


def choose_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, label: str) -> datasets.Dataset:
    """The chosen split of a ``Dataset`` or a ``DatasetDict``.

    Raises:
        DataError: the split does not exist, or there are several and none is named.
    """
    import datasets

    if isinstance(loaded, datasets.Dataset):
        if split is not None and str(loaded.split) != split:
            raise DataError(f"{label} is one table without a split {split!r}: leave dataset.split out")
        return loaded
    splits = list(loaded)
    if split is None and len(splits) == 1:
        return loaded[splits[0]]
    if split is None:
        raise DataError(f"{label} has the splits {', '.join(splits)}: name one, such as dataset.split={splits[0]}")
    if split not in splits:
        raise DataError(f"{label} has no split {split!r}; it has {', '.join(splits)}")
    return loaded[split]
