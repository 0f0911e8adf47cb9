"""Loading run directories, sweeps and verdicts, and unreadable files."""

from __future__ import annotations

import dataclasses
import json
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.cli.sweep_log import SweepLog
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import load_run, load_runs, read_texts
from swe_infer.compare.sources import jobs_without_run
from swe_infer.errors import ConfigError
from swe_infer.types import Completion
from tests.compare.runs import Entry, answer, failure, skip, write_run


def test_the_last_record_wins_and_every_attempt_counts(tmp_path: Path) -> None:
    directory = write_run(
        tmp_path / "r", [failure("a", cost="0.25"), answer("b"), answer("a", cost="0.5", text="second"), skip("c")]
    )
    run = load_run(directory)
    first = run.results["a", 0]
    assert (first.status, first.cost_usd, first.usage.input_tokens) == ("completed", Decimal("0.75"), 100)
    assert [result.status for result in run.results.values()] == ["completed", "completed", "skipped"]
    assert read_texts(run)["a", 0].answer == "second"
    assert read_texts(run)["c", 0].notes == ("ContextOverflow: the prompt is too long",)


def test_the_texts_of_one_instance_are_those_of_the_whole_run(tmp_path: Path) -> None:
    names = ["a-1", "a-11", "é", 'b"<', "1"]
    run = load_run(write_run(tmp_path / "r", [answer(name, text=f"{name} and a-1") for name in names]))
    every = read_texts(run)
    for name in names:
        assert read_texts(run, name) == {(name, 0): every[name, 0]}
    without = read_texts(run, answers=lambda name: name == "1")
    assert {key: texts.answer for key, texts in without.items() if texts.answer} == {("1", 0): "1 and a-1"}
    assert [texts.patch for texts in without.values()] == [texts.patch for texts in every.values()]


def test_answers_from_another_run_or_the_response_cache_count_as_shared(tmp_path: Path) -> None:
    entries: list[Entry] = []
    for name, details in (("a", {"response_cache": True}), ("b", {"shared_from": {}}), ("c", {})):
        _, sample, outcome, patch = answer(name)
        assert isinstance(outcome, Completion)
        entries.append((name, sample, dataclasses.replace(outcome, details=details), patch))
    run = load_run(write_run(tmp_path / "r", entries))
    assert [result.shared for result in run.results.values()] == [True, True, False]
    notes = compare([run, load_run(write_run(tmp_path / "s", [answer("a")]))]).notes
    assert any("paid for, which cost nothing here: A 2." in note for note in notes)


def test_an_unknown_price_is_not_zero(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", [failure("a", cost="0.25"), answer("a", cost=None)]))
    assert run.results["a", 0].cost_usd is None


def test_a_run_that_is_being_written_is_read_without_its_torn_line(tmp_path: Path) -> None:
    directory = write_run(tmp_path / "r", [answer("a")])
    with (directory / "records.jsonl").open("a") as file:
        file.write('{"instance_id": "b", "sam')
    run = load_run(directory)
    assert list(run.results) == [("a", 0)]
    assert run.unreadable == 1


def test_verdicts_come_from_the_evaluation_or_from_the_record(tmp_path: Path) -> None:
    evaluated = load_run(write_run(tmp_path / "e", [answer("a"), answer("b")], resolved=["b"]))
    assert evaluated.evaluated
    assert [result.resolved for result in evaluated.results.values()] == [False, True]

    plain = write_run(tmp_path / "p", [answer("a")])
    assert not load_run(plain).evaluated
    record = json.loads((plain / "records.jsonl").read_text())
    (plain / "records.jsonl").write_text(json.dumps({**record, "resolved": True}) + "\n")
    assert load_run(plain).results["a", 0].resolved is True


def test_a_sweep_means_its_runs_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "sweep" / "t0.2", [answer("a")])
    write_run(tmp_path / "sweep" / "deep" / "er", [answer("a")])
    write_run(tmp_path / "outputs" / "x", [answer("a")])
    lines = [
        {"overrides": ["a=1", "t=0"], "run": "outputs/x"},
        {"overrides": ["a=1", "t=9"], "run": None, "status": 2},
        {"overrides": ["a=1", "t=1", "u=2"], "run": "outputs/gone"},
    ]
    (tmp_path / "sweep" / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = load_runs(["sweep", "outputs/x"])
    assert [run.name for run in runs] == ["x", "er", "t0.2"]
    assert jobs_without_run(["sweep", "outputs/x"]) == ["t=9", "t=1 u=2"]


def test_a_copied_sweep_is_compared_from_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    sweep, outside = home / "outputs" / "sweeps" / "s", home / "outputs" / "x"
    write_run(outside, [answer("a")])
    for name in ("within", "named"):
        write_run(sweep / name, [answer("a")])
    monkeypatch.chdir(home)
    log = SweepLog(Path("outputs/sweeps/s"), ("t=0",))
    log.record_end(Path("outputs/x"), 0)
    dataclasses.replace(log, overrides=("t=1",), number=1).record_end(sweep / "within", 0)
    stored = [json.loads(line)["run"] for line in (sweep / "runs.jsonl").read_text().splitlines()]
    assert stored == ["../../x", "within"]
    assert [job.run for job in log.jobs()] == ["outputs/x", "outputs/sweeps/s/within"]
    earlier = [
        {"overrides": ["t=2"], "run": "/another/machine/s/named", "status": 0, "number": 2},
        {"overrides": ["t=3"], "run": "a\0b", "status": 0, "number": 2},
    ]
    with (sweep / "runs.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in earlier)
    log.close()
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "copy")
    copied = tmp_path / "copy" / "outputs" / "sweeps" / "s"
    assert sorted(run.directory.name for run in load_runs([str(copied)])) == ["named", "within", "x"]
    assert jobs_without_run([str(copied)]) == ["t=3"]
    assert SweepLog(copied).jobs()[0].run == str(tmp_path / "copy" / "outputs" / "x")


def test_remaining_samples_follow_from_the_records_of_a_killed_run(tmp_path: Path) -> None:
    entries = [answer("a"), answer("a", sample=1), answer("b")]
    killed = load_run(write_run(tmp_path / "killed", entries, instances=5, samples=2, remaining=9))
    assert (killed.summary["remaining"], killed.samples) == (7, 2)
    config = {"decoding": {"n": 3}}
    assert load_run(write_run(tmp_path / "new", entries[:1], config)).samples == 3


def test_names_are_the_shortest_distinct_ones(tmp_path: Path) -> None:
    paths = [write_run(tmp_path / group / "run", [answer("a")]) for group in ("one", "two")]
    assert [run.name for run in load_runs([str(path) for path in paths])] == ["one/run", "two/run"]


def test_paths_without_runs_say_so(tmp_path: Path) -> None:
    for path, message in (
        (str(tmp_path / "no"), "directory not found"),
        (
            str(tmp_path),
            r"neither a run directory nor a directory of runs \(records.jsonl or summary.json is missing",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            load_runs([path])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "not YAML"),
        ("summary.json", "{", "not JSON"),
        ("evaluation.jsonl", '{"instance_id": "a"}\n', "line 1: not a verdict"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    directory = write_run(tmp_path / "r", [answer("a")])
    (directory / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_run(directory)
    assert file in str(caught.value)
    assert "\n" not in str(caught.value)
