"""The runner with a real checkpoint: outcomes, usage, stops, and sharing within a sweep."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from swe_infer.errors import CheckpointError, ConfigError
from swe_infer.llama.pool import EnginePool
from swe_infer.runners.base import ProcessResources, RequestStream, RunContext
from swe_infer.runners.llama import LlamaRunner
from swe_infer.types import Completion, Decoding, Failure, LlamaModel, Outcome, Prompt, Request, Skip, sample_seed

if TYPE_CHECKING:
    from swe_infer.llama.drafting import DraftSource
    from swe_infer.llama.engine import EngineOptions
    from swe_infer.runners.llama_requests import engine_requests
    from tests.llama.helpers import ask, engine_of, generate
    from tests.support.checkpoints import make_checkpoint, reference

TEXT = "def add(left, right):\n    return left + right\n"


def runner_of(directory: Path, decoding: Decoding | None = None, **options: Any) -> LlamaRunner:
    model = {
        key: options.pop(key)
        for key in ("context_window", "prompt_format", "peft_path", "thinking")
        if key in options
    }
    options.setdefault("kv_cache_gb", 0.01)
    return LlamaRunner(
        model=LlamaModel(path=str(directory), **model), decoding=decoding or Decoding(max_new_tokens=8), **options
    )


def requests_of(runner: LlamaRunner, texts: dict[str, str]) -> list[Request]:
    decoding = runner.decoding
    return [Request(i, s, Prompt(None, text), decoding) for i, text in texts.items() for s in range(decoding.n)]


def run(runner: LlamaRunner, requests: Any, stop: threading.Event | None = None) -> dict[tuple[str, int], Outcome]:
    found: dict[tuple[str, int], Outcome] = {}

    def keep(request: Request, outcome: Outcome) -> None:
        assert request.key not in found
        found[request.key] = outcome

    runner.generate(requests, keep, stop or threading.Event())
    return found


def context(resources: ProcessResources, directory: Path) -> RunContext:
    return RunContext(directory, "run", Decimal(0), directory / "ledger", resources)


def test_an_answer_has_its_text_usage_and_cost(checkpoint: Path) -> None:
    runner = runner_of(checkpoint)
    runner.check()
    assert runner.context_window == 1024
    outcome = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    assert isinstance(outcome, Completion)
    tokens = runner.token_counter()(Prompt(None, TEXT))
    assert runner.token_counter().exact
    assert (outcome.usage.input_tokens, outcome.usage.output_tokens) == (tokens, 8)
    assert outcome.finish_reason == "length"
    assert outcome.cost_usd == 0
    assert outcome.latency_s > 0
    assert outcome.details["forward_passes"] == 8
    json.dumps(dict(outcome.details))


def test_greedy_text_equals_that_of_transformers(checkpoint: Path) -> None:
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(checkpoint))
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    model = reference(checkpoint)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=30)
    expected = tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)
    runner = runner_of(checkpoint, Decoding(max_new_tokens=30))
    outcome = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    assert isinstance(outcome, Completion)
    assert outcome.text == expected


def test_a_prompt_beyond_the_window_is_skipped_and_others_complete(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, context_window=100)
    found = run(runner, requests_of(runner, {"a": TEXT, "long": TEXT * 30, "b": "class Queue:"}))
    skipped = found["long", 0]
    assert isinstance(skipped, Skip)
    assert skipped.reason == "ContextOverflow"
    assert "context window holds 100" in skipped.message
    assert isinstance(found["a", 0], Completion)
    assert isinstance(found["b", 0], Completion)


def test_a_prompt_beyond_the_cache_is_skipped_with_that_reason(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, kv_cache_gb=0.0001)
    skipped = run(runner, requests_of(runner, {"long": TEXT * 30}))["long", 0]
    assert isinstance(skipped, Skip)
    assert "key-value cache holds" in skipped.message


def test_an_output_that_reaches_the_window_ends_by_length(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, Decoding(max_new_tokens=500), context_window=40)
    outcome = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    assert isinstance(outcome, Completion)
    assert outcome.finish_reason == "length"
    assert outcome.usage.input_tokens + outcome.usage.output_tokens == 40


def test_ids_outside_the_vocabulary_fail_only_their_instance(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, vocab_size=300)  # the tokenizer has 400
    runner = runner_of(directory)
    found = run(runner, requests_of(runner, {"bad": "def add(left, right): self.items", "good": "q"}))
    failed = found["bad", 0]
    assert isinstance(failed, Failure)
    assert "vocabulary" in failed.message
    assert isinstance(found["good", 0], Completion)


def test_a_prompt_that_cannot_be_encoded_fails_only_its_instance(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, Decoding(n=2, max_new_tokens=4))
    texts = {f"good {n}": f"{TEXT * (n + 1)}" for n in range(4)}
    requests = requests_of(runner, texts)
    requests[3:3] = requests_of(runner, {"bad": "def f(): return '\udce9'"})
    found = run(runner, requests)
    assert len(found) == 10
    for (instance_id, _), outcome in found.items():
        assert isinstance(outcome, Failure if instance_id == "bad" else Completion), outcome


def test_requests_keep_their_order_and_are_read_one_ahead(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, Decoding(n=2))
    engine = EnginePool().get(runner.model, EngineOptions(kv_cache_gb=0.01))
    requests = requests_of(runner, {str(n): TEXT * (40 - n) for n in range(20)})
    read: list[Request] = []

    def reading() -> Iterator[Request]:
        for request in requests:
            read.append(request)
            yield request

    done: list[int] = []
    stream = RequestStream(
        reading(), lambda request, outcome: None, threading.Event(), lambda: done.append(stream.in_flight)
    )
    converted = engine_requests(engine, [stream])
    sources: list[DraftSource] = []
    for number, expected in enumerate(requests):
        found = next(converted)
        assert found.key == (0, *expected.key)
        assert found.source.prompt == expected.prompt
        assert (found.source is sources[-1]) == (number % 2 == 1) if sources else number == 0
        sources.append(found.source)
        assert len(read) <= number + 2
        assert stream.in_flight == 1, "the one read ahead is not in flight"
        stream.deliver(expected.key, Skip("ContextOverflow", "too long"))
        assert stream.done == (number + 1 == len(requests))
    assert done == [0]
    assert next(converted, None) is None


def test_samples_differ_are_reproducible_and_share_the_prompt(checkpoint: Path) -> None:
    decoding = Decoding(temperature=1.5, max_new_tokens=20, n=3, seed=7)
    found = []
    for _ in range(2):
        runner = runner_of(checkpoint, decoding)
        found.append(run(runner, requests_of(runner, {"a": TEXT * 4, "b": "class"})))
    texts = [{key: o.text for key, o in f.items() if isinstance(o, Completion)} for f in found]
    assert texts[0] == texts[1]
    assert len(set(texts[0].values())) == 6
    shared = [o.usage.cached_input_tokens for o in found[0].values() if isinstance(o, Completion)]
    assert max(shared) >= 32


def test_a_shard_gives_the_same_samples_as_the_whole(checkpoint: Path) -> None:
    decoding = Decoding(temperature=1.0, max_new_tokens=12, seed=3)
    texts = {name: TEXT * (i + 1) for i, name in enumerate("abcdef")}
    whole_runner = runner_of(checkpoint, decoding)
    whole = run(whole_runner, requests_of(whole_runner, texts))
    parts: dict[tuple[str, int], Outcome] = {}
    for names in ("ace", "fdb"):
        runner = runner_of(checkpoint, decoding, max_sequences=2)
        parts.update(run(runner, requests_of(runner, {name: texts[name] for name in names})))
    assert {k: o.text for k, o in parts.items() if isinstance(o, Completion)} == {
        k: o.text for k, o in whole.items() if isinstance(o, Completion)
    }


def test_stop_strings_of_the_decoding_end_the_output(checkpoint: Path) -> None:
    runner = runner_of(checkpoint, Decoding(max_new_tokens=40))
    whole = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    assert isinstance(whole, Completion)
    piece = whole.text[4:6]
    runner = runner_of(checkpoint, Decoding(max_new_tokens=40, stop=(piece,)))
    cut = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    assert isinstance(cut, Completion)
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(piece)]


def test_requests_are_read_as_capacity_allows_and_not_after_a_stop(checkpoint: Path) -> None:
    stop = threading.Event()
    runner = runner_of(checkpoint, Decoding(max_new_tokens=4), max_sequences=2)
    read = []

    def endless() -> Iterator[Request]:
        for index in range(1000):
            read.append(index)
            yield Request(str(index), 0, Prompt(None, TEXT), runner.decoding)

    done: list[str] = []

    def keep(request: Request, outcome: Outcome) -> None:
        assert isinstance(outcome, Completion)
        done.append(request.instance_id)
        if len(done) == 3:
            stop.set()

    runner.generate(endless(), keep, stop)
    assert 3 <= len(done) <= 5
    assert len(read) <= len(done) + 3, "two are encoded ahead, and one is compared with those of other runs"


def test_a_prompt_whose_encoding_was_abandoned_is_encoded_again(checkpoint: Path) -> None:
    """The last of many was still waiting for the thread that encodes."""
    engine = engine_of(checkpoint)
    sources = [DraftSource(Prompt(None, TEXT * 12 + str(number))) for number in range(50)]
    requests = [replace(ask(number, (), 4), source=source) for number, source in enumerate(sources)]
    for request in requests:
        engine.add_request(request)
    engine.abandon()
    assert not engine.busy
    assert generate(engine, requests[-1:]).keys() == {"49"}


def test_a_stop_does_not_wait_for_the_encoding_of_a_prompt(checkpoint: Path) -> None:
    engine, stop, released, encoded = engine_of(checkpoint), threading.Event(), threading.Event(), threading.Event()

    class LongPrompt(Prompt):
        @property
        def text(self) -> str:
            stop.set()
            released.wait(60)
            encoded.set()
            return TEXT

    request = replace(ask("a", (), 4), source=DraftSource(LongPrompt(None, TEXT)))
    assert list(engine.generate([request], lambda *_: None, stop)) == []
    assert not encoded.is_set()
    released.set()


def test_an_interrupted_run_leaves_an_engine_that_works(checkpoint: Path, tmp_path: Path) -> None:
    runner = runner_of(checkpoint)
    runner.bind(context(ProcessResources(), tmp_path))

    def interrupt(request: Request, outcome: Outcome) -> None:
        raise KeyboardInterrupt

    requests = requests_of(runner, {"a": TEXT, "b": TEXT * 3})
    with pytest.raises(KeyboardInterrupt):
        runner.generate(requests, interrupt, threading.Event())
    again = run(runner, requests)
    assert set(again) == {("a", 0), ("b", 0)}
    assert all(isinstance(outcome, Completion) for outcome in again.values())


def test_a_replaced_engine_is_freed(checkpoint: Path) -> None:
    """Loaded objects are exempt from garbage collection, so an engine must not be part of a reference cycle."""
    engines, model = EnginePool(), LlamaModel(path=str(checkpoint))
    first = weakref.ref(engines.get(model, EngineOptions(kv_cache_gb=0.01)))
    engines.get(model, EngineOptions(kv_cache_gb=0.02))
    assert first() is None


def test_the_jobs_of_a_sweep_load_once_and_compute_each_prompt_once(checkpoint: Path, tmp_path: Path) -> None:
    resources = ProcessResources()
    texts = {name: name + TEXT * 6 for name in "abcd"}
    shared: list[dict[tuple[str, int], str]] = []
    alone: list[dict[tuple[str, int], str]] = []
    for temperature in (0.0, 0.5, 1.0):
        decoding = Decoding(temperature=temperature, max_new_tokens=10)
        for held, found in ((resources, shared), (ProcessResources(), alone)):
            runner = runner_of(checkpoint, decoding)
            runner.bind(context(held, tmp_path))
            outcomes = run(runner, requests_of(runner, texts))
            found.append({key: o.text for key, o in outcomes.items() if isinstance(o, Completion)})
            rate = runner.stats()["cache_hit_rate"]
            assert rate > 0.7 if held is resources and temperature > 0 else rate == 0
    assert shared == alone


def test_a_model_default_decoding_follows_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    decoding = Decoding(temperature=None, max_new_tokens=12)
    runner = runner_of(directory, decoding)
    greedy = run(runner, requests_of(runner, {"a": TEXT}))["a", 0]
    plain = runner_of(directory, Decoding(max_new_tokens=12))
    assert isinstance(greedy, Completion)
    assert run(plain, requests_of(plain, {"a": TEXT}))["a", 0].text == greedy.text  # type: ignore[union-attr]
    (directory / "generation_config.json").write_text(
        '{"do_sample": true, "temperature": 1.9, "eos_token_id": [2, 5]}'
    )
    sampling = runner_of(directory, decoding)
    sampled = run(sampling, requests_of(sampling, {"a": TEXT}))["a", 0]
    assert isinstance(sampled, Completion)
    assert sampled.text != greedy.text


def test_a_missing_checkpoint_is_refused_by_the_check(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.path=.*there is no such directory"):
        runner_of(tmp_path / "nowhere").check()


def test_an_unknown_architecture_is_refused_by_the_check(checkpoint: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**raw, "architectures": ["GemmaForCausalLM"]}))
    with pytest.raises(CheckpointError, match="GemmaForCausalLM"):
        runner_of(directory).check()


def test_thinking_and_chat_need_a_template_which_the_check_knows(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.thinking: only a chat template can use it"):
        runner_of(checkpoint, thinking="off").check()
    with pytest.raises(ConfigError, match="has no chat template"):
        runner_of(checkpoint, prompt_format="chat").check()


def test_a_missing_adapter_is_refused_by_the_check(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.peft_path=.*there is no such directory"):
        runner_of(checkpoint, peft_path=str(tmp_path / "nowhere")).check()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_tokens": 0}, r"runner\.max_batch_tokens=0"),
        ({"max_sequences": 0}, r"runner\.max_sequences=0"),
        ({"kv_cache_gb": 0.0}, r"runner\.kv_cache_gb=0\.0"),
    ],
)
def test_a_bad_option_is_a_configuration_error(checkpoint: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        runner_of(checkpoint, **options)


def test_a_configuration_is_checked_without_torch(checkpoint: Path) -> None:
    code = (
        "import sys\n"
        "from swe_infer.runners.llama import LlamaRunner\n"
        "from swe_infer.types import Decoding, LlamaModel\n"
        "runner = LlamaRunner(model=LlamaModel(path=sys.argv[1]), decoding=Decoding())\n"
        "runner.check()\n"
        "from swe_infer.types import Prompt\n"
        "runner.token_counter()(Prompt(None, 'def f'))\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(checkpoint)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_seeds_belong_to_instance_and_sample() -> None:
    decoding = Decoding(temperature=1.0, seed=3)
    seeds = {sample_seed(decoding, instance, sample) for instance in "abc" for sample in range(5)}
    assert len(seeds) == 15
