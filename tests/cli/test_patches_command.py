"""``swe-infer-patches``: patches of finished runs are computed again, and nothing that was paid for changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from swe_infer.cli.patches import main
from swe_infer.errors import StoreError
from swe_infer.patches import VERSION
from swe_infer.run_directory.records import Damage, read_records, without_answers
from swe_infer.run_directory.rewrite import rewrite_records
from swe_infer.run_directory.store import RunStore
from swe_infer.run_directory.totals import Totals
from tests.support import commands
from tests.support.api_server import ApiServer
from tests.support.instances import write_instances

ROOT = Path(__file__).resolve().parent.parent.parent
COUNT = 4


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as started:
        yield started


@pytest.fixture(scope="module")
def finished(server: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("finished")
    assert _run(server, home).returncode == 0
    return home


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a run with two samples, in a folder with its dataset."""
    shutil.copytree(finished, tmp_path / "home")
    config = tmp_path / "home" / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(finished), str(tmp_path / "home")))
    return tmp_path / "home" / "run"


def _run(server: ApiServer, home: Path) -> Any:
    data = home / "data.jsonl"
    if not data.exists():
        write_instances(data, COUNT)
    return commands.run(
        "swe_infer", "model=gpt-4o", f"provider.base_url={server.openai_url}", "dataset=jsonl",
        f"dataset.path={data}", "tracker=none", "decoding.n=2", f"output_dir={home / 'run'}",
        cwd=home, env={**os.environ, "PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "sk-test"},
    )  # fmt: skip


def _contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.name != ".lock"}


def _records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]


def _as_before_improvement(run: Path, sample: int = 0) -> None:
    """Makes the records of one sample those of an earlier extractor, which found no patch."""
    lines = []
    for record in _records(run):
        if record["sample"] == sample:
            record.pop("extractor", None)
            record |= {"model_patch": "", "patch_status": "none", "patch_reason": "no diff", "patch_format": None}
        lines.append(json.dumps(record) + "\n")
    (run / "records.jsonl").write_text("".join(lines))


def _paid(run: Path) -> tuple[object, ...]:
    totals, damage = Totals(), Damage()
    for record in read_records(run / "records.jsonl", damage):
        totals.add_record(record)
    return totals.records, totals.usage, totals.cost_usd, damage.unreadable, damage.cost_usd


def test_run_of_the_present_version_stays_byte_for_byte(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _contents(run)
    assert all(record["extractor"] == VERSION for record in _records(run))
    for arguments in ([], ["--dry-run"]):
        assert main([str(run), *arguments]) == 0
        assert f"0 of {2 * COUNT} patches" in capsys.readouterr().out
        assert _contents(run) == before


def test_improved_patches_reach_records_predictions_and_summary(
    run: Path, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, before = _contents(run), _records(run)
    paid = _paid(run)
    _as_before_improvement(run)
    verdicts = [{"instance_id": r["instance_id"], "sample": r["sample"], "resolved": True} for r in before]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts))
    summary = json.loads((run / "summary.json").read_text())
    evaluated = {"resolved": 2 * COUNT, "evaluated": 2 * COUNT, "resolved_rate": 1.0, "evaluated_by": "report"}
    (run / "summary.json").write_text(json.dumps({**summary, "patches": {"none": COUNT}, **evaluated}))
    old = _contents(run)
    assert main([str(run), "--dry-run"]) == 0
    assert _contents(run) == old
    assert f"{COUNT} of {2 * COUNT} patches would change" in capsys.readouterr().out

    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert f"{COUNT} of {2 * COUNT} patches changed" in out
    assert f"none             -> applies          {COUNT:>8}" in out
    assert "evaluate the run again" in out
    assert [{**record} for record in _records(run)] == before
    assert _paid(run) == paid
    for name in ("predictions.jsonl", "predictions.sample1.jsonl"):
        assert sorted((run / name).read_bytes().splitlines()) == sorted(whole[name].splitlines())
    after = json.loads((run / "summary.json").read_text())
    assert {key: after[key] for key in summary if key != "patches"} == {
        k: summary[k] for k in summary if k != "patches"
    }
    assert after["patches"] == summary["patches"]
    assert (after["resolved"], after["evaluated"]) == (COUNT, COUNT), "those of the other sample"
    left = [json.loads(line) for line in (run / "evaluation.jsonl").read_text().splitlines()]
    assert {verdict["sample"] for verdict in left} == {1}

    requests = len(server.log.answers())
    assert _run(server, run.parent).returncode == 0
    assert len(server.log.answers()) == requests, "the run is still finished"


def test_instance_that_is_gone_keeps_its_patch_with_a_note(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _as_before_improvement(run)
    data = run.parent / "data.jsonl"
    first, second, *_ = data.read_text().splitlines(keepends=True)
    row = json.loads(second)
    data.write_text(first + json.dumps({**row, "text": row["text"] + "\n"}) + "\n")
    assert main([str(run)]) == 0
    out = capsys.readouterr().out
    assert f"1 of {2 * COUNT} patches changed" in out
    assert "instances that keep their patches: 2, such as" in out
    assert "the prompt differs from the recorded one" in out
    kept = [record for record in _records(run) if record["sample"] == 0 and "extractor" not in record]
    assert len(kept) == COUNT - 1
    data.unlink()
    _as_before_improvement(run)
    assert main([str(run)]) == 0
    assert f"instances that keep their patches: {COUNT}" in capsys.readouterr().out


def test_record_without_its_answer_keeps_its_patch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "records.jsonl"
    path.write_bytes(b"".join(without_answers(line) for line in path.read_bytes().splitlines(keepends=True)))
    before = path.read_bytes()
    assert main([str(run)]) == 0
    assert f"instances that keep their patches: {COUNT}, such as" in capsys.readouterr().out
    assert path.read_bytes() == before


def test_damaged_records_keep_their_cost(run: Path) -> None:
    _as_before_improvement(run)
    path = run / "records.jsonl"
    first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(first + second.rstrip("\n") + first + "".join(rest) + first[: len(first) // 2] + "\n")
    paid = _paid(run)
    assert main([str(run)]) == 0
    assert _paid(run) == paid
    assert [record["extractor"] for record in read_records(path) if "extractor" in record].count(VERSION) > COUNT


def test_run_in_use_and_no_run_are_refused_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _as_before_improvement(run)
    before = (run / "records.jsonl").read_bytes()
    with RunStore(run, "model"):
        assert main([str(run)]) == 2
    assert main([str(run.parent)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "in use by process" in errors[0]
    assert "not a run directory" in errors[1]
    assert (run / "records.jsonl").read_bytes() == before


def test_rewriting_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    line = '{"instance_id": "a", "sample": 0, "status": "completed", "model_patch": "", "cost_usd": 0.5}\n'
    path.write_text(line)

    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        rewrite_records(path, lambda record: {"model_patch": "x"}, fail)
    with pytest.raises(StoreError, match="cost would change"):
        rewrite_records(path, lambda record: {"cost_usd": 1}, fail)
    assert (path.read_text(), list(tmp_path.iterdir())) == (line, [path])
    assert rewrite_records(path, lambda record: {"model_patch": "x"}, lambda: None)
    assert [record["cost_usd"] for record in read_records(path)] == [Decimal("0.5")]
