"""Jobs in several processes: one cap, one exit status, a lost worker, merged shards."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest

from swe_infer.api.ledger import Ledger
from tests.support.api_server import ApiServer
from tests.sweeps.command import Sweep

PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit_local": "hydra_submitit_launcher"}


@pytest.fixture(params=["joblib", pytest.param("submitit_local", marks=pytest.mark.full)])  # as a cluster is used
def launcher(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(f"hydra_plugins.{PLUGINS[request.param]}", reason="the extra is not installed")
    return f"hydra/launcher={request.param}"


@pytest.mark.full
@pytest.mark.parametrize("launcher", ["joblib"], indirect=True)
@pytest.mark.parametrize("short_in_turn", [True, False])
def test_parallel_jobs_share_one_cap_and_one_status(launcher: str, short_in_turn: bool, tmp_path: Path) -> None:
    """What the first launch spent counts in the second, whose workers start slowly."""
    cap = Decimal("0.06")
    arguments = (launcher, "decoding.temperature=0,1,7", "decoding.max_new_tokens=64")
    with ApiServer(latency_s=0.05) as server:
        sweep = Sweep(server, tmp_path, count=12)
        short = sweep.run(*arguments[short_in_turn:], f"budget.sweep_max_usd={cap / 10}")
        assert short.returncode == 3, short.stderr
        assert Decimal(0) < server.log.cost_usd() <= cap / 10
        whole = sweep.run(*arguments, f"budget.sweep_max_usd={cap}")
        assert whole.returncode == 2, whole.stderr
        assert set(server.log.answers_by_prompt().values()) == {2}, "each point once, over both launches"
        (ledger,) = tmp_path.rglob("sweep_ledger.sqlite")
        assert Ledger(ledger, cap, "look").spent_usd == server.log.cost_usd()
    assert len(whole.stdout.splitlines()) == 2, "run directories and nothing else, from other processes too"
    assert all((tmp_path / run / "summary.json").exists() for run in whole.stdout.splitlines())
    assert "exit 2: decoding.temperature=7 (" in whole.stderr
    assert "Paired differences" in whole.stderr
    assert "deprecated" not in whole.stderr
    assert "sweep: 3 points, 1 of them invalid · " in whole.stderr
    shown = [line for line in whole.stderr.splitlines() if "elapsed" in line]
    assert all(re.match(r"point [12] of 3 · temperature=[01] · \d+/12 ", line) for line in shown), "whole lines"
    assert {line.split(" · ")[1] for line in shown} == {"temperature=0", "temperature=1"}


def test_the_same_command_repeats_the_shards_of_a_lost_worker_and_merges_them(launcher: str, tmp_path: Path) -> None:
    arguments = (
        launcher, "shard.count=2", "shard.index=range(0,2)", "provider.max_concurrency=2", "runner.limits.start=1",
        f"output_dir={tmp_path / 'sweep'}", "budget.sweep_max_usd=9",
    )  # fmt: skip
    with ApiServer(latency_s=0.2) as server:
        sweep = Sweep(server, tmp_path, count=24)
        process = sweep.start(*arguments)
        while len(server.log.asked()) < 6 and process.poll() is None:
            time.sleep(0.01)
        os.kill(worker_of(process.pid), signal.SIGKILL)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 1, errors
        assert "Traceback" not in errors
        assert "lost: shard." in errors
        assert "Run the same command again to finish the rest" in errors
        server.latency_s = 0.0
        again = sweep.run(*arguments[1:])  # the runs are the same without the launcher, whose workers start slowly
        assert again.returncode == 0, again.stderr
        assert len(again.stdout.splitlines()) == 3
        merged = tmp_path / again.stdout.splitlines()[-1]
        assert merged.name == "merged"
        assert json.loads((merged / "summary.json").read_text())["completed"] == 24
        assert len((merged / "predictions.jsonl").read_text().splitlines()) == 24
        assert len(server.log.asked()) <= 24 + 4, "what was in flight when it died is all that is asked twice"
        (ledger,) = tmp_path.rglob("sweep_ledger.sqlite")
        assert Ledger(ledger, Decimal(9), "look").spent_usd >= server.log.cost_usd(), "of all processes"


def test_a_shard_with_a_failed_instance_is_not_merged_before_the_same_command_has_finished_it(tmp_path: Path) -> None:
    arguments = ("shard.count=2", "shard.index=range(0,2)")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=7)
        server.script("bad_request")
        first = sweep.run(*arguments)
        assert first.returncode == 1, first.stderr
        assert "Not merged yet: 1 of 2 shards" in first.stderr
        result = sweep.run(*arguments)
        assert result.returncode == 0, result.stderr
        merged = tmp_path / result.stdout.splitlines()[-1]
        assert json.loads((merged / "summary.json").read_text())["completed"] == 7
        assert len(server.log.asked()) == 8


@pytest.mark.full
def test_ctrl_c_ends_the_running_jobs_and_starts_no_other(launcher: str, tmp_path: Path) -> None:
    """submitit's processes are in other process groups, so the sweep forwards a terminal's Ctrl-C."""
    points = 2 if "submitit" in launcher else 3  # joblib starts one per core, submitit all
    temperatures = ",".join(["0", "0.5", "1"][:points])
    arguments = (
        launcher,
        f"decoding.temperature={temperatures}",
        "provider.max_concurrency=2",
        "runner.limits.start=1",
    )
    with ApiServer(latency_s=0.5) as server:
        sweep = Sweep(server, tmp_path, count=10)
        process = sweep.start(*arguments)
        while len(server.log.asked()) < 4 and process.poll() is None:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert errors.count("exit 130: ") == points
        assert "Traceback" not in errors
        server.latency_s = 0.0
        again = sweep.run(*arguments[1:])  # as above
        assert again.returncode == 0, again.stderr
        assert set(server.log.answers_by_prompt().values()) == {points}, "what was in flight was kept"


@pytest.mark.parametrize("launcher", ["joblib"], indirect=True)
def test_ctrl_c_while_workers_start_is_one_line(launcher: str, tmp_path: Path) -> None:
    """A worker that starts has no handler for a terminal's signals yet, so it inherits them blocked."""
    with ApiServer() as server:
        process = Sweep(server, tmp_path, count=2).start(launcher, "decoding.temperature=0,1")
        workers: list[int] = []
        while len(workers) < 2 and process.poll() is None:
            time.sleep(0.01)
            workers = [pid for pid in descendants(process.pid) if b"popen_loky" in of_process(pid, "cmdline")]
        masks = [re.findall(rb"SigBlk:\s(\w+)", of_process(pid, "status")) for pid in workers]
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert all(int(mask, 16) & 0b11 == 0b11 for found in masks for mask in found), "SIGHUP and SIGINT"
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert errors.count("interrupted") == 1


def of_process(pid: int, name: str) -> bytes:
    """A file of ``/proc``; empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def worker_of(pid: int) -> int:
    """A descendant of ``pid`` that executes a run: it has a run directory open."""
    for child in sorted(descendants(pid)):
        for descriptor in Path(f"/proc/{child}/fd").glob("*"):
            if "records.jsonl" in os.readlink(descriptor):
                return child
    raise AssertionError("no process runs a point")


def descendants(pid: int) -> set[int]:
    children = {int(p) for f in Path(f"/proc/{pid}/task").glob("*/children") for p in f.read_text().split()}
    return children | {below for child in children for below in descendants(child)}
