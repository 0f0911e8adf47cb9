"""The SWE-bench prompt format: a system line, an issue, and files of the repository with line numbers.

Format: SWE-bench's ``make_datasets/create_instance.py``, styles 2 and 3.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from functools import cache, cached_property
from itertools import accumulate, pairwise
from typing import Any, get_args

from swe_infer.types import EditFormat, Prompt

SYSTEM_COLUMN = "system"
"""The column of a frozen prompt's system part; empty: the prompt has none."""
EDIT_FORMAT_COLUMN = "edit_format"
"""The column with the form of answer that a frozen prompt requests."""
_EDIT_FORMATS: Mapping[object, EditFormat] = {name: name for name in get_args(EditFormat)}

_START, _END = "[start of ", "[end of "
# Without a leading ^, which would make the search twenty times as slow; files_in_prompt checks the line's start.
_MARKER = re.compile(r"\[(?P<kind>start|end) of (?P<path>[^\r\n]+)\]\r?$", re.MULTILINE)
_NUMBER = re.compile(r"(\d{1,9})(?: |$)")
_ELLIPSIS = "..."
_USUAL_LINES = 10_000
"""Longer files are read more slowly."""


def split_prompt(text: str) -> Prompt:
    """Split a dataset's ``text`` into a system and a user part.

    The first line is the system part, as in SWE-bench, unless it is the only line or is blank. Never raises.
    """
    first, separator, rest = text.partition("\n")
    if not separator or not first.strip() or not rest.strip():
        return Prompt(system=None, user=text)
    return Prompt(system=first, user=rest)


def prompt_of(text: str, row: Mapping[str, Any]) -> Prompt:
    """A row's ``text`` as a prompt. Its ``system`` column is the system part; without one, or if the text does not
    begin with it, :func:`split_prompt` decides.
    """
    system = row.get(SYSTEM_COLUMN)
    if system == "":
        return Prompt(system=None, user=text)
    if isinstance(system, str) and text.startswith(f"{system}\n") and text[len(system) + 1 :].strip():
        return Prompt(system=system, user=text[len(system) + 1 :])
    return split_prompt(text)


def edit_format_of(row: Mapping[str, Any]) -> EditFormat | None:
    """The form of answer in a row's ``edit_format`` column; None if the column is missing or invalid."""
    value = row.get(EDIT_FORMAT_COLUMN)
    return _EDIT_FORMATS.get(value) if isinstance(value, str) else None


class PromptFiles(Mapping[str, str]):
    """The files in a prompt. The prompt is parsed once, on first access; a file's line numbers are removed when it is
    read.

    It is pickled as the prompt, which the other process parses.
    """

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt

    @cached_property
    def _shown(self) -> dict[str, ShownFile]:
        return shown_files(self._prompt.text)

    def __getitem__(self, path: str) -> str:
        content = self._shown[path].content
        if content is None:
            raise KeyError(path)
        return content

    def __iter__(self) -> Iterator[str]:
        return (path for path, file in self._shown.items() if file.content is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PromptFiles) and self._prompt.text == other._prompt.text:
            return True  # without parsing either
        return super().__eq__(other)

    def __reduce__(self) -> tuple[type[PromptFiles], tuple[Prompt]]:
        return PromptFiles, (self._prompt,)


def prose_in_prompt(text: str) -> str:
    """The text of a prompt before its first file and after its last one."""
    head, _, rest = text.partition(_START)
    return head + rest.rpartition(_END)[2].partition("]")[2]


def files_in_prompt(text: str) -> dict[str, str]:
    """The files in a prompt: ``{path: content}``, without line numbers, in the prompt's order.

    A file needs both a ``[start of PATH]`` and an ``[end of PATH]`` line. The newline before the end line belongs to
    the format, so the content equals the file byte for byte; a file that ends in a newline has an empty last line.
    Line numbers are removed only if they are 1, 2, 3 … without gaps, so unnumbered files keep leading digits. Files
    with excerpts only (numbers with gaps, ``...`` between) are dropped, because patches cannot be checked against
    them. The first of several files with the same path wins. If a start line ends in ``\\r``, so do the lines of the
    prompt; the files' lines do not. Takes time linear in the length of the text.
    """
    contents = ((path, file.content) for path, file in shown_files(text).items())
    return {path: content for path, content in contents if content is not None}


def shown_files(text: str) -> dict[str, ShownFile]:
    """The files of :func:`files_in_prompt`, and excerpts."""
    ends: dict[str, deque[int]] = defaultdict(deque)
    starts: list[tuple[str, int]] = []
    for match in _MARKER.finditer(text):
        if match.start() and text[match.start() - 1] != "\n":
            continue
        if match["kind"] == "start":
            starts.append((match["path"], match.end() + 1))
        else:
            ends[match["path"]].append(match.start())
    files: dict[str, ShownFile] = {}
    position = 0
    for path, body_start in starts:
        if body_start < position or (path in files and files[path].content is not None):
            continue
        later = ends[path]
        while later and later[0] <= body_start:
            later.popleft()
        if not later:
            continue
        position = later[0]
        body = text[body_start : position - 1]
        if text[body_start - 2] == "\r":
            body = body.replace("\r\n", "\n").removesuffix("\r")
        files.pop(path, None)  # excerpts of the same file; order is that of whole files
        files[path] = ShownFile(body)
    return files


class ShownFile:
    """A file as a prompt shows it."""

    def __init__(self, body: str) -> None:
        self.body = body

    @cached_property
    def content(self) -> str | None:
        """The content, without line numbers; None if only excerpts are shown."""
        body = self.body
        lines = body.split("\n")
        if len(lines) <= _USUAL_LINES:
            content = "\n".join(map(str.removeprefix, lines, _prefixes()))
            if len(body) - len(content) == _prefix_lengths()[len(lines) - 1]:  # each line had its number
                return content
        parts = [line.partition(" ") for line in lines]
        if [number for number, _, _ in parts] == list(map(str, range(1, len(lines) + 1))):
            return "\n".join([text for _, _, text in parts])
        numbers = [int(match[1]) if (match := _NUMBER.match(line)) else None for line in lines]
        numbered = [number for number in numbers if number is not None]
        increasing = all(later > earlier for earlier, later in pairwise(numbered))
        rest = [line for line, number in zip(lines, numbers, strict=True) if number is None]
        if numbered and increasing and all(line.strip() in (_ELLIPSIS, "") for line in rest) and len(numbered) > 1:
            return None
        return body


@cache
def _prefixes() -> tuple[str, ...]:
    """The line numbers of a file, with the space behind them."""
    return tuple(f"{number} " for number in range(1, _USUAL_LINES + 1))


@cache
def _prefix_lengths() -> tuple[int, ...]:
    """The characters of the first prefix, of the first two, and so on."""
    return tuple(accumulate(map(len, _prefixes())))
