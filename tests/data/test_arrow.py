"""Tables: ``save_to_disk`` directories and parquet files, written by the real libraries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.data.arrow import ArrowRows
from swe_infer.data.disk import DiskDataset
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.parquet import ParquetDataset
from swe_infer.errors import ConfigError, DataError

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[None]:
    """Gives each test its own cache of converted parquet files."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    yield
    datasets.config.HF_DATASETS_CACHE = before


def save(rows: list[Row], directory: Path) -> str:
    datasets.Dataset.from_list(rows).save_to_disk(directory)
    return str(directory)


def write_parquet(rows: list[Row], path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def assert_same(opened: ArrowRows, rows: list[Row]) -> None:
    assert list(opened.ids) == [row["instance_id"] for row in rows]
    assert len(opened) == len(rows)
    for index, row in enumerate(rows):
        assert opened[index].prompt.text == row["text"]
        assert opened[index].metadata == {k: v for k, v in row.items() if k not in ("instance_id", "text")}
        assert opened.characters(index) == len(row["text"])


def test_a_saved_dataset_is_read_back(rows: list[Row], tmp_path: Path) -> None:
    assert_same(DiskDataset(path=save(rows, tmp_path / "d")).open(), rows)


def test_a_saved_selection_is_read_in_its_own_order(rows: list[Row], tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(rows).select([2, 0])
    assert_same(ArrowRows(table, "text", "selection"), [rows[2], rows[0]])
    table.save_to_disk(tmp_path / "d")
    assert_same(DiskDataset(path=str(tmp_path / "d")).open(), [rows[2], rows[0]])


def test_the_only_split_is_the_default_and_several_need_a_name(rows: list[Row], tmp_path: Path) -> None:
    parts = {"dev": datasets.Dataset.from_list(rows[:1]), "test": datasets.Dataset.from_list(rows[1:])}
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk(tmp_path / "one")
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")

    assert_same(DiskDataset(path=str(tmp_path / "one")).open(), rows[1:])
    assert_same(DiskDataset(path=str(tmp_path / "two"), split="dev").open(), rows[:1])
    with pytest.raises(DataError, match=r"has the splits dev, test: name one, such as dataset\.split=dev"):
        DiskDataset(path=str(tmp_path / "two")).open()
    with pytest.raises(DataError, match="has no split 'train'; it has dev, test"):
        DiskDataset(path=str(tmp_path / "two"), split="train").open()


def test_a_split_of_a_dataset_that_has_none_is_refused(rows: list[Row], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one table without a split 'test'"):
        DiskDataset(path=save(rows, tmp_path / "d"), split="test").open()


def test_other_directories_are_refused(rows: list[Row], tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "no", "directory not found"),
        (tmp_path, "was not written by save_to_disk"),
        (Path(write_parquet(rows, tmp_path / "f.parquet")), "is a file: dataset=jsonl or dataset=parquet"),
    ):
        with pytest.raises(DataError, match=message):
            DiskDataset(path=str(path)).open()
    directory = Path(save(rows, tmp_path / "broken"))
    (directory / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded") as caught:
        DiskDataset(path=str(directory)).open()
    assert "\n" not in str(caught.value)


def test_parquet_is_a_file_a_directory_or_a_pattern(rows: list[Row], tmp_path: Path) -> None:
    write_parquet(rows[:2], tmp_path / "p" / "test-0.parquet")
    second = write_parquet(rows[2:], tmp_path / "p" / "test-1.parquet")
    assert_same(ParquetDataset(path=second).open(), rows[2:])
    assert_same(ParquetDataset(path=str(tmp_path / "p")).open(), rows)
    assert_same(ParquetDataset(path=str(tmp_path / "p" / "test-*.parquet")).open(), rows)


def test_a_rewritten_parquet_file_is_not_read_from_the_cache(rows: list[Row], tmp_path: Path) -> None:
    path = write_parquet(rows[:1], tmp_path / "f.parquet")
    assert_same(ParquetDataset(path=path).open(), rows[:1])
    write_parquet(rows[1:], tmp_path / "f.parquet")
    assert_same(ParquetDataset(path=path).open(), rows[1:])


def test_paths_without_parquet_say_so(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("no parquet")
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "no.parquet", "file not found"),
        (tmp_path / "text.parquet", "is not a parquet file"),
        (tmp_path / "empty", r"contains no \*\.parquet file"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            ParquetDataset(path=str(path)).open()
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"dataset\.path is empty"):
        ParquetDataset(path="")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instance_id": "a", "prompt": "p"}], "no column 'text'; it has instance_id, prompt"),
        ([{"text": "p"}], "no column 'instance_id'; it has text"),
        ([{"instance_id": 1, "text": "p"}], "column 'instance_id' contains int64; it should contain strings"),
        ([{"instance_id": "a", "text": ["p"]}], "column 'text' contains list"),
        ([{"instance_id": "a", "text": "p"}] * 2, "row 1: instance_id 'a' is already used in row 0"),
        ([{"instance_id": "a", "text": "p"}, {"instance_id": None, "text": "p"}], "row 1: instance_id is None"),
        ([{"instance_id": "a", "text": " "}], "no usable prompt; row 0: the prompt is empty"),
        ([{"instance_id": "a", "text": None}], "no usable prompt; row 0: the row has no prompt"),
    ],
)
@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_an_unusable_table_is_one_line(kind: str, rows: list[Row], message: str, tmp_path: Path) -> None:
    dataset: DiskDataset | ParquetDataset
    if kind == "disk":
        dataset = DiskDataset(path=save(rows, tmp_path / "d"))
    else:
        dataset = ParquetDataset(path=write_parquet(rows, tmp_path / "f.parquet"))
    with pytest.raises(DataError, match=message):
        dataset.open()


def test_an_empty_table_is_refused(tmp_path: Path) -> None:
    table = pa.table({"instance_id": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    with pytest.raises(DataError, match="has no rows"):
        ArrowRows(datasets.Dataset(table), "text", "empty")


def test_null_and_blank_prompts_cost_their_rows_only(rows: list[Row], tmp_path: Path) -> None:
    spoilt = [rows[0], {**rows[1], "text": None}, {**rows[2], "text": "\n"}]
    opened = DiskDataset(path=save(spoilt, tmp_path / "d")).open()
    faults = [opened.fault(index) for index in range(3)]
    assert [fault and fault.reason for fault in faults] == [None, "MissingPrompt", "BlankPrompt"]
    assert opened.characters(1) == 0


def test_tokens_of_an_unknown_tokenizer_are_never_read(rows: list[Row], tmp_path: Path) -> None:
    tokenized = [{**row, "input_ids": [1, 2, 3], "labels": [4]} for row in rows]
    assert_same(DiskDataset(path=save(tokenized, tmp_path / "d")).open(), rows)


def test_large_strings_are_read(rows: list[Row], tmp_path: Path) -> None:
    schema = pa.schema([("instance_id", pa.large_string()), ("text", pa.large_string())])
    plain = [{k: row[k] for k in ("instance_id", "text")} for row in rows]
    pq.write_table(pa.Table.from_pylist(plain, schema=schema), tmp_path / "f.parquet")
    assert_same(ParquetDataset(path=str(tmp_path / "f.parquet")).open(), plain)


@pytest.mark.parametrize("values", ["string", "large_string"])
def test_categories_and_every_kind_of_string_are_read_as_plain_strings(
    values: str, rows: list[Row], tmp_path: Path
) -> None:
    spoilt = [*rows, {"instance_id": "d", "text": None, "repo": None, "patch": None}]
    columns = {name: [row[name] for row in spoilt] for name in ("instance_id", "text", "repo")}
    table = pa.table({name: pa.array(column, values).dictionary_encode() for name, column in columns.items()})
    table = table.append_column("patch", pa.array([row["patch"] for row in spoilt], pa.string_view()))
    pq.write_table(table, tmp_path / "f.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "d")
    for opened in (
        ArrowRows(datasets.Dataset(table), "text", "table"),
        ParquetDataset(path=str(tmp_path / "f.parquet")).open(),
        DiskDataset(path=str(tmp_path / "d")).open(),
    ):
        assert [opened.row(index) for index in range(3)] == rows
        assert opened.row(3) == {"instance_id": "d"}
        assert [opened.characters(index) for index in range(4)] == [*(len(row["text"]) for row in rows), 0]
        assert opened[2].prompt.text == rows[2]["text"]


def test_what_pandas_writes_is_read(rows: list[Row], tmp_path: Path) -> None:
    frame = pd.DataFrame(rows).astype({"text": "category", "repo": "category"})
    frame.to_parquet(tmp_path / "columns.parquet")
    frame.set_index("instance_id").to_parquet(tmp_path / "index.parquet")
    for name in ("columns", "index"):
        assert_same(ParquetDataset(path=str(tmp_path / f"{name}.parquet")).open(), rows)


def test_the_real_instances_are_the_same_in_each_format(real_path: Path, tmp_path: Path) -> None:
    jsonl = JsonlDataset(path=str(real_path)).open()
    table = datasets.Dataset.from_json(str(real_path))
    assert isinstance(table, datasets.Dataset)
    table.save_to_disk(tmp_path / "d")
    table.to_parquet(str(tmp_path / "f.parquet"))
    for opened in (
        DiskDataset(path=str(tmp_path / "d")).open(),
        ParquetDataset(path=str(tmp_path / "f.parquet")).open(),
    ):
        assert list(opened.ids) == list(jsonl.ids)
        assert all(opened[i].prompt == jsonl[i].prompt for i in range(len(jsonl)))
        assert all(opened.characters(i) == jsonl.characters(i) for i in range(len(jsonl)))
