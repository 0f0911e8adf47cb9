"""``runner=ray``: local models on a real Ray cluster that loses a node, and the error without Ray."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import commands
from tests.support.instances import write_instances
from tests.support.ray_cluster import TwoNodes
from tests.sweeps.command import ROOT

COUNT = 60
COMPARED = ("full_output", "model_patch", "patch_status", "patch_reason", "patch_format")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(home: Path, *arguments: str) -> list[str]:
    """A run of a random Llama over ``COUNT`` instances of 100 tokens, with 8 sequences at once in each engine."""
    if not (home / "model").exists():
        from tests.support.checkpoints import make_checkpoint

        make_checkpoint(home / "model")
        write_instances(home / "instances.jsonl", COUNT)
    return [
        sys.executable, "-m", "swe_infer", "tracker=none", "model=llama", "model.path=model",
        "dataset=jsonl", "dataset.path=instances.jsonl", "decoding.max_new_tokens=100", "runner.max_sequences=8",
        "runner.kv_cache_gb=0.05", *arguments,
    ]  # fmt: skip


def answers(run: Path) -> dict[str, list[str | None]]:
    """The output of each instance, and its patch. Duplicates are an error."""
    records = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    found = {record["instance_id"]: [record[name] for name in COMPARED] for record in records}
    assert len(found) == len(records)
    assert {record["status"] for record in records} == {"completed"}
    return found


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_extra_is_a_one_line_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "swe_infer", "tracker=none", "runner=ray"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: runner=ray: needs an extra that is not installed; pip install 'swe_infer[ray]'\n"


@pytest.mark.full
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_a_missing_cluster_is_an_immediate_one_line_error(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, but not listening
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        command = [sys.executable, "-m", "swe_infer", "tracker=none", "runner=ray", f"runner.ray.address={address}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
        )
    assert done.returncode == 2
    assert f"runner.ray.address={address}: no Ray cluster ([Errno 111] Connection refused)" in done.stderr


@pytest.mark.full
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
@pytest.mark.filterwarnings("ignore")  # unclosed sockets and pipes of Ray's processes
def test_a_lost_node_s_instances_move_to_the_other_with_the_same_outputs(tmp_path: Path) -> None:
    one = subprocess.run(
        command(tmp_path, "output_dir=one"), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, check=True
    )
    assert one.stdout.decode().splitlines() == ["one"]
    with TwoNodes(jobs=1) as nodes, (tmp_path / "log").open("w+") as log:
        on_ray = command(tmp_path, "runner=ray", f"runner.ray.address={nodes.address}", "output_dir=two")
        run = subprocess.Popen(on_ray, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=log)
        # Pause the first engine until the other one is ready, so that both get work.
        first = engine_that_is_ready(1, tmp_path / "log", run)
        commands.pause(first)
        engine_that_is_ready(2, tmp_path / "log", run)
        os.kill(first, signal.SIGCONT)
        nodes.kill_second()
        run.communicate(timeout=120)
        log_text = (tmp_path / "log").read_text()
        assert run.returncode == 0, log_text
        assert re.search(r"; its [1-8] requests go to engines that are ready", log_text), log_text
        assert answers(tmp_path / "two") == answers(tmp_path / "one")
        assert nodes.engines() == [], "no engine is left behind"


@pytest.mark.full
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_lost_and_added_nodes_hung_engines_and_a_killed_driver_cost_only_requests_in_flight(tmp_path: Path) -> None:
    """In a separate process, since a driver can connect to one cluster only."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", "engines", "--instances", "150"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["engines_lost"] >= 4
    message = found["failed"]["fatal"]["message"]
    assert message.startswith("4 engines ended while they computed this request; the last one: the engine on "), (
        message
    )


def engine_that_is_ready(number: int, log: Path, run: subprocess.Popen[bytes]) -> int:
    """The process of the engine that became ready as the ``number``-th of two."""
    while run.poll() is None:
        found = re.search(rf"process (\d+) is ready, {number} of 2", log.read_text())
        if found:
            return int(found[1])
        time.sleep(0.02)
    raise AssertionError(log.read_text())
