"""The engine's figures in records, summary and W&B."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.run_directory.records import read_records
from tests.support import commands
from tests.support.instances import write_instances
from tests.support.wandb_files import OfflineRun, read_offline_runs

if TYPE_CHECKING:
    import torch

    from tests.support.checkpoints import make_checkpoint

ROOT = Path(__file__).resolve().parent.parent.parent
COUNTS = ("forward_passes", "drafted_tokens", "accepted_tokens")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory: two samples of two instances, drafted, tracked by W&B offline. The checkpoint is in bfloat16,
    and no kernels are compiled."""
    home = tmp_path_factory.mktemp("figures")
    make_checkpoint(home / "model", dtype=torch.bfloat16, max_position_embeddings=4096)
    write_instances(home / "instances.jsonl", 2)
    arguments = [
        "model=llama", f"model.path={home / 'model'}", "dataset=jsonl",
        f"dataset.path={home / 'instances.jsonl'}", "decoding=sample", "decoding.n=2", "decoding.seed=3",
        "decoding.max_new_tokens=40", "decoding.temperature=0.001", f"output_dir={home / 'run'}",
        "runner.kv_cache_gb=0.05", "runner.max_sequences=1", "tracker=wandb", "tracker.mode=offline",
    ]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "SWE_INFER_NATIVE_KERNELS": "off"}
    done = commands.run("swe_infer", *arguments, cwd=home, env=environment, packages=commands.LOCAL)
    assert done.returncode == 0, done.stderr
    return home / "run"


@pytest.fixture(scope="module")
def counted(directory: Path) -> dict[str, int]:
    """Sums over the records."""
    details: list[dict[str, Any]] = [record["details"] or {} for record in read_records(directory / "records.jsonl")]
    assert len(details) == 4
    return {key: sum(detail[key] for detail in details) for key in COUNTS}


@pytest.fixture(scope="module")
def tracked(directory: Path) -> OfflineRun:
    (run,) = read_offline_runs(directory)
    return run


def test_records_count_steps_and_drafts(counted: dict[str, int], directory: Path) -> None:
    assert counted["drafted_tokens"] > 0, "the first drafts come before their cost is known"
    assert counted["drafted_tokens"] >= counted["accepted_tokens"]
    for record in read_records(directory / "records.jsonl"):
        detail, usage = record["details"], record["usage"]
        assert detail is not None
        assert usage is not None
        written = usage["output_tokens"]
        assert detail["forward_passes"] + detail["accepted_tokens"] >= written


def test_the_summary_has_the_sums_of_the_records(counted: dict[str, int], directory: Path) -> None:
    stats = json.loads((directory / "summary.json").read_text())["stats"]
    assert {key: stats[key] for key in COUNTS} == counted


def test_the_tracker_s_curves_end_at_the_sums_of_the_records(counted: dict[str, int], tracked: OfflineRun) -> None:
    points = [{key: point.get(f"engine/{key}") for key in COUNTS} for point in tracked.history]
    assert [point for point in points if None not in point.values()][-1] == counted
    assert {key: tracked.summary[f"engine/{key}"] for key in COUNTS} == counted
