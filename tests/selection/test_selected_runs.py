"""Selection through complete runs: predictions, requests, evaluation, merges, and ``swe-infer-select``."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.merge import main as merge
from swe_infer.cli.patches import main as recompute
from swe_infer.cli.select import main as select
from swe_infer.compare.analysis import compare
from swe_infer.compare.export import as_json
from swe_infer.compare.loading import load_run
from swe_infer.evaluate.command import run as evaluate
from swe_infer.run_directory.reader import RunDirectory
from swe_infer.run_directory.store import RunStore, record_of
from swe_infer.types import Completion, PatchResult, PatchStatus, Usage
from tests.selection.test_rules import BASE, NEGATIVE, PY, TRIPLE, patch
from tests.support import commands
from tests.support.api_server import ApiServer

ROOT = Path(__file__).resolve().parent.parent.parent
WRONG = patch({PY: "x\n"}, {PY: "y\n"})
NONE = "I am not sure."
ANSWERS = {
    "forms": [patch(NEGATIVE[0]), patch(TRIPLE[0]), patch(TRIPLE[1]), patch(TRIPLE[2])],
    "tie": [patch(NEGATIVE[0]), patch(TRIPLE[3]), patch(NEGATIVE[1]), patch(TRIPLE[1])],
    "wrong": [WRONG, WRONG, NONE, patch({PY: "x\n"}, {PY: "z\n"})],
    "late": [NONE, WRONG, patch(TRIPLE[3]), patch(NEGATIVE[0])],
    "nothing": [NONE, NONE, NONE, NONE],
}
"""The answers to each instance, in the order of the samples."""
SELECTED = {
    "first": {"forms": 0, "tie": 0, "wrong": 0, "late": 0, "nothing": 0},
    "applies": {"forms": 0, "tie": 0, "wrong": 0, "late": 2, "nothing": 0},
    "majority": {"forms": 1, "tie": 0, "wrong": 0, "late": 2, "nothing": 0},
    "shortest": {"forms": 0, "tie": 0, "wrong": 0, "late": 3, "nothing": 0},
}
RIGHT = {patch(new) for new in TRIPLE}
"""The patches that the test's evaluation calls resolved."""
SCORER = """\
import json, sys
predictions, log, right = sys.argv[1:]
right = set(json.load(open(right)))
open(log, "a").write(predictions + "\\n")
print(json.dumps({p["instance_id"]: p["model_patch"] in right for p in map(json.loads, open(predictions))}))
"""


class Model:
    """Gives the answers of an instance one after the other."""

    def __init__(self) -> None:
        self.given: Counter[str] = Counter()

    def __call__(self, prompt: str) -> str:
        name = next(name for name in ANSWERS if f"<{name}>" in prompt)
        self.given[name] += 1
        return ANSWERS[name][(self.given[name] - 1) % 4]


def write_dataset(path: Path, names: list[str], folder: Path) -> Path:
    rows = [{"instance_id": name, "text": f"Correct this: <{name}>", "files": BASE} for name in names]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "right.json").write_text(json.dumps(sorted(RIGHT)))
    (folder / "score.py").write_text(SCORER)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def selected(run: Path) -> dict[str, int]:
    found = lines(run / "predictions.jsonl")
    assert len({one["instance_id"] for one in found}) == len(found)
    for one in found:
        of_sample = {p["instance_id"]: p for p in lines(run / f"predictions.sample{one['sample']}.jsonl")}
        assert one.items() >= of_sample[one["instance_id"]].items()
    return {one["instance_id"]: one["sample"] for one in found}


def summary(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "summary.json").read_text()))


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(answer=Model()) as started:
        yield started


def run(server: ApiServer, home: Path, *arguments: str, name: str = "run") -> subprocess.CompletedProcess[str]:
    result = commands.run(
        "swe_infer", "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl",
        f"dataset.path={home / 'data.jsonl'}", "tracker=none", "decoding=sample", "decoding.n=4",
        f"output_dir={home / name}", *arguments,
        cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def finished(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    write_dataset(home / "data.jsonl", list(ANSWERS), home)
    run(server, home, "selection=majority", "dataset.limit=3")
    assert selected(home / "run") == {name: SELECTED["majority"][name] for name in list(ANSWERS)[:3]}
    result = run(server, home, "selection=majority")  # the run grows
    assert "majority: 5 of 5 instances; 60.0% apply" in result.stderr
    return home


@pytest.fixture
def home(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run with ``selection=majority``, in a folder with its dataset."""
    shutil.copytree(finished, tmp_path / "home")
    config = tmp_path / "home" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / "home")))
    return tmp_path / "home"


def test_predictions_state_the_selected_sample_and_why(finished: Path) -> None:
    directory = finished / "run"
    found = {one["instance_id"]: one for one in lines(directory / "predictions.jsonl")}
    assert selected(directory) == SELECTED["majority"]
    votes = {name: (one.get("votes"), one.get("share")) for name, one in found.items()}
    assert votes == {
        "forms": (3, 0.75), "tie": (2, 0.5), "wrong": (2, 0.666667), "late": (1, 0.5), "nothing": (None, None),
    }  # fmt: skip
    assert {one["selected_by"] for one in found.values()} == {"majority"}
    assert (
        found["tie"]["reason"]
        == "sample 0: 2 of 4 patches that apply have this result; the first of 2 results with as many"
    )
    for sample in range(4):
        of_sample = {
            p["instance_id"]: p["model_patch"] for p in lines(directory / f"predictions.sample{sample}.jsonl")
        }
        assert of_sample == {name: answers[sample].replace(NONE, "") for name, answers in ANSWERS.items()}
    stated = summary(directory)
    assert (stated["selection"], stated["selected"], stated["selected_apply_rate"]) == ("majority", 5, 0.6)


def test_another_rule_requests_nothing_and_its_figures_follow(server: ApiServer, home: Path) -> None:
    directory, requests = home / "run", len(server.log.asked())
    log = home / "scored.log"
    command = f'[{sys.executable},{home / "score.py"},"{{predictions}}",{log},{home / "right.json"}]'
    evaluation = ("evaluation=command", f"evaluation.command={command}")
    result = run(server, home, "selection=majority", *evaluation)
    assert "resolved   6 of 20 (30.0%); pass@4 3 of 5\n" in result.stderr, result.stderr
    assert "selection  majority: 5 of 5 instances; 60.0% apply; resolved 2 (40.0%)\n" in result.stderr
    samples = [Path(line).name for line in log.read_text().splitlines()]
    assert samples == [f"predictions.sample{sample}.jsonl" for sample in range(4)]
    resolved = {
        rule: sum(ANSWERS[name][sample] in RIGHT for name, sample in of_rule.items())
        for rule, of_rule in SELECTED.items()
    }
    for rule, expected in SELECTED.items():
        run(server, home, f"selection={rule}", *evaluation)
        assert selected(directory) == expected
        stated = summary(directory)
        assert (stated["selection"], stated["selected_resolved"]) == (rule, resolved[rule])
        assert (stated["resolved"], stated["resolved_by_any"], stated["evaluated"]) == (6, 3, 20)
        assert stated["selected_resolved_rate"] == resolved[rule] / 5
    assert len(log.read_text().splitlines()) == 4, "no patch is evaluated again"
    assert len(server.log.asked()) == requests
    found = as_json(compare([load_run(directory)]))["runs"][0]["selections"]
    assert [one["rule"] for one in found if one["submitted"]] == ["shortest"]
    for one in found:
        assert (one["pass_at_1"], one["pass_at_n"]) == (0.3, 0.6)
        assert one["selected"] == resolved[one["rule"]] / 5
        assert one["gap_closed"] == pytest.approx((resolved[one["rule"]] / 5 - 0.3) / 0.3)
    assert {one["rule"] for one in found} == set(SELECTED)


def test_evaluation_and_recomputed_patches_keep_the_selection(home: Path) -> None:
    directory, before = home / "run", (home / "run" / "predictions.jsonl").read_bytes()
    report = home / "report.json"
    report.write_text(json.dumps({"forms": True, "tie": False, "wrong": False, "late": False, "nothing": False}))
    assert evaluate([str(directory), "--report", str(report), "--sample", "1"]) == 0
    stated = summary(directory)
    assert (stated["resolved"], stated["selected_resolved"], stated["selected_resolved_rate"]) == (1, 1, 0.2)
    assert (directory / "predictions.jsonl").read_bytes() == before
    (directory / "predictions.jsonl").unlink()
    assert recompute([str(directory)]) == 0
    assert selected(directory) == SELECTED["majority"]
    # the records of an earlier extractor, which found no patch in one answer
    records = lines(directory / "records.jsonl")
    for record in records:
        if (record["instance_id"], record["sample"]) == ("late", 2):
            record |= {"model_patch": "", "patch_status": "none", "extractor": 1}
    (directory / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with RunStore(directory, "gpt-4o") as store:
        assert store.predictions.selected["late"].rule == "first", "its candidates have changed"
        assert store.predictions.selected["forms"].rule == "majority"
    assert recompute([str(directory)]) == 0
    assert selected(directory) == SELECTED["majority"]
    assert summary(directory)["selected_apply_rate"] == 0.6
    (home / "data.jsonl").unlink()  # the files of the instances are gone
    assert recompute([str(directory)]) == 0
    assert selected(directory) == SELECTED["majority"]


def test_merged_shards_select_as_one_run(server: ApiServer, finished: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "data.jsonl", list(ANSWERS), tmp_path)
    for index in range(2):
        run(
            server, tmp_path, "selection=majority", f"shard.index={index}", "shard.count=2", name=f"shard{index}"
        )  # fmt: skip
    assert merge([str(tmp_path / "whole"), str(tmp_path / "shard0"), str(tmp_path / "shard1")]) == 0
    assert selected(tmp_path / "whole") == SELECTED["majority"]
    assert summary(tmp_path / "whole")["selected_apply_rate"] == 0.6
    with RunStore(tmp_path / "whole", "gpt-4o") as store:
        assert not store.predictions.changed


def test_a_submission_from_several_runs(
    server: ApiServer, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    run(server, home, "model=gpt-4.1", "decoding.n=1", "dataset.instance_ids=[forms,late]", name="other")
    capfd.readouterr()
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    for out in ("all.jsonl", "all.json"):
        assert select(["run", "other", "--by", "majority", "--out", out]) == 0
        output, errors = capfd.readouterr()
        assert output == f"{out}\n"
        assert "majority, from 2 runs with 5 samples" in errors
    found = lines(home / "all.jsonl")
    assert json.loads((home / "all.json").read_text()) == found
    by_id = {one["instance_id"]: one for one in found}
    # the other run gave the first answer of both: one more vote for the negative result, none for "late"
    assert {name: (one["run"], one["sample"], one.get("votes")) for name, one in by_id.items()} == {
        "forms": ("run", 1, 3), "tie": ("run", 0, 2), "wrong": ("run", 0, 2), "late": ("run", 2, 1),
        "nothing": ("run", 0, None),
    }  # fmt: skip
    assert by_id["forms"]["share"] == 0.6
    assert by_id["forms"]["model_patch"] == ANSWERS["forms"][1]
    assert {one["model_name_or_path"] for one in found} == {"gpt-4o+gpt-4.1"}
    assert by_id["forms"]["candidates"] == 5
    assert select(["other", "run", "--by", "first", "--out", "all.jsonl", "--name", "mine"]) == 0
    by_id = {one["instance_id"]: one for one in lines(home / "all.jsonl")}
    assert {name: one["run"] for name, one in by_id.items()} == {
        "forms": "other", "tie": "run", "wrong": "run", "late": "other", "nothing": "run",
    }  # fmt: skip
    assert {one["model_name_or_path"] for one in by_id.values()} == {"mine"}
    assert all(path.read_bytes() == content for path, content in before.items()), "no run was changed"


def test_a_submission_is_refused_in_one_line(
    server: ApiServer, home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    (home / "elsewhere").mkdir()
    write_dataset(home / "elsewhere" / "data.jsonl", ["forms"], home)
    run(server, home / "elsewhere", "decoding.n=1")
    other = str(home / "elsewhere" / "run")
    (home / "empty").mkdir()
    capfd.readouterr()
    for arguments, message in (
        (["run", "empty", "--by", "first", "--out", "o.jsonl"], "empty: not a run directory"),
        (["run", "gone", "--by", "first", "--out", "o.jsonl"], "gone: not a run directory"),
        (["run", other, "--by", "first", "--out", "o.jsonl"], "elsewhere/run: has another dataset"),
        (
            ["run", "--by", "best", "--out", "o.jsonl"],
            "--by best: unknown rule; available: applies, first, majority, shortest",
        ),
        (["run", "--by", "majorty", "--out", "o.jsonl"], "did you mean majority?"),
        (["run", "--by", "first", "--out", "run/predictions.jsonl"], "belongs to the run"),
        (["run", "--by", "first", "--out", "run/predictions.sample9.jsonl"], "belongs to the run"),
        (["run", "--by", "first", "--out", "run/asked.json"], "belongs to the run"),
        (["run", "--by", "first", "--out", "nowhere/o.jsonl"], "there is no directory"),
        (["run", "--by", "first", "--out", "empty"], "is a directory"),
    ):
        assert select(arguments) == 2, arguments
        output, errors = capfd.readouterr()
        assert output == ""
        assert errors.count("\n") == 1, errors
        assert message in errors, errors
    assert not (home / "o.jsonl").exists()


def answer(patch_text: str, status: PatchStatus = "applies") -> tuple[Completion, PatchResult]:
    return Completion("text", "stop", Usage(), Decimal(0), 1.0), PatchResult(patch_text, status)


def test_hostile_and_incomplete_records(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    directory, huge = tmp_path / "run", patch({"big.txt": "a line\n" * 30_000})
    with RunStore(directory, "model") as store:
        for name, sample, text in (
            ("gap", 7, patch(TRIPLE[0])),
            ("gap", 10**9, patch(TRIPLE[1])),
            ("huge", 0, huge),
            ("huge", 1, huge.replace("a line", "a  line")),
            ("huge", 2, "\ud800\x1b[31m not a patch"),
            ("no zero", 1, patch(TRIPLE[0])),
        ):
            store.append(record_of((name, sample), *answer(text)))
    assert {one["instance_id"]: one["sample"] for one in lines(directory / "predictions.jsonl")} == {"huge": 0}
    assert not (directory / "predictions.sample0.jsonl").read_text().count('"gap"')
    for forged in (
        {"instance_id": "huge", "sample": -1}, {"instance_id": "huge", "sample": 2, "candidates": "many"}, ["huge"],
        {"instance_id": "gap", "sample": 3, "selected_by": "majority", "reason": "x", "candidates": 2,
         "candidates_digest": "0", "votes": 2, "share": 2.0},
    ):  # fmt: skip
        with (directory / "predictions.jsonl").open("a") as file:
            file.write(json.dumps(forged) + "\n")
    with (directory / "predictions.jsonl").open("ab") as raw:
        raw.write(b'\xff\xfe\n{"instance_id": "hu')
    assert set(RunDirectory(directory).selected()) == {"huge"}
    with RunStore(directory, "model") as store:
        assert set(store.predictions.selected) == {"huge"}
    assert select([str(directory), "--by", "majority", "--out", str(tmp_path / "out.jsonl")]) == 0
    found = {one["instance_id"]: one for one in lines(tmp_path / "out.jsonl")}
    assert {name: (one["sample"], one["votes"]) for name, one in found.items()} == {
        "gap": (7, 1), "huge": (0, 2), "no zero": (1, 1),
    }  # fmt: skip
    assert "selected   3 of 3 instances" in capfd.readouterr().err
