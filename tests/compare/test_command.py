"""The command line in its own process: tables, files, exit statuses, imports."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compare.runs import answer, failure, skip, write_run
from tests.support import commands

IDS = [f"repo__repo-{number}" for number in range(12)]
ROOT = Path(__file__).resolve().parents[2]


def compare(*arguments: str | Path, code: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    if code is None:
        return commands.run("swe_infer.compare", *map(str, arguments), cwd=Path.cwd(), env=environment)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    def config(temperature: float) -> dict[str, object]:
        return {"model": {"name": "claude\x1b[31m"}, "decoding": {"temperature": temperature}}

    cold = [answer(i, "applies" if n < 3 else "none", cost="0.125") for n, i in enumerate(IDS)]
    hot = [answer(i, "repaired" if n < 9 else "none", cost="0.5") for n, i in enumerate(IDS[:-2])]
    hot += [failure(IDS[-2], error="=cmd()\x1b[2J"), skip(IDS[-1])]
    return [
        write_run(tmp_path / "sweep" / "cold", cold, config(0.0)),
        write_run(tmp_path / "sweep" / "hot", hot, config(0.8)),
    ]


def test_a_sweep_is_shown_as_tables(runs: list[Path]) -> None:
    done = compare(runs[0].parent, "--instances")
    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in (
        "run patch applies instances completed failed skipped",
        "A temperature=0.0 3/12 25.0 % [8.9 to 53.2] 12 12 0 0",
        "B temperature=0.8 9/12 75.0 % [46.8 to 91.1] 12 10 1 1",
        "run cold hot",
        "decoding.temperature 0.0 0.8",
        "A* $1.5000 $0.5000 1,200 480 120 48 1 min 00 s 2.0 2.0 s",
        "Paired differences (2nd - 1st in points, by patch applies; 1 pair; test: McNemar)",
        "A : B +50.0 [15.7 to 84.3] 0.0143 0.0143 12 0 6 50.0 % 0.20 - -",
        "Instances: the runs differ on 6 of 12",
        "repo__repo-0 yes yes",
        "repo__repo-5 - yes",
        "No run was evaluated: a patch that applies counts as solved.",
    ):
        assert line in lines, done.stdout


def mixed_runs(tmp_path: Path) -> list[Path]:
    """A local run beside two of an API, with the keys of real configurations."""
    local = {
        "path": "/models/a-llama",
        "dtype": "auto",
        "attention": {"backends": ["flash_attn", "varlen", "native"]},
    }
    api = {"name": "gpt-4o", "parameters": ["temperature", "top_p", "seed", "stop", "n"], "extra_body": {}}
    configs = [
        {"model": local, "runner": {"max_sequences": 64}},
        *(
            {"model": api, "provider": {"name": "openai", "timeout_s": 900}, "runner": {"retry": {"backoff_s": 1}}}
            for _ in range(2)
        ),
    ]
    decoding = [{"temperature": 0.0}, {"temperature": 0.7, "seed": 1}, {"temperature": 0.7, "seed": 2}]
    entries = [[answer(i, "applies" if (n * seed) % 3 else "none") for n, i in enumerate(IDS)] for seed in (1, 2, 4)]
    return [
        write_run(tmp_path / f"run{number}", own, {**config, "decoding": d})
        for number, (own, config, d) in enumerate(zip(entries, configs, decoding, strict=True))
    ]


def test_a_local_run_beside_runs_of_an_api_is_readable_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ["--power", "10", "--margin", "20", "--by", "repository", "--by", "prompt_length"]
    mixed = mixed_runs(tmp_path)
    done = compare(*mixed, *options, "--json", tmp_path / "c.json", "--markdown", tmp_path / "c.md")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 130
    assert lines[0] == "Outcomes (95 % intervals, clustered by instance)"
    text = "\n".join(" ".join(line.split()) for line in lines)
    for line in (
        "A a-llama 8/12 66.7 % [39.1 to 86.2] 12",
        "B gpt-4o seed=1 8/12 66.7 % [39.1 to 86.2] 12",
        "B+C 2 66.7 ± 0.0 % ",
        "model.path /models/a-llama",
    ):
        assert line in text, done.stdout
    assert "backoff_s" not in text
    assert "(--keys lists all)" in text.replace("\n", " ")
    data = json.loads((tmp_path / "c.json").read_text())
    assert [one["label"] for one in data["runs"]] == ["a-llama", "gpt-4o seed=1", "gpt-4o seed=2"]
    assert data["pools"][0]["runs"] == ["B", "C"]
    assert {one["level"] for one in data["levels"]} == {"repo/repo", "0 to 2,000 tokens"}
    assert data["pairs"][0]["equivalence"]["margin"] == 0.2
    markdown = (tmp_path / "c.md").read_text()
    assert "| A | a-llama | 8/12 66.7 % \\[39.1 to 86.2\\] | 12 | 12 | 0 | 0 |" in markdown
    latex = compare(*mixed, "--latex", "--keys", "--baseline", "A").stdout
    assert r"A & a-llama & 8/12 66.7 \% {[}39.1 to 86.2] & 12 & 12 & 0 & 0 \\" in latex
    assert latex.count(r"\toprule") == latex.count(r"\end{tabular}") > 3
    assert r"runner.retry.backoff\_s & - & 1 & 1 \\" in latex
    assert "2 pairs with the baseline A" in latex


def test_output_of_models_cannot_control_the_terminal(tmp_path: Path) -> None:
    evil = write_run(
        tmp_path / "\x1b]0;run\x07", [answer("id\x1b[2J\u202e[bold]x[/]")], {"model": {"name": "\x1b[31mm"}}
    )
    plain = write_run(tmp_path / "b", [answer("x")], {"model": {"name": "n"}})
    done = compare(evil, plain, "--instances")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert "\u202e" not in done.stdout
    assert "id[bold]x[/]" in done.stdout


def test_json_contains_every_figure(runs: list[Path], tmp_path: Path) -> None:
    done = compare(*runs, "--json", tmp_path / "c.json", "--seed", "3", "--resamples", "1500")
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "c.json").read_text())
    assert (data["metric"], data["seed"], data["resamples"]) == ("applies", 3, 1500)
    assert data["differing_keys"] == ["decoding.temperature"]
    first, second = data["runs"]
    assert first["applies"]["wilson_95"] == pytest.approx([0.0889, 0.5323], abs=1e-4)
    assert first["usage"]["reasoning_tokens"] == 48
    assert second["errors"] == {"ContextOverflow": 1, "=cmd()\x1b[2J": 1}
    assert data["pairs"][0]["second_only"] == 6
    assert data["instances"]["repo__repo-5"] == [0.0, 1.0]
    assert {tuple(row["solved_by"]): row["instances"] for row in data["overlap"]} == {("A", "B"): 3, ("B",): 6, (): 3}


def test_csv_has_the_figures_of_the_json_and_the_answers_and_no_formulas(runs: list[Path], tmp_path: Path) -> None:
    written = ("--csv", tmp_path / "c.csv", "--samples", tmp_path / "s.csv", "--json", tmp_path / "c.json")
    groups = ("--by", "repository", "--by", "finish_reason", "--margin", "5", "--power")
    done = compare(*runs, *written, *groups)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "c.json").read_text())
    with (tmp_path / "c.csv").open(newline="") as file:
        figures = {(row["section"], row["runs"], row["figure"]): row["value"] for row in csv.DictReader(file)}
    assert figures["seed", "", ""] == "0"
    assert float(figures["runs", "A", "applies.wilson_95.1"]) == data["runs"][0]["applies"]["wilson_95"][1]
    assert float(figures["pairs", "A B", "rate_difference"]) == data["pairs"][0]["rate_difference"]
    assert figures["overlap", "A B", "instances"] == "3"
    level = data["levels"][0]
    assert figures["levels", "B", "repository.repo/repo.successes"] == str(level["runs"]["B"]["successes"])
    assert not [value for value in figures.values() if value.startswith(("{", "["))]
    with (tmp_path / "s.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert rows[0] == rows[0] | {
        "run": "cold", "instance_id": "repo__repo-0", "sample": "0", "status": "completed", "patch_status": "applies",
        "input_tokens": "100", "cost_usd": "0.125", "resolved": "",
    }  # fmt: skip
    assert rows[-2]["error"] == "'=cmd()\x1b[2J"


def test_mistakes_are_one_line_and_exit_2(runs: list[Path], tmp_path: Path) -> None:
    for arguments, message in (
        ([tmp_path / "nowhere"], "error: " + str(tmp_path / "nowhere") + ": directory not found"),
        ([*runs, "--baseline", "nothing"], "error: --baseline nothing: no such run"),
        ([*runs, "--by", "difficulty"], "error: --by difficulty: cold: "),
        (["wandb:a"], "error: wandb:a: must be wandb:ENTITY/PROJECT/RUN_ID"),
        ([*runs, "--json", tmp_path / "no" / "c.json"], "No such file or directory"),
    ):
        done = compare(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert compare().returncode == 2
    assert "argument --seed: '1.5': must be a whole number from 0" in compare(*runs, "--seed", "1.5").stderr


def test_a_closed_pipe_is_not_an_error(runs: list[Path]) -> None:
    command = f"{sys.executable} -m swe_infer.compare {runs[0]} {runs[1]} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert done.stderr == ""


def test_neither_torch_nor_hydra_nor_an_sdk_is_imported(runs: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from swe_infer.compare.command import run; status = run(sys.argv[1:])\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'transformers', 'datasets', 'openai', 'anthropic', 'wandb'}\n"
        "sys.exit(status or ' '.join(heavy & sys.modules.keys()) or 0)"
    )
    done = compare(*runs, "--html", tmp_path / "r.html", code=code)
    assert done.returncode == 0, done.stderr


def test_full_names_instances_of_the_page(runs: list[Path], tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    done = compare(*runs, "--html", page, "--full", "no-such-id,")
    assert (done.returncode, done.stderr) == (2, "error: --full no-such-id: no run has this instance\n")
    assert not page.exists()
    sizes = []
    for full in ("0", "1"):
        assert compare(*runs, "--html", page, "--full", full).returncode == 0
        sizes.append(page.read_text().count('id="full-'))
    assert sizes == [0, 1]
