"""The end of a sweep: standard output, the comparison and its page, failures, resuming."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.api_server import ApiServer
from tests.sweeps.command import Sweep


def test_a_range_with_a_failed_job_ends_in_a_comparison_of_the_others(tmp_path: Path) -> None:
    """No file holds the password of the address."""
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        sweep.base = [argument.replace("http://", "http://user:canary@") for argument in sweep.base]
        result = sweep.run("decoding.temperature=range(0,1,0.5)", "decoding.top_p=0.9,7")
    assert result.returncode == 2, result.stderr
    assert "canary" not in result.stdout + result.stderr
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert any(path.name == "runs.jsonl" for path in files)
    assert not [path for path in files if b"canary" in path.read_bytes()]
    runs = result.stdout.splitlines()
    assert len(runs) == 2
    assert all((tmp_path / run / "summary.json").exists() for run in runs), "run directories and nothing else"
    for temperature in ("0.0", "0.5"):
        assert (
            f"exit 2: decoding.temperature={temperature} decoding.top_p=7 (decoding.top_p=7.0: must" in result.stderr
        )
    assert "Paired differences" in result.stderr
    last = result.stderr.splitlines()[-1]
    page = Path(last.removeprefix("comparison: file://"))
    assert page.parent.parent == tmp_path / "outputs" / "sweeps"
    text = page.read_text()
    assert all(Path(run).name in text for run in runs)


def test_a_glob_over_models_and_an_experiment_are_jobs_of_one_sweep(tmp_path: Path) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path, count=1).run(
            "experiment=temperature", "model=glob(gpt-4o*)", "decoding.n=1", "provider.max_concurrency=2"
        )
        asked = [(exchange.body["model"], exchange.body["temperature"]) for exchange in server.log.asked()]
    assert result.returncode == 0, result.stderr
    assert sorted(asked) == [(model, t) for model in ("gpt-4o", "gpt-4o-mini") for t in (0.2, 0.6, 1.0)]


def test_a_sweep_over_models_may_set_their_providers_keys(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        sweep.base.remove("model=gpt-4o")
        result = sweep.run("model=gpt-4.1,gpt-4o-mini", "provider.max_concurrency=2")
        asked = [exchange.body["model"] for exchange in server.log.asked()]
    assert result.returncode == 0, result.stderr
    assert asked == ["gpt-4.1", "gpt-4o-mini"]
    (log,) = (tmp_path / "outputs" / "sweeps").glob("*/runs.jsonl")
    points = [json.loads(line)["overrides"] for line in log.read_text().splitlines()]
    assert [[item for item in point if item.startswith("model=")] for point in points] == [
        ["model=gpt-4.1"],
        ["model=gpt-4o-mini"],
    ]


def test_a_glob_that_matches_nothing_is_one_line_and_no_sweep(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        for override, hint in (
            ("decoding=glob(gred*)", "matches nothing; available: greedy, model_default, reasoning, sample"),
            ("decoding.temperature=glob(*)", "matches nothing; decoding.temperature is not a group"),
        ):
            result = sweep.run(override)
            assert (result.returncode, result.stdout) == (2, "")
            assert result.stderr == f"error: {override}: {hint}\n"
        assert server.log.asked() == []


def test_a_comparison_that_cannot_be_written_costs_nothing_but_itself(tmp_path: Path) -> None:
    sweep_directory = tmp_path / "sweep"
    (sweep_directory / "comparison.html").mkdir(parents=True)
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run("decoding.temperature=0,1", f"output_dir={sweep_directory}")
    assert result.returncode == 0, result.stderr
    assert "comparison.html: Is a directory" in result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert len(list(sweep_directory.glob("*/summary.json"))) == 2, "points that share a folder get one each within it"


def test_the_same_command_retries_failed_instances(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        server.script("bad_request")
        first = sweep.run("decoding.temperature=0,1")
        assert first.returncode == 1, first.stderr
        assert len(re.findall(r"^exit 1: decoding.temperature=[01] outputs/", first.stderr, re.MULTILINE)) == 1
        assert "Run the same command again to finish the rest" in first.stderr
        second = sweep.run("decoding.temperature=0,1")
        assert second.returncode == 0, second.stderr
        assert "exit" not in second.stderr
        assert second.stdout == first.stdout
        assert len(server.log.asked()) == 7, "six answers, one of them asked for twice"


def test_what_holds_for_all_runs_and_answers_is_logged_once(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        sweep.base = [argument for argument in sweep.base if not argument.startswith("provider.base_url=")]
        sweep.environment["OPENAI_BASE_URL"] = server.openai_url
        # genai-prices has no price for this tier of gpt-4o
        result = sweep.run(
            "provider.service_tier=flex", "+model.extra_body.tools=[{type: web_search}]", "decoding.temperature=0,3",
            "decoding.top_p=0.8,0.9",
        )  # fmt: skip
    assert result.returncode == 2, result.stderr
    lines = result.stderr.splitlines()
    said = [line for line in lines if line.startswith(("INFO ", "WARNING ", "error: "))]
    for words in (
        "OPENAI_BASE_URL names the server", "prices of gpt-4o", "the cost may be unknown", "the cost of an answer is",
        "the cost leaves out", "sent as given", "error: decoding.temperature",
    ):  # fmt: skip
        assert len([line for line in said if words in line]) == 1, result.stderr


def test_answers_that_another_point_paid_for_are_named_in_the_log_and_the_comparison(tmp_path: Path) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run("provider.service_tier=default,flex", "model.pricing=unknown")
        assert len(server.log.asked()) == 3
    assert result.returncode == 0, result.stderr
    assert "answers that another run paid for are used, at no cost here: 3" in result.stderr
    assert "Answers that another run paid for, which cost nothing here: B 3." in result.stderr
