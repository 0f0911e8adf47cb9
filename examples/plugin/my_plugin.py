"""Classes of your own for six places of a configuration. Copy the ones that you need.

``experiment/my_plugin.yaml`` names them in ``_target_``; ``docs/extending.md`` explains how they are found.

A class of a group is a dataclass with keyword-only fields. Each field is a key of the configuration, and its
``Option`` says whether another value starts another run (``answer``) or resumes the same one.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from swe_infer.context.base import Commit, Context, CountTokens, Row, Shown
from swe_infer.data.base import DatasetOptions, IndexedRows
from swe_infer.instance_files import files_of
from swe_infer.llama.drafting.base import Codec
from swe_infer.options import Option
from swe_infer.prompts.prompt import PromptRenderer
from swe_infer.providers.base import Answer, Provider
from swe_infer.run_directory.predictions import Candidate, Choice
from swe_infer.selection.base import LoadFiles
from swe_infer.types import ApiModel, Decoding, Prompt, Request, Usage

ROWS = [
    {
        "instance_id": f"spelling__{name}",
        "problem_statement": f"{name}.py misspells length.",
        "files": {f"{name}.py": f"def {name}(items):\n    lenght = len(items)\n    return lenght {sign} 1\n"},
    }
    for name, sign in (("following", "+"), ("preceding", "-"), ("last", "-"))
]


@dataclass(frozen=True, kw_only=True)
class SpellingDataset(DatasetOptions):
    """Rows that a program makes. Without ``files``, ``repo`` and ``base_commit`` name a repository."""

    name: ClassVar[str] = "spelling"

    def open(self) -> IndexedRows:
        return SpellingRows(self.text_column)


class SpellingRows(IndexedRows):
    def __init__(self, text_column: str | None) -> None:
        super().__init__(text_column, "spelling", "row")
        self.columns = ROWS[0].keys()
        self._index((number, row["instance_id"], row.get(self._measured_column)) for number, row in enumerate(ROWS))

    def _read(self, index: int) -> Mapping[str, Any]:
        return ROWS[index]


@dataclass(frozen=True, kw_only=True)
class NamedFiles(Context):
    """Shows the files that the issue names."""

    most: Annotated[int, Option("Maximum number of files.", "answer")] = 5

    @property
    def rules(self) -> str:
        return "named_files-1"  # part of a run's identity: change it with the rules

    @property
    def needs_repository(self) -> bool:
        return False

    def choose(self, row: Row, commit: Commit | None, count_tokens: CountTokens) -> Shown:
        files = files_of(row) or {}
        named = [path for path in files if path in str(row["problem_statement"])]
        return Shown(files={path: files[path] for path in named[: self.most]})


@dataclass(frozen=True, kw_only=True)
class ShortPrompt(PromptRenderer):
    """A prompt that a function writes. Without code, ``prompt.template`` names a Jinja template."""

    style: Annotated[Literal["plain"], Option("The form of the files.", "answer")] = "plain"
    greeting: Annotated[str, Option("The first line.", "answer")] = "Fix this bug."

    @property
    def rules(self) -> str:
        return "short_prompt-1"

    def render(self, row: Row, shown: Shown, *, text_column: str = "text") -> Prompt:
        files = "\n".join(f"[start of {path}]\n{text}[end of {path}]" for path, text in shown.files.items())
        return Prompt(self.system, f"{self.greeting}\n\n{row['problem_statement']}\n\n{files}\n")


@dataclass(kw_only=True, eq=False)
class SpellingProvider(Provider):
    """Answers without a server. ``examples/gateway_provider.py`` sends requests to one."""

    name: Annotated[str, Option("The vendor's name in messages and records.", "answer")] = "spelling"
    word: Annotated[str, Option("What replaces the misspelled word.", "answer")] = "length"
    max_concurrency: Annotated[int, Option("Maximum number of concurrent requests.", "speed")] = 4
    timeout_s: Annotated[float, Option("Timeout of one request in seconds.", "speed")] = 60.0
    pricing_id: Annotated[str | None, Option("The provider's name in genai-prices.", "reporting")] = None
    address: Annotated[str, Option("The URL of a server.", "address")] = "local"
    mode: Annotated[Literal["live"], Option("Without batches.", "speed")] = "live"

    def check(self, model: ApiModel, decoding: Decoding) -> None:
        """Every decoding is supported."""

    def check_access(self) -> None:
        """No key is needed."""

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def complete(
        self, request: Request, model: ApiModel, *, timeout_s: float, cache_prompt: bool = False
    ) -> Answer:
        diff: list[str] = []
        for path, text in (request.files or {}).items():
            before, after = (each.splitlines(keepends=True) for each in (text, text.replace("lenght", self.word)))
            diff += difflib.unified_diff(before, after, f"a/{path}", f"b/{path}")
        usage = Usage(input_tokens=len(request.prompt.text.split()), output_tokens=len("".join(diff).split()))
        return Answer(text=f"```diff\n{''.join(diff)}```\n", finish_reason="stop", usage=usage, model=model.name)


@dataclass(frozen=True, kw_only=True)
class LastThatApplies:
    """Of the patches that apply, the last one."""

    name: ClassVar[str] = "last_that_applies"

    def choose(self, candidates: Sequence[Candidate], files: LoadFiles) -> Choice | None:
        applying = [index for index, one in enumerate(candidates) if one.applies]
        return Choice(applying[-1], "the last one that applies") if applying else None


@dataclass(frozen=True, kw_only=True)
class RepeatedLines:
    """Drafts the tokens that followed the last token in the prompt. Wrong drafts cost time, never an answer."""

    most: int = 8

    def create(self, prompt_ids: Sequence[int], files: Mapping[str, str], codec: Codec) -> RepeatedLinesDrafter:
        return RepeatedLinesDrafter(prompt_ids, self.most)


class RepeatedLinesDrafter:
    situation = None  # drafts with the same situation are expected to be accepted equally often

    def __init__(self, prompt_ids: Sequence[int], most: int) -> None:
        self._prompt, self._most = list(prompt_ids), most
        self._written: list[int] = []

    def draft(self, limit: int) -> list[int]:
        last = self._written[-2:]
        for start in range(len(self._prompt) - len(last), -1, -1):
            if last and self._prompt[start : start + len(last)] == last:
                return self._prompt[start + len(last) : start + len(last) + min(limit, self._most)]
        return []

    def extend(self, tokens: Sequence[int]) -> None:
        self._written += tokens
