"""Small random Llama checkpoints and a byte-level BPE tokenizer, written by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

__all__ = [
    "CORPUS",
    "Difference",
    "first_difference",
    "greedy_tokens",
    "make_checkpoint",
    "make_family_checkpoint",
    "make_tokenizer",
    "make_variant",
    "reference",
]

CORPUS = (
    "def add(left, right):\n    return left + right\n",
    "class Queue:\n    def __init__(self) -> None:\n        self.items = []\n",
    "diff --git a/src/queue.py b/src/queue.py\n--- a/src/queue.py\n+++ b/src/queue.py\n@@ -1,3 +1,4 @@\n",
    "<patch>\n</patch>\n```diff\n```\nThe issue: naïve façades, 東京, emoji 🙂 and tabs\t\tend here.\n",
)


_SMALL: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}


def make_tokenizer(directory: Path, *, bos: bool = True, vocab_size: int = 400) -> Any:
    """Train a byte-level BPE tokenizer and save it to ``directory``. Prompts begin with ``<s>`` if ``bos``."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS * 4, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
        )
    factory: Any = PreTrainedTokenizerFast
    tokenizer = factory(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.save_pretrained(str(directory))
    return tokenizer


def make_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    tokenizer: bool = True,
    **config: Any,
) -> Path:
    """Save a Llama model with some ten thousand parameters; the wide initialization separates the logits.

    Args:
        config: passed to ``transformers.LlamaConfig``.
    """
    _quiet()
    torch.manual_seed(seed)
    model: Any = LlamaForCausalLM(LlamaConfig(**{**_SMALL, **config}))
    model.to(dtype)
    model.save_pretrained(str(directory), max_shard_size=shard_size)
    if tokenizer:
        make_tokenizer(directory)
    return directory


def make_variant(directory: Path, name: str) -> Path:
    """Save a model with other heads or positions: ``plain``, ``multi_head`` or ``dynamic_rope``."""
    variants: dict[str, dict[str, Any]] = {
        "plain": {},
        "multi_head": {"num_key_value_heads": 4, "head_dim": 24},
        "dynamic_rope": {"max_position_embeddings": 256, "rope_scaling": {"type": "dynamic", "factor": 8.0}},
    }
    return make_checkpoint(directory, **variants[name])


def make_family_checkpoint(directory: Path, model_type: str, *, seed: int = 0, **config: Any) -> Path:
    """Save a small model of a family related to Llama. Norms and biases are random too, so that each matters.

    Args:
        model_type: of ``transformers.AutoConfig``.
        config: passed to the family's configuration.
    """
    _quiet()
    torch.manual_seed(seed)
    values = {**_SMALL, **config}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.uniform_(parameter.data, 0.5, 1.5) if "norm" in name else parameter.data.normal_(std=0.2)
    model.save_pretrained(str(directory))
    make_tokenizer(directory)
    return directory


def reference(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The checkpoint, loaded by transformers."""
    _quiet()
    loader: Any = AutoModelForCausalLM
    return loader.from_pretrained(str(directory), dtype=dtype).eval()


def greedy_tokens(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """What transformers' ``model`` generates greedily; it continues after an end token."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt], device=model.device)
    generated = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
    )
    tokens: list[int] = generated[0, len(prompt) :].tolist()
    return tokens


@dataclass(frozen=True, slots=True)
class Difference:
    """The first token at which our greedy answer and transformers' differ.

    Args:
        place: its index in both answers.
        gap: exact logit of our token minus that of transformers' token.
        error: the largest error of transformers' logits there.
    """

    place: int
    gap: float
    error: float

    @property
    def near_tie(self) -> bool:
        """Whether the error of transformers' logits, in each of the two, explains the difference."""
        return abs(self.gap) <= 2 * self.error


def first_difference(
    prompt: Sequence[int], ours: Sequence[int], theirs: Sequence[int], model: Any, exact: Any
) -> Difference | None:
    """Return the first difference of two greedy answers to a prompt, or None if they are equal.

    Args:
        model: transformers' model that gave ``theirs``.
        exact: the same model in a wider type.
    """
    place = next((at for at, (our, their) in enumerate(zip(ours, theirs, strict=True)) if our != their), None)
    if place is None:
        return None
    ids = torch.tensor([[*prompt, *ours[:place]]], device=model.device)
    with torch.no_grad():
        exact_logits, rounded_logits = (each(ids, logits_to_keep=1).logits[0, -1].double() for each in (exact, model))
    gap = exact_logits[ours[place]] - exact_logits[theirs[place]]
    return Difference(place, float(gap), float((rounded_logits - exact_logits).abs().max()))


def _quiet() -> None:
    hush: Any = transformers_logging.disable_progress_bar
    hush()
