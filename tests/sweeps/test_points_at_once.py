"""The points of a sweep behind one API run at once, and one process logs all of them to W&B."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from swe_infer.run_directory.records import read_records
from tests.support.api_server import ApiServer
from tests.support.wandb_files import read_offline_runs
from tests.sweeps.command import Sweep

TEMPERATURES = "decoding.temperature=0.1,0.2"
OF_TIME = {"latency_s", "time"}
SAME = ("instances", "completed", "failed", "skipped", "remaining", "patches", "usage", "cost_usd", "apply_rate")


def records(run: Path) -> list[dict[str, Any]]:
    """The records without what depends on time, in a fixed order."""
    lines: list[Any] = list(read_records(run / "records.jsonl"))
    found = [{key: value for key, value in line.items() if key not in OF_TIME} for line in lines]
    for record in found:
        record["details"] = {**record["details"], "request_id": None}
    return sorted(found, key=lambda record: (record["instance_id"], record["sample"]))


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


def test_points_at_once_have_the_records_summaries_and_w_and_b_runs_of_points_in_turn(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.1, models=["gpt-4o"]) as server:
        sweep = Sweep(server, tmp_path)
        options = (TEMPERATURES, "decoding.n=2", "budget.sweep_max_usd=1", "tracker=wandb", "tracker.mode=offline")
        together = sweep.run(*options, "output_dir=together")
        assert together.returncode == 0, together.stderr
        paid = server.log.cost_usd()
        lines = together.stderr.splitlines()
        tables = [at for at, line in enumerate(lines) if line.startswith("  instances ")]
        assert [lines[at - 1] for at in tables] == [f"point {n} of 2 · temperature=0.{n}" for n in (1, 2)]
        assert max(in_flight(server)) > 3, "requests of several points are in flight together"
        in_turn = sweep.run(*options, "output_dir=in_turn", "runner.max_concurrent_jobs=1")
        assert in_turn.returncode == 0, in_turn.stderr
        assert server.log.cost_usd() == 2 * paid
    one, other = ([tmp_path / line for line in run.stdout.splitlines()] for run in (together, in_turn))
    assert [run.name for run in one] == [run.name for run in other]
    for run, alone in zip(one, other, strict=True):
        assert records(run) == records(alone)
        assert {key: summary(run)[key] for key in SAME} == {key: summary(alone)[key] for key in SAME}
        (tracked,), (expected,) = read_offline_runs(run), read_offline_runs(alone)
        for found in (tracked, expected):
            assert found.exit_code == 0
            assert found.table("predictions")["data"]
        kinds = [sorted(artifact["type"] for artifact in found.artifacts.values()) for found in (tracked, expected)]
        assert kinds[0] == kinds[1] == ["predictions", "run_table"]
        for key in ("display_name", "tags", "job_type"):
            assert tracked.run[key] == expected.run[key]
        for artifact in tracked.artifacts.values():
            for entry in artifact["manifest"]["contents"]:
                assert Path(entry["local_path"]).is_relative_to(run), "a run contains its own files"
    assert sum((Decimal(str(summary(run)["cost_usd"])) for run in one), Decimal(0)) == paid
    assert [run for run in one if (run / "wandb" / "worker.log").exists()] == one[:1], "one process logs all runs"


def in_flight(server: ApiServer) -> list[int]:
    """The number of requests in flight at each arrival."""
    spans = [(one.received_at, one.answered_at or float("inf")) for one in server.log.asked()]
    return [sum(start <= at < end for start, end in spans) for at, _ in spans]


def test_a_point_that_fails_costs_itself_alone_and_models_do_not_mix(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.02, models=["gpt-4o", "gpt-4o-mini"]) as server:
        sweep = Sweep(server, tmp_path)
        names = "model.name=gpt-4o,unknown,gpt-4o-mini"
        result = sweep.run(names, "decoding.temperature=0.1,0.2", "model.pricing=unknown")
        assert result.returncode == 2, result.stderr
    runs = [tmp_path / line for line in result.stdout.splitlines()]
    completed = {run.name: summary(run)["completed"] for run in runs}
    assert sorted(completed.values()) == [0, 0, 3, 3, 3, 3]
    assert all("unknown" in name for name, count in completed.items() if not count)


def test_a_sweep_whose_points_run_at_once_is_interrupted_and_the_same_command_resumes(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.5) as server:
        sweep = Sweep(server, tmp_path, count=8)
        options = (TEMPERATURES, "tracker=wandb", "tracker.mode=offline", "runner.limits.start=4")
        process = sweep.start(*options)
        wait_for(lambda: len(server.log.asked()) >= 4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert errors.count("interrupted: ") == 1
        server.latency_s = 0.0

        process = sweep.start(*options)
        guest = wait_for(lambda: guest_of(process.pid))
        os.kill(guest, signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert errors.count("W&B: the worker ended") == 1, errors
        assert set(server.log.answers_by_prompt().values()) == {2}, "no answer is paid for twice"

        again = sweep.run(*options)
        assert again.returncode == 0, again.stderr
        assert set(server.log.answers_by_prompt().values()) == {2}
        for run in (tmp_path / line for line in again.stdout.splitlines()):
            last = read_offline_runs(run)[-1]
            assert (last.exit_code, last.summary["completed"]) == (0, 8), "the resumed command completes the W&B run"


def wait_for(condition: Callable[[], int | None]) -> int:
    """The first true value of ``condition``."""
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def guest_of(pid: int) -> int | None:
    """The process that logs the runs of the command ``pid``."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            if b"tracking.guest" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    return None
