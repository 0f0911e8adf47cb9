"""``hydra/launcher=ray`` on a real cluster of two nodes. ``python -m benchmarks.cluster ray`` is the long version."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.support.ray_cluster import TwoNodes
from tests.sweeps.command import ROOT, Sweep

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # unclosed sockets and pipes of Ray's processes
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    os.environ["OPENAI_API_KEY"] = "sk-test"  # workers inherit the environment of the cluster's start
    with TwoNodes(jobs=2) as nodes:
        yield nodes
    del os.environ["OPENAI_API_KEY"]


def on(cluster: TwoNodes) -> list[str]:
    return ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={cluster.address}"]


def test_ctrl_c_reaches_the_jobs_of_a_cluster(cluster: TwoNodes, tmp_path: Path) -> None:
    arguments = [*on(cluster), "decoding.temperature=0,1", "provider.max_concurrency=2", "runner.limits.start=1"]
    with ApiServer(latency_s=0.5) as server:
        sweep = Sweep(server, tmp_path, count=40)
        process = sweep.start(*arguments)
        while len(server.log.asked()) < 4 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert errors.count("exit 130: ") == 2
        asked = server.log.asked()
        assert len(asked) < 60
        assert all(exchange.usable for exchange in asked), "requests in flight were answered and recorded"
        server.latency_s = 0.0
        again = sweep.run(*arguments)
        assert again.returncode == 0, again.stderr
        assert len(server.log.asked()) == 80
    assert len(again.stdout.splitlines()) == 2, "paths are relative to the folder where the sweep started"
    assert all((tmp_path / run / "summary.json").exists() for run in again.stdout.splitlines())


def test_a_lost_node_loses_only_requests_in_flight(tmp_path: Path) -> None:
    """In a separate process, since a driver can connect to one cluster only."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", "ray", "--shards", "4", "--instances", "25"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["points_running_on_the_lost_node"] > 0
    assert found["in_the_merged_run"] == 100
    assert (found["merged_more_than_once"], found["paid_twice_and_not_in_flight"]) == (0, 0)
    assert found["paid_usd"] <= found["cap_usd"]
    assert Counter(found["errors"]) == Counter()
