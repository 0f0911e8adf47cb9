"""``swe-infer-runs list``, ``show``, ``rm`` and ``move``, on real run directories of every state."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from swe_infer.cli.runs import main
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.tables import print_summary
from swe_infer.compare.command import run as compared
from swe_infer.locks import OwnerFile
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.fallback import Fallback, fallback_lines
from swe_infer.run_directory.provenance import SweepMembership, record_provenance
from swe_infer.run_directory.reader import RunDirectory, read_yaml
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.tracking.state import read_state, signing_key, write_state
from swe_infer.types import Completion, Failure, Outcome, PatchResult, Usage
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = {
    "model": {"name": "gpt-4o", "temperature_limit": None},
    "dataset": {"_target_": "swe_infer.data.jsonl.JsonlDataset", "path": "data/lite.jsonl"},
    "prompt": {"style": "style3"},
    "context": {"_target_": "swe_infer.context.oracle.OracleContext"},
    "decoding": {"temperature": 0.0, "stop": ["a: b", "#c"]},
    "locks": "os",
}


@contextmanager
def opened(
    directory: Path, *, answered: int = 2, failed: int = 0, asked: int = 2, usd: str | None = "0.5", **changes: Any
) -> Iterator[RunStore]:
    """An open run directory of ``asked`` instances, with a patch that applies for each that is answered."""
    with RunStore(directory, "gpt-4o") as store:
        ids = tuple(f"instance-{number}" for number in range(asked))
        store.set_coverage(Coverage(ids), Coverage(None))
        for number in range(answered + failed):
            outcome: Outcome = Failure("RateLimited", "429 \x1b[31mslow down", 5)
            patch = None
            if number < answered:
                cost = None if usd is None else Decimal(usd)
                outcome = Completion("an answer", "stop", Usage(10, output_tokens=5), cost, 1.0)
                patch = PatchResult("--- a/x\n+++ b/x\n", "applies")
            store.append(record_of((ids[number], 0), outcome, patch))
        (directory / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
        store.write_summary(store.totals.summary(instances=asked, samples=1, wall_s=2.0))
        yield store


def made(directory: Path, **arguments: Any) -> Path:
    with opened(directory, **arguments):
        return directory


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["list", *arguments, "--json"]) == 0
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return found


def names(runs: Sequence[dict[str, Any]]) -> list[str]:
    return [run["name"] for run in runs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 runs of all states, hostile ones among them."""
    place = tmp_path_factory.mktemp("outputs")
    kinds: dict[str, dict[str, int]] = {
        "complete": {}, "interrupted": {"answered": 1}, "failed": {"answered": 1, "failed": 1}
    }  # fmt: skip
    originals = [made(place / name, **counts) for name, counts in kinds.items()]
    for number in range(287):
        copy = place / f"nested/run{number:03}"
        shutil.copytree(originals[number % 3], copy)
        changed = {**CONFIG, "decoding": {**CONFIG["decoding"], "temperature": number % 10 / 10}}
        (copy / "config.yaml").write_text(yaml.safe_dump(changed))
        (copy / "records.jsonl").write_text("not read\n")
        os.utime(copy / "summary.json")
    damaged = [place / f"damaged{number}" for number in range(7)]
    for directory in damaged:
        shutil.copytree(originals[0], directory)
    (damaged[0] / "config.yaml").write_text("a: &a [x]\nb: *a\n")
    (damaged[1] / "config.yaml").unlink()
    os.mkfifo(damaged[1] / "config.yaml")
    (damaged[2] / "summary.json").write_text("[" * 100_000)
    (damaged[3] / "summary.json").unlink()
    (damaged[3] / "summary.json").symlink_to("/etc/passwd")
    (damaged[4] / "config.yaml").write_bytes(b"\xff\x00")
    (damaged[5] / "summary.json").write_text("[]")
    (damaged[6] / "records.jsonl").unlink()
    (damaged[6] / "records.jsonl").mkdir()
    escaping = place / "ansi\x1b]0;title\x07\x1b[2J"
    shutil.copytree(originals[0], escaping)
    (escaping / "config.yaml").write_text(json.dumps({"model": {"name": "\x1b[31mred"}}))
    for killed in (made(place / "killed1", answered=1), made(place / "killed2", answered=1)):
        (killed / "summary.json").unlink()  # at its start, or some seconds after its last summary
    (killed / "summary.json").write_text('{"instances": 9, "samples": 1, "completed": 0, "remaining": 9}')
    os.utime(killed / "summary.json", (1, 1))
    (place / "loop").symlink_to(place)
    (place / "link").symlink_to(originals[0])
    return place


def test_a_folder_of_300_runs_of_all_states_is_listed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with opened(folder / "running", answered=1):
        runs = listed(capsys, str(folder))
    assert Counter(run["state"] for run in runs) == {
        "complete": 98, "interrupted": 99, "failed": 96, "damaged": 7, "running": 1
    }  # fmt: skip
    assert {run["name"] for run in runs if run["error"]} == {f"damaged{number}" for number in range(7)}
    (one,) = [run for run in runs if run["name"] == "nested/run001"]
    assert {(run["done"], run["total"]) for run in runs if run["name"].startswith("killed")} == {(1, 2)}
    expected = {"done": 1, "total": 2, "applies": 0.5, "cost": 0.5, "model": "gpt-4o", "dataset": "lite.jsonl"}
    assert expected.items() <= one.items()
    assert one["prompt"] == "style3+oracle"
    assert one["differs"]["decoding.temperature"] == 0.1
    shutil.rmtree(folder / "running")

    capsys.readouterr()
    assert main([str(folder)]) == 0
    output, counts = capsys.readouterr()
    lines = output.splitlines()
    assert len(lines) == 301
    assert not any(c for c in output if not c.isprintable() and c != "\n")
    assert "300 runs (98 complete, 7 damaged, 96 failed, 99 interrupted)" in counts
    assert [line.split()[0] for line in lines].count("complete") == 1, "the link to a run is listed once"


def test_runs_are_filtered_by_any_key_and_sorted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warm = listed(capsys, str(folder), "decoding.temperature>0.75", "state=failed,interrupted", "--sort=-name")
    assert {run["differs"]["decoding.temperature"] for run in warm} == {0.8, 0.9}
    assert {run["state"] for run in warm} == {"failed", "interrupted"}
    assert names(warm) == sorted(names(warm), reverse=True)
    assert names(listed(capsys, str(folder), "model.name!=gpt-4o", "state=complete"))[0].startswith("ansi")
    assert len(listed(capsys, str(folder), "name=nested/run00?", "cost>=1")) == 4
    assert len(listed(capsys, str(folder), "model.temperature_limit=null", "age<1h", "name=run*")) == 0
    assert main(["list", str(folder), "decoding.temprature=1"]) == 2
    assert "did you mean decoding.temperature?" in capsys.readouterr().err
    assert (
        len(listed(capsys, str(folder), "applies >= 50%", "cost<$0.9", "state==failed", "decoding.temperature=1e-1"))
        == 10
    )
    for bad, said in (
        ("cost>cheap", "needs a number"), ("state!=complet", "did you mean complete?"), ("prce=1", "columns: name, "),
        ("outptus", "not found"), ("rm", "comes first"),
    ):  # fmt: skip
        assert main(["list", str(folder), bad]) == 2
        assert said in capsys.readouterr().err


def test_a_total_says_how_many_costs_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, usd in (("known", "0.5"), ("unknown", None)):
        made(tmp_path / name, usd=usd)
    assert main([str(tmp_path)]) == 0
    assert "2 runs (2 complete), $1.0000 without the unknown cost of 1\n" in capsys.readouterr().err


def test_the_list_shows_what_may_have_been_billed_as_comparisons_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "possibly_billed_usd": 0.25}))
    assert main([str(tmp_path)]) == 0
    assert compared([str(run)]) == 0
    found = capsys.readouterr().out
    assert found.count("$1.0000 (+ $0.2500?)") == 2, found


def test_help_imports_neither_hydra_nor_rich() -> None:
    code = (
        "import sys; from swe_infer.cli.runs import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('hydra', 'rich', 'numpy', 'pydantic', 'wandb') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_configuration_is_read_as_yaml_defines_it(tmp_path: Path) -> None:
    for path in [*(ROOT / "conf").glob("*/*.yaml")][:40]:
        text = path.read_text(encoding="utf-8")
        assert read_yaml(text.encode(), tmp_path) == yaml.safe_load(text), path
    values = {"a": ["1", 1, 1.5, True, None, "null", "", "a: b", "x\ny"], "n": {"1": {}, "k": []}, "l": "w " * 90}
    assert read_yaml(yaml.safe_dump(values).encode(), tmp_path) == values


def test_a_run_is_shown_and_resumed_after_a_move(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return commands.run(module, *arguments, cwd=tmp_path, env=environment)

    with ApiServer() as server:
        server.script("bad_request", None, None)
        options = ("tracker=none", "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset.limit=3")
        first = run("swe_infer", *options, "dataset.run_tests=false", "provider.max_concurrency=1", "sweep=label")
        assert first.returncode == 1, first.stderr
        directory = first.stdout.strip()
        (tmp_path / "kept").mkdir()
        moved = run("swe_infer.runs", "move", directory, "kept")
        assert moved.returncode == 0, moved.stderr
        place = moved.stdout.strip()
        shown = run("swe_infer.runs", "show", place)
        assert shown.returncode == 0, shown.stderr
        lines = dict(line.strip().partition(" ")[::2] for line in shown.stdout.splitlines()[1:])
        assert lines["state"].strip() == "failed"
        assert lines["sweep"].strip() == "label"
        assert "1 InvalidRequest" in lines["error"]
        assert "1 failed: " in lines["left"]
        assert "swe-infer tracker=none model=gpt-4o" in lines["started"]
        program, *resume = lines["resume"].split()
        assert program == "swe-infer"
        asked = len(server.log.exchanges)
        again = run("swe_infer", *resume)
        assert again.returncode == 0, again.stderr
        assert again.stdout.strip() == place
        assert len(server.log.exchanges) == asked + 1, "one request for what was left"
    done = json.loads((tmp_path / place / "summary.json").read_text())
    assert (done["completed"], done["failed"], done["remaining"]) == (3, 0, 0)


def test_the_current_directory_is_removed_by_its_name_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable of the shell that is not set."""
    run = made(tmp_path / "run", usd="0")
    monkeypatch.chdir(run)
    for arguments in (["rm", ""], ["move", "", str(tmp_path / "moved")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err == "error: a path is empty: name a path\n"
    assert run.is_dir()
    assert main(["rm", "."]) == 0
    assert list(tmp_path.iterdir()) == []


def test_rm_refuses_what_cost_money_is_running_or_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(["rm", *arguments]) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ")
        assert line.count("\n") == 1
        return line

    paid, free = made(tmp_path / "paid"), made(tmp_path / "free", usd="0")
    (paid / "summary.json").write_text('{"cost_usd": 0.0}')  # the records count
    assert "cost $1.0000; --force" in refused(str(paid))
    unreadable = made(tmp_path / "unreadable", usd="0", provider={"name": "openai"})
    (unreadable / "records.jsonl").write_bytes(b"\xff{\n")
    assert "1 unreadable lines, which may have cost money" in refused(str(unreadable))
    (unreadable / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "provider": {}}))
    assert main(["rm", str(unreadable)]) == 0, "the answers of a local model cost nothing"
    with opened(tmp_path / "busy", usd="0"):
        assert "in use by process" in refused(str(tmp_path / "busy"), "--force")
    single = made(tmp_path / "single", usd="0", locks="single_writer")
    with OwnerFile(single / ".lock", "a test"):
        assert "in use by process" in refused(str(single), "--force")
    assert "not a run directory" in refused(str(tmp_path))
    (tmp_path / "link").symlink_to(free)
    assert "symbolic link" in refused(str(tmp_path / "link"), "--force")
    (free / "notes").mkdir()
    assert "contains notes/, which no run writes" in refused(str(free), "--force")
    (free / "notes").rmdir()
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (free / "wandb").mkdir()
    (free / "wandb" / "latest-run").symlink_to(precious)
    assert main(["rm", str(tmp_path), "cost=0", "name=free", "--dry-run"]) == 0
    assert free.is_dir()
    assert main(["rm", str(tmp_path), "cost=0", "name=free"]) == 0
    assert main(["rm", str(paid), "--force"]) == 0
    assert (precious / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["busy", "link", "precious", "single"]


def other_file_system(near: Path) -> Path | None:
    """A folder on another file system than ``near``."""
    shared = Path("/dev/shm")
    usable = shared.is_dir() and os.access(shared, os.W_OK) and shared.stat().st_dev != near.stat().st_dev
    return shared / f"swe-infer-test-{os.getpid()}" if usable else None


def test_a_run_that_cannot_be_removed_is_not_moved_to_another_file_system(tmp_path: Path) -> None:
    target = other_file_system(tmp_path)
    if target is None:
        pytest.skip("no other file system")
    run = made(tmp_path / "closed" / "run")
    run.parent.chmod(0o500)
    command = [sys.executable, "-m", "swe_infer.runs", "move", str(run), str(target)]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-all", *command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "Permission denied" in done.stderr
        assert not target.exists()
        assert [path.name for path in run.parent.iterdir()] == ["run"]
    finally:
        run.parent.chmod(0o700)
        shutil.rmtree(target, ignore_errors=True)


def test_what_differs_leaves_out_what_the_model_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (model, temperature) in enumerate(
        [("gpt-4o", 0.0), ("gpt-4o", 0.5), ("claude-1", 0.0), ("claude-1", 0.0)]
    ):
        run = made(
            tmp_path / f"run{number}",
            model={"name": model, "context_window": len(model), "effort": len(model)},
            provider={"name": f"vendor of {model}", "timeout_s": len(model)},
            decoding={"temperature": temperature},
            dataset={"limit": len(model)},
        )
        record_provenance(
            run, {"command": f"swe-infer model.effort=1 dataset.limit={len(model)} model.name={model}"}, None
        )
    assert main(["list", str(tmp_path), "--sort=name"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert "limit=6 temperature=0.5" in lines[1]
    assert "effort=6" in lines[0], "a command sets it"
    assert not any(key in line for key in ("context_window", "timeout_s", "vendor") for line in lines)
    (tmp_path / "run0" / "records.jsonl").unlink()
    assert listed(capsys, str(tmp_path), "state=damaged")[0]["error"] == "records.jsonl: is missing"


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_moved_run_keeps_its_records_sweeps_and_wandb_state(
    elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    run, sweep = made(tmp_path / "outputs" / "run"), SweepLog(tmp_path / "outputs" / "sweeps" / "first", ("a=1",))
    sweep.reset(keep=False)
    sweep.record_end(run, 0)
    (run / "wandb").mkdir()
    write_state(run, {"run_id": "r", "online": False}, signing_key())
    long = Completion("x" * (9 << 20), "stop", Usage(output_tokens=1), Decimal("0.5"), 0.1)
    fallback = Fallback(run)  # a record that the disk of the run had no space for
    stored = fallback.append(
        json.dumps(record_of(("late", 0), long, PatchResult("", "none")), default=float).encode()
    )
    fallback.close()
    assert stored is not None
    assert stored.is_relative_to(tmp_path / "state")

    target = tmp_path / "moved"
    if elsewhere and (place := other_file_system(tmp_path)) is not None:
        target = place
    try:
        with RunStore(run, "gpt-4o"):
            assert main(["move", str(run), str(target)]) == 2
        assert "in use" in capsys.readouterr().err
        assert main(["move", str(run), str(target)]) == 0
        assert not run.exists()
        assert [record["instance_id"] for record in read_records(target / "records.jsonl")][-1] == "late"
        assert not any(fallback_lines(target).values())
        state = read_state(target)
        assert state is not None
        assert state.own
        assert [job.run for job in sweep.jobs()] == [str(target)]
        assert main(["move", str(target), str(sweep.directory / "runs.jsonl")]) == 2
        with RunStore(target, "gpt-4o") as store:
            assert store.resumed
            assert store.totals.cost_usd == Decimal("1.5")
        assert [path for path in target.parent.iterdir() if "moving" in path.name or "removed" in path.name] == []
    finally:
        if target != tmp_path / "moved":
            shutil.rmtree(target, ignore_errors=True)


def test_a_run_is_listed_with_all_of_its_sweeps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    for name in ("first", "second", "first"):
        record_provenance(run, {"command": "swe-infer -m"}, SweepMembership(name, "t=1", ("t=1",)))
    third = SweepLog(tmp_path / "sweeps" / "third", ("a=1",))
    third.reset(keep=False)
    third.record_end(run, 0)
    for one in ("first", "second", "third"):
        (found,) = listed(capsys, str(tmp_path), f"sweep={one}")
        assert found["sweeps"] == ["first", "second", "third"]
    assert listed(capsys, str(tmp_path), "sweep=fourth") == []
    ledger = third.directory / "sweep_ledger.sqlite"
    ledger.touch()
    with RunStore(run, "gpt-4o"):
        assert main(["rm", str(third.directory), "--force"]) == 2
    (third.directory / "mine").mkdir()
    assert main(["rm", str(third.directory), "--force"]) == 2
    (third.directory / "mine").rmdir()
    assert main(["rm", str(third.directory)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["in progress" in errors[0], "contains mine" in errors[1], "ledger" in errors[2]] == [True] * 3
    assert main(["show", str(third.directory)]) == 0
    assert "1 run (1 complete)" in capsys.readouterr().err
    assert main(["rm", str(third.directory), "--force"]) == 0
    assert not third.directory.exists()
    assert RunDirectory(run).summary()["cost_usd"] == Decimal(1)


def test_the_closing_table_of_an_offline_run_has_the_command_that_syncs_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(tmp_path / "a run")
    for address in (str(run / "wandb" / "offline-run-1"), "https://wandb.ai/team/project/runs/1", None):
        print_summary(RunDirectory(run).summary(), run, address)
    assert capsys.readouterr().err.count(f"swe-infer-runs sync '{run}'") == 1
    monkeypatch.chdir(tmp_path)
    print_summary(RunDirectory(run).summary(), Path("a run"), str(run / "wandb" / "offline-run-1"))
    assert "  tracker    a run/wandb/offline-run-1\n" in capsys.readouterr().err
