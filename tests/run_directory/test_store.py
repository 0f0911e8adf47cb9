"""The store: no appended record is lost, truncated lines are removed, and one process at a time writes."""

from __future__ import annotations

import json
import os
import resource
import signal
import textwrap
import time
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.errors import StoreError
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, Failure, PatchResult, Skip, Usage
from tests.support import commands

PATCH = PatchResult("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", "applies")


def completion(text: str = "answer", cost: str | None = "0.25") -> Completion:
    usage = Usage(input_tokens=100, cached_input_tokens=40, output_tokens=10)
    return Completion(text, "stop", usage, None if cost is None else Decimal(cost), latency_s=0.5)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_completion_is_a_record_and_a_prediction(tmp_path: Path) -> None:
    with RunStore(tmp_path / "new" / "run", "model") as store:
        store.append(record_of(("a", 0), completion(), PATCH))
        store.append(record_of(("a", 1), completion(), PATCH))
        store.append(record_of(("b", 0), Skip("ContextOverflow", "too long"), None))
        store.append(record_of(("c", 0), Failure("TransientError", "reset", attempts=3), None))
    run = tmp_path / "new" / "run"
    assert [(r["instance_id"], r["sample"], r["status"]) for r in read_records(run / "records.jsonl")] == [
        ("a", 0, "completed"), ("a", 1, "completed"), ("b", 0, "skipped"), ("c", 0, "failed"),
    ]  # fmt: skip
    assert [p["instance_id"] for p in lines(run / "predictions.jsonl")] == ["a"]
    assert [p["instance_id"] for p in lines(run / "predictions.sample1.jsonl")] == ["a"]
    assert lines(run / "predictions.jsonl")[0]["model_patch"] == PATCH.patch


def test_a_summary_that_is_to_be_written_soon_does_not_take_the_place_of_a_later_one(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.write_summary({"completed": 1}, soon=True)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"completed": 1}
    with RunStore(tmp_path, "model") as store:
        for number in range(50):
            store.write_summary({"completed": number}, soon=True)
            store.write_summary({"completed": -number})
            assert store.read_summary() == {"completed": -number}
    assert store.read_summary() == {"completed": -49}


def test_a_failure_leaves_no_prediction_and_is_replaced_by_a_later_success(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), Failure("TransientError", "reset"), None))
        assert lines(tmp_path / "predictions.jsonl") == []
    with RunStore(tmp_path, "model") as store:
        assert store.totals.status(("a", 0)) == "failed"
        store.append(record_of(("a", 0), completion(), PATCH))
        totals = store.totals.summary()
    assert (totals["completed"], totals["failed"]) == (1, 0)
    assert len(lines(tmp_path / "predictions.jsonl")) == 1


def test_money_adds_up_over_failed_tries_and_resumes(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), Failure("TransientError", "cut", cost_usd=Decimal("0.1")), None))
        store.append(record_of(("a", 0), completion(cost="0.2"), PATCH))
        live = store.totals.summary()
    with RunStore(tmp_path, "model") as store:
        assert store.totals.summary() == live
        assert store.totals.cost_usd == Decimal("0.3")


def test_an_unknown_price_makes_the_sum_unknown_not_zero(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), completion(cost="0.2"), PATCH))
        store.append(record_of(("b", 0), completion(cost=None), PATCH))
        assert store.totals.cost_usd is None
    with RunStore(tmp_path, "model") as store:
        assert store.totals.cost_usd is None


@pytest.mark.parametrize("torn", [b'{"instance_id": "b", "sa', b"\x00\x00\x00", b"{}", b'"text"'])
def test_a_torn_last_line_is_cut_off_and_the_run_goes_on(tmp_path: Path, torn: bytes) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), completion(), PATCH))
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(torn)
    with RunStore(tmp_path, "model") as store:
        assert store.totals.count("completed") == 1
        store.append(record_of(("b", 0), completion(), PATCH))
    assert [r["instance_id"] for r in lines(tmp_path / "records.jsonl")] == ["a", "b"]


def test_a_whole_last_line_without_its_newline_is_kept(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), completion(), PATCH))
    path = tmp_path / "records.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("b", 0), completion(), PATCH))
    assert [r["instance_id"] for r in lines(path)] == ["a", "b"]


def test_a_prediction_lost_between_two_writes_comes_back(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), completion(), PATCH))
        store.append(record_of(("b", 0), completion(), PATCH))
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with RunStore(tmp_path, "model"):
        assert [p["instance_id"] for p in lines(path)] == ["a", "b"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with RunStore(tmp_path, "model"), pytest.raises(StoreError, match="in use by process"):
        RunStore(tmp_path, "model")
    RunStore(tmp_path, "model").close()


def test_a_summary_counts_as_older_than_a_record_that_was_appended_before_it_was_written(tmp_path: Path) -> None:
    answer = Completion("an answer", "stop", Usage(10, output_tokens=5), Decimal("0.5"), 1.0)
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), answer, PatchResult("", "none")))
        store.write_summary(store.totals.summary(instances=3, samples=1), soon=True)
        time.sleep(0.05)  # more than the resolution of modification times
        store.append(record_of(("b", 0), answer, PatchResult("", "none")))
    assert RunDirectory(tmp_path).summary()["completed"] == 1
    assert RunDirectory(tmp_path).latest_summary()["completed"] == 2


def test_lone_surrogates_and_control_characters_survive(tmp_path: Path) -> None:
    text = "\ud800 \x00 \x1b[31m \u2028 é 🐍"
    with RunStore(tmp_path, "model") as store:
        store.append(record_of(("a", 0), completion(text), PATCH))
    (record,) = read_records(tmp_path / "records.jsonl")
    assert record["full_output"] == text


def test_nothing_appended_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import itertools, sys
        from pathlib import Path
        from tests.run_directory.test_store import PATCH, completion
        from swe_infer.run_directory.store import RunStore, record_of
        store = RunStore(Path(sys.argv[1]), "model")
        for i in itertools.count():
            store.append(record_of((str(i), 0), completion("x" * 5000), PATCH))
            print(i, flush=True)
    """)
    process = commands.start("-c", code, str(tmp_path), cwd=Path.cwd(), env=os.environ)
    for line in process.stdout:
        if line.strip() == "200":
            process.send_signal(signal.SIGKILL)
            break
    output, _ = process.communicate()
    acknowledged = [200, *(int(line) for line in output.splitlines() if line.strip())]
    with RunStore(tmp_path, "model") as store:
        assert all(store.totals.status((str(i), 0)) == "completed" for i in range(max(acknowledged) + 1))


def test_a_write_that_fails_leaves_whole_lines_and_says_so(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        from tests.run_directory.test_store import PATCH, completion
        from swe_infer.errors import StoreError
        from swe_infer.run_directory.store import RunStore, record_of
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        store = RunStore(Path(sys.argv[1]), "model")
        try:
            for i in range(100):
                store.append(record_of((str(i), 0), completion("x" * 5000), PATCH))
        except StoreError as error:
            print(i, error)
    """)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    output = commands.run("-c", code, str(tmp_path), cwd=Path.cwd(), env=os.environ).stdout
    assert "cannot be written (File too large)" in output
    kept = [r["instance_id"] for r in lines(tmp_path / "records.jsonl")]
    assert kept == [str(i) for i in range(int(output.split()[0]))]
