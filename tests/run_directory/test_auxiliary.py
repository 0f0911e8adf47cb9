"""Records of auxiliary requests: their usage and cost count everywhere, and they are no samples anywhere."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from swe_infer.api.batch_journal import Batch, Item, Journal, open_batches
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_run, read_texts
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.figures import FIGURES, figure, plausible
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.records import located_records, purpose_of, record_at, without_answers
from swe_infer.run_directory.rewrite import rewrite_records
from swe_infer.run_directory.store import (
    RunStore,
    auxiliary_record,
    record_of,
    reusable_auxiliary,
    reusable_records,
    reusable_turns,
)  # fmt: skip
from swe_infer.run_directory.totals import Totals
from swe_infer.tracking.metrics import Predictions, metrics_of
from swe_infer.types import Completion, Decoding, Failure, PatchResult, Prompt, Purpose, Request, Usage

PROMPT = Prompt(None, "which files?")


def request(name: str, purpose: Purpose = "context", text: str = "which files?") -> Request:
    return Request(name, 0, Prompt(None, text), Decoding(), purpose=purpose)


def answered(text: str, usd: str = "0.5") -> Completion:
    return Completion(text, "stop", Usage(10, 0, 0, 5, 0), Decimal(usd), 1.0)


def fill(directory: Path) -> None:
    with RunStore(directory, "model") as store:
        store.set_coverage(Coverage(("a", "b"), turns=0), Coverage(None, decided=True))
        store.append(auxiliary_record(request("a"), answered("a.py")))
        store.append(auxiliary_record(request("b"), Failure("TransientError", "no answer", cost_usd=Decimal("0.25"))))
        store.append(record_of(("a", 0), answered("an answer"), PatchResult("patch", "applies"), PROMPT))
        store.append(auxiliary_record(request("a", "judge", "1 or 2?"), answered("2")))
        store.append(auxiliary_record(request("a", "judge", "1, 2 or 3?"), answered("3", "0.125")))
        store.check()
        store.write_summary(store.totals.summary(instances=2, samples=1))


def test_auxiliary_records_count_in_usage_and_cost_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    with RunStore(tmp_path, "model") as store:  # derived again from the file
        totals = store.totals
    found = totals.summary(instances=2, samples=1)
    assert (found["completed"], found["failed"], found["remaining"]) == (1, 0, 1)
    assert found["patches"] == {"applies": 1}
    assert (found["cost_usd"], found["usage"]["input_tokens"]) == (Decimal("1.875"), 40)
    context, judge = found["auxiliary"]["context"], found["auxiliary"]["judge"]
    assert (context["requests"], context["failed"], context["cost_usd"]) == (1, 1, Decimal("0.75"))
    assert (judge["requests"], judge["failed"], judge["cost_usd"]) == (2, 0, Decimal("0.625"))
    assert totals.instance_ids == {"a"}
    assert totals.auxiliary_status("context", "a") == "completed"
    assert totals.auxiliary_status("context", "b") == "failed"
    assert totals.is_answered(("a", 0), 0, request("a", "judge", "1 or 2?").auxiliary)
    assert not totals.is_answered(("a", 0), 0, request("a", "judge", "1 or 4?").auxiliary)
    assert totals.is_answered(("a", 0), 0, request("a", text="another tree").auxiliary)
    assert not totals.is_answered(("b", 0), 0, request("b").auxiliary)

    read = RunDirectory(tmp_path)
    assert [record["full_output"] for record in read.records()] == ["an answer"]
    assert len(list(read.records(auxiliary=True))) == 5
    assert read.patches() == {("a", 0): (0, "patch")}
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 1
    assert figure(read.summary(), "auxiliary.context.cost_usd") == 0.75
    assert "auxiliary.judge.requests" in FIGURES
    assert "auxiliary" not in plausible({"auxiliary": {"context": {"requests": "many"}}})
    metrics = metrics_of(read.summary())
    assert metrics["auxiliary/context/failed"] == 1
    table = Predictions(tmp_path)
    assert table.read_new() == [1.0]
    assert len(table) == 1

    ((offset, record),) = located_records(tmp_path / "records.jsonl")
    assert record_at(tmp_path / "records.jsonl", offset, ("a", 0), 0) == record
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines()
    assert record_at(tmp_path / "records.jsonl", 0, ("a", 0), 0) is None
    assert b'"purpose": "context"' in without_answers(lines[0])
    assert b"a.py" not in without_answers(lines[0])

    loaded = load_run(tmp_path)
    assert list(loaded.results) == [("a", 0)]
    assert loaded.auxiliary_usd == {"a": Decimal("1.125"), "b": Decimal("0.25")}
    assert read_texts(loaded)["a", 0].answer == "an answer"
    (figures,) = compare([loaded]).runs
    assert (figures.cost_usd, figures.usage.input_tokens) == (Decimal("1.875"), 40)


def test_they_survive_damage_and_a_rewrite_and_are_reused_at_no_cost(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fill(run)
    path = run / "records.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:4], lines[0], lines[4][:-30]]))  # repeated, and truncated
    with RunStore(run, "model") as store:
        assert (store.totals.cost_usd, store.totals.unreadable_usd) == (Decimal("1.875"), Decimal("0.125"))
        figures = store.totals.summary(instances=2, samples=1)["auxiliary"]
        assert (figures["context"]["requests"], figures["judge"]["requests"]) == (1, 1)
    path.write_bytes(content)

    def change(record: object) -> dict[str, str]:
        return {"model_patch": "other"}

    assert rewrite_records(path, lambda r: None if purpose_of(r) else change(r), lambda: None)
    assert [record.get("model_patch") for record in RunDirectory(run).records(auxiliary=True)].count("other") == 1
    assert list(reusable_records([run], lambda key: True)) == [("a", 0)]
    assert reusable_turns([run], lambda key: True) == {}
    reused = reusable_auxiliary([run, tmp_path / "none"], lambda record: purpose_of(record) == "judge")
    assert len(reused) == 2
    totals = Totals()
    for record in reused.values():
        assert (record.get("details") or {})["shared_from"]["run"] == "run"
        totals.add_record(record)
    assert (totals.cost_usd, totals.summary()["auxiliary"]["judge"]["requests"]) == (Decimal(0), 2)


def test_the_journal_of_batches_distinguishes_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    offset = journal.add_prompt(PROMPT)
    item = Item("a", 0, offset)
    named = [item, replace(item, auxiliary=request("a").auxiliary), replace(item, turn=1)]
    journal.record_planned(Batch("label", 1.0, {str(number): item for number, item in enumerate(named)}))
    journal.close()
    (batch,) = open_batches(tmp_path)
    assert list(batch.items.values()) == named
    assert [item.purpose for item in named] == [None, "context", None]
    assert len({item.key for item in named}) == 3
    # A journal of an earlier version, and an unknown purpose.
    old = '{"event":"planned","label":"old","at":1.0,"items":{"0":["a",0,0,0,null,1]}}\n'
    (tmp_path / "batches.jsonl").write_text(old + old.replace("null,1", 'null,0,"vote:1"').replace("old", "new"))
    (batch,) = open_batches(tmp_path)
    assert batch.items["0"] == Item("a", 0, 0, turn=1)
