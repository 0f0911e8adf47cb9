"""Tokens per forward step when the model generates a gold patch, and the cost of drafting.

    python -m benchmarks.drafting [INSTANCES.jsonl] [--tokenizer DIR] [--k 8 16 32] [--peer DRAFT_PEERS.py]

``INSTANCES.jsonl`` has the columns of SWE-bench_oracle (``text``, ``patch``); the default is the bundled instances.
Without ``--tokenizer`` a byte-level BPE of 16,000 tokens is trained on the standard library. ``--peer`` also runs
another script on the same file and tokenizer, as ``PEER INSTANCES TOKENIZER_DIR K``. Times are medians of thread CPU
time; the time to encode 1,000 characters is printed for comparison between machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swe_infer.errors import ConfigError, DataError
from swe_infer.llama.drafting import Drafter, DraftSource, SharedSuffixes, drafter_of
from swe_infer.prompt_format import PromptFiles
from swe_infer.text import report_errors
from swe_infer.types import Prompt

PACKAGED = Path(__file__).resolve().parent.parent / "swe_infer" / "sample" / "instances.jsonl"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Raises DataError if a line is not a JSON object with the columns ``text`` and ``patch``."""
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                _ = row["text"], row["patch"]
            except (ValueError, KeyError, TypeError):
                raise DataError(f"{path}, line {number}: not a JSON object with text and patch") from None
            rows.append(row)
    return rows


class Codec:
    """A ``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ConfigError(f"--tokenizer: there is no file {path}")
        self._tokenizer = Tokenizer.from_file(str(path))

    def encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class PromptLookup:
    """The n-gram drafter of transformers: the first occurrence of the last three, two or one tokens."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._first: dict[tuple[int, ...], int] = {}
        self.extend(prompt_ids)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            place = len(self._tokens)  # of the token that follows the grams that end before it
            for size in (1, 2, 3):
                if place >= size:
                    self._first.setdefault(tuple(self._tokens[place - size : place]), place)
            self._tokens.append(token)

    @property
    def situation(self) -> None:
        """Constant: drafts have a fixed length here."""

    def draft(self, limit: int) -> list[int]:
        for size in (3, 2, 1):
            place = self._first.get(tuple(self._tokens[-size:]))
            if place is not None:
                return self._tokens[place : place + limit]
        return []


@dataclass
class Tally:
    """Counts over all instances; times in microseconds."""

    tokens: int = 0
    steps: int = 0
    by_instance: list[float] = field(default_factory=list)
    draft_us: list[float] = field(default_factory=list)
    extend_us: list[float] = field(default_factory=list)


def follow(drafter: Drafter, ids: Sequence[int], k: int, tally: Tally) -> None:
    """Verify drafts against ``ids``."""
    at = steps = 0
    while at < len(ids):
        started = time.thread_time()
        draft = drafter.draft(k)
        drafted = time.thread_time()
        accepted = 0
        while accepted < len(draft) and at + accepted < len(ids) and draft[accepted] == ids[at + accepted]:
            accepted += 1
        compared = time.thread_time()
        drafter.extend(ids[at : at + accepted + 1])
        tally.extend_us.append((time.thread_time() - compared) * 1e6)
        tally.draft_us.append((drafted - started) * 1e6)
        at += accepted + 1
        steps += 1
    tally.tokens += len(ids)
    tally.steps += steps
    tally.by_instance.append(len(ids) / steps)


def train(directory: Path) -> Path:
    """Train a tokenizer like that of the other benchmarks' random model."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:150]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sources], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def timed(action: Callable[[], object]) -> float:
    """Milliseconds of thread CPU time."""
    started = time.thread_time()
    action()
    return (time.thread_time() - started) * 1e3


def source_of(text: str) -> DraftSource:
    prompt = Prompt(None, text)
    return DraftSource(prompt, PromptFiles(prompt))


def index(shared: SharedSuffixes) -> None:
    """Build the indexes of a prompt, once for all samples."""
    _ = shared.corpus, shared.paths, shared.prompt_tokens


def measure(rows: Sequence[dict[str, Any]], codec: Codec, k: int) -> dict[str, Tally]:
    tallies: dict[str, Tally] = {}
    for row in rows:
        text = str(row["text"])
        prompt_ids = codec.encode_text(text)
        patch_ids = codec.encode_text(str(row["patch"]).strip() + "\n")
        follow(PromptLookup(prompt_ids), patch_ids, k, tallies.setdefault("prompt lookup", Tally()))
        for kind in ("diff", "suffix"):
            shared = SharedSuffixes(prompt_ids, source_of(text))
            index(shared)
            follow(drafter_of(kind, codec, shared), patch_ids, k, tallies.setdefault(kind, Tally()))
    return tallies


def cost(rows: Sequence[dict[str, Any]], codec: Codec, tokens: int, k: int) -> dict[str, float]:
    """Times with a prompt of ``tokens`` tokens, concatenated from the rows' prompts."""
    texts: list[str] = []
    prompt_ids: list[int] = []
    for _ in range(1000):
        row = rows[len(texts) % len(rows)]
        texts.append(str(row["text"]))
        prompt_ids += codec.encode_text(texts[-1])
        if len(prompt_ids) >= tokens:
            break
    shared = SharedSuffixes(prompt_ids, source_of("".join(texts)))
    figures = {"prompt_tokens": float(len(prompt_ids)), "index_ms": timed(lambda: index(shared))}
    tally = Tally()
    for row in rows[: len(texts)]:
        patch_ids = codec.encode_text(str(row["patch"]).strip() + "\n")
        follow(drafter_of("diff", codec, shared), patch_ids, k, tally)
    steps = [a + b for a, b in zip(tally.draft_us, tally.extend_us, strict=True)]
    sample = texts[0][:1000]
    return figures | {
        "step_us_median": statistics.median(steps),
        "step_us_mean": statistics.fmean(steps),
        "step_us_95": statistics.quantiles(steps, n=20)[-1],
        "encode_1000_characters_us": statistics.median(timed(lambda: codec.encode_text(sample)) for _ in range(50))
        * 1e3,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instances", nargs="?", type=Path, default=PACKAGED)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--most-characters", type=int, default=140_000, help="skip longer prompts")
    asked = parser.parse_args(arguments)
    rows = [row for row in read_rows(asked.instances) if len(row["text"]) <= asked.most_characters]
    with tempfile.TemporaryDirectory() as scratch:
        directory = asked.tokenizer or train(Path(scratch))
        codec = Codec(directory / "tokenizer.json")
        for k in asked.k:
            for name, tally in measure(rows, codec, k).items():
                draft, extend = statistics.median(tally.draft_us), statistics.median(tally.extend_us)
                middle, least = statistics.median(tally.by_instance), min(tally.by_instance)
                print(
                    f"K = {k:2d}  {name:14s} {tally.tokens / tally.steps:6.3f} tokens a step"
                    f"  (instances: median {middle:5.2f}, least {least:5.2f})"
                    f"  draft {draft:4.0f} us  extend {extend:3.0f} us"
                )
            if asked.peer:
                command = [sys.executable, str(asked.peer), str(asked.instances), str(directory), str(k)]
                print(
                    f"K = {k:2d}  peer",
                    subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip(),
                )
        print({key: round(value, 1) for key, value in cost(rows, codec, 60_000, max(asked.k)).items()})


if __name__ == "__main__":
    sys.exit(report_errors(main))
