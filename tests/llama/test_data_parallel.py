"""Several engines as one: late ones, lost ones, and requests that kill engines."""

from __future__ import annotations

import importlib
import pickle
import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.drafting import NO_SOURCE
from swe_infer.llama.sequence import GenerationRequest
from swe_infer.patches.pipeline import make_patch
from swe_infer.types import DrafterKind, EditFormat, Failure, LlamaModel, Skip
from tests.llama.drafts import PROMPT, source_of
from tests.support.steps import calls_of

if TYPE_CHECKING:
    from swe_infer.llama.data_parallel import MAX_RESTARTS, DataParallelEngine, Report, Worker, WorkerDied
    from swe_infer.llama.engine import EngineOptions
    from swe_infer.llama.process_worker import serve
    from swe_infer.llama.stats import merged_figures
    from tests.llama.helpers import ask, engine_of, generate, random_prompt, refuse


def options(sequences: int = 2) -> EngineOptions:
    return EngineOptions(max_batch_tokens=128, max_sequences=sequences, kv_cache_gb=0.01)


def thread_worker(
    model: LlamaModel,
    name: str,
    fatal: Set[str] = frozenset(),
    *,
    dies: bool = False,
    hangs: int = 0,
    sequences: int = 2,
) -> Any:
    """A worker whose engine runs in a thread of this process, as in an actor.

    Args:
        fatal: keys of requests that end it.
        dies: whether any request ends it.
        hangs: number of starts after which it reports nothing.
    """

    class ThreadWorker(Worker):
        starts = 0
        paused = hung = lost = False

        def __init__(self) -> None:
            super().__init__()
            self.sent: list[tuple[str, Any]] = []
            self.answered_keys: list[str] = []

        def start(self) -> str:
            self.starts += 1
            self.lost, self.hung = False, self.starts <= hangs
            self.pipe, theirs = Pipe()
            threading.Thread(target=serve, args=(theirs, model, options(sequences), 1), daemon=True).start()
            return name

        def call(self, commands: bytes) -> bytes:
            with suppress(ImportError):  # of a drafter
                sent = pickle.loads(commands)
                self.sent += sent
                added = [content[0].key for kind, content in sent if kind == "add"]
                self.lost |= bool(added and dies) or not fatal.isdisjoint(added)
            with suppress(OSError):
                self.pipe.send_bytes(commands)
            while self.lost or self.hung or self.paused or not self.pipe.poll(0.01):
                if self.lost:
                    self.pipe.close()
                    raise WorkerDied("was lost")
                time.sleep(0.001)
            reply = self.pipe.recv_bytes()
            report = pickle.loads(reply)
            if isinstance(report, Report):
                self.answered_keys += [str(key) for key, _ in report.results]
            return reply

        def kill(self, restarts: bool) -> None:
            self.lost = True

    return ThreadWorker()


def wait_until_loaded(worker: Any) -> None:
    deadline = time.monotonic() + 120
    while not worker.pipe.poll() and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.fixture
def model(checkpoint: Path) -> LlamaModel:
    return LlamaModel(path=str(checkpoint))


def group_of(
    model: LlamaModel, *workers: Any, sequences: int = 2, stall_timeout_s: float = 600.0
) -> DataParallelEngine:
    limits = replace(options(sequences), stall_timeout_s=stall_timeout_s)
    return DataParallelEngine(model, limits, iter([workers]))


def requests(count: int = 12) -> list[GenerationRequest]:
    return [ask(n, random_prompt(40 + 5 * n, n), 12, temperature=0.8, seed=n) for n in range(count)]


def test_one_engine_starts_and_late_ones_join(model: LlamaModel, checkpoint: Path) -> None:
    first, late = thread_worker(model, "first"), thread_worker(model, "late")
    late.paused = True
    group = group_of(model, first, late)

    def asked() -> Iterator[GenerationRequest]:
        for number, request in enumerate(requests()):
            if number == 6:
                wait_until_loaded(late)
                late.paused = False
            first.paused = number >= 6 and not late.ready
            yield request

    found = {str(answer.request.key): answer.token_ids for answer in group.generate(asked(), refuse)}
    expected = generate(engine_of(checkpoint), requests())
    assert found == {key: answer.token_ids for key, answer in expected.items()}
    assert len(first.answered_keys) >= 4
    assert first.answered_keys + late.answered_keys != sorted(first.answered_keys)
    assert late.answered_keys
    group.close()


def test_requests_that_kill_engines_fail_alone(model: LlamaModel) -> None:
    """Three requests end each engine that runs them. No request beside them fails, and engines return."""
    fatal = {str(n) for n in range(0, 48, 16)}
    workers = [thread_worker(model, f"engine {n}", fatal, sequences=8) for n in range(2)]
    group = group_of(model, *workers, sequences=8)
    rejected: dict[str, Failure | Skip] = {}
    answers = list(group.generate(requests(48), lambda r, why: rejected.update({str(r.key): why})))
    why = "4 engines ended while they computed this request; the last one: engine %d: was lost"
    assert rejected.keys() == fatal
    lost = [Failure("WorkerDied", why % number) for number in (0, 1)]
    assert all(outcome in lost for outcome in rejected.values())
    assert sorted(str(answer.request.key) for answer in answers) == sorted(
        str(n) for n in range(48) if str(n) not in fatal
    )
    assert group.usable
    group.close()


def test_an_engine_that_fails_time_and_again_is_given_up_and_fails_no_request(model: LlamaModel) -> None:
    good, bad = thread_worker(model, "good"), thread_worker(model, "bad", dies=True)
    group = group_of(model, good, bad)
    answered: list[str] = []

    def asked() -> Iterator[GenerationRequest]:
        yield from requests()
        number = 100
        while group.usable:
            number += 1
            yield ask(number, random_prompt(20, number), 4)

    for answer in group.generate(asked(), refuse):
        answered.append(str(answer.request.key))
    assert len(answered) == len(set(answered))
    assert {str(request.key) for request in requests()} <= set(answered)
    assert bad.starts == MAX_RESTARTS + 1
    assert group.workers == [good]
    group.close()


def test_a_request_that_lost_engines_waits_for_one_that_has_answered_others(model: LlamaModel) -> None:
    """An engine that always ends does not get the request again, although it is idle and the other one is not."""
    good, bad = thread_worker(model, "good", sequences=1), thread_worker(model, "bad", dies=True)
    bad.paused = True
    group = group_of(model, good, bad, sequences=1)
    bad.paused = False
    while len(group.workers) < 2:
        assert len(list(group.generate(requests(1), refuse))) == 1
    good.paused = True

    class Asked:
        """A request for each engine. The first engine goes on when the other one has lost its own twice."""

        left, looks = requests(2), 0

        def __iter__(self) -> Iterator[GenerationRequest]:
            return self

        def __next__(self) -> GenerationRequest:
            if self.left:
                return self.left.pop(0)
            self.looks += bad.starts == 3 and bad.ready
            good.paused = self.looks < 10
            raise StopIteration

    assert len(list(group.generate(Asked(), refuse))) == 2
    assert bad.starts == 3
    group.close()


def test_if_no_engine_is_left_the_error_says_why(model: LlamaModel) -> None:
    group = group_of(model, thread_worker(model, "engine", dies=True))
    with pytest.raises(WorkerDied, match=r"^no engine is left; the last one: engine: was lost$"):
        list(group.generate((ask(n, random_prompt(20, n), 4) for n in range(1000)), refuse))
    group.close()


def test_an_engine_that_cannot_start_is_reported_with_the_first_line_of_its_error() -> None:
    class Startless(Worker):
        def start(self) -> str:
            raise OSError("no process\nan Error: in the text below")

    replies: SimpleQueue[tuple[Worker, Any]] = SimpleQueue()
    worker = Startless()
    threading.Thread(target=worker.run, args=(replies,), daemon=True).start()
    _, error = replies.get(timeout=60)
    assert type(error) is WorkerDied
    assert str(error) == "no process"


def test_an_engine_that_hangs_while_it_loads_is_started_again(model: LlamaModel) -> None:
    worker = thread_worker(model, "engine", hangs=1)
    group = group_of(model, worker, stall_timeout_s=0.3)
    assert worker.starts >= 2
    group.close()


def test_an_engine_that_cannot_load_is_given_up_if_another_works(model: LlamaModel, tmp_path: Path) -> None:
    good, bad = thread_worker(model, "good"), thread_worker(LlamaModel(path=str(tmp_path / "absent")), "bad")
    bad.paused = True
    group = group_of(model, good, bad)
    bad.paused = False

    assert len(list(group.generate(requests(), refuse))) == 12
    assert bad.starts == 1
    assert not group.usable
    group.close()


def test_if_the_first_engine_cannot_load_its_error_is_raised(model: LlamaModel, tmp_path: Path) -> None:
    workers = [thread_worker(LlamaModel(path=str(tmp_path / "absent")), f"engine {n}") for n in range(2)]
    with pytest.raises(CheckpointError, match="there is no such directory"):
        group_of(model, *workers)
    assert all(worker.lost for worker in workers)


def test_samples_of_a_prompt_send_its_source_once_and_none_is_returned(model: LlamaModel) -> None:
    """A remote engine drafts from the source it was sent."""
    worker = thread_worker(model, "engine")
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
        worker.sent.clear()
        answers = list(group.generate(asked, refuse))
        sent = [content for kind, content in worker.sent if kind == "add"]
        found = [pickle.loads(pickle.dumps(source)) for _, source in sent if source is not None]
        assert found == sources
        assert all(request.source == NO_SOURCE for request, _ in sent)
        assert [answer.request for answer in sorted(answers, key=lambda a: str(a.request.key))] == asked
    group.close()


def test_an_engine_makes_the_patch_of_its_answer_from_the_source_that_it_was_sent(model: LlamaModel) -> None:
    """The prefill is a whole patch, so that the text of a random model adds nothing to it."""
    worker = thread_worker(model, "engine")
    group = group_of(model, worker)
    source, prompt = source_of(PROMPT), random_prompt(40, 0)
    diff = (
        "--- a/office/report.py\n+++ b/office/report.py\n@@ -1 +1 @@\n-def render(calendar):\n+def show(calendar):\n"
    )
    plain = replace(ask("plain", prompt, 4), source=source)
    patched = replace(
        plain,
        key="patched",
        makes_patch=True,
        stop_params=replace(plain.stop_params, prefill=f"<patch>\n{diff}</patch>\n"),
    )
    again = replace(patched, key="again", edit_format="search_replace")
    answers = {str(a.request.key): a for a in group.generate([plain, patched, again], refuse)}
    sent = [content[1] for kind, content in worker.sent if kind == "add"]
    assert sent == [source, None, None]
    assert answers["plain"].patch is None
    forms: dict[str, EditFormat | None] = {"patched": None, "again": "search_replace"}
    for key, form in forms.items():
        made = answers[key].patch
        assert made == make_patch(patched.stop_params.prefill + answers[key].text, source.files, form)
        assert "+def show(calendar):" in made.patch
    group.close()


def test_figures_are_not_merged_for_each_record(model: LlamaModel) -> None:
    group = group_of(model, thread_worker(model, "engine"))
    list(group.generate(requests(2), refuse))
    assert group.figures()["forward_passes"] > 0
    assert calls_of(merged_figures.__code__, lambda: [group.figures() for _ in range(1000)]) < 500
    group.close()


@pytest.mark.parametrize("error", [TypeError("none"), EOFError("cut short"), ConnectionResetError("by a server")])
def test_an_error_in_an_engine_is_reported_in_one_line(model: LlamaModel, error: Exception) -> None:
    """A malformed command stands for any failure inside a step. Some types are those of a closed pipe, too."""
    ours, theirs = Pipe()
    ours.send_bytes(pickle.dumps([("add", Failing(error))]))
    serve(theirs, model, options(), 1)
    theirs.close()
    found = pickle.loads(ours.recv_bytes())
    assert type(found) is WorkerDied
    assert str(found) == f"{type(error).__name__}: {error}"


def test_an_engine_ends_when_its_parent_has_closed_the_pipe(
    model: LlamaModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Before it answers, and while it waits for the next call."""
    for calls in (0, 1):
        ours, theirs = Pipe()
        for _ in range(calls):
            ours.send_bytes(pickle.dumps([]))
        ours.close()
        serve(theirs, model, options(), 1)
        theirs.close()
    assert "the engine ended" not in caplog.text


@dataclass(frozen=True)
class Failing:
    """Cannot be unpacked."""

    error: Exception

    def __iter__(self) -> Iterator[Any]:
        raise self.error


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("unloadable", "an engine cannot load it: ModuleNotFoundError: No module named 'absent'"),
        ("unpicklable", "several engines need one that can be pickled: it holds a lock"),
    ],
)
def test_a_drafter_that_does_not_reach_an_engine_is_an_error_and_the_engine_goes_on(
    kind: str, why: str, model: LlamaModel
) -> None:
    worker = thread_worker(model, "engine")
    group = group_of(model, worker)
    drafter = Unloadable() if kind == "unloadable" else Unpicklable()
    drafted = [replace(request, drafter=drafter) for request in requests(2)]
    with pytest.raises(ConfigError, match=rf"^decoding\.drafter: {why}$"):
        list(group.generate(drafted, refuse))
    assert len(list(group.generate(requests(2), refuse))) == 2
    assert worker.starts == 1
    group.close()


class Unpicklable:
    """A drafter that refuses to be pickled with an error of its own."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise RuntimeError("it holds a lock\nand a file")

    def create(self, prompt_ids: Sequence[int], files: Mapping[str, str], codec: Any) -> Any:
        raise NotImplementedError


class Unloadable:
    """A drafter whose module is missing in the engine's process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return importlib.import_module, ("absent",)

    def create(self, prompt_ids: Sequence[int], files: Mapping[str, str], codec: Any) -> Any:
        raise NotImplementedError
