"""Published benchmarks: from a row in each shape to its prompt, and what costs one row."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.conf_files import node_of, options_of
from swe_infer.context.oracle import OracleContext
from swe_infer.data.benchmark import BenchmarkDataset
from swe_infer.data.normalise import Normaliser, RowFault
from swe_infer.errors import DataError, RepositoryError
from swe_infer.patches.diff import PatchError, reversed_patch
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.prompts.rows import RenderedRows
from swe_infer.repositories import Repositories
from swe_infer.repositories.options import RepositoryOptions
from tests.data.benchmark_rows import BRANCH, BUG, BUGGY, GOLD, SECRET, TESTS, Clones, Row, Shape
from tests.support import commands
from tests.support.git_server import git, git_server

if TYPE_CHECKING:
    import datasets

PRESETS = [name for name in options_of("dataset") if "benchmark" in node_of("dataset", name) and name != "benchmark"]


class _Characters:
    name, exact = "characters", True

    def __call__(self, prompt: Any) -> int:
        return len(prompt.text)


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Clones:
    return Clones(tmp_path_factory.mktemp("clones"))


def dataset_of(preset: str, path: Path, **options: Any) -> BenchmarkDataset:
    node = {key: value for key, value in node_of("dataset", preset).items() if key in ("benchmark", "name", "split")}
    return BenchmarkDataset(**node, path=str(path), **{"text_column": None, **options})


def rendered(dataset: BenchmarkDataset, repositories: Repositories) -> RenderedRows:
    renderer = PromptRenderer(style="style3")
    return RenderedRows(dataset.open(), OracleContext(), renderer, repositories, _Characters(), "text")


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, default=lambda value: value.isoformat()) + "\n" for row in rows))
    return path


def faults(preset: str, shape: Shape, row: Mapping[str, Any], prompt: str) -> list[str]:
    """What is wrong with a normalised row and its prompt."""
    expected: Row = {
        "instance_id": shape.instance_id, "FAIL_TO_PASS": TESTS, "PASS_TO_PASS": [], "patch": GOLD,
        "benchmark": node_of("dataset", preset)["benchmark"], **shape.expected,
    }  # fmt: skip
    if "created_at" in shape.row:
        expected["created_at"] = "2024-05-06T07:08:09Z"
    found = [f"{key}: {row.get(key)!r}, not {value!r}" for key, value in expected.items() if row.get(key) != value]
    found += [f"{key} is null" for key, value in row.items() if value is None]
    if not row["problem_statement"].endswith(shape.ends_with):
        found.append(f"problem_statement: {row['problem_statement']!r}")
    if "return 2 * r" not in prompt or shape.ends_with not in prompt:
        found.append(f"the prompt shows not the issue, or not the file with the bug: {prompt}")
    leaks = [text for text in (SECRET, "return 3 * r", "It is 3.") if text in prompt]
    return [*found, *(f"the prompt shows {text!r}" for text in leaks)]


def test_a_row_of_each_benchmark_becomes_a_prompt(clones: Clones, tmp_path: Path) -> None:
    shapes = clones.shapes()
    assert sorted(shapes) == PRESETS
    offenders: dict[str, list[str]] = {}
    options = OracleContext(repositories=str(clones.root), offline=True).repository_options
    with Repositories(options) as repositories:
        for preset, shape in shapes.items():
            rows = rendered(dataset_of(preset, write(tmp_path / f"{preset}.jsonl", [shape.row])), repositories)
            fault = rows.fault(0)
            if list(rows.ids) != [shape.instance_id] or fault is not None:
                offenders[preset] = [f"{rows.ids}: {fault}"]
            elif wrong := faults(preset, shape, rows.row(0), rows[0].prompt.text):
                offenders[preset] = wrong
    assert offenders == {}


def test_a_local_copy_may_have_any_format(clones: Clones, tmp_path: Path) -> None:
    """Also rows that lack values of others, as in tables: nulls, empty text, and mappings with foreign keys."""
    shapes = clones.shapes()
    rows = {preset: shapes[preset].row for preset in ("swe_polybench", "multi_swe_bench", "swe_smith")}
    more = {
        "swe_polybench": {**rows["swe_polybench"], "instance_id": "o__n-2", "F2P": "", "hints_text": ""},
        "multi_swe_bench": {**rows["multi_swe_bench"], "number": 2, "resolved_issues": [], "f2p_tests": {"b": {}}},
        "swe_smith": {**rows["swe_smith"], "instance_id": "x", "problem_statement": "", "FAIL_TO_PASS": ["b"]},
    }
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    offenders = []
    for preset, row in rows.items():
        both = [row, more[preset]]
        lines = write(tmp_path / f"{preset}.jsonl", both)
        table = datasets.Dataset.from_json(str(lines))
        assert isinstance(table, datasets.Dataset)
        table.to_parquet(str(tmp_path / f"{preset}.parquet"))
        split = node_of("dataset", preset)["split"]
        datasets.DatasetDict({split: table}).save_to_disk(tmp_path / preset)
        (tmp_path / f"{preset}_list.json").write_text(json.dumps(both))
        (tmp_path / f"{preset}_folder").mkdir()
        for number, each in enumerate(both):
            write(tmp_path / f"{preset}_folder" / f"{number}.jsonl", [each])
        copies: list[str] = [
            f"{preset}.jsonl",
            f"{preset}.parquet",
            preset,
            f"{preset}_list.json",
            f"{preset}_folder",
        ]
        if preset == "swe_polybench":
            table.to_csv(str(tmp_path / "polybench.csv"))
            copies.append("polybench.csv")
        expected = None
        for copy in copies:
            opened = dataset_of(preset, tmp_path / copy).open()
            found = [
                (opened.ids[index], opened.row(index)["FAIL_TO_PASS"], opened.characters(index)) for index in (0, 1)
            ]
            expected = expected or found
            if found != expected or [opened.fault(index) for index in (0, 1)] != [None, None]:
                offenders.append((copy, found, opened.fault(0), opened.fault(1)))
        assert expected is not None
        assert expected[0][1] == TESTS
        assert expected[1][1] in ([], ["b"])
    assert offenders == []


def test_a_row_that_cannot_be_normalised_costs_itself_alone(clones: Clones, tmp_path: Path) -> None:
    row = clones.shapes()["swe_gym"].row
    bad: dict[str, tuple[Row, str]] = {
        "list": ({"FAIL_TO_PASS": 7}, "column 'FAIL_TO_PASS' is of type int, not a list of tests"),
        "name": (
            {"PASS_TO_PASS": [["a"]]},
            "column 'PASS_TO_PASS' contains \"['a']\", which is not the name of a test",
        ),
        "text": ({"FAIL_TO_PASS": "__import__('os')"}, "column 'FAIL_TO_PASS' is neither JSON nor a Python literal"),
        "deep": ({"FAIL_TO_PASS": "[" * 100_000}, "column 'FAIL_TO_PASS' is neither JSON nor a Python literal"),
        "patch": ({"patch": ["diff"]}, "column 'patch' is of type list, not a string"),
        "big": (
            {"FAIL_TO_PASS": "[" + "()," * 200_000 + "]"},
            "is longer than 500,000 characters and no list of strings",
        ),
        "date": ({"created_at": [2024]}, "column 'created_at' is not a time: '[2024]'"),
        "line-8": ({"instance_id": None}, "instance_id is null; it should be a string that is not blank"),
        "line-9": ({"instance_id": "good"}, "instance_id 'good' is already used in line 10"),
        "good": ({}, ""),
    }
    rows = [{**row, "instance_id": name, **change} for name, (change, _) in bad.items()]
    rows[8], rows[9] = rows[9], rows[8]
    opened = dataset_of("swe_gym", write(tmp_path / "rows.jsonl", rows)).open()
    faults = ((name, opened.fault(index)) for index, name in enumerate(opened.ids))
    found = {name: fault.message for name, fault in faults if fault is not None}
    expected = {name: message for name, (_, message) in bad.items() if message}
    expected["line-10"] = expected.pop("line-9").replace("line 10", "line 9")
    assert found.keys() == expected.keys()
    assert {name: found[name] for name, message in expected.items() if message not in found[name]} == {}
    assert opened.row(0) == {"instance_id": "list"}
    smith = {**clones.shapes()["swe_smith"].row, "patch": "nothing of git\n@@ -1 +1 @@\n"}
    (fault,) = [dataset_of("swe_smith", write(tmp_path / "smith.jsonl", [smith])).open().fault(0)]
    assert fault is not None
    assert "column 'patch' cannot be reversed" in fault.message


@pytest.mark.parametrize(("preset", "column"), [("swe_gym", "instance_id"), ("multi_swe_bench", "org")])
def test_rows_of_another_benchmark_are_one_line(preset: str, column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"repo": "n", "number": 1}])
    with pytest.raises(DataError, match=rf"has no column '{column}', so its rows are not of dataset.benchmark="):
        dataset_of(preset, path).open()


def test_normalised_rows_are_not_changed_again(clones: Clones) -> None:
    for preset, shape in clones.shapes().items():
        normaliser = Normaliser(node_of("dataset", preset)["benchmark"])
        once = normaliser.normalised(shape.row)
        assert normaliser.normalised(once) == once, preset
        assert normaliser.identity(once) == shape.instance_id
        assert normaliser.statement(once) == once["problem_statement"]


def test_the_interface_is_shown_if_asked_for(clones: Clones) -> None:
    row = clones.shapes()["swe_rebench_v2"].row
    assert "area(r)" not in Normaliser("swe_rebench_v2").normalised(row)["problem_statement"]
    shown = Normaliser("swe_rebench_v2", interface=True).normalised(row)["problem_statement"]
    assert shown.endswith("\n\nNew interfaces introduced:\narea(r)")
    pro = clones.shapes()["swebench_pro"].row
    assert Normaliser("swebench_pro", interface=False).normalised(pro)["problem_statement"].endswith("Use 3.")
    assert Normaliser("swebench_pro").statement({**pro, "problem_statement": " "}) == "", "there is no issue"
    multi = {**clones.shapes()["multi_swe_bench"].row, "resolved_issues": []}
    assert Normaliser("multi_swe_bench").statement(multi).startswith("Fix area\n")
    multi["resolved_issues"] = [{"number": 7, "title": None, "body": " "}]
    assert Normaliser("multi_swe_bench").statement(multi).startswith("Fix area\n"), "the issue has no text"


def test_a_time_beyond_those_of_python_costs_its_row_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    times = pa.array([0, 2**62], pa.timestamp("ms"))
    table = pa.table({"instance_id": ["a", "b"], "problem_statement": ["x", "y"], "created_at": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    opened = dataset_of("swe_gym", tmp_path / "rows.parquet").open()
    assert opened.row(0)["created_at"] == "1970-01-01T00:00:00Z"
    fault = opened.fault(1)
    assert fault is not None
    assert "b: the row has a value out of range" in fault.message
    for name, content in (("rows.csv", "instance_id,problem_statement\n"), ("bad.csv", 'instance_id\na,b,"c\n')):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match="has no rows" if name == "rows.csv" else "cannot be read as CSV"):
            dataset_of("swe_polybench", tmp_path / name).open()
    assert capfd.readouterr().err == "", "the library logs errors that are raised too"


def test_a_long_list_of_strings_needs_no_syntax_tree() -> None:
    tests = [f't.py::it\'s[{number}]\n\\ "x"' for number in range(30_000)]
    row = {"instance_id": "a", "problem_statement": "b"}
    for text in (repr(tests), repr(tuple(tests)), "[\n  " + "".join(f"{test!r} ,\n  " for test in tests) + "]"):
        assert len(text) > 500_000
        assert Normaliser("swebench_pro").normalised({**row, "fail_to_pass": text})["FAIL_TO_PASS"] == tests


@pytest.mark.parametrize(
    "changed",
    [
        {"number": 10**18},
        {"number": 1.5},
        {"number": -1},
        {"number": True},
        {"org": "a/b"},
        {"org": "a__b"},
        {"org": 5},
    ],
)
def test_a_row_whose_prediction_its_harness_would_not_read_is_not_run(changed: Row, clones: Clones) -> None:
    """Otherwise its answer would be paid for, and the predictions file would lack it."""
    row = clones.shapes()["multi_swe_bench"].row
    with pytest.raises(RowFault, match=r"column 'instance_id' is .*, not ORG__REPO-NUMBER of a pull request"):
        Normaliser("multi_swe_bench").normalised({**row, **changed})


def test_times_of_every_kind_become_iso_8601() -> None:
    seconds = 1_714_979_289
    times = [seconds, float(seconds), seconds * 10**3, str(seconds * 10**3), seconds * 10**6, seconds * 10**9]
    times += ["2024-05-06T07:08:09Z", "2024-05-06 09:08:09+02:00", "2024-05-06 07:08:09"]
    row = {"instance_id": "a", "problem_statement": "b"}
    found = {Normaliser("swebench").normalised({**row, "created_at": time})["created_at"] for time in times}
    assert found == {"2024-05-06T07:08:09Z"}
    assert Normaliser("swebench").normalised({**row, "created_at": "in May"})["created_at"] == "in May"
    for text in ("2024", "20240506T"):
        assert Normaliser("swebench").normalised({**row, "created_at": text})["created_at"] == text
    for day in ("20240506", datetime.date(2024, 5, 6)):
        assert Normaliser("swebench").normalised({**row, "created_at": day})["created_at"] == "2024-05-06T00:00:00Z"
    empty = dict.fromkeys(("created_at", "version", "hints_text", "FAIL_TO_PASS"), float("nan"))
    assert Normaliser("swebench").normalised({**row, **empty}).keys() == {*row, "benchmark"}, "pandas writes null so"
    for time in (float("inf"), True, 10**30):
        with pytest.raises(RowFault, match="column 'created_at' is not a time"):
            Normaliser("swebench").normalised({**row, "created_at": time})


REVERSIBLE = [
    GOLD,
    BUG,
    "diff --git a/a b/b\nsimilarity index 50%\nrename from a\nrename to b\n--- a/a\n+++ b/b\n@@ -1,3 +1,2 @@\n"
    "-one\n two\n-x\n+y\n",
    "diff --git a/new b/new\nnew file mode 100755\nindex 0000000..2222222\n--- /dev/null\n+++ b/new\n"
    "@@ -0,0 +1 @@\n+one\n",
    "diff --git a/old b/old\ndeleted file mode 100644\n--- a/old\n+++ /dev/null\n@@ -1 +0,0 @@\n"
    "-one\n\\ No newline at end of file\n",
    "--- a/end\n+++ b/end\n@@ -1,2 +1,2 @@\n one\n-two\n\\ No newline at end of file\n+two\n",
    "--- a/many\n+++ b/many\n@@ -1,2 +1,3 @@\n+zero\n one\n two\n@@ -9 +10,0 @@ def f():\n-nine\n",
]


def test_a_reversed_patch_undoes_what_git_applied(tmp_path: Path) -> None:
    files = {"area.py": "def area(r):\n    return 2 * r * r\n", "a": "one\ntwo\nx\n", "old": "one", "end": "one\ntwo"}
    files["many"] = "one\ntwo\n" + "".join(f"{n}\n" for n in range(3, 9)) + "nine\n"
    git("init", "--quiet", tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    git("-C", tmp_path, "add", ".")
    before = git("-C", tmp_path, "write-tree")
    for patch in REVERSIBLE:
        forward, backward = (reversed_patch(patch), patch) if patch == BUG else (patch, reversed_patch(patch))
        for each in (forward, backward):
            git("-C", tmp_path, "apply", "--index", "-", stdin=each.encode())
        assert git("-C", tmp_path, "write-tree") == before, patch
    for patch in ("nothing", "diff --git a/i b/i\nindex 1..2 100644\nBinary files a/i and b/i differ\n"):
        with pytest.raises(PatchError):
            reversed_patch(patch)


def test_the_base_of_a_synthetic_bug_is_on_its_branch(clones: Clones, tmp_path: Path) -> None:
    mirrors = clones.root / "swesmith"
    git("-C", mirrors / "o__n.1234", "pack-refs", "--all")
    row = clones.shapes()["swe_smith"].row
    rows = [row, {**row, "instance_id": "other", "repo": "swesmith/o__m.1234"}, {**row, "instance_id": "../x"}]
    rows[1]["instance_id"] = BRANCH
    served = tmp_path / "served" / "swesmith"
    for name in ("n", "m"):
        git("clone", "--quiet", "--mirror", mirrors / f"o__{name}.1234", served / f"o__{name}.1234.git")
        git("-C", served / f"o__{name}.1234.git", "config", "uploadpack.allowFilter", "true")

    def found(options: RepositoryOptions) -> list[str]:
        texts = []
        with Repositories(options) as repositories:
            for each in rows:
                try:
                    commit = repositories.open_bug(each["repo"], each["instance_id"])
                    texts.append(commit.read(["area.py"])["area.py"].decode())
                except RepositoryError as error:
                    texts.append(str(error))
        return texts

    refused = "branch '../x': letters, digits and ._+- are expected"
    assert found(RepositoryOptions(repositories=str(clones.root), offline=True)) == [BUGGY, BUGGY, refused]
    with git_server(tmp_path / "served") as server:
        options = RepositoryOptions(repositories=str(tmp_path / "cache"), repository_url=server.url)
        assert found(options) == [BUGGY, BUGGY, refused]
        fetches = len(server.fetches)
        assert found(options) == [BUGGY, BUGGY, refused]
        assert len(server.fetches) == fetches, "the branches are in the cache"
    assert found(replace(options, offline=True)) == [BUGGY, BUGGY, refused]
    rows[0]["instance_id"] = "o__n.1234.gone"
    (said, *_) = found(RepositoryOptions(repositories=str(clones.root), offline=True))
    assert said.startswith("swesmith/o__n.1234: branch o__n.1234.gone is not in ")


def test_frozen_prompts_of_a_benchmark_are_still_its_rows(clones: Clones, tmp_path: Path) -> None:
    preset, out = "swe_smith", tmp_path / "frozen.jsonl"
    path = write(tmp_path / "rows.jsonl", [clones.shapes()[preset].row])
    done = commands.run(
        "swe_infer.prompts", f"dataset={preset}", f"dataset.path={path}", f"context.repositories={clones.root}",
        "context.offline=true", "model=gpt-4o", "--out", str(out),
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"dataset=benchmark dataset.path={out} dataset.benchmark={preset} " in done.stderr
    frozen = dataset_of(preset, out, text_column="text").open()
    with Repositories(RepositoryOptions(repositories=str(clones.root), offline=True)) as repositories:
        rows = rendered(dataset_of(preset, path), repositories)
        assert frozen[0].prompt.text == rows[0].prompt.text
    row = {name: value for name, value in frozen.row(0).items() if name in rows.row(0)}
    assert row == rows.row(0)
