"""Published rows: their columns, their files, and rows without a prompt, in every format."""

from __future__ import annotations

import datetime
import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.data.base import Rows, make_instance
from swe_infer.data.disk import DiskDataset
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.parquet import ParquetDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.errors import DataError
from swe_infer.instance_files import files_of
from swe_infer.prompt_format import shown_files
from tests.support.steps import calls_of

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

Row = dict[str, Any]

RAW: list[Row] = [
    {"instance_id": "a__a-1", "repo": "a/a", "problem_statement": "Über 😀", "hints_text": ""},
    {"instance_id": "b__b-2", "repo": None, "problem_statement": None, "hints_text": "h"},
]
FILES = {"a.py": "x = 1\r\n", "docs/é.txt": ""}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[None]:
    """Gives each test its own cache of converted parquet files."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    yield
    datasets.config.HF_DATASETS_CACHE = before


def every_format(rows: list[Row], folder: Path, **options: Any) -> dict[str, Rows]:
    (folder / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = datasets.Dataset.from_json(str(folder / "f.jsonl"))
    assert isinstance(table, datasets.Dataset)
    table.save_to_disk(folder / "d")
    table.to_parquet(str(folder / "f.parquet"))
    return {
        "jsonl": JsonlDataset(path=str(folder / "f.jsonl"), **options).open(),
        "disk": DiskDataset(path=str(folder / "d"), **options).open(),
        "parquet": ParquetDataset(path=str(folder / "f.parquet"), **options).open(),
    }


def test_rows_without_prompts_are_opened_and_their_columns_read(tmp_path: Path) -> None:
    for name, rows in every_format(RAW, tmp_path, text_column=None).items():
        assert list(rows.ids) == ["a__a-1", "b__b-2"], name
        assert [rows.fault(index) for index in range(2)] == [None, None]
        assert [rows.characters(index) for index in range(2)] == [6, 0]
        assert rows.row(0) == RAW[0]
        assert rows.row(1) == {"instance_id": "b__b-2", "hints_text": "h"}
        with pytest.raises(DataError, match=r"^a__a-1: the row has no prompt \(dataset\.text_column is null"):
            rows[0]
        with pytest.raises(DataError, match=r"no column 'text'; it has .* null: the rows have no prompts"):
            every_format(RAW, tmp_path)


def test_rows_that_hold_no_problem_statement_either_have_no_length(tmp_path: Path) -> None:
    for rows in every_format([{"instance_id": "a", "n": 1}], tmp_path, text_column=None).values():
        assert rows.characters(0) == 0
        assert rows.row(0) == {"instance_id": "a", "n": 1}


def test_a_row_is_what_its_instance_is_made_of(rows: list[Row], tmp_path: Path) -> None:
    spoilt = [*rows, {"instance_id": "d", "text": " ", "input_ids": [1], "labels": [2]}]
    for opened in every_format(spoilt, tmp_path).values():
        assert opened.row(0) == rows[0]
        assert opened[0] == make_instance(opened.row(0), "text")
        assert opened.row(3) == {"instance_id": "d", "text": " "}  # a row with a fault can be read


def test_times_and_nested_lists_stay_as_they_are(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4)
    row = {"instance_id": "a", "created_at": when, "tests": [["t"], []], "assets": {"images": ["i"]}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "f.parquet")
    assert ParquetDataset(path=str(tmp_path / "f.parquet"), text_column=None).open().row(0) == row


PAIRS = [*FILES.items()]
STRUCTS = [{"path": path, "content": content} for path, content in PAIRS]


@pytest.mark.parametrize(
    "value",
    [
        FILES,
        {**FILES, "other.py": None},
        json.dumps(FILES),
        json.dumps(STRUCTS),
        STRUCTS,
        [*STRUCTS, {"path": "other.py", "content": None}],
        {"path": list(FILES), "content": list(FILES.values())},
        PAIRS,
        [{"path": path.encode(), "content": content.encode()} for path, content in PAIRS],
    ],
)
def test_files_are_read_from_each_shape_that_they_come_in(value: object) -> None:
    assert files_of({"files": value}) == FILES


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        "a.py",
        '{"a.py": ',
        "[" * 100_000,
        ["a.py", "ab"],
        {"a.py": 3},
        {"a.py": ["x"]},
        {"": "x"},
        {"a\0.py": "x"},
        {"a" * 5000: "x"},
        {"a.py": "half \ud83d pair"},
        [{"path": "a.py"}],
        [["a.py", "x", "y"]],
        [["a.py", "x"], ["a.py", "y"]],
        {"path": ["a.py"], "content": []},
        [[f"{number}.py", ""] for number in range(10_001)],
    ],
)
def test_a_files_column_with_other_content_is_ignored(value: object) -> None:
    assert files_of({"files": value}) is None
    text = "system\n[start of a.py]\n1 x\n[end of a.py]\n"
    assert make_instance({"instance_id": "a", "text": text, "files": value}, "text").files == {"a.py": "x"}


def test_bytes_that_are_no_utf_8_are_kept() -> None:
    content = b"caf\xe9\r\n"
    files = files_of({"files": [{"path": "a.py", "content": content}]})
    assert files is not None
    assert files["a.py"].encode("utf-8", "surrogateescape") == content
    assert files_of(json.loads(json.dumps({"files": files}))) == files


def test_a_row_s_own_files_come_before_those_that_its_prompt_shows(tmp_path: Path) -> None:
    sample = SampleDataset().open()
    rows: list[Row] = [{**sample.row(index), "files": FILES if index else {}} for index in range(3)]
    for name, opened in every_format(rows, tmp_path).items():
        assert [dict(opened[index].files) for index in range(3)] == [{}, FILES, FILES], name


def test_files_survive_as_a_list_in_a_table(tmp_path: Path) -> None:
    row = {"instance_id": "a", "text": "p", "files": STRUCTS}
    for opened in every_format([row, {"instance_id": "b", "text": "p", "files": []}], tmp_path).values():
        assert opened[0].files == FILES
        assert opened[1].files == {}


def test_without_a_column_of_files_the_prompt_is_parsed_when_a_file_is_asked_for(
    write_jsonl: Callable[[Sequence[Row]], Path],
) -> None:
    text = "system\n[start of a.py]\n1 x\n[end of a.py]\n"
    opened = JsonlDataset(path=str(write_jsonl([{"instance_id": "a", "text": text}]))).open()
    assert calls_of(shown_files.__code__, lambda: opened[0]) == 0
    files = opened[0].files
    assert files == {"a.py": "x"}
    assert pickle.loads(pickle.dumps(files)) == {"a.py": "x"}
    assert opened[0] == opened[0]
