"""Batch invariance of outputs in bfloat16.

With our own kernels, and with matrix libraries that sum a row the same way in every batch, all outputs are equal.
Elsewhere some may differ; the tests assert that few do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from swe_infer.llama.sequence import GenerationRequest

if TYPE_CHECKING:
    import torch

    from swe_infer.llama.model import LlamaForCausalLM
    from swe_infer.llama.native.kernels import load_kernels
    from tests.llama.helpers import ask, engine_of, generate, load, random_prompt
    from tests.support.checkpoints import make_checkpoint

MIN_EQUAL = 0.6
"""Minimum share of equal outputs anywhere: a wrong key or mask changes nearly all."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Head dimension 96: its root is not a power of two, so scaling rounds."""
    return make_checkpoint(tmp_path_factory.mktemp("bf16"), head_dim=96)


def requests() -> list[GenerationRequest]:
    made = []
    for index, length in enumerate((3, 40, 257, 120, 511, 64)):
        prompt = random_prompt(length, index)
        made.append(ask(f"greedy{index}", prompt, 24))
        made.append(ask(f"sampled{index}", prompt, 24, temperature=0.8, top_p=0.9, seed=index))
    return made


def answers(directory: Path, asked: list[GenerationRequest], **options: int) -> dict[str, tuple[int, ...]]:
    engine = engine_of(directory, dtype="bfloat16", **options)
    return {key: answer.token_ids for key, answer in generate(engine, asked).items()}


@pytest.fixture(scope="module")
def alone(directory: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for request in requests():
        found |= answers(directory, [request], max_sequences=1, max_batch_tokens=4096)
    return found


def products_are_batch_invariant() -> bool:
    """Whether this machine's bfloat16 products give a row the same bits in every batch."""
    if not isinstance(load_kernels(torch.bfloat16), str):
        return True
    generator = torch.Generator().manual_seed(0)
    x_TE = torch.randn(64, 512, generator=generator).bfloat16()
    weight = torch.randn(96, 512, generator=generator).bfloat16()
    whole = torch.nn.functional.linear(x_TE, weight)
    return all(torch.equal(torch.nn.functional.linear(x_TE[:rows], weight), whole[:rows]) for rows in (8, 9, 24))


@pytest.mark.parametrize(
    ("batch", "budget", "drafter"),
    [(64, 4096, "none"), (5, 100, "none"), (3, 333, "none"), (16, 512, "suffix"), (1, 4096, "suffix")],
)
def test_outputs_do_not_depend_on_the_batch(
    directory: Path, alone: dict[str, tuple[int, ...]], batch: int, budget: int, drafter: str
) -> None:
    """With batches, chunks, and drafts, which give a sequence several rows."""
    asked = [replace(request, drafter=drafter) for request in requests()]  # type: ignore[arg-type]
    found = answers(directory, asked, max_sequences=batch, max_batch_tokens=budget)
    equal = sum(found[key] == alone[key] for key in alone) / len(alone)
    assert equal == 1.0 if products_are_batch_invariant() else equal >= MIN_EQUAL


def test_samples_decoded_together_equal_samples_decoded_alone(directory: Path) -> None:
    """Attention reads the shared prompt once, in groups that change as samples end."""
    prompts = [random_prompt(length, length) for length in (300, 130)]
    asked = [ask((i, n), p, 8 + 9 * n, temperature=1.0, seed=n) for i, p in enumerate(prompts) for n in range(4)]
    together = answers(directory, asked, max_sequences=16, max_batch_tokens=512)
    engine = engine_of(directory, dtype="bfloat16", max_sequences=1)
    single = {key: a.token_ids for request in asked for key, a in generate(engine, [request]).items()}
    equal = sum(together[key] == single[key] for key in single) / len(single)
    assert equal == 1.0 if products_are_batch_invariant() else equal >= MIN_EQUAL


def test_packed_weights_give_the_same_logits(directory: Path) -> None:
    plain, packed = load(directory, torch.bfloat16), load(directory, torch.bfloat16)
    packed.pack()
    ids_BL = torch.tensor([random_prompt(33, 1)])
    torch.testing.assert_close(packed(ids_BL), plain(ids_BL), atol=0.05, rtol=0.05)


def test_other_types_are_not_packed(directory: Path) -> None:
    model: LlamaForCausalLM = load(directory, torch.float64)
    model.pack()
    assert model.lm_head.weight.numel() > 0
