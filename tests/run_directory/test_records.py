"""Reading a damaged ``records.jsonl``: no whole record is lost, no cost disappears, and all readers agree."""

from __future__ import annotations

import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.cli.tables import print_summary
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_run, read_texts
from swe_infer.evaluate.evaluable import open_run
from swe_infer.run_directory.records import Damage, read_records
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.metrics import Predictions
from swe_infer.types import Completion, Failure, PatchResult, Usage

TEXT = 'the "answer" \\ {"instance_id": "x", "sample": 0, "cost_usd": 7.5, "latency_s": 1, é\ud800\n'


def line(name: str, cost: str = "0.0016", *, sample: int = 0, text: str = TEXT, **changes: Any) -> bytes:
    answer = Completion(text, "stop", Usage(100, 40, 0, 10), Decimal(cost), latency_s=0.5)
    record = record_of((name, sample), answer, PatchResult(f"patch of {name}", "applies"))
    return json.dumps({**record, **changes}, default=float).encode() + b"\n"


def read(path: Path, content: bytes) -> tuple[list[str], Damage]:
    path.write_bytes(content)
    damage = Damage()
    return [record["instance_id"] for record in read_records(path, damage)], damage


def cut(data: bytes, after: bytes) -> bytes:
    return data[: data.index(after) + len(after)]


A, B, C = line("a", "0.001"), line("b", "0.002"), line("c", "0.004")
BEFORE_COST, BEHIND_COST, BEHIND_LATENCY = (
    cut(A, mark) for mark in (b'"usage": ', b'"latency_s": ', b'"attempts": ')
)
PAID, NOTHING = Decimal("0.001"), Decimal(0)


@pytest.mark.parametrize(
    ("content", "names", "unreadable", "cost"),
    [
        (A + B, "ab", 0, NOTHING),
        (A.rstrip() + b"\r\n\r\n" + B.rstrip() + b"\r", "ab", 0, NOTHING),
        (b"\xef\xbb\xbf" + A + B, "ab", 0, NOTHING),
        (A.rstrip() + B, "ab", 0, NOTHING),
        (A.replace(b"\n", b"\r") + B, "ab", 0, NOTHING),
        (A + b"\0" * 5000 + B.rstrip() + b"\0\n", "ab", 0, NOTHING),
        (A.rstrip() + b"\0\0" + B, "ab", 0, NOTHING),
        (A + b"\0" * 5000 + b"\n" + B, "ab", 1, NOTHING),
        (BEFORE_COST + B + C, "bc", 1, NOTHING),
        (BEFORE_COST + b"\n" + B, "b", 1, NOTHING),
        (cut(A, b"answer") + B, "b", 1, NOTHING),
        (cut(A, b"\\") + B, "b", 1, NOTHING),
        (BEHIND_COST + B, "b", 1, PAID),
        (BEHIND_LATENCY + b"\0\0" + B, "b", 1, PAID),
        (cut(A, b'"cost_usd": 0.00') + B, "b", 1, NOTHING),
        (b"\0" * 30 + A[30:] + B, "b", 1, PAID),
        (A[30:] + B, "b", 1, PAID),
        (BEHIND_LATENCY + C[40:] + B, "b", 1, PAID + Decimal("0.004")),
        (BEHIND_LATENCY + cut(C, b'"attempts": ') + B, "b", 2, PAID + Decimal("0.004")),
        (A.replace(b"answer", b"ans\xffer") + B, "b", 1, PAID),
        (A.replace(b"answer", b"ans\0er") + B, "b", 1, PAID),
        (line("a", "0.001", status="done") + B, "b", 1, PAID),
        (line("a", "0.001", usage={"input_tokens": -5}) + B, "b", 1, PAID),
        (line("a", cost_usd=-0.5) + line("a", cost_usd="0.5") + line("a", cost_usd=1e300) + B, "b", 3, NOTHING),
        (line("a", cost_usd=float("nan")) + A.replace(b"cost_usd", b"cst_usd") + B, "b", 2, NOTHING),
        (A.replace(b"model_patch", b"mopatch") + B, "b", 1, PAID),
        # What is there twice was paid for once.
        (A + B + A, "ab", 0, NOTHING),
        (BEHIND_LATENCY + b"\n" + A + B, "ab", 0, NOTHING),
        (A + B + A[100:], "ab", 0, NOTHING),
        (BEHIND_LATENCY + B + BEHIND_LATENCY + b"\n", "b", 1, PAID),
        # The same answer at the same price, at another time: paid for again.
        (BEHIND_LATENCY + b"\n" + line("a", "0.001", latency_s=0.75), "a", 1, PAID),
    ],
)
def test_what_can_be_read_is_read_and_what_cannot_is_counted(
    content: bytes, names: str, unreadable: int, cost: Decimal, tmp_path: Path
) -> None:
    found, damage = read(tmp_path / "records.jsonl", content)
    assert "".join(found) == names
    assert (damage.unreadable, damage.cost_usd) == (unreadable, cost)


def test_an_unknown_price_stays_unknown(tmp_path: Path) -> None:
    _, damage = read(tmp_path / "records.jsonl", cut(line("a", cost_usd=None), b'"attempts"') + b"\n" + B)
    assert damage.cost_usd is None


operations = st.tuples(
    st.sampled_from(["cut", "nul", "join", "copy", "noise"]),
    st.integers(0, 30_000),
    st.integers(1, 400),
    st.binary(max_size=30),
)


@given(st.lists(operations, max_size=6), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_damage_loses_no_other_record_and_lowers_no_cost(
    tmp_path_factory: pytest.TempPathFactory, damages: list[tuple[str, int, int, bytes]], names: list[int]
) -> None:
    whole = [line(f"i{name}", f"0.00{number + 1}", time=number) for number, name in enumerate(names)]
    content = b"".join(whole)
    for kind, place, size, noise in damages:
        at = place % (len(content) + 1)
        end = content.find(b"\n", at) + 1 or len(content)
        if kind == "cut":
            content = content[:at] + content[at + size :]
        elif kind == "nul":
            content = content[:at] + b"\0" * size + content[at + size :]
        elif kind == "join":
            content = content[: end - 1] + content[end:]
        elif kind == "copy":
            content = content[:end] + content[at : at + 4 * size] + content[end:]
        else:
            content = content[:at] + noise + content[at:]
    kept = [one for one in whole if one.rstrip() in content]
    directory = tmp_path_factory.mktemp("run")
    path = directory / "records.jsonl"
    path.write_bytes(content)
    damage = Damage()
    found = list(read_records(path, damage))
    times = {record.get("time") for record in found}
    assert {json.loads(one)["time"] for one in kept} <= times
    undamaged = sum(Decimal(str(json.loads(one)["cost_usd"])) for one in kept)
    assert damage.cost_usd is not None
    costs = [damage.cost_usd, *(Decimal(record["cost_usd"] or 0) for record in found)]
    with RunStore(directory, "model") as store:
        total, before = store.totals.cost_usd, store.totals.summary()
    assert total is not None
    assert total == sum(costs) >= undamaged
    with RunStore(directory, "model") as store:
        assert store.totals.summary() == before
    one = compare([load_run(directory)]).runs[0]
    assert (one.cost_usd, one.usage, one.run.unreadable) == (total, store.totals.usage, store.totals.unreadable)


def test_every_reader_takes_the_same_one_of_several_records(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        for cost, patch in (("0.1", "first"), ("0.2", "second")):
            store.append(
                record_of(
                    ("a", 0), Completion("", "stop", Usage(), Decimal(cost), 1.0), PatchResult(patch, "applies")
                )
            )
        store.append(
            record_of(("b", 0), Completion("", "stop", Usage(), Decimal(0), 1.0), PatchResult("b", "applies"))
        )
        store.append(record_of(("a", 0), Failure("Overloaded", "no", cost_usd=Decimal("0.3")), None))
        store.check()
        live = store.totals.summary()
        predictions = (tmp_path / "predictions.jsonl").read_text()
    with RunStore(tmp_path, "model") as store:
        assert store.totals.summary() == live
    assert (live["completed"], live["failed"], live["cost_usd"]) == (2, 0, Decimal("0.6"))
    assert (tmp_path / "predictions.jsonl").read_text() == predictions
    assert sorted(json.loads(one)["model_patch"] for one in predictions.splitlines()) == ["b", "second"]
    run = load_run(tmp_path)
    assert (run.results["a", 0].status, run.results["a", 0].cost_usd) == ("completed", Decimal("0.6"))
    assert read_texts(run)["a", 0].patch == "second"
    assert open_run(tmp_path).patches["a", 0] == "second"
    rows = Predictions(tmp_path)
    rows.read_new()
    assert [row[-1] for row in rows.rows(9)] == ["second", "b"]


def test_the_cost_that_was_shown_never_falls_and_its_damage_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(A + BEFORE_COST + B + line("d", "0.3"))
    (tmp_path / "summary.json").write_text(json.dumps({"cost_usd": 0.3047}))
    before = path.read_bytes()
    with caplog.at_level(logging.WARNING), RunStore(tmp_path, "model") as store:
        totals = store.totals
    assert len(caplog.messages) == 1
    assert "unreadable records: 1" in caplog.text
    assert "$0.001700" in caplog.text
    assert (totals.cost_usd, totals.unreadable_usd) == (Decimal("0.3047"), Decimal("0.0017"))
    assert path.read_bytes() == before, "nothing is taken out of the file"
    one = compare([load_run(tmp_path)]).runs[0]
    assert one.cost_usd == totals.cost_usd
    print_summary(totals.summary(instances=4, samples=1, wall_s=1.0), tmp_path, None)
    assert "unreadable 1 records; $0.001700 of the cost" in capsys.readouterr().err


def test_a_torn_last_line_that_says_what_it_cost_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(B + BEHIND_COST)
    for _ in range(2):
        with RunStore(tmp_path, "model") as store:
            assert (store.totals.cost_usd, store.totals.unreadable) == (Decimal("0.003"), 1)
    with RunStore(tmp_path, "model") as store:
        store.append(
            record_of(("a", 0), Completion("", "stop", Usage(), Decimal("0.001"), 1.0), PatchResult("", "none"))
        )
        assert store.totals.cost_usd == Decimal("0.004")
    assert [record["instance_id"] for record in read_records(path)] == ["b", "a"]
