"""JSON lines: one object a line, read by offset, so prompts stay on disk (``dataset=jsonl``)."""

from __future__ import annotations

import codecs
import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from swe_infer.data.base import ID_COLUMN, NO_TEXT_COLUMN, DatasetOptions, IndexedRows
from swe_infer.errors import ConfigError, DataError
from swe_infer.files import special_kind
from swe_infer.options import Option
from swe_infer.resources import expanded
from swe_infer.types import PathText

_BUFFER = 1 << 18
"""Bytes read at once. With Python's own 8 kB a line of 20 kB is made of pieces, at three times the price."""
_LONGEST_LINE = 1 << 28
"""Bytes. A longer line is no instance, and is not read into memory whole."""


@dataclass(frozen=True, kw_only=True)
class JsonlDataset(DatasetOptions):
    """A file of JSON lines with the columns ``instance_id`` and ``text``."""

    path: Annotated[PathText, Option("The file of JSON lines.", "answer")]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("dataset.path is empty: name a file of JSON lines")

    @property
    def name(self) -> str:
        return Path(self.path).stem

    def open(self) -> JsonlRows:
        return JsonlRows(expanded(self.path, "dataset.path"), self.text_column, label=self.path)


class JsonlRows(IndexedRows):
    """An index over a file of JSON lines: ids, offsets and lengths; about 100 bytes of memory a row.

    The whole file is parsed once at opening, so a broken line is known before anything is paid for. A byte-order
    mark, CRLF and blank lines are tolerated.

    Args:
        text_column: the column that holds the prompt; None: the rows hold none.
        label: how messages call the file.

    Raises:
        DataError: no such file, no row, a line that is no JSON object, an ``instance_id`` that is missing, no
            string, blank or used twice, or a file of which no row has a usable prompt.
    """

    def __init__(self, path: Path, text_column: str | None = "text", *, label: str | None = None) -> None:
        super().__init__(text_column, label or str(path), "line")
        self._path = path
        self._offsets = array("Q")
        self._sizes = array("Q")
        with _open(path, self._label) as file:
            self._index(self._rows(file), show=json.dumps)

    def _read(self, index: int) -> Mapping[str, Any]:
        changed = (
            f"{self._label}: row {self._ids[index]} is no longer where it was: the file was changed during the run"
        )
        try:
            with self._path.open("rb") as file:
                file.seek(self._offsets[index])
                row = json.loads(file.read(self._sizes[index]).decode())
        except (OSError, ValueError) as error:
            raise DataError(changed) from error
        if not isinstance(row, dict) or row.get(ID_COLUMN) != self._ids[index]:
            raise DataError(changed)
        return row

    def _rows(self, file: BinaryIO) -> Iterator[tuple[int, object, object]]:
        columns: dict[str, None] = {}
        for number, offset, line in _lines(file, self._label):
            row = _parse(line, f"{self._label}, line {number}")
            if not columns.keys() >= row.keys():
                columns.update(dict.fromkeys(row))
            self._offsets.append(offset)
            self._sizes.append(len(line))
            yield number, row[ID_COLUMN], row.get(self._measured_column)
        if not columns:
            raise DataError(f"{self._label} holds no row: it should have one JSON object a line")
        if self._text_column is not None and self._text_column not in columns:
            raise DataError(
                f"{self._label} has no column {self._text_column!r}; it has {', '.join(columns)}{NO_TEXT_COLUMN}"
            )


def _open(path: Path, label: str) -> BinaryIO:
    if path.is_dir():
        raise DataError(
            f"dataset.path={label} is a directory; dataset=jsonl wants a file (dataset=disk reads save_to_disk)"
        )
    if path.suffix == ".parquet":
        raise DataError(f"dataset.path={label} is a parquet file: choose dataset=parquet")
    try:
        if (kind := special_kind(path.stat().st_mode)) is not None:
            raise DataError(
                f"dataset.path={label} is {kind}; dataset=jsonl wants a file, as it reads rows by their place"
            )
        return path.open("rb", buffering=_BUFFER)
    except FileNotFoundError:
        raise DataError(f"dataset.path={label}: there is no such file (looked for {path.absolute()})") from None
    except OSError as error:
        raise DataError(f"dataset.path={label} cannot be read: {error.strerror}") from error


def _lines(file: BinaryIO, label: str) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line number from 1, offset in bytes, line) for each line that is not blank, byte-order mark removed."""
    offset = number = 0
    while line := file.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise DataError(f"{label}, line {number}: is longer than {_LONGEST_LINE >> 20} MiB")
        begin, size = offset, len(line)
        offset += size
        if number == 1 and line.startswith(codecs.BOM_UTF8):
            begin += len(codecs.BOM_UTF8)
            line = line[len(codecs.BOM_UTF8) :]
        if line and not line.isspace():
            yield number, begin, line


def _parse(line: bytes, where: str) -> dict[str, Any]:
    if line.startswith(b"\x1f\x8b"):
        raise DataError(f"{where}: the file is compressed with gzip; unpack it first")
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, byte {error.start + 1}: not UTF-8, the encoding of JSON lines") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.pos + 1}: not a whole JSON object ({error.msg})") from error
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply") from error
    if not isinstance(row, dict):
        kind = "a JSON array" if isinstance(row, list) else f"a JSON value of type {type(row).__name__}"
        raise DataError(f"{where} is {kind}; each line should be one JSON object with {ID_COLUMN} and the prompt")
    if ID_COLUMN not in row:
        raise DataError(f"{where} has no column {ID_COLUMN!r}; it has {', '.join(row) or 'no column at all'}")
    return row
