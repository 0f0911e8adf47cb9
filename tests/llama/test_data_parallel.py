"""Several engines as one: late ones, lost ones, and requests that kill engines."""

from __future__ import annotations

import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError
from swe_infer.llama.drafting import NO_SOURCE, DraftSource
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.types import DrafterKind, LlamaModel
from tests.llama.drafts import PROMPT, source_of

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import DataParallelEngine, Message, WorkerDied
    from swe_infer.llama.engine import EngineOptions
    from swe_infer.llama.process_worker import serve
    from swe_infer.llama.ray_worker import EngineHost, serve_in_a_thread
    from tests.llama.helpers import ask, engine_of, generate, random_prompt


def options() -> EngineOptions:
    return EngineOptions(max_batch_tokens=128, max_sequences=2, kv_cache_gb=0.01)


class ThreadWorker:
    """A worker whose engine runs in a thread of this process, as in an actor.

    Args:
        fatal: keys of requests that kill it.
    """

    def __init__(self, model: LlamaModel, name: str, fatal: Sequence[str] = ()) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.answered: list[str] = []
        self._fatal = fatal
        self.messages: list[tuple[str, Any]] = []
        self._host = EngineHost(model, options(), 1)

    def send(self, kind: str, epoch: int, content: Any = None) -> None:
        if kind == "add" and content.key in self._fatal:
            self.alive = False
        self.messages.append((kind, content))
        with suppress(OSError):  # receive() reports it
            self._host.send(kind, epoch, content)

    def receive(self) -> list[Message]:
        if not self.alive:
            raise WorkerDied(f"{self.name} was lost")
        messages = self._host.poll()
        self.answered += [str(answer.request.key) for m in messages if m[0] == "answers" for answer in m[2]]
        return messages

    def wait_until_loaded(self) -> None:
        deadline = time.monotonic() + 120
        while not self._host.has_message() and time.monotonic() < deadline:
            time.sleep(0.002)

    def close(self) -> None:
        self.alive = False
        self._host.close()


def readable(workers: Sequence[ThreadWorker]) -> list[ThreadWorker]:
    """The workers that are not paused and have a message, after a short sleep."""
    time.sleep(0.002)
    return [worker for worker in workers if not worker.paused and (not worker.alive or worker._host.has_message())]


@pytest.fixture
def model(checkpoint: Path) -> LlamaModel:
    return LlamaModel(path=str(checkpoint))


def group_of(model: LlamaModel, *workers: ThreadWorker) -> DataParallelEngine[ThreadWorker]:
    return DataParallelEngine(model, options(), workers, readable, wait_for_all=False)


def requests(count: int = 12) -> list[GenerationRequest]:
    return [ask(n, random_prompt(40 + 5 * n, n), 12, temperature=0.8, seed=n) for n in range(count)]


def test_one_engine_starts_and_late_ones_join(model: LlamaModel, checkpoint: Path) -> None:
    first, late = ThreadWorker(model, "first"), ThreadWorker(model, "late")
    late.paused = True
    group = group_of(model, first, late)

    def asked() -> Iterator[GenerationRequest]:
        for number, request in enumerate(requests()):
            if number == 6:
                late.wait_until_loaded()
                late.paused = False
            yield request

    found = {str(answer.request.key): answer.token_ids for answer in group.generate(asked(), refuse)}
    expected = generate(engine_of(checkpoint), requests())
    assert found == {key: answer.token_ids for key, answer in expected.items()}
    assert len(first.answered) >= 4
    assert first.answered + late.answered != sorted(first.answered)
    assert late.answered
    group.close()


def test_a_request_that_kills_three_engines_fails_alone(model: LlamaModel) -> None:
    workers = [ThreadWorker(model, f"engine {n}", fatal=["5"]) for n in range(4)]
    group = group_of(model, *workers)
    refused: dict[str, str] = {}
    answers = list(group.generate(requests(), lambda r, e: refused.update({str(r.key): f"{type(e).__name__}: {e}"})))
    assert refused == {"5": "WorkerDied: 3 engines ended while they computed this request"}
    assert sorted(str(answer.request.key) for answer in answers) == sorted(str(n) for n in range(12) if n != 5)
    assert sum(worker.alive for worker in workers) == 1
    group.close()


def test_an_engine_that_cannot_load_is_dropped_if_another_works(model: LlamaModel, tmp_path: Path) -> None:
    good, bad = ThreadWorker(model, "good"), ThreadWorker(LlamaModel(path=str(tmp_path / "absent")), "bad")
    bad.paused = True
    group = group_of(model, good, bad)
    bad.paused = False
    answers = list(group.generate(requests(), refuse))
    assert len(answers) == 12
    assert not group.usable
    group.close()


def test_if_the_first_engine_cannot_load_its_error_is_raised(model: LlamaModel, tmp_path: Path) -> None:
    workers = [ThreadWorker(LlamaModel(path=str(tmp_path / "absent")), f"engine {n}") for n in range(2)]
    with pytest.raises(CheckpointError, match="there is no such directory"):
        group_of(model, *workers)
    assert not any(worker.alive for worker in workers)


def test_samples_of_a_prompt_send_its_source_once_and_none_is_returned(model: LlamaModel) -> None:
    """A remote engine drafts from the source it was sent: it has neither the prompt's text nor its parser."""
    worker = ThreadWorker(model, "engine")
    group = group_of(model, worker)
    prompts = [random_prompt(40, n) for n in range(3)]
    sources = [source_of(PROMPT.replace("office", f"office{n}")) for n in range(3)]
    kinds: tuple[DrafterKind, ...] = ("diff", "none", "diff")
    asked = [
        replace(ask((n, sample), prompts[n], 4), drafter=drafter, source=sources[n])
        for n in range(3)
        for sample, drafter in enumerate(kinds)
    ]
    for _ in range(2):
        worker.messages.clear()
        answers = list(group.generate(asked, refuse))
        sent = [pickle.loads(pickle.dumps(content)) for kind, content in worker.messages if kind == "source"]
        assert sent == [DraftSource(source.prose, dict(source.files)) for source in sources]
        assert {type(source.files) for source in sent} == {dict}
        assert all(content.source is NO_SOURCE for kind, content in worker.messages if kind == "add")
        assert len(answers) == len(asked)
        assert all(answer.request.source == NO_SOURCE for answer in answers)
    group.close()


def test_an_error_in_an_engine_is_reported_in_one_line(model: LlamaModel) -> None:
    """A malformed message stands for any failure inside a step."""
    worker = ThreadWorker(model, "engine")
    group = group_of(model, worker)
    worker._host.send("add", 1, None)
    with pytest.raises(WorkerDied, match=r"^an engine of Ray ended: TypeError: replace\(\)") as caught:
        list(group.generate(requests(), refuse))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("directory", ["absent", None], ids=["cannot_load", "loads"])
def test_an_engine_without_a_parent_ends_quietly(model: LlamaModel, tmp_path: Path, directory: str | None) -> None:
    """The parent of a group whose first engine failed closes the others, which may still be loading."""
    ours, theirs = multiprocessing.Pipe()
    ours.close()
    serve(theirs, model if directory is None else LlamaModel(path=str(tmp_path / directory)), options(), 1)


def test_an_error_without_a_parent_ends_quietly(model: LlamaModel) -> None:
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve_in_a_thread, args=(theirs, model, options(), 1))
    thread.start()
    assert ours.recv()[0] == "ready"
    ours.send(("add", 1, None))
    ours.close()
    thread.join(timeout=60)
    assert theirs.closed


def refuse(_: GenerationRequest, error: Exception) -> None:
    raise error
