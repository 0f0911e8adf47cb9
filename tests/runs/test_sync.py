"""``swe-infer-runs sync`` against the stand-in W&B server, read back with W&B's own packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from swe_infer.compare.loading import load_runs
from swe_infer.run_directory.records import records_of
from swe_infer.run_directory.verdicts import Verdict, write_verdicts
from swe_infer.tracking.state import is_synced
from swe_infer.tracking.wandb import WandbTracker
from tests.support import commands
from tests.support.wandb_server import FakeWandbServer, served
from tests.tracking.scripted import CONFIG, info, play

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWandbServer]:
    with served(tmp_path_factory.mktemp("home")) as (server, _):
        yield server


def offline_runs(place: Path, count: int) -> Path:
    """Runs that were logged offline, and then moved."""
    tracker = WandbTracker(mode="offline", group="a-group", tags=("one",), log_interval_s=0.2)
    original = place / "before" / "run0"
    play(original, tracker, info(original), range(6), instances=6, failing=(2,))
    (original / "config.yaml").write_text(json.dumps(CONFIG))
    for number in range(1, count):
        copy = place / "before" / f"run{number}"
        shutil.copytree(original, copy)
        state = json.loads((copy / "wandb" / "state.json").read_text())
        (copy / "wandb" / "state.json").write_text(json.dumps({**state, "run_id": f"run-{number:04}"}))
    state = json.loads((original / "wandb" / "state.json").read_text())
    (original / "wandb" / "state.json").write_text(json.dumps({**state, "run_id": "run-0000"}))
    (place / "before").rename(place / "after")
    return place / "after"


def sync(folder: Path, *arguments: str, **environment: str) -> tuple[int, list[str], list[str]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = commands.run("swe_infer.runs", "sync", str(folder), *arguments, cwd=folder, env=env)
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def check_whole(server: FakeWandbServer, folder: Path, count: int) -> None:
    """The server has everything of the runs, by W&B's own reader."""
    assert len(server.runs) == count
    for run in server.runs.values():
        assert run.exit_code == 1, "an instance failed"
        assert [row["_step"] for row in run.history] == sorted({row["_step"] for row in run.history})
        assert [row["completed"] for row in run.history if row["_step"] == 5] == [4]
        assert all(row["_timestamp"] > 1e9 and row["_runtime"] >= 0 for row in run.history)
        assert run.summary["completed"] == 5
        assert run.summary["predictions"]["nrows"] == 6
        assert len(json.loads(run.files[run.summary["predictions"]["path"]])["data"]) == 6
        assert (run.fields["groupName"], run.fields["tags"]) == ("a-group", ["one"])
        assert run.config["decoding"]["value"] == CONFIG["decoding"]
    kinds = Counter(artifact["type"] for artifact in server.artifacts.values() if artifact.get("committed"))
    assert kinds.keys() == {"dataset", "model", "predictions", "run_table"}
    assert min(kinds.values()) >= count, "an interrupted upload may have sent some before"
    for artifact in server.artifacts.values():
        assert len(artifact["files"]) > 1
        assert all(artifact["files"].values()), "no file is empty"
    records = [a["files"]["records.jsonl"] for a in server.artifacts.values() if a["type"] == "predictions"]
    own = list(records_of((folder / "run0" / "records.jsonl").read_bytes()))
    assert all([r["model_patch"] for r in records_of(one)] == [r["model_patch"] for r in own] for one in records)
    assert not any(b"an answer" in one for one in records)
    downloaded = load_runs([f"wandb:team/swe-infer/{run_id}" for run_id in server.runs])
    assert [len(run.results) for run in downloaded] == [6] * count


def test_moved_offline_runs_arrive_whole_and_a_second_sync_sends_nothing(
    server: FakeWandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = offline_runs(tmp_path, 3)
    status, _, errors = sync(folder, WANDB_API_KEY="")
    assert (status, len(errors)) == (2, 1)
    assert "WANDB_API_KEY" in errors[0]
    command = commands.start(
        "swe_infer.runs", "sync", str(folder), "--processes", "1",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any(map(is_synced, folder.iterdir())):
        assert command.poll() is None, command.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=60)
    assert (command.returncode, told.count("\n")) == (130, 1), told

    status, output, errors = sync(folder, "--processes", "1", WANDB_MODE="offline", WANDB_RUN_ID="left-over")
    assert status == 0, errors
    assert 0 < len(output) < 3, "what was synced before the interrupt is not sent again"
    check_whole(server, folder, 3)
    assert not any((run / "wandb" / "data").exists() for run in folder.iterdir())

    received = len(server.bodies)
    status, output, errors = sync(folder)
    assert (status, output) == (0, [])
    assert "unchanged or not tracked with W&B: 3" in errors[0]
    assert len(server.bodies) == received

    first, copied = folder / "run0", tmp_path / "copied"
    write_verdicts(first, [Verdict("instance-0000", 0, resolved=True)], {("instance-0000", 0): 0})
    assert not is_synced(first), "it was evaluated since"
    shutil.copytree(first, copied)
    status, _, errors = sync(copied, XDG_STATE_HOME=str(tmp_path / "of-another-user"))
    assert status == 1
    assert "--wandb extends it" in errors[0], "a directory of somebody else does not choose one of the user's runs"


@pytest.mark.full
def test_without_a_server_nothing_is_synced(server: FakeWandbServer, tmp_path: Path) -> None:
    folder = offline_runs(tmp_path, 1)
    status, output, errors = sync(folder, "--processes", "1", WANDB_BASE_URL="http://127.0.0.1:9")
    assert (status, output, len(errors)) == (1, [], 1)
    assert "does not answer" in errors[0]
    assert not any(map(is_synced, folder.iterdir()))


@pytest.mark.full
def test_fifty_moved_offline_runs_arrive_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tmp_path / "home") as (server, _):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        folder = offline_runs(tmp_path, 50)
        status, output, errors = sync(folder)
        assert (status, len(output)) == (0, 50), errors
        check_whole(server, folder, 50)
        received = len(server.bodies)
        assert sync(folder)[0] == 0
        assert len(server.bodies) == received
