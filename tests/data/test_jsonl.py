"""JSON lines and arrays: tolerated variants, invalid rows, unusable files, memory."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.data.jsonl import JsonlDataset, JsonlRows, _ArrayReader
from swe_infer.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
WriteJsonl = Callable[[Sequence[Row]], Path]


def good(identity: str, text: object = "a prompt") -> bytes:
    return json.dumps({"instance_id": identity, "text": text}).encode()


def open_bytes(tmp_path: Path, content: bytes, **options: Any) -> Any:
    path = tmp_path / "file.jsonl"
    path.write_bytes(content)
    return JsonlDataset(path=str(path), **options).open()


def test_rows_are_read_back_with_their_prompt_split_and_their_other_columns(
    rows: list[Row], write_jsonl: WriteJsonl
) -> None:
    opened = JsonlDataset(path=str(write_jsonl(rows))).open()

    assert list(opened.ids) == ["a__a-1", "b__b-2", "c__c-3"]
    first = opened[0]
    assert first.instance_id == "a__a-1"
    assert first.prompt.system == "You fix bugs."
    assert first.prompt.text == rows[0]["text"]
    assert first.metadata == {"repo": "a/a", "patch": "p1"}
    assert opened.characters(0) == len(rows[0]["text"])


def test_a_one_line_prompt_has_no_system_part(rows: list[Row], write_jsonl: WriteJsonl) -> None:
    prompt = JsonlDataset(path=str(write_jsonl(rows))).open()[1].prompt
    assert (prompt.system, prompt.user) == (None, "one line only")


def test_bom_crlf_blank_lines_and_a_missing_final_newline_are_tolerated(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + good("a") + b"\r\n\r\n  \t\n" + good("b") + b"\r\n\n" + good("c", "x" * 3_000_000)
    opened = open_bytes(tmp_path, content)
    assert [opened[i].instance_id for i in range(len(opened))] == ["a", "b", "c"]
    assert opened.characters(2) == 3_000_000


def test_another_column_can_contain_the_prompt(tmp_path: Path) -> None:
    line = json.dumps({"instance_id": "a", "prompt": "p", "text": "other"}).encode()
    instance = open_bytes(tmp_path, line, text_column="prompt")[0]
    assert instance.prompt.text == "p"
    assert instance.metadata == {"text": "other"}


def test_tokens_of_an_unknown_tokenizer_are_never_read(tmp_path: Path) -> None:
    row = {"instance_id": "a", "text": "p", "input_ids": [1, 2], "labels": [3], "repo": "r"}
    assert open_bytes(tmp_path, json.dumps(row).encode())[0].metadata == {"repo": "r"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'""', "BlankPrompt"),
        (b'" \\n\\t "', "BlankPrompt"),
        (b"null", "MissingPrompt"),
        (b"17", "InvalidPrompt"),
        (b'["p"]', "InvalidPrompt"),
        (b'"half \\ud83d pair"', "InvalidPrompt"),
    ],
)
def test_a_row_without_a_usable_prompt_costs_that_row_only(tmp_path: Path, text: bytes, reason: str) -> None:
    content = good("a") + b'\n{"instance_id": "b", "text": ' + text + b"}\n" + good("c")
    opened = open_bytes(tmp_path, content)
    fault = opened.fault(1)
    assert fault is not None
    assert fault.reason == reason
    assert opened.fault(0) is None
    assert opened.fault(2) is None
    assert opened[2].instance_id == "c"
    with pytest.raises(DataError, match=r"^b: "):
        opened[1]


@pytest.mark.parametrize(
    "value",
    [
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"-0.0",
        b"1.00000000000000011102230246251565404236316680908203125",
        b"9" * 400,
        b'{"k": 1, "l": 2, "k": 3}',
        b'"\\ud83d \\ud83d\\ude00 \xc3\xa9 \\u0000"',
        b"[" * 500 + b"]" * 500,
    ],
)
def test_a_value_is_what_pythons_json_makes_of_it(tmp_path: Path, value: bytes) -> None:
    line = good("a")[:-1] + b', "value": ' + value + b"}"
    assert repr(open_bytes(tmp_path, line)[0].metadata["value"]) == repr(json.loads(value))


def test_a_row_without_the_prompt_column_costs_that_row_only(tmp_path: Path) -> None:
    fault = open_bytes(tmp_path, good("a") + b'\n{"instance_id": "b"}').fault(1)
    assert fault is not None
    assert fault.reason == "MissingPrompt"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"\n \r\n", "has no rows"),
        (good("a") + b"\n" + b'{"instance_id": "b", "te', r"line 2, column 22: not a complete JSON object"),
        (good("a") + b"\n\n" + good("b")[:-1] + b"\n" + good("c"), r"line 3, column 41: not a complete JSON object"),
        (good("a") + b"\n[" + good("b") + b"]", r"line 2 is a JSON array; it should be one JSON object"),
        (b"3", r"line 1 is a JSON value of type int"),
        (good("a") + b"\n" + good("b", "caf\xe9").replace(b"caf\\u00e9", b"caf\xe9"), r"line 2, byte 34: not UTF-8"),
        (b"[]", "has no rows"),
        (b"[", r"row 1, character 1: not a complete JSON object \(Expecting value\)"),
        (b"[ 3, " + good("a") + b"]", "row 1 is a JSON value of type int"),
        (b"[" + good("a") + b",\n" + b'{"instance_id": "b", "te', r"row 2, character 22: not a complete JSON object"),
        (b"[" + good("a") + b",]", r"row 2, character 1: not a complete JSON object"),
        (b"[" + good("a") + good("b") + b"]", r"row 1 is followed by '{'; it should be a comma or the end"),
        (b"[" + good("a"), r"row 1 is followed by the end of the file"),
        (b"[" + good("a") + b"]\n" + good("b"), r"the array is followed by '{'"),
        (b"[" + good("a") + b"," + good("b")[:-2] + b'\xe9"}]', r"row 2, character 39: not UTF-8"),
        (b"[" + good("a") + b'\n, {"text": "p"}]', r"row 2 has no column 'instance_id'; it has text"),
        (b"[" + good("a") + b"," + good("a") + b"]", r"row 2: instance_id 'a' is already used in row 1"),
        (gzip.compress(good("a"), mtime=0)[:-9], "cannot be unpacked as gzip: Compressed file ended"),
        (gzip.compress(good("a"), mtime=0)[:-5] + b"12345", "cannot be unpacked as gzip: CRC check failed"),
        (gzip.compress(good("a"), mtime=0) + b"rubbish", "cannot be unpacked as gzip: Not a gzipped file"),
        (gzip.compress(b"", mtime=0), "has no rows"),
        (gzip.compress(good("a") + b"\n{", mtime=0), "line 2, column 2: not a complete JSON object"),
        (gzip.compress(gzip.compress(good("a"), mtime=0), mtime=0), "compressed with gzip twice"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed with zstd: unpack it first"),
        (b"PAR1\x15", "a parquet file: choose dataset=parquet"),
        (good("a") + b'\n{"text": "p", "repo": "r"}', r"line 2 has no column 'instance_id'; it has text, repo"),
        (b'{"instance_id": 7, "text": "p"}', r"line 1: instance_id is 7; it should be a string"),
        (b'{"instance_id": " ", "text": "p"}', r"line 1: instance_id is \" \""),
        (b'{"instance_id": null, "text": "p"}', r"line 1: instance_id is null"),
        (b'{"instance_id": "a\\ud800", "text": "p"}', r"line 1: instance_id is .a.ud800.; it should be a string"),
        (good("a") + b"\n" + good("b") + b"\n\n" + good("a"), r"line 4: instance_id 'a' is already used in line 1"),
        (b'{"instance_id": "a", "prompt": "p", "repo": "r"}', r"no column 'text'; it has instance_id, prompt, repo"),
        (good("a", "") + b"\n" + good("b", None), r"no usable prompt; line 1: the prompt is empty"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "row 1: an integer has too many digits"),
        (b'{"instance_id": "a", "text": ' + b"1" * 5000 + b"}", "line 1: an integer has too many digits"),
    ],
)
def test_an_unusable_file_is_one_line_that_names_the_location(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        open_bytes(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "file.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere.jsonl", "file not found"), (".", "is a directory"), ("x.parquet", "choose dataset=parquet")],
)
def test_an_invalid_path_says_what_would_be_right(path: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        JsonlDataset(path=path).open()


def test_home_and_relative_paths_are_expanded(
    rows: list[Row], write_jsonl: WriteJsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(rows)
    monkeypatch.setenv("HOME", str(path.parent))
    monkeypatch.chdir(path.parent)
    assert len(JsonlDataset(path="~/rows.jsonl").open()) == 3
    assert len(JsonlDataset(path="rows.jsonl").open()) == 3


def test_a_file_that_changes_during_the_run_is_noticed(rows: list[Row], write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(rows)
    opened = JsonlDataset(path=str(path)).open()
    write_jsonl(rows[1:])
    with pytest.raises(DataError, match="changed during the run"):
        opened[1]
    path.write_text("")
    with pytest.raises(DataError, match="changed during the run"):
        opened[0]


def test_a_row_is_read_once_to_measure_and_to_send_its_prompt(rows: list[Row], write_jsonl: WriteJsonl) -> None:
    opened = JsonlDataset(path=str(write_jsonl(rows))).open()
    first = opened[0]
    assert opened[0] is first
    assert opened[1].instance_id != first.instance_id
    assert opened[0] == first


def test_a_file_that_is_replaced_or_deleted_is_read_as_it_was(rows: list[Row], write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(rows)
    opened = JsonlDataset(path=str(path)).open()
    path.rename(path.with_name("old"))
    write_jsonl(rows[1:])
    assert [opened.row(index) for index in range(3)] == rows
    path.with_name("old").unlink()
    assert [opened.row(index) for index in range(3)] == rows


SEVERAL = [good("a", "Über 😀\n"), good("b", '"}]\\'), good("c", "x" * 700_000), good("d")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("members.jsonl.gz", b"".join(gzip.compress(row + b"\r\n\n", mtime=0) for row in SEVERAL)),
        ("marked.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + b"\n".join(SEVERAL), mtime=0)),
        ("unnamed", gzip.compress(b"\n".join(SEVERAL), mtime=0)),
        ("array.json", b"[" + b",".join(SEVERAL) + b"]"),
        ("marked.json", b"\xef\xbb\xbf\r\n [\r\n" + b" ,\r\n\t".join(SEVERAL) + b"\n]\n\n"),
        ("printed.json", json.dumps([json.loads(row) for row in SEVERAL], indent=4, ensure_ascii=False).encode()),
        ("array.json.gz", gzip.compress(b"[" + b",".join(SEVERAL) + b"]", mtime=0)),
    ],
)
def test_gzip_and_arrays_are_read_as_json_lines_are(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = JsonlDataset(path=str(tmp_path / name))
    assert dataset.name == name.partition(".")[0]
    opened = dataset.open()
    rows = [json.loads(row) for row in SEVERAL]
    assert [opened.row(index) for index in range(4)] == rows
    assert [opened.characters(index) for index in range(4)] == [len(row["text"]) for row in rows]


def test_what_pandas_writes_is_read(rows: list[Row], tmp_path: Path) -> None:
    frame = pd.DataFrame([*rows, {"instance_id": "d/d", "text": "</x>\u2028é"}])
    for name, lines in (("rows.json", False), ("rows.jsonl", True), ("rows.jsonl.gz", True)):
        frame.to_json(tmp_path / name, orient="records", lines=lines)
        opened = JsonlDataset(path=str(tmp_path / name)).open()
        assert [opened.row(index) for index in range(4)] == [*rows, {"instance_id": "d/d", "text": "</x>\u2028é"}]


@pytest.mark.parametrize("step", [1, 5, 64])
def test_an_array_may_be_cut_anywhere_between_two_reads(step: int) -> None:
    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(step)

    rows: list[Any] = [
        {"instance_id": "é😀", "n": [-1.5e10, None, True, {}], "text": '\\ud83d\\ude00 "]}\n'},
        {"instance_id": "b", "text": "\udc80"},
    ]
    for ascii_only, part in ((True, rows), (False, rows[:1])):
        content = b"\xef\xbb\xbf " + json.dumps(part, ensure_ascii=ascii_only, indent=1).encode() + b" "
        found = list(_ArrayReader(Pieces(content), "array").rows())
        assert [value for *_, value in found] == part
        assert [json.loads(content[offset : offset + size]) for _, offset, size, _ in found] == part


def test_a_bomb_costs_one_line_and_little_disk(tmp_path: Path) -> None:
    path = tmp_path / "zeros.jsonl.gz"
    path.write_bytes(257 * gzip.compress(bytes(1 << 20), mtime=0))
    with pytest.raises(DataError, match=r"zeros\.jsonl\.gz, line 1: is longer than 256 MiB"):
        JsonlDataset(path=str(path)).open()

    path.write_bytes(gzip.compress(b"\n" * (1 << 21), mtime=0))
    with pytest.raises(DataError, match="contains more than 1,000,000 bytes"):
        JsonlRows(path, most_unpacked=1_000_000)

    code = (
        "import resource, sys\n"
        "from swe_infer.data.jsonl import JsonlDataset; from swe_infer.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: JsonlDataset(path=sys.argv[1]).open()\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} cannot be unpacked: File too large; TMPDIR names the directory that is used\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": ""}, r"dataset\.path"),
        ({"path": "x", "limit": 0}, r"dataset\.limit=0: must be at least 1"),
        ({"path": "x", "max_tokens": 0}, r"dataset\.max_tokens=0"),
        ({"path": "x", "min_tokens": -1}, r"dataset\.min_tokens=-1"),
        ({"path": "x", "min_tokens": 9, "max_tokens": 8}, "no prompt can satisfy both"),
        ({"path": "x", "instance_ids": ()}, r"dataset\.instance_ids is an empty list"),
        ({"path": "x", "text_column": "instance_id"}, r"dataset\.text_column"),
    ],
)
def test_bad_options_are_refused_at_construction(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonlDataset(**options)


def test_prompts_stay_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file, gzip.open(tmp_path / "array.gz", "wt", compresslevel=1) as array:
        for number in range(2_500):
            row = json.dumps({"instance_id": f"i-{number}", "text": "def f(x):\n" * 2_000})
            file.write(row + "\n")
            array.write(f"{',' if number else '['}{row}\n")
        array.write("]")
    code = (
        "import resource, sys; from swe_infer.data.jsonl import JsonlDataset\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in sys.argv[1:]: assert len(JsonlDataset(path=path).open()) == 2_500\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "array.gz")]
    grown = subprocess.run(command, capture_output=True, text=True, check=True)
    assert path.stat().st_size > 50_000_000
    assert int(grown.stdout) * 1024 < 20_000_000


def test_the_real_instances_are_read_whole(real_path: Path) -> None:
    opened = JsonlDataset(path=str(real_path)).open()
    with real_path.open() as file:
        for index, line in enumerate(file):
            row = json.loads(line)
            assert opened[index].instance_id == opened.ids[index] == row["instance_id"]
            assert opened[index].prompt.text == row["text"]
            assert opened.characters(index) == len(row["text"])
            assert opened[index].metadata["base_commit"] == row["base_commit"]
    assert len(opened) == 32


def test_endless_files_are_refused_in_one_line(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a FIFO"), ("zeros", "a device")):
        with pytest.raises(DataError, match=f"{name} is {kind}"):
            JsonlDataset(path=str(tmp_path / name)).open()
    if (memory := Path("/proc/self/mem")).exists():  # a regular file whose start is unreadable
        with pytest.raises(DataError, match="/proc/self/mem cannot be read: Input/output error"):
            JsonlDataset(path=str(memory)).open()
    if not request.config.getoption("full"):
        return  # a packed line is as long in the test of a bomb
    with (tmp_path / "long").open("wb") as file:
        file.write(b'{"instance_id": "a", "text": "x"}\n')
        file.truncate(1 << 29)  # sparse
    with pytest.raises(DataError, match="line 2: is longer than 256 MiB"):
        JsonlDataset(path=str(tmp_path / "long")).open()
