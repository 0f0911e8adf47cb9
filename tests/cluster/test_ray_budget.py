"""``budget.ledger=ray://NAME`` and ``runner.limits.shared=ray://NAME`` on a real cluster of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest

from swe_infer.api.ledger import Ledger
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.ray_cluster import TwoNodes

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")

SPENDER = """
import sys, time
from decimal import Decimal
from swe_infer.api.budget_client import Unreachable
from swe_infer.api.remote_ledger import RemoteLedger
ledger = RemoteLedger("ray://sweep", Decimal(1), sys.argv[1], "budget.ledger")
paid = 0
while True:
    try:
        hold = ledger.reserve(Decimal("0.04"))
    except Unreachable:
        time.sleep(0.1)
        continue
    if hold == "cannot_fit":
        break
    if hold != "wait":
        ledger.charge_later(hold, Decimal("0.01"))
        paid += 1
        print(paid, flush=True)
        time.sleep(0.2)
ledger.close()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster that ``RAY_ADDRESS`` names. Returns the folder with the files of the budgets."""
    before = dict(os.environ)
    state = tmp_path_factory.mktemp("state")
    os.environ |= {"XDG_STATE_HOME": str(state), "OPENAI_API_KEY": "sk-test"}
    with TwoNodes(jobs=2) as nodes:
        os.environ["RAY_ADDRESS"] = nodes.address
        yield state / "swe_infer" / "budgets"
    os.environ.clear()
    os.environ.update(before)


def budget_actor(folder: Path) -> int | None:
    """The process that has a file in ``folder`` open."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(folder) in os.readlink(file) for file in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # it has ended
            continue
    return None


@pytest.mark.full
@needs_ray
@pytest.mark.filterwarnings("ignore")  # unclosed sockets and pipes of Ray's processes
def test_workers_keep_one_cap_while_the_actor_is_killed(cluster: Path) -> None:
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen([sys.executable, "-c", SPENDER, f"run{n}"], stdout=subprocess.PIPE, text=True)
            )
            for n in range(5)
        ]
        outputs = [worker.stdout for worker in workers if worker.stdout is not None]
        killed: list[int] = []
        for _ in range(2):
            assert all(output.readline() for output in outputs)
            while (actor := budget_actor(cluster)) is None or actor in killed:
                time.sleep(0.1)
            os.kill(actor, signal.SIGKILL)
            killed.append(actor)
        last = [output.read().splitlines()[-1] for output in outputs]
    assert [worker.returncode for worker in workers] == [0] * 5
    total = sum(map(int, last)) * Decimal("0.01")
    ledger = Ledger(cluster / "sweep.ledger.sqlite", Decimal(1), "look")
    assert Decimal("0.9") < total <= ledger.spent_usd <= 1
    ledger.close()


@pytest.mark.full
@needs_ray
@pytest.mark.filterwarnings("ignore")
def test_a_run_and_a_sweep_keep_one_cap_and_one_rate_through_the_cluster(cluster: Path, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="the extra ray is not installed")
    cap = Decimal("0.03")
    launcher = ("hydra/launcher=ray", "hydra.launcher.ray.init.address=auto", "shard.count=2", "shard.index=0,1")
    with ApiServer(latency_s=0.05) as server:
        data = write_instances(tmp_path / "instances.jsonl", 60)
        started = [
            commands.start(
                "swe_infer", "tracker=none", "model=gpt-4o", "dataset=jsonl", f"dataset.path={data}",
                f"provider.base_url={server.openai_url}", "decoding.max_new_tokens=64", f"budget.sweep_max_usd={cap}",
                "budget.ledger=ray://runs", "runner.limits.shared=ray://key", *arguments,
                cwd=tmp_path, env=os.environ,
            )
            for arguments in ((), ("-m", *launcher))
        ]  # fmt: skip
        for run in started:
            output, errors = run.communicate(timeout=300)
            assert run.returncode == 3, errors
            assert all(line.startswith("outputs/") for line in output.splitlines()), "Ray prints nothing here"
        assert cap / 2 < server.log.cost_usd() <= cap
    assert {"runs.ledger.sqlite", "key.limits.sqlite"} <= {path.name for path in cluster.iterdir()}


@pytest.mark.parametrize(
    ("key", "environment", "expected"),
    [
        ("budget.ledger=ray://sweep", {}, "pip install 'swe_infer[ray]'"),
        ("runner.limits.shared=ray://key", {"RAY_ADDRESS": "127.0.0.1:1"}, "no Ray cluster at 127.0.0.1:1 "),
        (
            "runner.limits.shared=ray://key",
            {"RAY_ADDRESS": "", "RAY_TMPDIR": "temporary"},
            "no Ray cluster at 127.0.0.1:2 ",
        ),
    ],
)
def test_without_a_cluster_a_run_is_refused(
    key: str, environment: dict[str, str], expected: str, tmp_path: Path
) -> None:
    if ("pip" in expected) != (find_spec("ray") is None):
        pytest.skip("the extra ray is installed" if "pip" in expected else "the extra ray is not installed")
    last_cluster = tmp_path / "temporary" / "ray" / "ray_current_cluster"
    last_cluster.parent.mkdir(parents=True)
    last_cluster.write_text("127.0.0.1:2")  # it has ended
    data = write_instances(tmp_path / "instances.jsonl", 2)
    run = commands.start(
        "swe_infer", "tracker=none", "model=gpt-4o", "dataset=jsonl", f"dataset.path={data}",
        "provider.base_url=http://127.0.0.1:1/v1", "budget.sweep_max_usd=1", key, cwd=tmp_path,
        env={**os.environ, "OPENAI_API_KEY": "sk-test", **environment},
    )  # fmt: skip
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 2, errors
    assert errors.startswith(f"error: {key}: ")
    assert expected in errors
    assert errors.count("\n") == 1, "one line"
