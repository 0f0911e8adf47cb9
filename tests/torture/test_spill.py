"""Records that their run directory did not take: kept elsewhere, taken in once, and from nobody else."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.spill import Spill, spilled_lines
from swe_infer.store import RunStore, read_records, record_of
from swe_infer.types import Completion, PatchResult, Usage


def record(name: str) -> dict[str, Any]:
    answer = Completion("answer", "stop", Usage(output_tokens=1), Decimal("0.5"), latency_s=0.1)
    return record_of((name, 0), answer, PatchResult("", "none"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def names(directory: Path) -> list[str]:
    return [r["instance_id"] for r in read_records(directory / "records.jsonl")]


def test_what_was_spilled_is_taken_in_by_the_next_opener_once(tmp_path: Path, home: Path) -> None:
    kept, twice = record("kept"), record("twice")
    with RunStore(tmp_path / "run", "model") as store:
        store.append(twice)
        for each in (kept, twice):
            assert store.spill(each) is not None
    assert len(list(home.iterdir())) == 1
    with RunStore(tmp_path / "run", "model") as store:
        assert store.totals.count("completed") == 2
        assert store.totals.cost_usd == 1
    assert names(tmp_path / "run") == ["twice", "kept"]
    assert list(home.iterdir()) == []
    predictions = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["instance_id"] for line in predictions] == ["twice", "kept"]


def test_what_was_spilled_and_then_appended_leaves_no_file(tmp_path: Path, home: Path) -> None:
    with RunStore(tmp_path / "run", "model") as store:
        store.spill(record("a"))
        store.forget_spilled()
    assert list(home.iterdir()) == []


def test_a_torn_last_line_of_a_spill_costs_itself_alone(tmp_path: Path, home: Path) -> None:
    with RunStore(tmp_path / "run", "model") as store:
        path = store.spill(record("whole"))
    assert path is not None
    with path.open("ab") as file:
        file.write(b'{"instance_id": "torn", "sam')
    RunStore(tmp_path / "run", "model").close()
    assert names(tmp_path / "run") == ["whole"]


def test_a_spill_is_readable_by_its_owner_alone_and_belongs_to_one_run(tmp_path: Path, home: Path) -> None:
    with RunStore(tmp_path / "a", "model") as store:
        path = store.spill(record("a"))
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    RunStore(tmp_path / "b", "model").close()
    assert names(tmp_path / "b") == []
    assert path.exists()


def test_files_of_other_users_and_links_are_left_alone(tmp_path: Path, home: Path) -> None:
    with RunStore(tmp_path / "run", "model") as store:
        path = store.spill(record("foreign"))
    assert path is not None
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert spilled_lines(tmp_path / "run") == {}
    if os.geteuid() == 0:
        path.unlink()
        elsewhere.rename(path)
        os.chown(path, 12345, 12345)
        assert spilled_lines(tmp_path / "run") == {}
        RunStore(tmp_path / "run", "model").close()
        assert names(tmp_path / "run") == []


def test_the_next_place_is_tried_where_one_takes_nothing(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    spill = Spill(tmp_path / "run", [tmp_path / "missing", Path("/proc"), good])
    path = spill.add(b"{}\n")
    assert path is not None
    assert path.parent == good
    assert Spill(tmp_path / "run", [tmp_path / "missing"]).add(b"{}\n") is None
