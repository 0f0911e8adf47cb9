"""Sweeps over options with different keys, and over the points of a file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from swe_infer.cli.arguments import hydra_arguments
from swe_infer.errors import ConfigError
from tests.support.api_server import ApiServer
from tests.sweeps.command import Sweep


def jobs(directory: Path, sweep: str = "*") -> list[list[str]]:
    """The overrides of the jobs of a sweep, from its log."""
    (log,) = (directory / "outputs" / "sweeps").glob(f"{sweep}/runs.jsonl")
    return [json.loads(line)["overrides"] for line in log.read_text().splitlines()]


def test_a_key_applies_to_the_options_that_have_it_in_either_order(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=2)
        key = "provider.max_concurrency=7,9"
        sweep.base = ["tracker=none", key, f"provider.base_url={server.openai_url}", "dataset.limit=1"]
        mixed = sweep.run("model=tiny,gpt-4o", "sweep=models")
        assert mixed.returncode == 0, mixed.stderr
        found = [[item for item in job if "concurrency" in item] for job in jobs(tmp_path, "models")]
        assert found == [[], ["provider.max_concurrency=7"], ["provider.max_concurrency=9"]]

        data = tmp_path / "instances.jsonl"
        sweep.base = ["tracker=none", "model=gpt-4o", f"provider.base_url={server.openai_url}"]
        for order in (
            ["dataset=sample,jsonl", f"dataset.path={data}"],
            [f"dataset.path={data}", "dataset=sample,jsonl"],
        ):
            result = sweep.run(*order, "dataset.limit=1", "sweep=data")
            assert result.returncode == 0, result.stderr
            assert ["dataset.path" in " ".join(job) for job in jobs(tmp_path, "data")] == [False, True]

        asked = len(server.log.asked())
        typo = sweep.run("dataset=sample,jsonl", f"dataset.path={data}", "dataset.limmit=1")
        assert (typo.returncode, typo.stdout) == (2, "")
        assert typo.stderr == "error: dataset.limmit: unknown key; did you mean dataset.limit?\n"
        assert len(server.log.asked()) == asked


def test_the_points_of_a_file_are_multiplied_with_the_swept_values_and_named(tmp_path: Path) -> None:
    points = [
        {
            "name": "big-low",
            "overrides": ["model=gpt-4o", "decoding.max_new_tokens=32", "provider.max_concurrency=3"],
        },
        {"name": "small-high", "overrides": ["model=gpt-4o-mini", "decoding.max_new_tokens=64"]},
        {"name": "local", "overrides": ["model=tiny", "dataset=sample", "dataset.limit=1"]},
    ]
    (tmp_path / "points.json").write_text(json.dumps(points))
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=2)
        sweep.base.remove("model=gpt-4o")
        arguments = ("sweep.points=points.json", "sweep=chosen", "decoding.temperature=0,0.5")
        estimate = sweep.run(*arguments, "dry_run=true")
        assert estimate.returncode == 0, estimate.stderr
        assert "all 6 points" in estimate.stdout
        assert server.log.asked() == []
        result = sweep.run(*arguments)
        assert result.returncode == 0, result.stderr
        asked = Counter(
            (e.body["model"], e.body["max_completion_tokens"], e.body["temperature"]) for e in server.log.asked()
        )
    pairs = [("gpt-4o", 32), ("gpt-4o-mini", 64)]
    assert asked == {(*pair, temperature): 2 for pair in pairs for temperature in (0, 0.5)}
    runs = result.stdout.splitlines()
    assert [line.partition("point=")[2] for line in runs] == [point["name"] for point in points for _ in "ab"]
    assert [f"sweep.point={point['name']}" for point in points for _ in "ab"] == [
        item for job in jobs(tmp_path, "chosen") for item in job if item.startswith("sweep.point=")
    ]
    page = (tmp_path / "outputs" / "sweeps" / "chosen" / "comparison.html").read_text()
    assert "sweep.point" in page
    assert result.stderr.count("small-high") >= 2, "the comparison names the points"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "must be a list of points"),
        ("a: [", "neither YAML nor JSON"),
        ("- {name: a}", "point 1: must have the keys name and overrides alone"),
        ("- {name: a/b, overrides: []}", "point 1: name=a/b: must be"),
        ("- {name: a, overrides: model=tiny}", "point 1 (a): overrides must be a list of strings"),
        ("- {name: a, overrides: [tiny]}", "point 1 (a): tiny: must be KEY=VALUE"),
        ("- {name: a, overrides: ['decoding.temperature=0,1']}", "point 1 (a): decoding.temperature=0,1: several"),
        ("- {name: a, overrides: [budget.max_usd=1, sweep.points=b]}", "point 1 (a): sweep.points: is a key of the"),
        ("- {name: a, overrides: []}\n- {name: a, overrides: []}", "two points have the name a"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_point(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "points.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        hydra_arguments(["-m", f"sweep.points={path}"])
    assert str(refused.value).startswith(f"sweep.points={path}: ")
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_option_or_key_of_a_point_is_one_line_and_no_sweep(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        for override, said in (
            ("model=gpt-4p", "gpt-4p"),
            ("decoding.tempature=1", "did you mean decoding.temperature?"),
        ):
            (tmp_path / "points.yaml").write_text(
                f"- {{name: fine, overrides: []}}\n- {{name: second, overrides: [{override}]}}"
            )
            result = sweep.run("sweep.points=points.yaml")
            assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
            assert "points.yaml" in result.stderr
            assert "point second" in result.stderr
            assert said in result.stderr
        assert server.log.asked() == []
    with pytest.raises(ConfigError, match="needs -m"):
        hydra_arguments(["sweep.points=points.yaml"])
    with pytest.raises(ConfigError, match="names a folder"):
        hydra_arguments(["-m", "sweep=a/b", "decoding.temperature=0,1"])
