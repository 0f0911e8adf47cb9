"""Run identity: runs that grow, shrink, change servers and share answers never pay for an answer twice."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.api.cache import cache_key, former_key
from swe_infer.cli.composer import composer
from swe_infer.cli.run_session import run_one
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.compare.loading import load_run
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.errors import StoreError
from swe_infer.providers.openai_chat import OpenAIChat
from swe_infer.run_directory.records import read_records
from swe_infer.runners.base import ProcessResources
from swe_infer.types import ApiModel, Decoding, Request
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.wandb_files import read_offline_runs

ROOT = Path(__file__).resolve().parent.parent.parent
IDS = [f"example__pkg-{number}" for number in range(12)]


class Desk:
    """A folder with instances, and a server that counts requests."""

    def __init__(self, folder: Path, server: ApiServer) -> None:
        self.folder = folder
        self.server = server
        self.data = write_instances(folder / "instances.jsonl", 12)

    def run(self, *arguments: str, server: ApiServer | None = None, sweep: SweepLog | None = None) -> Path:
        """Runs one command, or one job of a sweep, in this process; returns the run directory."""
        with composer(None) as composing:
            cfg = composing.compose(self.completed(arguments, server)).cfg
        directory, status = run_one(cfg, sweep, ProcessResources())
        assert status == 0
        return self.folder / (directory or "")

    def sweep(self, *arguments: str) -> list[Path]:
        """The run directories that a sweep printed."""
        process = commands.run(
            "swe_infer", "-m", *self.completed(arguments, None),
            cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        return [self.folder / line for line in process.stdout.splitlines() if (self.folder / line).is_dir()]

    def completed(self, arguments: Sequence[str], server: ApiServer | None) -> list[str]:
        """``arguments`` with the test's defaults."""
        common = {
            "model": "gpt-4o",
            "dataset": "jsonl",
            "dataset.path": str(self.data),
            "provider.base_url": (server or self.server).openai_url,
            "tracker": "none",
        }
        given = {argument.partition("=")[0] for argument in arguments}
        if "dataset" in given:
            del common["dataset.path"]
        return [*(f"{key}={value}" for key, value in common.items() if key not in given), *arguments]

    @property
    def sent(self) -> int:
        return len(self.server.log.asked())


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with ApiServer() as server:
        yield Desk(tmp_path, server)


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text(), parse_float=Decimal))


def predicted(run: Path) -> list[str]:
    return sorted(json.loads(line)["instance_id"] for line in (run / "predictions.jsonl").read_text().splitlines())


def completed(run: Path) -> list[str]:
    return sorted(r["instance_id"] for r in read_records(run / "records.jsonl") if r["status"] == "completed")


def made_by_an_earlier_version(run: Path, name: str) -> Path:
    """The directory as earlier versions wrote it: another name, and no ``asked.json``."""
    old = run.rename(run.with_name(name))
    config = old / "config.yaml"
    first, _, rest = config.read_text().partition("\n")
    assert first.startswith("# identity ")
    config.write_text(rest)
    (old / "asked.json").unlink()
    return old


def test_a_run_grows_shrinks_and_moves_and_pays_for_each_answer_once(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    run = desk.run("dataset.limit=4")
    assert desk.sent == 4
    assert desk.run("dataset.limit=8") == run
    assert desk.sent == 8
    assert summary(run)["instances"] == summary(run)["completed"] == 8
    assert predicted(run) == sorted(IDS[:8])
    paid = summary(run)["cost_usd"]

    # Fewer instances: the figures cover those, the records keep everything, the cost is the whole run's.
    assert desk.run("dataset.limit=2") == run
    small = summary(run)
    assert (small["instances"], small["completed"], small["remaining"]) == (2, 2, 0)
    assert (small["patches"], small["apply_rate"]) == ({"applies": 2}, 1)
    assert predicted(run) == sorted(IDS[:2])
    assert small["cost_usd"] == paid
    assert completed(run) == sorted(IDS[:8])
    assert sorted(load_run(run).instances()) == sorted(IDS[:2])
    assert "limit: 2" in (run / "config.yaml").read_text()

    # Other instances, two of them recorded, from a server at another URL.
    with ApiServer() as moved:
        ids = f"dataset.instance_ids=[{','.join([IDS[3], IDS[7], IDS[11]])}]"
        assert desk.run(ids, server=moved) == run
        assert len(moved.log.asked()) == 1
        assert desk.run("dataset.limit=8", "provider.max_concurrency=1", "dry_run=true", server=moved) == desk.folder
        assert "nothing left to run" in capsys.readouterr().out
        assert desk.run("dataset.limit=8", server=moved) == run
        assert len(moved.log.asked()) == 1, "a moved server sends nothing"
    assert desk.sent == 8
    assert summary(run)["cost_usd"] > paid
    assert completed(run) == sorted([*IDS[:8], IDS[11]])

    # The same with output_dir.
    assert desk.run("dataset.limit=4", "output_dir=named") == desk.folder / "named"
    assert desk.run("dataset.limit=6", "output_dir=named") == desk.folder / "named"
    assert desk.sent == 14
    with pytest.raises(StoreError, match=r"decoding\.temperature: 0\.0 → 1"):
        desk.run("dataset.limit=6", "decoding.temperature=1", "output_dir=named")
    assert summary(desk.folder / "named")["instances"] == 6


@pytest.mark.parametrize(
    "damage", ["gone", *(pytest.param(damage, marks=pytest.mark.full) for damage in ("half", "empty", "NULs"))]
)
def test_a_run_without_its_configuration_is_resumed(damage: str, desk: Desk) -> None:
    """The run's id contains the digest of the identity, too."""
    run = desk.run("dataset.limit=2", "output_dir=run")
    config = run / "config.yaml"
    text = config.read_bytes()
    damaged = {"gone": None, "empty": b"", "NULs": bytes(len(text)), "half": text[: len(text) // 2]}[damage]
    if damaged is None:
        config.unlink()
    else:
        config.write_bytes(damaged)
    with pytest.raises(StoreError, match=r"output_dir=run: contains .* choose another output_dir"):
        desk.run("dataset.limit=3", "output_dir=run", "decoding.temperature=0.5")
    desk.run("dataset.limit=3", "output_dir=run")
    assert desk.sent == 3
    assert completed(run) == IDS[:3]
    desk.run("dataset.limit=2", "output_dir=run")
    assert predicted(run) == IDS[:2]
    assert config.read_bytes().splitlines()[0] == text.splitlines()[0]


def test_length_bounds_exclude_recorded_answers_and_request_skipped_ones(desk: Desk) -> None:
    text = {True: "word " * 900, False: "word " * 20}
    rows = [{"instance_id": IDS[n], "text": text[n % 2 == 1]} for n in range(6)]
    desk.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = desk.run("dataset.max_tokens=300")
    assert (desk.sent, summary(run)["skipped"], predicted(run)) == (3, 3, IDS[0:6:2])
    assert desk.run("dataset.max_tokens=300") == run
    assert desk.run() == run
    assert (desk.sent, summary(run)["skipped"], predicted(run)) == (6, 0, IDS[:6])
    paid = summary(run)["cost_usd"]
    # An instance that is too short now is excluded although it has an answer.
    assert desk.run("dataset.min_tokens=300") == run
    short = summary(run)
    assert (short["instances"], short["completed"], short["skipped"]) == (6, 3, 3)
    assert short["apply_rate"] == Decimal(short["patches"].get("applies", 0)) / 6, "over all that was asked for"
    assert predicted(run) == IDS[1:6:2]
    assert desk.run("dataset.limit=4") == run
    assert (predicted(run), summary(run)["cost_usd"], desk.sent) == (IDS[:4], paid, 6)
    assert desk.run() == run
    assert (predicted(run), summary(run)["cost_usd"], desk.sent) == (IDS[:6], paid, 6)


@pytest.mark.parametrize("launcher", [(), pytest.param(("hydra/launcher=joblib",), marks=pytest.mark.full)])
def test_jobs_that_differ_in_instances_or_url_share_paid_answers(desk: Desk, launcher: tuple[str, ...]) -> None:
    with ApiServer() as other:
        addresses = f"provider.base_url={desk.server.openai_url},{other.openai_url}"
        runs = desk.sweep("dataset.limit=8,4", addresses, *launcher)
        assert len(runs) == len({run.name for run in runs}) == 4
        assert sum("__limit=4__base_url=http" in run.name for run in runs) == 2
        assert [predicted(run) for run in runs] == [sorted(IDS[: summary(run)["instances"]]) for run in runs]
        assert desk.sent + len(other.log.asked()) == 8
        paid = desk.server.log.cost_usd() + other.log.cost_usd()
        assert abs(sum(summary(run)["cost_usd"] for run in runs) - paid) < Decimal("1e-9")
        sent = desk.sent
        assert desk.run("dataset.limit=9") not in runs
        assert desk.sent == sent + 1, "a run by itself has what the points paid for"


def test_under_m_output_dir_is_the_sweeps_folder_and_a_list_gives_each_run_one(desk: Desk) -> None:
    runs = desk.sweep("output_dir=a,b", "dataset.limit=2")
    assert runs == [desk.folder / "a", desk.folder / "b"]
    assert [summary(run)["completed"] for run in runs] == [2, 2]
    assert desk.sent == 2
    runs = desk.sweep("output_dir=c,d", "decoding.temperature=0,1", "dataset.limit=2")
    assert [run.parent.name for run in runs] == ["c", "c", "d", "d"]
    assert len({run.name for run in runs}) == 2
    assert desk.sent == 6


@pytest.mark.full
def test_experiments_of_one_identity_get_separate_directories(desk: Desk) -> None:
    folder = desk.folder / "own" / "experiment"
    folder.mkdir(parents=True)
    for name, limit in (("few", 2), ("more", 3)):
        (folder / f"{name}.yaml").write_text(f"# @package _global_\ndataset:\n  limit: {limit}\n")
    runs = desk.sweep("experiment=few,more", f"hydra.searchpath=[file://{folder.parent}]", "output_dir=s")
    assert [run.name.rpartition("__")[2] for run in runs] == ["experiment=few", "experiment=more"]
    assert [summary(run)["completed"] for run in runs] == [2, 3]
    assert desk.sent == 3


def test_shards_grow_and_their_merged_run_with_them(desk: Desk) -> None:
    shards = ["shard.count=3", "shard.index=range(0,3)", "output_dir=sweep"]
    for limit in (5, 9):
        desk.sweep(*shards, f"dataset.limit={limit}")
        merged = desk.folder / "sweep" / "merged"
        assert predicted(merged) == sorted(IDS[:limit])
        assert (summary(merged)["instances"], summary(merged)["completed"]) == (limit, limit)
        assert not merged.with_name("merged.old").exists()
    assert desk.sent == 9


@pytest.mark.full
def test_shards_of_several_requests_are_merged_by_request(desk: Desk) -> None:
    desk.sweep("shard.count=2", "shard.index=0,1", "dataset.limit=4,12", "output_dir=both")
    merges = sorted((desk.folder / "both" / "merged").iterdir())
    assert [predicted(merged) for merged in merges] == [sorted(IDS), sorted(IDS[:4])]
    assert desk.sent == 12


def test_runs_of_an_earlier_version_are_resumed(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    four, eight = desk.run("dataset.limit=4", "output_dir=x"), desk.run("dataset.limit=8", "output_dir=y")
    assert desk.sent == 12
    run = desk.run("dataset.limit=1")
    sent = desk.sent
    base = run.name.rpartition("__")[0]
    outputs = run.parent
    for path in run.iterdir():
        path.unlink()
    run.rmdir()
    old_four = made_by_an_earlier_version(four, "x-old").rename(outputs / f"{base}__{'0' * 12}")
    old_eight = made_by_an_earlier_version(eight, "y-old").rename(outputs / f"{base}__{'1' * 12}")
    caplog.set_level("INFO", "swe_infer")
    # The directory with the same instances is resumed and reuses the answers of the others.
    assert desk.run("dataset.limit=4") == old_four
    assert "which an earlier version started" in caplog.text
    assert desk.sent == sent
    assert desk.run("dataset.limit=10") == old_eight
    assert desk.sent == sent + 2
    assert desk.run("dataset.limit=10") == old_eight
    sweep = SweepLog(desk.folder / "sweep")
    sweep.reset(keep=False, swept=["dataset.limit"])
    assert desk.run("dataset.limit=9", sweep=sweep).name.endswith("limit=9")
    assert desk.sent == sent + 2
    assert summary(old_eight)["completed"] == 10


def test_shards_with_another_division_of_an_earlier_version_are_refused(desk: Desk) -> None:
    whole = desk.run("shard.count=2", "shard.index=0", "output_dir=whole")
    made_by_an_earlier_version(whole, "whole-old")
    desk.run("shard.count=2", "shard.index=0", "output_dir=whole-old")
    sent = desk.sent
    rows = [{"instance_id": IDS[n], "text": "word " * (10 + 70 * n * n)} for n in range(9)]
    desk.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = desk.run("shard.count=2", "shard.index=0", "output_dir=some", "dataset.limit=6")
    made_by_an_earlier_version(some, "some-old")
    with pytest.raises(StoreError, match="was divided into shards by an earlier version"):
        desk.run("shard.count=2", "shard.index=0", "output_dir=some-old", "dataset.limit=6")
    assert sent < desk.sent <= sent + 6


def test_a_grown_run_keeps_its_wandb_run_and_its_table_covers_the_request(desk: Desk) -> None:
    for limit, tracker in ((3, "wandb"), (6, "none"), (2, "wandb")):
        more = ["tracker.mode=offline"] if tracker == "wandb" else []
        desk.run(f"tracker={tracker}", *more, "output_dir=run", f"dataset.limit={limit}")
    runs = read_offline_runs(desk.folder / "run")
    assert len({run.run["run_id"] for run in runs}) == 1
    last = runs[-1]
    assert (last.summary["instances"], last.summary["completed"]) == (2, 2)
    assert [row[0] for row in last.table("predictions")["data"]] == sorted(IDS[:2])
    assert desk.sent == 6


def test_response_cache_hits_do_not_depend_on_the_url(desk: Desk) -> None:
    cache = f"runner.response_cache={desk.folder / 'cache'}"
    desk.run("dataset.limit=1", cache, "output_dir=a")
    row = JsonlDataset(path=str(desk.data)).open()[0]
    request = Request(row.instance_id, 0, row.prompt, Decoding())
    key = cache_key(request, ApiModel(name="gpt-4o"), "openai")
    former = former_key(request, ApiModel(name="gpt-4o"), OpenAIChat(base_url=desk.server.openai_url))
    with closing(sqlite3.connect(desk.folder / "cache" / "answers.sqlite", isolation_level=None)) as kept:
        assert kept.execute("UPDATE answers SET key = ? WHERE key = ?", (former, key)).rowcount == 1
        kept.execute("PRAGMA user_version=0")  # as earlier versions create it
    desk.run("dataset.limit=1", cache, "output_dir=b")
    with ApiServer() as moved:
        desk.run("dataset.limit=1", cache, "output_dir=c", server=moved)
        assert not moved.log.asked()
    assert desk.sent == 1
    assert summary(desk.folder / "c")["completed"] == 1


def test_jobs_on_one_engine_share_answers(tmp_path: Path) -> None:
    process = commands.run(
        "swe_infer", "-m", "dataset.limit=1,2", "decoding.max_new_tokens=8", "tracker=none", "output_dir=sweep",
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, packages=commands.LOCAL,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    one, two = sorted((tmp_path / "sweep").glob("*__limit=*"))
    origins = [
        [((r["details"] or {}).get("shared_from") or {}).get("run") for r in read_records(run / "records.jsonl")]
        for run in (one, two)
    ]
    assert sorted(origins[1], key=str) == [None, one.name]
    assert origins[0] == [None]


def test_a_killed_job_releases_its_lock_and_shares_its_answers(desk: Desk) -> None:
    """The lock is released with its process, and recorded answers are not requested again."""
    desk.server.latency_s = 0.3
    process = commands.start(
        "swe_infer", "-m",
        *desk.completed(["dataset.limit=12,11", "provider.max_concurrency=2", "output_dir=sweep"], None),
        cwd=desk.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        while not [path for path in desk.folder.glob("sweep/*/records.jsonl") if len(completed(path.parent)) >= 3]:
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    (killed,) = [path.parent for path in desk.folder.glob("sweep/*/records.jsonl")]
    known = len(completed(killed))
    desk.server.latency_s = 0.0
    sent = desk.sent
    run = desk.run("dataset.limit=11", "output_dir=sweep", sweep=SweepLog(Path("sweep")))
    assert run.name.endswith("limit=11")
    assert len(completed(run)) == 11
    assert desk.sent - sent == 11 - known


@pytest.mark.usefixtures("sandbox")
def test_verdicts_and_rates_cover_the_request(desk: Desk) -> None:
    """The bundled instances contain tests, so that a run ends with an evaluation."""
    run = desk.folder / "run"
    for limit in (3, 5, 2, 4):
        assert desk.run("dataset=sample", "output_dir=run", f"dataset.limit={limit}") == run
        verdicts = (run / "evaluation.jsonl").read_text().splitlines()
        assert summary(run)["evaluated"] == len(verdicts) == limit
        assert summary(run)["resolved_rate"] == round(Decimal(summary(run)["resolved"]) / limit, 6)
    assert desk.sent == 5
