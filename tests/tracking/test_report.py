"""The W&B report: created by W&B's package on a fake server, and compared with what a run logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swe_infer.tracking.report import main
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances
from tests.support.wandb_server import FakeRun, FakeWandbServer, served

pytest.importorskip("wandb_workspaces", reason="the extra `report` is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = "team/a-project"
NAMING = {"xAxis", "yAxis", "accessor", "targetKey", "metrics"}
"""Keys of a panel's configuration that contain metric names."""


@dataclass
class Reported:
    server: FakeWandbServer
    run: FakeRun
    address: str


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reported]:
    """A run, its evaluation, and the report of their project."""
    directory = tmp_path_factory.mktemp("work")
    with served(tmp_path_factory.mktemp("home")) as (server, _), ApiServer(latency_s=0.1) as vendor:
        data = write_instances(directory / "instances.jsonl", 12)
        command(
            directory, "swe_infer", "model=gpt-4o", f"provider.base_url={vendor.openai_url}", "dataset=jsonl",
            f"dataset.path={data}", "tracker.project=a-project", "tracker.log_interval_s=0.2", "output_dir=run",
            "decoding=sample", "provider.max_concurrency=2",
        )  # fmt: skip
        ids = [json.loads(line)["instance_id"] for line in data.read_text().splitlines()]
        (directory / "report.json").write_text(json.dumps({"resolved_ids": ids[:3], "unresolved_ids": ids[3:]}))
        command(directory, "swe_infer.evaluate", "run", "--report", "report.json")
        address = command(directory, "swe_infer.tracking.report", PROJECT).strip()
        (run,) = server.runs.values()
        yield Reported(server, run, address)


def command(directory: Path, module: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}
    done = commands.run(module, *arguments, cwd=directory, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def panels_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    return [panel for grid in grids for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]]


def named(config: Any) -> Iterator[str]:
    """Every metric and key in a panel's configuration, at any depth."""
    if isinstance(config, dict):
        for key, value in config.items():
            if key in NAMING:
                yield from [value] if isinstance(value, str) else value
            else:
                yield from named(value)
    elif isinstance(config, list):
        for value in config:
            yield from named(value)


def looked_up(config: dict[str, Any], path: str) -> Any:
    """The value of a dotted key of the run's configuration: ``decoding.value.temperature``."""
    found: Any = config
    for part in path.split("."):
        found = found[part]
    return found


def test_the_panels_show_what_people_compare_first(reported: Reported) -> None:
    (identity,) = reported.server.views
    panels = panels_of(reported.server.spec(identity))
    kinds = [panel["viewType"] for panel in panels]
    assert {"Run History Line Plot", "Run Comparer", "Parallel Coordinates Plot", "Parameter Importance"} < set(kinds)
    scatters = [panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot"]
    assert [(config["xAxis"], config["yAxis"]) for config in scatters] == [
        ("summary:cost_usd", "summary:apply_rate"),
        ("summary:cost_usd", "summary:resolved_rate"),
    ]
    tables = [panel["config"] for panel in panels if panel["viewType"] == "Weave"]
    assert ['"val": "predictions"' in json.dumps(table) for table in tables] == [True]
    title = "Cost-against-apply-rate-and-resolved-rate"
    assert reported.address == f"{reported.server.url}/{PROJECT}/reports/{title}--{identity}"


def test_every_metric_of_the_report_is_one_that_a_run_logs(reported: Reported) -> None:
    (identity,) = reported.server.views
    history = {key for row in reported.run.history for key in row}
    names = []
    for panel in panels_of(reported.server.spec(identity)):
        for name in named(panel["config"]):
            names.append(name)
            section, _, rest = name.partition(":")
            if panel["viewType"] == "Run History Line Plot":
                assert name in history, name
            elif section == "config":
                assert looked_up(reported.run.config, rest) is not None, name
            else:
                assert (rest or name) in reported.run.summary, name
    assert len(set(names)) >= 10
    assert reported.run.summary["resolved_rate"] == 0.25
    assert "predictions" in reported.run.summary


def test_a_report_is_made_once_and_replaced_on_demand(reported: Reported, capsys: pytest.CaptureFixture[str]) -> None:
    (identity,) = reported.server.views
    reported.server.views[identity]["spec"] = "{}"  # somebody has edited it
    assert main([PROJECT]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == reported.address
    assert err == "the report exists already; --replace recreates it\n"
    assert reported.server.spec(identity) == {}
    assert main([PROJECT, "--replace"]) == 0
    assert list(reported.server.views) == [identity]
    assert panels_of(reported.server.spec(identity))


def test_a_report_of_a_group_shows_its_runs_alone(reported: Reported) -> None:
    assert main([f"{PROJECT}/groups/a group"]) == 0
    spec = reported.server.spec(list(reported.server.views)[-1])
    grids = [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]
    for grid in grids:
        (runset,) = grid["runSets"]
        (condition,) = runset["filters"]["filters"]
        assert (condition["key"], condition["op"], condition["value"]) == (
            {"section": "run", "name": "group"},
            "=",
            "a group",
        )


def test_what_no_report_can_be_made_of_is_one_line(
    reported: Reported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["team/nothing"]) == 2
    assert main([f"{PROJECT}/run-1"]) == 2
    monkeypatch.delenv("WANDB_API_KEY")
    assert main([PROJECT]) == 2
    missing, single, keyless = capsys.readouterr().err.splitlines()
    assert missing.startswith("error: wandb:team/nothing: the report could not be created: ")
    assert "must be a project, group or sweep" in single
    assert "WANDB_API_KEY" in keyless


def test_without_its_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['wandb_workspaces'] = None\n")
    done = subprocess.run(
        [sys.executable, "-m", "swe_infer.tracking.report", PROJECT],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: a report needs an extra that is not installed; pip install 'swe_infer[report]'\n"
