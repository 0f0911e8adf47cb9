"""Engines in separate processes: same outputs, summed figures, and clear errors."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.pool import EnginePool
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.types import LlamaModel

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import DataParallelEngine, WorkerDied
    from swe_infer.llama.engine import EngineOptions
    from swe_infer.llama.placement import worker_devices
    from swe_infer.llama.process_worker import ProcessWorker, process_engines
    from tests.llama.helpers import ask, engine_of, generate, random_prompt


def options() -> EngineOptions:
    return EngineOptions(max_batch_tokens=128, max_sequences=4, kv_cache_gb=0.01, workers=2)


def requests() -> list[GenerationRequest]:
    return [
        ask((index, sample), random_prompt(60 + 20 * index, index), 16, temperature=0.8, seed=10 * index + sample)
        for index in range(6)
        for sample in range(3)
    ]


@pytest.fixture(scope="module")
def group(checkpoint: Path) -> Iterator[DataParallelEngine[ProcessWorker]]:
    """The pool's engines. Other options close them, which is checked after the last test."""
    pool, model = EnginePool(), LlamaModel(path=str(checkpoint))
    made = pool.get(model, options())
    assert isinstance(made, DataParallelEngine)
    assert pool.get(model, options()) is made
    yield made
    assert [worker.alive for worker in made.workers] == [True, True]
    assert not isinstance(pool.get(model, dataclasses.replace(options(), workers=1)), DataParallelEngine)
    assert not any(worker.alive for worker in made.workers)


def test_outputs_equal_those_of_one_engine(checkpoint: Path, group: DataParallelEngine[ProcessWorker]) -> None:
    expected = {key: answer.token_ids for key, answer in generate(engine_of(checkpoint), requests()).items()}
    found = {str(answer.request.key): answer for answer in group.generate(requests(), _refuse)}
    assert {key: answer.token_ids for key, answer in found.items()} == expected
    assert group.figures()["workers"] == 2
    assert all(figures["forward_passes"] > 0 for figures in group.figures_of_each())


def test_figures_of_all_workers_are_summed_since_the_last_reset(group: DataParallelEngine[ProcessWorker]) -> None:
    """An idle worker carries no figures over from the previous run."""
    drafted = [dataclasses.replace(request, drafter="suffix") for request in requests()]
    for asked, busy in ((drafted, 2), (drafted[:3], 1)):
        group.reset_stats()
        assert group.figures()["forward_passes"] == 0
        answers = list(group.generate(asked, _refuse))
        figures = group.figures()
        # the counts depend on timing: a busy machine may find no draft worthwhile
        assert figures["drafted_tokens"] == sum(answer.drafted_tokens for answer in answers)
        assert figures["accepted_tokens"] == sum(answer.accepted_tokens for answer in answers)
        parts = [each["forward_passes"] for each in group.figures_of_each()]
        assert figures["forward_passes"] == sum(parts)
        assert sum(part > 0 for part in parts) == busy


def test_samples_of_a_prompt_go_to_one_worker(group: DataParallelEngine[ProcessWorker]) -> None:
    prompt = random_prompt(200, 77)
    answers = list(group.generate([ask(i, prompt, 4, temperature=1.0, seed=i) for i in range(3)], _refuse))
    assert sorted(answer.cached_tokens for answer in answers) == [0, 199, 199]


def test_invalid_requests_are_rejected_and_the_rest_complete(group: DataParallelEngine[ProcessWorker]) -> None:
    rejected = []
    asked = [ask("long", random_prompt(1500, 0)), ask("bad", [399, 400]), ask("good", random_prompt(9, 0), 3)]
    answers = list(group.generate(asked, lambda r, e: rejected.append((r.key, type(e).__name__))))
    assert [answer.request.key for answer in answers] == ["good"]
    assert sorted(rejected) == [("bad", "ValueError"), ("long", "PromptTooLong")]


def test_no_request_starts_after_a_stop(group: DataParallelEngine[ProcessWorker]) -> None:
    stop = threading.Event()
    read = []

    def endless() -> Iterator[GenerationRequest]:
        for index in range(10_000):
            read.append(index)
            yield ask(index, random_prompt(30, index), 4)

    answers = []
    for answer in group.generate(endless(), _refuse, stop):
        answers.append(answer)
        stop.set()
    assert 1 <= len(answers) <= 8
    assert len(read) < 20


def test_an_abandoned_run_leaves_no_outputs_to_the_next(group: DataParallelEngine[ProcessWorker]) -> None:
    for _ in group.generate([ask(i, random_prompt(50, i), 30) for i in range(8)], _refuse):
        break
    group.abandon()
    answers = list(group.generate([ask("new", random_prompt(5, 0), 3)], _refuse))
    assert [answer.request.key for answer in answers] == ["new"]


def test_requests_of_a_lost_worker_go_to_the_others_while_any_is_left(checkpoint: Path) -> None:
    group = process_engines(LlamaModel(path=str(checkpoint)), options(), ["cpu", "cpu"])
    expected = {key: answer.token_ids for key, answer in generate(engine_of(checkpoint), requests()).items()}
    found: dict[str, tuple[int, ...]] = {}
    workers = group.workers
    for answer in group.generate(requests(), _refuse):
        if not found:
            _kill(workers[0])
        assert str(answer.request.key) not in found
        found[str(answer.request.key)] = answer.token_ids
    assert found == expected
    assert group.figures()["workers"] == 1
    assert not group.usable, "the next run starts both again"
    answers = group.generate([ask(i, random_prompt(40, i), 900) for i in range(4)], _refuse)
    _kill(workers[1])
    with pytest.raises(WorkerDied, match=r"all 2 engines are gone; the last: the engine on cpu ended with .* -9"):
        list(answers)
    group.abandon()
    group.close()
    assert not any(worker.alive for worker in workers)


def test_a_load_error_is_raised_in_the_parent(checkpoint: Path) -> None:
    model = LlamaModel(path=str(checkpoint), peft_path=str(checkpoint))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        process_engines(model, options(), ["cpu"])


def test_workers_are_spread_over_devices() -> None:
    assert worker_devices("cpu", None) == ["cpu"]
    assert worker_devices("cpu", 3) == ["cpu"] * 3
    with pytest.raises(ConfigError, match=r"model\.device=cuda:99"):
        worker_devices("cuda:99", 2)


def _kill(worker: ProcessWorker) -> None:
    assert worker.process.pid is not None
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.process.join()


def _refuse(_: GenerationRequest, error: Exception) -> None:
    raise error
