"""JSON lines or a JSON array, read by offset so that prompts stay on disk (``dataset=jsonl``)."""

from __future__ import annotations

import codecs
import errno
import gzip
import io
import json
import os
import re
import shutil
import tempfile
import weakref
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from swe_infer.data.base import (
    FOREIGN_TOKENS,
    ID_COLUMN,
    NO_TEXT_COLUMN,
    DatasetOptions,
    IndexedRows,
    sha256_of_files,
)
from swe_infer.data.normalise import Normaliser
from swe_infer.errors import ConfigError, DataError
from swe_infer.files import special_kind
from swe_infer.options import Option
from swe_infer.text import parsed_json
from swe_infer.types import PathText

_BUFFER = 1 << 18
"""Bytes read at once. With Python's default of 8 kB, lines of 20 kB are slow: they are joined from pieces."""
_LONGEST_LINE = 1 << 28
"""Bytes. Longer lines are refused without reading them into memory."""
_MOST_UNPACKED = 64 << 30
"""Maximum size in bytes of a decompressed file."""
_KEPT_FREE = 1 << 30
"""Bytes to leave free on the disk of temporary files; at most 2 % of a small disk."""

_GZIP = b"\x1f\x8b"
_OTHER_FORMATS = (
    (b"PAR1", "a parquet file: choose dataset=parquet"),
    (_GZIP, "compressed with gzip twice: unpack it once"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ\0", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"PK\3\4", "a zip archive: unpack it first"),
)
_SPACE = re.compile(r"[ \t\r\n]*")

_Found = tuple[int, int, int, object]
"""A row in a file: number from 1, offset and size in bytes, and its value."""


@dataclass(frozen=True, kw_only=True)
class JsonlDataset(DatasetOptions):
    """A file of JSON lines, or a JSON array of objects, with the columns ``instance_id`` and ``text``.

    A gzip file is decompressed into an unnamed temporary file.
    """

    path: Annotated[PathText, Option("A file of JSON lines, or a JSON array; gzip is unpacked.", "answer")]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("dataset.path is empty: name a file of JSON lines")

    @property
    def name(self) -> str:
        return Path(self.path.removesuffix(".gz")).stem

    def open(self, normaliser: Normaliser | None = None) -> JsonlRows:
        from swe_infer.remote.reading import dataset_path

        path = dataset_path(self.path, "dataset.path")
        return JsonlRows(path, self.text_column, label=self.path, normaliser=normaliser)


class JsonlRows(IndexedRows):
    """An index over a file of JSON objects: ids, offsets and lengths, about 100 bytes of memory per row.

    The file is parsed once when it is opened, so that a malformed row is reported before anything is paid for. A
    byte-order mark, CRLF and blank lines are tolerated. The file stays open, so replacing or deleting it has no
    effect. Rows may be read from several threads.

    Args:
        text_column: the column with the prompt; None: the rows have no prompts.
        label: the file's name in messages.
        most_unpacked: maximum size in bytes of a decompressed file.
        normaliser: see :class:`swe_infer.data.base.IndexedRows`.

    Raises:
        DataError: the file does not exist or has no row, a row is not a JSON object, an ``instance_id`` is missing,
            not a string, blank or duplicated, no row has a usable prompt, or a compressed file is damaged or too
            large.
    """

    def __init__(
        self,
        path: Path,
        text_column: str | None = "text",
        *,
        label: str | None = None,
        most_unpacked: int = _MOST_UNPACKED,
        normaliser: Normaliser | None = None,
    ) -> None:
        super().__init__(text_column, label or str(path), "line", normaliser)
        self._offsets = array("Q")
        self._sizes = array("Q")
        try:
            with ExitStack() as opened:
                source = opened.enter_context(_open(path, self._label))
                self._file: IO[bytes] = source
                if source.peek().startswith(_GZIP):
                    self._file = opened.enter_context(_temporary(self._label))
                    unpacked = _Unpacked(source, self._file, self._label, most_unpacked)
                    source = io.BufferedReader(unpacked, _BUFFER)
                self._index(self._rows(source), show=json.dumps)
                weakref.finalize(self, opened.pop_all().close)
        except OSError as error:
            raise DataError(f"{self._label} cannot be read: {error.strerror or error}") from error

    def content_sha256(self) -> str:
        """SHA-256 of the file, decompressed."""
        return sha256_of_files([self._file.fileno()])

    def _read(self, index: int) -> Mapping[str, Any]:
        changed = (
            f"{self._label}: row {self._ids[index]} is no longer at its offset: the file was changed during the run"
        )
        try:
            row = parsed_json(os.pread(self._file.fileno(), self._sizes[index], self._offsets[index]))
        except (OSError, ValueError) as error:
            raise DataError(changed) from error
        if not isinstance(row, dict):
            raise DataError(changed)
        identity = row.get(ID_COLUMN) if self._normaliser is None else self._normaliser.identity(row)
        if identity != self._ids[index]:
            raise DataError(changed)
        return row

    def _rows(self, source: io.BufferedReader) -> Iterator[tuple[int, object, object]]:
        first = source.peek()
        for magic, what in _OTHER_FORMATS:
            if first.startswith(magic):
                raise DataError(f"{self._label} is {what}")
        found = _lines(source, self._label)
        if first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            self._unit = "row"
            found = _ArrayReader(source, self._label).rows()
        columns: dict[str, None] = {}
        for number, offset, size, value in found:
            row = _checked(value, f"{self._label}, {self._unit} {number}", needs_id=self._normaliser is None)
            if not columns.keys() >= row.keys():
                columns.update(dict.fromkeys(row))
            self._offsets.append(offset)
            self._sizes.append(size)
            yield self._entry(number, row)
        self.columns = columns.keys() - set(FOREIGN_TOKENS)
        if not columns:
            raise DataError(f"{self._label} has no rows: it should have one JSON object per line")
        if self._normaliser is not None:
            self.columns = self._normaliser.columns(self.columns, self._label)
        if self._text_column is not None and self._text_column not in columns:
            raise DataError(
                f"{self._label} has no column {self._text_column!r}; it has {', '.join(columns)}{NO_TEXT_COLUMN}"
            )


def _open(path: Path, label: str) -> io.BufferedReader:
    if path.is_dir():
        raise DataError(
            f"dataset.path={label} is a directory; dataset=jsonl requires a file (dataset=disk reads save_to_disk)"
        )
    if path.suffix == ".parquet":
        raise DataError(f"dataset.path={label} is a parquet file: choose dataset=parquet")
    try:
        if (kind := special_kind(path.stat().st_mode)) is not None:
            raise DataError(
                f"dataset.path={label} is {kind}; dataset=jsonl requires a regular file, which it can seek"
            )
        return io.BufferedReader(io.FileIO(path), _BUFFER)
    except FileNotFoundError:
        raise DataError(f"dataset.path={label}: file not found (looked for {path.absolute()})") from None
    except OSError as error:
        raise DataError(f"dataset.path={label} cannot be read: {error.strerror}") from error


def _temporary(label: str) -> IO[bytes]:
    try:
        return tempfile.TemporaryFile(buffering=0)  # a full disk must not raise again when it is closed
    except OSError as error:
        raise _not_unpacked(label, error) from error


def _not_unpacked(label: str, error: OSError) -> DataError:
    return DataError(
        f"{label} cannot be unpacked: {error.strerror or error}; TMPDIR names the directory that is used"
    )


class _Unpacked(io.RawIOBase):
    """A stream of a gzip file's content that is also copied to ``copy``.

    Reading raises DataError if the file is damaged, or its content exceeds ``most`` bytes or the free disk space.
    """

    def __init__(self, packed: IO[bytes], copy: IO[bytes], label: str, most: int) -> None:
        self._packed = gzip.GzipFile(fileobj=packed)
        self._copy = copy
        self._label = label
        self._most = most
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            piece = self._packed.read(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self._label} cannot be unpacked as gzip: {error}") from error
        self._size += len(piece)
        if self._size > self._most:
            raise DataError(f"{self._label} contains more than {self._most:,} bytes: unpack it, if that is intended")
        try:
            disk = shutil.disk_usage(self._copy.fileno())
            if disk.free < len(piece) + min(_KEPT_FREE, disk.total // 50):
                raise OSError(errno.ENOSPC, "the disk is almost full")
            left = memoryview(piece)
            while left:
                left = left[self._copy.write(left) :]
        except OSError as error:
            raise _not_unpacked(self._label, error) from error
        buffer[: len(piece)] = piece
        return len(piece)


def _lines(file: IO[bytes], label: str) -> Iterator[_Found]:
    """The non-blank lines, without a byte-order mark."""
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
            yield number, begin, len(line), _parsed(line, f"{label}, line {number}")


class _ArrayReader:
    """Reads a JSON array piece by piece: no more than one row, or ``_BUFFER`` bytes, is in memory at once."""

    def __init__(self, file: IO[bytes], label: str) -> None:
        self._file = file
        self._label = label
        self._decoder = json.JSONDecoder()
        # Invalid UTF-8 is detected when a row is consumed, so that the message names the row.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0  # index into the text; everything before is consumed
        self._offset = 0  # the same position in the file, in bytes
        self._ended = False

    def rows(self) -> Iterator[_Found]:
        """The elements of the array.

        Raises:
            DataError: the file contains something else, or is truncated.
        """
        if self._next() == "\ufeff":
            self._take(1)
        self._next()
        self._take(1)  # the bracket
        number = 0
        end = self._next()
        while end != "]":
            number += 1
            where = f"{self._label}, row {number}"
            self._next()
            value, size = self._element(where)
            yield number, self._offset - size, size, value
            if (end := self._next()) not in (",", "]"):
                found = f"{end!r}" if end else "the end of the file"
                raise DataError(f"{where} is followed by {found}; it should be a comma or the end of the array")
            self._take(1 if end == "," else 0)
        self._take(1)
        if found := self._next():
            raise DataError(f"{self._label}: the array is followed by {found!r}; nothing should come after it")

    def _element(self, where: str) -> tuple[object, int]:
        """The value that begins here, and its size in bytes."""
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # An error in an open string or near the end of the text may disappear with more text.
                open_end = error.msg.startswith("Unterminated") or error.pos + 16 > len(self._text)
                if self._ended or not open_end:
                    place = f"{where}, character {error.pos - self._at + 1}"
                    raise DataError(f"{place}: not a complete JSON object ({error.msg})") from error
            except (RecursionError, ValueError) as error:
                raise DataError(f"{where}: {_excess(error)}") from error
            else:
                try:
                    return value, self._take(end - self._at)
                except UnicodeEncodeError as error:
                    raise DataError(
                        f"{where}, character {error.start + 1}: not UTF-8, the encoding of JSON"
                    ) from error
            if len(self._text) - self._at > _LONGEST_LINE:
                raise DataError(f"{where}: is longer than {_LONGEST_LINE >> 20} MiB")
            self._fill()

    def _next(self) -> str:
        """Skips white space and returns the next character; empty at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            assert space is not None
            self._take(space.end() - self._at)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._fill()

    def _take(self, characters: int) -> int:
        """Consumes characters and returns their size in bytes."""
        size = len(self._text[self._at : self._at + characters].encode())
        self._at += characters
        self._offset += size
        return size

    def _fill(self) -> None:
        """Reads more. The amount doubles, so that a long row is not decoded from its start too often."""
        piece = self._file.read(max(_BUFFER, len(self._text) - self._at))
        self._ended = not piece
        self._text = self._text[self._at :] + self._utf8.decode(piece, final=self._ended)
        self._at = 0


def _parsed(line: bytes, where: str) -> object:
    try:
        return parsed_json(line)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, byte {error.start + 1}: not UTF-8, the encoding of JSON lines") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}, column {error.pos + 1}: not a complete JSON object ({error.msg})") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: {_excess(error)}") from error


def _excess(error: RecursionError | ValueError) -> str:
    """What exceeds a limit of Python's in valid JSON."""
    return "JSON nested too deeply" if isinstance(error, RecursionError) else "an integer has too many digits"


def _checked(value: object, where: str, *, needs_id: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        kind = "a JSON array" if isinstance(value, list) else f"a JSON value of type {type(value).__name__}"
        raise DataError(f"{where} is {kind}; it should be one JSON object with {ID_COLUMN} and the prompt")
    if needs_id and ID_COLUMN not in value:
        raise DataError(f"{where} has no column {ID_COLUMN!r}; it has {', '.join(value) or 'no column at all'}")
    return value
