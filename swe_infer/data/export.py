"""Converts JSON lines to parquet, a ``save_to_disk`` directory or gzip. One batch of rows is in memory at a time."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swe_infer.data.base import ID_COLUMN, TEXT_COLUMN
from swe_infer.instance_files import FILES_COLUMN
from swe_infer.prompt_format import EDIT_FORMAT_COLUMN, SYSTEM_COLUMN

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS, _BATCH_BYTES = 100, 1 << 23
_MOST_FIELDS = 64
"""Maximum keys of an object that becomes a struct; with more, the keys are data and not field names."""


def write_gzip(lines: Path, target: Path) -> None:
    """Writes ``lines`` with gzip; equal lines give equal bytes."""
    with lines.open("rb") as source, target.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
        shutil.copyfileobj(source, file, 1 << 20)


def write_parquet(lines: Path, target: Path) -> None:
    """Writes ``lines`` as one parquet file."""
    import pyarrow.parquet as pq

    schema, texts = _schema(lines)
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for table in _tables(lines, schema, texts):
            writer.write_table(table)


def write_disk(lines: Path, target: Path) -> None:
    """Writes ``lines`` as the directory of a ``datasets.Dataset``. Needs space for a second copy beside it."""
    import datasets
    import pyarrow as pa

    schema, texts = _schema(lines)
    table = target.with_name(f"{target.name}.arrow")
    with table.open("wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _tables(lines, schema, texts):
            writer.write_table(batch)
    datasets.disable_progress_bars()
    try:
        datasets.Dataset.from_file(str(table)).save_to_disk(str(target))
    finally:
        table.unlink()


def read_gzip(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that :func:`write_gzip` wrote."""
    with gzip.open(path, "rb") as file:
        yield from map(json.loads, file)


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that :func:`write_parquet` wrote."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=100):
            yield from batch.to_pylist()


def read_disk(path: Path) -> Iterator[dict[str, Any]]:
    """The rows that :func:`write_disk` wrote."""
    import datasets

    yield from datasets.Dataset.load_from_disk(str(path))


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    size = 0
    with lines.open("rb", buffering=1 << 18) as file:
        for line in file:
            rows.append(json.loads(line))
            size += len(line)
            if len(rows) == _BATCH_ROWS or size >= _BATCH_BYTES:
                yield rows
                rows, size = [], 0
    if rows:
        yield rows


def _tables(lines: Path, schema: pa.Schema, texts: Set[str]) -> Iterator[pa.Table]:
    import pyarrow as pa

    for rows in _batches(lines):
        columns = []
        for column in schema:
            values = [row.get(column.name) for row in rows]
            if column.name == FILES_COLUMN:
                values = [_files(value, column.type) for value in values]
            elif column.name in texts:
                values = [_text(value) for value in values]
            columns.append(pa.array(values, column.type))
        yield pa.Table.from_arrays(columns, schema=schema)


def _schema(lines: Path) -> tuple[pa.Schema, Set[str]]:
    """(types of the columns, columns of mixed or unsupported types).

    Values of the latter that are not strings become JSON text.
    """
    import pyarrow as pa

    types: dict[str, pa.DataType | None] = {ID_COLUMN: pa.string()}
    path_type = pa.string()
    for rows in _batches(lines):
        names = dict.fromkeys(name for row in rows for name in row)
        for name in names:
            if name in _FIXED:
                continue
            found = _type_of([row.get(name) for row in rows])
            types[name] = found if name not in types else _common(types[name], found)
        if any(not _is_utf8(path) for row in rows for path in row.get(FILES_COLUMN) or ()):
            path_type = pa.binary()
    texts = {name for name, kind in types.items() if kind is None or _is_unfit(kind)}
    fields = [(name, pa.string() if name in texts else kind) for name, kind in types.items()]
    fixed = [(name, pa.string()) for name in (TEXT_COLUMN, SYSTEM_COLUMN, EDIT_FORMAT_COLUMN)]
    files = pa.list_(pa.struct([("path", path_type), ("content", pa.binary())]))
    return pa.schema([*fields, *fixed, (FILES_COLUMN, files)]), texts


_FIXED = frozenset({ID_COLUMN, TEXT_COLUMN, SYSTEM_COLUMN, EDIT_FORMAT_COLUMN, FILES_COLUMN})


def _type_of(values: Sequence[object]) -> pa.DataType | None:
    """The common type of a column's values; None if there is none."""
    import pyarrow as pa

    try:
        return pa.array(values).type
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        return None


def _common(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    import pyarrow as pa

    if one is None or other is None or one == other:
        return one if one == other else None
    try:
        schemas = [pa.schema([("column", kind)]) for kind in (one, other)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("column").type
    except pa.ArrowException:
        return None


def _is_unfit(kind: pa.DataType) -> bool:
    """Whether a type cannot be kept: objects without keys or with very many, and columns that are always null."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return not 0 < kind.num_fields <= _MOST_FIELDS or any(_is_unfit(field.type) for field in kind)
    return _is_unfit(kind.value_type) if pa.types.is_list(kind) else pa.types.is_null(kind)


def _files(value: Mapping[str, str] | None, kind: pa.DataType) -> list[dict[str, str | bytes]] | None:
    """A row's files as a list for Arrow; contents are bytes."""
    if value is None:
        return None
    as_bytes = str(kind.value_type.field("path").type) == "binary"
    return [
        {"path": _bytes(path) if as_bytes else path, "content": _bytes(content)} for path, content in value.items()
    ]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(value: object) -> str | None:
    return value if value is None or (isinstance(value, str) and _is_utf8(value)) else json.dumps(value)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
