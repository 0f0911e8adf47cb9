"""A search with Optuna: objectives, resuming, failed jobs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from swe_infer.text import dollars
from tests.support.api_faults import FaultKind
from tests.support.api_server import ApiServer
from tests.sweeps.command import ROOT, Sweep

pytest.importorskip("optuna", reason="the extra `optuna` is not installed")

SEARCH = ("hydra/sweeper=optuna", "decoding.max_new_tokens=range(8,60)", "hydra.sweeper.sampler.seed=1")


def points(directory: Path) -> list[dict[str, object]]:
    (log,) = (directory / "outputs" / "sweeps").glob("*/runs.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_the_cheapest_job_is_found_and_a_longer_search_resumes_the_study(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        first = sweep.run(*SEARCH, "objective=cost_usd", "hydra.sweeper.n_trials=3")
        assert first.returncode == 0, first.stderr
        assert len(server.log.asked()) == 9
        runs = first.stdout.splitlines()
        costs = [json.loads((tmp_path / run / "summary.json").read_text())["cost_usd"] for run in runs]
        assert [point["objective"] for point in points(tmp_path)] == [[cost] for cost in costs]
        (results,) = (tmp_path / "outputs" / "sweeps").glob("*/optimization_results.yaml")
        best = OmegaConf.load(results)
        assert best.best_value == min(costs), "dollars are minimised without being told"
        assert (
            f"best: decoding.max_new_tokens={best.best_params['decoding.max_new_tokens']} (cost_usd=" in first.stderr
        )

        again = sweep.run(*SEARCH, "objective=cost_usd", "hydra.sweeper.n_trials=3")
        assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr
        assert len(server.log.asked()) == 9, "a finished search asks nothing"

        longer = sweep.run(*SEARCH, "objective=cost_usd", "hydra.sweeper.n_trials=4")
        assert longer.returncode == 0, longer.stderr
        assert len(set(longer.stdout.splitlines())) == 4
        assert set(runs) < set(longer.stdout.splitlines()), "all runs of the search are named"
        assert len(server.log.asked()) == 12


def test_a_grid_with_failed_jobs_has_a_best_one_and_is_resumed(tmp_path: Path) -> None:
    grid = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "decoding.top_p=7,0.5,8,0.9")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        first = sweep.run(*grid)
        assert first.returncode == 2, first.stderr
        known = sorted((point["status"], point["objective"]) for point in points(tmp_path))
        assert known == [(0, [1.0]), (0, [1.0]), (2, None), (2, None)]
        assert "exit 2: decoding.top_p=7 (" in first.stderr
        best = re.findall(r"best \(2 tie\): decoding.top_p=(0\.[59]) \(apply_rate=1\)", first.stderr)
        assert sorted(best) == ["0.5", "0.9"]
        assert "aborted" not in first.stderr, "whichever point came last"

        (log,) = (tmp_path / "outputs" / "sweeps").glob("*/runs.jsonl")
        lines = [line for line in log.read_text().splitlines() if "top_p=0.9" not in line]
        log.write_text("\n".join(lines) + "\n")  # as if the sweep had been killed before that job
        again = sweep.run(*grid)
        assert again.returncode == 2, again.stderr
        assert len(points(tmp_path)) == 4
        assert len(server.log.asked()) == 6, "a point that has its answers asks for none"


def test_a_search_with_only_failed_jobs_says_why(tmp_path: Path) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run(
            "hydra/sweeper=optuna", "decoding.top_p=interval(2,3)", "hydra.sweeper.n_trials=2"
        )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.count("must be above 0 and at most 1)") == 2


def test_a_glob_is_a_choice_among_the_options_it_matches(tmp_path: Path) -> None:
    grid = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        result = sweep.run(*grid, "model=glob(gpt-4o*)", 'hydra.sweeper.params={decoding:"glob(gr*)"}')
        asked = sorted(exchange.body["model"] for exchange in server.log.asked())
    assert result.returncode == 0, result.stderr
    assert asked == ["gpt-4o", "gpt-4o-mini"]
    chosen = sorted(point["overrides"] for point in points(tmp_path))  # type: ignore[type-var] # lists of strings
    assert all("decoding=greedy" in overrides for overrides in chosen)  # type: ignore[operator]


def test_a_killed_search_finishes_its_last_job(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.3) as server:
        sweep = Sweep(server, tmp_path, count=6)
        arguments = (*SEARCH, "hydra.sweeper.n_trials=2", "runner.limits.start=1", "provider.max_concurrency=1")
        process = sweep.start(*arguments)
        while len(server.log.asked()) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        server.latency_s = 0.0
        result = sweep.run(*arguments)
        assert result.returncode == 0, result.stderr
        assert len(set(result.stdout.splitlines())) == 2, "the point that was begun is one of the two"
        assert len(server.log.asked()) <= 13, "at most the request in flight is paid twice"


def test_an_objective_that_is_no_figure_of_a_run_is_one_line_before_anything_runs(tmp_path: Path) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run(*SEARCH, "objective=apply_rat")
        assert server.log.asked() == []
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: objective=")
    assert "apply_rate" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("objective=resolved_rate",), "objective=resolved_rate: this run does not evaluate its patches"),
        (("objective=stats.requests_sent",), "objective=stats.requests_sent: has no natural direction; write"),
        (
            ("objective=cost_usd", "hydra.sweeper.direction=maximize"),
            "hydra.sweeper.direction=maximize: contradicts objective=cost_usd:min",
        ),
        (("objective=cost_usd:lowest",), "objective=cost_usd:lowest: write cost_usd:min or cost_usd:max"),
    ],
)
def test_an_objective_that_cannot_be_optimized_is_one_line(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run(*SEARCH, *arguments)
        assert server.log.asked() == []
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_a_search_does_not_learn_from_an_outage(tmp_path: Path) -> None:
    """One failure of infrastructure in 21 samples is accepted. A point that an outage hits has no objective."""
    search = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "decoding.top_p=0.5,0.9", "runner.retry.tries=1")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=21)
        outage: list[FaultKind | None] = ["server_error"] * 11
        server.script("server_error", *[None] * 20, *outage)
        first = sweep.run(*search)
        assert first.returncode == 1, first.stderr
        assert [(point["status"], point["objective"]) for point in points(tmp_path)] == [(1, [0.952381]), (1, None)]
        assert (
            "infrastructure failures on 52.4% of the samples, more than the 5% that a search accepts" in first.stderr
        )
        assert "outages    11 without an answer; without them: apply rate 100.0%" in first.stderr
        assert re.search(r"^best: decoding.top_p=\S+ \(apply_rate=0.952381\)$", first.stderr, re.MULTILINE)
        outage_run = tmp_path / first.stdout.splitlines()[1]
        summary = json.loads((outage_run / "summary.json").read_text())
        assert (summary["infrastructure_failures"], summary["failed"]) == (11, 11)
        records = (outage_run / "records.jsonl").read_text().splitlines()
        causes = [record["error"]["cause"] for record in map(json.loads, records) if record["error"]]
        assert causes == ["infrastructure"] * 11

        again = sweep.run(*search)
        assert again.returncode == 0, again.stderr
        assert [point["objective"] for point in points(tmp_path)] == [[1.0], [1.0]]
        assert len(server.log.asked()) == 42 + 12, "only what failed is asked again"


def test_several_objectives_have_a_pareto_front_and_an_unknown_price_costs_its_point_alone(tmp_path: Path) -> None:
    search = ("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "decoding.max_new_tokens=8,16,24")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=1)
        front = sweep.run(*search, "objective=[usage.output_tokens:max,-cost_usd]")
        assert front.returncode == 0, front.stderr
        lines = [line for line in front.stderr.splitlines() if line.startswith("Pareto front: ")]
        assert len(lines) == 3, "a longer answer costs more"
        assert all(re.search(r"\(usage.output_tokens=\d+, cost_usd=", line) for line in lines)

        one = sweep.run(*search, "objective=usage.output_tokens:max")
        assert "best: decoding.max_new_tokens=24 (usage.output_tokens=" in one.stderr

        unknown = sweep.run(*search, "model.pricing=unknown", "decoding.seed=1", "objective=cost_usd")
    assert unknown.returncode == 0, unknown.stderr
    assert unknown.stderr.count("(the price is unknown)") == 6, "at the point, and at the end"
    assert len([line for line in unknown.stderr.splitlines() if line.startswith("error: ")]) == 3
    assert "best" not in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_search_does_not_prefer_points_that_skip_hard_instances(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=2)
        data = tmp_path / "instances.jsonl"
        easy, hard = map(json.loads, data.read_text().splitlines())
        hard["text"] = hard["text"].replace("</issue>", "It fails. " * 300 + "</issue>", 1)
        data.write_text("".join(json.dumps(row) + "\n" for row in (easy, hard)))
        result = sweep.run("hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "dataset.max_tokens=600,100000")
        assert len(server.log.asked()) == 2, "the second point shares the first one's answer"
    assert result.returncode == 0, result.stderr
    found = {str(point["overrides"][0]): point["objective"] for point in points(tmp_path)}  # type: ignore[index] # a list
    assert found == {"dataset.max_tokens=600": [0.5], "dataset.max_tokens=100000": [1.0]}
    assert re.search(r"^best: dataset.max_tokens=100000 \(apply_rate=1\)$", result.stderr, re.MULTILINE)


HALVING = ("hydra/sweeper=halving", "hydra.sweeper.instances=[2,4,null]", "hydra.sweeper.reduction=2")
TOKENS = "decoding.max_new_tokens=8,16,24,32"


def test_halving_pays_for_fewer_instances_than_a_grid_and_never_twice(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path, count=8)
        first = sweep.run(*HALVING, TOKENS, "objective=usage.output_tokens:max")
        assert first.returncode == 0, first.stderr
        paid = len(server.log.asked())
        assert paid == 4 * 2 + 2 * 2 + 1 * 4, "of the 32 answers of a grid"
        assert "4 points on 2 instances; 2 of them continue with 4" in first.stderr
        assert "2 points on 4 instances; 1 of them continue with all" in first.stderr
        assert re.search(r"^best: decoding.max_new_tokens=32 \(usage.output_tokens=", first.stderr, re.MULTILINE)
        assert "4 of 4 runs finished" in first.stderr
        runs = set(first.stdout.splitlines())
        completed = [json.loads((tmp_path / run / "summary.json").read_text())["completed"] for run in runs]
        assert sorted(completed) == [2, 2, 4, 8], "a run grows in its own directory"
        texts = [(tmp_path / run / "records.jsonl").read_text() for run in runs]
        records = [json.loads(line) for text in texts for line in text.splitlines()]
        costs = [record["cost_usd"] for record in sorted(records, key=lambda record: record["time"])]
        shown = [line for line in first.stderr.splitlines() if line.startswith(("point ", "points "))]
        assert " · sweep 16/16 100% · " in shown[-1]
        assert f" · {dollars(sum(costs))} · " in shown[-1]
        third = next(line for line in first.stderr.splitlines() if line.startswith("step 3: "))
        assert f" · {dollars(sum(costs[:12]))} paid before · " in third, "each run counts once"

        if not request.config.getoption("full"):
            return
        other = sweep.run(*HALVING, TOKENS, "objective=cost_usd")
        assert len(server.log.asked()) == paid + 2 * 2 + 4, "another objective grows other points"
    assert other.returncode == 0, other.stderr
    assert re.search(r"^best: decoding.max_new_tokens=8 \(cost_usd=", other.stderr, re.MULTILINE)


@pytest.mark.full
def test_a_killed_or_interrupted_halving_pays_for_no_answer_twice(tmp_path: Path) -> None:
    with ApiServer(latency_s=0.1) as server:
        sweep = Sweep(server, tmp_path, count=6)
        arguments = (*HALVING, TOKENS, "objective=usage.output_tokens:max", "provider.max_concurrency=1")
        for number, stop in ((4, signal.SIGINT), (9, signal.SIGKILL)):
            process = sweep.start(*arguments)
            while len(server.log.asked()) < number and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(stop)
            process.communicate()
            if stop == signal.SIGINT:
                assert process.returncode == 130
        server.latency_s = 0.0
        result = sweep.run(*arguments)
        paid = len(server.log.asked())
        again = sweep.run(*arguments)
        assert len(server.log.asked()) == paid
    assert (result.returncode, again.returncode) == (0, 0), result.stderr
    assert re.search(r"^best: decoding.max_new_tokens=32 ", result.stderr, re.MULTILINE)
    assert 4 * 2 + 2 * 2 + 1 * 2 <= paid <= 14 + 1, "at most the request in flight at the kill is paid twice"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hydra.sweeper.instances=[4,2]",), "hydra.sweeper.instances=[4, 2]: must increase"),
        (("hydra.sweeper.reduction=1",), "hydra.sweeper.reduction=1: must be a whole number, at least 2"),
        (("hydra.sweeper.n_jobs=0",), "hydra.sweeper.n_jobs=0: must be a whole number, at least 1"),
        (("objective=[cost_usd,apply_rate]",), "hydra.sweeper.instances: successive halving ranks"),
        (("decoding.top_p=interval(0,1)",), "decoding.top_p: an interval has no finite number of values for a grid"),
        (("hydra.sweeper.sampler.sed=1",), "hydra.sweeper.sampler.sed: unknown key"),
    ],
)
def test_a_halving_that_cannot_run_is_one_line_before_anything_is_paid(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with ApiServer() as server:
        result = Sweep(server, tmp_path).run("hydra/sweeper=halving", TOKENS, *arguments)
        assert server.log.asked() == []
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("option", "extra", "module"),
    [
        ("hydra/sweeper=halving", "optuna", "optuna"),
        pytest.param(
            "hydra/launcher=joblib", "joblib", "hydra_plugins.hydra_joblib_launcher", marks=pytest.mark.full
        ),
    ],
)
def test_a_plug_in_that_is_not_installed_is_one_line(option: str, extra: str, module: str, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules['{module}'] = None\n")
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        result = subprocess.run(
            [sys.executable, "-m", "swe_infer", "-m", *sweep.base, option, "decoding.temperature=0,1"],
            cwd=tmp_path, env={**sweep.environment, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
            capture_output=True, text=True, check=False, timeout=180,
        )  # fmt: skip
        assert server.log.asked() == []
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {option}")
    assert f"swe_infer[{extra}]" in line
