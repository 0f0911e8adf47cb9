"""Engines in separate processes: same outputs, summed figures, and clear errors."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.pool import EnginePool
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.types import Failure, LlamaModel, Prompt, Skip
from tests.support import commands

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import DataParallelEngine, Worker
    from swe_infer.llama.drafting import DraftSource
    from swe_infer.llama.engine import EngineOptions
    from swe_infer.llama.placement import worker_devices
    from swe_infer.llama.process_worker import ProcessWorker, process_engines
    from tests.llama.helpers import ask, engine_of, generate, random_prompt, refuse


def options() -> EngineOptions:
    return EngineOptions(max_batch_tokens=128, max_sequences=4, kv_cache_gb=0.01, workers=2)


def requests() -> list[GenerationRequest]:
    return [
        ask((index, sample), random_prompt(60 + 20 * index, index), 16, temperature=0.8, seed=10 * index + sample)
        for index in range(6)
        for sample in range(3)
    ]


@pytest.fixture(scope="module")
def group(checkpoint: Path) -> Iterator[DataParallelEngine]:
    """The pool's engines. Other options close them, which is checked after the last test."""
    pool, model = EnginePool(), LlamaModel(path=str(checkpoint))
    made = pool.get(model, options())
    assert isinstance(made, DataParallelEngine)
    _wait_for_both(made)
    assert pool.get(model, options()) is made
    yield made
    workers = made.workers
    assert [_process(worker).is_alive() for worker in workers] == [True, True]
    assert not isinstance(pool.get(model, dataclasses.replace(options(), workers=1)), DataParallelEngine)
    assert not any(_process(worker).is_alive() for worker in workers)
    assert not made.usable


def test_outputs_equal_those_of_one_engine(checkpoint: Path, group: DataParallelEngine) -> None:
    expected = {key: answer.token_ids for key, answer in generate(engine_of(checkpoint), requests()).items()}
    found = {str(answer.request.key): answer for answer in group.generate(requests(), refuse)}
    assert {key: answer.token_ids for key, answer in found.items()} == expected
    assert group.figures()["workers"] == 2
    assert all(figures["forward_passes"] > 0 for figures in _figures(group))


def test_figures_of_all_workers_are_summed_since_the_last_reset(group: DataParallelEngine) -> None:
    """An idle worker adds no figures of the previous run."""
    drafted = [dataclasses.replace(request, drafter="suffix") for request in requests()]
    for asked, busy in ((drafted, 2), (drafted[:3], 1)):
        group.reset_stats()
        assert _figures(group) == []
        answers = list(group.generate(asked, refuse))
        figures = group.figures()
        # the counts depend on timing: a busy machine may find no draft worthwhile
        assert figures["drafted_tokens"] == sum(answer.drafted_tokens for answer in answers)
        assert figures["accepted_tokens"] == sum(answer.accepted_tokens for answer in answers)
        parts = [each["forward_passes"] for each in _figures(group)]
        assert figures["forward_passes"] == sum(parts)
        assert sum(part > 0 for part in parts) == busy


def test_samples_of_a_prompt_go_to_one_worker(group: DataParallelEngine) -> None:
    prompt = random_prompt(200, 77)
    answers = list(group.generate([ask(i, prompt, 4, temperature=1.0, seed=i) for i in range(3)], refuse))
    assert sorted(answer.cached_tokens for answer in answers) == [0, 199, 199]


def test_invalid_requests_are_rejected_and_the_rest_complete(group: DataParallelEngine) -> None:
    rejected = []
    asked = [ask("long", random_prompt(1500, 0)), ask("bad", [399, 400]), ask("good", random_prompt(9, 0), 3)]
    answers = list(group.generate(asked, lambda r, why: rejected.append((r.key, why))))
    assert [answer.request.key for answer in answers] == ["good"]
    assert sorted(rejected) == [
        ("bad", Failure("ValueError", "the prompt has a token id outside the model's vocabulary")),
        ("long", Skip("ContextOverflow", "the prompt has 1500 tokens and the context window holds 1024")),
    ]


def test_engines_encode_prompts_and_reject_the_same_ones_as_one_engine(
    checkpoint: Path, group: DataParallelEngine
) -> None:
    """One has a lone surrogate, which no tokenizer encodes; one is longer than the context window."""
    texts = ["def add(left, right):\n" * (n + 1) for n in range(6)] + ["return '\udce9'", "x = 1\n" * 2000]
    sources = [DraftSource(Prompt(None, text)) for text in texts]
    asked = [
        dataclasses.replace(ask((number, sample), (), 6, temperature=0.8, seed=sample), source=source)
        for number, source in enumerate(sources)
        for sample in range(2)
    ]
    found = []
    for engine in (engine_of(checkpoint), group):
        rejected: dict[str, Failure | Skip] = {}
        answers = {
            str(answer.request.key): (answer.prompt_tokens, answer.token_ids, answer.text)
            for answer in engine.generate(asked, lambda r, why: rejected.update({str(r.key): why}))  # noqa: B023
        }
        assert len(answers) == 12
        found.append((answers, rejected))
    assert found[0] == found[1]
    reasons = [why.error_type if isinstance(why, Failure) else why.reason for why in found[0][1].values()]
    assert reasons == ["TypeError", "TypeError", "ContextOverflow", "ContextOverflow"]


def test_a_drafter_that_cannot_be_sent_is_named(group: DataParallelEngine) -> None:
    drafter: Any = type("Local", (), {"create": None})()
    asked = [dataclasses.replace(ask("a", random_prompt(9, 0), 3), drafter=drafter)]
    with pytest.raises(
        ConfigError, match=r"^decoding\.drafter: several engines need one that can be pickled: Can't pickle"
    ):
        list(group.generate(asked, refuse))
    group.abandon()


def test_no_request_starts_after_a_stop(group: DataParallelEngine) -> None:
    stop = threading.Event()
    read = []

    def endless() -> Iterator[GenerationRequest]:
        for index in range(10_000):
            read.append(index)
            yield ask(index, random_prompt(30, index), 4)

    answers = []
    for answer in group.generate(endless(), refuse, stop):
        answers.append(answer)
        stop.set()
    assert 1 <= len(answers) <= 16  # the first batch, and the next one, which was sent with it
    assert len(read) < 20


def test_an_abandoned_run_leaves_no_outputs_to_the_next(group: DataParallelEngine) -> None:
    for _ in group.generate([ask(i, random_prompt(50, i), 30) for i in range(8)], refuse):
        break
    group.abandon()
    answers = list(group.generate([ask("new", random_prompt(5, 0), 3)], refuse))
    assert [answer.request.key for answer in answers] == ["new"]


def test_a_killed_engine_and_a_hung_one_return(
    checkpoint: Path, group: DataParallelEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile each request is answered once, with the same tokens."""
    monkeypatch.setattr(group, "options", dataclasses.replace(options(), stall_timeout_s=3.0))
    expected = {key: answer.token_ids for key, answer in generate(engine_of(checkpoint), requests()).items()}
    killed, hung = (_process(worker) for worker in group.workers)

    def asked() -> Iterator[GenerationRequest]:
        yield from requests()
        number = itertools.count()
        while len(group.workers) < 2 or {killed, hung} & {_process(worker) for worker in group.workers}:
            yield ask(f"more{next(number)}", random_prompt(40, 1), 4)
            time.sleep(0.05)  # one engine need not be kept busy until the others have started

    found: dict[str, tuple[int, ...]] = {}
    for answer in group.generate(asked(), refuse):
        if not found:
            assert killed.pid is not None
            assert hung.pid is not None
            os.kill(killed.pid, signal.SIGKILL)
            commands.pause(hung.pid)
        assert str(answer.request.key) not in found
        found[str(answer.request.key)] = answer.token_ids
    assert {key: tokens for key, tokens in found.items() if "more" not in key} == expected
    assert (killed.exitcode, hung.exitcode) == (-9, -9)
    assert group.usable


@pytest.mark.parametrize("killed", [False, True])
def test_a_child_ends_with_its_parent_alone(killed: bool) -> None:
    """Terminals and Slurm send signals to all processes. ``run`` waits for the child, which has its output open."""
    code = (
        "import os, signal, time\n"
        "from swe_infer.llama.child_process import start_child\n"
        "child = start_child(time.sleep, 600)\n"
        "os.kill(child.pid, signal.SIGINT)\n"
        "os.kill(child.pid, signal.SIGTERM)\n"
        "child.join(timeout=1)\n"
        "print(child.exitcode, flush=True)\n"
        f"{'os.kill(os.getpid(), signal.SIGKILL)' if killed else ''}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    status = -signal.SIGKILL if killed else 0
    assert (done.returncode, done.stdout, done.stderr) == (status, "None\n", "")


def test_a_child_ends_with_its_parent_while_it_imports(tmp_path: Path) -> None:
    """The child has the output open."""
    (tmp_path / "imported.py").write_text(
        "import multiprocessing, time\n"
        "def work():\n"
        "    pass\n"
        "if multiprocessing.current_process().name != 'MainProcess':\n"
        "    print('importing', flush=True)\n"
        "    time.sleep(600)\n"
    )
    code = (
        "import imported\nfrom swe_infer.llama.child_process import start_child\nstart_child(imported.work).join()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "importing\n"
    parent.kill()
    assert parent.communicate(timeout=60)[0] == ""


def test_a_child_imports_without_garbage_collection(tmp_path: Path) -> None:
    """Imports create many objects, which later collections do not search either."""
    (tmp_path / "imported.py").write_text(
        "import gc\n"
        "collects = gc.isenabled()\n"
        "def show():\n"
        "    print(collects, gc.isenabled(), gc.get_freeze_count() > 0)\n"
    )
    code = (
        "import imported\nfrom swe_infer.llama.child_process import start_child\nstart_child(imported.show).join()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("False True True\n", "")


def test_an_engine_that_is_given_up_while_it_starts_leaves_no_process(checkpoint: Path) -> None:
    """A sweep's next run closes engines, one of which may be starting again in its thread."""
    worker = ProcessWorker(LlamaModel(path=str(checkpoint)), options(), 1)
    worker.kill(False)
    worker.start()
    process = _process(worker)
    assert not process.is_alive()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.full
def test_a_load_error_is_raised_in_the_parent(checkpoint: Path) -> None:
    model = LlamaModel(path=str(checkpoint), peft_path=str(checkpoint))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        process_engines(model, options(), ["cpu"])


def test_workers_are_spread_over_devices() -> None:
    assert worker_devices("cpu", None) == ["cpu"]
    assert worker_devices("cpu", 3) == ["cpu"] * 3
    with pytest.raises(ConfigError, match=r"model\.device=cuda:99"):
        worker_devices("cuda:99", 2)


def _wait_for_both(group: DataParallelEngine) -> None:
    while len(group.workers) < 2:
        list(group.generate([ask("first", [1, 2, 3], 1)], refuse))


def _figures(group: DataParallelEngine) -> list[Mapping[str, float]]:
    return [worker.figures for worker in group.workers if worker.figures is not None]


def _process(worker: Worker) -> BaseProcess:
    assert isinstance(worker, ProcessWorker)
    assert worker.process is not None
    return worker.process
