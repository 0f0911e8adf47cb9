"""Merging shards into one run, and the errors in one line."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from swe_infer.cli.merge import merge
from swe_infer.errors import StoreError
from swe_infer.run_directory.records import read_records
from swe_infer.run_directory.verdicts import Verdict, read_verdicts, write_verdicts
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of ten instances, and another run of shard 0 at another temperature."""
    home = tmp_path_factory.mktemp("shards")
    data = write_instances(home / "instances.jsonl", 10)
    with ApiServer() as server:
        for folder, arguments in (
            ("a", ["shard.count=3", "-m", "shard.index=range(0,3)"]),
            ("b", ["shard.count=3", "shard.index=0", "decoding.temperature=1", "-m"]),
        ):
            result = commands.run(
                "swe_infer", *arguments, "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl",
                f"dataset.path={data}", "tracker=none", "decoding.n=2", f"output_dir={home / folder}",
                cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
    return home


def shards(sweep: Path, folder: str = "a") -> list[Path]:
    """The runs of the shards. The sweep's own merge is beside them."""
    found = (path.parent for path in (sweep / folder).glob("*/records.jsonl"))
    return sorted(path for path in found if path.name != "merged")


def test_the_merged_run_contains_every_instance_once(sweep: Path, tmp_path: Path) -> None:
    summary = merge(tmp_path / "merged", shards(sweep)[::-1])
    counts = Counter((r["instance_id"], r["sample"]) for r in read_records(tmp_path / "merged" / "records.jsonl"))
    assert counts == Counter({(f"example__pkg-{i}", s): 1 for i in range(10) for s in range(2)})
    assert (summary["instances"], summary["completed"], summary["remaining"]) == (10, 20, 0)
    for name in ("predictions.jsonl", "predictions.sample1.jsonl"):
        lines = (tmp_path / "merged" / name).read_text().splitlines()
        assert len({json.loads(line)["instance_id"] for line in lines}) == len(lines) == 10
    costs = [json.loads((s / "summary.json").read_text())["cost_usd"] for s in shards(sweep)]
    assert summary["cost_usd"] is not None
    assert abs(float(summary["cost_usd"]) - sum(costs)) < 1e-9


def test_verdicts_of_the_shards_and_of_an_earlier_merge_are_kept(sweep: Path, tmp_path: Path) -> None:
    parts = [shutil.copytree(shard, tmp_path / shard.name) for shard in shards(sweep)]
    for number, part in enumerate(parts):
        keys = [(r["instance_id"], r["sample"]) for r in read_records(part / "records.jsonl")]
        write_verdicts(part, [Verdict(i, s, number > 0, source="tests") for i, s in keys], dict.fromkeys(keys, 0))
    summary = merge(tmp_path / "merged", parts)
    assert (summary["evaluated"], summary["evaluated_by"]) == (20, "own_tests")
    verdicts = read_verdicts(tmp_path / "merged")
    assert summary["resolved"] == sum(verdict.resolved for verdict in verdicts) > 0
    assert summary["pass_at_k"] == summary["resolved_rate"] == summary["resolved"] / 20
    assert len(verdicts) == len({verdict.key for verdict in verdicts}) == 20

    own = Verdict(verdicts[0].instance_id, 0, not verdicts[0].resolved, source="swebench")
    write_verdicts(tmp_path / "merged", [own], {verdict.key: 0 for verdict in verdicts})
    (tmp_path / "merged").rename(tmp_path / "earlier")
    again = merge(tmp_path / "merged", parts, earlier=tmp_path / "earlier")
    assert again["evaluated"] == 20
    assert own in read_verdicts(tmp_path / "merged")
    commands = json.loads((tmp_path / "merged" / "provenance.json").read_text())["commands"]
    assert [entry["command"].split()[0] for entry in commands] == ["swe-infer"]


def test_gaps_duplicates_and_other_configurations_are_refused(sweep: Path, tmp_path: Path) -> None:
    first, *rest = shards(sweep)
    with pytest.raises(StoreError, match="shards 0 of 3 are missing"):
        merge(tmp_path / "out", rest)
    with pytest.raises(StoreError, match="are both shard 0"):
        merge(tmp_path / "out", [first, first, *rest])
    with pytest.raises(StoreError, match=r"differs from .* in decoding\.temperature: "):
        merge(tmp_path / "out", [*rest, *shards(sweep, "b")])
    with pytest.raises(StoreError, match=r"contains no config\.yaml"):
        merge(tmp_path / "out", [sweep])
    assert not (tmp_path / "out").exists()


def test_a_nonempty_directory_is_not_written_to(sweep: Path) -> None:
    with pytest.raises(StoreError, match="is not empty"):
        merge(sweep, shards(sweep))


@pytest.mark.parametrize("limits", [(4,), pytest.param((4, 5), marks=pytest.mark.full)])
def test_the_merged_run_is_one_run_of_w_and_b_and_its_shards_a_group(limits: tuple[int, ...], tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 6)
    with ApiServer() as server:
        for limit in limits:
            result = commands.run(
                "swe_infer", "-m", "shard.count=2", "shard.index=0,1", "model=gpt-4o",
                f"provider.base_url={server.openai_url}", "dataset=jsonl", f"dataset.path={data}",
                "tracker.mode=offline", "tracker.tags=[kept]", f"output_dir={tmp_path / 'sweep'}",
                f"dataset.limit={limit}",
                cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
            )  # fmt: skip
            assert result.returncode == 0, result.stderr
    logged = read_offline_runs(tmp_path / "sweep" / "merged")
    assert len({one.run["run_id"] for one in logged}) == 1
    assert len(logged) == len(limits)
    steps = [row["_step"] for one in logged for row in one.history]
    assert steps == sorted(set(steps)), "one history"
    assert [row["completed"] for row in logged[0].history[:4]] == [1, 2, 3, 4]
    merged = logged[-1]
    assert merged.run["job_type"] == "merged"
    parts = [run for shard in shards(tmp_path, "sweep") for run in read_offline_runs(shard)]
    assert {part.run["job_type"] for part in parts} == {"shard"}
    assert {part.run["run_group"] for part in parts} == {merged.run["display_name"]}
    assert len({part.run["run_id"] for part in parts} | {merged.run["run_id"]}) == 3
    assert not merged.run.get("run_group")
    assert merged.run["tags"] == ["kept"]
    assert merged.config["shard"]["index"] is None
    assert merged.summary["completed"] == limits[-1]
    table = merged.table("predictions")
    assert len(table["data"]) == limits[-1]
