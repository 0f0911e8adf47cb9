"""Complete runs of a local Llama model: killed, resumed, finished, swept."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swe_infer.data.sample import SampleDataset
from swe_infer.patches.pipeline import make_patch
from swe_infer.run_directory.records import Record, read_records
from swe_infer.run_directory.store import RunStore
from swe_infer.runners.base import ProcessResources, RunContext
from swe_infer.runners.instances import select_instances
from swe_infer.runners.llama import LlamaRunner
from swe_infer.runners.run import Run
from swe_infer.tracking.base import NoTracker, RunInfo
from swe_infer.types import DataShard, Decoding, LlamaModel
from tests.support import commands
from tests.support.instances import write_instances
from tests.support.steps import calls_of

if TYPE_CHECKING:
    from tests.support.checkpoints import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
INSTANCES, SAMPLES = 6, 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and instances."""
    home = tmp_path_factory.mktemp("llama")
    make_checkpoint(home / "model", max_position_embeddings=4096)
    write_instances(home / "instances.jsonl", INSTANCES)
    return home


def arguments(home: Path, directory: Path) -> list[str]:
    return [
        "model=llama", f"model.path={home / 'model'}", "model.dtype=float32",
        "dataset=jsonl", f"dataset.path={home / 'instances.jsonl'}", "tracker=none", "decoding=sample",
        f"decoding.n={SAMPLES}", "decoding.seed=3", "decoding.max_new_tokens=48", f"output_dir={directory}",
        "runner.kv_cache_gb=0.05",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return commands.run("swe_infer", *arguments, cwd=cwd, env=environment(), packages=commands.LOCAL)


def outputs(directory: Path) -> dict[tuple[str, int], str]:
    """The completed answers, checked to be unique."""
    completed = [r for r in read_records(directory / "records.jsonl") if r["status"] == "completed"]
    counts = Counter((r["instance_id"], r["sample"]) for r in completed)
    assert set(counts.values()) == {1}
    return {(r["instance_id"], r["sample"]): r["full_output"] or "" for r in completed}


@pytest.fixture(scope="module")
def uninterrupted(home: Path) -> dict[tuple[str, int], str]:
    """The answers of an uninterrupted run."""
    result = run(arguments(home, home / "uninterrupted"), home)
    assert result.returncode == 0, result.stderr
    return outputs(home / "uninterrupted")


def test_a_run_answers_everything_and_counts_its_tokens(
    home: Path, uninterrupted: dict[tuple[str, int], str]
) -> None:
    assert len(uninterrupted) == INSTANCES * SAMPLES
    summary = json.loads((home / "uninterrupted" / "summary.json").read_text())
    assert summary["cost_usd"] == 0
    assert summary["usage"]["cached_input_tokens"] > 0, "samples of a prompt share it"
    for sample in range(SAMPLES):
        name = "predictions.jsonl" if sample == 0 else f"predictions.sample{sample}.jsonl"
        predictions = [json.loads(line) for line in (home / "uninterrupted" / name).read_text().splitlines()]
        assert {p["model_name_or_path"] for p in predictions} == {"model"}
        assert len(predictions) == INSTANCES


@pytest.mark.full
def test_killed_and_resumed_it_gives_the_answers_of_an_uninterrupted_run(
    home: Path, uninterrupted: dict[tuple[str, int], str]
) -> None:
    directory = home / "killed"
    chance = random.Random(7)
    for _ in range(2):
        process = commands.start(
            "swe_infer", *arguments(home, directory), cwd=home, env=environment(), packages=commands.LOCAL
        )
        before = sum(1 for _ in read_records(directory / "records.jsonl"))
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if sum(1 for _ in read_records(directory / "records.jsonl")) > before:
                break
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    result = run(arguments(home, directory), home)
    assert result.returncode == 0, result.stderr
    assert outputs(directory) == uninterrupted


def test_a_library_that_cannot_be_loaded_is_one_line(home: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.abi3.so").write_text("for another machine")
    env = environment() | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = commands.run("swe_infer", *arguments(home, tmp_path / "run"), cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"stopped: {tmp_path / 'torch.abi3.so'}: " in result.stderr


def test_a_finished_run_answers_without_importing_torch(
    home: Path, uninterrupted: dict[tuple[str, int], str]
) -> None:
    code = (
        "import atexit, runpy, sys;"
        "atexit.register(lambda: print({'hydra', 'torch', 'transformers'} & sys.modules.keys()));"
        "runpy.run_module('swe_infer', run_name='__main__', alter_sys=True)"
    )
    result = commands.run("-c", code, *arguments(home, home / "uninterrupted"), cwd=home, env=environment())
    assert result.returncode == 0
    assert result.stdout.strip().splitlines()[-2:] == [str(home / "uninterrupted"), "{'hydra'}"]
    assert outputs(home / "uninterrupted") == uninterrupted


@pytest.mark.full
def test_two_shards_give_the_answers_of_one_run(home: Path, uninterrupted: dict[tuple[str, int], str]) -> None:
    found: dict[tuple[str, int], str] = {}
    for index in range(2):
        directory = home / f"shard{index}"
        result = run([*arguments(home, directory), f"shard.index={index}", "shard.count=2"], home)
        assert result.returncode == 0, result.stderr
        found |= outputs(directory)
    assert found == uninterrupted


def test_another_configuration_may_not_use_the_directory(
    home: Path, uninterrupted: dict[tuple[str, int], str]
) -> None:
    result = run([*arguments(home, home / "uninterrupted"), "decoding.top_p=0.5"], home)
    assert result.returncode == 2
    assert "decoding.top_p: 0.95 → 0.5" in result.stderr
    assert outputs(home / "uninterrupted") == uninterrupted


def test_points_of_a_sweep_are_answered_at_once_and_a_bad_one_stops_no_other(
    home: Path, uninterrupted: dict[tuple[str, int], str]
) -> None:
    command = [*arguments(home, home / "sweep"), "-m", "decoding.temperature=0.2,9,0.8,1.2"]
    result = run(command, home)
    assert result.returncode == 2, result.stderr
    assert "decoding.temperature=9" in result.stderr
    assert result.stderr.count("loaded model in") == 1
    runs = [home / line for line in result.stdout.splitlines()]
    assert len(runs) == 3
    summaries = [json.loads((directory / "summary.json").read_text()) for directory in runs]
    assert [summary["stats"]["concurrent_jobs"] for summary in summaries] == [3, 3, 3]
    rates = [summary["usage"]["cached_input_tokens"] / summary["usage"]["input_tokens"] for summary in summaries]
    assert sum(rates) / 3 > 0.7, "each prompt is computed once"
    assert outputs(runs[1]) == uninterrupted, "as if the point had been run by itself"
    points = [json.loads(line) for line in (home / "sweep" / "runs.jsonl").read_text().splitlines()]
    assert [point["status"] for point in points] == [0, 2, 0, 0]


@pytest.mark.slow
@pytest.mark.full
def test_several_engines_make_the_patches_of_their_answers(tmp_path: Path) -> None:
    """The records are those of one engine, whose patches this process makes."""
    records: list[list[Record]] = []
    for workers, made_here in ((1, 8), (2, 0)):
        model = LlamaModel(path="package://swe_infer.sample/tiny_llama", device="cpu")
        decoding = Decoding(max_new_tokens=400)
        runner = LlamaRunner(model=model, decoding=decoding, workers=workers, kv_cache_gb=0.05)
        resources, directory = ProcessResources(), tmp_path / str(workers)
        directory.mkdir()
        dataset = SampleDataset(limit=8)
        with RunStore(directory, runner.label) as store:
            runner.bind(RunContext(directory, "run", Decimal(0), directory / "ledger", resources))
            selection = select_instances(runner, dataset, DataShard())
            run = Run(runner, selection, store, NoTracker(), RunInfo("run", "run", {}, directory, store.resumed))
            assert calls_of(make_patch.__code__, run.execute) == made_here
        resources.close()
        found = read_records(directory / "records.jsonl")
        records.append(sorted(found, key=lambda record: record["instance_id"]))
    assert [record["patch_status"] for record in records[0]].count("applies") >= 6
    for one, other in zip(*records, strict=True):
        assert one.keys() == other.keys()
        differing = {name for name in one if one.get(name) != other.get(name)}
        assert differing <= {"time", "latency_s", "details", "usage"}
