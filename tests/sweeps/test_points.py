"""Sweeps over options with different keys, and over the points of a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from swe_infer.cli.arguments import hydra_arguments
from swe_infer.cli.composer import Composed, Composer, composer
from swe_infer.cli.sweeper import sweep_jobs
from swe_infer.errors import ConfigError
from tests.support import commands
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
        mixed = sweep.run("model=tiny,gpt-4o", "sweep=models", packages=commands.LOCAL)
        assert mixed.returncode == 0, mixed.stderr
        found = [[item for item in job if "concurrency" in item] for job in jobs(tmp_path, "models")]
        assert found == [[], ["provider.max_concurrency=7"], ["provider.max_concurrency=9"]]

        data = tmp_path / "instances.jsonl"
        sweep.base = ["tracker=none", "model=gpt-4o", f"provider.base_url={server.openai_url}"]
        order = [f"dataset.path={data}", "dataset=sample,jsonl"]
        result = sweep.run(*order, "dataset.limit=1", "sweep=data")
        assert result.returncode == 0, result.stderr
        assert ["dataset.path" in " ".join(job) for job in jobs(tmp_path, "data")] == [False, True]
        reversed_jobs, _ = jobs_of("model=gpt-4o", *order[::-1], "dataset.limit=1")
        assert ["dataset.path" in job for job in reversed_jobs] == [False, True]

        asked = len(server.log.asked())
        typo = sweep.run("dataset=sample,jsonl", f"dataset.path={data}", "dataset.limmit=1")
        assert (typo.returncode, typo.stdout) == (2, "")
        assert typo.stderr == "error: dataset.limmit: unknown key; did you mean dataset.limit?\n"
        assert len(server.log.asked()) == asked


class CountingComposer(Composer):
    count = 0

    def compose(self, overrides: Sequence[str]) -> Composed:
        self.count += 1
        return super().compose(overrides)


def jobs_of(*arguments: str) -> tuple[list[str], int]:
    """The jobs of a sweep as its sweeper has them, and how many configurations were composed for them."""
    given = [a for a in hydra_arguments(["-m", *arguments]) if not a.startswith(("-", "hydra.sweep.dir="))]
    swept = {argument.partition("=")[0] for argument in arguments if "," in argument}
    given = [a for a in given if a in arguments or a.partition("=")[0] not in swept]  # without placeholders
    with composer(None):
        counting = CountingComposer(None)
        jobs = sweep_jobs(OverridesParser.create().parse_overrides(given), None, counting)
    return [" ".join(job) for job in jobs], counting.count


def test_jobs_are_checked_without_composing_each() -> None:
    temperatures = "decoding.temperature=" + ",".join(f"0.{i}" for i in range(9))
    found, count = jobs_of("model=tiny,gpt-4o", temperatures, "provider.max_concurrency=2,3")
    assert len(found) == 9 + 18
    assert count == 2
    found, count = jobs_of("model=gpt-4o", temperatures, "budget.max_usd=1,2")
    assert (len(found), count) == (18, 1)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runner.retry.tries=3", "model=tiny,gpt-4o"], ["model=tiny", "runner.retry.tries=3 model=gpt-4o"]),
        (["model=tiny,gpt-4o", "++model.extra_body.a=1"], ["model=tiny", "model=gpt-4o ++model.extra_body.a=1"]),
        (["model=tiny,gpt-4o", "+model.extra_body.a=1"], ["model=tiny", "model=gpt-4o +model.extra_body.a=1"]),
        (["model=tiny,gpt-4o", "model.extra_body={a:1}"], ["model=tiny", "model=gpt-4o ++model.extra_body={a:1}"]),
        (["model=tiny,gpt-4o", "~decoding.stop"], ["model=tiny ~decoding.stop", "model=gpt-4o ~decoding.stop"]),
        (["provider=openai,anthropic", "model=gpt-4o", "provider.send_cache_key=false"],
         ["provider=openai model=gpt-4o provider.send_cache_key=false", "provider=anthropic model=gpt-4o"]),
    ],
)  # fmt: skip
def test_prefixes_nested_keys_and_mappings_apply_where_they_exist(arguments: list[str], expected: list[str]) -> None:
    assert jobs_of(*arguments)[0] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=tiny,llama", "provider.max_concurrency=8"], "provider.max_concurrency: unknown key; no run of the"),
        (["model=tiny,gpt-4o", "provider.max_concurency=8"], "did you mean provider.max_concurrency?"),
        (["model=tiny,gpt-4o", "++provider.base_urll=a"], "did you mean provider.base_url?"),
        (["model=tiny,gpt-4o", "decoding.max_tokens=8,9"], "decoding.max_tokens: unknown key; did you mean"),
        (["decoding.tempature=0,1"], "did you mean decoding.temperature?"),
        (["budget.max=1,2"], "did you mean budget.max_usd?"),
    ],
)
def test_a_key_of_no_job_is_an_error_with_a_suggestion(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        jobs_of(*arguments)
    assert message in str(refused.value)


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
        result = sweep.run(*arguments, packages=commands.LOCAL)
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
        search = sweep.run("sweep.points=points.yaml", "hydra/sweeper=basic")
        assert (search.returncode, search.stderr.count("\n")) == (2, 1), search.stderr
        assert "chooses its own points" in search.stderr
    with pytest.raises(ConfigError, match="needs -m"):
        hydra_arguments(["sweep.points=points.yaml"])
    with pytest.raises(ConfigError, match="names a folder"):
        hydra_arguments(["-m", "sweep=a/b", "decoding.temperature=0,1"])
