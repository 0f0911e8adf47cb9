"""Records of further turns: which one counts, sums over all, and figures after each change of the coverage."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.compare.loading import load_run
from swe_infer.evaluate.evaluable import open_run, save_verdicts
from swe_infer.run_directory.asked import Coverage, read_coverage
from swe_infer.run_directory.figures import FIGURES, figure
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.run_directory.verdicts import Verdict
from swe_infer.tracking.metrics import Predictions, metrics_of
from swe_infer.types import Completion, Failure, PatchResult, PatchStatus, Prompt, Skip, Turn, Usage

IDS = ("a", "b", "c", "d")
FIRST: dict[str, PatchStatus] = {"a": "does_not_apply", "b": "none", "c": "applies", "d": "applies"}
PROMPT = Prompt("system", "fix it")


def prompt(turn: int) -> Prompt:
    return replace(PROMPT, turns=tuple(Turn("an answer", f"reason {number}") for number in range(turn)))


def answer(store: RunStore, name: str, status: PatchStatus, turn: int = 0) -> None:
    given = Completion(f"turn {turn}", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
    store.append(record_of((name, 0), given, PatchResult(f"{name}{turn}", status), prompt(turn)))


def opened(directory: Path, turns: int, ids: tuple[str, ...] = IDS) -> RunStore:
    store = RunStore(directory, "model")
    store.set_coverage(Coverage(ids, turns=turns), Coverage(None, decided=True))
    return store


def shown(directory: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (directory / "predictions.jsonl").read_text().splitlines()]
    assert len({line["instance_id"] for line in lines}) == len(lines)
    return {line["instance_id"]: line["model_patch"] for line in lines}


def figures_of(store: RunStore) -> dict[str, Any]:
    return dict(store.totals.summary(instances=4, samples=1))


def test_the_last_covered_turn_counts_and_every_turn_is_paid_for(tmp_path: Path) -> None:
    with opened(tmp_path, 2) as store:
        for name, status in FIRST.items():
            answer(store, name, status)
        answer(store, "a", "applies", 1)
        answer(store, "b", "does_not_apply", 1)
        answer(store, "b", "repaired", 2)
        store.append(record_of(("c", 0), Failure("TransientError", "no answer"), None, prompt(1)))
        store.append(record_of(("d", 0), Skip("ContextOverflow", "too long"), None, prompt(1)))
        store.check()
        found = figures_of(store)
        assert (found["completed"], found["failed"], found["skipped"], found["remaining"]) == (4, 0, 0, 0)
        assert found["patches"] == {"applies": 3, "repaired": 1}
        turns = {
            "turns": 3,
            "failed": 1,
            "skipped": 1,
            "fixed": 2,
            "broken": 0,
            "input_tokens": 30,
            "output_tokens": 15,
        }
        assert found["feedback"] == {**turns, "cost_usd": Decimal("1.5")}
        assert found["cost_usd"] == Decimal("3.5")
        assert store.totals.unanswered_turn(("d", 0)) == "skipped"
        assert shown(tmp_path) == {"a": "a1", "b": "b2", "c": "c0", "d": "d0"}
        store.write_summary(store.totals.summary(instances=4, samples=1))
        store.mark_turns(done=True)
    assert {name for name in FIGURES if name.startswith("feedback.")} >= {f"feedback.{key}" for key in turns}
    assert figure(RunDirectory(tmp_path).summary(), "feedback.fixed") == 2
    assert metrics_of(found)["feedback/turns"] == 3
    run = load_run(tmp_path)
    assert run.feedback == {**turns, "cost_usd": Decimal("1.5")}
    assert run.results["b", 0].usage.input_tokens == 30
    rows = Predictions(tmp_path)
    rows.read_new()
    assert [row[4] for row in rows.rows(9)] == ["applies", "repaired", "applies", "applies"]

    for turns_, patches, counts in (
        (1, {"a": "a1", "b": "b1", "c": "c0", "d": "d0"}, {"applies": 3, "does_not_apply": 1}),
        (0, {"a": "a0", "b": "b0", "c": "c0", "d": "d0"}, {"applies": 2, "does_not_apply": 1, "none": 1}),
    ):
        with opened(tmp_path, turns_) as store:
            assert store.changed
            assert not store.turns_done
            found = figures_of(store)
            assert shown(tmp_path) == patches
            assert found["patches"] == counts
            assert found["cost_usd"] == Decimal("3.5")
            assert store.totals.is_answered(("b", 0), 2), "known to batches, though not covered"
        assert {key[0]: patch for key, (_, patch) in RunDirectory(tmp_path).patches().items()} == patches
        assert load_run(tmp_path).results["b", 0].patch_status == ("does_not_apply" if turns_ else "none")
        assert sum(result.cost_usd or 0 for result in load_run(tmp_path).results.values()) == Decimal("3.5")
    coverage = read_coverage(tmp_path)
    assert coverage is not None
    assert coverage.turns == 0
    with opened(tmp_path, 2) as store:
        assert shown(tmp_path) == {"a": "a1", "b": "b2", "c": "c0", "d": "d0"}


def test_a_skip_by_a_later_command_removes_the_turns_too(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as store:
        answer(store, "a", "none")
        answer(store, "a", "applies", 1)
        store.append(record_of(("a", 0), Skip("PromptTooLong", "too long"), None))
        store.check()
        assert shown(tmp_path) == {}
        assert not store.totals.is_answered(("a", 0), 1)
        answer(store, "a", "none")
        store.check()
        assert shown(tmp_path) == {"a": "a0"}
        answer(store, "a", "applies", 1)
        answer(store, "a", "none")  # a repeated first answer does not replace a turn
        store.check()
        assert shown(tmp_path) == {"a": "a1"}
        assert figures_of(store)["feedback"]["fixed"] == 1


def test_a_verdict_belongs_to_the_turn_that_was_tested(tmp_path: Path) -> None:
    with opened(tmp_path, 0, ("a",)) as store:
        answer(store, "a", "does_not_apply")
        save_verdicts(open_run(tmp_path), [Verdict("a", 0, False, "no")], store.totals.summary())
    with opened(tmp_path, 1, ("a",)) as store:
        answer(store, "a", "applies", 1)
        assert not load_run(tmp_path).evaluated, "the verdict is about the first answer"
        found = save_verdicts(open_run(tmp_path), [Verdict("a", 0, True)], store.totals.summary())
        assert found["resolved"] == 1
    assert load_run(tmp_path).results["a", 0].resolved is True
    with opened(tmp_path, 0, ("a",)) as store:
        found = save_verdicts(open_run(tmp_path), [], store.totals.summary())
        assert (found["resolved"], found["evaluated"]) == (0, 1)
    assert load_run(tmp_path).results["a", 0].resolved is False
