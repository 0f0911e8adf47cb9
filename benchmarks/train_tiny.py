"""Trains the bundled tiny Llama on generated repair tasks, on a CPU or a GPU.

    python -m benchmarks.train_tiny --out DIR --minutes 80 --threads 1
    python -m benchmarks.train_tiny --out DIR --minutes 6 --batch 256 --workers 14   # on a GPU

A byte-level BPE is trained on the train split first. The loss counts the patch, and some of the prompt at first. Muon
updates hidden matrices, AdamW the rest. The learning rate follows the used share of the budget, in minutes of wall
clock or steps. ``checkpoint.pt`` has the full training state: the same command resumes from it, also with a larger
budget. ``hf/`` is the model in bfloat16 in the format of transformers, with a running average of the weights over
about a hundred steps.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count, islice
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.sample_tasks.generator import Task, generate, make

__all__ = ["Settings", "train"]

Row = tuple[list[int], int]
"""The tokens of a task, and the number of prompt tokens."""

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"

# One token each: the sign of a patch line, the space after a line number and before a path, runs of spaces, a
# newline. So a line of code has the same tokens in prompt and patch. Two digits are one token.
PATTERN = (
    r"(?<=\n)[-+ ]|(?<=\n\d) |(?<=\n\d\d) |(?<=\[start of) |[ _]?[A-Za-z]+|\d{1,2}"
    r"| ?(?:[=!<>+*/-]=|//|@@|\+\+|--)| ?[^\sA-Za-z\d]| +|\n"
)
FIRST_TOKENIZER_TASK = 10_000_000
"""First task for the tokenizer in the train split; the model trains on tasks from 0."""
CHECKPOINT = "checkpoint.pt"
HEADER_WEIGHT = 5.0
"""Loss weight of the hunk header: one number locates the fault, and everything else depends on it."""
EDIT_WEIGHT = 4.0
"""Loss weight of an added line from where it leaves the removed line to two tokens after it rejoins: copying is
learned soon, and where not to copy is what remains."""
POOL = 256
"""Tasks sorted by length together, into batches of similar length; four times as many with large batches."""
REPORT = 50
"""Steps between progress lines, which are the only points where the host waits for a GPU."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One training run, ended by ``minutes`` of wall clock or by ``steps``. ``batch`` is in tasks.

    Args:
        short: number of first tasks with one function per file, so that copying is learned soon; later three of four
            have.
        start_from: directory of a model of the same shape in Hugging Face format, whose weights and tokenizer start a
            run that has no checkpoint.
        workers: processes that create tasks in advance; 0: none.
        tokenizer_tasks: tasks of the train split for training the tokenizer.
        prompt_weight: initial loss weight of a prompt token; it falls to 0 within the first 15 % of the run.
    """

    out: Path
    start_from: Path | None = None
    minutes: float | None = None
    steps: int | None = None
    threads: int = 1
    workers: int = 0
    vocabulary: int = 1536
    tokenizer_tasks: int = 5000
    hidden: int = 256
    mlp: int = 512
    layers: int = 5
    heads: int = 4
    kv_heads: int = 2
    batch: int = 16
    learning_rate: float = 4e-3
    short: int = 8000
    prompt_weight: float = 0.3
    save_minutes: float = 4.0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either minutes or steps")


@dataclass(slots=True)
class State:
    """Progress of a run. ``next_task``: first task not yet in a batch."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    next_task: int = 0

    def share(self, settings: Settings) -> float:
        """The used share of the budget, from 0 to 1."""
        if settings.steps is not None:
            return self.steps / settings.steps
        return self.seconds / 60 / cast(float, settings.minutes)


def train_tokenizer(vocabulary: int, tasks: range) -> Tokenizer:
    """Byte-level BPE on the train split, every number below 100 in its vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    numbers = "\n".join(f"{n} {n:02d}" for n in range(100))
    texts = [task.text + task.patch for task in islice(generate("train", tasks.start), len(tasks))]
    tokenizer.train_from_iterator([numbers] * len(tasks) + texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, token_id(tokenizer, BOS))]
    )
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return found


def config_of(tokenizer: Tokenizer, settings: Settings) -> LlamaConfig:
    """A plain Llama. Training uses less than its context window."""
    return LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, BOS),
        eos_token_id=token_id(tokenizer, EOS),
        pad_token_id=token_id(tokenizer, PAD),
    )


def encode(tokenizer: Tokenizer, task: Task) -> Row:
    """The tokens of prompt, patch and end."""
    prompt = tokenizer.encode(task.text).ids
    patch = tokenizer.encode(task.patch, add_special_tokens=False).ids
    return [*prompt, *patch, token_id(tokenizer, EOS)], len(prompt)


@dataclass(frozen=True, slots=True)
class Marks:
    """The tokens that structure a patch, and the one that pads."""

    pad: int
    newline: int
    removed: int
    added: int

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer) -> Marks:
        return cls(*(token_id(tokenizer, token) for token in (PAD, "Ċ", "-", "+")))


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks of similar length, padded: ``ids`` (task, position) and the loss ``weights`` of the following tokens.
    ``tokens`` excludes padding. Small types, since batches are sent between processes."""

    ids: NDArray[np.int16]
    weights: NDArray[np.float32]
    tokens: int


def batch_of(rows: list[Row], marks: Marks) -> Batch:
    """Build a batch. Prompt tokens get weight -1, since their weight depends on progress."""
    longest = max(len(tokens) for tokens, _ in rows)
    length = -(-longest // 32) * 32 + 1  # few shapes, since oneDNN keeps memory for each
    ids = np.full((len(rows), length), marks.pad, np.int16)
    weights = np.zeros((len(rows), length), np.float32)
    for row, (tokens, prompt) in enumerate(rows):
        ids[row, : len(tokens)] = tokens
        weights[row, :prompt] = -1.0
        weights[row, prompt : len(tokens)] = 1.0
        header = tokens.index(marks.newline, tokens.index(marks.newline, prompt) + 1) + 1
        body = tokens.index(marks.newline, header)
        weights[row, header:body] = HEADER_WEIGHT
        edit = edited(tokens, body + 1, marks)
        weights[row, edit.start : edit.stop] = EDIT_WEIGHT
    return Batch(ids, weights[:, 1:], sum(len(tokens) for tokens, _ in rows))


class Pools(Dataset[list[Batch]]):
    """The batches of tasks from a number on, in an order independent of the worker."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.marks = Marks.from_tokenizer(tokenizer)
        self.size = max(POOL, 4 * settings.batch)

    def __getitem__(self, start: int) -> list[Batch]:
        numbers = range(start, start + self.size)
        most = {n: 1 if n < self.settings.short or n % 4 else 3 for n in numbers}
        rows = [encode(self.tokenizer, make("train", n, functions=most[n])) for n in numbers]
        rows.sort(key=lambda row: len(row[0]))
        batch = self.settings.batch
        groups = [batch_of(rows[at : at + batch], self.marks) for at in range(0, len(rows), batch)]
        random.Random(numbers.stop).shuffle(groups)
        return groups


def batches(tokenizer: Tokenizer, start: int, settings: Settings) -> Iterator[tuple[int, Batch]]:
    """Endless batches from task ``start`` on, each with the first task after its pool."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in the workers
    pools = Pools(tokenizer, settings)
    loader: DataLoader[list[Batch]] = DataLoader(
        pools,
        batch_size=None,
        sampler=count(start, pools.size),
        num_workers=settings.workers,
        collate_fn=_unchanged,
    )
    for number, pool in zip(count(start + pools.size, pools.size), loader, strict=False):
        for batch in pool:
            yield number, batch


def _unchanged(pool: list[Batch]) -> list[Batch]:
    """Keep NumPy arrays: tensors would need shared memory, which some machines lack."""
    return pool


def edited(tokens: list[int], start: int, marks: Marks) -> range:
    """Range in which the first added line differs from the first removed one; empty if one is missing.

    ``start`` is the position of the hunk's first line, after its header.
    """
    lines: dict[int, range] = {}
    while start < len(tokens) - 1:
        end = tokens.index(marks.newline, start)
        lines.setdefault(tokens[start], range(start + 1, end))
        start = end + 1
    if marks.removed not in lines or marks.added not in lines:
        return range(0)
    old, new = ([tokens[at] for at in lines[mark]] for mark in (marks.removed, marks.added))
    least = min(len(old), len(new))
    same = next((at for at in range(least) if old[at] != new[at]), least)
    back = next((at for at in range(least - same) if old[-1 - at] != new[-1 - at]), least - same)
    first = lines[marks.added].start
    return range(first + same, first + min(len(new) - back + 2, len(new) + 1))


def loss_of(model: LlamaForCausalLM, batch: Batch, prompt_weight: float) -> tuple[Tensor, Tensor]:
    """The weighted cross entropy to minimise, and the plain one of patch tokens, in nats.

    Never waits for the device: positions are selected on the host.
    """

    def send(values: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(values)
        if model.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(model.device, non_blocking=True)

    weights = np.where(batch.weights < 0, np.float32(prompt_weight), batch.weights).ravel()
    places = np.flatnonzero(weights)
    patch = np.flatnonzero(weights[places] >= 1.0)
    ids = send(batch.ids.astype(np.int64))
    weight, target = send(weights[places]), send(batch.ids[:, 1:].astype(np.int64).ravel()[places])
    with torch.autocast(model.device.type, torch.bfloat16):
        hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden.index_select(0, send(places))).float()
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    mean = losses.detach().index_select(0, send(patch)).mean()
    return (losses * weight).sum() / float(weights.sum()), mean


class Muon(torch.optim.Optimizer):
    """``torch.optim.Muon`` (Jordan et al., 2024; ``adjust_lr_fn="match_rms_adamw"``) over all matrices of one shape
    at once, since torch's own launches about 25 small kernels per matrix."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": alike} for alike in shapes.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        for group in self.param_groups:
            matrices = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            momentum = state["momentum"].lerp_(gradients, 1 - group["momentum"])
            updates = orthogonal(gradients.lerp(momentum, group["momentum"])).to(gradients.dtype)
            rate = 0.2 * group["lr"] * max(matrices[0].shape) ** 0.5
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(updates.unbind(0)), alpha=-rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices (count, rows, columns): five Newton-Schulz steps in
    bfloat16."""
    x = matrices.bfloat16()
    wide = x.shape[1] <= x.shape[2]
    if not wide:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.775, alpha=2.0315), x, beta=3.4445)
    return x if wide else x.mT


def optimisers(model: LlamaForCausalLM, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices within the layers, AdamW for embeddings and norms."""
    named = list(model.named_parameters())
    matrices = [parameter for name, parameter in named if parameter.ndim == 2 and "embed" not in name]
    others = [parameter for name, parameter in named if parameter.ndim != 2 or "embed" in name]
    return [
        Muon(matrices, lr=learning_rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_share(progress: float) -> float:
    """Share of the peak learning rate: warm-up over the first 2 %, constant, decay over the last 60 % of the run."""
    if progress < 0.02:
        return max(progress, 1e-3) / 0.02
    return min(1.0, max(0.02, (1.0 - progress) / 0.6))


class Trainer:
    """A model in training, with the state of a checkpoint."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        settings.out.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = self._tokenizer()
        self.model = LlamaForCausalLM(config_of(self.tokenizer, settings)).train().to(self.device)
        if settings.start_from is not None:
            self.model.load_state_dict(LlamaForCausalLM.from_pretrained(settings.start_from).state_dict())
        if self.device == "cuda":  # layer by layer, so that one compilation serves all layers
            for layer in self.model.model.layers:
                layer.compile(dynamic=True)
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimisers = optimisers(self.model, settings.learning_rate)
        self.state = State()
        if (settings.out / CHECKPOINT).exists():
            self._load(torch.load(settings.out / CHECKPOINT, map_location=self.device, weights_only=True))

    def _tokenizer(self) -> Tokenizer:
        path = self.settings.out / "tokenizer.json"
        if not path.exists() and self.settings.start_from is not None:
            shutil.copyfile(self.settings.start_from / "tokenizer.json", path)
        if not path.exists():
            tasks = range(FIRST_TOKENIZER_TASK, FIRST_TOKENIZER_TASK + self.settings.tokenizer_tasks)
            train_tokenizer(self.settings.vocabulary, tasks).save(str(path))
        return Tokenizer.from_file(str(path))

    def _load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.average = saved.get("average", {name: value.clone() for name, value in saved["model"].items()})
        for optimiser, values in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(values)
        self.state = State(**saved["state"])

    def step(self, batch: Batch) -> Tensor:
        """Run one update. Returns the mean loss of its patch tokens, in nats, on the device."""
        progress = self.state.share(self.settings)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * learning_rate_share(progress)
        prompt_weight = self.settings.prompt_weight * max(0.0, 1.0 - progress / 0.15)
        loss, patch = loss_of(self.model, batch, prompt_weight)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        decay = min(0.99, (1 + self.state.steps) / (10 + self.state.steps))
        weights = self.model.state_dict()
        torch._foreach_lerp_([self.average[name] for name in weights], list(weights.values()), 1.0 - decay)
        self.state.steps += 1
        self.state.tokens += batch.tokens
        return patch

    def save(self) -> None:
        """Write ``checkpoint.pt`` atomically, and ``hf/``."""
        out = self.settings.out
        state = {field.name: getattr(self.state, field.name) for field in fields(State)}
        everything = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "state": state,
        }
        torch.save(everything, out / "checkpoint.partial")
        (out / "checkpoint.partial").replace(out / CHECKPOINT)
        export = LlamaForCausalLM(self.model.config)
        export.load_state_dict(self.average)
        nn.Module.to(export, torch.bfloat16)
        export.save_pretrained(out / "hf")
        self.tokenizer.save(str(out / "hf" / "tokenizer.json"))
        tokenizer_config = {
            "bos_token": BOS,
            "eos_token": EOS,
            "pad_token": PAD,
            "model_max_length": self.model.config.max_position_embeddings,
            "tokenizer_class": "PreTrainedTokenizerFast",  # supported by every version of transformers
        }
        (out / "hf" / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def train(settings: Settings) -> list[float]:
    """Train until the budget is used or SIGTERM arrives. Returns the loss of each step's patch tokens, in nats."""
    trainer = Trainer(settings)
    state = trainer.state
    print(f"{sum(p.numel() for p in trainer.model.parameters()) / 1e6:.2f} M parameters, {state}", flush=True)
    losses: list[float] = []
    pending: list[Tensor] = []
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    started, before, saved = time.monotonic(), state.seconds, state.seconds
    waited, asked = 0.0, started
    for number, batch in batches(trainer.tokenizer, state.next_task, settings):
        waited += time.monotonic() - asked
        pending.append(trainer.step(batch))
        if state.steps % REPORT == 0:
            losses += torch.stack(pending).tolist()
            pending.clear()
        state.seconds = before + time.monotonic() - started
        if state.steps % REPORT == 0:
            mean = sum(losses[-REPORT:]) / len(losses[-REPORT:])
            rate = state.tokens / state.seconds
            print(
                f"{state.seconds / 60:.1f} min, {state.steps} steps, {state.tokens / 1e6:.2f} M tokens, "
                f"{rate:.0f} a second, loss {mean:.4f}, {waited:.1f} s waiting for tasks",
                flush=True,
            )
        done = state.share(settings) >= 1.0 or bool(ended)
        if done or state.seconds - saved > settings.save_minutes * 60:
            saved, state.next_task = state.seconds, number
            trainer.save()
        if done:
            break
        asked = time.monotonic()
    return losses + [patch.item() for patch in pending]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_tiny", description="Train the tiny Llama.")
    kinds = get_type_hints(Settings)
    for field in fields(Settings):
        kind = next(kind for kind in (Path, int, float) if kinds[field.name] in (kind, kind | None))
        default = {"required": True} if field.name == "out" else {"default": field.default}
        parser.add_argument("--" + field.name.replace("_", "-"), type=kind, **default)
    arguments = parser.parse_args()
    if (arguments.minutes is None) == (arguments.steps is None):
        parser.error("give either --minutes or --steps")
    train(Settings(**vars(arguments)))


if __name__ == "__main__":
    main()
