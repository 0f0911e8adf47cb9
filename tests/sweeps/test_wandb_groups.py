"""The runs of a ``-m`` sweep in W&B: group, names, tags, provenance, and the run that summarizes the sweep."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from swe_infer.cli.sweep_charts import Value, parallel_coordinates, scatter
from swe_infer.cli.sweep_jobs import membership, write_swept_keys
from swe_infer.data.jsonl import JsonlRows
from swe_infer.run_directory.provenance import (
    SweepMembership,
    describe,
    git_commit,
    read_provenance,
    record_provenance,
)
from tests.support.api_server import ApiServer
from tests.support.wandb_files import read_offline_runs
from tests.sweeps.command import Sweep


def test_a_sweep_is_a_group_of_named_and_tagged_runs_with_a_summary(tmp_path: Path) -> None:
    with ApiServer() as server:
        sweep = Sweep(server, tmp_path)
        sweep.base[0] = "tracker.mode=offline"
        sweep.base = [argument.replace("http://", "http://user:canary@") for argument in sweep.base]
        options = ("decoding.temperature=0.2,0.6", "decoding.n=2", "tracker.notes=kept")
        first = sweep.run(*options)
        assert first.returncode == 0, first.stderr
        (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
        directories = [tmp_path / line for line in first.stdout.splitlines()]
        found = [run for directory in directories for run in read_offline_runs(directory)]
        again = sweep.run(*options)
        sweep.base[0] = "tracker=none"
        other = sweep.run("decoding.temperature=0.6,0.8", "decoding.n=2")
        assert other.returncode == 0, other.stderr
        assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr

    assert [run.run["display_name"] for run in found] == ["temperature=0.2", "temperature=0.6"]
    assert [run.run["tags"] for run in found] == [[f"decoding.temperature={t}"] for t in ("0.2", "0.6")]
    assert {(run.run["run_group"], run.run["job_type"]) for run in found} == {(folder.name, "run")}
    assert all(run.config["decoding"]["n"] == 2 and run.run["notes"] == "kept" for run in found)
    provenance = found[0].config["provenance"]
    assert provenance["command"].startswith("swe-infer -m tracker.mode=offline ")
    assert "decoding.temperature=0.2,0.6" in provenance["command"]
    assert provenance["dataset_sha256"] == JsonlRows(tmp_path / "instances.jsonl").content_sha256()
    assert {"openai", "wandb"} <= provenance["libraries"].keys()
    assert found[0].summary["apply_rate_low"] < found[0].summary["apply_rate"] <= found[0].summary["apply_rate_high"]
    (records,) = (
        Path(entry["local_path"])
        for name, artifact in found[0].artifacts.items()
        if name.startswith("predictions-")
        for entry in artifact["manifest"]["contents"]
        if entry["path"] == "records.jsonl"
    )
    assert "full_output" not in records.read_text()
    assert "model_patch" in records.read_text()

    summary, repeated = read_offline_runs(folder)
    assert summary.run["run_id"] == repeated.run["run_id"], "a resumed sweep has the same summary"
    assert (summary.run["run_group"], summary.run["job_type"]) == (folder.name, "sweep")
    assert summary.run["display_name"] == folder.name
    table = summary.table("points")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["decoding.temperature"] for row in rows] == [0.2, 0.6]
    assert [row["run_id"] for row in rows] == [run.run["run_id"] for run in found]
    assert all(row["apply_rate"] == 1 and row["exit_status"] == 0 for row in rows)
    assert (summary.summary["runs"], summary.summary["finished"]) == (2, 2)
    assert {"pareto.path", "parallel_coordinates.path"} <= summary.summary.keys()

    shared, own = (tmp_path / line for line in other.stdout.splitlines())
    assert shared == directories[1], "both sweeps contain this run"
    memberships = [read_provenance(directory).sweep for directory in (shared, own)]
    assert [member.group == folder.name for member in memberships if member is not None] == [True, False]
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert not [path for path in files if b"canary" in path.read_bytes()]


def test_names_and_tags_are_short_and_contain_no_secret(tmp_path: Path) -> None:
    sweep = tmp_path / "an odd näme"
    write_swept_keys(
        sweep_directory(sweep), ["model.name", "dataset.name", "provider", "decoding.top_p", "output_dir"]
    )
    member = membership(
        sweep,
        ["model.name='a b'", "dataset.name=x", "provider@provider.first=openai", "decoding.top_p=0.7512345678",
         "output_dir=y", "other=1"],
    )  # fmt: skip
    assert member.group == "an odd näme"
    assert member.name == "model.name=a b dataset.name=x first=openai top_p=0.751235"
    assert member.tags[0] == "model.name=a b"
    assert not [tag for tag in member.tags if tag.startswith(("output_dir", "other"))]
    write_swept_keys(sweep, ["provider.base_url", "+x.password"])
    secret = ["provider.base_url=http://u:canary@h/v1?api-key=canary", "+provider.base_url=http\\://u\\:canary@h"]
    for override in secret:
        assert "canary" not in str(membership(sweep, [override]))
    assert membership(sweep, ["other=1"]) == SweepMembership("an odd näme", "")


def sweep_directory(path: Path) -> Path:
    path.mkdir()
    return path


def test_provenance_gets_an_entry_only_when_something_changes(tmp_path: Path) -> None:
    entry = describe("swe-infer model=a", "0" * 64)
    first, second = SweepMembership("first", "t=1", ("d.t=1",)), SweepMembership("second", "")
    record_provenance(tmp_path, entry, None)
    file = tmp_path / "provenance.json"
    inode = file.stat().st_ino
    record_provenance(tmp_path, entry, None)
    assert file.stat().st_ino == inode
    record_provenance(tmp_path, entry, first)
    found = record_provenance(tmp_path, describe("swe-infer model=a", "1" * 64), second)
    assert found == read_provenance(tmp_path)
    assert found.sweep == first, "the sweep that started the run"
    assert [command["dataset_sha256"] for command in found.commands] == ["0" * 64, "1" * 64]
    for odd in ("[]", "{", '{"sweep": 3, "commands": 4}', '{"sweep": {"group": []}}', '{"commands": [1, {}]}'):
        file.write_text(odd)
        assert read_provenance(tmp_path).sweep is None


def test_the_commit_of_a_checkout_is_read_from_its_files(tmp_path: Path) -> None:
    def git(*arguments: str, cwd: Path = tmp_path / "checkout") -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(["git", *identity, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    checkout = sweep_directory(tmp_path / "checkout")
    assert git_commit(checkout) is None
    git("init", "-q", "-b", "a/branch")
    assert git_commit(checkout) is None, "a branch without a commit"
    git("commit", "-q", "--allow-empty", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert git_commit(checkout) == commit
    git("pack-refs", "--all")
    assert git_commit(checkout) == commit
    git("worktree", "add", "-q", "-b", "other", "../worktree")
    assert git_commit(tmp_path / "worktree") == commit
    git("checkout", "-q", "--detach")
    assert git_commit(checkout) == commit
    assert git_commit(sweep_directory(checkout / "below")) is None, "an installed package in another checkout"


def test_charts_escape_names_and_bear_missing_and_equal_values() -> None:
    names = ["<script>alert(1)</script>", "ü", "c"]
    page = scatter([(name, 1.0, 0.5) for name in names], {0}, x="cost_usd", y="apply_rate", title="a & b")
    assert "<script>" not in page
    axes: dict[str, list[Value]] = {
        "model": ["<b>", "2", None],
        "n": [1.0, None, 3.0],
        "empty": [None, None, None],
    }
    page = parallel_coordinates(axes, names, {1}, title="t")
    assert "<b>" not in page
    assert page.count("<path") == 3 + 3
    assert json.dumps(page)
