"""``sweeps/``: every file composes, and a real ``wandb sweep`` and ``wandb agent`` drive one against a server."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from swe_infer import config
from swe_infer.cli.run_session import AgentRun
from swe_infer.errors import ConfigError
from swe_infer.tracking.metrics import summary_of
from swe_infer.types import DrafterKind
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.options import composed
from tests.support.wandb_server import API_KEY, FakeWandbServer, wandb_server
from tests.support.wandb_sweeps import points_of
from tests.sweeps.command import ROOT

FILES = sorted((ROOT / "sweeps").glob("*.yaml"))
TOTALS = {
    "instances": 1, "completed": 1, "failed": 0, "skipped": 0, "remaining": 0, "cost_usd": 1, "wall_s": 1.0,
    "output_tokens_per_s": 1.0, "patches": {"applies": 1}, "resolved": 1, "evaluated": 1, "resolved_rate": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_job_of_a_sweep_file_composes_and_is_built(file: Path, request: pytest.FixtureRequest) -> None:
    """The first one, or with ``--all`` the first three."""
    sweep = yaml.safe_load(file.read_text())
    assert sweep["command"] == ["${env}", "${interpreter}", "-m", "${program}", "${args_no_hyphens}"]
    assert sweep["program"] == "swe_infer"
    for point in itertools.islice(points_of(sweep), 3 if request.config.getoption("full") else 1):
        config.build(composed(*(f"{name}={value}" for name, value in point.items())))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_metric_of_a_sweep_file_is_one_that_a_run_logs(file: Path) -> None:
    metric = yaml.safe_load(file.read_text())["metric"]
    assert metric["name"] in summary_of(TOTALS)
    assert metric["goal"] == "maximize"


RECIPES = sorted((ROOT / "conf" / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_point_of_an_experiment_composes_and_is_built(file: Path, request: pytest.FixtureRequest) -> None:
    """The first and the last one, or with ``--all`` every one."""
    params = yaml.safe_load(file.read_text()).get("hydra", {"sweeper": {"params": {}}})["sweeper"]["params"]
    swept = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in params.items()])
    choices = [[f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()] for one in swept]
    points = list(itertools.product(*choices))
    assert len(points) == 1 or all(len(values) > 1 for values in choices)
    if not request.config.getoption("full"):
        points = list(dict.fromkeys((points[0], points[-1])))
    labels = {str(config.digest(config.resolved(point_of(file, point)))) for point in points}
    assert len(labels) == len(points), "each point is a run of its own"


def point_of(file: Path, overrides: Sequence[str]) -> DictConfig:
    cfg = composed(f"experiment={file.stem}", *overrides)
    config.build(cfg)
    return cfg


@pytest.mark.parametrize("file", [*FILES, *RECIPES], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_recipe_says_which_question_it_answers_and_how_it_is_started(file: Path) -> None:
    lines = list(itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines()))
    comment = " ".join(line.removeprefix("#").strip() for line in lines if "@package" not in line)
    assert re.match(r"[A-Z][^.?]+\?", comment)
    name = re.escape(file.stem)
    if file in FILES:
        assert f"wandb sweep sweeps/{file.name}" in comment
        assert "wandb agent" in comment
    else:
        assert re.search(rf"swe-infer -m .*experiment=({name}\b|glob\()", comment)


def test_drafters_are_compared_by_runs_that_do_not_share_answers() -> None:
    files = [file for file in RECIPES if file.stem.startswith("drafter_")]
    cfgs = [point_of(file, ()) for file in files]
    assert {cfg.decoding.drafter for cfg in cfgs} == set(get_args(DrafterKind))
    assert len({config.digest(config.resolved(cfg)) for cfg in cfgs}) == len(cfgs)


def test_there_is_a_grid_a_random_and_a_bayesian_one() -> None:
    assert {yaml.safe_load(file.read_text())["method"] for file in FILES} == {"grid", "random", "bayes"}


def test_a_run_that_could_not_report_to_its_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match="WANDB_API_KEY"):
        AgentRun.from_environment({"WANDB_SWEEP_ID": "s", "WANDB_RUN_ID": "r"})
    assert AgentRun.from_environment({"WANDB_RUN_ID": "r", "WANDB_API_KEY": "k"}) is None


class Cli:
    """The ``wandb`` command in a checkout."""

    def __init__(self, server: FakeWandbServer, directory: Path) -> None:
        self.directory = directory
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        self.environment = clean | {
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": API_KEY,
            "OPENAI_API_KEY": "sk-test",
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(directory),
            "XDG_STATE_HOME": str(directory / "state"),
        }

    def __call__(self, *arguments: str) -> str:
        result = commands.run("wandb", *arguments, cwd=self.directory, env=self.environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr


@pytest.fixture
def server() -> Iterator[FakeWandbServer]:
    with wandb_server() as server:
        yield server


def adapted(file: Path, target: Path, **parameters: Any) -> Path:
    """A sweep file as a user edits it: other values, the rest unchanged."""
    sweep = yaml.safe_load(file.read_text())
    sweep["parameters"] |= {name.replace("__", "."): spec for name, spec in parameters.items()}
    target.write_text(yaml.dump(sweep))
    return target


@pytest.mark.parametrize("repeated", [False, pytest.param(True, marks=pytest.mark.full)])
def test_an_agents_runs_are_the_sweeps_share_its_cap_and_are_never_paid_twice(
    repeated: bool, server: FakeWandbServer, tmp_path: Path
) -> None:
    wandb = Cli(server, tmp_path)
    data = write_instances(tmp_path / "instances.jsonl", 20, lines=200)
    with ApiServer() as vendor:
        file = adapted(
            ROOT / "sweeps" / "models.yaml",
            tmp_path / "models.yaml",
            model={"values": ["gpt-4o", "gpt-4.1"]},
            provider__base_url={"value": vendor.openai_url},
            dataset={"value": "jsonl"},
            dataset__path={"value": str(data)},
            decoding__max_new_tokens={"value": 64},
            budget__sweep_max_usd={"value": 0.12},
        )
        first = swept(wandb, file)
        assert first == "sweep0"
        assigned = server.sweeps[first].assigned
        assert [point["model"] for point in assigned.values()] == ["gpt-4o", "gpt-4.1"]
        runs = [server.runs[run_id] for run_id in assigned]
        assert set(server.runs) == set(assigned), "no run but those that the sweep knows"
        assert all(run.fields["sweep"] == first for run in runs)
        assert all(run.summary["apply_rate"] == run.summary["completed"] / 20 for run in runs), (
            "over all that was asked"
        )
        assert [run.exit_code for run in runs] == [0, 3], "the second run finds what the first one left of the cap"
        bill = vendor.log.cost_usd()
        assert Decimal("0.08") < bill <= Decimal("0.12")
        asked = len(vendor.log.asked())

        if not repeated:
            return
        second = swept(wandb, file, "--count", "1")
        (run_id,) = server.sweeps[second].assigned
        assert server.runs[run_id].summary["completed"] == 20, "a finished point reports to the new sweep"
        assert server.runs[run_id].exit_code == 0
        assert len(vendor.log.asked()) == asked


@pytest.mark.full
def test_an_agent_runs_the_recipe_of_prompts_with_the_bundled_model(server: FakeWandbServer, tmp_path: Path) -> None:
    wandb = Cli(server, tmp_path)
    small = {"dataset__limit": {"value": 1}, "decoding__max_new_tokens": {"value": 8}}
    recipe = ROOT / "sweeps" / "prompt_and_context.yaml"
    sweep = swept(wandb, adapted(recipe, tmp_path / "recipe.yaml", **small), "--count", "1")
    ((run_id, point),) = server.sweeps[sweep].assigned.items()
    assert (point["prompt"], point["context"]) == ("style2", "oracle")
    run = server.runs[run_id]
    assert (run.fields["sweep"], run.fields["project"], run.exit_code) == (sweep, "swe-infer", 0)
    assert run.summary["completed"] == 1
    assert "apply_rate" in run.summary


@pytest.mark.full
def test_an_agent_runs_the_recipe_of_efforts_under_its_budget(server: FakeWandbServer, tmp_path: Path) -> None:
    wandb = Cli(server, tmp_path)
    data = write_instances(tmp_path / "instances.jsonl", 2)
    with ApiServer() as vendor:
        file = adapted(
            ROOT / "sweeps" / "effort_and_model.yaml",
            tmp_path / "recipe.yaml",
            provider__base_url={"value": vendor.openai_url},
            dataset={"value": "jsonl"},
            dataset__path={"value": str(data)},
            decoding__max_new_tokens={"value": 64},
        )
        sweep = swept(wandb, file, "--count", "2")
        asked = [(exchange.body["model"], exchange.body["reasoning_effort"]) for exchange in vendor.log.asked()]
    assert asked == [("gpt-5-mini", "low")] * 2 + [("gpt-5-mini", "high")] * 2
    runs = [server.runs[run_id] for run_id in server.sweeps[sweep].assigned]
    assert [run.summary["completed"] for run in runs] == [2, 2]


@pytest.mark.full
def test_values_from_the_server_reach_the_run_unchanged(server: FakeWandbServer, tmp_path: Path) -> None:
    wandb = Cli(server, tmp_path)
    data = write_instances(tmp_path / "instances.jsonl", 1)
    with ApiServer() as vendor:
        file = adapted(
            ROOT / "sweeps" / "random.yaml",
            tmp_path / "random.yaml",
            model={"value": "gpt-4o"},
            provider__base_url={"value": vendor.openai_url},
            dataset={"value": "jsonl"},
            dataset__path={"value": str(data)},
        )
        sweep = swept(wandb, file, "--count", "1")
        (asked,) = vendor.log.asked()
    ((run_id, point),) = server.sweeps[sweep].assigned.items()
    assert asked.body["temperature"] == pytest.approx(point["decoding.temperature"])
    assert asked.body["top_p"] == pytest.approx(point["decoding.top_p"])
    assert server.runs[run_id].summary["apply_rate"] == 1.0


def swept(wandb: Cli, file: Path, *options: str) -> str:
    """Creates the sweep and lets an agent run it; returns its id."""
    match = re.search(r"wandb agent (?:\x1b\[\w+m)?(\S+/(\w+))", wandb("sweep", file.name))
    assert match is not None
    wandb("agent", *options, match[1])
    return match[2]
