"""The base of contexts that read files of a repository."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from swe_infer.context.base import Commit, Context, CountTokens, Shown
from swe_infer.context.reading import README_PREFIX, as_shown, followed
from swe_infer.context.tree import LONGEST_TOKEN
from swe_infer.context.windows import Range, Windows, excerpt
from swe_infer.errors import ConfigError, DataError
from swe_infer.options import Option
from swe_infer.repositories.options import RepositoryOptions

Order = Literal["path", "rank", "reversed"]

MOST_COUNTED = 100_000
"""Tokens."""


def required(commit: Commit | None) -> Commit:
    """Returns ``commit`` if it is not None.

    Raises:
        DataError: the repository's files are not available.
    """
    if commit is None:
        raise DataError("the files of its repository are not available")
    return commit


@dataclass(frozen=True, kw_only=True)
class RepositoryContext(RepositoryOptions, Context):
    """The options of the contexts that read a repository."""

    readmes: Annotated[bool, Option("Show the READMEs of the repository's root before the files.", "answer")] = True
    max_tokens: Annotated[
        int | None,
        Option("Maximum tokens of the files, without line numbers; files that do not fit are left out.", "answer"),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"context.max_tokens={self.max_tokens}: must be at least 1, or null")

    @property
    def repository_options(self) -> RepositoryOptions:
        return self

    @property
    def needs_repository(self) -> bool:
        return True

    def _show(
        self,
        commit: Commit,
        paths: Iterable[str],
        count_tokens: CountTokens,
        *,
        creates_file: bool = False,
        left_out: Mapping[str, str] | None = None,
        order: Order = "path",
        counts_all: bool = False,
        windows: Windows | None = None,
    ) -> Shown:
        """The texts of ``paths``, which are in the tree, and of the READMEs, read in one request.

        With ``max_tokens``, files come first, in order, then READMEs. One that does not fit is left out, and the next
        ones are tried.

        Args:
            order: how the prompt sorts the files, where ``paths`` are in the order of their ranks.
            counts_all: also count files that are too long for the tokens that are left, up to :data:`MOST_COUNTED`.
            windows: the lines to show of each file; None: whole files.
        """
        wanted = list(dict.fromkeys(paths))
        root = commit.top_level() if self.readmes else {}
        readmes = sorted(path for path in root if path.lower().startswith(README_PREFIX))
        contents = followed(commit, dict.fromkeys((*wanted, *readmes)))
        missing = dict(left_out or {})
        available = self.max_tokens
        counts: dict[str, int] = {}
        shown: list[dict[str, str]] = [{}, {}]
        shown_lines: dict[str, Sequence[Range]] = {}
        for part, group in zip(shown, (wanted, readmes), strict=True):
            for path in group:
                text, why = as_shown(contents[path])
                ranges = windows(path, text) if windows is not None and text is not None and group is wanted else ()
                if text is not None and available is not None and self.max_tokens is not None:
                    most = max(self.max_tokens, MOST_COUNTED) if counts_all else available
                    if len(text) > LONGEST_TOKEN * most and not ranges:  # counting would be slow
                        why = f"its {len(text):,} characters do not fit in context.max_tokens"
                        text = None
                    else:
                        part_shown = excerpt(text, ranges, numbers=False) if ranges else text
                        counts[path] = tokens = count_tokens(f"{path}\n{part_shown}\n")
                        if tokens > available:
                            text, why = None, f"its {tokens:,} tokens do not fit in context.max_tokens"
                        else:
                            available -= tokens
                if text is None:
                    missing[path] = why
                else:
                    part[path] = text
                    if ranges:
                        shown_lines[path] = ranges
        files = dict(reversed(shown[0].items())) if order == "reversed" else shown[0]
        counts_all = counts_all and self.max_tokens is not None
        counted = {path: counts[path] for path in wanted if path in counts} if counts_all else None
        return Shown(files, shown[1], creates_file, missing, order != "path", shown_lines, counted)
