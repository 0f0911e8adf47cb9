"""Online runs of the real SDK against a fake server, checked on the server."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swe_infer.run_directory.records import records_of
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.tracking.writer import SweepWriter
from tests.support import commands
from tests.support.wandb_files import read_offline_runs
from tests.support.wandb_server import API_KEY, FakeWandbServer, served
from tests.tracking.scripted import CONFIG, info, play


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeWandbServer]:
    with served(tmp_path_factory.mktemp("home")) as (server, _):
        yield server


class _Keep(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@dataclass
class Online:
    """A run in two sessions, and the server that received it."""

    server: FakeWandbServer
    directory: Path
    address: str | None
    warnings: list[str]


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Online]:
    directory = tmp_path_factory.mktemp("run")
    records: list[logging.LogRecord] = []
    handler = _Keep(records)
    logging.getLogger("swe_infer").addHandler(handler)
    try:
        with served(tmp_path_factory.mktemp("home")) as (server, _):
            for numbers in (range(4), range(4, 12)):
                tracker = WandbTracker(project="a-project", group="a-group", tags=("one",), log_interval_s=0.2)
                play(directory, tracker, info(directory), numbers, failing=(5,), pause_s=0.15)
            yield Online(server, directory, tracker.address, [record.getMessage() for record in records])
    finally:
        logging.getLogger("swe_infer").removeHandler(handler)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_with_a_key_the_server_gets_both_sessions_as_one_run(online: Online) -> None:
    assert online.warnings == []
    (run,) = online.server.runs.values()
    assert online.address == f"{online.server.url}/team/a-project/runs/run-0001"
    assert (run.run_id, run.exit_code, run.sessions) == ("run-0001", 0, 2)
    assert run.fields["groupName"] == "a-group"
    assert run.fields["tags"] == ["one"]
    assert {key: run.config[key]["value"] for key in CONFIG} == CONFIG
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    assert len(steps) >= 3
    assert run.summary["completed"] == 11
    assert run.summary["cost_usd"] == pytest.approx(0.11)
    assert any(name.startswith("media/table/predictions") for name in run.files)


def test_artifacts_give_the_lineage_from_dataset_and_model_to_predictions(online: Online) -> None:
    kinds = {artifact["type"]: artifact for artifact in online.server.artifacts.values()}
    assert set(kinds) == {"dataset", "model", "predictions", "run_table"}
    assert all(artifact.get("committed") for artifact in online.server.artifacts.values())
    inputs = {i for i, artifact in online.server.artifacts.items() if artifact["type"] in ("dataset", "model")}
    assert set(online.server.used_artifacts) == inputs
    uploaded = kinds["predictions"]["files"]["records.jsonl"]
    assert b"an answer" not in uploaded
    own = (online.directory / "records.jsonl").read_bytes()
    assert [record["model_patch"] for record in records_of(uploaded)] == [r["model_patch"] for r in records_of(own)]
    assert not (online.directory / "wandb" / "data").exists()  # the copies for the upload


def test_no_secret_reaches_the_server_but_the_key_in_its_header(online: Online) -> None:
    assert online.server.authorizations == {API_KEY}
    sent = b"\n".join(online.server.bodies)
    assert b"run-0001" in sent
    assert API_KEY.encode() not in sent
    assert b"sk-openai-canary" not in sent
    for path in online.directory.rglob("*"):
        assert not path.is_file() or API_KEY.encode() not in path.read_bytes()


def test_a_server_that_is_down_costs_one_warning_and_a_later_sync_is_whole(
    server: FakeWandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    tracker = WandbTracker(log_interval_s=0.2, init_timeout_s=2.0)
    play(tmp_path, tracker, info(tmp_path), range(8), instances=8)
    (tmp_path / "config.yaml").write_text(json.dumps(CONFIG))
    (warning,) = warnings(caplog)
    assert "logged offline" in warning
    assert tracker.address is not None
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    assert f"swe-infer-runs sync {tmp_path}" in warning
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = commands.run("swe_infer.runs", "sync", str(tmp_path), cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert run.summary["completed"] == 8
    assert run.exit_code == 0
    assert {a["type"] for a in server.artifacts.values() if a.get("committed")} >= {"dataset", "model", "predictions"}
    assert len(server.used_artifacts) == 2


@pytest.mark.parametrize("fault", ["hang", pytest.param("error", marks=pytest.mark.full)])
def test_a_server_that_does_not_answer_leads_to_an_offline_run(
    fault: str, server: FakeWandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = "hang" if fault == "hang" else "error"
    play(tmp_path, WandbTracker(init_timeout_s=1.0, finish_timeout_s=300.0), info(tmp_path), range(4))
    assert len(warnings(caplog)) == 1
    assert read_offline_runs(tmp_path)[-1].summary["completed"] == 4


def test_a_sweep_logs_in_one_process_and_offline_once_the_server_does_not_answer(
    server: FakeWandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = SweepWriter()
    for number in range(4):
        if number >= 2:
            writer.wait()
        if number == 2:
            assert {run.run_id: run.exit_code for run in server.runs.values()} == {"run-0": 0, "run-1": 0}
            server.fault = "error"
        directory = tmp_path / str(number)
        tracker = WandbTracker(init_timeout_s=1.0 if number >= 2 else 60.0, finish_timeout_s=300.0)
        tracker.share(writer)
        play(directory, tracker, info(directory, f"run-{number}"), range(number + 1))
    writer.finish()
    assert set(server.runs) == {"run-0", "run-1"}
    assert server.runs["run-1"].summary["completed"] == 2
    (warning,) = warnings(caplog)
    assert "from now on this command is logged offline" in warning
    assert not any(b"run-3" in body for body in server.bodies), "the server is not asked again"
    for number in (2, 3):
        directory = tmp_path / str(number)
        (offline,) = (run for run in read_offline_runs(directory) if run.directory.name.startswith("offline-run-"))
        assert (offline.exit_code, offline.summary["completed"]) == (0, number + 1)
        assert not WandbTracker().is_incomplete(info(directory))


def test_a_server_that_hangs_in_the_middle_neither_slows_the_run_nor_holds_its_end(
    server: FakeWandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def hang() -> None:
        deadline = time.monotonic() + 120
        while not server.runs and time.monotonic() < deadline:
            time.sleep(0.02)
        server.fault = "hang"

    thread = threading.Thread(target=hang)
    thread.start()
    tracker = WandbTracker(log_interval_s=0.2, init_timeout_s=60.0, finish_timeout_s=6.0)
    play(tmp_path, tracker, info(tmp_path), range(100), instances=100, pause_s=0.02)
    thread.join()
    assert len(warnings(caplog)) == 1
    run = read_offline_runs(tmp_path)[0]  # what the server did not take is on disk
    assert run.run["run_id"] == "run-0001"
    assert run.history[-1]["completed"] > 10


def test_under_a_sweep_agent_the_run_is_the_agents(
    server: FakeWandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = {"SWEEP_ID": "s1", "RUN_ID": "agent-run", "PROJECT": "sweep-project", "ENTITY": "team"}
    for name, value in agent.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    play(tmp_path, WandbTracker(project="another"), info(tmp_path), range(2), instances=2)
    (run,) = server.runs.values()
    assert run.run_id == "agent-run"
    assert run.fields["project"] == "sweep-project"
    assert run.fields["sweep"] == "s1"
    assert run.summary["apply_rate"] == 1.0

    for name in agent:  # an evaluation, later and elsewhere
        monkeypatch.delenv(f"WANDB_{name}")
    again = WandbTracker.of_run(tmp_path)
    assert again is not None
    tracker, later = again
    tracker.start(later)
    tracker.finish({"completed": 2, "resolved": 1}, [], 0)
    assert list(server.runs.values()) == [run]
    assert (run.fields["project"], run.fields["entity"]) == ("sweep-project", "team")
    assert run.summary["resolved"] == 1
