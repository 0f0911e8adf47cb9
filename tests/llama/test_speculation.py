"""Drafts change the number of steps and never an output: greedy and sampled, in any batch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from swe_infer.llama.drafting.gain import MAX_DRAFT
from swe_infer.llama.sequence import GenerationRequest, RequestOutput
from swe_infer.llama.sequence import Sequence as EngineSequence
from swe_infer.llama.stopping import StopCriteria
from swe_infer.llama.tokenizer import LlamaTokenizer

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.engine import Engine
    from swe_infer.llama.sampler import Sampler, SamplingParams
    from tests.llama.helpers import ask, engine_of, random_prompt, with_constant_step_cost
    from tests.support.checkpoints import make_checkpoint, make_variant


@pytest.fixture(
    scope="module",
    params=["plain", *(pytest.param(name, marks=pytest.mark.full) for name in ("multi_head", "dynamic_rope"))],
)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_variant(tmp_path_factory.mktemp(request.param), request.param)


@dataclass
class ScriptedDrafter:
    """Drafts a known output with a share of ``mistakes``."""

    answer: Sequence[int]
    mistakes: float
    seed: int
    said: int = 0
    situation = "any"

    def draft(self, limit: int) -> list[int]:
        dice = random.Random(f"{self.seed} {self.said}")
        rest = self.answer[self.said : self.said + dice.randint(0, limit)]
        return [3 + (token + 1) % 390 if dice.random() < self.mistakes else token for token in rest]

    def extend(self, tokens: Sequence[int]) -> None:
        self.said += len(tokens)


def requests() -> list[GenerationRequest]:
    """Greedy and sampled, long and short, with shared prefixes."""
    made, shared = [], random_prompt(300, 99)
    for index, length in enumerate((3, 40, 257, 120, 511, 64)):
        prompt = random_prompt(length, index)
        made.append(ask(f"greedy{index}", prompt, 24))
        made.append(ask(f"sampled{index}", prompt, 24, temperature=0.8, top_p=0.9, seed=index))
        made.append(ask(f"shared{index}", shared + prompt, 16, temperature=1.0, seed=index))
    return made


def run(
    engine: Engine,
    asked: Iterable[GenerationRequest],
    answers: dict[str, tuple[int, ...]] | None = None,
    mistakes: float = 0.2,
) -> dict[str, RequestOutput]:
    """Generate all outputs, by key. With ``answers`` each sequence gets a :class:`ScriptedDrafter`."""
    for place, request in enumerate(asked):
        engine.add_request(request if answers is None else replace(request, drafter="suffix"))
        if answers is not None:
            engine.scheduler.waiting[-1].drafter = ScriptedDrafter(answers[str(request.key)], mistakes, place)
    found: dict[str, RequestOutput] = {}
    while engine.scheduler.busy:
        found |= {str(answer.request.key): answer for answer in engine.step()}
    return found


def tokens(found: dict[str, RequestOutput]) -> dict[str, tuple[int, ...]]:
    return {key: answer.token_ids for key, answer in found.items()}


@pytest.fixture(scope="module")
def plain(directory: Path) -> dict[str, tuple[int, ...]]:
    """The outputs without drafts."""
    return tokens(run(engine_of(directory), requests()))


@pytest.mark.parametrize(("budget", "mistakes"), [(512, 0.0), (37, 0.2), (512, 1.0)])
def test_drafted_outputs_are_the_same(
    directory: Path, plain: dict[str, tuple[int, ...]], budget: int, mistakes: float
) -> None:
    """Drafts of unequal length in one batch, along with prompt chunks."""
    engine = with_constant_step_cost(engine_of(directory, max_batch_tokens=budget, max_sequences=7))
    found = run(engine, requests(), plain, mistakes)
    assert tokens(found) == plain
    assert engine.scheduler.pool.used == 0
    accepted = sum(answer.accepted_tokens for answer in found.values())
    assert accepted == engine.figures()["accepted_tokens"]
    assert (accepted == 0) == (mistakes == 1.0)
    if mistakes == 0.0:
        assert all(answer.accepted_tokens == answer.drafted_tokens for answer in found.values())
    for answer in found.values():
        assert answer.accepted_tokens + answer.steps >= len(answer.token_ids)


def test_drafts_save_steps(directory: Path, plain: dict[str, tuple[int, ...]]) -> None:
    engine = with_constant_step_cost(engine_of(directory, max_sequences=1))
    found = run(engine, requests()[:1], plain, mistakes=0.0)
    (answer,) = found.values()
    assert answer.steps < len(answer.token_ids) / 2


def test_rejected_tokens_never_reach_the_prefix_cache(directory: Path, plain: dict[str, tuple[int, ...]]) -> None:
    """Prompts that continue drafted outputs find exactly their blocks in the cache."""
    engine = with_constant_step_cost(engine_of(directory))
    run(engine, requests(), plain, mistakes=0.5)
    longer = [
        ask(f"again{index}", [*request.prompt_ids, *plain[str(request.key)], *random_prompt(9, index)], 12)
        for index, request in enumerate(requests())
    ]
    engine.reset_stats()
    again = tokens(run(engine, longer))
    if directory.name[:12] != "dynamic_rope":  # long prompts of other lengths share no blocks
        assert engine.figures()["cache_hit_rate"] > 0.8
    assert again == tokens(run(engine_of(directory), longer))


def test_with_preemption(directory: Path) -> None:
    """Five outputs in a cache that has space for two."""
    asked = [ask(i, random_prompt(40, i), 80, temperature=0.7, seed=i) for i in range(5)]
    expected = tokens(run(engine_of(directory), asked))
    engine = with_constant_step_cost(engine_of(directory, cache_tokens=256))
    assert tokens(run(engine, asked, expected, mistakes=0.1)) == expected
    assert engine.figures()["preemptions"] > 0
    assert engine.scheduler.pool.used == 0


def test_an_output_never_exceeds_max_new_tokens(directory: Path) -> None:
    longer = ask("a", random_prompt(20, 5), 40)
    expected = tokens(run(engine_of(directory), [longer]))
    for length in (1, 2, 3, 17):
        asked = replace(longer, stop_params=replace(longer.stop_params, max_new_tokens=length))
        (answer,) = run(with_constant_step_cost(engine_of(directory)), [asked], expected, mistakes=0.0).values()
        assert answer.token_ids == expected["a"][:length]
        assert answer.finish_reason == "length"


def test_where_drafts_fail_everywhere_one_sequence_of_many_has_a_drafter(tmp_path: Path) -> None:
    """At this temperature tokens are nearly uniform, and nothing repeats."""
    directory = make_checkpoint(tmp_path)
    engine = with_constant_step_cost(engine_of(directory, max_sequences=8))
    most = []
    asked = [ask(n, random_prompt(40, n), 30, temperature=50.0, seed=n) for n in range(64)]
    for request in asked:
        engine.add_request(replace(request, drafter="suffix"))
    while engine.scheduler.busy:
        engine.step()
        most.append(sum(sequence.drafter is not None for sequence in engine.scheduler.running))
    assert max(most[:40]) > 1
    assert max(most[-40:]) == 1


def test_the_context_window_ends_an_output_at_the_same_token(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path, max_position_embeddings=64)
    asked = [ask(i, random_prompt(30 + i, i), 100) for i in range(8)]
    expected = tokens(run(engine_of(directory), asked))
    assert tokens(run(with_constant_step_cost(engine_of(directory)), asked, expected, mistakes=0.0)) == expected
    assert [len(expected[str(i)]) for i in range(8)] == [34 - i for i in range(8)]


def test_an_end_token_within_an_accepted_draft_ends_the_output(directory: Path) -> None:
    asked = ask("a", random_prompt(20, 5), 40)
    whole = tokens(run(engine_of(directory), [asked]))["a"]
    end = whole[11]
    first = whole.index(end)
    ending = replace(asked, stop_params=replace(asked.stop_params, end_tokens=frozenset([end])))
    (answer,) = run(with_constant_step_cost(engine_of(directory)), [ending], {"a": whole}, mistakes=0.0).values()
    assert answer.token_ids == whole[: first + 1]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(("kind", "batch", "budget"), [("suffix", 2, 512), ("diff", 16, 61)])
def test_the_drafters_change_no_output(
    directory: Path, plain: dict[str, tuple[int, ...]], kind: Any, batch: int, budget: int
) -> None:
    """In any batch, and again when the outputs are known."""
    engine = with_constant_step_cost(engine_of(directory, max_sequences=batch, max_batch_tokens=budget))
    asked = [replace(request, drafter=kind) for request in requests()]
    assert tokens(run(engine, asked)) == plain
    assert tokens(run(engine, asked[::-1])) == plain
    assert engine.figures()["accepted_tokens"] > 0


@pytest.mark.parametrize("kind", ["diff", "suffix"])
def test_the_drafters_change_no_output_of_preempted_sequences(directory: Path, kind: Any) -> None:
    asked = [ask(i, random_prompt(40, i // 2), 80, temperature=0.7, seed=i // 2) for i in range(6)]
    expected = tokens(run(engine_of(directory), asked))
    engine = with_constant_step_cost(engine_of(directory, cache_tokens=256))
    assert tokens(run(engine, [replace(request, drafter=kind) for request in asked])) == expected
    assert engine.figures()["preemptions"] > 0
    assert engine.figures()["accepted_tokens"] > 0
    assert engine.scheduler.pool.used == 0


def test_earlier_outputs_are_drafted_for_the_same_prompt(directory: Path) -> None:
    """Earlier jobs and samples: an engine that has answered a prompt needs fewer steps for it."""
    engine = with_constant_step_cost(engine_of(directory, max_sequences=1))
    asked = [replace(requests()[1], drafter="suffix")]
    (first,) = run(engine, asked).values()
    (again,) = run(engine, asked).values()
    assert again.token_ids == first.token_ids
    assert again.steps < first.steps / 2


def test_samples_draft_from_unfinished_outputs_of_their_prompt(directory: Path) -> None:
    """A later sample needs fewer steps, though the first has not finished."""
    engine = with_constant_step_cost(engine_of(directory))
    request = replace(requests()[0], drafter="suffix")
    request = replace(request, stop_params=replace(request.stop_params, max_new_tokens=60))
    engine.add_request(replace(request, key="first"))
    found: list[RequestOutput] = []
    for _ in range(45):
        found += engine.step()
    engine.add_request(replace(request, key="second", stop_params=replace(request.stop_params, max_new_tokens=40)))
    while not any(answer.request.key == "second" for answer in found):
        assert not found, "the first output finished too early for the test"
        found += engine.step()
    (second,) = found
    assert second.steps < 30
    assert second.accepted_tokens > 10


def test_an_abandoned_output_is_not_drafted_from(directory: Path) -> None:
    engine = with_constant_step_cost(engine_of(directory))
    engine.add_request(replace(requests()[0], drafter="suffix"))
    for _ in range(6):
        engine.step()
    shared = engine.speculation.prompts.get(requests()[0].prompt_ids)
    assert len(shared.token_indexes()) == 3
    engine.abandon()
    assert len(shared.token_indexes()) == 2


def test_no_drafts_without_a_drafter(directory: Path) -> None:
    engine = engine_of(directory)
    found = run(engine, requests()[:3])
    assert engine.figures()["drafted_tokens"] == 0
    assert all(answer.steps >= len(answer.token_ids) for answer in found.values())


RUNS = 28_000
"""Enough that an error of 0.02 in a share is more than 6.5 standard deviations, at the first position."""
LIMIT = 4.0
"""Maximum deviation in standard deviations: one correct distribution in 2,000 exceeds it in one of its 8 shares, and
an error of 0.02 stays below it at most once in 200 times. Seeds are fixed, so all runs are alike."""


def sampled(top_p: float | None, checkpoint: Path) -> tuple[list[list[float]], list[Counter[int]]]:
    """The model's shares at two positions, and token counts there with a draft of the first token.

    The second position is reached if the draft was accepted, as in most runs.
    """
    logits_2V = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    draft = int(logits_2V[0].argmax())
    logits_2V[0, draft] += 1.5
    params = [SamplingParams(0.9, top_p, seed, place) for seed in range(RUNS) for place in range(2)]
    chosen = Sampler()(logits_2V.repeat(RUNS, 1), params)
    asked = ask("a", [5], 10**6)
    tokenizer = LlamaTokenizer(checkpoint)
    counts: list[Counter[int]] = [Counter(), Counter()]
    for seed in range(RUNS):
        if seed % 500 == 0:
            sequence = EngineSequence(asked, StopCriteria(asked.stop_params, tokenizer, (5,)), limit=10**6, salt=b"")
        taken, _ = sequence.advance(chosen[2 * seed : 2 * seed + 2], [draft])
        assert len(taken) == 1 + (taken[0] == draft)
        for place, token in enumerate(taken):
            counts[place][token] += 1
    return [expected_shares(logits_V, 0.9, top_p) for logits_V in logits_2V], counts


def worst(shares: Sequence[float], counts: Counter[int]) -> float:
    """The largest difference between a token's count and its share, in standard deviations."""
    total = counts.total()
    errors = []
    for token, share in enumerate(shares):
        spread = math.sqrt(max(share * (1 - share), 1e-12) / total)
        errors.append(abs(counts[token] / total - share) / spread)
    return max(errors)


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_sampled_tokens_have_the_model_s_distribution(top_p: float | None, checkpoint: Path) -> None:
    """Drafting changes the probability neither of the drafted token nor of the next. These counts differ from shares
    in which the two most likely tokens are off by 0.02."""
    for shares, counts in zip(*sampled(top_p, checkpoint), strict=True):
        assert worst(shares, counts) <= LIMIT
        first, second = sorted(range(8), key=lambda token: -shares[token])[:2]
        for error in (0.02, -0.02):
            wrong = list(shares)
            wrong[first] += error
            wrong[second] -= error
            assert worst(wrong, counts) > LIMIT


def expected_shares(logits_V: torch.Tensor, temperature: float, top_p: float | None) -> list[float]:
    """A plain implementation of temperature and nucleus sampling."""
    shares = torch.softmax(logits_V.double() / temperature, -1).tolist()
    if top_p is not None:
        kept, mass = set(), 0.0
        for token in sorted(range(len(shares)), key=lambda token: -shares[token]):
            if mass >= top_p:
                break
            kept.add(token)
            mass += shares[token]
        shares = [share / mass if token in kept else 0.0 for token, share in enumerate(shares)]
    return shares


def test_a_draft_is_never_longer_than_the_remaining_output(directory: Path) -> None:
    request = ask("a", random_prompt(20, 1), 10)
    criteria = StopCriteria(request.stop_params, LlamaTokenizer(directory), request.prompt_ids)
    assert EngineSequence(request, criteria, limit=1000, salt=b"").max_draft_tokens == 9
    assert EngineSequence(request, criteria, limit=25, salt=b"").max_draft_tokens == 4
    long = replace(request, stop_params=replace(request.stop_params, max_new_tokens=1000))
    assert EngineSequence(long, criteria, limit=1000, salt=b"").max_draft_tokens == MAX_DRAFT


@dataclass(frozen=True)
class RandomDrafters:
    """A class of the user's own, whose drafts are too long and contain tokens that the model does not have."""

    def create(self, prompt_ids: Sequence[int], files: Any, codec: Any) -> RandomDrafter:
        return RandomDrafter(prompt_ids)


class RandomDrafter:
    situation = None

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._dice = random.Random(len(prompt_ids))

    def draft(self, limit: int) -> list[int]:
        return [self._dice.choice((3, 4, 5, -1, 10**6)) for _ in range(2 * limit)]

    def extend(self, tokens: Sequence[int]) -> None:
        """Nothing is learned."""


def test_a_drafter_of_the_users_own_changes_no_output(directory: Path, plain: dict[str, tuple[int, ...]]) -> None:
    engine = with_constant_step_cost(engine_of(directory))
    assert tokens(run(engine, [replace(request, drafter=RandomDrafters()) for request in requests()])) == plain
    assert engine.figures()["drafted_tokens"] > 0


class Failing:
    """Drafters of the user's own that raise at one of the calls."""

    situation = None

    def __init__(self, where: str) -> None:
        self._where = where

    def create(self, prompt_ids: Sequence[int], files: Any, codec: Any) -> Failing:
        self._fail("create")
        return self

    def draft(self, limit: int) -> list[int]:
        self._fail("draft")
        return []

    def extend(self, tokens: Sequence[int]) -> None:
        self._fail("extend")

    def _fail(self, where: str) -> None:
        if where == self._where:
            raise ValueError(f"cannot {where}")


@pytest.mark.parametrize("where", ["create", "draft", "extend"])
def test_outputs_whose_drafter_raises_go_on_without_drafts_and_are_logged_once(
    where: str, directory: Path, plain: dict[str, tuple[int, ...]], caplog: pytest.LogCaptureFixture
) -> None:
    engine = with_constant_step_cost(engine_of(directory))
    assert tokens(run(engine, [replace(request, drafter=Failing(where)) for request in requests()])) == plain
    why = f"decoding.drafter raised ValueError: cannot {where}; outputs continue without drafts"
    assert [record.getMessage() for record in caplog.records] == [why]


@dataclass(frozen=True)
class Converting:
    """Drafters of the user's own that draft a known output as values of another type."""

    answer: tuple[int, ...]
    convert: Callable[[int], Any]

    def create(self, prompt_ids: Sequence[int], files: Any, codec: Any) -> Any:
        drafter = ScriptedDrafter(self.answer, 0.0, 0)
        own = SimpleNamespace(situation=None, extend=drafter.extend)
        own.draft = lambda limit: [self.convert(token) for token in drafter.draft(limit)]
        return own


@pytest.mark.parametrize("convert", [np.int64, float])
def test_drafts_of_other_number_types_change_neither_outputs_nor_the_types_of_figures(
    convert: Callable[[int], Any], directory: Path, plain: dict[str, tuple[int, ...]]
) -> None:
    engine = with_constant_step_cost(engine_of(directory))
    asked = [replace(each, drafter=Converting(plain[str(each.key)], convert)) for each in requests()]
    answers = run(engine, asked)
    assert tokens(answers) == plain
    assert {type(answer.accepted_tokens) for answer in answers.values()} == {int}
    assert any(answer.accepted_tokens for answer in answers.values()) == (convert is np.int64)
