"""``swe-infer-prompts``: what it writes runs without repositories, is continued, and is never mixed."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.api.tokens import EstimatedCounter
from swe_infer.cli.prompts import _Counter, _Freezer
from swe_infer.data import export
from swe_infer.data.base import make_instance
from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.select import select
from swe_infer.instance_files import files_of
from swe_infer.prompts.frozen import PromptLines
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.run_directory.records import read_records
from swe_infer.types import DataShard, Prompt
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.git_server import Files, make_repository

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent.parent
MODULE = "swe_infer.prompts"

TREE: Files = {
    b"README.md": ("100644", b"# pkg\n"),
    b"pkg/plain.py": ("100644", b"one = 1\ntwo = 2\n"),
    b"pkg/dos.py": ("100644", b"one = 1\r\ntwo = 2\r\n"),
    b"pkg/latin.py": ("100644", b"# caf\xe9\none = 1\ntwo = 2\n"),
    b"pkg/data.bin": ("100644", b"\0"),
}
TEMPLATE = """\
{% block system %}
You repair software.
{{ instructions }}
{% endblock %}
{% block user %}
{{ issue }}
{% for file in files %}
[start of {{ file.path }}]
{{ file.text }}
[end of {{ file.path }}]
{% endfor %}
{% endblock %}
"""


def table_of(path: Path) -> pa.Table:
    from pyarrow import parquet

    return parquet.read_table(path)


def saved_rows(path: Path) -> list[dict[str, Any]]:
    import datasets

    return list(datasets.load_from_disk(str(path)))


def gold(path: str, *, other: str | None = None) -> str:
    paths = [path] if other is None else [path, other]
    return "".join(f"--- a/{each}\n+++ b/{each}\n@@ -1 +1 @@\n-one = 1\n+one = 11\n" for each in paths)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, a dataset of five rows, and a template whose system part has several lines."""
    home = tmp_path_factory.mktemp("prompts")
    commit = make_repository(home / "repositories" / "o" / "n.git", {"refs/heads/main": TREE})["refs/heads/main"]
    rows: list[dict[str, Any]] = [
        {"instance_id": f"o__n-{name}", "repo": "o/n", "base_commit": commit, "patch": gold(f"pkg/{name}.py")}
        for name in ("plain", "dos", "latin")
    ]
    rows.append({**rows[0], "instance_id": "o__n-half", "patch": gold("pkg/plain.py", other="pkg/data.bin")})
    rows.append({**rows[0], "instance_id": "o__n-gone", "base_commit": "0" * 40})
    with (home / "rows.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            extra = {"problem_statement": f"Mend {row['instance_id']}", "number": number, "mixed": number or "none"}
            file.write(json.dumps({**row, **extra, "text": "an old prompt\nof the row", "input_ids": [1]}) + "\n")
    (home / "prompt.jinja").write_text(TEMPLATE)
    return home


def frozen_from(home: Path) -> list[str]:
    return [
        "dataset=jsonl", f"dataset.path={home / 'rows.jsonl'}", "context=oracle", "context.offline=true",
        f"context.repositories={home / 'repositories'}", "model=gpt-4o", "prompt=template",
        f"prompt.template={home / 'prompt.jinja'}", "prompt.edit_format=search_replace",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    return {**kept, "PYTHONPATH": str(ROOT)}


def freeze(cwd: Path, *arguments: str) -> CompletedProcess[str]:
    return commands.run(MODULE, *arguments, cwd=cwd, env=environment())


def answer(prompt: str) -> str:
    """A search/replace block for the first file of the prompt; its text is a diff's in half of the cases."""
    path = prompt.split("[start of pkg/")[1].split("]")[0]
    if "half" in prompt:
        return f"<patch>\n{gold(f'pkg/{path}')}</patch>"
    return f"pkg/{path}\n<<<<<<< SEARCH\none = 1\n=======\none = 11\n>>>>>>> REPLACE\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer(answer=answer) as server:
        yield server


def outcomes(home: Path, server: ApiServer, name: str, *arguments: str) -> dict[str, tuple[object, ...]]:
    """What a run makes of each instance."""
    result = commands.run(
        "swe_infer", *arguments, f"provider.base_url={server.openai_url}", "tracker=none",
        f"output_dir={home / name}",
        cwd=home, env={**environment(), "OPENAI_API_KEY": "sk-test"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    keys = ("status", "patch_status", "model_patch", "prompt_sha256")
    return {r["instance_id"]: tuple(r.get(key) for key in keys) for r in read_records(home / name / "records.jsonl")}


def test_files_of_prompts_run_without_repositories_as_the_rows_did_with_them(home: Path, server: ApiServer) -> None:
    before = outcomes(home, server, "live", *frozen_from(home))
    systems = {exchange.prompt for exchange in server.log.exchanges if exchange.prompt}
    assert before["o__n-gone"][0] == "skipped"
    assert {name: found[1] for name, found in before.items()} == {
        "o__n-plain": "applies",
        "o__n-dos": "applies",
        "o__n-latin": "applies",
        "o__n-half": "repaired",
        "o__n-gone": None,
    }
    for out, dataset in (("a.jsonl", "jsonl"), ("c.parquet", "parquet")):
        made = freeze(home, *frozen_from(home), "--out", out)
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines()[-1] == out
        assert "prompts    4 of 5" in made.stderr
        assert "1 RepositoryNotAvailable, such as o__n-gone" in made.stderr
        assert "recall 87.5%; all of them in 75.0%, any in 100.0% of 4 prompts" in made.stderr
        assert "1 file: it is binary" in made.stderr
        after = outcomes(home, server, f"run-{out}", f"dataset={dataset}", f"dataset.path={out}", "model=gpt-4o")
        assert after == {name: found for name, found in before.items() if name != "o__n-gone"}
        if out == "a.jsonl":  # a batch's answers are collected without the requests
            batch = ["dataset=jsonl", "dataset.path=a.jsonl", "model=gpt-4o", "provider.mode=batch"]
            assert outcomes(home, server, "run-batch", *batch, "runner.batches.first_poll_s=0.05") == after
    assert {exchange.prompt for exchange in server.log.exchanges if exchange.prompt} == systems
    rows = [json.loads(line) for line in (home / "a.jsonl").read_text().splitlines()]
    assert rows[2]["files"] == {
        "pkg/latin.py": "# caf\udce9\none = 1\ntwo = 2\n",
        "README.md": "# pkg\n",
    }
    assert (rows[0]["number"], rows[0]["mixed"], rows[1]["mixed"]) == (0, "none", 1)
    assert "input_ids" not in rows[0]
    assert rows[0]["system"].startswith("You repair software.\n")
    table = table_of(home / "c.parquet")
    assert table["mixed"].to_pylist() == ["none", "1", "2", "3"]
    assert dict(table["files"][1].as_py()[0]) == {"path": "pkg/dos.py", "content": TREE[b"pkg/dos.py"][1]}
    assert {path.name for path in home.glob("[a-d]*")} == {"a.jsonl", "c.parquet"}


@pytest.mark.full
def test_a_directory_of_rows_runs_as_a_file_of_them(home: Path, server: ApiServer) -> None:
    for out in ("rows-of-a-directory", "rows-of-a-file.jsonl"):
        made = freeze(home, *frozen_from(home), "--out", out)
        assert made.returncode == 0, made.stderr
    names = [json.loads(line)["instance_id"] for line in (home / out).read_text().splitlines()]
    assert [row["instance_id"] for row in saved_rows(home / "rows-of-a-directory")] == names
    found = [
        outcomes(home, server, f"run-{dataset}", f"dataset={dataset}", f"dataset.path={path}", "model=gpt-4o")
        for dataset, path in (("disk", "rows-of-a-directory"), ("jsonl", out))
    ]
    assert found[0] == found[1]
    assert len(found[0]) == len(names) == 4


def large(path: Path, count: int) -> list[str]:
    """Rows that bring their own files."""
    with path.open("w") as file:
        for number in range(count):
            files = {"pkg/plain.py": "one = 1\ntwo = 2\n" * 50}
            row = {"instance_id": f"i-{number:04}", "problem_statement": "Mend it", "patch": gold("pkg/plain.py")}
            file.write(json.dumps({**row, "repo": "o/n", "files": files}) + "\n")
    return ["dataset=jsonl", f"dataset.path={path}", "context=oracle", "prompt=style3", "model=gpt-4o"]


def test_a_killed_command_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments = large(tmp_path / "rows.jsonl", 200)
    assert freeze(tmp_path, *arguments, "--out", "whole.jsonl").returncode == 0
    expected = (tmp_path / "whole.jsonl").read_bytes()
    for out, lines in (("made.jsonl", "made.jsonl"), ("made.parquet", ".made.parquet.swe_infer/prompts.jsonl")):
        growing = tmp_path / lines
        for stop in (signal.SIGKILL, signal.SIGINT):
            command = commands.start(MODULE, *arguments, "--out", out, cwd=tmp_path, env=environment())
            there = growing.stat().st_size if growing.exists() else 0
            while command.poll() is None and (not growing.exists() or growing.stat().st_size < there + 10_000):
                time.sleep(0.002)
            command.send_signal(stop)
            errors = command.communicate(60)[1]
            assert command.returncode in (-signal.SIGKILL, 130), errors
            assert expected.startswith(growing.read_bytes())
            assert "Traceback" not in errors
        assert b"the same command continues" in errors.encode()
        with growing.open("ab") as file:
            file.write(expected[growing.stat().st_size :][:100])  # as a kill in the middle of a write leaves it
        again = freeze(tmp_path, *arguments, "--out", out)
        assert again.returncode == 0, again.stderr
        assert "prompts    200 of 200" in again.stderr
    assert (tmp_path / "made.jsonl").read_bytes() == expected
    rows = table_of(tmp_path / "made.parquet").to_pylist()
    assert [row["instance_id"] for row in rows] == [f"i-{number:04}" for number in range(200)]
    assert not growing.exists()


def test_a_file_grows_and_only_by_the_same_rules(tmp_path: Path) -> None:
    arguments = large(tmp_path / "rows.jsonl", 12)
    shards = [f"dataset={tmp_path}"]
    for out in ("made.jsonl.gz", "made"):
        for limit in (5, 12):
            made = freeze(tmp_path, *arguments, f"dataset.limit={limit}", "--out", out)
            assert made.returncode == 0, made.stderr
            assert f"prompts    {limit} of {limit}" in made.stderr
    grown = list(export.read_gzip(tmp_path / "made.jsonl.gz"))
    assert [row["instance_id"] for row in grown] == [row["instance_id"] for row in saved_rows(tmp_path / "made")]
    assert len(grown) == 12
    shards = []
    for index in range(2):
        sharded = [*arguments, "shard.count=2", f"shard.index={index}"]
        assert freeze(tmp_path, *sharded, "--out", f"s{index}.jsonl").returncode == 0
        shards += [
            json.loads(line)["instance_id"] for line in (tmp_path / f"s{index}.jsonl").read_text().splitlines()
        ]
    assert sorted(shards) == [f"i-{number:04}" for number in range(12)]

    kept = (tmp_path / "s0.jsonl").read_bytes()
    for more, told in (
        (["prompt=style2"], "prompt.style: 'style3' → 'style2'"),
        (["-m"], "writes one set of prompts"),
    ):
        refused = freeze(tmp_path, *arguments, *more, "--out", "s0.jsonl")
        assert (refused.returncode, refused.stdout, len(refused.stderr.splitlines())) == (2, "", 1)
        assert told in refused.stderr, refused.stderr
    fewer = freeze(tmp_path, *arguments, "dataset.limit=1", "shard.count=2", "shard.index=0", "--out", "s0.jsonl")
    assert "others     5 prompts of earlier commands" in fewer.stderr
    text = (tmp_path / "rows.jsonl").read_text().replace("Mend it", "Mend that")
    (tmp_path / "rows.jsonl").write_text(text)
    changed = freeze(tmp_path, *arguments, "--out", "s0.jsonl")
    assert changed.returncode == 2
    assert "has changed; choose another name" in changed.stderr
    assert (tmp_path / "s0.jsonl").read_bytes() == kept


@pytest.mark.full
def test_other_rules_and_files_are_refused_in_one_line(tmp_path: Path) -> None:
    arguments = large(tmp_path / "rows.jsonl", 2)
    assert freeze(tmp_path, *arguments, "--out", "s0.jsonl").returncode == 0
    kept = (tmp_path / "s0.jsonl").read_bytes()
    (tmp_path / "foreign.jsonl").write_text('{"instance_id": "x"}\n')
    for more, out, told in (
        (["context.readmes=false"], "s0.jsonl", "context.readmes: True → False"),
        (["dataset.max_tokens=9000"], "s0.jsonl", "dataset.max_tokens: None → 9000"),
        ([], "foreign.jsonl", "was not made by this command"),
        ([], "rows.csv", "name a .jsonl, .jsonl.gz or .parquet file, or a directory"),
        ([], "rows.jsonl/", "exists and is not a directory"),
        (["modle=gpt-4o"], "s0.jsonl", "modle"),
        (["--config-dir=absent"], "s0.jsonl", "there is no such directory"),
    ):
        refused = freeze(tmp_path, *arguments, *more, "--out", out)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert len(refused.stderr.splitlines()) == 1
        assert told in refused.stderr, refused.stderr
    assert freeze(tmp_path, *arguments).stderr.startswith("error: --out: name a file")
    assert (tmp_path / "s0.jsonl").read_bytes() == kept


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    arguments = large(tmp_path / "rows.jsonl", 400)
    first = commands.start(MODULE, *arguments, "--out", "made.jsonl", cwd=tmp_path, env=environment())
    while first.poll() is None and not (tmp_path / "made.jsonl").exists():
        time.sleep(0.002)
    commands.pause(first.pid)
    second = freeze(tmp_path, *arguments, "--out", "made.jsonl")
    os.kill(first.pid, signal.SIGCONT)
    assert second.returncode == 2
    assert "in use by process" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    first.communicate(60)
    assert first.returncode == 0
    assert len((tmp_path / "made.jsonl").read_text().splitlines()) == 400


def test_given_prompts_are_frozen_as_they_are_and_options_of_ones_own_are_found(tmp_path: Path) -> None:
    (tmp_path / "own" / "prompt").mkdir(parents=True)
    (tmp_path / "own" / "prompt" / "short.yaml").write_text("defaults:\n  - style2\nsystem: ''\n")
    for more in ([], ["context=oracle", "--config-dir", "own", "prompt=short"]):
        out = f"{len(more)}.jsonl"
        made = freeze(tmp_path, "dataset=sample", "dataset.limit=2", *more, "--out", out)
        assert made.returncode == 0, made.stderr
        assert "counted by tokenizer of tiny_llama" in made.stderr
        row = json.loads((tmp_path / out).read_text().splitlines()[0])
        instance = make_instance(row, "text")
        assert instance.prompt.question == row["text"]
        assert (instance.prompt.system is None) == bool(more)
        assert dict(instance.files) == files_of(row) != {}
    shutil.rmtree(tmp_path / ".0.jsonl.swe_infer")
    assert freeze(tmp_path, "dataset=sample", "--out", "0.jsonl").returncode == 2


def test_help_is_one_screen_and_hydra_is_not_needed(tmp_path: Path) -> None:
    shown = freeze(tmp_path, "--help")
    assert shown.returncode == 0
    assert len(shown.stdout.splitlines()) < 35
    assert "search_replace" in freeze(tmp_path, "--help", "prompt").stdout
    assert freeze(tmp_path, "--version").stdout.startswith("swe_infer ")


def test_columns_of_any_kind_become_a_table(tmp_path: Path) -> None:
    fixed = {"text": "t\nu", "system": "t", "edit_format": "unified_diff"}
    rows: list[dict[str, Any]] = [
        {"instance_id": "a", "n": 1, "o": {"x": 1}, "m": [1], "e": [], "z": {}, **fixed, "files": {}},
        {
            "instance_id": "b",
            "n": 2.5,
            "o": {"y": "2"},
            "m": "a",
            "l": "\ud800",
            **fixed,
            "files": {"\udce9": "\udcff"},
        },
        {"instance_id": "c", "o": {str(key): 1 for key in range(99)}, "big": 1 << 80, **fixed, "files": {"a": "é"}},
    ]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    export.write_parquet(lines, tmp_path / "rows.parquet")
    export.write_disk(lines, tmp_path / "rows")
    export.write_gzip(lines, tmp_path / "rows.jsonl.gz")
    assert gzip.decompress((tmp_path / "rows.jsonl.gz").read_bytes()) == lines.read_bytes()
    table = table_of(tmp_path / "rows.parquet")
    assert str(table.schema.field("n").type) == "double"
    assert table["m"].to_pylist() == ["[1]", "a", None]
    assert json.loads(table["o"][2].as_py())["98"] == 1
    assert json.loads(table["big"][2].as_py()) == 1 << 80
    for found in (export.read_parquet(tmp_path / "rows.parquet"), export.read_disk(tmp_path / "rows")):
        assert [files_of(row) for row in found] == [row["files"] for row in rows]


def test_without_a_prompt_no_table_is_written_and_a_damaged_one_is_one_error(tmp_path: Path) -> None:
    arguments = large(tmp_path / "rows.jsonl", 2)
    (tmp_path / "paths.json").write_text("{}")
    for out in ("made", "made.parquet"):
        empty = freeze(tmp_path, *arguments, "context=files", "context.path=paths.json", "--out", out)
        assert (empty.returncode, empty.stdout) == (0, ""), empty.stderr
        assert "prompts    0 of 2" in empty.stderr
        assert "swe-infer dataset=" not in empty.stderr
        assert not (tmp_path / out).exists()
    assert freeze(tmp_path, *arguments, "--out", "whole").returncode == 0
    (tmp_path / "whole" / "state.json").write_text('{"_data_files": []}')
    damaged = freeze(tmp_path, *arguments, "--out", "whole")
    assert (damaged.returncode, len(damaged.stderr.splitlines())) == (2, 1), damaged.stderr
    assert "cannot be read" in damaged.stderr


def test_a_stop_does_not_wait_for_the_count_of_a_prompt(tmp_path: Path) -> None:
    """The row is in the file, and the next command counts it."""
    large(tmp_path / "rows.jsonl", 2)
    stop, released, counted = threading.Event(), threading.Event(), threading.Event()

    class SlowCounter(EstimatedCounter):
        def __call__(self, prompt: Prompt) -> int:
            stop.set()
            released.wait(60)
            counted.set()
            return super().__call__(prompt)

    dataset = JsonlDataset(path=str(tmp_path / "rows.jsonl"), text_column="problem_statement")
    counter, out = _Counter(SlowCounter()), tmp_path / "made.jsonl"
    selection = select(
        dataset.open(), dataset, count_tokens=counter, reserved_output_tokens=0, context_window=None,
        shard=DataShard(), order="dataset",
    )  # fmt: skip
    with PromptLines(out, "--out made.jsonl", direct=True, rules={}, locks="os") as lines:
        lines.open()
        _Freezer(lines, selection, counter, PromptRenderer(style="given")).run(stop)
        assert not counted.is_set()
        released.set()
        assert lines.figures() == {}
        _Freezer(lines, selection, counter, PromptRenderer(style="given")).run(threading.Event())
        assert [figures.counter for figures in lines.figures().values()] == [counter.name] * 2
    assert len(out.read_text().splitlines()) == 2
