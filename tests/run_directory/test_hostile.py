"""Run directories from strangers: links, special files, and configurations that would hang a naive reader."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.batch_journal import Journal
from swe_infer.api.ledger import Ledger
from swe_infer.api.sweep_ledgers import record_ledger, recorded_ledgers
from swe_infer.cli.merge import main as merge_main
from swe_infer.cli.sweep_jobs import SweepJob, swept_keys
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.compare.analysis import compare
from swe_infer.compare.command import run as compare_main
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_run
from swe_infer.config import run_id_of
from swe_infer.errors import ConfigError, StoreError
from swe_infer.evaluate.command import run as evaluate_main
from swe_infer.evaluate.evaluable import open_run
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, Usage
from tests.support import commands

COMPARE = ["swe_infer.compare", "RUN"]
EVALUATE = ["swe_infer.evaluate", "RUN", "--report", "REPORT"]
RESUME = ["swe_infer", "tracker=none", "dataset.limit=1", "output_dir=RUN"]
WRITTEN = (
    ".lock", ".lock.owner", ".reserve", "records.jsonl", "summary.json", "config.yaml", "asked.json",
    "predictions.jsonl", "evaluation.jsonl", "evaluation.all.jsonl", "run_id", "wandb",
)  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


def run(command: list[str], directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    report = directory.parent / "report.json"
    report.write_text('{"resolved_ids": ["a"]}')
    arguments = [part.replace("RUN", str(directory)).replace("REPORT", str(report)) for part in command]
    return commands.run(*arguments, cwd=Path.cwd(), env=os.environ | environment, timeout=120)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with every file."""
    directory = tmp_path_factory.mktemp("stranger") / "run"
    with RunStore(directory, "model") as store:
        answer = Completion("an answer", "stop", Usage(10, 0, 0, 5, 0), Decimal("0.5"), 1.0)
        store.append(record_of(("a", 0), answer, PatchResult("", "none")))
        store.write_summary(store.totals.summary())
    (directory / "config.yaml").write_text("dataset: {name: x}\n")
    return directory


@pytest.fixture
def received(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def one_line(process: subprocess.CompletedProcess[str], *parts: str) -> None:
    """The command was refused, in one line that holds ``parts``."""
    assert process.returncode == 2, process.stderr
    (line,) = [line for line in process.stderr.splitlines() if line.strip()]
    assert all(part in line for part in parts), line


def test_a_run_directory_as_it_should_be_is_read_and_evaluated(received: Path) -> None:
    before = {path.name for path in received.iterdir()}
    assert run(COMPARE, received).returncode == 0
    assert {path.name for path in received.iterdir()} == before, "reading writes nothing"
    evaluated = run(EVALUATE, received)
    assert (evaluated.returncode, "resolved 1 of 1" in evaluated.stdout) == (0, True), evaluated.stderr


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_in_it_is_refused_by_name_and_its_target_untouched(received: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    content = (received / name).read_bytes() if (received / name).is_file() else b"mine\n"
    precious.write_bytes(content)
    (received / name).unlink(missing_ok=True)
    (received / name).symlink_to(precious)
    with pytest.raises(Exception, match="symbolic link") as caught:
        RunStore(received, "model")
    assert name in str(caught.value)
    assert precious.read_bytes() == content


@pytest.mark.parametrize("command", [EVALUATE, RESUME], ids=["evaluate", "resume"])
def test_commands_that_write_refuse_links_in_one_line(received: Path, tmp_path: Path, command: list[str]) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / ".lock").unlink()
    (received / ".lock").symlink_to(precious)
    one_line(run(command, received), ".lock", "symbolic link")
    assert precious.read_text() == "mine\n"


def test_a_second_name_of_somebody_elses_file_is_refused(received: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / ".lock").unlink()
    os.link(precious, received / ".lock")
    one_line(run(EVALUATE, received), ".lock", "hard links")
    assert precious.read_text() == "mine\n"


@pytest.mark.parametrize(
    "name", ["predictions.jsonl.new", "summary.json.new", "evaluation.jsonl.new", ".probe", ".reserve.new"]
)
def test_no_name_that_can_be_guessed_is_written_through(received: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine\n")
    (received / name).symlink_to(precious)
    run(EVALUATE, received)
    assert precious.read_text() == "mine\n"


def test_special_files_neither_hang_nor_fill_the_memory(received: Path) -> None:
    for name in ("records.jsonl", "summary.json", "config.yaml", "asked.json", "evaluation.jsonl"):
        content = (received / name).read_bytes() if (received / name).exists() else None
        for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
            (received / name).unlink(missing_ok=True)
            make(received / name)
            with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
                load_run(received)
        (received / name).unlink()
        if content is not None:
            (received / name).write_bytes(content)
    (received / "config.yaml").unlink()
    os.mkfifo(received / "config.yaml")
    one_line(run(EVALUATE, received), "config.yaml", "FIFO")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, "aliases"),
        ("model: !!python/object/apply:os.system ['touch planted']\n", "tags"),
        ("a: " + "[" * 500 + "]" * 500 + "\n", "nested"),
        ("- a\n- b\n", "mapping"),
        ("a: 'unfinished\n", "not YAML"),
        ("a: [" + "a," * 1_000_001 + "]\n", "1,000,000 values"),
        ("a: 2020-01-01\n", "type date"),
        ("a: {2020-01-01: x}\n", "type date"),
        ("a: 0x" + "f" * 5000 + "\n", "128 bits"),
    ],
    ids=["alias bomb", "python tag", "deep", "list", "cut", "long", "date", "date as a key", "long number"],
)
def test_a_hostile_configuration_ends_in_one_line(received: Path, content: str, said: str) -> None:
    (received / "config.yaml").write_text(content)
    readers = (load_run, open_run) if len(content) < 1_000_000 else (load_run,)  # that takes seconds
    for read in readers:
        with pytest.raises(ConfigError, match=f"config.yaml: .*{said}"):
            read(received)
    assert not Path("planted").exists()


def test_an_endless_line_is_one_unreadable_record(received: Path) -> None:
    with (received / "records.jsonl").open("ab") as file:
        file.truncate(file.tell() + (1 << 40))  # a hole: it takes no space
    loaded = load_run(received)
    assert (len(loaded.results), loaded.unreadable) == (1, 1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 3 << 20, "KiB"


ODD = ('"x"', "[]", "{}", "[[1]]", "-5", "1e400", "NaN", "1" + "0" * 30, "true", "null", '"\\u001b]0;x\\u0007"')
"""Values in JSON of other types than are expected, and numbers that cannot be true."""


def every_command(directory: Path, out: Path, *, only_compare: bool = False) -> None:
    """Each command ends with its own exit status, whatever is in ``directory``."""
    report = out / "report.json"
    report.write_text('{"resolved_ids": ["a"]}')
    page, figures = out / "page.html", out / "figures.json"
    written = ["--html", str(page), "--json", str(figures), "--csv", str(out / "rows.csv"), "--resamples", "5"]
    assert compare_main([str(directory), *written]) in (0, 2)
    if figures.exists():
        json.loads(figures.read_text(), parse_constant=pytest.fail)
    if not only_compare:
        assert merge_main([str(out / "merged"), str(directory)]) in (0, 2)
        assert evaluate_main([str(directory), "--report", str(report)]) in (0, 2)
        shutil.rmtree(out / "merged", ignore_errors=True)


@pytest.mark.parametrize(
    "odd", ['"x"', *(pytest.param(odd, marks=pytest.mark.full) for odd in ("NaN", "[[1]]", "1e400"))]
)
def test_odd_values_in_any_field_end_in_no_trace(received: Path, tmp_path: Path, odd: str) -> None:
    shard = "shard: {index: 0, count: 1}\n"
    (received / "config.yaml").write_text("dataset: {name: x}\n" + shard)
    every_command(received, tmp_path)
    asked = {"instance_ids": ["a"], "min_tokens": None, "max_tokens": None, "decided": True}
    verdict = {"instance_id": "a", "sample": 0, "resolved": True, "reason": None}
    files = {
        "summary.json": json.loads((received / "summary.json").read_text()) | {"resolved": 1, "not_tested": None},
        "records.jsonl": json.loads((received / "records.jsonl").read_text()),
        "asked.json": asked,
        "evaluation.jsonl": verdict,
    }
    for name, whole in files.items():
        before = (received / name).read_bytes() if (received / name).exists() else None
        for key in whole:
            (received / name).write_text(json.dumps({**whole, key: "@"}).replace('"@"', odd) + "\n")
            every_command(received, tmp_path, only_compare=name == "records.jsonl")
        (received / name).unlink()
        if before is not None:
            (received / name).write_bytes(before)
    for config in (f"dataset: {odd}\n{shard}", f"shard: {odd}\n", f"shard: {{index: {odd}, count: {odd}}}\n"):
        (received / "config.yaml").write_text(config)
        every_command(received, tmp_path)


@pytest.mark.parametrize(
    "dataset",
    ["{_target_: [x]}", '{_target_: swe_infer.data.jsonl.JsonlDataset, path: "a\\0b"}'],
    ids=["list as a class", "NUL in a path"],
)
def test_an_odd_dataset_costs_the_page_its_prompts(received: Path, tmp_path: Path, dataset: str) -> None:
    (received / "config.yaml").write_text(f"dataset: {dataset}\n")
    assert compare_main([str(received), "--html", str(tmp_path / "page.html"), "--resamples", "5"]) == 0


def test_json_takes_little_more_memory_than_its_bytes(received: Path) -> None:
    lists = "[" + "[]," * 6_000_000 + "[]]"
    record = json.loads((received / "records.jsonl").read_text())
    (received / "records.jsonl").write_text(
        json.dumps({**record, "details": {"x": "@"}}).replace('"@"', lists) + "\n"
    )
    assert load_run(received).unreadable == 1
    (received / "summary.json").write_text(f'{{"x": {lists}}}')
    with pytest.raises(ConfigError, match=r"summary.json: not JSON .more than 5,000,000"):
        load_run(received)


@pytest.mark.slow
def test_sparse_files_are_not_read_to_their_end(
    received: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    records = ("records.jsonl",) if request.config.getoption("full") else ()  # the test above reads such a file
    for name in (*records, "predictions.jsonl", ".reserve", ".lock.owner"):
        shutil.copytree(received, tmp_path / name)
        with (tmp_path / name / name).open("ab") as file:
            file.truncate(file.tell() + (1 << 40))
        assert evaluate_main([str(tmp_path / name), "--report", str(_report(tmp_path))]) in (0, 2)


def _report(folder: Path) -> Path:
    (folder / "report.json").write_text('{"resolved_ids": ["a"]}')
    return folder / "report.json"


def test_a_report_is_no_special_file_and_not_nested(received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = received.parent / "report.json"
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.write_text("[" * 100_000)):
        make(report)
        assert evaluate_main([str(received), "--report", str(report)]) == 2
        assert capsys.readouterr().err.startswith(f"error: {report}: ")
        report.unlink()


def test_names_of_directories_steer_no_terminal(received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = received.rename(received.with_name("a\x1b]0;x\x07b"))
    assert evaluate_main([str(named), "--report", str(_report(named.parent))]) == 0
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


@pytest.mark.parametrize("name", ["batches.jsonl", "batch_prompts.jsonl"])
def test_the_journal_of_batches_writes_into_nobody_elses_file(received: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("a line\nmine")
    planned = {"event": "planned", "label": "l", "at": 1, "items": {"k": ["a", 0, 0]}}
    (received / "batches.jsonl").write_text(json.dumps(planned) + "\n")
    (received / name).unlink(missing_ok=True)
    os.link(precious, received / name)
    with pytest.raises(StoreError, match=f"{name}: .*hard links"):
        Journal(received)
    assert precious.read_text() == "a line\nmine"


def test_an_odd_journal_of_batches_costs_its_lines_alone(received: Path) -> None:
    def planned(label: object, *item: object) -> str:
        return json.dumps({"event": "planned", "label": label, "at": 1.0, "items": {"k": item}}) + "\n"

    odd = [
        planned("l", "a", 0, -1),
        planned("l", "a", 0, "x"),
        planned("l", 1, 0, 0),
        planned("l", "a", 0, 0, 0, "x"),
    ]
    (received / "batches.jsonl").write_text("".join([planned("good", "a", 0, 7), *odd, planned(["l"], "a", 0, 0)]))
    journal = Journal(received)
    assert list(journal.open) == ["good"]
    with pytest.raises(StoreError, match="no prompt at byte 7"):
        journal.prompt(7)
    journal.close()


def test_a_sweeps_directory_is_read_and_written_like_a_runs(received: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    shutil.copytree(received, sweep / "point")
    precious = tmp_path / "precious"
    lines = [f'{{"overrides": ["a"], "run": {odd}, "status": {odd}}}' for odd in ODD]
    lines += [f'{{"overrides": [{odd}], "run": null, "status": 0}}' for odd in ODD] + ["[" * 100_000]
    (sweep / "runs.jsonl").write_text("\n".join(lines))
    (sweep / "begun.jsonl").write_text("\n".join([*ODD, '["b"]', "{"]))
    (sweep / "swept.json").write_text("[" * 100_000)
    assert compare_main([str(sweep), "--resamples", "5"]) == 0
    log = SweepLog(sweep, ("c",))
    assert (log.lost_jobs(), swept_keys(sweep)) == ([("b",)], ())
    assert all(isinstance(job, SweepJob) for job in log.jobs())
    for name, write in (("begun.jsonl", log.record_start), ("runs.jsonl", lambda: log.record_end(None, 0))):
        precious.write_text("mine")
        (sweep / name).unlink()
        (sweep / name).symlink_to(precious)
        with pytest.raises(OSError, match="symbolic link"):
            write()
        with pytest.raises(ConfigError, match=f"{name}: .*symbolic link"):
            log.lost_jobs()
        assert precious.read_text() == "mine"
        (sweep / name).unlink()


def test_a_ledger_beside_runs_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    (tmp_path / "ledger.sqlite").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="symbolic link"):
        Ledger(tmp_path / "ledger.sqlite", Decimal(1), "run")
    assert (tmp_path / "precious").read_bytes() == b""


def test_a_run_id_is_one_short_word(tmp_path: Path) -> None:
    for content in (b"", b"\xff", b"two words", b"../up/there", b"x" * 2000):
        (tmp_path / "run_id").write_bytes(content)
        with pytest.raises(StoreError, match="run_id: "):
            run_id_of(tmp_path, {})


def test_infinities_in_a_configuration_leave_the_page_readable(received: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(received, other)
    for directory, value in ((received, ".inf"), (other, ".nan")):
        (directory / "config.yaml").write_text(f"decoding: {{temperature: {value}}}\n")
    written = as_json(compare([load_run(received), load_run(other)]))
    assert json.loads(json.dumps(written, allow_nan=False))["differing_keys"] == ["decoding.temperature"]


def test_a_file_of_tests_that_never_ends_is_one_line(received: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tests.jsonl")
    one_line(run(["swe_infer.evaluate", "RUN", "--dataset", str(tmp_path / "tests.jsonl")], received), "a FIFO")
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    command = ["swe_infer.evaluate", "RUN", "--dataset", str(tmp_path / "deep.jsonl")]
    one_line(run(command, received), "line 1: not a JSON object")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO spent VALUES ('a', 'much')",
        "INSERT INTO spent VALUES ('a', -5)",
        "INSERT INTO spent VALUES ('a', 9223372036854775807)",
        "INSERT INTO held (run, owner, amount) VALUES ('a', 'b', x'00')",
        "INSERT INTO owners VALUES ('a', 1, 'pid', 2, 'now')",
    ],
)
def test_a_ledger_with_odd_values_is_one_line_and_no_cap(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "sweep_ledger.sqlite"
    Ledger(path, Decimal(1), "own").close()
    with sqlite3.connect(path) as db:
        db.execute(statement)
    with pytest.raises(StoreError, match="has invalid values"):
        Ledger(path, Decimal(1), "own")


def test_a_list_of_sweep_ledgers_names_no_other_file(tmp_path: Path) -> None:
    run, sweep = tmp_path / "a" / "run", tmp_path / "a" / "sweep"
    run.mkdir(parents=True)
    sweep.mkdir()
    (tmp_path / "a" / "other.sqlite").touch()
    (run / "loop").symlink_to("loop")
    impossible = json.dumps([f"{'a' * 300}/sweep_ledger.sqlite", "loop/sweep_ledger.sqlite", "\ud800"])
    others = '["../other.sqlite", 3, "\\u0000", "../run", "missing/sweep_ledger.sqlite"]'
    for content in ("", "{", "3", others, impossible):
        (run / "sweep_ledgers.json").write_text(content)
        assert recorded_ledgers(run) == []
    ledger = sweep / "sweep_ledger.sqlite"
    ledger.touch()
    for _ in range(2):
        record_ledger(run, ledger)
        assert recorded_ledgers(run) == [ledger]
    (tmp_path / "a").rename(tmp_path / "b")
    assert recorded_ledgers(tmp_path / "b" / "run") == [tmp_path / "b" / "sweep" / "sweep_ledger.sqlite"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("summary.json", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        ("config.yaml", "not a mapping of keys to values"),
    ],
)
def test_the_message_about_a_damaged_file_says_what_writes_it_again(name: str, said: str, received: Path) -> None:
    (received / name).write_text("")
    (received / "run_id").write_text("0" * 64)
    run = RunDirectory(received)
    with pytest.raises(ConfigError) as refused:
        assert run.config() != run.summary()
    remedy = "the command of this run writes it again, and pays for no answer twice"
    assert str(refused.value) == f"{received / name}: {said}; {remedy}"


def test_nothing_writes_a_configuration_again_without_the_id_of_the_run(received: Path) -> None:
    (received / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"config\.yaml: not a mapping of keys to values$"):
        RunDirectory(received).config()
