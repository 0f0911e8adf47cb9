"""Runs on a W&B server: the real public API against a fake server to which real runs were logged."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.arguments import hydra_arguments
from swe_infer.cli.composer import composer
from swe_infer.compare.analysis import compare
from swe_infer.compare.loading import LoadedRun, load_sources, read_texts
from swe_infer.compare.sources import find_sources
from swe_infer.config import resolved
from swe_infer.errors import ConfigError
from swe_infer.tracking.download import WandbAddress
from swe_infer.tracking.wandb import WandbTracker
from swe_infer.tracking.writer import SweepWriter
from tests.support import commands
from tests.support.wandb_server import API_KEY, FakeRun, FakeWandbServer, served
from tests.tracking.scripted import CONFIG, info, play

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Tracked:
    """A project with two finished runs and one in progress, and another project with one whose configuration is
    complete."""

    server: FakeWandbServer
    home: Path
    first: Path
    second: Path
    config: dict[str, Any]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracked]:
    home, runs = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("runs")
    with served(home) as (server, _):
        writer = SweepWriter()  # one process for all runs
        for number, group in ((1, "g"), (2, None)):
            directory = runs / f"r{number}"
            directory.mkdir()
            config = CONFIG | {"decoding": {"temperature": float(number), "n": 1}}
            (directory / "config.yaml").write_text(json.dumps(config))
            tracker = WandbTracker(
                project="a-project", group=group, name=f"the {number}. run", log_answers=number == 1
            )
            files = ("predictions.jsonl", "records.jsonl", "summary.json", "config.yaml")
            tracker.share(writer)
            run = info(directory, f"run-{number}", config=config)
            play(directory, tracker, run, range(4 * number), failing=(3,), files=files)
            writer.wait()
        with composer(None) as composing:
            config = resolved(composing.compose(["model=gpt-4o", "decoding.top_p=0.9", "tracker.tags=[a]"]).cfg)
        (runs / "r9").mkdir()
        tracker = WandbTracker(project="b-project")
        tracker.share(writer)
        play(runs / "r9", tracker, info(runs / "r9", "run-9", config=config), range(2), files=())
        writer.finish()
        fields = {"project": "a-project", "displayName": "at work"}
        server.runs["run-3"] = FakeRun("run-3", fields=fields)
        yield Tracked(server, home, runs / "r1", runs / "r2", config)


def loaded(*paths: str) -> list[LoadedRun]:
    return load_sources(find_sources(paths)[0])


def test_runs_of_a_server_and_of_directories_are_compared_with_each_other(tracked: Tracked, tmp_path: Path) -> None:
    project = "wandb:team/a-project"
    done = commands.run(
        "swe_infer.compare", f"{project}/run-2", project, str(tracked.second),
        "--json", str(tmp_path / "c.json"), "--html", str(tmp_path / "c.html"),
        cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "c.json").read_text())
    second, first, local = data["runs"]
    assert [second["name"], first["name"], local["name"]] == ["the 2. run", "the 1. run", "r2"]
    assert [second["address"], first["address"], local["address"]] == [f"{project}/run-2", f"{project}/run-1", None]
    own = {"letter", "label", "name", "directory", "address", "on_front"}
    assert {k: v for k, v in second.items() if k not in own} == {k: v for k, v in local.items() if k not in own}
    assert second["cost_usd"] == pytest.approx(0.07)
    assert data["differing_keys"] == ["decoding.temperature"]
    assert f"Left out: {project}/run-3 (running) has no predictions." in data["notes"]
    assert "the 2. run" in done.stdout
    kept = [path for path in tracked.home.rglob("*") if path.is_file() and path.name != "wandb-state.key"]
    assert {path.name for path in kept} >= {"records.jsonl", "config.yaml"}
    assert {path.relative_to(tracked.home).parts[:3] for path in kept} == {(".cache", "swe_infer", "wandb")}
    assert not [path for path in kept if API_KEY.encode() in path.read_bytes()]


def test_a_group_is_its_runs_and_nothing_is_fetched_twice(tracked: Tracked) -> None:
    addresses = ("wandb:team/a-project/groups/g", "wandb:team/a-project/run-2")
    before = loaded(*addresses)
    mark = len(tracked.server.operations)
    run, other = loaded(*addresses)
    assert run.address == "wandb:team/a-project/run-1"
    assert run.results == before[0].results
    assert read_texts(run)["instance-0000", 0].answer == "an answer"
    texts = read_texts(other)["instance-0001", 0]
    assert (texts.answer, texts.patch) == ("", "x" * 1000)
    assert other.remark == "from W&B without full answers (tracker.log_answers=false)"
    asked = [operation for operation, _ in tracked.server.operations[mark:]]
    assert "Runs" in asked
    assert "FetchArtifactManifest" not in asked


def test_verdicts_of_a_later_evaluation_are_read_too(tracked: Tracked) -> None:
    verdicts = [{"instance_id": f"instance-{n:04}", "sample": 0, "resolved": n == 0} for n in range(4)]
    path = tracked.first / "evaluation.jsonl"
    path.write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    again = WandbTracker.of_run(tracked.first)
    assert again is not None
    tracker, run = again
    tracker.start(run)
    tracker.finish({"completed": 3, "failed": 1, "resolved": 1}, [tracked.first / "records.jsonl", path], 0)
    (read,) = loaded("wandb:team/a-project/run-1")
    assert read.evaluated
    assert [result.resolved for result in read.results.values()] == [True, False, False, False]
    assert read.config["decoding.temperature"] == 1.0  # from the server: this version has no such file
    assert read.summary["wall_s"] is not None


def test_a_run_starts_from_the_configuration_of_one_on_the_server(tracked: Tracked) -> None:
    config = tracked.config
    address = "wandb:team/b-project/run-9"
    given = hydra_arguments([f"from={address}", "decoding.temperature=1"])
    with composer(None) as composing:
        started = resolved(composing.compose(given).cfg)
    assert started == {**config, "from": address, "decoding": {**config["decoding"], "temperature": 1}}
    for absent in ("wandb:team/b-project", "wandb:team/a-project/run-3"):
        with pytest.raises(ConfigError) as refused:
            hydra_arguments([f"from={absent}"])
        assert str(refused.value).startswith(f"from={absent}: ")


def test_without_its_artifact_a_run_is_read_from_its_table(tracked: Tracked, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {i: a for i, a in tracked.server.artifacts.items() if a["name"] != "predictions-run-2"}
    monkeypatch.setattr(tracked.server, "artifacts", others)
    (read,) = loaded("wandb:team/a-project/run-2")
    (own,) = loaded(str(tracked.second))
    compared = compare([read, own], resamples=1000)
    table, local = compared.runs
    assert (table.applies, table.statuses, table.cost_usd) == (local.applies, local.statuses, local.cost_usd)
    assert table.errors == local.errors
    assert table.differs == local.differs == {}
    assert read_texts(read)["instance-0001", 0].patch == "x" * 1000
    assert "A is from its table: no answers, no failed attempts, long patches truncated." in compared.notes


def test_an_artifact_that_refers_to_files_of_this_machine_is_not_taken(
    tracked: Tracked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "private").write_text("mine\n")
    artifacts = copy.deepcopy(tracked.server.artifacts)
    for artifact in artifacts.values():
        if artifact["name"] == "predictions-run-2":
            manifest = json.loads(artifact["files"]["wandb_manifest.json"])
            entry = manifest["contents"]["records.jsonl"]
            entry |= {"ref": f"file://{tmp_path / 'private'}", "birthArtifactID": None}
            artifact["files"]["wandb_manifest.json"] = json.dumps(manifest).encode()
            artifact["input"]["digest"] = "0" * 32
    monkeypatch.setattr(tracked.server, "artifacts", artifacts)
    with pytest.raises(ConfigError, match="refers to files elsewhere"):
        find_sources(["wandb:team/a-project/run-2"])


@pytest.mark.usefixtures("tracked")
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nobody", "there is no such run"),
        pytest.param("sweeps/s", "there are no such runs", marks=pytest.mark.full),
    ],
)
def test_what_is_not_there_is_one_line(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^wandb:team/a-project/{address}: {message}$"):
        find_sources([f"wandb:team/a-project/{address}"])


@pytest.mark.usefixtures("tracked")
def test_what_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://user:canary@127.0.0.1:9")
    with pytest.raises(ConfigError) as caught:
        find_sources(["wandb:team/a-project/run-1"])
    assert "127.0.0.1:9" in str(caught.value)
    assert "canary" not in str(caught.value)
    monkeypatch.delenv("WANDB_API_KEY")
    with pytest.raises(ConfigError, match=r"^wandb:team/a-project/run-1: needs WANDB_API_KEY in the environment$"):
        find_sources(["wandb:team/a-project/run-1"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wandb:e/p/r", ("run", "r")),
        ("wandb:e/p/runs/r", ("run", "r")),
        ("wandb:e/p/", ("project", None)),
        ("wandb:e/p/groups/a group", ("group", "a group")),
        ("wandb:e/p/sweeps/s", ("sweep", "s")),
    ],
)
def test_addresses_follow_wandbs_urls(text: str, expected: tuple[Any, Any]) -> None:
    address = WandbAddress.parse(text)
    assert (address.entity, address.project, address.kind, address.name) == ("e", "p", *expected)
    assert WandbAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["wandb:", "wandb:e", "wandb:e/p/what/r", "wandb:e//r", "wandb:../p/r", "wandb:e/p/runs"]
)
def test_a_malformed_address_shows_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="must be wandb:ENTITY/PROJECT/RUN_ID"):
        WandbAddress.parse(text)
