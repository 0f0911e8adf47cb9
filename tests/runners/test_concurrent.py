"""Concurrent runs on one engine: each gives the same results as alone, and none stops another."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.data.jsonl import JsonlDataset
from swe_infer.data.sample import SampleDataset
from swe_infer.feedback.apply_error import ApplyError
from swe_infer.feedback.base import NoFeedback
from swe_infer.interrupts import INTERRUPTED
from swe_infer.prompt_format import shown_files
from swe_infer.run_directory.asked import Coverage
from swe_infer.run_directory.records import read_records, turn_of
from swe_infer.run_directory.store import RunStore
from swe_infer.runners.base import ProcessResources, RunContext
from swe_infer.runners.concurrent import run_concurrently
from swe_infer.runners.instances import coverage_of, select_instances
from swe_infer.runners.llama import LlamaRunner
from swe_infer.runners.run import Run
from swe_infer.tracking.base import NoTracker, RunInfo
from swe_infer.types import DataShard, Decoding, LlamaModel
from tests.support.instances import write_instances
from tests.support.steps import calls_of

if TYPE_CHECKING:
    from tests.support.checkpoints import make_checkpoint
    from tests.support.threads import single_threaded

INSTANCES = 5
JOBS = {
    "greedy": Decoding(temperature=0.0, max_new_tokens=16),
    "sampled": Decoding(temperature=0.8, max_new_tokens=24, n=2, seed=3),
    "hot": Decoding(temperature=1.3, top_p=0.9, max_new_tokens=16, seed=4),
}

OnRecord = Callable[[Mapping[str, Any]], None]


class Listener(NoTracker):
    """A tracker that calls a function with each record."""

    def __init__(self, on_record: OnRecord) -> None:
        self.on_record = on_record

    def record(self, record: Mapping[str, Any], totals: Mapping[str, Any]) -> None:
        self.on_record(record)


class Bench:
    """Creates runs over the same few instances."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.dataset = JsonlDataset(path=str(write_instances(home / "instances.jsonl", INSTANCES)))
        self.model = LlamaModel(
            path=str(make_checkpoint(home / "model", max_position_embeddings=4096)), dtype="float32"
        )

    def execute(self, folder: Path, names: list[str], callbacks: Mapping[str, OnRecord] | None = None) -> list[Any]:
        """Execute the jobs ``names`` concurrently in ``folder``."""
        resources = ProcessResources()
        with ExitStack() as stack:
            return run_concurrently(
                [self.opened(stack, folder / name, name, resources, callbacks or {}) for name in names]
            )

    def opened(
        self,
        stack: ExitStack,
        directory: Path,
        name: str,
        resources: ProcessResources,
        callbacks: Mapping[str, OnRecord],
    ) -> Run:
        runner = LlamaRunner(model=self.model, decoding=JOBS[name], max_sequences=8, kv_cache_gb=0.05)
        runner.check()
        directory.mkdir(parents=True, exist_ok=True)
        store = stack.enter_context(RunStore(directory, runner.label))
        runner.bind(RunContext(directory, name, Decimal(0), directory / "ledger", resources))
        info = RunInfo(name, name, {}, directory, store.resumed)
        tracker = Listener(callbacks[name]) if name in callbacks else NoTracker()
        return Run(runner, select_instances(runner, self.dataset, DataShard()), store, tracker, info)


def outputs(directory: Path) -> dict[tuple[str, int], str]:
    completed = [r for r in read_records(directory / "records.jsonl") if r["status"] == "completed"]
    found = {(r["instance_id"], r["sample"]): r["full_output"] or "" for r in completed}
    assert len(found) == len(completed), "no answer is there twice"
    return found


def summary(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text()))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with single_threaded():
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def alone(bench: Bench) -> dict[str, dict[tuple[str, int], str]]:
    """The answers of each job with its own engine."""
    found = {}
    for name in JOBS:
        with ExitStack() as stack:
            run = bench.opened(stack, bench.home / "alone" / name, name, ProcessResources(), {})
            assert run.execute() == 0
        found[name] = outputs(bench.home / "alone" / name)
    return found


def test_each_has_the_answers_and_counts_of_a_run_by_itself(
    bench: Bench, alone: dict[str, dict[tuple[str, int], str]], tmp_path: Path
) -> None:
    assert bench.execute(tmp_path, list(JOBS)) == [0, 0, 0]
    for name, decoding in JOBS.items():
        assert outputs(tmp_path / name) == alone[name]
        found, single = summary(tmp_path / name), summary(bench.home / "alone" / name)
        for key in ("instances", "samples", "completed", "failed", "skipped", "remaining", "patches", "cost_usd"):
            assert found[key] == single[key]
        for key in ("input_tokens", "output_tokens"):
            assert found["usage"][key] == single["usage"][key]
        assert found["completed"] == INSTANCES * decoding.n
        assert found["stats"]["concurrent_jobs"] == len(JOBS)
    cached = [summary(tmp_path / name)["usage"]["cached_input_tokens"] for name in JOBS]
    total = [summary(tmp_path / name)["usage"]["input_tokens"] for name in JOBS]
    assert sum(cached) > 0.7 * sum(total), "each prompt is computed once, for all of them"
    passes = summary(tmp_path / "hot")["stats"]["forward_passes"]
    assert passes < sum(summary(bench.home / "alone" / name)["stats"]["forward_passes"] for name in JOBS)


def test_a_prompt_is_parsed_once_for_the_patches_and_drafts_of_all_its_samples(tmp_path: Path) -> None:
    runner = LlamaRunner(
        model=LlamaModel(path="package://swe_infer.sample/tiny_llama", dtype="float32"),
        decoding=Decoding(temperature=0.6, max_new_tokens=128, n=2, seed=0),
        kv_cache_gb=0.2,
    )
    runner.check()
    rows = SampleDataset(limit=3).open()  # their files column is left out: files then come from the prompt
    lines = [json.dumps({"instance_id": rows.ids[n], "text": rows[n].prompt.text}) for n in range(len(rows.ids))]
    (tmp_path / "instances.jsonl").write_text("\n".join(lines[:3]) + "\n")
    dataset = JsonlDataset(path=str(tmp_path / "instances.jsonl"))
    with RunStore(tmp_path, runner.label) as store:
        info = RunInfo("sample", "sample", {}, tmp_path, store.resumed)
        run = Run(runner, select_instances(runner, dataset, DataShard()), store, NoTracker(), info)
        assert calls_of(shown_files.__code__, run.execute) == 3
    records = list(read_records(tmp_path / "records.jsonl"))
    assert len(records) == 6
    assert all(record["patch_status"] in ("applies", "repaired", "does_not_apply") for record in records)


def test_a_run_that_breaks_stops_no_other_and_goes_on_later(
    bench: Bench, alone: dict[str, dict[tuple[str, int], str]], tmp_path: Path
) -> None:
    def breaks(record: Mapping[str, Any]) -> None:
        raise RuntimeError("a fault in this run alone")

    assert bench.execute(tmp_path, list(JOBS), {"sampled": breaks}) == [0, 1, 0]
    assert outputs(tmp_path / "greedy") == alone["greedy"]
    assert outputs(tmp_path / "hot") == alone["hot"]
    assert len(outputs(tmp_path / "sampled")) == 1, "what was written before the fault is kept"
    assert summary(tmp_path / "sampled")["remaining"] == 2 * INSTANCES - 1
    before = {name: (tmp_path / name / "records.jsonl").read_bytes() for name in ("greedy", "hot")}
    assert bench.execute(tmp_path, list(JOBS)) == [0, 0, 0]
    assert outputs(tmp_path / "sampled") == alone["sampled"]
    assert before == {name: (tmp_path / name / "records.jsonl").read_bytes() for name in before}


@pytest.mark.parametrize("times", [pytest.param(1, marks=pytest.mark.full), 2])
def test_ctrl_c_ends_all_of_them_and_they_go_on_later(
    bench: Bench, alone: dict[str, dict[tuple[str, int], str]], tmp_path: Path, times: int
) -> None:
    """The first signal finishes requests in flight, the second drops them."""
    pressed: list[Mapping[str, Any]] = []

    def interrupts(record: Mapping[str, Any]) -> None:
        if not pressed:
            pressed.append(record)
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    assert bench.execute(tmp_path, ["sampled", "hot"], {"hot": interrupts}) == [INTERRUPTED, INTERRUPTED]
    assert signal.getsignal(signal.SIGINT) is before
    kept = {name: outputs(tmp_path / name) for name in ("sampled", "hot")}
    assert 0 < sum(map(len, kept.values())) < 3 * INSTANCES
    if times == 2:
        assert sum(map(len, kept.values())) <= 2
    assert bench.execute(tmp_path, ["sampled", "hot"]) == [0, 0]
    for name in kept:
        assert outputs(tmp_path / name) == alone[name]


def test_an_engine_that_cannot_be_loaded_fails_every_run_in_order(bench: Bench, tmp_path: Path) -> None:
    resources = ProcessResources()
    with ExitStack() as stack:
        runs = [bench.opened(stack, tmp_path / name, name, resources, {}) for name in ("greedy", "hot")]
        for run in runs:
            assert isinstance(run.runner, LlamaRunner)
            run.runner.kv_cache_gb = 1e-7
        assert run_concurrently(runs) == [2, 2]
    assert summary(tmp_path / "hot")["remaining"] == INSTANCES


CHAT = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant]"


def test_conversations_continue_on_a_shared_engine(tmp_path: Path) -> None:
    """Rounds with feedback give the same answers alone and together, and a finished run sends nothing more."""
    dataset = JsonlDataset(path=str(write_instances(tmp_path / "instances.jsonl", INSTANCES)))
    checkpoint = make_checkpoint(tmp_path / "model", max_position_embeddings=8192)
    config = checkpoint / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": CHAT}))
    model = LlamaModel(path=str(checkpoint), dtype="float32", prompt_format="chat")

    def opened(stack: ExitStack, directory: Path, turns: int, resources: ProcessResources) -> Run:
        decoding = Decoding(temperature=0.8, max_new_tokens=12, n=2, seed=turns)
        runner = LlamaRunner(model=model, decoding=decoding, max_sequences=8, kv_cache_gb=0.05)
        runner.check()
        runner.check_conversation()
        directory.mkdir(parents=True, exist_ok=True)
        store = stack.enter_context(RunStore(directory, runner.label))
        selection = select_instances(runner, dataset, DataShard())
        store.set_coverage(coverage_of(selection, turns), Coverage(None, decided=True))
        runner.bind(RunContext(directory, directory.name, Decimal(0), directory / "ledger", resources))
        info = RunInfo(directory.name, directory.name, {}, directory, store.resumed)
        feedback = ApplyError(turns=turns) if turns else NoFeedback()
        return Run(runner, selection, store, NoTracker(), info, feedback=feedback)

    def answers(directory: Path) -> dict[tuple[str, int, int], str]:
        records = list(read_records(directory / "records.jsonl"))
        return {(r["instance_id"], r["sample"], turn_of(r)): r.get("full_output") or "" for r in records}

    for turns in (0, 2):
        with ExitStack() as stack:
            assert opened(stack, tmp_path / f"alone{turns}", turns, ProcessResources()).execute() == 0
    resources = ProcessResources()
    with ExitStack() as stack:
        runs = [opened(stack, tmp_path / f"together{turns}", turns, resources) for turns in (0, 2)]
        assert run_concurrently(runs) == [0, 0]
    for turns in (0, 2):
        found = answers(tmp_path / f"together{turns}")
        assert found == answers(tmp_path / f"alone{turns}")
        assert len(found) == 2 * INSTANCES * (1 + turns), "no answer of this model contains a patch"
    feedback = summary(tmp_path / "together2")["feedback"]
    assert (feedback["turns"], feedback["failed"], feedback["cost_usd"]) == (4 * INSTANCES, 0, 0)
    before = (tmp_path / "together2" / "records.jsonl").read_bytes()
    with ExitStack() as stack:
        again = opened(stack, tmp_path / "together2", 2, ProcessResources())
        assert again.execute() == 0
        assert again.runner.stats() == {}, "no engine is loaded"
    assert (tmp_path / "together2" / "records.jsonl").read_bytes() == before
