"""The training script: a short run learns, and goes on from its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.sample_tasks.generator import make

if TYPE_CHECKING:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from benchmarks.train_tiny import Marks, Muon, Settings, Trainer, edited, encode, train

pytestmark = pytest.mark.full  # of a script in benchmarks/


def small(out: Path = Path()) -> Settings:
    return Settings(
        out=out,
        steps=30,
        vocabulary=512,
        hidden=64,
        mlp=128,
        layers=2,
        heads=2,
        kv_heads=1,
        batch=3,
        tokenizer_tasks=200,
        learning_rate=1e-2,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, list[float]]:
    settings = small(tmp_path_factory.mktemp("tiny"))
    return settings, train(settings)


def test_a_short_run_learns(trained: tuple[Settings, list[float]]) -> None:
    losses = trained[1]
    assert len(losses) == 30
    assert losses[0] > 5.5, "about the logarithm of the vocabulary's size"
    assert sum(losses[-5:]) / 5 < 3.8


def test_a_larger_budget_goes_on_from_the_checkpoint(trained: tuple[Settings, list[float]]) -> None:
    settings, losses = trained
    more = train(replace(settings, steps=33))
    assert len(more) == 3
    assert max(more) < 0.7 * losses[0]
    assert Trainer(settings).state.steps == 33


def test_a_run_may_begin_with_the_weights_of_another(trained: tuple[Settings, list[float]], tmp_path: Path) -> None:
    settings, losses = trained
    begun = train(replace(settings, out=tmp_path, start_from=settings.out / "hf", steps=2))
    assert begun[0] < 0.7 * losses[0]
    assert (tmp_path / "tokenizer.json").read_bytes() == (settings.out / "tokenizer.json").read_bytes()


def test_what_is_saved_loads_in_transformers_and_gives_the_same_tokens(
    trained: tuple[Settings, list[float]],
) -> None:
    settings = trained[0]
    trainer = Trainer(settings)
    tokenizer = AutoTokenizer.from_pretrained(settings.out / "hf")
    model = AutoModelForCausalLM.from_pretrained(settings.out / "hf", dtype="auto")
    assert isinstance(model, LlamaForCausalLM)
    assert model.dtype == torch.bfloat16
    task = make("validation", 3)
    tokens, prompt = encode(trainer.tokenizer, task)
    assert tokenizer(task.text)["input_ids"] == tokens[:prompt]
    assert tokenizer.decode(tokens[prompt:], skip_special_tokens=True) == task.patch
    assert tokens[-1] == model.config.eos_token_id


def test_a_line_of_code_has_the_same_tokens_in_prompt_and_patch(trained: tuple[Settings, list[float]]) -> None:
    tokenizer = Trainer(trained[0]).tokenizer
    line = "        total_price += 12 * price[:-3]\n"

    def tokens(before: str) -> list[str]:
        return tokenizer.encode("x\n" + before + line, add_special_tokens=False).tokens

    plain = tokens("-")[tokens("-").index("-") + 1 :]
    for before in ("+", " ", "7 ", "12 "):
        assert tokens(before)[-len(plain) :] == plain


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ([1, 5, 6, 7, 8, 0, 2, 5, 9, 7, 8, 0, 3, 5, 0, 4], [9, 7, 8]),  # replaced, and two tokens after it
        ([1, 5, 6, 7, 0, 2, 5, 6, 9, 0, 4], [9, 0]),  # the line's end is the last of them
        ([1, 5, 6, 7, 0, 2, 5, 7, 0, 4], [7, 0]),  # something was left out
        ([2, 5, 6, 0, 3, 7, 0, 4], []),  # nothing is removed
        ([1, 5, 6, 0, 3, 7, 0, 4], []),  # nothing is added
    ],
)
def test_the_loss_knows_where_an_added_line_leaves_the_removed_one(body: list[int], expected: list[int]) -> None:
    header = [11, 12, 0]
    tokens = header + body
    found = edited(tokens, len(header), Marks(pad=10, newline=0, removed=1, added=2))
    assert tokens[found.start : found.stop] == expected


def test_muon_over_all_matrices_of_a_shape_is_that_of_torch() -> None:
    torch.manual_seed(0)
    shapes = [(8, 24), (24, 8), (8, 24), (16, 16)]
    ours, theirs = ([torch.nn.Parameter(torch.randn(shape)) for shape in shapes] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data.copy_(one.data)
    both = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimiser in both:
            optimiser.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.data, other.data, atol=2e-3, rtol=0)


def test_either_minutes_or_steps_are_given() -> None:
    with pytest.raises(ValueError, match="either minutes or steps"):
        replace(small(), minutes=1.0)
