"""The fallback for records: reserve, state directory, and recovery by the next process of the same user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.run_directory.fallback import Fallback, fallback_lines
from swe_infer.run_directory.layout import RESERVE
from swe_infer.run_directory.records import Record, read_records
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, Usage

LONG = 9 << 20
"""Bytes; more than the reserve."""


def record(name: str, length: int = 10) -> Record:
    answer = Completion("x" * length, "stop", Usage(output_tokens=1), Decimal("0.5"), latency_s=0.1)
    return record_of((name, 0), answer, PatchResult("", "none"))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "swe_infer"


def names(directory: Path) -> list[str]:
    return [r["instance_id"] for r in read_records(directory / "records.jsonl")]


def test_space_is_reserved_while_a_run_is_open_and_freed_afterwards(tmp_path: Path) -> None:
    with RunStore(tmp_path / "run", "model"):
        held = (tmp_path / "run" / RESERVE).stat()
        assert held.st_size >= 1 << 14
        assert held.st_blocks * 512 >= held.st_size, "the blocks are allocated"
    assert not (tmp_path / "run" / RESERVE).exists()


@pytest.mark.parametrize("length", [10, LONG], ids=["reserve", "state directory"])
def test_fallback_records_are_appended_once_by_the_next_process(tmp_path: Path, state: Path, length: int) -> None:
    kept, twice = record("kept", length), record("twice", length)
    with RunStore(tmp_path / "run", "model") as store:
        store.append(twice)
        paths = [store.append_to_fallback(each) for each in (kept, twice)]
    place = tmp_path / "run" if length == 10 else state
    assert {path.parent for path in paths if path} == {place}
    with RunStore(tmp_path / "run", "model") as store:
        assert store.totals.count("completed") == 2
        assert store.totals.cost_usd == 1
    assert names(tmp_path / "run") == ["twice", "kept"]
    assert not any(path.exists() for path in paths if path)
    predictions = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["instance_id"] for line in predictions] == ["twice", "kept"]


def test_removing_the_fallback_leaves_no_file(tmp_path: Path, state: Path) -> None:
    with RunStore(tmp_path / "run", "model") as store:
        for length in (10, LONG):
            store.append_to_fallback(record("a", length))
        store.remove_fallback()
        assert store.append_to_fallback(record("b")) == tmp_path / "run" / RESERVE, "space is reserved again"
        store.remove_fallback()
    assert list(state.iterdir()) == []
    assert not (tmp_path / "run" / RESERVE).exists()


@pytest.mark.parametrize("length", [10, LONG], ids=["reserve", "state directory"])
def test_a_kill_within_a_line_loses_that_line_only(tmp_path: Path, state: Path, length: int) -> None:
    code = textwrap.dedent("""
        import os, sys
        from pathlib import Path
        from swe_infer.run_directory.store import RunStore
        from tests.run_directory.test_fallback import record
        store = RunStore(Path(sys.argv[1]), "model")
        path = store.append_to_fallback(record("whole", int(sys.argv[2])))
        with path.open("r+b") as file:
            file.seek(len(file.read().rstrip(b"\\0")))
            file.write(b'{"instance_id": "torn", "sam')
        os._exit(9)
    """)
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run"), str(length)], check=False)
    assert process.returncode == 9
    RunStore(tmp_path / "run", "model").close()
    assert names(tmp_path / "run") == ["whole"]


def test_a_file_in_the_state_directory_is_private_and_belongs_to_one_run(tmp_path: Path, state: Path) -> None:
    with RunStore(tmp_path / "a", "model") as store:
        path = store.append_to_fallback(record("a", LONG))
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    RunStore(tmp_path / "b", "model").close()
    assert names(tmp_path / "b") == []
    assert path.exists()


def test_files_of_other_users_and_links_are_ignored(tmp_path: Path, state: Path) -> None:
    with RunStore(tmp_path / "run", "model") as store:
        path = store.append_to_fallback(record("foreign", LONG))
    assert path is not None
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert fallback_lines(tmp_path / "run") == {}
    if os.geteuid() == 0:
        path.unlink()
        elsewhere.rename(path)
        os.chown(path, 12345, 12345)
        assert fallback_lines(tmp_path / "run") == {}
        RunStore(tmp_path / "run", "model").close()
        assert names(tmp_path / "run") == []


def test_append_returns_none_if_no_file_is_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/proc")
    fallback = Fallback(tmp_path)
    assert fallback.append(b"{}\n") == tmp_path / RESERVE
    assert fallback.append(b" " * LONG) is None
    assert fallback.files == [tmp_path / RESERVE]
    fallback.close()
