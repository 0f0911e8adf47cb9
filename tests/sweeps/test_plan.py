"""The line before a paid sweep, and the progress of its points."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, cast

import pytest
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from swe_infer.cli.composer import composer
from swe_infer.cli.config_loader import CachedLoader
from swe_infer.cli.sweep_log import SweepLog
from swe_infer.cli.sweep_plan import SweepPlan
from swe_infer.cli.sweep_planner import _Planner
from swe_infer.cli.sweep_position import short_overrides
from swe_infer.data.base import RowsView
from swe_infer.data.jsonl import JsonlDataset, JsonlRows
from swe_infer.data.normalise import Normaliser
from swe_infer.types import Instance
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.options import composed
from tests.sweeps.command import Sweep


def line_of(output: str) -> str:
    (line,) = re.findall(r"^sweep: .*$", output, re.MULTILINE)
    return str(line)


def test_the_line_counts_what_is_paid_for_and_the_display_is_one_for_all_points(tmp_path: Path) -> None:
    points = ("dataset.limit=2,5", "decoding.temperature=0.5,0.6")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=5)
        dry = sweep.run(*points, "dry_run=true", "budget.sweep_max_usd=3")
        assert server.log.asked() == []
        assert dry.returncode == 0, dry.stderr
        line = dry.stdout.splitlines()[-1]
        assert re.fullmatch(
            r"sweep: 4 points · 10 requests · \$0\.\d+ to \$0\.\d+ · cap \$3\.0000 \(budget.sweep_max_usd\)", line
        ), "points that differ in their limit share answers"
        assert "all 4 points\n  requests   10 for 10 instances" in dry.stdout

        first = sweep.run(*points, "budget.sweep_max_usd=3")
        assert first.returncode == 0, first.stderr
        assert line_of(first.stderr) == line, "the dry run ends with the same total"
        assert len(server.log.asked()) == 10
        lines = first.stderr.splitlines()
        shown = [one for one in lines if one.startswith("points ")]
        assert shown[0].startswith("points 1 to 2 of 4 · 0/4 0% · sweep 0/14 0% · $0 · ")
        assert lines.index(line) < lines.index(shown[0]), "before anything is sent"
        assert shown[-1].startswith("points 3 to 4 of 4 · 10/10 100% · sweep 14/14 100% · ")
        total = sum(
            json.loads((tmp_path / run / "summary.json").read_text())["cost_usd"] for run in first.stdout.split()
        )
        assert f" · ${total:.6f} · " in shown[-1], "dollars of the sweep"
        assert "\x1b" not in first.stderr

        again = sweep.run(*points, "model.pricing=unknown")
        assert again.returncode == 0, again.stderr
        assert re.fullmatch(
            r"sweep: 4 points · 0 requests · \$0 · \$0\.\d+ paid before · no cap", line_of(again.stderr)
        )
        more = sweep.run(
            "dataset.limit=5", "decoding.temperature=0.5,0.7,7", "model.pricing=unknown", "dry_run=true",
        )  # fmt: skip
        assert line_of(more.stdout).startswith("sweep: 3 points, 1 of them invalid · 5 requests · unknown price · ")


def test_a_mixed_sweep_counts_its_paid_points_alone(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        sweep.base = ["tracker=none", "dataset=sample", "dataset.limit=2", "decoding.max_new_tokens=8"]
        sweep.environment["OPENAI_BASE_URL"] = server.openai_url
        mixed = sweep.run("model=tiny,gpt-4o", "budget.max_usd=1,2", "dry_run=true")
        assert mixed.returncode == 0, mixed.stderr
        assert re.fullmatch(
            r"sweep: 4 points, 2 of them local · 2 requests · \$0\.\d+ to \$0\.\d+ · "
            r"cap \$1\.0000 to \$2\.0000 for each run \(budget.max_usd\)",
            line_of(mixed.stdout),
        )
        shards = ("model=gpt-4o", "shard.count=2", "shard.index=0,1", "budget.max_usd=1", "dry_run=true")
        assert "cap $1.0000 for each run (budget.max_usd)" in line_of(sweep.run(*shards).stdout)
        assert "cap $1.0000 in equal parts (" in line_of(sweep.run(*shards, "budget.across=division").stdout)
        local = sweep.run("decoding.seed=1,2", "dry_run=true")
        assert "sweep: " not in local.stdout + local.stderr.replace("outputs/sweeps", "")


def test_a_search_is_estimated_by_its_number_of_points(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run(
            "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "decoding.max_new_tokens=range(8,60)"
        )
    assert result.returncode == 0, result.stderr
    assert line_of(result.stderr).startswith("sweep: a search of 2 points · about 6 requests · about $")
    assert re.search(r"^point 2 of 2 · max_new_tokens=\d+ · 0/3 0% · sweep 3/6 50% · ", result.stderr, re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class CountingDataset(JsonlDataset):
    """Counts how often it is opened, and which prompts are read."""

    opened: ClassVar[list[str]] = []
    read: ClassVar[list[int]] = []

    def open(self, normaliser: Normaliser | None = None) -> JsonlRows:
        self.opened.append(self.path)
        return cast(JsonlRows, CountingRows(super().open(normaliser)))


class CountingRows(RowsView):
    def __getitem__(self, index: int) -> Instance:
        CountingDataset.read.append(index)
        return self._rows[index]


def test_a_dataset_is_opened_and_its_prompts_are_read_once_for_all_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.chdir(tmp_path)
    data = write_instances(tmp_path / "instances.jsonl", 4)

    def points() -> Iterator[DictConfig]:
        for model in ("gpt-4o", "gpt-4.1"):
            for n in (1, 2, 3):
                yield composed(
                    f"model={model}", "dataset=jsonl", f"dataset.path={data}", f"decoding.n={n}", "decoding.seed=1",
                    "dataset._target_=tests.sweeps.test_plan.CountingDataset", f"dataset.limit={n + 1}",
                )  # fmt: skip

    with _Planner(dry_run=False) as planner:
        for number, cfg in enumerate(points()):
            planner.add(lambda cfg=cfg, number=number: (cfg, SweepLog(tmp_path, (), number)))  # type: ignore[misc] # the loop's values
        plan = planner.plan(parallel=False)
    assert [point.error for point in plan.points] == [None] * 6
    assert [point.todo for point in plan.points] == [2, 6, 12] * 2
    assert len(CountingDataset.opened) == 1
    assert sorted(CountingDataset.read) == [0, 1, 2, 3]
    plan.write(tmp_path)
    assert SweepPlan.read(tmp_path) == plan


def test_what_differs_is_shown_by_the_last_part_of_a_key() -> None:
    overrides = ["decoding=sample", "decoding.temperature=0.6", "+dataset.limit=3", "x.limit=4"]
    swept = ["decoding.temperature", "dataset.limit", "x.limit"]
    assert short_overrides(overrides, swept) == "temperature=0.6 dataset.limit=3 x.limit=4"
    assert short_overrides(["provider.name=a"], ["provider.name"]) == "provider.name=a"


COUNT = """
import atexit, runpy, sys
from swe_infer.cli import config_loader
config_loader._COMPOSED.clear()
from hydra._internal.config_loader_impl import ConfigLoaderImpl
original, count = ConfigLoaderImpl.load_configuration, 0
def counted(*arguments, **named):
    global count
    count += 1
    return original(*arguments, **named)
ConfigLoaderImpl.load_configuration = counted
atexit.register(lambda: print("composed", count))
runpy.run_module("swe_infer", run_name="__main__", alter_sys=True)
"""


def test_the_launch_of_a_job_does_not_compose_it_again(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        values = ["decoding=sample", "decoding.seed=1", "decoding.temperature=0.1,0.2,0.3"]
        done = commands.run("-c", COUNT, "-m", *sweep.base, *values, cwd=tmp_path, env=sweep.environment)
        asked = {exchange.body["temperature"] for exchange in server.log.asked()}
    assert done.returncode == 0, done.stderr
    assert asked == {0.1, 0.2, 0.3}
    assert done.stdout.splitlines()[-1] == "composed 2", "one for the sweep, and one for its jobs"


@pytest.mark.slow
def test_jobs_are_composed_as_hydra_does(request: pytest.FixtureRequest) -> None:
    with composer(None):
        sweep = compose(
            "config", ["model=gpt-4o", "hydra.job.name=mine", "hydra.sweep.dir=sweep"], return_hydra_config=True
        )
        loader = ConfigLoaderImpl(GlobalHydra.instance().config_loader().get_search_path())
        cached = CachedLoader(loader.get_search_path())
        more = (
            ["model=gpt-4o"],
            ["decoding.temperature=0.3", "decoding.stop=[a]", "model=gpt-4o"],
            ["decoding.temperature=0.4", "decoding.stop=[a]", "model=gpt-4o"],
            ["decoding.temperature.value=1"],
        )
        for job in (
            *(more if request.config.getoption("full") else ()),
            ["model=gpt-4o", "decoding.temperature=0.1", "decoding.seed=null"],
            ["model=gpt-4o", "decoding.temperature=1", "decoding.seed=3"],
            [
                "decoding.seed=1",
                "model=claude-sonnet-4-5",
                "decoding.top_p=0.5",
                "provider.max_retries=${decoding.n}",
            ],
            ["decoding.temperature=0.3", "decoding=sample", "experiment=pass_at_k"],
            ["~decoding.seed", "++decoding.seed=4", "decoding.seed=5"],
            ["decoding.tempratur=1"],
            ["+decoding.temperature=1"],
            ["model=gpt-4p"],
        ):
            try:
                expected: object = loader.load_sweep_config(sweep, job)
            except HydraException as error:
                expected = str(error)
            try:
                got: object = cached.load_sweep_config(sweep, job)
            except HydraException as error:
                got = str(error)
            assert got == expected, job
