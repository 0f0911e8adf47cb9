"""``hydra/launcher=submitit_slurm`` on a real Slurm, if a controller answers; tests/README.md explains the setup."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.sweeps.command import Sweep


def slurm_answers() -> bool:
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=30, check=False)
    return ping.returncode == 0 and " UP" in ping.stdout


def has_accounting() -> bool:
    """Without accounting submitit is not notified of a job that ended without a result, and waits for it."""
    if shutil.which("sacct") is None:
        return False
    done = subprocess.run(["sacct", "-o", "JobID,State,NodeList", "--parsable2", "-j", "1"], check=False)
    return done.returncode == 0


pytestmark = [pytest.mark.full, pytest.mark.skipif(not slurm_answers(), reason="no Slurm controller answers")]


def test_shards_as_jobs_of_an_array_become_one_run(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra is not installed")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=9)
        result = sweep.run(
            "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5",
            "shard.count=2", "shard.index=0,1", "budget.sweep_max_usd=1", f"output_dir={tmp_path / 'sweep'}",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        assert set(server.log.answers_by_prompt().values()) == {1}
    merged = Path(result.stdout.splitlines()[-1])
    assert merged.name == "merged"
    assert json.loads((merged / "summary.json").read_text())["completed"] == 9
    jobs = {path.name.partition("_")[0] for path in (tmp_path / "sweep" / "logs").glob("[0-9]*_*")}
    assert len(jobs) == 1, "one job array"


def test_a_cancelled_job_keeps_its_records_and_the_same_command_finishes(tmp_path: Path) -> None:
    lose_a_job(tmp_path, cancel)


@pytest.mark.skipif(not has_accounting(), reason="this Slurm has no accounting")
def test_a_killed_job_is_noticed_and_the_same_command_finishes(tmp_path: Path) -> None:
    errors = lose_a_job(tmp_path, kill)
    assert "(its process ended before the run did)" in errors


def cancel(sweep: Path, records: Path) -> None:
    jobs = [path.name.removesuffix("_0_log.out") for path in (sweep / "logs").glob("*/*_0_log.out")]
    shard = "0" if "shard0of2" in records.parent.name else "1"
    subprocess.run(["scancel", next(job for job in jobs if job.endswith(f"_{shard}"))], check=True)


def kill(sweep: Path, records: Path) -> None:
    """Kill the job at once, as when its machine is lost or out of memory."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(records) in map(os.readlink, (process / "fd").glob("*")):
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # ended, or another user's
            continue


def lose_a_job(home: Path, how: Callable[[Path, Path], None]) -> str:
    """End one of two jobs in the middle of its shard, then finish with the same command. Returns the first launch's
    errors."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra is not installed")
    arguments = [
        "hydra/launcher=submitit_slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.timeout_min=5",
        "provider.max_concurrency=2", "runner.limits.start=2", "shard.count=2", "shard.index=0,1",
        f"output_dir={home / 'sweep'}",
    ]  # fmt: skip
    with ApiServer(latency_s=0.5) as server:
        sweep = Sweep(server, home, count=60)
        process = sweep.start(*arguments)
        while not (started := [f for f in (home / "sweep").glob("*/records.jsonl") if len(lines(f)) >= 3]):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        how(home / "sweep", started[0])
        _, errors = process.communicate(timeout=180)
        assert process.returncode in (1, 130), errors
        assert 3 <= len(lines(started[0])) < 30
        server.latency_s = 0.0
        for _ in range(20):  # a job of the first launch may still hold its shard's lock
            again = sweep.run(*arguments)
            if again.returncode == 0:
                break
        assert again.returncode == 0, again.stderr
        assert set(server.log.answers_by_prompt().values()) == {1}
    merged = json.loads((home / "sweep" / "merged" / "summary.json").read_text())
    assert (merged["completed"], merged["remaining"]) == (60, 0)
    return errors


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()
