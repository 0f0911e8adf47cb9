"""Offline runs of the real SDK, read back from the files that it wrote."""

from __future__ import annotations

import ast
import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from swe_infer.tracking.wandb import WandbTracker
from tests.support.wandb_files import OfflineRun, read_offline_runs
from tests.support.wandb_server import API_KEY, served
from tests.tracking.scripted import CONFIG, SUMMARY_KEYS, info, play

SECRETS = {
    "OPENAI_API_KEY": "sk-openai-canary-1",
    "ANTHROPIC_API_KEY": "sk-anthropic-canary-2",
    "HF_TOKEN": "hf-canary-3",
    "DATABASE_PASSWORD": "canary-4",
}


LISTED = """
import atexit, sys
from pathlib import Path
atexit.register(lambda: Path("{file}").write_text(repr([*sys.modules])))
"""


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str | None]:
    """A run with ten answers, a failure and a skip: run directory, home directory, tracker address. WANDB_MODE is
    offline, and there is a key. The worker leaves the names of its modules in the run directory."""
    directory, home = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("home")
    startup = tmp_path_factory.mktemp("startup")
    (startup / "sitecustomize.py").write_text(LISTED.format(file=directory / "modules"))
    with served(home) as (server, patch):
        patch.setenv("PYTHONPATH", str(startup))
        for name in [n for n in os.environ if n.startswith("XDG_")]:
            patch.delenv(name)
        for name, value in {**SECRETS, "WANDB_MODE": "offline"}.items():
            patch.setenv(name, value)
        tracker = WandbTracker(
            project="a-project",
            group="a-group",
            job_type="inference",
            tags=("one", "two"),
            notes="n",
            log_interval_s=0.2,
        )
        run = info(directory)
        play(directory, tracker, run, range(12), failing=(5,), skipped=(6,), pause_s=0.15, exit_status=1)
        assert server.bodies == [], "WANDB_MODE=offline wins over a key"
    return directory, home, tracker.address


@pytest.fixture(scope="module")
def offline(tracked: tuple[Path, Path, str | None]) -> OfflineRun:
    (run,) = read_offline_runs(tracked[0])
    return run


def test_the_run_carries_id_name_group_tags_and_the_resolved_configuration(offline: OfflineRun) -> None:
    assert offline.run["run_id"] == "run-0001"
    assert offline.run["display_name"] == "some-model on swe-bench"
    assert offline.run["project"] == "a-project"
    assert offline.run["run_group"] == "a-group"
    assert offline.run["job_type"] == "inference"
    assert offline.run["notes"] == "n"
    assert offline.run["tags"] == ["one", "two"]
    assert offline.config == CONFIG
    assert offline.exit_code == 1


def test_live_metrics_grow_with_the_finished_samples_as_their_step(offline: OfflineRun) -> None:
    live = [row for row in offline.history if "predictions._type" not in row]
    assert len(live) >= 3
    steps = [row["_step"] for row in offline.history]
    assert steps == sorted(set(steps))
    assert steps[-1] == 12
    for row in live:
        assert row["_step"] == row["completed"] + row["failed"] + row["skipped"]
        assert row.keys() >= SUMMARY_KEYS
        assert row["engine/concurrency"] == 4
    assert [row["cost_usd"] for row in live] == sorted(row["cost_usd"] for row in live)
    assert any("window/latency_s_p95" in row for row in live)


def test_the_summary_holds_the_last_totals_under_plain_names(offline: OfflineRun) -> None:
    expected = {
        "instances": 12,
        "completed": 10,
        "failed": 1,
        "skipped": 1,
        "remaining": 0,
        "cost_usd": 0.1,
        "tokens/input": 100 * (66 - 11),
        "tokens/cached_input": 100,
        "tokens/output": 66 - 11,
        "patches/applies": 3,
        "patches/repaired": 2,
        "patches/does_not_apply": 2,
        "patches/none": 3,
        "apply_rate": 0.416667,
        "failure_rate": 1 / 11,
        "latency_s_mean": 5.5,
        "latency_s_max": 11,
    }
    assert {key: offline.summary[key] for key in expected} == pytest.approx(expected)
    assert not [key for key in offline.summary if key.startswith(("window/", "over_usd/"))]


def test_metrics_have_axes_over_time_and_over_dollars(offline: OfflineRun) -> None:
    assert offline.metrics["apply_rate"]["step_metric"] == "elapsed_s"
    assert offline.metrics["over_usd/*"]["step_metric"] == "cost_usd"
    row = offline.history[-2]
    assert row["over_usd/apply_rate"] == row["apply_rate"]


def test_the_table_has_a_row_for_every_sample(offline: OfflineRun) -> None:
    table = offline.table("predictions")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["instance_id"] for row in rows] == [f"instance-{n:04}" for n in range(12)]
    first, failed, skipped, last = rows[4], rows[5], rows[6], rows[10]
    expected = {"sample": 0, "status": "completed", "finish_reason": "stop", "patch_status": "applies"}
    expected |= {"prompt_tokens": 400, "cached_tokens": 10, "output_tokens": 4, "cost_usd": 0.01, "latency_s": 4.0}
    assert expected.items() <= first.items()
    assert failed["status"] == "failed"
    assert failed["error"] == "RateLimited: 429 after all tries"
    assert skipped["status"] == "skipped"
    assert last["patch"].startswith("x" * 4000)
    assert last["patch"].endswith("6000 characters more")


def test_the_artifact_of_the_table_is_complete(offline: OfflineRun) -> None:
    (entry,) = offline.artifacts["run-run-0001-predictions"]["manifest"]["contents"]
    kept, shown = json.loads(Path(entry["local_path"]).read_text()), offline.table("predictions")
    types = kept.pop("column_types")["params"]["type_map"]
    size = {"nrows": 12, "ncols": len(shown["columns"])}
    assert kept == {"_type": "table", "log_mode": "IMMUTABLE", **size, **shown}
    assert types.keys() == set(shown["columns"])


def test_histograms_count_every_completed_sample(offline: OfflineRun) -> None:
    last = offline.history[-1]
    for name in ("latency_s", "prompt_tokens", "output_tokens"):
        assert last[f"histograms/{name}._type"] == "histogram"
        counts, edges = last[f"histograms/{name}.values"], last[f"histograms/{name}.bins"]
        assert sum(counts) == 10
        assert len(edges) == len(counts) + 1
    assert last["histograms/latency_s.bins"][0] == 0
    assert last["histograms/latency_s.bins"][-1] == 11


def test_the_files_of_the_run_are_an_output_artifact(offline: OfflineRun) -> None:
    predictions = offline.artifacts["predictions-run-0001"]
    assert predictions["type"] == "predictions"
    files = {entry["path"] for entry in predictions["manifest"]["contents"]}
    assert files == {"predictions.jsonl", "records.jsonl"}
    assert not [name for name in offline.artifacts if name.startswith(("dataset-", "model-"))], "added by a sync"


def test_nothing_about_the_machine_or_its_user_and_no_secret_is_written(
    offline: OfflineRun, tracked: tuple[Path, Path, str | None]
) -> None:
    assert "environment" not in offline.kinds  # command line, executable, program, git, e-mail
    assert not {"host", "git", "settings"} & offline.run.keys()
    for path in (tracked[0] / "wandb").rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        for secret in (*SECRETS.values(), API_KEY):
            assert secret.encode() not in data, f"{path} holds a secret"
        if path.suffix == ".wandb":
            assert socket.gethostname().encode() not in data or len(socket.gethostname()) < 4
            assert getpass.getuser().encode() not in data or len(getpass.getuser()) < 5


def test_all_files_are_in_the_run_directory_without_links(tracked: tuple[Path, Path, str | None]) -> None:
    directory, home, address = tracked
    key = home / ".local" / "state" / "swe_infer" / "wandb-state.key"
    assert [path for path in home.rglob("*") if path.is_file()] == [key]
    assert key.stat().st_mode & 0o777 == 0o600
    assert [path for path in directory.rglob("*") if path.is_symlink()] == []
    assert address is not None
    assert Path(address).parent == directory / "wandb"


def test_the_worker_imports_nothing_of_the_sdk_that_it_does_not_use(tracked: tuple[Path, Path, str | None]) -> None:
    modules = ast.literal_eval((tracked[0] / "modules").read_text())
    assert "wandb.sdk.wandb_run" in modules
    assert not {"numpy._core", "requests", "wandb.apis.public", "wandb.sdk.launch"} & set(modules)


def test_a_resumed_run_goes_on_under_its_id_with_growing_steps_and_a_whole_table(tmp_path: Path) -> None:
    for numbers, failing in ((range(6), (5,)), (range(5, 9), ())):
        tracker = WandbTracker(log_interval_s=0.2)
        play(tmp_path, tracker, info(tmp_path, resumed=failing == ()), numbers, failing=failing, pause_s=0.12)
    first, second = read_offline_runs(tmp_path)
    assert first.run["run_id"] == second.run["run_id"] == "run-0001"
    steps = [row["_step"] for row in first.history + second.history]
    assert steps == sorted(set(steps))
    assert second.history[0]["completed"] >= 6  # totals, not counts of this process
    assert second.summary["completed"] == 9
    assert second.summary["failed"] == 0
    assert second.summary["cost_usd"] == pytest.approx(0.09)
    assert [row[2] for row in second.table("predictions")["data"]] == ["completed"] * 9
    for session, lines in ((first, 6), (second, 10)):  # what a later sync uploads of each
        contents = session.artifacts["predictions-run-0001"]["manifest"]["contents"]
        (copy,) = (Path(entry["local_path"]) for entry in contents if entry["path"] == "records.jsonl")
        assert copy.is_relative_to(tmp_path)
        assert len(copy.read_bytes().splitlines()) == lines


def test_concurrent_runs_in_one_process_are_independent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "left-over")  # would merge them

    def one(number: int) -> None:
        directory = tmp_path / str(number)
        play(directory, WandbTracker(log_interval_s=0.2), info(directory, f"run-{number}"), range(number + 2))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, range(2)))
    for number in range(2):
        (run,) = read_offline_runs(tmp_path / str(number))
        assert run.run["run_id"] == f"run-{number}"
        assert run.summary["completed"] == number + 2


def test_odd_names_are_shortened_and_a_spent_budget_and_many_failures_raise_alerts(tmp_path: Path) -> None:
    tags = ("k=" + "ü" * 100, "k=" + "ü" * 101, "k=\udcff a\nb")
    config = {**CONFIG, "budget": {"max_usd": "0.16"}}
    names = {"name": "n\x1b[31m" * 200, "group": "a\n" + "g" * 200, "job_type": "run"}
    run, failing = info(tmp_path, **names, tags=tags, config=config), tuple(range(0, 20, 2))
    play(tmp_path, WandbTracker(log_interval_s=0.2), run, range(25), instances=25, failing=failing)
    (offline,) = read_offline_runs(tmp_path)
    assert [len(tag) for tag in offline.run["tags"]] == [64, 64, 10]
    assert len(set(offline.run["tags"])) == 3
    assert len(offline.run["run_group"]) == len(offline.run["display_name"]) == 128
    found = WandbTracker.of_run(tmp_path)
    assert found is not None
    assert (found[1].group, list(found[1].tags)) == (offline.run["run_group"], offline.run["tags"])
    assert sorted(alert["title"] for alert in offline.alerts) == ["Budget nearly used", "Many failures"]


KILLED = """
import os, subprocess, sys, threading, time
from pathlib import Path
from swe_infer.tracking.wandb import WandbTracker
from tests.support.wandb_files import read_offline_runs
from tests.tracking.scripted import info, play
directory = Path(sys.argv[1])
def kill_later():
    while True:
        try:
            if any(len(run.history) >= 2 for run in read_offline_runs(directory)):
                break
        except (AssertionError, subprocess.CalledProcessError):
            pass  # nothing whole is on disk yet
        time.sleep(0.2)
    os.kill(os.getpid(), 9)
threading.Thread(target=kill_later).start()
play(directory, WandbTracker(log_interval_s=0.2), info(directory), range(10_000), instances=10_000, pause_s=0.05)
"""


def test_a_killed_run_leaves_its_metrics_and_shows_as_crashed(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=env, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while True:
        (run,) = read_offline_runs(tmp_path)
        if run.exit_code is not None or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert run.exit_code == 255
    assert len(run.history) >= 2
    assert run.history[-1]["completed"] > 1


@pytest.fixture
def moved(tracked: tuple[Path, Path, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run in another place, and its user's home directory."""
    directory, home, _ = tracked
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(home))
    state = (directory / "wandb" / "state.json").read_text()
    directory.rename(tmp_path / "moved")
    yield tmp_path / "moved"
    (tmp_path / "moved").rename(directory)
    (directory / "wandb" / "state.json").write_text(state)


def test_the_api_key_is_used_only_for_directories_that_this_user_tracked(
    moved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    received = tmp_path / "received"
    shutil.copytree(moved, received, symlinks=True)
    assert WandbTracker.of_run(moved) is not None
    assert caplog.messages == []
    assert WandbTracker.of_run(received) is None
    assert "pass --wandb to send it" in caplog.text
    assert WandbTracker.of_run(received, trusted=True) is not None
    state = json.loads((moved / "wandb" / "state.json").read_text())
    (moved / "wandb" / "state.json").write_text(json.dumps({**state, "run_id": "another"}))
    assert WandbTracker.of_run(moved) is None, "what was changed since is not the user's own"


def test_a_link_in_its_folder_is_not_written_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "run" / "wandb"
    folder.mkdir(parents=True)
    precious.write_text("mine\n")
    for name in ("worker.log", "state.json"):
        (folder / name).symlink_to(precious)
    play(tmp_path / "run", WandbTracker(), info(tmp_path / "run"), range(1), instances=1)
    assert "state.json: is a symbolic link" in caplog.text
    assert precious.read_text() == "mine\n"
    assert (tmp_path / "run" / "summary.json").exists(), "the run goes on"
