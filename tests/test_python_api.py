"""The Python API: imports, runs within an event loop, interrupts, data frames, and figures of comparisons."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from xml.etree import ElementTree

import pytest

import swe_infer as si
from benchmarks.torture.place import wait_until
from tests.compare.runs import answer, failure, write_run
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"}


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs with evaluated answers that differ in their temperature, and one of another model."""
    ids = [f"example__pkg-{number}" for number in range(6)]
    for name, temperature, resolved in (("cold", 0.0, ids[:4]), ("warm", 0.8, ids[:2])):
        config = {"model": {"name": "gpt-4o"}, "decoding": {"temperature": temperature, "stop": []}}
        entries = [*(answer(one, cost="0.25") for one in ids[:5]), failure(ids[5])]
        write_run(tmp_path / name, entries, config, resolved=resolved, instances=6)
    write_run(tmp_path / "other", [answer(ids[0])], {"model": {"name": "o3"}, "decoding": {"temperature": None}})
    return tmp_path


def test_the_import_loads_no_other_module_and_names_are_no_modules() -> None:
    code = (
        "import sys; before = set(sys.modules); import swe_infer as si; new = {*sys.modules} - before;"
        "print(*sorted({name.partition('.')[0] for name in new} - sys.stdlib_module_names));"
        "si.load_runs, si.make_patch, si.ConfigError;"
        "print([m for m in ('hydra', 'omegaconf', 'pandas', 'numpy', 'torch', 'transformers', 'wandb', 'openai',"
        " 'anthropic', 'datasets', 'pydantic', 'httpx') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT, cwd=ROOT
    )
    first, second = result.stdout.splitlines()
    assert first == "swe_infer"
    assert second == "[]"
    modules = {path.stem for path in (ROOT / "swe_infer").iterdir()}
    assert set(si.__all__) & modules == set()
    assert set(si.__all__) <= set(dir(si))
    with pytest.raises(AttributeError, match="has no attribute 'runn'"):
        _ = si.runn


@pytest.mark.slow
def test_a_run_within_an_event_loop_resumes_and_reports_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    data = write_instances(tmp_path / "instances.jsonl", 3)

    async def cell(overrides: list[str]) -> tuple[si.Run, bool]:
        """What a cell of a notebook does."""
        task, handler = asyncio.current_task(), signal.getsignal(signal.SIGINT)
        run = si.run(overrides)
        await asyncio.sleep(0)
        return run, asyncio.current_task() is task and signal.getsignal(signal.SIGINT) is handler

    with ApiServer() as server:
        overrides = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=none",
            "dataset=jsonl", f"dataset.path={data}",
        ]  # fmt: skip
        estimate = si.estimate(overrides)
        assert (estimate.requests, len(server.log.asked())) == (3, 0)
        run, is_restored = asyncio.run(cell(overrides))
        assert is_restored
        assert (run.exit_status, run.summary["completed"], len(server.log.asked())) == (0, 3, 3)
        assert run.summary["cost_usd"] == server.log.cost_usd()
        assert isinstance(run.summary["wall_s"], float)
        assert [record["status"] for record in run.records()] == ["completed"] * 3
        assert run.get("model.name") == "gpt-4o"
        again = si.run(overrides)
        assert (again.directory, len(server.log.asked())) == (run.directory, 3), "every answer is on disk"
        for invalid, message in (
            (["decoding.temprature=1"], "did you mean decoding.temperature"),
            (["-m", "decoding.n=1,2"], "-m: only KEY=VALUE"),
            (["dry_run=true"], "swe_infer.estimate"),
        ):
            with pytest.raises(si.ConfigError, match=message):
                si.run([*overrides, *invalid])
        with pytest.raises(si.ConfigError, match="must be a list"):
            si.run("model=gpt-4o")
        assert len(server.log.asked()) == 3


CELL = """
import asyncio, sys
import swe_infer as si

async def cell():
    try:
        si.run(sys.argv[1:])
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    await asyncio.sleep(0)
    run, = si.load_runs("outputs")
    print(sum(record["status"] == "completed" for record in run.records()), flush=True)

asyncio.run(cell())
"""


@pytest.mark.slow
def test_an_interrupt_ends_the_run_and_not_the_process(tmp_path: Path) -> None:
    data = write_instances(tmp_path / "instances.jsonl", 6)
    with ApiServer(latency_s=1.0) as server:
        overrides = [
            "model=gpt-4o", f"provider.base_url={server.openai_url}", "provider.max_concurrency=2", "tracker=none",
            "dataset=jsonl", f"dataset.path={data}",
        ]  # fmt: skip
        process = commands.start("-c", CELL, *overrides, cwd=tmp_path, env=ENVIRONMENT)
        wait_until(lambda: len(server.log.asked()) >= 2, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        answered = len(server.log.asked())
    assert process.returncode == 0, errors
    assert "in flight; press Ctrl-C again to stop now" in errors
    assert answered < 6
    assert output.split() == ["interrupted", str(answered)]


def test_runs_are_found_by_their_configuration(outputs: Path) -> None:
    def names(**where: object) -> list[str]:
        return [run.name for run in si.load_runs(outputs, {key.replace("__", "."): v for key, v in where.items()})]

    assert names() == ["cold", "other", "warm"]
    assert names(model__name="gpt-4o") == ["cold", "warm"]
    assert names(model__name={"o3", "o1"}) == names(model__name=["o3", "o1"]) == ["other"]
    assert names(decoding__temperature=0) == ["cold"]
    assert names(decoding__temperature=Decimal("0.8")) == ["warm"]
    assert names(decoding__temperature=None) == ["other"]
    assert names(decoding__temperature=False) == []
    assert names(model__name="gpt-4o", decoding__temperature=lambda t: t > 0.5) == ["warm"]
    assert names(decoding__stop=()) == ["cold", "warm"]
    with pytest.raises(si.ConfigError, match=r"decoding.temperatur: unknown key; did you mean decoding.temperature"):
        names(decoding__temperatur=0)
    with pytest.raises(si.ConfigError, match="directory not found"):
        si.load_runs(outputs / "none")
    assert len(si.load_runs([outputs / "cold", str(outputs)])) == 3


def test_data_frames_have_typed_columns(outputs: Path) -> None:
    runs = si.load_runs(outputs, {"model.name": "gpt-4o"})
    samples = si.samples_df(runs, texts=True)
    assert len(samples) == 12
    types = {column: str(dtype) for column, dtype in samples.dtypes.items()}
    assert types["sample"] == types["input_tokens"] == "Int64"
    assert types["resolved"] == "boolean"
    assert types["cost_usd"] == types["decoding.temperature"] == "Float64"
    assert types["instance_id"] == types["answer"] == "string"
    resolved = samples.groupby("decoding.temperature")["resolved"].sum()
    assert resolved.to_dict() == {0.0: 4, 0.8: 2}
    assert samples["error"].dropna().tolist() == ["Overloaded"] * 2

    table = si.runs_df(runs, keys=["model.name"])
    compared = si.compare_runs(runs).to_dict()["runs"]
    for (_, row), run in zip(table.iterrows(), compared, strict=True):
        assert row["run"] == run["name"]
        assert row["resolved_rate"] == run["resolved"]["value"]
        assert [row["resolved_rate_low"], row["resolved_rate_high"]] == run["resolved"]["wilson_95"]
        assert (row["cost_usd"], row["completed"], row["failed"]) == (run["cost_usd"], 5, 1)
        assert row["model.name"] == "gpt-4o"
    assert str(table.dtypes["instances"]) == "Int64"
    assert si.samples_df([]).columns.tolist() == samples.columns.tolist()[:18]
    with pytest.raises(si.ConfigError, match="load_runs"):
        si.samples_df([outputs])  # type: ignore[list-item]
    with pytest.raises(si.ConfigError, match=r"keys: model.nam: unknown key"):
        si.runs_df(runs, keys=["model.nam"])


def test_a_comparison_has_the_figures_of_the_command_and_is_shown_inline(outputs: Path) -> None:
    options = ("--baseline", str(outputs / "cold"), "--by", "repository", "--margin", "20", "--json", "figures.json")
    command = commands.run("swe_infer.compare", str(outputs), *options, cwd=outputs, env=ENVIRONMENT)
    assert command.returncode == 0, command.stderr
    cold, *others = si.load_runs(outputs)
    comparison = si.compare_runs([cold, *others], baseline=cold, by="repository", margin=0.2)
    assert json.loads((outputs / "figures.json").read_text()) == json.loads(json.dumps(comparison.to_dict()))
    assert si.compare_runs(outputs, baseline="A", by="repository", margin=0.2).to_dict() == comparison.to_dict()
    assert comparison.runs[0].applies.interval is not None

    html = comparison._repr_html_()
    ElementTree.fromstring(f"<div>{html}</div>")
    assert "<script" not in html
    assert html.count("<svg") == 2, "rates, and rates over costs"
    rates = comparison.plot_rates()
    assert ElementTree.fromstring(rates.svg).tag.endswith("svg")
    assert rates._repr_svg_() == rates.svg
    rates.save(outputs / "rates.svg")
    ElementTree.parse(outputs / "rates.svg")
    comparison.save_page(outputs / "page.html")
    assert (outputs / "page.html").stat().st_size > 10_000
    assert "| A |" in comparison.to_markdown()
    assert "Outcomes" in str(comparison)
    assert repr(comparison).startswith("<RunComparison by applies: A: ")
    assert "cold" in cold._repr_html_()
    for arguments, message in (
        ({"by": "repo"}, "by=repo: unknown"), ({"margin": 2}, "margin=2: must be between 0 and 1"),
        ({"cluster": "team"}, "cluster=team"), ({"baseline": "Z"}, "no such run"),
    ):  # fmt: skip
        with pytest.raises(si.ConfigError, match=message):
            si.compare_runs(outputs, **arguments)
    with pytest.raises(si.ConfigError, match="no run to compare"):
        si.compare_runs([])


def test_a_label_of_a_run_cannot_add_markup_to_a_comparison(tmp_path: Path) -> None:
    entries = [answer("example__pkg-1", cost="1")]
    for name in ("a", "b"):
        write_run(tmp_path / name, entries, {"model": {"name": f"<img src=x onerror=alert('{name}')>\x1b[31m|--"}})
    comparison = si.compare_runs(tmp_path)
    html = comparison._repr_html_()
    ElementTree.fromstring(f"<div>{html}</div>")
    assert "<img" not in html
    assert "\x1b" not in html
    assert r"\textgreater{}\textbar{}-{}-" in comparison.to_latex()  # | would be a dash, as would two hyphens


def test_patches_are_made_as_in_a_run() -> None:
    files = {"a.py": "x = 1\ny = 2\n"}
    result = si.make_patch("```diff\n--- a.py\n+++ a.py\n@@ -1,9 +1,9 @@\n-x = 1\n+x = 3\n y = 2\n```\n", files)
    assert (result.status, result.reason) == ("repaired", None)
    assert "--- a/a.py\n" in result.patch
    assert result.repairs
    assert si.make_patch("I do not know.", files).status == "none"
