"""Rows of a ``datasets.Dataset``: memory-mapped Arrow tables, as ``disk``, ``parquet`` and ``hub`` have them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swe_infer.data.base import ID_COLUMN, fault_of_text, is_foreign_tokens, make_instance
from swe_infer.errors import DataError
from swe_infer.types import Instance, Skip

if TYPE_CHECKING:
    import datasets

__all__ = ["ArrowRows", "check_columns", "choose_split"]

_BATCH = 1000  # rows for which prompts are in memory at once while lengths are taken


class ArrowRows:
    """Random access to an Arrow table on disk.

    Args:
        table: an opened ``datasets.Dataset``.
        label: how messages call it.

    Raises:
        DataError: no row, a column that is missing or holds no strings, an ``instance_id`` that is null, blank or
            used twice, or a table of which no row has a usable prompt.
    """

    def __init__(self, table: datasets.Dataset, text_column: str, label: str) -> None:
        schema = table.data.schema
        check_columns({name: str(schema.field(name).type) for name in table.column_names}, text_column, label)
        self._table = table.remove_columns([name for name in table.column_names if is_foreign_tokens(name)])
        self._text_column = text_column
        self._label = label
        self._ids: list[str] = []
        self._characters = array("Q")
        self._faults: dict[int, Skip] = {}
        try:
            self._index()
        except (ValueError, OSError) as error:  # text that is no UTF-8, offsets that lead nowhere
            raise DataError(f"{label} is damaged: {_first_line(error)}") from error

    @property
    def ids(self) -> Sequence[str]:
        return self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def characters(self, index: int) -> int:
        return self._characters[index]

    def fault(self, index: int) -> Skip | None:
        return self._faults.get(index)

    def __getitem__(self, index: int) -> Instance:
        try:
            return make_instance(self._table[index], self._text_column)
        except (ValueError, OSError, SystemError) as error:
            raise DataError(f"{self._label}, row {index} is damaged: {_first_line(error)}") from error

    def _index(self) -> None:
        rows: dict[str, int] = {}
        columns = self._table.select_columns([ID_COLUMN, self._text_column]).with_format("arrow")
        for batch in columns.iter(batch_size=_BATCH):
            batch.validate(full=True)  # before offsets of a damaged file are followed anywhere
            texts = batch.column(self._text_column).to_pylist()
            for identity, text in zip(batch.column(ID_COLUMN).to_pylist(), texts, strict=True):
                index = len(self._ids)
                self._check_identity(identity, index, rows)
                rows[identity] = index
                self._ids.append(identity)
                self._characters.append(len(text or ""))
                if (fault := fault_of_text(text)) is not None:
                    self._faults[index] = fault
        if not self._ids:
            raise DataError(f"{self._label} holds no row")
        if len(self._faults) == len(self._ids):
            raise DataError(f"{self._label} has no usable prompt; row 0: {self._faults[0].message}")

    def _check_identity(self, identity: str | None, index: int, rows: dict[str, int]) -> None:
        if identity is None or not identity.strip():
            raise DataError(f"{self._label}, row {index}: {ID_COLUMN} is {identity!r}; it should be a string")
        if identity in rows:
            raise DataError(
                f"{self._label}, row {index}: {ID_COLUMN} {identity!r} is already used in row {rows[identity]}; "
                "each row needs its own"
            )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_columns(types: dict[str, str], text_column: str, label: str) -> None:
    """Raise DataError unless both columns are there and hold strings. ``types``: Arrow type names by column."""
    for column in (ID_COLUMN, text_column):
        if column not in types:
            hint = "" if column == ID_COLUMN else " (dataset.text_column names the one that holds the prompt)"
            raise DataError(f"{label} has no column {column!r}; it has {', '.join(types)}{hint}")
        if types[column] not in ("string", "large_string", "string_view", "null"):
            raise DataError(f"{label}: column {column!r} holds {types[column]}; it should hold strings")


def choose_split(loaded: datasets.Dataset | datasets.DatasetDict, split: str | None, label: str) -> datasets.Dataset:
    """The split that is meant, of a ``Dataset`` or a ``DatasetDict``.

    Raises:
        DataError: there is no such split, or there are several and none is named.
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
