"""Data shared by the samples of a prompt: its parsed files, its indexes, and other outputs."""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from swe_infer.llama.drafting.content import corpus_of
from swe_infer.llama.drafting.files import SourceFile, rank_files
from swe_infer.llama.drafting.patch_state import DiffStyle
from swe_infer.llama.drafting.suffix import TokenIndex
from swe_infer.llama.drafting.words import WordIndex, split_words
from swe_infer.prompt_format import prose_in_prompt
from swe_infer.types import DrafterKind, Prompt

_MAX_ACTIVE = 8
"""Maximum unfinished outputs that a draft searches."""

_INDEXES = ("files", "paths", "corpus", "prompt_tokens", "output_tokens", "output_words")


@dataclass(frozen=True, slots=True)
class DraftSource:
    """A prompt, and the files that its outputs may copy from and that their patches are checked against.

    Args:
        files: path to content, read lazily.
    """

    prompt: Prompt = Prompt(None, "")  # noqa: RUF009 - immutable
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def prose(self) -> str:
        """The prompt's text outside its files."""
        return prose_in_prompt(self.prompt.text)


NO_SOURCE = DraftSource()


class SharedSuffixes:
    """One prompt and its outputs. Indexes are built lazily, in linear time.

    Args:
        style: how the model writes diffs, learned from all its outputs.
        most_tokens: limit on tokens of earlier outputs; the oldest are dropped first.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        source: DraftSource = NO_SOURCE,
        style: DiffStyle | None = None,
        most_tokens: int = 32_768,
    ) -> None:
        self.style = style or DiffStyle()
        self.prompt_ids = prompt_ids
        self.source = source
        self._most_tokens = most_tokens
        self._outputs: deque[tuple[array[int], str]] = deque()
        self._output_count = 0
        self._active: list[TokenIndex] = []

    @cached_property
    def files(self) -> dict[str, SourceFile]:
        return {path: SourceFile(path, content) for path, content in self.source.files.items()}

    @cached_property
    def paths(self) -> tuple[list[str], list[str]]:
        """Paths of code, ranked by how likely a patch touches them, and paths of front matter."""
        return rank_files(self.files, self.source.prose)

    @cached_property
    def corpus(self) -> WordIndex:
        return corpus_of(self.files.values(), self.source.prose)

    @cached_property
    def prompt_tokens(self) -> TokenIndex:
        index = TokenIndex()
        index.extend(self.prompt_ids)
        return index

    @cached_property
    def output_tokens(self) -> TokenIndex:
        index = TokenIndex()
        for tokens, _ in self._outputs:
            index.extend(tokens)
        return index

    @cached_property
    def output_words(self) -> WordIndex:
        index = WordIndex()
        for _, text in self._outputs:
            index.extend(_output_words(text))
        return index

    def prepare(self, kind: DrafterKind) -> None:
        """Build the index of the prompt for this kind of drafter, once for all samples."""
        _ = (self.corpus, self.paths) if kind == "diff" else self.prompt_tokens

    def is_prepared(self, kind: DrafterKind) -> bool:
        """Whether the index for this kind of drafter exists."""
        return ("corpus" if kind == "diff" else "prompt_tokens") in self.__dict__

    def token_indexes(self) -> tuple[TokenIndex, ...]:
        """Indexes of earlier outputs, of the longest unfinished outputs, and of the prompt."""
        ahead = sorted(self._active, key=lambda index: -len(index.tokens))[:_MAX_ACTIVE]
        return self.output_tokens, *ahead, self.prompt_tokens

    def add_active(self, written: TokenIndex) -> None:
        """Let other samples draft from an unfinished output."""
        self._active.append(written)

    def remove_active(self, written: TokenIndex) -> None:
        """Undo :meth:`add_active`."""
        self._active = [index for index in self._active if index is not written]

    def add_output(self, tokens: Sequence[int], text: str) -> None:
        """Add a finished output for later samples of the prompt."""
        self._outputs.append((array("l", tokens), text))
        self._output_count += len(tokens)
        if self._output_count > self._most_tokens and len(self._outputs) > 1:
            while self._output_count > self._most_tokens // 2 and len(self._outputs) > 1:
                self._output_count -= len(self._outputs.popleft()[0])
            self.drop_indexes("output_tokens", "output_words")
            return
        if "output_tokens" in self.__dict__:
            self.output_tokens.extend(tokens)
        if "output_words" in self.__dict__:
            self.output_words.extend(_output_words(text))

    def drop_indexes(self, *names: str) -> None:
        """Drop the named indexes, by default all. Outputs are kept."""
        for name in names or _INDEXES:
            self.__dict__.pop(name, None)


def _output_words(text: str) -> list[str]:
    """The words of an output, without the signs of a diff."""
    lines = (line[1:] if line[:1] in ("+", "-", " ") else line for line in text.split("\n"))
    return split_words("\n" + "\n".join(lines))


class SharedPrompts:
    """The most recent prompts with their outputs, shared by the jobs of a sweep.

    Args:
        most_prompts: prompts whose outputs are kept.
        most_tokens: prompt tokens whose indexes are kept, at about 300 bytes each.
    """

    def __init__(self, most_prompts: int = 4096, most_tokens: int = 1_000_000) -> None:
        self._most_prompts = most_prompts
        self._most_tokens = most_tokens
        self._style = DiffStyle()
        self._prompts: OrderedDict[tuple[int, ...], SharedSuffixes] = OrderedDict()

    def get(self, prompt_ids: Sequence[int], source: DraftSource = NO_SOURCE) -> SharedSuffixes:
        """Return the shared data of a prompt, and mark it as most recently used."""
        key = tuple(prompt_ids)
        found = self._prompts.pop(key, None)
        if found is None:
            found = SharedSuffixes(key, source, self._style)
        self._prompts[key] = found
        while len(self._prompts) > self._most_prompts:
            self._prompts.popitem(last=False)
        self._drop_old_indexes()
        return found

    def _drop_old_indexes(self) -> None:
        tokens = 0
        for shared in reversed(self._prompts.values()):
            tokens += len(shared.prompt_ids)
            if tokens > self._most_tokens:
                shared.drop_indexes()
