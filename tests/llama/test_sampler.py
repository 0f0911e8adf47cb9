"""Sampled tokens follow the requested distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import torch
    from scipy import stats

    from swe_infer.llama.sampler import Sampler, SamplingParams, uniform

VOCABULARY = 600


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 2 * torch.randn(5, VOCABULARY, generator=torch.Generator().manual_seed(0))


def many(row: torch.Tensor, temperature: float, top_p: float | None, count: int = 6000) -> torch.Tensor:
    """Counts of the tokens that ``count`` seeds sample from one row."""
    params = [SamplingParams(temperature, top_p, seed, 0) for seed in range(count)]
    tokens = Sampler()(row.expand(count, -1), params)
    return torch.bincount(torch.tensor(tokens), minlength=len(row))


def nucleus(row: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The definition: the smallest set of most likely tokens whose mass reaches ``top_p``, renormalised."""
    probabilities = (row.double() / temperature).softmax(-1)
    order = probabilities.argsort(descending=True)
    mass = 0.0
    kept = torch.zeros_like(probabilities)
    for token in order.tolist():
        if mass >= top_p:
            break
        kept[token] = probabilities[token]
        mass += float(probabilities[token])
    return kept / kept.sum()


def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Chi-square test of counts against probabilities, with rare tokens merged."""
    total = int(counts.sum())
    often = expected * total >= 5
    seen = [*counts[often].tolist(), int(counts[~often].sum())]
    wanted = [*(expected[often] * total).tolist(), float(expected[~often].sum()) * total]
    if wanted[-1] < 1e-9:
        seen, wanted = seen[:-1], wanted[:-1]
    return float(stats.chisquare(seen, wanted).pvalue)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature_gives_the_softmax(logits: torch.Tensor, temperature: float) -> None:
    expected = (logits[0].double() / temperature).softmax(-1)
    assert p_value(many(logits[0], temperature, None), expected) > 1e-3


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_nucleus_and_nothing_else(logits: torch.Tensor, top_p: float) -> None:
    expected = nucleus(logits[1], 1.0, top_p)
    counts = many(logits[1], 1.0, top_p)
    assert not counts[expected == 0].any()
    if int((expected > 0).sum()) > 1:
        assert p_value(counts, expected) > 1e-3


def test_a_flat_row_needs_more_than_the_first_candidates() -> None:
    expected = nucleus(torch.linspace(0, 0.1, VOCABULARY), 1.0, 0.9)
    counts = many(torch.linspace(0, 0.1, VOCABULARY), 1.0, 0.9, count=20000)
    assert int((counts > 0).sum()) > 500
    assert not counts[expected == 0].any()


def test_temperature_zero_is_the_most_likely_token(logits: torch.Tensor) -> None:
    params = [SamplingParams(0.0, 0.5, seed, 3) for seed in range(5)]
    assert Sampler()(logits, params) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [None, 0.5])
def test_the_smallest_temperature_is_nearly_zero(logits: torch.Tensor, top_p: float | None) -> None:
    assert Sampler()(logits, [SamplingParams(5e-324, top_p, 0, 0)] * 5) == logits.argmax(-1).tolist()


def test_the_smallest_nucleus_is_the_most_likely_token(logits: torch.Tensor) -> None:
    params = [SamplingParams(1.0, 1e-9, seed, 3) for seed in range(5)]
    assert Sampler()(logits, params) == logits.argmax(-1).tolist()


def test_a_row_samples_the_same_in_any_batch(logits: torch.Tensor) -> None:
    params = [
        SamplingParams(0.0, None, 1, 0),
        SamplingParams(1.0, None, 2, 1),
        SamplingParams(0.7, 0.9, 3, 2),
        SamplingParams(1.3, 0.99, 4, 3),
    ]
    together = Sampler()(logits[:4], params)
    assert together == [Sampler()(logits[i : i + 1], [draw])[0] for i, draw in enumerate(params)]
    assert together[::-1] == Sampler()(logits[:4].flip(0), params[::-1])


def test_a_row_samples_the_same_in_any_chunk() -> None:
    """With more logits than are sampled at once."""
    logits = 8 * torch.randn(110, 1 << 16, generator=torch.Generator().manual_seed(0))
    params = [SamplingParams(0.9, (None, 0.9)[row % 2], row, 0) for row in range(len(logits))] * 2
    together = Sampler()(logits.repeat(2, 1), params)
    assert together[:110] == together[110:]
    assert together[:110:9] == [Sampler()(logits[i : i + 1], [params[i]])[0] for i in range(0, 110, 9)]


def test_seed_and_index_both_decide() -> None:
    numbers = {uniform(seed, index) for seed in range(100) for index in range(100)}
    assert len(numbers) == 10_000
    assert float(stats.kstest(sorted(numbers), "uniform").pvalue) > 1e-3
    assert uniform(2**63 - 1, 5) == uniform(2**63 - 1, 5)
