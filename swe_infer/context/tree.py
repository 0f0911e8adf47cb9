"""Lists the paths of a repository within a number of tokens."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from swe_infer.context.base import CountTokens

_SOURCE = re.compile(
    "ada|adb|ads|asm|bash|c|cc|cfg|cjs|clj|cljs|cmake|coffee|cpp|cs|css|cu|cuh|cxx|d|dart|el|elm|erl|ex|"
    "exs|f|f03|f08|f77|f90|f95|fs|fsx|gd|go|gradle|graphql|groovy|h|haml|hbs|hh|hpp|hrl|hs|htm|html|hx|"
    "hxx|ini|ipp|j2|java|jinja|jinja2|jl|js|jsx|kt|kts|less|lisp|lua|m|mako|mjs|ml|mli|mm|mts|nim|pas|"
    "php|pl|pm|proto|ps1|pxd|pxi|py|pyi|pyx|r|rb|rkt|rs|s|sass|scala|scm|scss|sh|sol|sql|st|svelte|swift|"
    "tcl|tex|tf|thrift|tmpl|toml|ts|tsx|twig|v|vala|vb|vhd|vhdl|vim|vue|wat|xsl|yaml|yml|zig|zsh"
)
"""Suffixes of files that fixes change, in lower case."""
_NOT_CODE = re.compile(
    "cfg|css|haml|hbs|htm|html|ini|j2|jinja|jinja2|less|mako|sass|scss|tex|tmpl|toml|twig|xsl|yaml|yml"
)
"""The suffixes of :data:`_SOURCE` of markup, styles and settings."""
_SOURCE_NAMES = frozenset({"makefile", "dockerfile", "rakefile", "gemfile", "jenkinsfile", "build", "workspace"})
_BESIDE = re.compile(
    "benchmarks?|changelogs?|demos?|docs?|documentation|examples?|fixtures|locales?|news|releasenotes|samples|specs?|"
    "tests?|testdata"
)
"""Folders of tests, documentation and examples, in lower case."""
_TEST = re.compile(r"(?:test_|conftest\.).*|.*(?:[_.-](?:test|tests|spec)|Tests?)\.[^.]+")

_TEST_WORDS = frozenset({"test", "tests", "testing"})
"""Words of a path that make a file a test in SWE-bench."""

LONGEST_TOKEN = 16
"""Characters. Text with more of them for each token of the limit is not counted and does not fit."""


def fit_paths(paths: Collection[str], limit: int, count_tokens: CountTokens) -> list[str]:
    """The lines of a list of ``paths``, sorted, of at most ``limit`` tokens.

    If all paths do not fit, files that are not source code are left out, then tests, documentation and examples. Then
    folders are shown as one line with their number of files, the deepest folders first. Then the last lines are left
    out. Paths with characters that cannot be printed are always left out.
    """

    def fits(lines: Sequence[str]) -> bool:
        text = "\n".join(lines)
        return len(text) <= limit * LONGEST_TOKEN and count_tokens(text) <= limit

    chosen = sorted(path for path in paths if path.isprintable())
    for keeps in (None, _is_source, _is_main):
        if keeps is not None:
            chosen = [path for path in chosen if keeps(path)] or chosen
        if fits(chosen):
            return chosen
    folders = _folders(chosen)
    collapsed = bisect_left(range(len(folders)), True, key=lambda count: fits(_lines(chosen, folders[:count])))
    lines = _lines(chosen, folders[:collapsed])
    left_out = bisect_left(range(len(lines)), True, key=lambda count: fits(lines[: len(lines) - count]))
    return lines[: len(lines) - left_out]


def _is_source(path: str) -> bool:
    name = path.rpartition("/")[2].lower()
    return _SOURCE.fullmatch(name.rpartition(".")[2]) is not None if "." in name else name in _SOURCE_NAMES


def is_code(path: str) -> bool:
    """Whether a file contains source code of a programming language, by its suffix."""
    suffix = path.rpartition("/")[2].lower().rpartition(".")[2]
    return _is_source(path) and not _NOT_CODE.fullmatch(suffix)


def is_test(path: str) -> bool:
    """Whether a file is a test, by a word of its path, as in SWE-bench, or by the naming of other languages."""
    words = re.split(r"[ _/.]", path.lower())
    return not _TEST_WORDS.isdisjoint(words) or _TEST.fullmatch(path.rpartition("/")[2]) is not None


def _is_main(path: str) -> bool:
    folders, _, name = path.rpartition("/")
    return not any(map(_BESIDE.fullmatch, folders.lower().split("/"))) and not _TEST.fullmatch(name)


def _parents(path: str) -> Iterator[str]:
    """The folders that contain a path, the outermost first."""
    end = path.find("/")
    while end >= 0:
        yield path[:end]
        end = path.find("/", end + 1)


def _folders(paths: Sequence[str]) -> list[str]:
    """All folders: the deepest first, then those with the most files."""
    files = Counter(folder for path in paths for folder in _parents(path))
    return sorted(files, key=lambda folder: (-folder.count("/"), -files[folder], folder))


def _lines(paths: Sequence[str], collapsed: Collection[str]) -> list[str]:
    """The list of paths, where each of the ``collapsed`` folders is one line."""
    known = set(collapsed)
    counts: Counter[str] = Counter()
    for path in paths:
        counts[next((f"{folder}/" for folder in _parents(path) if folder in known), path)] += 1
    return [
        f"{line} ({count:,} file{'s' * (count > 1)})" if line.endswith("/") else line
        for line, count in sorted(counts.items())
    ]
