"""The hub: the real ``datasets`` library, in separate processes, against a fake server in ``HF_ENDPOINT``."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.data.hub import HubDataset
from swe_infer.errors import ConfigError
from tests.data.benchmark_rows import Clones
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.hub import Hub, serve_hub

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

Row = dict[str, Any]

NAME = "princeton-nlp/SWE-bench_oracle"
CARD = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: data/test-*}\n---\n"
CODE = """
import json, sys
from swe_infer.data.hub import HubDataset
from swe_infer.errors import DataError
for options in json.loads(sys.argv[1]):
    try:
        rows = HubDataset(**options).open()
    except DataError as error:
        print(json.dumps({"error": str(error)}))
    else:
        print(json.dumps({"ids": list(rows.ids), "first": rows[0].prompt.text, "columns": sorted(rows[0].metadata)}))
"""


@pytest.fixture
def hub(rows: list[Row]) -> Iterator[Hub]:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([{**row, "input_ids": [1, 2]} for row in rows]), buffer)
    with serve_hub({f"datasets/{NAME}": {"README.md": CARD, "data/test-0.parquet": buffer.getvalue()}}) as hub:
        yield hub


def load(endpoint: str, home: Path, *options: dict[str, str]) -> list[dict[str, Any]]:
    """The result of each of the options, in a process that has not imported ``huggingface_hub``."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    done = commands.run("-c", CODE, json.dumps(options), cwd=home, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_hub_dataset_is_read_and_then_loaded_from_the_cache(hub: Hub, rows: list[Row], tmp_path: Path) -> None:
    expected = {
        "ids": [row["instance_id"] for row in rows],
        "first": rows[0]["text"],
        "columns": ["patch", "repo"],
    }
    assert load(hub.endpoint, tmp_path, {"name": NAME}) == [expected]
    assert any("resolve" in request for request in hub.requests)

    revisions: tuple[dict[str, str], ...] = ({}, {"revision": hub.commit(f"datasets/{NAME}")}, {"revision": "0" * 40})
    *same, other = load("http://127.0.0.1:9", tmp_path, *({"name": NAME, **revision} for revision in revisions))
    assert same == [expected, expected]
    assert "has another commit" in other["error"]


def test_missing_hub_datasets_are_one_line(hub: Hub, tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, str], str], ...] = (
        ({"name": "nobody/nothing"}, "dataset.name=nobody/nothing (revision main) was not found at http://127.0.0.1"),
        ({"name": NAME, "revision": "v9"}, "(revision v9) was not found"),
        ({"name": NAME, "split": "dev"}, "has no split 'dev': Unknown split \"dev\". Should be one of ['test']"),
        ({"name": NAME, "subset": "odd"}, "dataset.subset=odd is not valid"),
        ({"name": NAME, "text_column": "prompt"}, f"{NAME} (test) has no column 'prompt'; it has instance_id, text"),
    )
    answers = load(hub.endpoint, tmp_path, *(options for options, _ in cases))
    for (_, message), answer in zip(cases, answers, strict=True):
        assert message in answer["error"]
        assert "\n" not in answer["error"]


def test_an_unreachable_hub_is_one_line_without_its_password(tmp_path: Path) -> None:
    error = load("http://me:hunter2@127.0.0.1:9", tmp_path, {"name": NAME})[0]["error"]
    assert "could not be fetched from http://127.0.0.1:9" in error
    assert "hunter2" not in error


def test_a_local_folder_of_the_same_name_is_never_loaded(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    (tmp_path / NAME / "test.csv").write_text("instance_id,text\nx,local\n")
    assert "is also a local path" in load(hub.endpoint, tmp_path, {"name": NAME})[0]["error"]


@pytest.mark.parametrize(
    "name",
    ["", "https://huggingface.co/datasets/a/b", "a/b/c", "../x/y", "..", "../x", "a/..", "-x/y", "a/-y", "a/b\n"],
)
def test_an_invalid_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name="):
        HubDataset(name=name)


@pytest.mark.parametrize("revision", ["", "-u", "../main", "a..b", "main\n", "/main", "a b"])
def test_an_invalid_revision_is_refused(revision: str) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.revision="):
        HubDataset(name=NAME, revision=revision)
    assert HubDataset(name=NAME, revision="refs/convert/parquet").revision


def test_code_and_pickles_in_a_repository_are_not_run(tmp_path: Path) -> None:
    """A loading script beside the data, one alone, a pickled table, and a card that requests the pickle loader."""
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    script = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n".encode()
    rows = b'{"instance_id": "a", "text": "b"}\n'
    pickled = pickle.dumps(Hostile())
    pickle.loads(pickled)
    ran.unlink()  # loading the pickle directly does run it
    names = ["org/with-script", "org/script", "org/pickled", "org/named"]
    card = b"---\nconfigs:\n- config_name: default\n  builder_name: pandas\n  data_files: data.pkl\n---\n"
    repositories = {
        f"datasets/{names[0]}": {"with-script.py": script, "data/test.jsonl": rows},
        f"datasets/{names[1]}": {"script.py": script},
        f"datasets/{names[2]}": {"data/test.pkl": pickled},
        f"datasets/{names[3]}": {"README.md": card, "data.pkl": pickled},
    }
    with serve_hub(repositories) as hub:
        answers = load(hub.endpoint, tmp_path, *({"name": name} for name in names))
    assert answers[0].get("ids") == ["a"] or "script" in answers[0]["error"].lower()
    assert all("error" in answer for answer in answers[1:])
    assert not ran.exists()


def test_a_run_over_a_benchmark_of_the_hub_records_its_commit(tmp_path: Path) -> None:
    """JSON lines files of Multi-SWE-bench, whose rows have no common type, and the CSV of SWE-PolyBench."""
    shapes = Clones(tmp_path / "clones").shapes()
    multi, poly = shapes["multi_swe_bench"].row, shapes["swe_polybench"].row
    table = io.StringIO()
    writer = csv.DictWriter(table, list(poly))
    writer.writeheader()
    writer.writerow(poly)
    names = {"multi_swe_bench": "ByteDance-Seed/Multi-SWE-bench", "swe_polybench": "AmazonScience/SWE-PolyBench"}
    files = {
        f"datasets/{names['multi_swe_bench']}": {
            "c/o__n_dataset.jsonl": json.dumps(multi).encode(),
            "ts/o__m_dataset.jsonl": json.dumps({**multi, "repo": "m", "f2p_tests": {"other": {"run": 1}}}).encode(),
            "python/o__p_dataset.jsonl": b'{"not": "opened"}',
        },
        f"datasets/{names['swe_polybench']}": {"test.csv": table.getvalue().encode()},
    }
    expected = {"multi_swe_bench": ["o__m-1", "o__n-1"], "swe_polybench": ["o__n-1"]}
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING", "WANDB_"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "OPENAI_API_KEY": "sk-test"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with serve_hub(files) as hub, ApiServer(answer=lambda prompt: "no patch") as server:
        offline = "http://127.0.0.1:9"
        for preset, endpoint in (*((name, hub.endpoint) for name in names), ("multi_swe_bench", offline)):
            directory = tmp_path / preset / endpoint.rpartition(":")[2]
            done = commands.run(
                "swe_infer", f"dataset={preset}", "dataset.revision=null", "context=none", "prompt=style2",
                "model=gpt-4o", f"provider.base_url={server.openai_url}", "tracker=none",
                f"output_dir={directory}",
                cwd=tmp_path, env={**environment, "HF_ENDPOINT": endpoint},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            records = (directory / "records.jsonl").read_text().splitlines()
            assert sorted(json.loads(line)["instance_id"] for line in records) == expected[preset]
            (command,) = json.loads((directory / "provenance.json").read_text())["commands"]
            assert command["dataset_revision"] == hub.commit(f"datasets/{names[preset]}")
            assert f"{names[preset]}: commit {command['dataset_revision']}" in done.stderr
