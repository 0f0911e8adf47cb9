"""A small byte-level tokenizer, a prompt with two files, and a simulation of drafting against a known output."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from swe_infer.llama.drafting import Drafter, DraftSource
from swe_infer.prompt_format import PromptFiles
from swe_infer.types import Prompt

__all__ = ["CALENDAR", "PROMPT", "BpeCodec", "DraftRun", "follow", "numbered", "source_of"]


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [str(library / name) for name in ("argparse.py", "difflib.py", "calendar.py", "textwrap.py")]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train(sources, trainer)
    return tokenizer


class BpeCodec:
    """Byte-level BPE trained on sources of the standard library."""

    def encode_text(self, text: str) -> list[int]:
        return list(_tokenizer().encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(_tokenizer().decode(list(ids), skip_special_tokens=True))

    @property
    def size(self) -> int:
        return int(_tokenizer().get_vocab_size())


CALENDAR = '''"""Appointments of one person."""

import datetime


class Calendar:
    """Holds appointments in order."""

    def __init__(self, owner):
        self.owner = owner
        self.appointments = []

    def add(self, start, end, title):
        """Enter an appointment."""
        self.appointments.append((start, end, title))
        self.appointments.sort()

    def conflicts(self, start, end):
        """Appointments that overlap with the given time."""
        found = []
        for other_start, other_end, title in self.appointments:
            if other_start < end and other_end > start:
                found.append(title)
        return found

    def next(self, now=None):
        """The first appointment that has not begun."""
        now = now or datetime.datetime.now()
        for start, _, title in self.appointments:
            if start > now:
                return title
        return None
'''

REPORT = """def render(calendar):
    lines = [calendar.owner]
    for start, end, title in calendar.appointments:
        lines.append(f"{start:%H:%M} {title}")
    return "\\n".join(lines)
"""


def numbered(path: str, content: str) -> str:
    """A file in the format of SWE-bench prompts."""
    lines = "\n".join(f"{number} {line}" for number, line in enumerate(content.split("\n"), 1))
    return f"[start of {path}]\n{lines}\n[end of {path}]\n"


PROMPT = (
    "You will be provided with a partial code base and an issue statement.\n<issue>\n"
    "`Calendar.add` takes an appointment that ends before it starts. Raise ValueError.\n</issue>\n<code>\n"
    + numbered("office/calendar.py", CALENDAR)
    + numbered("office/report.py", REPORT)
    + "</code>\nAnswer with a patch between <patch> and </patch>.\n"
)


def source_of(prompt: str) -> DraftSource:
    """The draft source that the runner creates for a prompt."""
    whole = Prompt(None, prompt)
    return DraftSource(whole, PromptFiles(whole))


@dataclass(frozen=True)
class DraftRun:
    """The result of drafting a known output: tokens, forward steps, and the draft before each step."""

    tokens: int
    steps: int
    drafts: tuple[tuple[str, str], ...]

    @property
    def rate(self) -> float:
        return self.tokens / self.steps

    def after(self, text: str) -> str:
        """The draft when the output ended in ``text``."""
        return next(draft for before, draft in self.drafts if before.endswith(text))


def follow(
    drafter: Drafter, codec: BpeCodec, output: str, limit: int = 32, max_accepted: int | None = None
) -> DraftRun:
    """Verify drafts against ``output`` and count steps. ``max_accepted`` limits the tokens of a step."""
    ids = codec.encode_text(output)
    at = steps = 0
    drafts = []
    while at < len(ids):
        draft = drafter.draft(limit)
        assert len(draft) <= limit
        drafts.append((codec.decode(ids[:at]), codec.decode(draft)))
        accepted = 0
        while accepted < len(draft) and at + accepted < len(ids) and draft[accepted] == ids[at + accepted]:
            accepted += 1
        count = accepted + 1 if max_accepted is None else min(max_accepted, accepted + 1)
        drafter.extend(ids[at : at + count])
        at += count
        steps += 1
    return DraftRun(len(ids), steps, tuple(drafts))
