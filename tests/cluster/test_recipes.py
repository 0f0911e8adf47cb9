"""The recipes in ``examples/cluster/``: their syntax, KubeRay's schema, and runs on a real Slurm and Ray.

tests/README.md explains the setup of Slurm. ``SWE_INFER_RAYJOB_CRD`` names KubeRay's ``ray.io_rayjobs.yaml``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.test_slurm import slurm_answers
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.sweeps.command import ROOT

RECIPES = ROOT / "examples" / "cluster"
CRD = os.environ.get("SWE_INFER_RAYJOB_CRD")
NO_SLURM = pytest.mark.skipif(not slurm_answers(), reason="no Slurm controller answers")
SMALL = ["--gres=none", "--cpus-per-task", "1", "--time=10"]
RAY = ["--object-store-memory=78643200"]


def submit(folder: Path, *command: str, **environment: str) -> list[str]:
    """Run a command of the login node in ``folder``. Returns the numbers of its jobs."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OPENAI_API_KEY": "sk-test",
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [word for word in done.stdout.split() if word.isdigit()]


def squeue(*options: str) -> str:
    return subprocess.run(["squeue", "--noheader", *options], capture_output=True, text=True, check=True).stdout


def wait_for(jobs: list[str], folder: Path) -> str:
    """Wait until Slurm has ended the jobs. Returns their logs."""
    deadline = time.monotonic() + 500
    while squeue(f"--jobs={','.join(jobs)}"):
        assert time.monotonic() < deadline, "the jobs do not end"
        time.sleep(0.5)
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


@pytest.mark.parametrize("script", sorted(path.name for path in RECIPES.glob("*.sh")))
def test_scripts_are_valid(script: str) -> None:
    path = RECIPES / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)
    if (shellcheck := shutil.which("shellcheck")) is not None:
        subprocess.run([shellcheck, path], check=True)


@pytest.mark.skipif(CRD is None, reason="SWE_INFER_RAYJOB_CRD is not set")
def test_the_ray_job_follows_the_schema_of_kuberay() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert CRD is not None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    definition = yaml.load(Path(CRD).read_text(encoding="utf-8"), loader)
    job = yaml.safe_load((RECIPES / "kuberay_rayjob.yaml").read_text(encoding="utf-8"))
    version = next(each for each in definition["spec"]["versions"] if job["apiVersion"] == f"ray.io/{each['name']}")
    schema = version["schema"]["openAPIV3Schema"]
    close(schema["properties"]["spec"])
    validator = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in validator.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParam"] = {}
    assert not validator.is_valid(job), "a misspelt key is noticed"


def close(schema: Any) -> None:
    """Refuse unknown keys, which Kubernetes would drop."""
    if isinstance(schema, dict):
        if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
        for each in list(schema.values()):
            close(each)
    elif isinstance(schema, list):
        for each in schema:
            close(each)


@pytest.mark.full
@NO_SLURM
def test_an_array_resumes_after_its_time_limit_and_merges(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.5) as server:
        data = write_instances(tmp_path / "instances.jsonl", 40)
        jobs = submit(
            tmp_path, str(RECIPES / "slurm_array.sh"), "--array=0-1", *SMALL, "--", "tracker=none", "model=gpt-4o",
            "dataset=jsonl", f"dataset.path={data}", f"provider.base_url={server.openai_url}",
            "provider.max_concurrency=2", "runner.limits.start=2", RUN="out",
        )  # fmt: skip
        records = tmp_path / "out" / "shard-0" / "records.jsonl"
        while not records.exists() or records.read_text().count("\n") < 3:
            time.sleep(0.1)
        subprocess.run(["scancel", "--batch", "--signal=USR1", f"{jobs[0]}_0"], check=True)  # as before the limit
        while "BeginTime" not in squeue("--format=%r", f"--jobs={jobs[0]}"):
            time.sleep(0.1)
        server.latency_s = 0.0
        logs = wait_for(jobs, tmp_path)  # Slurm starts a job again after two minutes
        assert set(server.log.answers_by_prompt().values()) == {1}, logs
    merged = json.loads((tmp_path / "out" / "merged" / "summary.json").read_text())
    assert (merged["completed"], merged["remaining"]) == (40, 0), logs


@pytest.mark.full
@NO_SLURM
@pytest.mark.skipif(find_spec("ray") is None, reason="the extra ray is not installed")
def test_a_ray_cluster_within_a_job_runs_engines(tmp_path: Path) -> None:
    nodes = subprocess.run(["sinfo", "--noheader", "--format=%D"], capture_output=True, text=True, check=True).stdout
    jobs = submit(
        tmp_path, "sbatch", f"--nodes={min(2, int(nodes))}", *SMALL, str(RECIPES / "slurm_ray.sh"),
        sys.executable, "-m", "swe_infer", "runner=ray", "tracker=none", "dataset.limit=4", "dataset.run_tests=false",
        f"model.path={ROOT / 'swe_infer' / 'sample' / 'tiny_llama'}", "decoding.max_new_tokens=32",
        "output_dir=out", RAY_OPTIONS=" ".join(RAY), RAY_PORT="27060",
    )  # fmt: skip
    logs = wait_for(jobs, tmp_path)
    assert (tmp_path / "out" / "summary.json").exists(), logs
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert set(Counter(record["instance_id"] for record in records).values()) == {1}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["completed"] == 4


@pytest.mark.full
@NO_SLURM
def test_each_job_of_an_array_starts_a_vllm_over_the_gpus_of_its_node(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(f"#!{sys.executable}\n" + (ROOT / "tests" / "support" / "vllm_stand_in.py").read_text())
    program.chmod(0o755)
    data = write_instances(tmp_path / "instances.jsonl", 6)
    jobs = submit(
        tmp_path, str(RECIPES / "slurm_vllm.sh"), "--array=0-1", *SMALL, "--", f"provider.executable={program}",
        "model=llama", "model.path=some/checkpoint", "model.prompt_format=raw", "tracker=none", "dataset=jsonl",
        f"dataset.path={data}", RUN="out", TENSOR_PARALLEL="4",
        VLLM_STAND_IN="serves", VLLM_STAND_IN_NOTES=str(tmp_path),
    )  # fmt: skip
    logs = wait_for(jobs, tmp_path)
    assert json.loads((tmp_path / "out" / "merged" / "summary.json").read_text())["completed"] == 6, logs
    arguments = json.loads((tmp_path / "arguments.json").read_text())
    assert arguments[arguments.index("--tensor-parallel-size") + 1] == "4"
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 6
